//! The answering side of the conversation with other agents and with the gateway.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use holdfast_wire::launcher::{SOCKET_CONTROL_IN, SOCKET_MEMORY_IN, StreamKind, VmState};
use holdfast_wire::peer::{Open, Opened, Opening, Route, StreamTo};
use holdfast_wire::{Id, OLDEST, VERSION, frame};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

use crate::migration::CHUNK;
use crate::network::{Network, NetworkError};
use crate::node_agent::{NodeAgent, address_of};
use crate::peers::chain;
use crate::tls::{AGENT, Identity, PLATFORM};

/// Where an agreed connection leads.
enum To {
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// Serves other agents and the gateway for ever.
///
/// # Errors
/// The address cannot be listened on.
pub async fn serve(agent: Arc<NodeAgent>) -> io::Result<()> {
    let address = SocketAddr::from((agent.config.node_address, agent.port()));
    let listener =
        holdfast_sys::context(TcpListener::bind(address).await, || format!("listen on {address}"))?;
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let agent = agent.clone();
        tokio::spawn(async move {
            match agent.identity.accept(stream).await {
                Ok((stream, who)) => converse(&agent, stream, &who).await,
                Err(error) => {
                    tracing::warn!(%from, %error, "a connection without the platform's certificate")
                }
            }
        });
    }
}

async fn converse(agent: &NodeAgent, mut stream: TlsStream<TcpStream>, who: &str) {
    loop {
        let opening = match frame::read::<Opening>(&mut stream).await {
            Ok(Some(opening)) => opening,
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(who, %error, "a conversation ended");
                return;
            }
        };
        let is_move = matches!(opening.open, Open::Control { .. } | Open::Memory { .. });
        let (answer, to) = open(agent, who, opening).await;
        if let Opened::Refused { why } = &answer {
            tracing::warn!(who, why, "refused");
        }
        if frame::write(&mut stream, &answer).await.is_err() {
            return;
        }
        let _busy = (is_move && to.is_some()).then(|| agent.busy());
        match to {
            None => {}
            Some(To::Unix(to)) => return pass(&mut stream, to).await,
            Some(To::Tcp(to)) => return pass(&mut stream, to).await,
        }
    }
}

async fn pass(stream: &mut TlsStream<TcpStream>, mut to: impl AsyncRead + AsyncWrite + Unpin) {
    let done = tokio::io::copy_bidirectional_with_sizes(stream, &mut to, CHUNK, CHUNK).await;
    tracing::debug!(?done, "a stream ended");
}

fn refused(why: impl Into<String>) -> (Opened, Option<To>) {
    (Opened::Refused { why: why.into() }, None)
}

async fn open(agent: &NodeAgent, who: &str, opening: Opening) -> (Opened, Option<To>) {
    if !(OLDEST..=VERSION).contains(&opening.v) {
        return refused(format!("version {} is not spoken here, only {OLDEST} to {VERSION}", opening.v));
    }
    let for_agents = !matches!(opening.open, Open::Stream { .. });
    let allowed = if for_agents { who.starts_with(AGENT) } else { who.starts_with(PLATFORM) };
    if !allowed {
        return refused(format!("{who} may not ask this"));
    }
    match opening.open {
        Open::Route(route) => match take_route(&agent.network, &route).await {
            Ok(()) => (Opened::Done, None),
            Err(why) => refused(why),
        },
        Open::AskLauncher { id } => {
            let talks = agent.launcher(&id.pod_uid).is_some_and(|l| l.state.vm != VmState::Ended);
            (Opened::Records(agent.pods.answer(&id.pod_uid, talks)), None)
        }
        Open::Control { migration_uid, target } => {
            incoming(agent, &migration_uid, &target, SOCKET_CONTROL_IN).await
        }
        Open::Memory { migration_uid, target } => {
            incoming(agent, &migration_uid, &target, SOCKET_MEMORY_IN).await
        }
        Open::Stream { vm_uid, kind } => to_guest(agent, &vm_uid, kind).await,
    }
}

/// Takes over a route that another agent tells.
///
/// # Errors
/// A sentence: the address cannot be read or the kernel refuses.
async fn take_route(network: &Network, route: &Route) -> Result<(), String> {
    let address = ipv4(&route.address)?;
    let node_address = ipv4(&route.node_address)?;
    let done: Result<(), NetworkError> =
        network.hint(address, &route.node, node_address, route.generation).await;
    done.map_err(|error| chain(&error))
}

/// An address as a message carries it.
///
/// # Errors
/// A sentence.
pub(crate) fn ipv4(text: &str) -> Result<Ipv4Addr, String> {
    text.parse().map_err(|_| format!("{text:?} is not an IPv4 address"))
}

/// A stream of a move to a launcher here. Only the launcher that takes exactly this move gets it.
async fn incoming(agent: &NodeAgent, uid: &str, target: &Id, socket: &str) -> (Opened, Option<To>) {
    let Some(launcher) = agent.launcher(&target.pod_uid) else {
        return refused(format!("no launcher of pod {} is connected here", target.pod_uid));
    };
    if launcher.id != *target {
        return refused(format!("the launcher is {}, not {target}", launcher.id));
    }
    if launcher.state.migration.as_ref().is_none_or(|m| m.migration_uid != uid) {
        return refused(format!("the launcher does not take migration {uid}"));
    }
    match connect_unix(&launcher.run.join(socket)) {
        Ok(stream) => (Opened::Stream, Some(To::Unix(stream))),
        Err(error) => refused(format!("the launcher does not take the stream: {error}")),
    }
}

fn connect_unix(path: &std::path::Path) -> io::Result<UnixStream> {
    let stream = holdfast_sys::unixat::connect(path)?;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

/// A byte stream to a guest of this node.
async fn to_guest(agent: &NodeAgent, vm_uid: &str, kind: StreamTo) -> (Opened, Option<To>) {
    let Some(launcher) = agent.active_launcher(vm_uid) else {
        return refused(format!("VM {vm_uid} does not run on node {}", agent.config.node));
    };
    let stream = match kind {
        StreamTo::Console => StreamKind::Serial,
        StreamTo::Vnc => StreamKind::Vnc,
        StreamTo::Port(port) => return to_port(agent, vm_uid, port).await,
    };
    match launcher.conversation.open_stream(stream).await {
        Ok(stream) => (Opened::Stream, Some(To::Unix(stream))),
        Err(error) => refused(chain(&error)),
    }
}

async fn to_port(agent: &NodeAgent, vm_uid: &str, port: u16) -> (Opened, Option<To>) {
    let instance = agent.cluster.instances.get(vm_uid);
    let Some(address) = instance.as_deref().and_then(address_of) else {
        return refused("the VM has no address");
    };
    let connect = TcpStream::connect((address, port));
    match tokio::time::timeout(std::time::Duration::from_secs(5), connect).await {
        Ok(Ok(stream)) => {
            // Interactive sessions run through it.
            let _ = stream.set_nodelay(true);
            (Opened::Stream, Some(To::Tcp(stream)))
        }
        Ok(Err(error)) => refused(format!("port {port} of {address}: {error}")),
        Err(_) => refused(format!("port {port} of {address} did not answer within 5 s")),
    }
}

/// Serves routes only: the keeper of the host's routes.
///
/// # Errors
/// The address cannot be listened on.
pub(crate) async fn serve_routes<F, R>(address: SocketAddr, identity: Identity, take: F) -> io::Result<()>
where
    F: Fn(Route) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Result<(), String>> + Send,
{
    let listener =
        holdfast_sys::context(TcpListener::bind(address).await, || format!("listen on {address}"))?;
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            continue;
        };
        let (identity, take) = (identity.clone(), take.clone());
        tokio::spawn(async move {
            let Ok((mut stream, who)) = identity.accept(stream).await else { return };
            while let Ok(Some(opening)) = frame::read::<Opening>(&mut stream).await {
                let answer = match opening.open {
                    Open::Route(route) if who.starts_with(AGENT) => match take(route).await {
                        Ok(()) => Opened::Done,
                        Err(why) => Opened::Refused { why },
                    },
                    _ => Opened::Refused { why: "only routes are taken here, from agents".to_owned() },
                };
                if frame::write(&mut stream, &answer).await.is_err() {
                    return;
                }
            }
        });
    }
}
