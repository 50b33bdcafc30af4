//! The decision: where a pod goes, or why it cannot go anywhere.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;

use super::filters;
use super::scores;
use super::snapshot::Cluster;
use super::volumes::{self, Volumes};

/// What is to happen with a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Bind to this node; the named claims (same namespace) have no volume yet and must first be told
    /// the node.
    Node {
        /// The chosen node.
        name: String,
        /// Claims waiting for their first consumer.
        claims: Vec<String>,
    },
    /// A node was chosen earlier and its volumes are being made.
    AwaitVolumes,
    /// No node fits; the text is the one users see.
    Nowhere(String),
}

/// Decides for one pod. `tie` picks among equally good nodes.
pub(crate) fn place(pod: &Pod, cluster: &Cluster, tie: u64) -> Verdict {
    match candidates(pod, cluster) {
        Ok((fitting, volumes)) => {
            let best = scores::best(pod, cluster, &fitting, tie);
            Verdict::Node { name: cluster.nodes[best].name().to_owned(), claims: volumes.unbound }
        }
        Err(other) => other,
    }
}

/// The best nodes for a pod, of which the scheduler picks one by chance.
pub(crate) fn best(pod: &Pod, cluster: &Cluster) -> Result<Vec<String>, Verdict> {
    let (fitting, _) = candidates(pod, cluster)?;
    let best = scores::equals(pod, cluster, &fitting);
    Ok(best.into_iter().map(|index| cluster.nodes[index].name().to_owned()).collect())
}

/// Indices of the nodes that a pod could go to; never empty.
fn candidates(pod: &Pod, cluster: &Cluster) -> Result<(Vec<usize>, Volumes), Verdict> {
    if cluster.nodes.is_empty() {
        return Err(Verdict::Nowhere("no nodes available to schedule pods".to_owned()));
    }
    let all = cluster.nodes.len();
    let volumes = match volumes::look(pod, cluster) {
        Ok(volumes) => volumes,
        Err(reason) => {
            return Err(Verdict::Nowhere(format!("0/{all} nodes are available: {reason}.")));
        }
    };
    if volumes.in_progress {
        return Err(Verdict::AwaitVolumes);
    }
    let fitting = fitting(pod, cluster, &volumes).map_err(Verdict::Nowhere)?;
    Ok((fitting, volumes))
}

/// Why each node refuses the pod; nodes that take it are left out.
pub(crate) fn refusals(pod: &Pod, cluster: &Cluster) -> Vec<(String, Vec<String>)> {
    let Ok(volumes) = volumes::look(pod, cluster) else { return Vec::new() };
    let context = filters::Context::new(pod, cluster);
    let refused = |info| filters::check(&context, info, &volumes);
    let all = cluster.nodes.iter().map(|info| (info.name().to_owned(), refused(info)));
    all.filter(|(_, reasons)| !reasons.is_empty()).collect()
}

/// Indices of the nodes that pass every filter, or the text that counts why none does.
fn fitting(pod: &Pod, cluster: &Cluster, volumes: &Volumes) -> Result<Vec<usize>, String> {
    let context = filters::Context::new(pod, cluster);
    let mut fitting = Vec::new();
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    for (index, info) in cluster.nodes.iter().enumerate() {
        let refused = filters::check(&context, info, volumes);
        if refused.is_empty() {
            fitting.push(index);
        }
        for reason in refused {
            *reasons.entry(reason).or_default() += 1;
        }
    }
    if !fitting.is_empty() {
        return Ok(fitting);
    }
    let mut lines: Vec<String> =
        reasons.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    lines.sort();
    Err(format!("0/{} nodes are available: {}.", cluster.nodes.len(), lines.join(", ")))
}
