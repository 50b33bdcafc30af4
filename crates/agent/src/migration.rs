//! The source's share of a move: the streams to the target, the switch of the routes, and what is
//! certain about the target when its word does not come (migration-and-maintenance.md §2.4 to §2.6).
//!
//! Memory and COMMIT run launcher → unix socket → this agent → TLS → the target's agent → unix socket
//! → launcher. The target's share of the streams is in [`crate::server`].

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use holdfast_api::engine::Migration;
use holdfast_env::fault;
use holdfast_wire::Id;
use holdfast_wire::frame;
use holdfast_wire::launcher::{Control, MoveConfig, SOCKET_CONTROL_OUT, SOCKET_MEMORY_OUT, Verdict};
use holdfast_wire::local::{Access, StreamListener};
use holdfast_wire::peer::{Open, Records, Route};
use tokio::task::JoinSet;

use crate::launcher::start::StepError;
use crate::network::in_flight::InFlight;
use crate::node_agent::{Busy, NodeAgent, address_of};
use crate::peers::{Line, Peer, PeerError, Switchboard, ask_launcher, chain};
use crate::report::BrokenStream;

/// Bytes that a proxy moves at once.
pub const CHUNK: usize = 256 << 10;

/// From when QEMU begins to stop a guest until it says so: packets of that time are lost as well (it still takes
/// them, for a guest that does not run). Without hardware virtualisation it takes long. A packet that comes
/// twice does no harm. Microseconds.
const STOPPING_US: i64 = 30_000;

/// A move that goes out from here. Dropping it closes its sockets and cuts its streams.
pub struct Outgoing {
    agent: Arc<NodeAgent>,
    id: Id,
    uid: String,
    config: MoveConfig,
    address: Option<Ipv4Addr>,
    target: Peer,
    keepers: Vec<Peer>,
    switchboard: Switchboard,
    sockets: Vec<PathBuf>,
    broken: Broken,
    in_flight: Option<InFlight>,
    _proxies: JoinSet<()>,
    _busy: Busy,
}

/// Why a stream to the target could not be opened, as soon as one could not. QEMU sees only its end.
type Broken = Arc<OnceLock<String>>;

impl Drop for Outgoing {
    fn drop(&mut self) {
        for socket in &self.sockets {
            // Gone with the pod's directory at the latest.
            let _ = std::fs::remove_file(socket);
        }
    }
}

impl Outgoing {
    /// Opens the lines to everybody concerned and listens for the launcher's streams.
    ///
    /// # Errors
    /// The Migration or the target's node is not known, or the sockets cannot be made.
    pub async fn begin(agent: Arc<NodeAgent>, id: &Id, uid: &str) -> Result<Self, StepError> {
        let migration = agent.cluster.migrations.get(uid);
        let migration = migration.ok_or_else(|| StepError::NotYet("the Migration is gone".to_owned()))?;
        let busy = agent.busy();
        let (target, target_id) = target_of(&agent, &migration, id)?;
        let keepers = agent.route_keepers();
        let switchboard = Switchboard::open(&*agent.outside.peers, keepers.clone()).await;
        let run = agent.pods.run(&id.pod_uid);
        let mut proxies = JoinSet::new();
        let mut sockets = vec![];
        let broken = Broken::default();
        let control = Open::Control { migration_uid: uid.to_owned(), target: target_id.clone() };
        let memory = Open::Memory { migration_uid: uid.to_owned(), target: target_id };
        for (name, open) in [(SOCKET_CONTROL_OUT, control), (SOCKET_MEMORY_OUT, memory)] {
            let path = run.join(name);
            // The launcher and its QEMU run as another user; the directory is theirs alone.
            let listener = agent.outside.sockets.bind(&path, Access::AnyUser);
            let listener = listener.map_err(|e| StepError::NotYet(e.to_string()))?;
            sockets.push(path);
            proxies.spawn(proxy(agent.clone(), listener, target.clone(), open, broken.clone()));
        }
        let config = migration.status.as_ref().and_then(|s| s.config.clone()).unwrap_or_default();
        let config = MoveConfig {
            bandwidth_bytes_s: config.bandwidth,
            downtime_ms: config.downtime_ms,
            auto_converge: config.auto_converge,
            completion_timeout_s: config.completion_timeout_s,
            progress_timeout_s: config.progress_timeout_s,
        };
        let address = agent.instance(id).and_then(|instance| address_of(&instance));
        let in_flight = agent.network.note_packets(&id.instance_uid).await.unwrap_or_else(|error| {
            // The move goes on: its price is a pause of some connections.
            tracing::warn!(%id, error = %chain(&error), "packets that come during the switch-over will be lost");
            None
        });
        Ok(Self {
            agent,
            id: id.clone(),
            uid: uid.to_owned(),
            config,
            address,
            target,
            keepers,
            switchboard,
            sockets,
            broken,
            in_flight,
            _proxies: proxies,
            _busy: busy,
        })
    }

    /// Uid of the Migration.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// Why the target could not be reached, if that is why the move ends.
    pub fn broken(&self) -> Option<BrokenStream> {
        Some(BrokenStream { uid: self.uid.clone(), why: self.broken.get()?.clone() })
    }

    /// Limits of the move.
    pub fn config(&self) -> MoveConfig {
        self.config.clone()
    }

    /// Before the route leads here again: nothing is sent on any more.
    pub fn keep_packets(&mut self) {
        self.in_flight = None;
    }

    /// The guest was stopped at that time (Unix, microseconds; none: just now): its traffic belongs to the target
    /// from now on (strategy C of hypervisor.md §13.3). True when the target has taken it over.
    pub async fn routes_to_target(&mut self, stopped_at_us: Option<i64>) -> bool {
        let stopped_at_us = stopped_at_us.unwrap_or_else(|| holdfast_env::now().as_microsecond());
        let Some(address) = self.address else { return true };
        let std::net::IpAddr::V4(target_address) = self.target.address.ip() else { return false };
        let route = self.agent.new_route(address, self.id.epoch, &self.target.node, target_address);
        // First everybody else, then this node: what its tap is given until then is not lost, while a target whose
        // route still leads here would send back what it is sent.
        let told =
            self.switchboard.tell(&*self.agent.outside.peers, &self.keepers, &route, &self.target.node).await;
        let network = &self.agent.network;
        let here = network.hint(address, &self.target.node, target_address, route.generation).await;
        // With the route still leading here, what is sent on would come back to the tap, and be sent on again.
        if here.is_ok()
            && let Some(in_flight) = &mut self.in_flight
        {
            in_flight.pass_on(stopped_at_us - STOPPING_US);
        }
        if let Err(error) = here {
            tracing::warn!(id = %self.id, error = %chain(&error), "the route of this node could not be moved");
        }
        fault::point("routes_moved").await;
        told
    }
}

/// The move failed: the traffic belongs to this node (again). Told to everybody, because what was
/// told before a restart of this agent is not remembered.
pub async fn routes_back(agent: &NodeAgent, id: &Id) {
    let Some(address) = agent.instance(id).and_then(|instance| address_of(&instance)) else { return };
    let route: Route = agent.new_route(address, id.epoch, &agent.config.node, agent.config.node_address);
    if let Err(error) =
        agent.network.hint(address, &agent.config.node, agent.config.node_address, route.generation).await
    {
        tracing::warn!(%id, error = %chain(&error), "the route of this node could not be taken back");
    }
    let keepers = agent.route_keepers();
    let mut switchboard = Switchboard::open(&*agent.outside.peers, keepers.clone()).await;
    switchboard.tell(&*agent.outside.peers, &keepers, &route, &agent.config.node).await;
}

fn target_of(agent: &NodeAgent, migration: &Migration, id: &Id) -> Result<(Peer, Id), StepError> {
    let target = migration.status.as_ref().and_then(|s| s.target.as_ref());
    let target = target.ok_or_else(|| StepError::NotYet("the move has no target".to_owned()))?;
    let peer = agent
        .peer(&target.node)
        .ok_or_else(|| StepError::NotYet(format!("the address of node {} is not known", target.node)))?;
    let target = Id { pod_uid: target.pod_uid.clone(), ..id.clone() };
    Ok((peer, target))
}

/// Passes every connection of the launcher on to the target.
async fn proxy(
    agent: Arc<NodeAgent>,
    mut listener: Box<dyn StreamListener>,
    target: Peer,
    open: Open,
    broken: Broken,
) {
    let mut streams = JoinSet::new();
    loop {
        let mut from = match listener.accept().await {
            Ok(from) => from,
            Err(error) => {
                tracing::warn!(%error, "a stream of a move could not be accepted");
                return;
            }
        };
        let (agent, target, open, broken) = (agent.clone(), target.clone(), open.clone(), broken.clone());
        streams.spawn(async move {
            let opened = async { Line::open(&*agent.outside.peers, &target).await?.into_stream(open).await };
            match opened.await {
                Ok(mut to) => {
                    let done =
                        tokio::io::copy_bidirectional_with_sizes(&mut from, &mut to, CHUNK, CHUNK).await;
                    tracing::debug!(node = %target.node, ?done, "a stream of a move ended");
                }
                Err(error) => {
                    let error = chain(&error);
                    tracing::warn!(node = %target.node, error, "a stream of a move was not opened");
                    // Before `from` is closed: the launcher tells of the end only afterwards.
                    let _ = broken.set(error);
                }
            }
        });
    }
}

/// What is certain about the target of a move whose source has given up: asked from the target's
/// agent. None: nothing yet. No time that passes makes it certain (rule 10).
pub async fn verdict(agent: &NodeAgent, id: &Id, uid: &str) -> Option<Verdict> {
    let migration = agent.cluster.migrations.get(uid)?;
    if target_has_ended(&migration) {
        // Its agent has told so for good, and its pod, with the records, may be gone since.
        tracing::info!(%id, "undecided hand-over: the target has ended without running the guest");
        return Some(Verdict::NeverContinued);
    }
    let (peer, target) = match target_of(agent, &migration, id) {
        Ok(target) => target,
        Err(error) => {
            tracing::warn!(%id, %error, "the target of the undecided hand-over cannot be asked");
            return None;
        }
    };
    match ask_launcher(&*agent.outside.peers, &peer, target).await {
        Ok(records) => {
            let verdict = settle(&records);
            tracing::info!(%id, ?records, ?verdict, "undecided hand-over");
            verdict
        }
        Err(error) => {
            tracing::warn!(%id, error = %chain(&error), "the target's agent was not heard");
            None
        }
    }
}

/// A source that gave up its right and then died: its record is proof enough to deliver the COMMIT
/// that may never have left, so that the guest goes on at the target (§2.8). Returns once it is
/// certain whether the target continued; until then the VM's end must not be reported, because the
/// guest may be running.
pub async fn settle_dead_source(agent: &NodeAgent, id: &Id, uid: &str) -> Verdict {
    loop {
        if let Some(instance) = agent.instance(id)
            && (!crate::report::holds_claim(id, &instance) || crate::launcher::plan::has_ended(&instance))
        {
            // The flip has been written, or the VM has ended or gone on without this launcher.
            return Verdict::Continued;
        }
        if let Err(error) = commit_for(agent, id, uid).await {
            tracing::warn!(%id, error = %chain(&error), "COMMIT of the ended source was not delivered");
        }
        if let Some(verdict) = verdict(agent, id, uid).await {
            return verdict;
        }
        tokio::time::sleep(SETTLE_EVERY).await;
    }
}

/// Pause between two questions about an undecided hand-over.
pub const SETTLE_EVERY: Duration = Duration::from_secs(1);

/// Says COMMIT in the name of a source that has given up and ended, and waits for the answer.
async fn commit_for(agent: &NodeAgent, id: &Id, uid: &str) -> Result<(), StepError> {
    let migration = agent.cluster.migrations.get(uid);
    let migration = migration.ok_or_else(|| StepError::NotYet("the Migration is gone".to_owned()))?;
    let (peer, target) = target_of(agent, &migration, id)?;
    let open = Open::Control { migration_uid: uid.to_owned(), target };
    let talk = async {
        let mut stream = Line::open(&*agent.outside.peers, &peer).await?.into_stream(open).await?;
        let commit = Control::Commit { migration_uid: uid.to_owned(), paused: false };
        let broken = |e: frame::Error| PeerError::Refused { node: peer.node.clone(), why: chain(&e) };
        frame::write(&mut stream, &commit).await.map_err(broken)?;
        let answer = frame::read::<Control>(&mut stream).await.map_err(broken)?;
        tracing::info!(%id, ?answer, "COMMIT of an ended source was delivered");
        Ok::<(), PeerError>(())
    };
    match tokio::time::timeout(Duration::from_secs(5), talk).await {
        Ok(result) => result.map_err(|error| StepError::NotYet(chain(&error))),
        Err(_) => Err(StepError::NotYet("the target's launcher did not answer".to_owned())),
    }
}

fn target_has_ended(migration: &Migration) -> bool {
    let target = migration.status.as_ref().and_then(|status| status.target.as_ref());
    target.is_some_and(|target| target.ended_at.is_some() && target.resumed_at.is_none())
}

/// Rule 7 of §2.4: only the target's own records decide, and "never continued" only when nothing can
/// continue any more.
fn settle(records: &Records) -> Option<Verdict> {
    if records.continued {
        Some(Verdict::Continued)
    } else if records.found && records.ended || holdfast_env::mutant!("not-continued-yet-means-never") {
        Some(Verdict::NeverContinued)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // MM F6, MM F7, MM F8 (the decision)
    #[test]
    fn only_the_targets_records_settle_a_hand_over() {
        let rows = [
            ("runs, has not continued", (true, false, false), None),
            ("ended, never continued", (true, true, false), Some(Verdict::NeverContinued)),
            ("continued and runs", (true, false, true), Some(Verdict::Continued)),
            ("continued and ended", (true, true, true), Some(Verdict::Continued)),
            ("no trace of it", (false, true, false), None),
        ];
        for (what, (found, ended, continued), expected) in rows {
            let records = Records { found, ended, continued, gave_up: false };
            assert_eq!(settle(&records), expected, "{what}");
        }
    }
}
