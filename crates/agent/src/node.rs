//! Labels of the Node object that the agent publishes: that VMs may be placed here, the accelerator,
//! the version of QEMU, and the CPU models guests can have (hypervisor.md §3, §16, vm-lifecycle.md
//! §5.3).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_api::names::label;
use holdfast_hypervisor::definition::Accelerator;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use crate::cluster::{Cluster, FIELD_MANAGER};
use crate::host::Host;

/// Label with the node's accelerator: `kvm` or `tcg`.
pub const ACCELERATOR: &str = "internal.virtualization.deckhouse.io/accelerator";

/// Label with the version of the node's QEMU: machine types up to it can run here.
pub const QEMU_VERSION: &str = "internal.virtualization.deckhouse.io/qemu-version";

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

/// The lowest version of QEMU among this node's own and what the nodes that run VMs say. A guest
/// started with the machine type of that version can move to every one of them.
pub fn lowest_qemu<'n>(own: &str, nodes: impl IntoIterator<Item = &'n Node>) -> String {
    let order = |version: &str| -> Vec<u32> {
        version.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
    };
    let able = |node: &&Node| node.labels().get(label::SCHEDULABLE).is_some_and(|value| value == "true");
    let published = nodes.into_iter().filter(able).filter_map(|node| node.labels().get(QEMU_VERSION));
    published
        .map(String::as_str)
        .filter(|version| order(version).len() >= 2)
        .chain([own])
        .min_by_key(|version| order(version))
        .unwrap_or(own)
        .to_owned()
}

/// The labels this node should have. `qemu`: version of its QEMU, where it is known.
pub fn labels(accelerator: Accelerator, qemu: Option<&str>) -> BTreeMap<String, String> {
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
    labels.extend(qemu.map(|version| (QEMU_VERSION.to_owned(), version.to_owned())));
    labels
}

/// Keeps the labels on the Node, also when it is deleted and registers again.
pub async fn keep_labels(cluster: Cluster, node: String, accelerator: Accelerator, host: Arc<dyn Host>) {
    let qemu = match host.qemu_version().await {
        Ok(version) => Some(version),
        Err(error) => {
            tracing::warn!(%node, %error, "the version of QEMU is not known and not published");
            None
        }
    };
    let wanted = labels(accelerator, qemu.as_deref());
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

#[cfg(test)]
mod tests {
    use super::*;

    fn node(version: Option<&str>, able: bool) -> Node {
        let mut node = Node::default();
        let mut all = BTreeMap::new();
        if able {
            all.insert(label::SCHEDULABLE.to_owned(), "true".to_owned());
        }
        all.extend(version.map(|version| (QEMU_VERSION.to_owned(), version.to_owned())));
        node.metadata.labels = Some(all);
        node
    }

    // HV §16: every node can receive a VM that is started now.
    #[test]
    fn the_lowest_version_of_all_nodes_counts() {
        let cases: &[(&str, &[Node], &str)] = &[
            ("10.0.2", &[], "10.0.2"),
            ("10.0.2", &[node(Some("7.2.22"), true), node(Some("10.0.2"), true)], "7.2.22"),
            ("7.2.22", &[node(Some("10.0.2"), true)], "7.2.22"),
            ("10.0.2", &[node(Some("7.2.22"), false)], "10.0.2"),
            ("10.0.2", &[node(None, true), node(Some("nonsense"), true)], "10.0.2"),
            ("10.0.2", &[node(Some("9.2.0"), true)], "9.2.0"),
        ];
        for (own, nodes, want) in cases {
            assert_eq!(lowest_qemu(own, *nodes), *want, "{own} {nodes:?}");
        }
    }

    #[test]
    fn a_version_is_published_where_it_is_known() {
        assert_eq!(labels(Accelerator::Tcg, Some("10.0.2"))[QEMU_VERSION], "10.0.2");
        assert!(!labels(Accelerator::Tcg, None).contains_key(QEMU_VERSION));
    }
}
