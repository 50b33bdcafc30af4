//! Connections to and from other nodes: the trait, and mutual TLS over TCP behind it. What is said over
//! them is in [`crate::peers`] and [`crate::server`]; a test or a simulation has its own underlay
//! ([`crate::memory`]).

use std::fmt::Debug;
use std::io;
use std::net::SocketAddr;

use holdfast_wire::local::{BoxFuture, BoxStream};
use tokio::net::{TcpListener, TcpStream};

use crate::config::TlsFiles;
use crate::peers::Peer;
use crate::tls::{Identity, IdentityError};

/// A connection whose other end still has to prove who it is: the stream and the caller's name
/// (`system:holdfast:agent:<node>`).
pub type Caller = BoxFuture<'static, io::Result<(BoxStream, String)>>;

/// How one program reaches agents, and is reached by them.
pub trait PeerNetwork: Debug + Send + Sync {
    /// Connects to the agent of `peer` and makes sure that it is that agent. No time limit.
    fn connect<'a>(&'a self, peer: &'a Peer) -> BoxFuture<'a, io::Result<BoxStream>>;

    /// Listens for other agents and for the gateway.
    fn listen(&self) -> BoxFuture<'_, io::Result<Box<dyn PeerListener>>>;

    /// Connects to a TCP port of a guest. No time limit.
    fn connect_guest(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<BoxStream>>;
}

/// Accepts connections. Dropping it ends the listening.
pub trait PeerListener: Send {
    /// Waits for the next connection. Cancel safe.
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Caller>>;
}

/// Mutual TLS over TCP.
#[derive(Clone)]
pub struct Tls {
    identity: Identity,
    listen: SocketAddr,
}

impl Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("listen", &self.listen).finish_non_exhaustive()
    }
}

impl Tls {
    /// With these files, to be reached at `listen`.
    ///
    /// # Errors
    /// A file is missing or unusable; the error names it.
    pub fn new(files: &TlsFiles, listen: SocketAddr) -> Result<Self, IdentityError> {
        Ok(Self { identity: Identity::load(files)?, listen })
    }
}

impl PeerNetwork for Tls {
    fn connect<'a>(&'a self, peer: &'a Peer) -> BoxFuture<'a, io::Result<BoxStream>> {
        Box::pin(async move {
            let stream = TcpStream::connect(peer.address).await?;
            Ok(Box::new(self.identity.connect(&peer.node, stream).await?) as BoxStream)
        })
    }

    fn listen(&self) -> BoxFuture<'_, io::Result<Box<dyn PeerListener>>> {
        Box::pin(async move {
            let listener = TcpListener::bind(self.listen).await;
            let listener = holdfast_sys::context(listener, || format!("listen on {}", self.listen))?;
            let identity = self.identity.clone();
            Ok(Box::new(TlsListener { listener, identity }) as Box<dyn PeerListener>)
        })
    }

    fn connect_guest(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<BoxStream>> {
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            // Interactive sessions run through it.
            let _ = stream.set_nodelay(true);
            Ok(Box::new(stream) as BoxStream)
        })
    }
}

struct TlsListener {
    listener: TcpListener,
    identity: Identity,
}

impl PeerListener for TlsListener {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Caller>> {
        Box::pin(async {
            let (stream, from) = self.listener.accept().await?;
            let identity = self.identity.clone();
            Ok(Box::pin(async move {
                let proved = identity.accept(stream).await;
                let (stream, who) = holdfast_sys::context(proved, || format!("TLS with {from}"))?;
                Ok((Box::new(stream) as BoxStream, who))
            }) as Caller)
        })
    }
}
