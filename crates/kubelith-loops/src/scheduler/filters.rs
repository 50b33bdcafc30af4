//! Filters: each says why a node does not suit a pod, in the words of the reference scheduler.

use k8s_openapi::api::core::v1::{Pod, Taint};

use super::affinity;
use super::snapshot::{Amounts, Cluster, NodeInfo, requests};
use super::spread;
use super::volumes::{self, Volumes};
use crate::pods;

/// What is computed once for a pod and used for every node.
pub(crate) struct Context<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) cluster: &'a Cluster,
    request: Amounts,
    affinity: affinity::Required<'a>,
    spread: Vec<spread::Constraint<'a>>,
}

impl<'a> Context<'a> {
    pub(crate) fn new(pod: &'a Pod, cluster: &'a Cluster) -> Self {
        Self {
            pod,
            cluster,
            request: requests(pod),
            affinity: affinity::Required::new(pod, cluster),
            spread: spread::required(pod, cluster),
        }
    }
}

/// All reasons of the first filter that refuses the node; empty when the pod fits.
pub(crate) fn check(context: &Context<'_>, info: &NodeInfo, volumes: &Volumes) -> Vec<String> {
    let pod = context.pod;
    let one = |reason: &str| vec![reason.to_owned()];
    if !is_schedulable(pod, info) {
        return one("node(s) were unschedulable");
    }
    if untolerated(pod, info).is_some() {
        return one("node(s) had untolerated taint(s)");
    }
    if !matches_node_affinity(pod, info) {
        return one("node(s) didn't match Pod's node affinity/selector");
    }
    if !ports_are_free(pod, info) {
        return one("node(s) didn't have free ports for the requested pod ports");
    }
    let lacking = lacking(&context.request, info);
    if !lacking.is_empty() {
        return lacking;
    }
    if let Some(reason) = volumes::refusal(volumes, info, context.cluster) {
        return one(reason);
    }
    if let Some(reason) = spread::refusal(&context.spread, info) {
        return one(reason);
    }
    if let Some(reason) = context.affinity.refusal(info) {
        return one(reason);
    }
    Vec::new()
}

fn is_schedulable(pod: &Pod, info: &NodeInfo) -> bool {
    let cordoned = info.node.spec.as_ref().and_then(|s| s.unschedulable).unwrap_or(false);
    let taint = Taint {
        key: "node.kubernetes.io/unschedulable".to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    };
    !cordoned || holdfast_env::mutant!("cordon-ignored") || pods::tolerates(pods::tolerations(pod), &taint)
}

/// The first NoSchedule or NoExecute taint that the pod does not tolerate.
pub(crate) fn untolerated<'a>(pod: &Pod, info: &'a NodeInfo) -> Option<&'a Taint> {
    let taints = info.node.spec.as_ref()?.taints.as_deref()?;
    taints
        .iter()
        .filter(|taint| taint.effect == "NoSchedule" || taint.effect == "NoExecute")
        .filter(|taint| {
            !(holdfast_env::mutant!("cordon-ignored") && taint.key == "node.kubernetes.io/unschedulable")
        })
        .find(|taint| !pods::tolerates(pods::tolerations(pod), taint))
}

/// `spec.nodeSelector` and required node affinity.
pub(crate) fn matches_node_affinity(pod: &Pod, info: &NodeInfo) -> bool {
    let Some(spec) = &pod.spec else { return true };
    let selected =
        spec.node_selector.iter().flatten().all(|(key, value)| info.label(key) == Some(value.as_str()));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    selected && required.is_none_or(|required| info.is_admitted_by(required))
}

fn host_ports(pod: &Pod) -> impl Iterator<Item = (&str, &str, i32)> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    containers.flat_map(|c| c.ports.iter().flatten()).filter_map(|port| {
        let number = port.host_port.filter(|p| *p > 0)?;
        let address = port.host_ip.as_deref().filter(|a| !a.is_empty()).unwrap_or("0.0.0.0");
        Some((address, port.protocol.as_deref().unwrap_or("TCP"), number))
    })
}

fn ports_are_free(pod: &Pod, info: &NodeInfo) -> bool {
    host_ports(pod).all(|(address, protocol, port)| {
        info.pods.iter().flat_map(|other| host_ports(other)).all(|(a, pr, po)| {
            po != port || pr != protocol || (a != address && a != "0.0.0.0" && address != "0.0.0.0")
        })
    })
}

/// `Insufficient …` for each resource the node lacks, and `Too many pods`.
fn lacking(request: &Amounts, info: &NodeInfo) -> Vec<String> {
    let mut reasons = Vec::new();
    let places = info.allocatable("pods") / 1000;
    if i128::try_from(info.pods.len()).unwrap_or(i128::MAX) + 1 > places {
        reasons.push("Too many pods".to_owned());
    }
    for (resource, amount) in request {
        let used = info.used.get(resource).copied().unwrap_or(0);
        if *amount > 0 && used + amount > info.allocatable(resource) {
            reasons.push(format!("Insufficient {resource}"));
        }
    }
    reasons
}
