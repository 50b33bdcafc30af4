//! What the NodeMaintenance controller looks at.

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_api::NodeMaintenance;
use holdfast_api::maintenance::LEASE_PREFIX;
use holdfast_env::Timestamp;
use holdfast_reconcile::{
    Answer, Answers, Cache, Caches, Controller, Error, Index, Key, Pass, Plan, Watches,
};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::{Api, ResourceExt as _};

use crate::{Config, indexes};

/// Everything the plan for one NodeMaintenance depends on.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The instant.
    pub now: Timestamp,
    /// The object.
    pub object: Arc<NodeMaintenance>,
    /// The node it names.
    pub node: Option<Arc<Node>>,
    /// The node's Lease.
    pub lease: Option<Arc<Lease>>,
    /// Namespace of the Leases.
    pub lease_namespace: String,
    /// Whether it is there.
    pub lease_namespace_exists: bool,
    /// All pods on the node, sorted.
    pub pods: Vec<Arc<Pod>>,
    /// The last answers to evictions of these, by uid.
    pub answers: BTreeMap<String, Answer>,
    /// Another NodeMaintenance keeps the node closed.
    pub closed_by_another: bool,
}

/// The controller.
#[derive(Debug)]
pub struct NodeMaintenanceController {
    maintenances: Arc<Cache<NodeMaintenance>>,
    nodes: Arc<Cache<Node>>,
    pods: Arc<Cache<Pod>>,
    pods_on: Index<Pod>,
    leases: Arc<Cache<Lease>>,
    namespaces: Arc<Cache<Namespace>>,
    evictions: Arc<Answers>,
    lease_namespace: String,
}

impl NodeMaintenanceController {
    /// Opens the caches it needs.
    #[must_use]
    pub fn new(caches: &Caches, config: &Config) -> Self {
        let pods = caches.cache();
        Self {
            maintenances: caches.cache(),
            nodes: caches.cache(),
            pods_on: indexes::pods_on(&pods),
            pods,
            leases: caches.cache(),
            namespaces: caches.cache(),
            evictions: caches.evictions(),
            lease_namespace: config.lease_namespace.clone(),
        }
    }
}

fn keys(maintenances: &Cache<NodeMaintenance>, node: &str) -> Vec<Key> {
    maintenances
        .filtered(|known| known.spec.node_name == node)
        .iter()
        .map(|known| Key::of(&**known))
        .collect()
}

impl Controller for NodeMaintenanceController {
    type Observed = Observed;

    fn name(&self) -> &'static str {
        "nodemaintenance"
    }

    fn watches(&self, on: &mut Watches) {
        on.own(&self.maintenances);
        let all = self.maintenances.clone();
        on.map(&self.nodes, move |node| keys(&all, &node.name_any()));
        let all = self.maintenances.clone();
        on.map(&self.pods, move |pod| {
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
            node.map(|node| keys(&all, node)).unwrap_or_default()
        });
        let (all, namespace) = (self.maintenances.clone(), self.lease_namespace.clone());
        on.map(&self.leases, move |lease| {
            let ours = lease.namespace().is_some_and(|known| known == namespace);
            let name = lease.name_any();
            name.strip_prefix(LEASE_PREFIX).filter(|_| ours).map(|node| keys(&all, node)).unwrap_or_default()
        });
        let (all, namespace) = (self.maintenances.clone(), self.lease_namespace.clone());
        on.map(&self.namespaces, move |known| match known.name_any() == namespace {
            true => all.all().iter().map(|object| Key::of(&**object)).collect(),
            false => Vec::new(),
        });
    }

    async fn observe(&self, key: &Key, pass: Pass) -> Result<Option<Observed>, Error> {
        let Some(object) = self.maintenances.get(key) else { return Ok(None) };
        let name = object.spec.node_name.clone();
        let mut node = self.nodes.get(&Key::cluster(&name));
        if node.is_none() {
            // A node that is gone ends the maintenance for good: not on the word of a cache that lags.
            let live = Api::<Node>::all(pass.client).get_opt(&name).await;
            node = live.map_err(|source| Error::api("read", format!("Node {name}"), source))?.map(Arc::new);
        }
        let pods = self.pods_on.get(&Key::cluster(&name));
        let uids = pods.iter().filter_map(|pod| pod.metadata.uid.clone());
        let answers = uids.filter_map(|uid| Some((uid.clone(), self.evictions.of(&uid)?))).collect();
        let others = self.maintenances.filtered(|known| known.is_in_force_on(&name));
        Ok(Some(Observed {
            now: pass.now,
            node,
            lease: self.leases.named(&self.lease_namespace, &format!("{LEASE_PREFIX}{name}")),
            lease_namespace: self.lease_namespace.clone(),
            lease_namespace_exists: self.namespaces.get(&Key::cluster(&self.lease_namespace)).is_some(),
            pods,
            answers,
            closed_by_another: others.iter().any(|known| known.metadata.uid != object.metadata.uid),
            object,
        }))
    }

    fn plan(observed: &Observed) -> Plan {
        super::plan::plan(observed)
    }
}
