//! Topology spread constraints.

use std::collections::BTreeMap;

use holdfast_apimachinery::labels;
use k8s_openapi::api::core::v1::{Pod, TopologySpreadConstraint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

use super::filters;
use super::snapshot::{Cluster, NodeInfo};
use crate::pods;

const SKEW: &str = "node(s) didn't match pod topology spread constraints";
const NO_LABEL: &str = "node(s) didn't match pod topology spread constraints (missing required label)";

/// One constraint with the matching pods counted per domain.
#[derive(Debug)]
pub(crate) struct Constraint<'a> {
    key: &'a str,
    max_skew: i64,
    /// Matching pods in each domain that an eligible node belongs to.
    counts: BTreeMap<String, i64>,
    least: i64,
    counts_itself: bool,
}

/// Constraints that must hold.
pub(crate) fn required<'a>(pod: &'a Pod, cluster: &Cluster) -> Vec<Constraint<'a>> {
    constraints(pod, cluster, "DoNotSchedule")
}

/// Constraints that only weigh.
pub(crate) fn preferred<'a>(pod: &'a Pod, cluster: &Cluster) -> Vec<Constraint<'a>> {
    constraints(pod, cluster, "ScheduleAnyway")
}

fn constraints<'a>(pod: &'a Pod, cluster: &Cluster, when: &str) -> Vec<Constraint<'a>> {
    let all = pod.spec.as_ref().and_then(|s| s.topology_spread_constraints.as_deref()).unwrap_or_default();
    let wanted: Vec<&TopologySpreadConstraint> =
        all.iter().filter(|c| c.when_unsatisfiable == when).collect();
    wanted.iter().map(|c| count(pod, cluster, c, &wanted)).collect()
}

fn count<'a>(
    pod: &Pod,
    cluster: &Cluster,
    constraint: &'a TopologySpreadConstraint,
    all: &[&TopologySpreadConstraint],
) -> Constraint<'a> {
    let selector = complete(pod, constraint);
    let matches = |other: &Pod| {
        other.metadata.namespace == pod.metadata.namespace
            && !pods::is_terminating(other)
            && labels::selects(selector.as_ref(), other.metadata.labels.as_ref())
    };
    let mut counts = BTreeMap::new();
    for info in cluster.nodes.iter().filter(|info| is_eligible(pod, info, constraint, all)) {
        let Some(domain) = info.label(&constraint.topology_key) else { continue };
        let found = info.pods.iter().filter(|other| matches(other)).count();
        *counts.entry(domain.to_owned()).or_insert(0) += i64::try_from(found).unwrap_or(i64::MAX);
    }
    let too_few =
        constraint.min_domains.is_some_and(|min| i64::try_from(counts.len()).unwrap_or(0) < i64::from(min));
    let least = if too_few { 0 } else { counts.values().copied().min().unwrap_or(0) };
    Constraint {
        key: &constraint.topology_key,
        max_skew: i64::from(constraint.max_skew),
        counts_itself: labels::selects(selector.as_ref(), pod.metadata.labels.as_ref()),
        counts,
        least,
    }
}

fn complete(pod: &Pod, constraint: &TopologySpreadConstraint) -> Option<LabelSelector> {
    let mut selector = constraint.label_selector.clone()?;
    for key in constraint.match_label_keys.iter().flatten() {
        if let Some(value) = pod.metadata.labels.as_ref().and_then(|l| l.get(key)) {
            selector.match_expressions.get_or_insert_default().push(LabelSelectorRequirement {
                key: key.clone(),
                operator: "In".to_owned(),
                values: Some(vec![value.clone()]),
            });
        }
    }
    Some(selector)
}

/// Whether the node's domain takes part: it has all keys and, as the policies say, suits the pod.
fn is_eligible(
    pod: &Pod,
    info: &NodeInfo,
    constraint: &TopologySpreadConstraint,
    all: &[&TopologySpreadConstraint],
) -> bool {
    let has_keys = all.iter().all(|c| info.label(&c.topology_key).is_some());
    let honors_affinity = constraint.node_affinity_policy.as_deref() != Some("Ignore");
    let honors_taints = constraint.node_taints_policy.as_deref() == Some("Honor");
    has_keys
        && (!honors_affinity || filters::matches_node_affinity(pod, info))
        && (!honors_taints || filters::untolerated(pod, info).is_none())
}

/// Why the node would break a constraint, if it would.
pub(crate) fn refusal(constraints: &[Constraint<'_>], info: &NodeInfo) -> Option<&'static str> {
    for constraint in constraints {
        let Some(domain) = info.label(constraint.key) else {
            return Some(NO_LABEL);
        };
        let there = constraint.counts.get(domain).copied().unwrap_or(0);
        if there + i64::from(constraint.counts_itself) - constraint.least > constraint.max_skew {
            return Some(SKEW);
        }
    }
    None
}

/// Matching pods in the node's domains, summed over the constraints; fewer is better.
pub(crate) fn crowding(constraints: &[Constraint<'_>], info: &NodeInfo) -> i64 {
    constraints.iter().filter_map(|c| Some(c.counts.get(info.label(c.key)?).copied().unwrap_or(0))).sum()
}
