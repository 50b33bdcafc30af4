//! The launcher pod that receives a move (migration-and-maintenance.md §2.2).

use holdfast_api::engine::{Instance, Migration};
use holdfast_api::names::label;
use k8s_openapi::api::core::v1::{
    Affinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodAffinityTerm,
    PreferredSchedulingTerm,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::engine::instance::launcher_pod;

/// Names to try, best first.
#[must_use]
pub fn names(instance: &Instance, migration: &Migration) -> Vec<String> {
    let uid = migration.metadata.uid.as_deref().unwrap_or_default();
    launcher_pod::names(instance, &format!("migration-{uid}"))
}

/// The pod: that of the Instance as it is wanted now, never on the node it leaves.
#[must_use]
pub fn build(instance: &Instance, migration: &Migration, source_node: &str, image: &str) -> Pod {
    let mut pod = launcher_pod::build(instance, image);
    pod.metadata.name = names(instance, migration).into_iter().next();
    let uid = migration.metadata.uid.clone().unwrap_or_default();
    pod.metadata.labels.get_or_insert_default().insert(label::MIGRATION_UID.to_owned(), uid);
    if let Some(spec) = &mut pod.spec {
        let selector = spec.node_selector.get_or_insert_default();
        for (key, value) in &migration.spec.node_selector {
            // The VM's own keys win.
            selector.entry(key.clone()).or_insert_with(|| value.clone());
        }
        let affinity = spec.affinity.get_or_insert_default();
        keep_off(affinity, instance, source_node);
        if let Some(node) = &migration.spec.preferred_node {
            prefer(affinity, node);
        }
    }
    pod
}

fn on_node(operator: &str, node: &str) -> NodeSelectorRequirement {
    NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: operator.to_owned(),
        values: Some(vec![node.to_owned()]),
    }
}

/// Away from every launcher of the Instance, and from the source's node by name.
fn keep_off(affinity: &mut Affinity, instance: &Instance, source_node: &str) {
    let created_by = [(label::CREATED_BY.to_owned(), instance.metadata.uid.clone().unwrap_or_default())];
    let term = PodAffinityTerm {
        topology_key: "kubernetes.io/hostname".to_owned(),
        label_selector: Some(LabelSelector {
            match_labels: Some(created_by.into()),
            ..LabelSelector::default()
        }),
        ..PodAffinityTerm::default()
    };
    let anti = affinity.pod_anti_affinity.get_or_insert_default();
    anti.required_during_scheduling_ignored_during_execution.get_or_insert_default().push(term);
    let node = affinity.node_affinity.get_or_insert_default();
    let required = node
        .required_during_scheduling_ignored_during_execution
        .get_or_insert_with(|| NodeSelector { node_selector_terms: Vec::new() });
    if required.node_selector_terms.is_empty() {
        required.node_selector_terms.push(NodeSelectorTerm::default());
    }
    for term in &mut required.node_selector_terms {
        term.match_fields.get_or_insert_default().push(on_node("NotIn", source_node));
    }
}

fn prefer(affinity: &mut Affinity, node: &str) {
    let preferred = PreferredSchedulingTerm {
        weight: 100,
        preference: NodeSelectorTerm {
            match_fields: Some(vec![on_node("In", node)]),
            ..NodeSelectorTerm::default()
        },
    };
    let node = affinity.node_affinity.get_or_insert_default();
    node.preferred_during_scheduling_ignored_during_execution.get_or_insert_default().push(preferred);
}
