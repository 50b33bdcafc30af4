//! An HTTP server on loopback that serves files from memory.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;

/// Serves files until the test ends.
pub struct Files {
    address: String,
}

impl Files {
    pub fn serve(files: BTreeMap<&'static str, Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let files = Arc::new(files);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let files = files.clone();
                std::thread::spawn(move || answer(stream, &files));
            }
        });
        Self { address }
    }

    pub fn url(&self, name: &str) -> String {
        format!("http://{}/{name}", self.address)
    }
}

fn answer(mut stream: TcpStream, files: &BTreeMap<&'static str, Vec<u8>>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let path = first.split(' ').nth(1).unwrap_or_default().trim_start_matches('/');
    match files.get(path) {
        Some(content) => {
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                content.len()
            )?;
            stream.write_all(content)
        }
        None => stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
    }
}

/// A raw disk of 8 MiB with something in it.
pub fn raw_disk() -> Vec<u8> {
    let mut disk = vec![0; 8 << 20];
    for (n, byte) in disk[2 << 20..3 << 20].iter_mut().enumerate() {
        *byte = u8::try_from(n % 251).unwrap();
    }
    disk
}

/// The same as qcow2, made by qemu-img.
pub fn qcow2(raw: &[u8]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("a"), folder.path().join("b"));
    std::fs::write(&from, raw).unwrap();
    let status =
        Command::new("qemu-img").args(["convert", "-f", "raw", "-O", "qcow2"]).args([&from, &to]).status();
    assert!(status.unwrap().success());
    std::fs::read(to).unwrap()
}
