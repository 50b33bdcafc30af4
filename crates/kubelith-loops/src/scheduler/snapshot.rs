//! The picture the scheduler decides on: nodes with their pods and what those use, claims and volumes.

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_apimachinery::labels::{self, Labels};
use k8s_openapi::api::core::v1::{
    Container, Node, NodeSelector, NodeSelectorTerm, PersistentVolume, PersistentVolumeClaim, Pod,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::milli_or_zero;
use crate::pods;

/// Amounts per resource name, in thousandths of its unit.
pub(crate) type Amounts = BTreeMap<String, i128>;

/// A pod counts at least this much CPU (thousandths) when nodes are compared.
const SCORED_CPU_MIN: i128 = 100;
/// A pod counts at least this much memory (thousandths of a byte) when nodes are compared.
const SCORED_MEMORY_MIN: i128 = 200 * 1024 * 1024 * 1000;

/// A node and what runs there.
#[derive(Clone, Debug)]
pub(crate) struct NodeInfo {
    pub(crate) node: Arc<Node>,
    pub(crate) pods: Vec<Arc<Pod>>,
    pub(crate) used: Amounts,
    pub(crate) scored_cpu: i128,
    pub(crate) scored_memory: i128,
}

impl NodeInfo {
    pub(crate) fn new(node: Arc<Node>) -> Self {
        Self { node, pods: Vec::new(), used: Amounts::new(), scored_cpu: 0, scored_memory: 0 }
    }

    /// Adds a pod that is, or is about to be, on this node.
    pub(crate) fn add(&mut self, pod: Arc<Pod>) {
        let request = requests(&pod);
        let (cpu, memory) = scored(&request);
        self.scored_cpu += cpu;
        self.scored_memory += memory;
        add(&mut self.used, &request);
        self.pods.push(pod);
    }

    pub(crate) fn name(&self) -> &str {
        self.node.metadata.name.as_deref().unwrap_or_default()
    }

    pub(crate) fn labels(&self) -> Option<&Labels> {
        self.node.metadata.labels.as_ref()
    }

    pub(crate) fn label(&self, key: &str) -> Option<&str> {
        self.labels()?.get(key).map(String::as_str)
    }

    /// Whether a required node selector admits this node.
    pub(crate) fn is_admitted_by(&self, selector: &NodeSelector) -> bool {
        labels::admits(selector, self.name(), self.labels())
    }

    /// Whether every requirement of the term holds here.
    pub(crate) fn is_in(&self, term: &NodeSelectorTerm) -> bool {
        labels::term_admits(term, self.name(), self.labels())
    }

    /// Allocatable amount of a resource in thousandths; capacity where allocatable is not reported.
    pub(crate) fn allocatable(&self, resource: &str) -> i128 {
        let status = self.node.status.as_ref();
        status
            .and_then(|s| s.allocatable.as_ref().or(s.capacity.as_ref()))
            .and_then(|amounts| amounts.get(resource))
            .map_or(0, milli_or_zero)
    }
}

/// Everything a placement depends on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<NodeInfo>,
    pub(crate) namespaces: BTreeMap<String, Labels>,
    pub(crate) claims: BTreeMap<(String, String), Arc<PersistentVolumeClaim>>,
    pub(crate) volumes: BTreeMap<String, Arc<PersistentVolume>>,
    pub(crate) classes: BTreeMap<String, Arc<StorageClass>>,
}

impl Cluster {
    /// Sorts the nodes by name and puts each unfinished, bound pod on its node.
    pub(crate) fn new(nodes: Vec<Arc<Node>>, pods: &[Arc<Pod>]) -> Self {
        let mut infos: Vec<NodeInfo> = nodes.into_iter().map(NodeInfo::new).collect();
        infos.sort_by(|a, b| a.name().cmp(b.name()));
        let mut cluster = Self { nodes: infos, ..Self::default() };
        for pod in pods {
            if let Some(node) = pods::node_name(pod)
                && !pods::is_finished(pod)
            {
                cluster.put(node, pod.clone());
            }
        }
        cluster
    }

    /// Puts a pod on a node; a node that is gone is ignored.
    pub(crate) fn put(&mut self, node: &str, pod: Arc<Pod>) {
        if let Ok(index) = self.nodes.binary_search_by(|info| info.name().cmp(node)) {
            self.nodes[index].add(pod);
        }
    }

    /// Takes a pod away from the node it is on.
    pub(crate) fn remove(&mut self, uid: &str) {
        let is = |pod: &Arc<Pod>| pod.metadata.uid.as_deref() == Some(uid);
        for info in self.nodes.iter_mut().filter(|info| info.pods.iter().any(is)) {
            let rest = std::mem::replace(info, NodeInfo::new(info.node.clone())).pods;
            rest.into_iter().filter(|pod| !is(pod)).for_each(|pod| info.add(pod));
        }
    }

    /// All placed pods with the node each is on.
    pub(crate) fn placed(&self) -> impl Iterator<Item = (&NodeInfo, &Arc<Pod>)> {
        self.nodes.iter().flat_map(|info| info.pods.iter().map(move |pod| (info, pod)))
    }
}

fn add(sum: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        *sum.entry(name.clone()).or_default() += amount;
    }
}

fn max(sum: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        let entry = sum.entry(name.clone()).or_default();
        *entry = (*entry).max(*amount);
    }
}

fn amounts(quantities: Option<&BTreeMap<String, Quantity>>) -> Amounts {
    quantities.into_iter().flatten().map(|(name, quantity)| (name.clone(), milli_or_zero(quantity))).collect()
}

fn container_requests(container: &Container) -> Amounts {
    amounts(container.resources.as_ref().and_then(|r| r.requests.as_ref()))
}

/// What a pod asks for: max(containers + sidecars, each init container with the sidecars before it),
/// plus overhead.
pub(crate) fn requests(pod: &Pod) -> Amounts {
    let Some(spec) = &pod.spec else {
        return Amounts::new();
    };
    let mut total = Amounts::new();
    for container in &spec.containers {
        add(&mut total, &container_requests(container));
    }
    let mut sidecars = Amounts::new();
    let mut init = Amounts::new();
    for container in spec.init_containers.iter().flatten() {
        let request = container_requests(container);
        if container.restart_policy.as_deref() == Some("Always") {
            add(&mut sidecars, &request);
            max(&mut init, &sidecars);
        } else {
            let mut peak = sidecars.clone();
            add(&mut peak, &request);
            max(&mut init, &peak);
        }
    }
    add(&mut total, &sidecars);
    max(&mut total, &init);
    add(&mut total, &amounts(spec.overhead.as_ref()));
    total
}

/// CPU and memory a pod counts for when nodes are compared.
pub(crate) fn scored(request: &Amounts) -> (i128, i128) {
    let of = |name: &str, least: i128| match request.get(name) {
        Some(amount) if *amount > 0 => *amount,
        _ => least,
    };
    (of("cpu", SCORED_CPU_MIN), of("memory", SCORED_MEMORY_MIN))
}
