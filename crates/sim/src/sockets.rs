//! Streams between simulated processes: local sockets of a node, and connections between agents. Every
//! piece that is sent travels through the network of the simulation.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};

use holdfast_wire::local::{
    Access, BoxFuture, BoxStream, Chunk, FrameListener, FrameTransport, LocalSockets, StreamListener,
};
use holdfast_wire::unix::Conn;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::net::{ChannelId, Kind, Net, Party, ProcessId};

/// Where pieces arrive; empty once the connection is closed or broken.
type Inlet = Arc<Slot>;
type Slot = Mutex<Option<UnboundedSender<Chunk>>>;

/// Closes an inlet if the message that holds it is lost.
struct Carried {
    inlet: Inlet,
    arrived: bool,
}

impl Drop for Carried {
    fn drop(&mut self) {
        if !self.arrived {
            self.inlet.lock().take();
        }
    }
}

/// One end of a connection.
pub struct End {
    net: Net,
    me: Party,
    other: Party,
    name: Arc<str>,
    out: ChannelId,
    to: Inlet,
    from: Mutex<From>,
}

struct From {
    chunks: UnboundedReceiver<Chunk>,
    rest: Vec<u8>,
}

impl fmt::Debug for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)
    }
}

/// Two connected ends: the first belongs to `a`, the second to `b`.
#[must_use]
pub fn pair(net: &Net, name: &str, a: &Party, b: &Party) -> (End, End) {
    let (to_b, from_a) = unbounded_channel();
    let (to_a, from_b) = unbounded_channel();
    let end = |me: &Party, other: &Party, to, chunks| End {
        net: net.clone(),
        me: me.clone(),
        other: other.clone(),
        name: name.into(),
        out: net.channel(),
        to: Arc::new(Mutex::new(Some(to))),
        from: Mutex::new(From { chunks, rest: Vec::new() }),
    };
    let (one, other) = (end(a, b, to_b, from_b), end(b, a, to_a, from_a));
    net.link(Link {
        ends: (a.process, b.process),
        name: one.name.clone(),
        channels: (one.out, other.out),
        inlets: (Arc::downgrade(&one.to), Arc::downgrade(&other.to)),
    });
    (one, other)
}

/// A connection as the network knows it: enough to break it while both ends live.
pub struct Link {
    ends: (ProcessId, ProcessId),
    /// What the connection is called.
    pub name: Arc<str>,
    /// Channels of both directions.
    pub channels: (ChannelId, ChannelId),
    inlets: (Weak<Slot>, Weak<Slot>),
}

impl Link {
    /// The processes at both ends.
    #[must_use]
    pub fn ends(&self) -> (ProcessId, ProcessId) {
        self.ends
    }

    /// Whether it joins these processes.
    #[must_use]
    pub fn joins(&self, one: ProcessId, other: ProcessId) -> bool {
        self.ends == (one, other) || self.ends == (other, one)
    }

    /// Whether something can still be sent on it, in one direction at least.
    #[must_use]
    pub fn is_open(&self) -> bool {
        let open = |slot: &Weak<Slot>| {
            slot.upgrade().is_some_and(|slot| slot.lock().as_ref().is_some_and(|to| !to.is_closed()))
        };
        open(&self.inlets.0) || open(&self.inlets.1)
    }

    /// Both ends find it closed; what is on its way must be dropped by the caller.
    pub fn break_it(&self) {
        for slot in [&self.inlets.0, &self.inlets.1] {
            if let Some(slot) = slot.upgrade() {
                slot.lock().take();
            }
        }
    }
}

impl End {
    /// The channel on which this end sends.
    #[must_use]
    pub fn channel(&self) -> ChannelId {
        self.out
    }

    fn post(&self, bytes: Vec<u8>, fds: Vec<OwnedFd>) -> io::Result<()> {
        if self.to.lock().as_ref().is_none_or(UnboundedSender::is_closed) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let mut carried = Carried { inlet: self.to.clone(), arrived: false };
        let what = format!("{} {} B", self.name, bytes.len());
        self.net.send(self.out, Kind::Stream, &self.me.place, &self.other, what, move |_| {
            carried.arrived = true;
            if let Some(inlet) = &*carried.inlet.lock() {
                let _ = inlet.send(Chunk { bytes, fds });
            }
        });
        Ok(())
    }

    fn poll_chunk(&self, context: &mut Context<'_>) -> Poll<Option<Chunk>> {
        self.from.lock().chunks.poll_recv(context)
    }
}

impl Drop for End {
    fn drop(&mut self) {
        // The close travels behind what was sent before it.
        let carried = Carried { inlet: self.to.clone(), arrived: false };
        let what = format!("{} closed", self.name);
        self.net.send(self.out, Kind::Stream, &self.me.place, &self.other, what, move |_| drop(carried));
    }
}

impl AsyncRead for End {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.from.lock().rest.is_empty() {
            let Some(chunk) = ready!(self.poll_chunk(context)) else { return Poll::Ready(Ok(())) };
            self.from.lock().rest = chunk.bytes;
        }
        let mut from = self.from.lock();
        let count = from.rest.len().min(into.remaining());
        into.put_slice(&from.rest[..count]);
        from.rest.drain(..count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(self.post(bytes.to_vec(), Vec::new()).map(|()| bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let carried = Carried { inlet: self.to.clone(), arrived: false };
        let what = format!("{} closed", self.name);
        self.net.send(self.out, Kind::Stream, &self.me.place, &self.other, what, move |_| drop(carried));
        Poll::Ready(Ok(()))
    }
}

impl FrameTransport for End {
    fn send<'a>(&'a self, bytes: &'a [u8], fds: &'a [BorrowedFd<'a>]) -> BoxFuture<'a, io::Result<usize>> {
        Box::pin(async move {
            let fds = fds.iter().map(BorrowedFd::try_clone_to_owned).collect::<io::Result<Vec<_>>>()?;
            self.post(bytes.to_vec(), fds).map(|()| bytes.len())
        })
    }

    fn receive(&self) -> BoxFuture<'_, io::Result<Chunk>> {
        Box::pin(async { Ok(std::future::poll_fn(|cx| self.poll_chunk(cx)).await.unwrap_or_default()) })
    }

    fn peer_pid(&self) -> Option<u32> {
        None
    }
}

/// Who listens where, on one machine during one boot.
#[derive(Clone, Default)]
pub struct Fabric(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    last: u64,
    listeners: BTreeMap<PathBuf, Listening>,
    /// Paths at which somebody began to listen since the last look.
    opened: Vec<PathBuf>,
}

#[derive(Clone)]
struct Listening {
    number: u64,
    party: Party,
    arrivals: UnboundedSender<End>,
}

impl Fabric {
    /// Paths at which somebody began to listen since the last call.
    #[must_use]
    pub fn take_opened(&self) -> Vec<PathBuf> {
        let mut table = self.0.lock();
        if table.opened.is_empty() { Vec::new() } else { std::mem::take(&mut table.opened) }
    }

    /// The sockets as one process uses them.
    #[must_use]
    pub fn of(&self, net: &Net, me: &Party) -> Sockets {
        Sockets { fabric: self.clone(), net: net.clone(), me: me.clone() }
    }
}

/// The local sockets of a machine in the hands of one process.
#[derive(Clone)]
pub struct Sockets {
    fabric: Fabric,
    net: Net,
    me: Party,
}

impl fmt::Debug for Sockets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sockets of {}", self.me.place)
    }
}

impl Sockets {
    fn listen(&self, path: &Path) -> Listener {
        let (arrivals, queue) = unbounded_channel();
        let mut table = self.fabric.0.lock();
        table.last += 1;
        let number = table.last;
        let listening = Listening { number, party: self.me.clone(), arrivals };
        table.listeners.insert(path.to_owned(), listening);
        table.opened.push(path.to_owned());
        drop(table);
        Listener { fabric: self.fabric.clone(), path: path.to_owned(), number, queue }
    }

    fn open(&self, path: &Path) -> io::Result<End> {
        let found = self.fabric.0.lock().listeners.get(path).cloned();
        let listening = found.ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, format!("nobody listens at {}", path.display()))
        })?;
        let name = path.file_name().map_or_else(Default::default, |name| name.to_string_lossy().into_owned());
        let (ours, theirs) = pair(&self.net, &name, &self.me, &listening.party);
        let what = format!("{name} connected");
        // On the channel of our end, so that what we send arrives behind it.
        let arrivals = listening.arrivals;
        self.net.send(ours.out, Kind::Stream, &self.me.place, &listening.party, what, move |_| {
            let _ = arrivals.send(theirs);
        });
        Ok(ours)
    }
}

impl LocalSockets for Sockets {
    fn bind(&self, path: &Path, _: Access) -> io::Result<Box<dyn StreamListener>> {
        Ok(Box::new(self.listen(path)))
    }

    fn connect<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<BoxStream>> {
        Box::pin(async move { Ok(Box::new(self.open(path)?) as BoxStream) })
    }

    fn bind_frames(&self, path: &Path) -> io::Result<Box<dyn FrameListener>> {
        Ok(Box::new(self.listen(path)))
    }

    fn connect_frames<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Conn>> {
        Box::pin(async move { Ok(Conn::over(Box::new(self.open(path)?))) })
    }

    fn listens(&self, path: &Path) -> bool {
        self.fabric.0.lock().listeners.contains_key(path)
    }
}

/// A listener; its entry goes with it.
struct Listener {
    fabric: Fabric,
    path: PathBuf,
    number: u64,
    queue: UnboundedReceiver<End>,
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "listener at {}", self.path.display())
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut table = self.fabric.0.lock();
        if table.listeners.get(&self.path).is_some_and(|listening| listening.number == self.number) {
            table.listeners.remove(&self.path);
        }
    }
}

impl Listener {
    async fn next(&mut self) -> io::Result<End> {
        match self.queue.recv().await {
            Some(end) => Ok(end),
            // Replaced by a newer listener at the same path.
            None => std::future::pending().await,
        }
    }
}

impl StreamListener for Listener {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<BoxStream>> {
        Box::pin(async { Ok(Box::new(self.next().await?) as BoxStream) })
    }
}

impl FrameListener for Listener {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Conn>> {
        Box::pin(async { Ok(Conn::over(Box::new(self.next().await?))) })
    }
}
