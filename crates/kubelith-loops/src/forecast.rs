//! What the scheduler would decide, asked without writing anything: the same filters and scores on a
//! picture of the cluster that the caller may change.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, Taint};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};

use crate::scheduler::place::{self, Verdict};
use crate::scheduler::snapshot::{Cluster, requests};
use crate::{pods, scheduler::filters};

/// Everything a placement depends on.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct Objects {
    pub nodes: Vec<Node>,
    pub pods: Vec<Pod>,
    pub namespaces: Vec<Namespace>,
    pub claims: Vec<PersistentVolumeClaim>,
    pub volumes: Vec<PersistentVolume>,
    pub classes: Vec<StorageClass>,
}

impl Objects {
    /// Reads everything from the API.
    ///
    /// # Errors
    /// When one of the lists cannot be read.
    pub async fn read(client: &Client) -> kube::Result<Self> {
        let all = ListParams::default();
        Ok(Self {
            nodes: Api::all(client.clone()).list(&all).await?.items,
            pods: Api::all(client.clone()).list(&all).await?.items,
            namespaces: Api::all(client.clone()).list(&all).await?.items,
            claims: Api::all(client.clone()).list(&all).await?.items,
            volumes: Api::all(client.clone()).list(&all).await?.items,
            classes: Api::all(client.clone()).list(&all).await?.items,
        })
    }
}

/// Where a pod would go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Landing {
    /// To one of these nodes, which are equally good; never empty.
    Nodes(Vec<String>),
    /// Nowhere.
    Nowhere {
        /// As the scheduler tells users.
        text: String,
        /// Why each node refuses.
        refusals: Vec<Refusal>,
    },
}

/// Why a node refuses a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The node.
    pub node: String,
    /// In the scheduler's words.
    pub reasons: Vec<String>,
    /// What the node lacks of each resource, in thousandths of its unit.
    pub missing: BTreeMap<String, i128>,
    /// The taint that the pod does not tolerate.
    pub taint: Option<String>,
}

/// A picture of the cluster.
#[derive(Clone, Debug)]
pub struct Forecast {
    cluster: Cluster,
}

impl Forecast {
    /// The cluster as it is.
    #[must_use]
    pub fn new(objects: &Objects) -> Self {
        let pods: Vec<Arc<Pod>> = objects.pods.iter().cloned().map(Arc::new).collect();
        let mut cluster = Cluster::new(objects.nodes.iter().cloned().map(Arc::new).collect(), &pods);
        let labels = |n: &Namespace| n.metadata.labels.clone().unwrap_or_default();
        cluster.namespaces = objects.namespaces.iter().map(|n| (n.name_any(), labels(n))).collect();
        let key = |c: &PersistentVolumeClaim| (c.namespace().unwrap_or_default(), c.name_any());
        cluster.claims = objects.claims.iter().map(|c| (key(c), Arc::new(c.clone()))).collect();
        cluster.volumes = objects.volumes.iter().map(|v| (v.name_any(), Arc::new(v.clone()))).collect();
        cluster.classes = objects.classes.iter().map(|c| (c.name_any(), Arc::new(c.clone()))).collect();
        Self { cluster }
    }

    /// Closes a node for new pods, as a cordon does.
    pub fn cordon(&mut self, node: &str) {
        for info in self.cluster.nodes.iter_mut().filter(|info| info.name() == node) {
            let spec = Arc::make_mut(&mut info.node).spec.get_or_insert_default();
            spec.unschedulable = Some(true);
            let taint = Taint {
                key: "node.kubernetes.io/unschedulable".to_owned(),
                effect: "NoSchedule".to_owned(),
                ..Taint::default()
            };
            let taints = spec.taints.get_or_insert_default();
            if taints.iter().all(|known| known.key != taint.key) {
                taints.push(taint);
            }
        }
    }

    /// Where the scheduler would put the pod now.
    #[must_use]
    pub fn land(&self, pod: &Pod) -> Landing {
        match place::best(pod, &self.cluster) {
            Ok(nodes) => Landing::Nodes(nodes),
            Err(Verdict::Nowhere(text)) => Landing::Nowhere { text, refusals: self.refusals(pod) },
            Err(Verdict::AwaitVolumes | Verdict::Node { .. }) => {
                let text = "the volumes of its disks are being made".to_owned();
                Landing::Nowhere { text, refusals: Vec::new() }
            }
        }
    }

    fn refusals(&self, pod: &Pod) -> Vec<Refusal> {
        let request = requests(pod);
        let refusals = place::refusals(pod, &self.cluster).into_iter();
        let found = refusals.filter_map(|(node, reasons)| {
            let info = self.cluster.nodes.iter().find(|info| info.name() == node)?;
            let lacks = |resource: &String, asked: &i128| {
                let used = info.used.get(resource).copied().unwrap_or(0);
                Some(used + asked - info.allocatable(resource)).filter(|more| *asked > 0 && *more > 0)
            };
            let missing = request.iter().filter_map(|(r, asked)| Some((r.clone(), lacks(r, asked)?)));
            let taint = filters::untolerated(pod, info).map(|taint| match &taint.value {
                Some(value) => format!("{}={value}:{}", taint.key, taint.effect),
                None => format!("{}:{}", taint.key, taint.effect),
            });
            Some(Refusal { missing: missing.collect(), taint, node, reasons })
        });
        found.collect()
    }

    /// Puts a pod on a node.
    pub fn put(&mut self, node: &str, pod: Pod) {
        self.cluster.put(node, Arc::new(pod));
    }

    /// Takes a pod away.
    pub fn remove(&mut self, uid: &str) {
        self.cluster.remove(uid);
    }

    /// Node of a placed pod.
    #[must_use]
    pub fn node_of(pod: &Pod) -> Option<&str> {
        pods::node_name(pod)
    }
}
