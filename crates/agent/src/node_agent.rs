//! What all parts of one node's agent share.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

use holdfast_api::engine::{Instance, Migration};
use holdfast_env::watch;
use holdfast_hypervisor::definition::Accelerator;
use holdfast_wire::Id;
use holdfast_wire::launcher::State;
use holdfast_wire::peer::{PORT, Route};
use parking_lot::Mutex;

use crate::authorise::Here;
use crate::cluster::Cluster;
use crate::config::Config;
use crate::host::Outside;
use crate::launcher::conversation::Conversation;
use crate::network::Network;
use crate::peers::{HOST, Peer};
use crate::records::PodsDir;

/// A launcher that is connected right now.
#[derive(Clone)]
pub struct Connected {
    /// Whom it serves.
    pub id: Id,
    /// The connection.
    pub conversation: Arc<Conversation>,
    /// Its last word.
    pub state: State,
    /// Its `run` volume.
    pub run: PathBuf,
}

/// One node's agent.
pub struct NodeAgent {
    /// Settings.
    pub config: Config,
    /// The API.
    pub cluster: Cluster,
    /// The node's network.
    pub network: Network,
    /// The node's pods on disk.
    pub pods: PodsDir,
    /// What executes guest code here.
    pub accelerator: Accelerator,
    /// Everything outside of this process's memory but the API and the pods' directories.
    pub outside: Outside,
    /// Whether the fence lease is held by this boot.
    pub gate: watch::Receiver<bool>,
    /// Guests that stand still for a switch-over.
    pub stops: crate::metrics::Stops,
    connected: Mutex<BTreeMap<String, Connected>>,
    moves: Arc<watch::Sender<usize>>,
}

/// One stream or move that a graceful stop of the agent waits for. Dropping it ends the wait.
pub struct Busy(Arc<watch::Sender<usize>>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl NodeAgent {
    /// Puts the parts together.
    pub fn new(
        config: Config,
        cluster: Cluster,
        network: Network,
        accelerator: Accelerator,
        gate: watch::Receiver<bool>,
    ) -> Self {
        let outside = config.outside.clone();
        let pods = PodsDir::new(config.pods_dir.clone(), outside.clone());
        Self {
            config,
            cluster,
            network,
            pods,
            accelerator,
            outside,
            gate,
            stops: crate::metrics::Stops::default(),
            connected: Mutex::default(),
            moves: Arc::new(watch::Sender::new(0)),
        }
    }

    /// A move has begun to depend on this agent: an end of the agent would cut it.
    pub fn busy(&self) -> Busy {
        self.moves.send_modify(|count| *count += 1);
        Busy(self.moves.clone())
    }

    /// Returns once no move depends on this agent.
    pub async fn idle(&self) {
        // The sender lives in `self`, so the wait cannot fail while we hold it.
        let _ = self.moves.subscribe().wait_for(|count| *count == 0).await;
    }

    /// Whether the launcher of this pod is connected.
    pub fn is_connected(&self, pod_uid: &str) -> bool {
        self.connected.lock().contains_key(pod_uid)
    }

    /// uids of the Instances whose launchers are connected.
    pub fn connected_instances(&self) -> std::collections::BTreeSet<String> {
        self.connected.lock().values().map(|launcher| launcher.id.instance_uid.clone()).collect()
    }

    /// This node, now.
    pub fn here(&self) -> Here {
        Here {
            node: self.config.node.clone(),
            boot_id: self.config.boot_id.clone(),
            gate_open: *self.gate.borrow(),
        }
    }

    /// A launcher connected, or said something new.
    pub fn connect(&self, launcher: Connected) {
        if let Some(event) = &launcher.state.migration {
            crate::metrics::note(self, &launcher.id.instance_uid, event);
        }
        self.connected.lock().insert(launcher.id.pod_uid.clone(), launcher);
    }

    /// A launcher's connection is gone.
    pub fn disconnect(&self, pod_uid: &str) {
        self.connected.lock().remove(pod_uid);
    }

    /// All connected launchers.
    pub fn launchers(&self) -> Vec<Connected> {
        self.connected.lock().values().cloned().collect()
    }

    /// The connected launcher of a pod.
    pub fn launcher(&self, pod_uid: &str) -> Option<Connected> {
        self.connected.lock().get(pod_uid).cloned()
    }

    /// The connected launcher in which the guest of an Instance runs: the one with the claim.
    pub fn active_launcher(&self, instance_uid: &str) -> Option<Connected> {
        let instance = self.cluster.instances.get(instance_uid)?;
        let connected = self.connected.lock();
        connected
            .values()
            .find(|l| l.id.instance_uid == instance_uid && crate::report::holds_claim(&l.id, &instance))
            .cloned()
    }

    /// The Instance of a launcher as cached.
    pub fn instance(&self, id: &Id) -> Option<Arc<Instance>> {
        self.cluster.instances.get(&id.instance_uid)
    }

    /// The Migration that an Instance names, as cached.
    pub fn named_migration(&self, instance: &Instance) -> Option<Arc<Migration>> {
        let named = instance.status.as_ref()?.migration.as_ref()?;
        self.cluster.migrations.get(&named.uid)
    }

    /// The agent of another node.
    pub fn peer(&self, node: &str) -> Option<Peer> {
        self.cluster.node_addresses().get(node).map(|address| Peer::of(node, *address))
    }

    /// Everybody who keeps routes to VMs, but this agent.
    pub fn route_keepers(&self) -> Vec<Peer> {
        let mut nodes = self.cluster.node_addresses();
        nodes.remove(&self.config.node);
        let mut peers: Vec<Peer> = nodes.iter().map(|(node, address)| Peer::of(node, *address)).collect();
        let host = self.config.host_routes;
        peers.extend(host.map(|address| Peer { node: HOST.to_owned(), address }));
        peers
    }

    /// The route to a VM through a node, newer than every one told before.
    pub fn new_route(&self, address: Ipv4Addr, epoch: i64, node: &str, node_address: Ipv4Addr) -> Route {
        let now_ms = holdfast_env::now().as_millisecond();
        Route {
            address: address.to_string(),
            node: node.to_owned(),
            node_address: node_address.to_string(),
            generation: self.network.next_generation(address, epoch, now_ms),
        }
    }

    /// Port on which agents listen.
    pub fn port(&self) -> u16 {
        PORT
    }
}

/// Address of an Instance's VM.
pub fn address_of(instance: &Instance) -> Option<Ipv4Addr> {
    instance.spec.hardware.nic.as_ref()?.address.parse().ok()
}
