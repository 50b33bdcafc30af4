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
    allocatable: Amounts,
    /// Pods with rules about other pods.
    ruled: usize,
    pub(crate) scored_cpu: i128,
    pub(crate) scored_memory: i128,
}

impl NodeInfo {
    pub(crate) fn new(node: Arc<Node>) -> Self {
        Self {
            pods: Vec::new(),
            used: Amounts::new(),
            allocatable: allocatable(&node),
            ruled: 0,
            scored_cpu: 0,
            scored_memory: 0,
            node,
        }
    }

    /// Takes over a newer state of the node.
    fn renew(&mut self, node: Arc<Node>) {
        self.allocatable = allocatable(&node);
        self.node = node;
    }

    /// Adds a pod that is, or is about to be, on this node.
    pub(crate) fn add(&mut self, pod: Arc<Pod>) {
        let request = requests(&pod);
        let (cpu, memory) = scored(&request);
        self.scored_cpu += cpu;
        self.scored_memory += memory;
        add(&mut self.used, &request);
        self.ruled += usize::from(has_rules(&pod));
        self.pods.push(pod);
    }

    /// Takes a pod away.
    fn remove(&mut self, uid: &str) -> Option<Arc<Pod>> {
        let at = self.pods.iter().position(|pod| pod.metadata.uid.as_deref() == Some(uid))?;
        let pod = self.pods.remove(at);
        let request = requests(&pod);
        let (cpu, memory) = scored(&request);
        self.scored_cpu -= cpu;
        self.scored_memory -= memory;
        for (name, amount) in request {
            *self.used.entry(name).or_default() -= amount;
        }
        self.ruled -= usize::from(has_rules(&pod));
        Some(pod)
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
        self.allocatable.get(resource).copied().unwrap_or(0)
    }
}

fn allocatable(node: &Node) -> Amounts {
    amounts(node.status.as_ref().and_then(|status| status.allocatable.as_ref().or(status.capacity.as_ref())))
}

fn has_rules(pod: &Pod) -> bool {
    let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref());
    affinity.is_some_and(|affinity| affinity.pod_affinity.is_some() || affinity.pod_anti_affinity.is_some())
}

/// Everything a placement depends on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<NodeInfo>,
    pub(crate) namespaces: BTreeMap<String, Labels>,
    pub(crate) claims: BTreeMap<(String, String), Arc<PersistentVolumeClaim>>,
    pub(crate) volumes: BTreeMap<String, Arc<PersistentVolume>>,
    pub(crate) classes: BTreeMap<String, Arc<StorageClass>>,
    /// Where each placed pod is, by uid.
    node_of: BTreeMap<String, String>,
    /// Placed pods whose node is not known, by uid.
    homeless: BTreeMap<String, Arc<Pod>>,
}

impl Cluster {
    /// Sorts the nodes by name and puts each unfinished, bound pod on its node.
    pub(crate) fn new(nodes: Vec<Arc<Node>>, pods: &[Arc<Pod>]) -> Self {
        let mut cluster = Self::default();
        nodes.into_iter().for_each(|node| cluster.set_node(node));
        for pod in pods {
            if let Some(node) = pods::node_name(pod)
                && !pods::is_finished(pod)
            {
                cluster.put(node, pod.clone());
            }
        }
        cluster
    }

    fn find(&self, node: &str) -> Result<usize, usize> {
        self.nodes.binary_search_by(|info| info.name().cmp(node))
    }

    /// Adds a node, or takes over its newer state.
    pub(crate) fn set_node(&mut self, node: Arc<Node>) {
        let name = node.metadata.name.clone().unwrap_or_default();
        match self.find(&name) {
            Ok(index) => self.nodes[index].renew(node),
            Err(index) => {
                self.nodes.insert(index, NodeInfo::new(node));
                let here = |uid: &String| self.node_of.get(uid) == Some(&name);
                let back: Vec<String> = self.homeless.keys().filter(|uid| here(uid)).cloned().collect();
                for pod in back.iter().filter_map(|uid| self.homeless.remove(uid)) {
                    self.nodes[index].add(pod);
                }
            }
        }
    }

    /// Removes a node; its pods stay known.
    pub(crate) fn remove_node(&mut self, name: &str) {
        if let Ok(index) = self.find(name) {
            let left = self.nodes.remove(index).pods;
            self.homeless.extend(left.into_iter().map(|pod| (uid(&pod), pod)));
        }
    }

    /// Puts a pod on a node, in place of its earlier state; where the node is not there, it waits for it.
    pub(crate) fn put(&mut self, node: &str, pod: Arc<Pod>) {
        let uid = uid(&pod);
        self.remove(&uid);
        match self.find(node) {
            Ok(index) => self.nodes[index].add(pod),
            Err(_) => drop(self.homeless.insert(uid.clone(), pod)),
        }
        // A pod that is only thought of has no uid, and there may be several.
        if !uid.is_empty() {
            self.node_of.insert(uid, node.to_owned());
        }
    }

    /// Whether a pod is on a node.
    pub(crate) fn has(&self, uid: &str) -> bool {
        self.node_of.contains_key(uid)
    }

    /// Takes a pod away from the node it is on.
    pub(crate) fn remove(&mut self, uid: &str) {
        let Some(node) = self.node_of.remove(uid) else { return };
        if let Ok(index) = self.find(&node) {
            self.nodes[index].remove(uid);
        }
        self.homeless.remove(uid);
    }

    /// Placed pods with rules about other pods, with the node each is on.
    pub(crate) fn ruled(&self) -> impl Iterator<Item = (&NodeInfo, &Arc<Pod>)> {
        let nodes = self.nodes.iter().filter(|info| info.ruled > 0);
        nodes.flat_map(|info| info.pods.iter().filter(|pod| has_rules(pod)).map(move |pod| (info, pod)))
    }

    /// All placed pods with the node each is on.
    pub(crate) fn placed(&self) -> impl Iterator<Item = (&NodeInfo, &Arc<Pod>)> {
        self.nodes.iter().flat_map(|info| info.pods.iter().map(move |pod| (info, pod)))
    }
}

fn uid(pod: &Pod) -> String {
    pod.metadata.uid.clone().unwrap_or_default()
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
