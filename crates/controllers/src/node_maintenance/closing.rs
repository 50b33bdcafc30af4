//! How a node in maintenance looks, and back (migration-and-maintenance.md §8.3 rows 6 to 8, §8.4). Pure.
//! Cordon, taints and label are one write: a node is closed wholly or not at all.

use holdfast_api::maintenance::{DRAIN_TAINT, EXCLUDE_LABEL, UNSCHEDULABLE_TAINT};
use holdfast_reconcile::{Patch, Ref};
use k8s_openapi::api::core::v1::{Node, Taint};
use kube::ResourceExt as _;
use serde_json::{Map, Value, json};

const EFFECT: &str = "NoSchedule";
const TAINTS: [&str; 2] = [DRAIN_TAINT, UNSCHEDULABLE_TAINT];

fn is_ours(taint: &Taint) -> bool {
    TAINTS.contains(&taint.key.as_str()) && taint.effect == EFFECT
}

fn is_cordoned(node: &Node) -> bool {
    node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true)
}

fn taints(node: &Node) -> Vec<Taint> {
    node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default()
}

/// Whether a maintenance has closed the node; a plain cordon is not one.
pub(super) fn is_begun(node: &Node) -> bool {
    node.labels().contains_key(EXCLUDE_LABEL)
        || taints(node).iter().any(|taint| taint.key == DRAIN_TAINT && taint.effect == EFFECT)
}

/// What is missing for a closed node; `None` if it is closed.
pub(super) fn close(node: &Node) -> Option<Patch> {
    let mut wanted = taints(node);
    for key in TAINTS {
        if !wanted.iter().any(|taint| taint.key == key && taint.effect == EFFECT) {
            wanted.push(Taint { key: key.to_owned(), effect: EFFECT.to_owned(), ..Taint::default() });
        }
    }
    let mut spec = Map::new();
    if wanted != taints(node) {
        spec.insert("taints".to_owned(), json!(wanted));
    }
    if !is_cordoned(node) {
        spec.insert("unschedulable".to_owned(), json!(true));
    }
    let label = node.labels().get(EXCLUDE_LABEL).is_none_or(|value| value != "true");
    patch(node, spec, label.then(|| json!("true")))
}

/// What a node back in service must lose; `None` if it has nothing of it.
pub(super) fn open(node: &Node) -> Option<Patch> {
    let kept: Vec<Taint> = taints(node).into_iter().filter(|taint| !is_ours(taint)).collect();
    let mut spec = Map::new();
    if kept != taints(node) {
        spec.insert("taints".to_owned(), if kept.is_empty() { Value::Null } else { json!(kept) });
    }
    if is_cordoned(node) {
        spec.insert("unschedulable".to_owned(), Value::Null);
    }
    patch(node, spec, node.labels().contains_key(EXCLUDE_LABEL).then_some(Value::Null))
}

fn patch(node: &Node, spec: Map<String, Value>, label: Option<Value>) -> Option<Patch> {
    let mut body = json!({});
    if !spec.is_empty() {
        body["spec"] = Value::Object(spec);
    }
    if let Some(label) = label {
        body["metadata"] = json!({ "labels": { EXCLUDE_LABEL: label } });
    }
    let empty = body.as_object().is_some_and(Map::is_empty);
    (!empty).then(|| Patch { target: Ref::exact(node), status: false, body })
}
