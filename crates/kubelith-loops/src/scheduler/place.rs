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
    if cluster.nodes.is_empty() {
        return Verdict::Nowhere("no nodes available to schedule pods".to_owned());
    }
    let all = cluster.nodes.len();
    let volumes = match volumes::look(pod, cluster) {
        Ok(volumes) => volumes,
        Err(reason) => {
            return Verdict::Nowhere(format!("0/{all} nodes are available: {reason}."));
        }
    };
    if volumes.in_progress {
        return Verdict::AwaitVolumes;
    }
    let fitting = match fitting(pod, cluster, &volumes) {
        Ok(fitting) => fitting,
        Err(message) => return Verdict::Nowhere(message),
    };
    let best = scores::best(pod, cluster, &fitting, tie);
    Verdict::Node { name: cluster.nodes[best].name().to_owned(), claims: volumes.unbound }
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
