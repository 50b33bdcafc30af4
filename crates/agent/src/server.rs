//! The answering side of the conversation with other agents and with the gateway.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use holdfast_wire::launcher::{
    Answer, Request, SOCKET_CONTROL_IN, SOCKET_MEMORY_IN, SeedFiles, StreamKind, VmState,
};
use holdfast_wire::local::BoxStream;
use holdfast_wire::peer::{Open, Opened, Opening, Route, StreamTo};
use holdfast_wire::{Id, OLDEST, VERSION, frame};

use crate::launcher::conversation::PROMPT;
use crate::migration::CHUNK;
use crate::network::{Network, NetworkError};
use crate::node_agent::{NodeAgent, address_of};
use crate::peers::chain;
use crate::tls::{AGENT, PLATFORM};
use crate::underlay::PeerNetwork;

/// Serves other agents and the gateway for ever.
///
/// # Errors
/// The address cannot be listened on.
pub async fn serve(agent: Arc<NodeAgent>) -> io::Result<()> {
    let mut listener = agent.outside.peers.listen().await?;
    loop {
        let caller = match listener.accept().await {
            Ok(caller) => caller,
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let agent = agent.clone();
        tokio::spawn(async move {
            match caller.await {
                Ok((stream, who)) => converse(&agent, stream, &who).await,
                Err(error) => tracing::warn!(%error, "a connection without the platform's certificate"),
            }
        });
    }
}

async fn converse(agent: &NodeAgent, mut stream: BoxStream, who: &str) {
    loop {
        let opening = match frame::read::<Opening>(&mut stream).await {
            Ok(Some(opening)) => opening,
            Ok(None) => return,
            Err(frame::Error::Json(error)) => {
                tracing::warn!(who, %error, "a question of a newer build");
                let why =
                    "this node's agent does not know what was asked; it is of an older build".to_owned();
                match frame::write(&mut stream, &Opened::Refused { why }).await {
                    Ok(()) => continue,
                    Err(_) => return,
                }
            }
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
        if let Some(to) = to {
            return pass(stream, to).await;
        }
    }
}

async fn pass(mut stream: BoxStream, mut to: BoxStream) {
    let done = tokio::io::copy_bidirectional_with_sizes(&mut stream, &mut to, CHUNK, CHUNK).await;
    tracing::debug!(?done, "a stream ended");
}

fn refused(why: impl Into<String>) -> (Opened, Option<BoxStream>) {
    (Opened::Refused { why: why.into() }, None)
}

async fn open(agent: &NodeAgent, who: &str, opening: Opening) -> (Opened, Option<BoxStream>) {
    if !(OLDEST..=VERSION).contains(&opening.v) {
        return refused(format!("version {} is not spoken here, only {OLDEST} to {VERSION}", opening.v));
    }
    let for_agents = !matches!(opening.open, Open::Stream { .. } | Open::DirtyRate { .. });
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
        Open::Seed { migration_uid, source } => match seed(agent, who, &migration_uid, &source).await {
            Ok(files) => (Opened::Seed(files), None),
            Err(why) => refused(why),
        },
        Open::Control { migration_uid, target } => {
            incoming(agent, &migration_uid, &target, SOCKET_CONTROL_IN).await
        }
        Open::Memory { migration_uid, target } => {
            incoming(agent, &migration_uid, &target, SOCKET_MEMORY_IN).await
        }
        Open::DirtyRate { vm_uid, seconds } => match dirty_rate(agent, &vm_uid, seconds).await {
            Ok(bytes_s) => (Opened::DirtyRate { bytes_s }, None),
            Err(why) => refused(why),
        },
        Open::Stream { vm_uid, kind } => to_guest(agent, &vm_uid, kind).await,
    }
}

/// The provisioning files of a launcher here. They hold secrets: only the node to which the move goes
/// gets them.
async fn seed(agent: &NodeAgent, who: &str, uid: &str, source: &Id) -> Result<SeedFiles, String> {
    let migration = agent.cluster.migrations.get(uid);
    let status = migration.as_ref().and_then(|migration| migration.status.as_ref());
    let named = status.and_then(|status| Some((status.source.as_ref()?, status.target.as_ref()?)));
    let (from, to) =
        named.ok_or_else(|| format!("migration {uid} is not handed over, as far as known here"))?;
    if from.pod_uid != source.pod_uid || who.strip_prefix(AGENT) != Some(to.node.as_str()) {
        return Err(format!("migration {uid} does not go from pod {} to {who}", source.pod_uid));
    }
    let launcher = agent.launcher(&source.pod_uid).filter(|launcher| launcher.id == *source);
    let launcher = launcher.ok_or_else(|| format!("no launcher of {source} is connected here"))?;
    match launcher.conversation.ask(Request::Seed, &[], PROMPT).await {
        Ok((Answer::Seed(files), _)) => Ok(files),
        Ok(_) => Err("the launcher answered something else to Seed".to_owned()),
        Err(error) => Err(chain(&error)),
    }
}

/// Longest wait beyond the time of a measurement.
const MEASURED_LATE: Duration = Duration::from_secs(3);

/// Has QEMU measure how fast a guest dirties memory.
async fn dirty_rate(agent: &NodeAgent, vm_uid: &str, seconds: u32) -> Result<i64, String> {
    let launcher = agent.active_launcher(vm_uid);
    let launcher =
        launcher.ok_or_else(|| format!("VM {vm_uid} does not run on node {}", agent.config.node))?;
    let ask = async |measure_s: Option<u32>| match launcher
        .conversation
        .ask(Request::DirtyRate { measure_s }, &[], PROMPT)
        .await
    {
        Ok((Answer::DirtyRate { bytes_s }, _)) => Ok(bytes_s),
        Ok((Answer::Refused { why }, _)) => Err(why),
        Ok(_) => Err("the launcher answered something else to DirtyRate".to_owned()),
        Err(error) => Err(chain(&error)),
    };
    let seconds = seconds.clamp(1, 60);
    ask(Some(seconds)).await?;
    let took = Duration::from_secs(seconds.into());
    let latest = tokio::time::Instant::now() + took + MEASURED_LATE;
    tokio::time::sleep(took).await;
    loop {
        if let Some(rate) = ask(None).await? {
            return Ok(rate);
        }
        if tokio::time::Instant::now() >= latest {
            return Err(format!("QEMU measured for more than {seconds} s"));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
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
async fn incoming(agent: &NodeAgent, uid: &str, target: &Id, socket: &str) -> (Opened, Option<BoxStream>) {
    let Some(launcher) = agent.launcher(&target.pod_uid) else {
        return refused(format!("no launcher of pod {} is connected here", target.pod_uid));
    };
    if launcher.id != *target {
        return refused(format!("the launcher is {}, not {target}", launcher.id));
    }
    if launcher.state.migration.as_ref().is_none_or(|m| m.migration_uid != uid) {
        return refused(format!("the launcher does not take migration {uid}"));
    }
    match agent.outside.sockets.connect(&launcher.run.join(socket)).await {
        Ok(stream) => (Opened::Stream, Some(stream)),
        Err(error) => refused(format!("the launcher does not take the stream: {error}")),
    }
}

/// A byte stream to a guest of this node.
async fn to_guest(agent: &NodeAgent, vm_uid: &str, kind: StreamTo) -> (Opened, Option<BoxStream>) {
    let Some(launcher) = agent.active_launcher(vm_uid) else {
        return refused(format!("VM {vm_uid} does not run on node {}", agent.config.node));
    };
    let stream = match kind {
        StreamTo::Console => StreamKind::Serial,
        StreamTo::Vnc => StreamKind::Vnc,
        StreamTo::Port(port) => return to_port(agent, vm_uid, port).await,
    };
    match launcher.conversation.open_stream(&*agent.outside.sockets, stream).await {
        Ok(stream) => (Opened::Stream, Some(stream)),
        Err(error) => refused(chain(&error)),
    }
}

async fn to_port(agent: &NodeAgent, vm_uid: &str, port: u16) -> (Opened, Option<BoxStream>) {
    let instance = agent.cluster.instances.get(vm_uid);
    let Some(address) = instance.as_deref().and_then(address_of) else {
        return refused("the VM has no address");
    };
    let connect = agent.outside.peers.connect_guest(SocketAddr::from((address, port)));
    match tokio::time::timeout(std::time::Duration::from_secs(5), connect).await {
        Ok(Ok(stream)) => (Opened::Stream, Some(stream)),
        Ok(Err(error)) => refused(format!("port {port} of {address}: {error}")),
        Err(_) => refused(format!("port {port} of {address} did not answer within 5 s")),
    }
}

/// Serves routes only: the keeper of the host's routes.
///
/// # Errors
/// The address cannot be listened on.
pub(crate) async fn serve_routes<F, R>(network: &dyn PeerNetwork, take: F) -> io::Result<()>
where
    F: Fn(Route) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Result<(), String>> + Send,
{
    let mut listener = network.listen().await?;
    loop {
        let Ok(caller) = listener.accept().await else {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            continue;
        };
        let take = take.clone();
        tokio::spawn(async move {
            let Ok((mut stream, who)) = caller.await else { return };
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
