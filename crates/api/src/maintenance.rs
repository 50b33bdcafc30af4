//! NodeMaintenance (`nm`) of medik8s, as OpenShift's documents use it (openshift.md §13,
//! migration-and-maintenance.md §8): a node is cordoned and drained while the object exists.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::macros::text_enum;

/// API group of NodeMaintenance.
pub const GROUP: &str = "nodemaintenance.medik8s.io";
/// Plural name of NodeMaintenance.
pub const PLURAL: &str = "nodemaintenances";
/// Namespace of the Leases of nodes that somebody works on.
pub const LEASE_NAMESPACE: &str = "medik8s-leases";
/// Holder of the Lease of a node in maintenance.
pub const LEASE_HOLDER: &str = "node-maintenance";
/// Prefix of the Lease of a node: `node-<name>`.
pub const LEASE_PREFIX: &str = "node-";
/// On nodes in maintenance, value `true`: fencing leaves the node alone.
pub const EXCLUDE_LABEL: &str = "remediation.medik8s.io/exclude-from-remediation";
/// Taint (NoSchedule) of nodes in maintenance.
pub const DRAIN_TAINT: &str = "medik8s.io/drain";
/// Taint (NoSchedule) of cordoned nodes.
pub const UNSCHEDULABLE_TAINT: &str = "node.kubernetes.io/unschedulable";
/// On NodeMaintenance: until the node is back in service.
pub const FINALIZER: &str = "foregroundDeleteNodeMaintenance";

/// The node and why.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "nodemaintenance.medik8s.io",
    version = "v1beta1",
    kind = "NodeMaintenance",
    plural = "nodemaintenances",
    singular = "nodemaintenance",
    shortname = "nm",
    status = "NodeMaintenanceStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "Puts a node into maintenance: as long as the object exists the node is cordoned and its pods and VMs leave it."
)]
#[serde(rename_all = "camelCase")]
pub struct NodeMaintenanceSpec {
    /// Name of the node; cannot be changed.
    pub node_name: String,
    /// Why, in the administrator's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

text_enum! {
    /// How far a maintenance is.
    pub enum MaintenancePhase {
        /// The node is being emptied.
        #[default]
        Running,
        /// The node is empty and closed.
        Succeeded,
        /// The node is gone, or somebody else has taken its Lease.
        Failed,
    }
}

/// Observed state of a maintenance.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeMaintenanceStatus {
    /// Phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<MaintenancePhase>,
    /// Percentage of the pods to be evicted that have left.
    #[serde(default)]
    pub drain_progress: u32,
    /// Time of the last write of this status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_update: Option<Time>,
    /// Last error of the drain or of the node's Lease; absent after success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Names of the pods still to leave.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pending_pods: Vec<String>,
    /// The pods still to leave, with namespaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pending_pods_refs: Vec<PodReference>,
    /// Pods on the node at the start.
    #[serde(rename = "totalpods", default)]
    pub total_pods: u32,
    /// Of these, pods to be evicted.
    #[serde(default)]
    pub eviction_pods: u32,
    /// Consecutive failures to keep the node's Lease.
    #[serde(default)]
    pub error_on_lease_count: u32,
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodReference {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl NodeMaintenance {
    /// Whether it keeps this node closed: neither failed nor being deleted.
    #[must_use]
    pub fn is_in_force_on(&self, node: &str) -> bool {
        let phase = self.status.as_ref().and_then(|status| status.phase);
        self.spec.node_name == node
            && self.metadata.deletion_timestamp.is_none()
            && phase != Some(MaintenancePhase::Failed)
    }
}
