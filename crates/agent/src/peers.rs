//! The calling side of the conversation with other agents and with the keeper of the host's routes.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use holdfast_wire::Id;
use holdfast_wire::frame;
use holdfast_wire::launcher::SeedFiles;
use holdfast_wire::local::BoxStream;
use holdfast_wire::peer::{Open, Opened, Opening, PORT, Records, Route};

use crate::underlay::PeerNetwork;

/// DNS name in the certificate of the keeper of the host's routes.
pub const HOST: &str = "host";

/// Longest wait for a connection and the first answer.
const CONNECT: Duration = Duration::from_secs(3);
/// Longest wait for the answer to a route: the guest stands still meanwhile.
const ROUTE: Duration = Duration::from_millis(500);

/// A conversation with another agent failed.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// No connection, or it broke.
    #[error("connection to the agent of {node} at {address}")]
    Io {
        /// Whose agent.
        node: String,
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It said no.
    #[error("the agent of {node} refused: {why}")]
    Refused {
        /// Whose agent.
        node: String,
        /// Its reason.
        why: String,
    },
}

/// Where an agent is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    /// Name of its node.
    pub node: String,
    /// Its address.
    pub address: SocketAddr,
}

impl Peer {
    /// The agent of a node.
    pub fn of(node: &str, address: Ipv4Addr) -> Self {
        Self { node: node.to_owned(), address: SocketAddr::from((address, PORT)) }
    }

    fn failed(&self, source: impl Into<io::Error>) -> PeerError {
        let source = source.into();
        let source = match crate::tls::certificate_trouble(&source) {
            Some(trouble) => io::Error::new(source.kind(), trouble),
            None => source,
        };
        PeerError::Io { node: self.node.clone(), address: self.address, source }
    }
}

fn broken(error: frame::Error) -> io::Error {
    match error {
        frame::Error::Io(error) => error,
        other => io::Error::other(other),
    }
}

/// An open connection to another agent, for several questions or for one stream.
pub struct Line {
    peer: Peer,
    stream: BoxStream,
}

impl Line {
    /// Connects.
    ///
    /// # Errors
    /// Nobody is there within three seconds, or it is not the agent of that node.
    pub async fn open(network: &dyn PeerNetwork, peer: &Peer) -> Result<Self, PeerError> {
        let stream = tokio::time::timeout(CONNECT, network.connect(peer))
            .await
            .map_err(|_| peer.failed(io::Error::from(io::ErrorKind::TimedOut)))?
            .map_err(|error| peer.failed(error))?;
        Ok(Self { peer: peer.clone(), stream })
    }

    async fn ask(&mut self, open: Open) -> Result<Opened, PeerError> {
        let peer = &self.peer;
        let opening = Opening::of(open);
        frame::write(&mut self.stream, &opening).await.map_err(|e| peer.failed(broken(e)))?;
        let answer = frame::read::<Opened>(&mut self.stream).await.map_err(|e| peer.failed(broken(e)))?;
        match answer {
            Some(Opened::Refused { why }) => Err(PeerError::Refused { node: peer.node.clone(), why }),
            Some(answer) => Ok(answer),
            None => Err(peer.failed(io::Error::from(io::ErrorKind::UnexpectedEof))),
        }
    }

    /// Turns the connection into a byte stream.
    ///
    /// # Errors
    /// The agent refuses, or the connection breaks.
    pub async fn into_stream(mut self, open: Open) -> Result<BoxStream, PeerError> {
        match self.ask(open).await? {
            Opened::Stream => Ok(self.stream),
            other => Err(self.peer.failed(io::Error::other(format!("answered {other:?} to a stream")))),
        }
    }

    /// Tells a route.
    ///
    /// # Errors
    /// No answer within half a second, or a refusal.
    pub async fn route(&mut self, route: Route) -> Result<(), PeerError> {
        let peer = self.peer.clone();
        match tokio::time::timeout(ROUTE, self.ask(Open::Route(route))).await {
            Ok(answer) => answer.map(drop),
            Err(_) => Err(peer.failed(io::Error::from(io::ErrorKind::TimedOut))),
        }
    }
}

/// What is certain about a launcher on another node.
///
/// # Errors
/// The agent there cannot be asked.
pub async fn ask_launcher(network: &dyn PeerNetwork, peer: &Peer, id: Id) -> Result<Records, PeerError> {
    let question = async {
        let mut line = Line::open(network, peer).await?;
        match line.ask(Open::AskLauncher { id }).await? {
            Opened::Records(records) => Ok(records),
            other => Err(peer.failed(io::Error::other(format!("answered {other:?} to AskLauncher")))),
        }
    };
    match tokio::time::timeout(CONNECT, question).await {
        Ok(answer) => answer,
        Err(_) => Err(peer.failed(io::Error::from(io::ErrorKind::TimedOut))),
    }
}

/// The provisioning files that the source of a move was started with.
///
/// # Errors
/// The agent there cannot be asked, or does not give them.
pub async fn ask_seed(
    network: &dyn PeerNetwork,
    peer: &Peer,
    migration_uid: &str,
    source: Id,
) -> Result<SeedFiles, PeerError> {
    let open = Open::Seed { migration_uid: migration_uid.to_owned(), source };
    let question = async {
        let mut line = Line::open(network, peer).await?;
        match line.ask(open).await? {
            Opened::Seed(files) => Ok(files),
            // Its content is nobody's business.
            _ => Err(peer.failed(io::Error::other("answered something else to Seed"))),
        }
    };
    match tokio::time::timeout(CONNECT, question).await {
        Ok(answer) => answer,
        Err(_) => Err(peer.failed(io::Error::from(io::ErrorKind::TimedOut))),
    }
}

/// Open lines to everybody who must hear of a route at once. Opened before the guest stops, so that
/// the switch costs one round trip.
#[derive(Default)]
pub struct Switchboard {
    lines: BTreeMap<Peer, Line>,
}

impl Switchboard {
    /// Opens lines to all `peers`; one that cannot be reached is tried again when it is needed.
    pub async fn open(network: &dyn PeerNetwork, peers: Vec<Peer>) -> Self {
        let opened = futures::future::join_all(peers.iter().map(|peer| Line::open(network, peer))).await;
        let mut lines = BTreeMap::new();
        for (peer, line) in peers.into_iter().zip(opened) {
            match line {
                Ok(line) => {
                    lines.insert(peer, line);
                }
                Err(error) => {
                    tracing::warn!(node = %peer.node, error = %chain(&error), "no line for route changes")
                }
            }
        }
        Self { lines }
    }

    /// Tells everybody; returns whether `decisive` (the target of a move) has taken it over.
    pub async fn tell(
        &mut self,
        network: &dyn PeerNetwork,
        peers: &[Peer],
        route: &Route,
        decisive: &str,
    ) -> bool {
        let calls = peers.iter().map(|peer| {
            let line = self.lines.remove(peer);
            async move {
                // A line may have been cut since it was opened: one more try over a fresh one.
                if let Some(mut line) = line
                    && line.route(route.clone()).await.is_ok()
                {
                    return Ok(line);
                }
                let mut line = Line::open(network, peer).await?;
                line.route(route.clone()).await?;
                Ok::<Line, PeerError>(line)
            }
        });
        let mut done = false;
        for (peer, result) in peers.iter().zip(futures::future::join_all(calls).await) {
            match result {
                Ok(line) => {
                    done |= peer.node == decisive;
                    self.lines.insert(peer.clone(), line);
                }
                Err(error) => {
                    tracing::warn!(node = %peer.node, error = %chain(&error), "a route could not be told; the API will");
                }
            }
        }
        done
    }
}

/// An error with its causes on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
