//! Where a pod may go because of its volumes.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};

use super::snapshot::{Cluster, NodeInfo};
use crate::pods;
use crate::storage::{SELECTED_NODE, is_bound, waits_for_consumer};

const NODE_CONFLICT: &str = "node(s) had volume node affinity conflict";
const NO_ZONE: &str = "node(s) had no available volume zone";
const CLASS_TOPOLOGY: &str = "node(s) didn't find available persistent volumes to bind";
const SINGLE_POD: &str =
    "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";

/// Labels of a volume that tie it to nodes of the same value (a volume's value may list several,
/// separated by `__`).
const ZONE_LABELS: [&str; 4] = [
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
];

/// The pod's volumes as far as they matter for placement.
#[derive(Clone, Debug, Default)]
pub(crate) struct Volumes {
    /// Volumes that exist and are bound.
    pub(crate) bound: Vec<Arc<PersistentVolume>>,
    /// Claims whose volume is made once a node is chosen.
    pub(crate) unbound: Vec<String>,
    /// Their classes' names.
    unbound_classes: Vec<String>,
    /// Some claim has been told its node and has no volume yet.
    pub(crate) in_progress: bool,
    /// A single-pod claim is used by another pod.
    taken: bool,
}

/// Looks at the pod's claims; `Err` is a reason that holds on every node.
pub(crate) fn look(pod: &Pod, cluster: &Cluster) -> Result<Volumes, String> {
    let mut volumes = Volumes::default();
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    for name in pods::claims(pod) {
        let Some(claim) = cluster.claims.get(&(namespace.clone(), name.clone())) else {
            return Err(format!("persistentvolumeclaim \"{name}\" not found"));
        };
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(format!("persistentvolumeclaim \"{name}\" is being deleted"));
        }
        volumes.taken |= is_taken(claim, pod, cluster);
        let volume = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).filter(|v| !v.is_empty());
        if is_bound(claim) {
            let volume = volume.unwrap_or_default();
            let Some(volume) = cluster.volumes.get(volume) else {
                return Err(format!(
                    "persistentvolumeclaim \"{name}\" bound to non-existent persistentvolume \"{volume}\""
                ));
            };
            volumes.bound.push(volume.clone());
            continue;
        }
        let class = claim.spec.as_ref().and_then(|s| s.storage_class_name.clone()).unwrap_or_default();
        let delayed = volume.is_none() && cluster.classes.get(&class).is_some_and(|c| waits_for_consumer(c));
        if !delayed {
            return Err("pod has unbound immediate PersistentVolumeClaims".to_owned());
        }
        volumes.in_progress |=
            claim.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(SELECTED_NODE));
        volumes.unbound.push(name);
        volumes.unbound_classes.push(class);
    }
    Ok(volumes)
}

fn is_taken(claim: &PersistentVolumeClaim, pod: &Pod, cluster: &Cluster) -> bool {
    let single = claim
        .spec
        .as_ref()
        .and_then(|s| s.access_modes.as_deref())
        .is_some_and(|modes| modes.iter().any(|m| m == "ReadWriteOncePod"));
    single
        && cluster.placed().any(|(_, other)| {
            other.metadata.uid != pod.metadata.uid
                && other.metadata.namespace == pod.metadata.namespace
                && pods::claims(other).iter().any(|c| Some(c) == claim.metadata.name.as_ref())
        })
}

/// Why the node cannot have the volumes, if it cannot.
pub(crate) fn refusal(volumes: &Volumes, info: &NodeInfo, cluster: &Cluster) -> Option<&'static str> {
    if volumes.taken {
        return Some(SINGLE_POD);
    }
    for volume in &volumes.bound {
        let required =
            volume.spec.as_ref().and_then(|s| s.node_affinity.as_ref()).and_then(|a| a.required.as_ref());
        if required.is_some_and(|required| !info.is_admitted_by(required)) {
            return Some(NODE_CONFLICT);
        }
        if !zone_suits(volume, info) {
            return Some(NO_ZONE);
        }
    }
    for class in &volumes.unbound_classes {
        let topologies = cluster.classes.get(class).and_then(|c| c.allowed_topologies.as_deref());
        let suits = topologies.is_none_or(|terms| {
            terms.is_empty()
                || terms.iter().any(|term| {
                    term.match_label_expressions
                        .iter()
                        .flatten()
                        .all(|e| info.label(&e.key).is_some_and(|v| e.values.iter().any(|w| w == v)))
                })
        });
        if !suits {
            return Some(CLASS_TOPOLOGY);
        }
    }
    None
}

fn zone_suits(volume: &PersistentVolume, info: &NodeInfo) -> bool {
    let labels = volume.metadata.labels.as_ref();
    ZONE_LABELS.iter().all(|key| match labels.and_then(|l| l.get(*key)) {
        Some(zones) => info.label(key).is_some_and(|zone| zones.split("__").any(|z| z == zone)),
        None => true,
    })
}
