//! The scheduler's picture of the cluster, brought up to date change by change: what a pass costs follows the
//! number of changes, not the number of pods.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use kube::ResourceExt as _;

use super::snapshot::Cluster;
use super::{is_waiting, uid};
use crate::cache::{Caches, Changes, Key, key};
use crate::pods;

/// The picture.
pub(super) struct Picture {
    caches: Arc<Caches>,
    pods: Changes<Pod>,
    nodes: Changes<Node>,
    claims: Changes<PersistentVolumeClaim>,
    volumes: Changes<PersistentVolume>,
    /// Versions of the caches of namespaces and classes that were last looked at.
    small: u64,
    pub(super) cluster: Cluster,
    /// Pods that the scheduler has to find a node for.
    pub(super) waiting: BTreeMap<Key, Arc<Pod>>,
    /// Uid of the pod that was last seen under a name.
    seen: BTreeMap<Key, String>,
}

impl Picture {
    pub(super) fn new(caches: Arc<Caches>) -> Self {
        Self {
            pods: caches.pods.changes(),
            nodes: caches.nodes.changes(),
            claims: caches.claims.changes(),
            volumes: caches.volumes.changes(),
            small: 0,
            cluster: Cluster::default(),
            waiting: BTreeMap::new(),
            seen: BTreeMap::new(),
            caches,
        }
    }

    /// Takes over what has changed since the last time.
    pub(super) fn refresh(&mut self) {
        for ((_, name), node) in self.nodes.take() {
            match node {
                Some(node) => self.cluster.set_node(node),
                None => self.cluster.remove_node(&name),
            }
        }
        for (key, pod) in self.pods.take() {
            self.take_pod(key, pod);
        }
        for (key, claim) in self.claims.take() {
            change(&mut self.cluster.claims, key, claim);
        }
        for ((_, name), volume) in self.volumes.take() {
            change(&mut self.cluster.volumes, name, volume);
        }
        self.refresh_small();
    }

    fn take_pod(&mut self, key: Key, pod: Option<Arc<Pod>>) {
        let now = pod.as_deref().map(uid);
        if let Some(before) = self.seen.remove(&key).filter(|before| Some(before) != now.as_ref()) {
            self.cluster.remove(&before);
        }
        self.waiting.remove(&key);
        let (Some(pod), Some(now)) = (pod, now) else { return };
        match pods::node_name(&pod).map(str::to_owned) {
            Some(node) if !pods::is_finished(&pod) => self.cluster.put(&node, pod.clone()),
            _ => self.cluster.remove(&now),
        }
        if is_waiting(&pod) {
            self.waiting.insert(key.clone(), pod);
        }
        self.seen.insert(key, now);
    }

    /// Forgets that a pod was assumed to be on a node: only what the cache shows counts, be it that the pod is gone.
    pub(super) fn forget(&mut self, pod: &Pod) {
        self.cluster.remove(&uid(pod));
        let key = key(pod);
        let shown = self.caches.pods.get(Some(&key.0), &key.1);
        self.take_pod(key, shown);
    }

    /// Of namespaces and classes there are few.
    fn refresh_small(&mut self) {
        let (namespaces, classes) = (&self.caches.namespaces, &self.caches.classes);
        let version = namespaces.version() + classes.version();
        if std::mem::replace(&mut self.small, version) == version {
            return;
        }
        let all = namespaces.all();
        self.cluster.namespaces =
            all.iter().map(|n| (n.name_any(), n.metadata.labels.clone().unwrap_or_default())).collect();
        self.cluster.classes = classes.all().into_iter().map(|c| (c.name_any(), c)).collect();
    }
}

fn change<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}
