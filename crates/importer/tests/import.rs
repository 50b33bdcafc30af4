//! The importer program against a real HTTP server on loopback and real qemu-img.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use holdfast_api::import::{Outcome, Progress, Request, Source};
use sha2::Digest as _;

/// Serves one file; the first `cuts` answers break off half-way.
struct Server {
    url: String,
    requests: Arc<AtomicUsize>,
}

impl Server {
    fn start(content: Vec<u8>, cuts: usize, ranges: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/some.file", listener.local_addr().unwrap());
        let requests = Arc::new(AtomicUsize::new(0));
        let counter = requests.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let number = counter.fetch_add(1, Ordering::SeqCst);
                let _ = answer(stream, &content, number < cuts, ranges);
            }
        });
        Self { url, requests }
    }
}

fn answer(mut stream: TcpStream, content: &[u8], cut: bool, ranges: bool) -> std::io::Result<()> {
    let mut from = 0;
    for line in BufReader::new(stream.try_clone()?).lines() {
        let line = line?.to_ascii_lowercase();
        if let Some(range) = line.strip_prefix("range: bytes=").filter(|_| ranges) {
            from = range.trim_end_matches('-').parse().unwrap();
        }
        if line.is_empty() {
            break;
        }
    }
    let status = if from > 0 { "206 Partial Content" } else { "200 OK" };
    let rest = &content[from..];
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nETag: \"1\"\r\nConnection: close\r\n\r\n",
        rest.len()
    )?;
    stream.write_all(if cut { &rest[..rest.len() / 2] } else { rest })
}

struct Run {
    folder: tempfile::TempDir,
    outcome: Outcome,
    output: String,
    is_success: bool,
}

impl Run {
    fn target(&self) -> PathBuf {
        self.folder.path().join("disk.img")
    }

    fn message(&self) -> &str {
        match &self.outcome {
            Outcome::Failed { message } => message,
            Outcome::Done(facts) => panic!("succeeded: {facts:?}"),
        }
    }

    fn facts(&self) -> (&str, u64) {
        match &self.outcome {
            Outcome::Done(facts) => (facts.format.as_str(), facts.virtual_size_bytes),
            Outcome::Failed { message } => panic!("failed: {message}"),
        }
    }

    /// Nothing but what is expected lies in volume and scratch.
    fn left(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "log")
            .collect();
        names.sort();
        names
    }
}

fn run(source: Source, probe: bool, size_bytes: Option<i64>, image: bool) -> Run {
    let folder = tempfile::tempdir().unwrap();
    let target = (!probe).then(|| folder.path().join("disk.img").display().to_string());
    let request = Request { source, target, size_bytes, image };
    let log = folder.path().join("log");
    let output = Command::new(env!("CARGO_BIN_EXE_holdfast-importer"))
        .args(["--request", &serde_json::to_string(&request).unwrap()])
        .arg("--termination-log")
        .arg(&log)
        .arg("--scratch")
        .arg(folder.path())
        .output()
        .unwrap();
    let outcome = serde_json::from_str(&std::fs::read_to_string(log).unwrap()).unwrap();
    let is_success = output.status.success();
    Run { folder, outcome, output: String::from_utf8(output.stdout).unwrap(), is_success }
}

fn http(url: &str, sha256: Option<String>) -> Source {
    Source::Http { url: url.to_owned(), ca_bundle: None, md5: None, sha256 }
}

fn sha256(data: &[u8]) -> String {
    sha2::Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A disk of 8 MiB with something in it.
fn disk() -> Vec<u8> {
    let mut disk = vec![0; 8 << 20];
    for (n, byte) in disk[3 << 20..4 << 20].iter_mut().enumerate() {
        *byte = (n % 251) as u8;
    }
    disk
}

fn qcow2(raw: &[u8]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("a"), folder.path().join("b"));
    std::fs::write(&from, raw).unwrap();
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2"], &[&from, &to]);
    std::fs::read(to).unwrap()
}

fn qemu_img(args: &[&str], files: &[&Path]) {
    assert!(Command::new("qemu-img").args(args).args(files).status().unwrap().success());
}

fn xz(data: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    liblzma::read::XzEncoder::new(data, 1).read_to_end(&mut packed).unwrap();
    packed
}

#[test]
fn qcow2_with_its_checksum_becomes_a_raw_sparse_disk() {
    let content = qcow2(&disk());
    let server = Server::start(content.clone(), 0, true);
    let run = run(http(&server.url, Some(sha256(&content).to_uppercase())), false, None, true);
    assert_eq!(run.facts(), ("qcow2", 8 << 20));
    assert!(run.is_success);
    assert!(std::fs::read(run.target()).unwrap() == disk());
    assert_eq!(run.left(), ["disk.img"]);
    let first: Progress = serde_json::from_str(run.output.lines().next().unwrap()).unwrap();
    assert!(first.percent < 100);
}

#[test]
fn a_wrong_checksum_fails_and_leaves_nothing() {
    for content in [qcow2(&disk()), disk(), xz(&disk())] {
        let server = Server::start(content, 0, true);
        let run = run(http(&server.url, Some("0".repeat(64))), false, None, true);
        assert!(run.message().starts_with("The sha256 checksum of the download is "), "{}", run.message());
        assert!(!run.is_success);
        assert_eq!(run.left(), Vec::<String>::new());
    }
}

#[test]
fn packed_raw_is_recognised_by_content() {
    let packed = xz(&disk());
    let server = Server::start(packed.clone(), 0, true);
    let run = run(http(&server.url, Some(sha256(&packed))), false, None, true);
    assert_eq!(run.facts(), ("raw", 8 << 20));
    assert!(std::fs::read(run.target()).unwrap() == disk());
}

#[test]
fn interrupted_downloads_resume_with_and_without_ranges() {
    for ranges in [true, false] {
        let content = disk();
        let server = Server::start(content.clone(), 2, ranges);
        let run = run(http(&server.url, Some(sha256(&content))), false, None, true);
        assert_eq!(run.facts(), ("raw", 8 << 20), "ranges: {ranges}");
        assert!(std::fs::read(run.target()).unwrap() == content);
        assert_eq!(server.requests.load(Ordering::SeqCst), 3);
    }
}

#[test]
fn probes_tell_format_and_size() {
    let mut iso = vec![0; 1 << 20];
    iso[32769..32774].copy_from_slice(b"CD001");
    for (content, format, size) in [
        (qcow2(&disk()), "qcow2", 8 << 20),
        (disk(), "raw", 8 << 20),
        (xz(&disk()), "raw", 8 << 20),
        (iso, "iso", 1 << 20),
    ] {
        let server = Server::start(content, 0, true);
        let run = run(http(&server.url, None), true, None, true);
        assert_eq!(run.facts(), (format, size));
        assert_eq!(run.left(), Vec::<String>::new());
    }
}

#[test]
fn sizes_are_kept_grown_or_refused() {
    let server = Server::start(qcow2(&disk()), 0, true);
    let grown = run(http(&server.url, None), false, Some(10 << 20), false);
    assert_eq!(grown.facts(), ("qcow2", 10 << 20));
    assert_eq!(std::fs::metadata(grown.target()).unwrap().len(), 10 << 20);
    let small = run(http(&server.url, None), false, Some(4 << 20), false);
    assert_eq!(small.message(), "The specified pvc size is insufficient: 4Mi < 8Mi.");
    assert_eq!(small.left(), Vec::<String>::new());
    let blank = run(Source::Blank, false, Some(100 << 20), false);
    assert_eq!(blank.facts(), ("raw", 100 << 20));
    assert!(std::fs::read(blank.target()).unwrap().iter().all(|byte| *byte == 0));
}

#[test]
fn what_is_no_disk_is_refused() {
    for (content, why) in
        [(b"".as_slice(), "The data is empty"), (b"<html><body>Not here</body></html>", "a web page")]
    {
        let server = Server::start(content.to_vec(), 0, true);
        for (probe, size) in [(true, None), (false, None), (false, Some(4 << 20))] {
            let run = run(http(&server.url, None), probe, size, false);
            assert!(run.message().contains(why), "{}", run.message());
            assert_eq!(run.left(), Vec::<String>::new());
        }
    }
}

#[test]
fn an_iso_is_an_image_and_no_disk() {
    let mut iso = vec![1; 1 << 20];
    iso[32769..32774].copy_from_slice(b"CD001");
    let server = Server::start(iso, 0, true);
    assert_eq!(run(http(&server.url, None), false, None, true).facts(), ("iso", 1 << 20));
    let disk = run(http(&server.url, None), false, Some(2 << 20), false);
    assert!(disk.message().contains("ISO image is not supported"), "{}", disk.message());
}

#[test]
fn an_image_that_names_another_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let evil = folder.path().join("evil");
    qemu_img(&["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "/etc/hostname"], &[&evil]);
    let server = Server::start(std::fs::read(evil).unwrap(), 0, true);
    let run = run(http(&server.url, None), false, None, true);
    assert!(run.message().contains("refers to another file"), "{}", run.message());
    assert_eq!(run.left(), Vec::<String>::new());
}

#[test]
fn a_refusing_server_is_no_reason_to_wait() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/x", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut buffer = [0; 1024];
            let _ = stream.read(&mut buffer);
            let _ =
                stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
    });
    let run = run(http(&url, None), false, None, true);
    assert!(run.message().contains("404"), "{}", run.message());
}

#[test]
fn a_copy_of_a_volume_is_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let from = folder.path().join("disk.img");
    std::fs::write(&from, disk()).unwrap();
    let source = Source::File { path: from.display().to_string() };
    let run = run(source, false, Some(9 << 20), false);
    assert_eq!(run.facts(), ("raw", 9 << 20));
    let copy = std::fs::read(run.target()).unwrap();
    assert!(copy[..8 << 20] == disk()[..] && copy[8 << 20..].iter().all(|byte| *byte == 0));
}
