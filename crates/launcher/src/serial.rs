//! The serial console: one connection to QEMU, a ring buffer, and one client at a time.
//!
//! QEMU serves a single client and drops what nobody reads, so the launcher holds the connection for the
//! whole life of the guest (spec hypervisor.md §7). A new client first gets what the ring holds and takes
//! the console over from the one before it.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use holdfast_wire::local::{BoxStream, LocalSockets};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// What a new client gets to see of the past, bytes.
pub const RING_BYTES: usize = 64 << 10;

/// Chunks a slow client may lag behind before it is disconnected.
const LAG_CHUNKS: usize = 64;

/// A running console.
#[derive(Clone, Debug)]
pub struct Serial {
    clients: mpsc::UnboundedSender<BoxStream>,
}

impl Serial {
    /// Connects to QEMU's serial socket and serves it until QEMU ends.
    pub fn start(sockets: Arc<dyn LocalSockets>, socket: PathBuf) -> Serial {
        let (clients, arrivals) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            match reach(&*sockets, &socket).await {
                Ok(qemu) => serve(qemu, arrivals).await,
                Err(e) => tracing::error!("serial console: {e}"),
            }
        });
        Serial { clients }
    }

    /// Hands the console to a new client.
    pub fn attach(&self, client: BoxStream) {
        // After QEMU's end the client is dropped, which it sees as the end of the stream.
        let _ = self.clients.send(client);
    }
}

/// QEMU made its socket before it became ready, so the first try normally succeeds.
async fn reach(sockets: &dyn LocalSockets, socket: &Path) -> io::Result<BoxStream> {
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut pause = Duration::from_millis(3);
    loop {
        match sockets.connect(socket).await {
            Err(e)
                if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
                    && Instant::now() < deadline =>
            {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(250));
            }
            result => return result,
        }
    }
}

struct Client {
    number: u64,
    output: mpsc::Sender<Vec<u8>>,
}

async fn serve(qemu: BoxStream, mut arrivals: mpsc::UnboundedReceiver<BoxStream>) {
    let (mut from_guest, mut to_guest) = tokio::io::split(qemu);
    let (typed_tx, mut typed) = mpsc::channel::<(u64, Vec<u8>)>(16);
    let mut ring = Ring::default();
    let mut client: Option<Client> = None;
    let mut number = 0;
    let mut buffer = [0; 4096];
    loop {
        tokio::select! {
            // A guest that never stops writing comes last, so that people are heard.
            biased;
            Some(arrived) = arrivals.recv() => {
                number += 1;
                client = Some(connect(arrived, number, ring.bytes(), typed_tx.clone()));
            }
            Some((sender, bytes)) = typed.recv() => {
                let current = client.as_ref().is_some_and(|c| c.number == sender);
                if !current { continue }
                if bytes.is_empty() {
                    client = None;
                } else if to_guest.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            read = from_guest.read(&mut buffer) => {
                let n = match read { Ok(0) | Err(_) => return, Ok(n) => n };
                ring.push(&buffer[..n]);
                if let Some(c) = &client && c.output.try_send(buffer[..n].to_vec()).is_err() {
                    client = None;
                }
            }
        }
    }
}

/// Starts the two tasks of a client. Dropping the returned value disconnects it.
fn connect(stream: BoxStream, number: u64, past: Vec<u8>, typed: mpsc::Sender<(u64, Vec<u8>)>) -> Client {
    let (mut read, mut write) = tokio::io::split(stream);
    let (output, mut chunks) = mpsc::channel::<Vec<u8>>(LAG_CHUNKS);
    let reader = tokio::spawn(async move {
        let mut buffer = [0; 1024];
        loop {
            let n = read.read(&mut buffer).await.unwrap_or(0);
            // An empty chunk says: this client is gone.
            if typed.send((number, buffer[..n].to_vec())).await.is_err() || n == 0 {
                return;
            }
        }
    });
    tokio::spawn(async move {
        if write.write_all(&past).await.is_ok() {
            while let Some(chunk) = chunks.recv().await {
                if write.write_all(&chunk).await.is_err() {
                    break;
                }
            }
        }
        reader.abort();
    });
    Client { number, output }
}

#[derive(Default)]
struct Ring(VecDeque<u8>);

impl Ring {
    fn push(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
        let excess = self.0.len().saturating_sub(RING_BYTES);
        self.0.drain(..excess);
    }

    fn bytes(&self) -> Vec<u8> {
        let (a, b) = self.0.as_slices();
        [a, b].concat()
    }
}

#[cfg(test)]
mod tests {
    use holdfast_wire::local::Unix;
    use tokio::net::UnixStream;

    use super::*;

    async fn read_some(s: &mut UnixStream) -> String {
        let mut buffer = [0; 256];
        let read = tokio::time::timeout(Duration::from_secs(5), s.read(&mut buffer)).await;
        let n = read.expect("the console is silent").unwrap_or(0);
        String::from_utf8_lossy(&buffer[..n]).into_owned()
    }

    #[tokio::test]
    async fn the_newest_client_wins_and_sees_the_past() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("serial.sock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let serial = Serial::start(Arc::new(Unix), path);
        let (mut guest, _) = listener.accept().await.unwrap();
        guest.write_all(b"boot").await.unwrap();
        let attach = || {
            let (ours, theirs) = UnixStream::pair().unwrap();
            serial.attach(Box::new(theirs));
            ours
        };
        let mut first = attach();
        assert_eq!(read_some(&mut first).await, "boot");
        first.write_all(b"a").await.unwrap();
        assert_eq!(read_some(&mut guest).await, "a");
        let mut second = attach();
        assert_eq!(read_some(&mut second).await, "boot");
        assert_eq!(read_some(&mut first).await, "", "the first client is disconnected");
        second.write_all(b"b").await.unwrap();
        assert_eq!(read_some(&mut guest).await, "b");
        guest.write_all(b"login:").await.unwrap();
        assert_eq!(read_some(&mut second).await, "login:");
        drop(guest);
        assert_eq!(read_some(&mut second).await, "");
    }

    #[test]
    fn the_ring_keeps_the_newest() {
        let mut ring = Ring::default();
        ring.push(&vec![b'a'; RING_BYTES]);
        ring.push(b"end");
        assert_eq!(ring.bytes().len(), RING_BYTES);
        assert!(ring.bytes().ends_with(b"aend"));
    }
}
