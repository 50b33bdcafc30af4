//! Scores: which of the fitting nodes is best. Each part gives 0 to 100 and has a weight.

use k8s_openapi::api::core::v1::Pod;

use super::snapshot::{Cluster, NodeInfo, requests, scored};
use super::{affinity, spread};
use crate::pods;

const FULL: i64 = 100;

/// Indices of the nodes with the highest score.
pub(crate) fn equals(pod: &Pod, cluster: &Cluster, fitting: &[usize]) -> Vec<usize> {
    let totals = totals(pod, cluster, fitting);
    let top = totals.iter().copied().max().unwrap_or(0);
    fitting.iter().zip(&totals).filter(|(_, t)| **t == top).map(|(i, _)| *i).collect()
}

/// Index of the node with the highest score; `tie` picks among equals.
pub(crate) fn best(pod: &Pod, cluster: &Cluster, fitting: &[usize], tie: u64) -> usize {
    let equals = equals(pod, cluster, fitting);
    let count = u64::try_from(equals.len()).unwrap_or(1).max(1);
    let pick = usize::try_from(tie % count).unwrap_or(0);
    equals[pick]
}

/// Weighted sums, in the order of `fitting`.
pub(crate) fn totals(pod: &Pod, cluster: &Cluster, fitting: &[usize]) -> Vec<i64> {
    let infos: Vec<&NodeInfo> = fitting.iter().map(|i| &cluster.nodes[*i]).collect();
    let taints = inverse(&each(&infos, |i| intolerable(pod, i)));
    let nodes = share(&each(&infos, |i| preferred_nodes(pod, i)));
    let constraints = spread::preferred(pod, cluster);
    let spreads = if constraints.is_empty() {
        vec![0; infos.len()]
    } else {
        mirrored(&each(&infos, |i| spread::crowding(&constraints, i)))
    };
    let sums = affinity::preferences(pod, cluster);
    let affinities = min_max(&each(&infos, |info| {
        sums.iter()
            .filter(|((key, domain), _)| info.label(key) == Some(domain.as_str()))
            .map(|(_, weight)| weight)
            .sum()
    }));
    let request = requests(pod);
    let (cpu, memory) = scored(&request);
    infos
        .iter()
        .enumerate()
        .map(|(n, info)| {
            3 * taints[n]
                + 2 * nodes[n]
                + 2 * spreads[n]
                + 2 * affinities[n]
                + least_allocated(info, cpu, memory)
                + balanced(info, pod)
        })
        .collect()
}

fn each(infos: &[&NodeInfo], score: impl Fn(&NodeInfo) -> i64) -> Vec<i64> {
    infos.iter().map(|info| score(info)).collect()
}

/// 100 for 0, 0 for the largest.
fn inverse(raw: &[i64]) -> Vec<i64> {
    let top = raw.iter().copied().max().unwrap_or(0);
    raw.iter().map(|r| if top == 0 { FULL } else { FULL - FULL * r / top }).collect()
}

/// 100 for the largest, in proportion.
fn share(raw: &[i64]) -> Vec<i64> {
    let top = raw.iter().copied().max().unwrap_or(0);
    raw.iter().map(|r| if top <= 0 { 0 } else { FULL * r / top }).collect()
}

/// 100 for the smallest, falling with the distance to it.
fn mirrored(raw: &[i64]) -> Vec<i64> {
    let top = raw.iter().copied().max().unwrap_or(0);
    let low = raw.iter().copied().min().unwrap_or(0);
    raw.iter().map(|r| if top == 0 { FULL } else { FULL * (top + low - r) / top }).collect()
}

/// 0 for the smallest, 100 for the largest.
fn min_max(raw: &[i64]) -> Vec<i64> {
    let top = raw.iter().copied().max().unwrap_or(0);
    let low = raw.iter().copied().min().unwrap_or(0);
    raw.iter().map(|r| if top == low { 0 } else { FULL * (r - low) / (top - low) }).collect()
}

fn intolerable(pod: &Pod, info: &NodeInfo) -> i64 {
    let taints = info.node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let count = taints
        .iter()
        .filter(|t| t.effect == "PreferNoSchedule" && !pods::tolerates(pods::tolerations(pod), t))
        .count();
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn preferred_nodes(pod: &Pod, info: &NodeInfo) -> i64 {
    let terms = pod
        .spec
        .as_ref()
        .and_then(|s| {
            s.affinity
                .as_ref()?
                .node_affinity
                .as_ref()?
                .preferred_during_scheduling_ignored_during_execution
                .as_deref()
        })
        .unwrap_or_default();
    terms.iter().filter(|t| info.is_in(&t.preference)).map(|t| i64::from(t.weight)).sum()
}

fn percent(part: i128, whole: i128) -> i64 {
    if whole <= 0 {
        return 0;
    }
    i64::try_from((part.max(0) * i128::from(FULL)) / whole).unwrap_or(FULL).min(FULL)
}

fn least_allocated(info: &NodeInfo, cpu: i128, memory: i128) -> i64 {
    let free = |whole: i128, used: i128| percent(whole - used, whole);
    let cpu = free(info.allocatable("cpu"), info.scored_cpu + cpu);
    let memory = free(info.allocatable("memory"), info.scored_memory + memory);
    i64::midpoint(cpu, memory)
}

/// 50 to 100: 75 when the pod leaves the difference between CPU and memory use as it is.
fn balanced(info: &NodeInfo, pod: &Pod) -> i64 {
    let request = requests(pod);
    let used = |resource: &str, with: bool| {
        let more = if with { request.get(resource).copied().unwrap_or(0) } else { 0 };
        percent(info.used.get(resource).copied().unwrap_or(0) + more, info.allocatable(resource))
    };
    let evenness = |with: bool| FULL - (used("cpu", with) - used("memory", with)).abs() / 2;
    (75 + (evenness(true) - evenness(false)) / 4).clamp(50, FULL)
}
