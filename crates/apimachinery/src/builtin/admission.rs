//! Built-in admission that needs other objects; the caller looks them up.

use serde_json::Value;

use crate::status::Status;

/// What pod admission must know.
#[derive(Clone, Copy, Debug, Default)]
pub struct PodFacts<'a> {
    /// The ServiceAccount the pod names (or `default`), if it exists.
    pub service_account: Option<&'a Value>,
    /// All PriorityClasses.
    pub priority_classes: &'a [Value],
    /// Five random bytes for the token volume's name.
    pub entropy: [u8; 5],
}

/// ServiceAccount, Priority and default tolerations of a new pod.
///
/// # Errors
/// 403 with the texts of KS §12.2.
pub fn pod_create(pod: &mut Value, facts: PodFacts<'_>) -> Result<(), Status> {
    let _ = (pod, facts);
    todo!()
}

/// Name of the ServiceAccount a pod wants.
#[must_use]
pub fn service_account_of(pod: &Value) -> &str {
    pod["spec"]["serviceAccountName"].as_str().filter(|n| !n.is_empty()).unwrap_or("default")
}

/// New node: taint `node.kubernetes.io/not-ready:NoSchedule`.
pub fn node_create(node: &mut Value) {
    let _ = node;
    todo!()
}

/// New claim: default StorageClass, protection finalizer.
pub fn claim_create(claim: &mut Value, storage_classes: &[Value]) {
    let _ = (claim, storage_classes);
    todo!()
}

/// New volume: protection finalizer.
pub fn volume_create(volume: &mut Value) {
    let _ = volume;
    todo!()
}
