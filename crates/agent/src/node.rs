//! Labels of the Node object that the agent publishes: that VMs may be placed here, the accelerator,
//! and the CPU models guests can have (hypervisor.md §3, vm-lifecycle.md §5.3).

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_api::names::label;
use holdfast_hypervisor::definition::Accelerator;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use crate::cluster::{Cluster, FIELD_MANAGER};

/// Label with the node's accelerator: `kvm` or `tcg`.
pub const ACCELERATOR: &str = "internal.virtualization.deckhouse.io/accelerator";

/// Models that QEMU's translator has with all their features (hypervisor.md §6).
const TCG_MODELS: &[&str] = &[
    "Conroe",
    "Nehalem",
    "Opteron_G1",
    "Opteron_G2",
    "Penryn",
    "Westmere",
    "core2duo",
    "kvm64",
    "max",
    "qemu64",
];
/// Models every processor with KVM can give.
const KVM_MODELS: &[&str] = &["kvm64", "qemu64"];

/// The labels this node should have.
pub fn labels(accelerator: Accelerator) -> BTreeMap<String, String> {
    let models = match accelerator {
        Accelerator::Tcg => TCG_MODELS,
        Accelerator::Kvm => KVM_MODELS,
    };
    let mut labels: BTreeMap<String, String> = models
        .iter()
        .map(|model| (format!("{}{model}", label::CPU_MODEL_PREFIX), "true".to_owned()))
        .collect();
    labels.insert(label::SCHEDULABLE.into(), "true".into());
    labels.insert(ACCELERATOR.into(), accelerator.as_str().into());
    labels
}

/// Keeps the labels on the Node, also when it is deleted and registers again.
pub async fn keep_labels(cluster: Cluster, node: String, accelerator: Accelerator) {
    let wanted = labels(accelerator);
    let api: Api<Node> = Api::all(cluster.client.clone());
    let mut changes = cluster.changes();
    loop {
        let present = cluster.nodes.all().into_iter().find(|n| n.name_any() == node);
        let lacking = present.is_some_and(|present| {
            wanted.iter().any(|(key, value)| present.labels().get(key) != Some(value))
        });
        if lacking {
            let patch = json!({ "metadata": { "labels": wanted } });
            let parameters =
                PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
            if let Err(error) = api.patch(&node, &parameters, &Patch::Merge(patch)).await {
                tracing::warn!(%node, %error, "the node's labels could not be written; trying again");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}
