//! Local sockets that exist only in memory: no file, no descriptor, no driver of the runtime.
//!
//! A [`Memory`] is one machine's table of listeners. Whoever holds a clone sees the same sockets, also from
//! another runtime on the same thread. What is sent is there at once and in order; a test that wants to
//! decide when puts its own [`LocalSockets`] in front. A process that ends (its runtime is dropped) drops
//! its listeners and streams, which the other side sees as it would see the end of a real process.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::io::DuplexStream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::local::{
    Access, BoxFuture, BoxStream, Chunk, FrameListener, FrameTransport, LocalSockets, StreamListener,
};
use crate::unix::Conn;

/// Bytes that may wait in one direction of a stream before the writer waits.
const PIPE_BYTES: usize = 64 << 10;

/// One machine's local sockets in memory. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Memory(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    last: u64,
    streams: BTreeMap<PathBuf, Listening<DuplexStream>>,
    frames: BTreeMap<PathBuf, Listening<FrameEnd>>,
}

#[derive(Debug)]
struct Listening<T> {
    number: u64,
    arrivals: UnboundedSender<T>,
}

impl Memory {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().expect("invariant: no panic while the table is locked")
    }

    fn listen<T>(
        &self,
        path: &Path,
        of: impl FnOnce(&mut Table) -> &mut BTreeMap<PathBuf, Listening<T>>,
    ) -> Listener<T> {
        let (arrivals, queue) = unbounded_channel();
        let mut table = self.lock();
        table.last += 1;
        let number = table.last;
        of(&mut table).insert(path.to_owned(), Listening { number, arrivals });
        Listener { table: self.clone(), path: path.to_owned(), number, queue }
    }
}

/// Two connected ends that carry frames.
pub fn frames() -> (Conn, Conn) {
    let (a, b) = frame_ends();
    (Conn::over(Box::new(a)), Conn::over(Box::new(b)))
}

fn frame_ends() -> (FrameEnd, FrameEnd) {
    let (to_b, from_a) = unbounded_channel();
    let (to_a, from_b) = unbounded_channel();
    let end = |to, from| FrameEnd { to, from: tokio::sync::Mutex::new(from) };
    (end(to_b, from_b), end(to_a, from_a))
}

fn nobody(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("nobody listens at {}", path.display()))
}

/// A listener of a [`Memory`]; its entry goes with it.
#[derive(Debug)]
struct Listener<T> {
    table: Memory,
    path: PathBuf,
    number: u64,
    queue: UnboundedReceiver<T>,
}

impl<T> Drop for Listener<T> {
    fn drop(&mut self) {
        let mut table = self.table.lock();
        if table.streams.get(&self.path).is_some_and(|l| l.number == self.number) {
            table.streams.remove(&self.path);
        }
        if table.frames.get(&self.path).is_some_and(|l| l.number == self.number) {
            table.frames.remove(&self.path);
        }
    }
}

impl<T> Listener<T> {
    async fn next(&mut self) -> io::Result<T> {
        match self.queue.recv().await {
            Some(arrived) => Ok(arrived),
            // Replaced by a newer listener at the same path: nobody finds this one any more.
            None => std::future::pending().await,
        }
    }
}

impl StreamListener for Listener<DuplexStream> {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<BoxStream>> {
        Box::pin(async { Ok(Box::new(self.next().await?) as BoxStream) })
    }
}

impl FrameListener for Listener<FrameEnd> {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Conn>> {
        Box::pin(async { Ok(Conn::over(Box::new(self.next().await?))) })
    }
}

impl LocalSockets for Memory {
    fn bind(&self, path: &Path, _access: Access) -> io::Result<Box<dyn StreamListener>> {
        Ok(Box::new(self.listen(path, |table| &mut table.streams)))
    }

    fn connect<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<BoxStream>> {
        Box::pin(async move {
            let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
            let table = self.lock();
            let listening = table.streams.get(path).ok_or_else(|| nobody(path))?;
            listening.arrivals.send(theirs).map_err(|_| nobody(path))?;
            Ok(Box::new(ours) as BoxStream)
        })
    }

    fn bind_frames(&self, path: &Path) -> io::Result<Box<dyn FrameListener>> {
        Ok(Box::new(self.listen(path, |table| &mut table.frames)))
    }

    fn connect_frames<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Conn>> {
        Box::pin(async move {
            let (ours, theirs) = frame_ends();
            let table = self.lock();
            let listening = table.frames.get(path).ok_or_else(|| nobody(path))?;
            listening.arrivals.send(theirs).map_err(|_| nobody(path))?;
            Ok(Conn::over(Box::new(ours)))
        })
    }

    fn listens(&self, path: &Path) -> bool {
        let table = self.lock();
        table.streams.contains_key(path) || table.frames.contains_key(path)
    }
}

/// One end of a connection that carries frames.
#[derive(Debug)]
struct FrameEnd {
    to: UnboundedSender<Chunk>,
    from: tokio::sync::Mutex<UnboundedReceiver<Chunk>>,
}

impl FrameTransport for FrameEnd {
    fn send<'a>(&'a self, bytes: &'a [u8], fds: &'a [BorrowedFd<'a>]) -> BoxFuture<'a, io::Result<usize>> {
        Box::pin(async move {
            let fds = fds.iter().map(BorrowedFd::try_clone_to_owned).collect::<io::Result<Vec<OwnedFd>>>()?;
            let chunk = Chunk { bytes: bytes.to_vec(), fds };
            self.to.send(chunk).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
            Ok(bytes.len())
        })
    }

    fn receive(&self) -> BoxFuture<'_, io::Result<Chunk>> {
        Box::pin(async { Ok(self.from.lock().await.recv().await.unwrap_or_default()) })
    }

    fn peer_pid(&self) -> Option<u32> {
        None
    }
}
