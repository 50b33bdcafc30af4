//! Placement updates: a running VM that no longer may be on its node gets one `nodeplacement-update-*`
//! operation per placement (migration-and-maintenance.md §10).
//!
//! Looked at: required node selector and node affinity, required rules about other VMs and pods, the
//! VM's and its class's merged. The Instance carries the verdict as annotations: [`MISMATCH`] for the
//! front, and what was tried. Start at `plan.rs`.

mod plan;

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_api::engine::Instance;
use holdfast_api::names::label;
use holdfast_domain::neighbours::{self, Asker, Neighbour};
use holdfast_domain::placement;
use holdfast_env::Timestamp;
use holdfast_reconcile::{Cache, Caches, Controller, Error, Index, Key, Pass, Plan, Watches};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::ResourceExt as _;

use crate::indexes;
use crate::operations::{Machine, Machines};

pub use plan::plan;

/// Annotation on an Instance: the node it runs on, which its placement no longer allows.
pub const MISMATCH: &str = "internal.virtualization.deckhouse.io/placement-mismatch";

/// The node that an Instance is on against its placement, if it is there still.
#[must_use]
pub fn misplaced(instance: &Instance) -> Option<&str> {
    let node = instance.status.as_ref()?.node.as_deref()?;
    (instance.metadata.annotations.as_ref()?.get(MISMATCH)? == node).then_some(node)
}

/// Everything the plan for one Instance depends on.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The instant.
    pub now: Timestamp,
    /// The Instance, its VM and operations.
    pub machine: Machine,
    /// It may be on its node; `None` if the node is not known.
    pub fits: Option<bool>,
    /// Another node could take it, as far as rules about nodes go.
    pub fits_elsewhere: bool,
}

/// The controller.
#[derive(Debug)]
pub struct PlacementController {
    machines: Arc<Machines>,
    nodes: Arc<Cache<Node>>,
    pods: Arc<Cache<Pod>>,
    namespaces: Arc<Cache<Namespace>>,
    /// Instances that are on a node against their placement, by [`MISMATCH`].
    misplaced: Index<Instance>,
    /// Instances with rules about other VMs and pods, by [`RULED`].
    ruled: Index<Instance>,
}

/// A term: what has rules about its neighbours.
const RULED: &str = "ruled";

fn all_where(is: bool, term: &str) -> Vec<Key> {
    is.then(|| Key::cluster(term)).into_iter().collect()
}

impl PlacementController {
    /// Opens the caches it needs.
    #[must_use]
    pub fn new(caches: &Caches) -> Self {
        let instances = caches.cache::<Instance>();
        Self {
            misplaced: instances.index(MISMATCH, |i| all_where(misplaced(i).is_some(), MISMATCH)),
            ruled: instances.index(RULED, |i| all_where(neighbours::has_rules(&i.spec.placement), RULED)),
            machines: Arc::new(Machines::new(caches)),
            nodes: caches.cache(),
            pods: caches.cache(),
            namespaces: caches.cache(),
        }
    }

    fn fits(&self, instance: &Instance, node: &Node) -> bool {
        let placement = &instance.spec.placement;
        if !placement::node_satisfies(placement, &node.name_any(), node.labels()) {
            return false;
        }
        if !neighbours::has_rules(placement) {
            return true;
        }
        let nodes: BTreeMap<String, Arc<Node>> =
            self.nodes.all().into_iter().map(|node| (node.name_any(), node)).collect();
        let pods = self.pods.filtered(|pod| is_alive(pod) && !is_of(pod, instance));
        let others: Vec<Neighbour<'_>> = pods
            .iter()
            .filter_map(|pod| {
                let node = nodes.get(pod.spec.as_ref()?.node_name.as_ref()?)?;
                let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
                Some(Neighbour { namespace, labels: pod.labels(), node: node.labels() })
            })
            .collect();
        let namespaces = self.namespaces.all();
        let namespaces = namespaces.iter().map(|n| (n.name_any(), n.labels().clone())).collect();
        let namespace = instance.metadata.namespace.as_deref().unwrap_or_default();
        let asker = Asker { namespace, labels: &instance.spec.metadata.labels, node: node.labels() };
        neighbours::allow(placement, asker, &others, &namespaces)
    }

    fn fits_elsewhere(&self, instance: &Instance, here: &str) -> bool {
        let takes = |node: &Node| {
            let cordoned = node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true);
            let able = node.labels().get(label::SCHEDULABLE).is_some_and(|value| value == "true");
            able && !cordoned
                && node.name_any() != here
                && placement::node_satisfies(&instance.spec.placement, &node.name_any(), node.labels())
        };
        !self.nodes.filtered(takes).is_empty()
    }
}

fn is_alive(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    !matches!(phase, Some("Succeeded" | "Failed"))
}

fn is_of(pod: &Pod, instance: &Instance) -> bool {
    let created_by = pod.labels().get(label::CREATED_BY);
    created_by.is_some() && created_by == instance.metadata.uid.as_ref()
}

impl Controller for PlacementController {
    type Observed = Observed;

    fn name(&self) -> &'static str {
        "placement"
    }

    fn watches(&self, on: &mut Watches) {
        self.machines.watch(on);
        // A node is written often (heartbeats); only those concerned are looked up.
        let here = indexes::instances_at(&self.machines.instances);
        let misplaced = self.misplaced.clone();
        on.map(&self.nodes, move |node| {
            let mut keys = here.keys(&Key::cluster(node.name_any()));
            keys.extend(misplaced.keys(&Key::cluster(MISMATCH)));
            keys
        });
        let ruled = self.ruled.clone();
        on.map(&self.pods, move |pod| {
            if pod.spec.as_ref().is_none_or(|spec| spec.node_name.is_none()) {
                return Vec::new();
            }
            let ruled = ruled.get(&Key::cluster(RULED));
            ruled.iter().filter(|instance| !is_of(pod, instance)).map(|i| Key::of(&**i)).collect()
        });
    }

    async fn observe(&self, key: &Key, pass: Pass) -> Result<Option<Observed>, Error> {
        let Some(machine) = self.machines.get(key) else { return Ok(None) };
        let instance = &machine.instance;
        let at = instance.status.as_ref().and_then(|status| status.node.clone()).unwrap_or_default();
        let node = self.nodes.get(&Key::cluster(&at));
        let fits = node.map(|node| self.fits(instance, &node));
        let fits_elsewhere = fits == Some(false) && self.fits_elsewhere(instance, &at);
        Ok(Some(Observed { now: pass.now, fits, fits_elsewhere, machine }))
    }

    fn plan(observed: &Observed) -> Plan {
        plan::plan(observed)
    }
}
