//! Local sockets: how the processes of one pod and the node's agent reach each other.
//!
//! What lives here: the traits behind which a transport stands ([`LocalSockets`], [`FrameTransport`]) and
//! the real one, unix sockets ([`Unix`]). [`crate::memory`] is the other one, for tests. Paths are names:
//! a transport that is not the file system's need not create anything at them.

use std::fmt::Debug;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};

use crate::unix::Conn;

/// A future in a box, as methods of object-safe traits return it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A byte stream in both directions.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Duplex for T {}

/// A byte stream in both directions, whatever is behind it. Dropping it closes it.
pub type BoxStream = Box<dyn Duplex>;

/// Who may connect to a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Processes of the same user (and root).
    SameUser,
    /// Whoever reaches the directory: the launcher and its QEMU run as another user than the agent.
    AnyUser,
}

/// What came in at once.
#[derive(Debug, Default)]
pub struct Chunk {
    /// Bytes in order; they need not begin or end with a frame. None: the other end has closed.
    pub bytes: Vec<u8>,
    /// Descriptors that came with them.
    pub fds: Vec<OwnedFd>,
}

/// What carries a [`Conn`]: bytes with file descriptors. One reader and one writer at a time.
pub trait FrameTransport: Debug + Send + Sync {
    /// Sends a part of `bytes` and returns its length, at least 1. The descriptors travel with it.
    fn send<'a>(&'a self, bytes: &'a [u8], fds: &'a [BorrowedFd<'a>]) -> BoxFuture<'a, io::Result<usize>>;

    /// Receives what is there, or waits for it. Nothing is lost when the future is dropped.
    fn receive(&self) -> BoxFuture<'_, io::Result<Chunk>>;

    /// Process id of the other end in this PID namespace, where that is known.
    fn peer_pid(&self) -> Option<u32>;
}

/// Accepts streams. Dropping it ends the listening.
pub trait StreamListener: Debug + Send {
    /// Waits for the next connection. Cancel safe.
    fn accept(&mut self) -> BoxFuture<'_, io::Result<BoxStream>>;
}

/// Accepts connections that carry frames. Dropping it ends the listening.
pub trait FrameListener: Debug + Send {
    /// Waits for the next connection. Cancel safe.
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Conn>>;
}

/// The local sockets of one machine.
pub trait LocalSockets: Debug + Send + Sync {
    /// Listens for streams at `path`; a stale listener there is replaced.
    ///
    /// # Errors
    /// With the path.
    fn bind(&self, path: &Path, access: Access) -> io::Result<Box<dyn StreamListener>>;

    /// Opens a stream to whoever listens at `path`. `NotFound` or `ConnectionRefused`: nobody does.
    fn connect<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<BoxStream>>;

    /// Listens at `path` for connections that carry frames; a stale listener there is replaced.
    ///
    /// # Errors
    /// With the path.
    fn bind_frames(&self, path: &Path) -> io::Result<Box<dyn FrameListener>>;

    /// Opens a connection that carries frames. `NotFound` or `ConnectionRefused`: nobody listens.
    fn connect_frames<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Conn>>;

    /// Whether somebody listens at `path` now.
    fn listens(&self, path: &Path) -> bool;

    /// A stream and, as a descriptor that can be handed to another process, its other end.
    ///
    /// # Errors
    /// `Unsupported` where streams have no descriptors.
    fn pair(&self) -> io::Result<(BoxStream, OwnedFd)> {
        Err(no_descriptors())
    }

    /// As [`Self::connect`], as a descriptor that can be handed to another process.
    fn connect_descriptor<'a>(&'a self, _path: &'a Path) -> BoxFuture<'a, io::Result<OwnedFd>> {
        Box::pin(async { Err(no_descriptors()) })
    }

    /// The stream behind a descriptor that another process handed over.
    ///
    /// # Errors
    /// `Unsupported` where streams have no descriptors.
    fn adopt(&self, _descriptor: OwnedFd) -> io::Result<BoxStream> {
        Err(no_descriptors())
    }
}

fn no_descriptors() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "streams have no file descriptors here")
}

/// Unix sockets in the file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unix;

/// Longest path that fits into a socket's address, bytes.
const ADDRESS_BYTES: usize = 107;

fn fits(path: &Path) -> bool {
    path.as_os_str().len() <= ADDRESS_BYTES
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    if !fits(path) {
        let listener = holdfast_sys::unixat::bind(path)?;
        listener.set_nonblocking(true)?;
        return UnixListener::from_std(listener);
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            holdfast_sys::context(Err(error), || format!("replace {}", path.display()))
        }
        _ => holdfast_sys::context(UnixListener::bind(path), || format!("listen at {}", path.display())),
    }
}

async fn open(path: &Path) -> io::Result<UnixStream> {
    if fits(path) {
        let stream = UnixStream::connect(path).await;
        return holdfast_sys::context(stream, || format!("connect to {}", path.display()));
    }
    let stream = holdfast_sys::unixat::connect(path)?;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

impl StreamListener for UnixListener {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<BoxStream>> {
        Box::pin(async { Ok(Box::new(UnixListener::accept(self).await?.0) as BoxStream) })
    }
}

impl FrameListener for UnixListener {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Conn>> {
        Box::pin(async { Ok(Conn::new(UnixListener::accept(self).await?.0)) })
    }
}

impl LocalSockets for Unix {
    fn bind(&self, path: &Path, access: Access) -> io::Result<Box<dyn StreamListener>> {
        let listener = listen(path)?;
        if access == Access::AnyUser {
            let everybody = std::fs::Permissions::from_mode(0o666);
            holdfast_sys::context(std::fs::set_permissions(path, everybody), || {
                format!("open {} to the launcher", path.display())
            })?;
        }
        Ok(Box::new(listener))
    }

    fn connect<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<BoxStream>> {
        Box::pin(async move { Ok(Box::new(open(path).await?) as BoxStream) })
    }

    fn bind_frames(&self, path: &Path) -> io::Result<Box<dyn FrameListener>> {
        Ok(Box::new(listen(path)?))
    }

    fn connect_frames<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Conn>> {
        Box::pin(async move { Ok(Conn::new(open(path).await?)) })
    }

    fn listens(&self, path: &Path) -> bool {
        holdfast_sys::unixat::connect(path).is_ok()
    }

    fn pair(&self) -> io::Result<(BoxStream, OwnedFd)> {
        let (ours, theirs) = UnixStream::pair()?;
        Ok((Box::new(ours), theirs.into_std()?.into()))
    }

    fn connect_descriptor<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<OwnedFd>> {
        Box::pin(async move { Ok(open(path).await?.into_std()?.into()) })
    }

    fn adopt(&self, descriptor: OwnedFd) -> io::Result<BoxStream> {
        let stream = std::os::unix::net::UnixStream::from(descriptor);
        stream.set_nonblocking(true)?;
        Ok(Box::new(UnixStream::from_std(stream)?))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::memory::Memory;

    /// What every transport does, below `dir`.
    async fn contract(sockets: &dyn LocalSockets, dir: &Path) {
        let deep = dir.join("d".repeat(120));
        std::fs::create_dir_all(&deep).unwrap();
        for dir in [dir, &deep] {
            let (streams, frames) = (dir.join("a.sock"), dir.join("b.sock"));
            let nobody = sockets.connect(&streams).await.err().unwrap();
            assert_eq!(nobody.kind(), io::ErrorKind::NotFound);
            drop(sockets.bind(&streams, Access::AnyUser).unwrap());
            let gone = sockets.connect(&streams).await.err().unwrap().kind();
            assert!(matches!(gone, io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused), "{gone}");
            assert!(!sockets.listens(&streams));
            let mut listener = sockets.bind(&streams, Access::SameUser).unwrap();
            assert!(sockets.listens(&streams));
            // The look of `listens` may show as a connection that ends at once.
            let mut client = sockets.connect(&streams).await.unwrap();
            client.write_all(b"ping").await.unwrap();
            let mut got = String::new();
            let mut server = loop {
                let mut server = listener.accept().await.unwrap();
                let mut four = [0; 4];
                if server.read_exact(&mut four).await.is_ok() {
                    got.push_str(std::str::from_utf8(&four).unwrap());
                    break server;
                }
            };
            assert_eq!(got, "ping");
            server.write_all(b"pong").await.unwrap();
            drop(server);
            got.clear();
            client.read_to_string(&mut got).await.unwrap();
            assert_eq!(got, "pong");

            let mut listener = sockets.bind_frames(&frames).unwrap();
            let client = sockets.connect_frames(&frames).await.unwrap();
            let server = listener.accept().await.unwrap();
            client.send(&"hello", &[]).await.unwrap();
            let (word, _) = server.receive(|_: &String| 0).await.unwrap().unwrap();
            assert_eq!(word, "hello");
            drop(server);
            assert!(client.receive(|_: &String| 0).await.unwrap().is_none());
        }
    }

    #[tokio::test]
    async fn unix_sockets_keep_the_contract() {
        let dir = tempfile::tempdir().unwrap();
        contract(&Unix, dir.path()).await;
    }

    #[test]
    fn memory_keeps_the_contract_without_a_driver_for_sockets() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(contract(&Memory::default(), dir.path()));
    }

    #[tokio::test]
    async fn a_descriptor_is_adopted_as_the_stream_it_was() {
        let (mut ours, theirs) = Unix.pair().unwrap();
        let mut theirs = Unix.adopt(theirs).unwrap();
        ours.write_all(b"x").await.unwrap();
        assert_eq!(theirs.read_u8().await.unwrap(), b'x');
        assert!(Memory::default().pair().is_err());
    }
}
