//! What the evacuation controller looks at.

use std::sync::Arc;

use holdfast_api::NodeMaintenance;
use holdfast_api::engine::Instance;
use holdfast_domain::eviction;
use holdfast_env::Timestamp;
use holdfast_reconcile::{Cache, Caches, Controller, Error, Index, Key, Pass, Plan, Watches};
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;

use crate::indexes;
use crate::operations::{Machine, Machines};

/// Everything the plan for one Instance depends on.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The instant.
    pub now: Timestamp,
    /// The Instance, marked or not, its VM and operations.
    pub machine: Machine,
    /// The node that is marked, or that the VM blocks; `None` if there is no such node (or no mark).
    pub node: Option<NodeSeen>,
}

/// A node as the caches have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeSeen {
    /// It is cordoned, or a NodeMaintenance keeps it closed.
    pub closed: bool,
    /// Its version, as marks name it.
    pub version: Option<i64>,
}

/// The controller.
#[derive(Debug)]
pub struct EvacuationController {
    machines: Arc<Machines>,
    nodes: Arc<Cache<Node>>,
    maintenances: Arc<Cache<NodeMaintenance>>,
}

impl EvacuationController {
    /// Opens the caches it needs.
    #[must_use]
    pub fn new(caches: &Caches) -> Self {
        Self {
            machines: Arc::new(Machines::new(caches)),
            nodes: caches.cache(),
            maintenances: caches.cache(),
        }
    }
}

/// Keys of the Instances that shall leave this node.
fn marked(instances: &Index<Instance>, node: &str) -> Vec<Key> {
    let mut here = instances.get(&Key::cluster(node));
    here.retain(|instance| to_leave(instance) == Some(node));
    here.iter().map(|instance| Key::of(&**instance)).collect()
}

/// The node that the VM shall leave, whether it can or not.
pub(crate) fn to_leave(instance: &Instance) -> Option<&str> {
    let status = instance.status.as_ref()?;
    status.evacuation_node_name.as_deref().or(status.evacuation_blocked_node.as_deref())
}

impl Controller for EvacuationController {
    type Observed = Observed;

    fn name(&self) -> &'static str {
        "evacuation"
    }

    fn watches(&self, on: &mut Watches) {
        self.machines.watch(on);
        let instances = indexes::instances_at(&self.machines.instances);
        on.map(&self.nodes, move |node| marked(&instances, &node.name_any()));
        let instances = indexes::instances_at(&self.machines.instances);
        on.map(&self.maintenances, move |maintenance| marked(&instances, &maintenance.spec.node_name));
    }

    async fn observe(&self, key: &Key, pass: Pass) -> Result<Option<Observed>, Error> {
        let Some(machine) = self.machines.get(key) else { return Ok(None) };
        let node = to_leave(&machine.instance).and_then(|mark| self.nodes.get(&Key::cluster(mark)));
        let seen = |node: Arc<Node>| {
            let name = node.name_any();
            let closed = eviction::is_closed(&node)
                || !self.maintenances.filtered(|known| known.is_in_force_on(&name)).is_empty();
            NodeSeen { closed, version: eviction::version(&node) }
        };
        Ok(Some(Observed { now: pass.now, machine, node: node.map(seen) }))
    }

    fn plan(observed: &Observed) -> Plan {
        super::plan::plan(observed)
    }
}
