//! What happens with claims and volumes, decided from all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use holdfast_apimachinery::labels;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use super::provision::{LOCAL_PROVISIONER, is_built_in};
use super::{
    CLAIM_PROTECTION, PROVISIONED_BY, PROVISIONER, SELECTED_NODE, VOLUME_PROTECTION, waits_for_consumer,
};
use crate::{milli_or_zero, pods};

type Claim = Arc<PersistentVolumeClaim>;
type Volume = Arc<PersistentVolume>;

/// Everything that decides about volumes.
pub(crate) struct World {
    pub(crate) claims: Vec<Claim>,
    pub(crate) volumes: Vec<Volume>,
    pub(crate) classes: Vec<Arc<StorageClass>>,
    pub(crate) pods: Vec<Arc<Pod>>,
    pub(crate) nodes: Vec<Arc<Node>>,
    /// Whether this process makes volumes of the built-in classes.
    pub(crate) provisions: bool,
}

/// One write.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// Reserve the volume for the claim.
    BindVolume {
        volume: Volume,
        claim: Claim,
    },
    VolumePhase {
        volume: Volume,
        phase: &'static str,
    },
    /// Point the claim to the volume reserved for it.
    BindClaim {
        claim: Claim,
        volume: Volume,
    },
    ClaimStatus {
        claim: Claim,
        status: Value,
    },
    /// Tell an external provisioner that the claim is its business.
    Annotate {
        claim: Claim,
        provisioner: String,
    },
    /// The node a claim was meant for is gone.
    ForgetNode {
        claim: Claim,
    },
    /// Make a volume, on the node if one is given.
    Provision {
        claim: Claim,
        class: Arc<StorageClass>,
        node: Option<String>,
    },
    /// Remove data and volume.
    Reclaim {
        volume: Volume,
    },
    UnprotectClaim {
        claim: Claim,
    },
    UnprotectVolume {
        volume: Volume,
    },
    /// Only an event.
    Explain {
        claim: Claim,
        reason: &'static str,
        message: String,
    },
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |c: &Claim| format!("{}/{}", c.namespace().unwrap_or_default(), c.name_any());
        match self {
            Self::BindVolume { volume, claim } => {
                write!(f, "reserve volume {} for {}", volume.name_any(), of(claim))
            }
            Self::VolumePhase { volume, phase, .. } => write!(f, "volume {} is {phase}", volume.name_any()),
            Self::BindClaim { claim, volume } => write!(f, "bind {} to {}", of(claim), volume.name_any()),
            Self::ClaimStatus { claim, status } => {
                write!(f, "claim {} is {}", of(claim), status["phase"].as_str().unwrap_or_default())
            }
            Self::Annotate { claim, provisioner } => write!(f, "leave {} to {provisioner}", of(claim)),
            Self::ForgetNode { claim } => write!(f, "forget the node of {}", of(claim)),
            Self::Provision { claim, node, .. } => {
                write!(f, "make a volume for {} on {}", of(claim), node.as_deref().unwrap_or("all nodes"))
            }
            Self::Reclaim { volume } => write!(f, "remove volume {}", volume.name_any()),
            Self::UnprotectClaim { claim } => write!(f, "unprotect {}", of(claim)),
            Self::UnprotectVolume { volume } => write!(f, "unprotect {}", volume.name_any()),
            Self::Explain { claim, reason, .. } => write!(f, "tell {} {reason}", of(claim)),
        }
    }
}

impl World {
    /// The next writes. Each object is written at most once in a pass; its next step follows from the
    /// change that this write causes.
    pub(crate) fn plan(&self) -> Vec<Act> {
        Known::of(self).plan()
    }
}

/// Namespace and name.
type Key<'w> = (Option<&'w str>, Option<&'w str>);

fn key(meta: &ObjectMeta) -> Key<'_> {
    (meta.namespace.as_deref(), meta.name.as_deref())
}

/// The world with what each claim and volume asks for at hand: the picture is looked through once, not once
/// for each of them.
struct Known<'w> {
    world: &'w World,
    by_name: BTreeMap<&'w str, &'w Volume>,
    /// Volumes that are some claim's, by the claim's uid.
    held: BTreeMap<&'w str, &'w Volume>,
    /// Volumes that are reserved for a claim by its name.
    reserved: BTreeMap<Key<'w>, &'w Volume>,
    /// Volumes that are nobody's.
    free: Vec<&'w Volume>,
    claims: BTreeMap<Key<'w>, &'w Claim>,
    /// Namespaces and names of claims that pods on nodes still need.
    used: BTreeSet<(Option<&'w str>, String)>,
}

impl<'w> Known<'w> {
    fn of(world: &'w World) -> Self {
        let mut known = Self {
            by_name: world.volumes.iter().filter_map(|v| Some((v.metadata.name.as_deref()?, v))).collect(),
            held: BTreeMap::new(),
            reserved: BTreeMap::new(),
            free: Vec::new(),
            claims: world.claims.iter().map(|claim| (key(&claim.metadata), claim)).collect(),
            used: BTreeSet::new(),
            world,
        };
        for volume in &world.volumes {
            match volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) {
                None => known.free.push(volume),
                Some(holder) => {
                    let place = (holder.namespace.as_deref(), holder.name.as_deref());
                    match holder.uid.as_deref() {
                        Some(uid) => known.held.entry(uid).or_insert(volume),
                        None => known.reserved.entry(place).or_insert(volume),
                    };
                }
            }
        }
        if world.claims.iter().any(|claim| claim.metadata.deletion_timestamp.is_some()) {
            let running = |pod: &&Arc<Pod>| pods::node_name(pod).is_some() && !pods::is_finished(pod);
            for pod in world.pods.iter().filter(running) {
                let namespace = pod.metadata.namespace.as_deref();
                known.used.extend(pods::claims(pod).into_iter().map(|claim| (namespace, claim)));
            }
        }
        known
    }

    fn plan(&self) -> Vec<Act> {
        let mut acts = Vec::new();
        let mut claims: Vec<&Claim> = self.world.claims.iter().collect();
        claims.sort_by_key(|c| (c.metadata.creation_timestamp.as_ref(), key(&c.metadata)));
        let mut taken: BTreeSet<String> = BTreeSet::new();
        for claim in claims {
            if claim.metadata.deletion_timestamp.is_some() {
                if claim.finalizers().iter().any(|f| f == CLAIM_PROTECTION) && !self.is_used(claim) {
                    acts.push(Act::UnprotectClaim { claim: claim.clone() });
                }
                continue;
            }
            acts.extend(self.plan_claim(claim, &mut taken));
        }
        for volume in &self.world.volumes {
            if !taken.contains(volume.metadata.name.as_deref().unwrap_or_default()) {
                acts.extend(self.plan_volume(volume));
            }
        }
        acts
    }

    /// Whether a pod on a node still needs the claim.
    fn is_used(&self, claim: &PersistentVolumeClaim) -> bool {
        self.used.contains(&(claim.metadata.namespace.as_deref(), claim.name_any()))
    }

    fn plan_claim(&self, claim: &Claim, taken: &mut BTreeSet<String>) -> Option<Act> {
        let named = claim.spec.as_ref().and_then(|s| s.volume_name.clone()).filter(|v| !v.is_empty());
        if let Some(name) = named {
            let Some(volume) = self.by_name.get(name.as_str()).copied() else {
                let lost = phase_of(claim) == "Bound";
                return lost
                    .then(|| Act::ClaimStatus { claim: claim.clone(), status: json!({"phase": "Lost"}) });
            };
            if refers_to(volume, claim) {
                return settle_claim(claim, volume);
            }
            // The user asked for this volume by name.
            let free =
                volume.spec.as_ref().is_none_or(|s| s.claim_ref.is_none()) || is_reserved_for(volume, claim);
            taken.insert(name);
            return (free && volume.metadata.deletion_timestamp.is_none())
                .then(|| Act::BindVolume { volume: volume.clone(), claim: claim.clone() });
        }
        if let Some(volume) = claim.metadata.uid.as_deref().and_then(|uid| self.held.get(uid)) {
            return Some(Act::BindClaim { claim: claim.clone(), volume: (*volume).clone() });
        }
        let class = self.class_of(claim);
        let selected = claim.annotations().get(SELECTED_NODE);
        let delayed = class.as_ref().is_some_and(|c| waits_for_consumer(c)) && selected.is_none();
        let best = self.best_volume(claim, taken, selected.map(String::as_str));
        if let Some(volume) = best.filter(|v| !delayed || is_reserved_for(v, claim)) {
            taken.insert(volume.name_any());
            return Some(Act::BindVolume { volume: volume.clone(), claim: claim.clone() });
        }
        if delayed {
            return pending(
                claim,
                "WaitForFirstConsumer",
                "waiting for first consumer to be created before binding".to_owned(),
            );
        }
        self.plan_provision(claim, class, selected.cloned())
    }

    fn class_of(&self, claim: &PersistentVolumeClaim) -> Option<Arc<StorageClass>> {
        let name = claim.spec.as_ref()?.storage_class_name.as_deref()?;
        self.world.classes.iter().find(|c| c.name_any() == name).cloned()
    }

    fn plan_provision(
        &self,
        claim: &Claim,
        class: Option<Arc<StorageClass>>,
        selected: Option<String>,
    ) -> Option<Act> {
        let name = claim.spec.as_ref().and_then(|s| s.storage_class_name.clone()).unwrap_or_default();
        let Some(class) = class else {
            let (reason, message) = if name.is_empty() {
                (
                    "FailedBinding",
                    "no persistent volumes available for this claim and no storage class is set".to_owned(),
                )
            } else {
                ("ProvisioningFailed", format!("storageclass.storage.k8s.io \"{name}\" not found"))
            };
            return pending(claim, reason, message);
        };
        if class.provisioner == "kubernetes.io/no-provisioner" {
            return pending(
                claim,
                "FailedBinding",
                "no persistent volumes available for this claim".to_owned(),
            );
        }
        if !is_built_in(&class.provisioner) || !self.world.provisions {
            let told = claim.annotations().get(PROVISIONER) == Some(&class.provisioner);
            return (!told)
                .then(|| Act::Annotate { claim: claim.clone(), provisioner: class.provisioner.clone() });
        }
        if let Some(node) = &selected
            && !self.world.nodes.iter().any(|n| n.name_any() == *node)
        {
            return Some(Act::ForgetNode { claim: claim.clone() });
        }
        let node = match (selected, class.provisioner == LOCAL_PROVISIONER) {
            (_, false) => None,
            (Some(node), true) => Some(node),
            (None, true) => {
                let Some(node) = self.emptiest_node() else {
                    return pending(
                        claim,
                        "ProvisioningFailed",
                        "no node is ready to hold a local volume".to_owned(),
                    );
                };
                Some(node)
            }
        };
        Some(Act::Provision { claim: claim.clone(), class, node })
    }

    /// The ready, uncordoned node with the fewest local bytes promised.
    fn emptiest_node(&self) -> Option<String> {
        let mut promised: BTreeMap<String, i128> = BTreeMap::new();
        for node in self.world.nodes.iter().filter(|n| takes_volumes(n)) {
            promised.insert(node.name_any(), 0);
        }
        for volume in &self.world.volumes {
            if volume.annotations().get(PROVISIONED_BY).map(String::as_str) != Some(LOCAL_PROVISIONER) {
                continue;
            }
            if let Some(sum) = super::provision::node_of(volume).and_then(|node| promised.get_mut(&node)) {
                *sum += capacity(volume);
            }
        }
        promised.into_iter().min_by_key(|(name, bytes)| (*bytes, name.clone())).map(|(name, _)| name)
    }

    /// The volume reserved for the claim, else the smallest that fits.
    fn best_volume(&self, claim: &Claim, taken: &BTreeSet<String>, node: Option<&str>) -> Option<&Volume> {
        if let Some(reserved) = self.reserved.get(&key(&claim.metadata)) {
            return Some(reserved);
        }
        let node = node.and_then(|name| self.world.nodes.iter().find(|n| n.name_any() == name));
        self.free
            .iter()
            .copied()
            .filter(|v| !taken.contains(&v.name_any()) && fits(v, claim))
            .filter(|v| node.is_none_or(|node| reaches(v, node)))
            .min_by_key(|v| (capacity(v), v.name_any()))
    }

    fn plan_volume(&self, volume: &Volume) -> Option<Act> {
        let phase = volume.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
        let deleting = volume.metadata.deletion_timestamp.is_some();
        let holder = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
        let claim = holder.and_then(|r| {
            let claim = self.claims.get(&(r.namespace.as_deref(), r.name.as_deref()))?;
            (r.uid.is_none() || claim.metadata.uid == r.uid).then_some(*claim)
        });
        let set = |phase: &'static str| Some(Act::VolumePhase { volume: volume.clone(), phase });
        let is_claimed = holder.is_some_and(|r| r.uid.is_some());
        match (is_claimed, claim) {
            (true, Some(claim)) => {
                let points_back =
                    claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()) == Some(&volume.name_any());
                (points_back && phase != "Bound").then(|| set("Bound")).flatten()
            }
            (true, None) if phase == "Released" || phase == "Failed" => self.plan_released(volume, deleting),
            // A volume just made has its reference before the claim's cache may show the claim.
            (true, None)
                if phase.is_empty() || phase == "Pending" || phase == "Available" || phase == "Bound" =>
            {
                set("Released")
            }
            (true, None) => None,
            (false, _) if deleting => unprotect(volume),
            (false, _) if phase != "Available" => set("Available"),
            (false, _) => None,
        }
    }

    fn plan_released(&self, volume: &Volume, deleting: bool) -> Option<Act> {
        let policy = volume
            .spec
            .as_ref()
            .and_then(|s| s.persistent_volume_reclaim_policy.as_deref())
            .unwrap_or("Retain");
        let ours = volume.annotations().get(PROVISIONED_BY).is_some_and(|p| is_built_in(p));
        if policy == "Delete" && ours {
            return self.world.provisions.then(|| Act::Reclaim { volume: volume.clone() });
        }
        deleting.then(|| unprotect(volume)).flatten()
    }
}

fn unprotect(volume: &Volume) -> Option<Act> {
    let held = volume.finalizers().iter().any(|f| f == VOLUME_PROTECTION);
    held.then(|| Act::UnprotectVolume { volume: volume.clone() })
}

fn phase_of(claim: &PersistentVolumeClaim) -> &str {
    claim.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

/// Phase Pending first, the reason as an event afterwards.
fn pending(claim: &Claim, reason: &'static str, message: String) -> Option<Act> {
    if phase_of(claim) != "Pending" {
        return Some(Act::ClaimStatus { claim: claim.clone(), status: json!({"phase": "Pending"}) });
    }
    Some(Act::Explain { claim: claim.clone(), reason, message })
}

/// The volume is this very claim's.
fn refers_to(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let holder = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
    holder.is_some_and(|r| r.uid.is_some() && r.uid == claim.uid())
}

/// An administrator reserved the volume for a claim of this name.
fn is_reserved_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let holder = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
    holder.is_some_and(|r| {
        r.uid.is_none() && r.namespace == claim.namespace() && r.name == Some(claim.name_any())
    })
}

/// Status of a claim whose volume is found.
fn settle_claim(claim: &Claim, volume: &PersistentVolume) -> Option<Act> {
    let spec = volume.spec.as_ref();
    let capacity = spec.and_then(|s| s.capacity.clone()).unwrap_or_default();
    let modes = spec.and_then(|s| s.access_modes.clone()).unwrap_or_default();
    let status = claim.status.clone().unwrap_or_default();
    let same = status.phase.as_deref() == Some("Bound")
        && status.capacity.as_ref() == Some(&capacity)
        && status.access_modes.as_ref() == Some(&modes);
    let is_complete = claim.annotations().contains_key(super::BIND_COMPLETED);
    if !is_complete {
        return Some(Act::BindClaim { claim: claim.clone(), volume: Arc::new(volume.clone()) });
    }
    (!same).then(|| Act::ClaimStatus {
        claim: claim.clone(),
        status: json!({"phase": "Bound", "accessModes": modes, "capacity": capacity}),
    })
}

fn capacity(volume: &PersistentVolume) -> i128 {
    let amounts = volume.spec.as_ref().and_then(|s| s.capacity.as_ref());
    amounts.and_then(|c| c.get("storage")).map_or(0, milli_or_zero)
}

/// Bytes (thousandths) a claim asks for.
fn request(claim: &PersistentVolumeClaim) -> i128 {
    let resources = claim.spec.as_ref().and_then(|s| s.resources.as_ref());
    let requests = resources.and_then(|r| r.requests.as_ref());
    requests.and_then(|r| r.get("storage")).map_or(0, milli_or_zero)
}

/// Whether a free volume satisfies a claim.
fn fits(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let (Some(has), Some(wants)) = (volume.spec.as_ref(), claim.spec.as_ref()) else {
        return false;
    };
    let modes = has.access_modes.as_deref().unwrap_or_default();
    let free = has.claim_ref.is_none() && volume.metadata.deletion_timestamp.is_none();
    let mode = |m: &Option<String>| m.clone().unwrap_or_else(|| "Filesystem".to_owned());
    // A volume the provisioner made for another claim must never be taken, even if its claim is gone.
    let phase = volume.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
    free && !matches!(phase, "Released" | "Failed")
        && has.storage_class_name.clone().unwrap_or_default()
            == wants.storage_class_name.clone().unwrap_or_default()
        && mode(&has.volume_mode) == mode(&wants.volume_mode)
        && wants.access_modes.iter().flatten().all(|m| modes.contains(m))
        && capacity(volume) >= request(claim)
        && wants.selector.as_ref().is_none_or(|s| labels::selects(Some(s), volume.metadata.labels.as_ref()))
}

/// Whether the volume may be used on the node.
fn reaches(volume: &PersistentVolume, node: &Node) -> bool {
    let required =
        volume.spec.as_ref().and_then(|s| s.node_affinity.as_ref()).and_then(|a| a.required.as_ref());
    required.is_none_or(|required| labels::admits(required, &node.name_any(), node.metadata.labels.as_ref()))
}

fn takes_volumes(node: &Node) -> bool {
    let cordoned = node.spec.as_ref().and_then(|s| s.unschedulable).unwrap_or(false);
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    !cordoned && conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
