//! Pod garbage collection (kubernetes-surface.md §16.3): pods nobody will ever finish are failed and
//! removed. Only for objects: what a removed pod's process does is the node runtime's business.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::PodGcTimers;
use crate::cache::Caches;
use crate::drive::{Pass, drive};
use crate::pods;

const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

struct Collector {
    client: Client,
    caches: Arc<Caches>,
    timers: PodGcTimers,
    /// When a node named by a pod was first found absent.
    absent_since: BTreeMap<String, Instant>,
}

/// Runs pod garbage collection for ever.
pub(crate) async fn run(client: Client, caches: Arc<Caches>, timers: PodGcTimers) {
    let collector = Collector { client, caches, timers, absent_since: BTreeMap::new() };
    drive("pod-gc", Arc::new(Notify::new()), Duration::ZERO, collector).await;
}

/// Why a pod is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    OutOfService,
    Orphaned,
    NeverScheduled,
    TooOld,
}

/// Which pods go. `gone` are nodes absent for longer than the quarantine.
fn condemned(
    pods: &[Arc<Pod>],
    nodes: &[Arc<Node>],
    gone: &BTreeSet<String>,
    finished_kept: usize,
) -> Vec<(Arc<Pod>, Why)> {
    let mut condemned = Vec::new();
    let out_of_service: BTreeSet<&str> =
        nodes.iter().filter(|n| is_out_of_service(n)).filter_map(|n| n.metadata.name.as_deref()).collect();
    for pod in pods {
        let why = match pods::node_name(pod) {
            Some(node) if pods::is_terminating(pod) && out_of_service.contains(node) => Why::OutOfService,
            Some(node) if gone.contains(node) => Why::Orphaned,
            None if pods::is_terminating(pod) => Why::NeverScheduled,
            _ => continue,
        };
        condemned.push((pod.clone(), why));
    }
    let mut finished: Vec<&Arc<Pod>> =
        pods.iter().filter(|p| pods::is_finished(p) && !pods::is_terminating(p)).collect();
    if finished.len() > finished_kept {
        finished.sort_by_key(|p| (p.metadata.creation_timestamp.clone(), p.name_any()));
        let surplus = finished.len() - finished_kept;
        condemned.extend(finished.into_iter().take(surplus).map(|p| (p.clone(), Why::TooOld)));
    }
    condemned
}

fn is_out_of_service(node: &Node) -> bool {
    let tainted = node.spec.iter().flat_map(|s| s.taints.iter().flatten()).any(|t| t.key == OUT_OF_SERVICE);
    let ready = node
        .status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten())
        .any(|c| c.type_ == "Ready" && c.status == "True");
    tainted && !ready
}

impl Pass for Collector {
    async fn pass(&mut self) -> anyhow::Result<Duration> {
        self.caches.pods.ready().await?;
        self.caches.nodes.ready().await?;
        let pods = self.caches.pods.all();
        let nodes = self.caches.nodes.all();
        let gone = self.gone(&pods, &nodes).await?;
        for (pod, why) in condemned(&pods, &nodes, &gone, self.timers.finished_kept) {
            self.remove(&pod, why).await?;
        }
        Ok(self.timers.period)
    }
}

impl Collector {
    /// Nodes that pods name and that a live read confirms to be absent since the quarantine began.
    async fn gone(&mut self, pods: &[Arc<Pod>], nodes: &[Arc<Node>]) -> anyhow::Result<BTreeSet<String>> {
        let present: BTreeSet<&str> = nodes.iter().filter_map(|n| n.metadata.name.as_deref()).collect();
        let missing: BTreeSet<String> = pods
            .iter()
            .filter_map(|p| pods::node_name(p))
            .filter(|node| !present.contains(node))
            .map(str::to_owned)
            .collect();
        self.absent_since.retain(|node, _| missing.contains(node));
        let api: Api<Node> = Api::all(self.client.clone());
        let mut gone = BTreeSet::new();
        for node in missing {
            let since = *self.absent_since.entry(node.clone()).or_insert_with(Instant::now);
            if since.elapsed() < self.timers.quarantine {
                continue;
            }
            if api.get_opt(&node).await?.is_none() {
                gone.insert(node);
            }
        }
        Ok(gone)
    }

    async fn remove(&self, pod: &Pod, why: Why) -> anyhow::Result<()> {
        let name = format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
        let is_removed_already =
            pods::is_terminating(pod) && pod.metadata.deletion_grace_period_seconds == Some(0);
        if is_removed_already && pods::is_finished(pod) {
            // Only finalizers hold it; asking again would change nothing.
            return Ok(());
        }
        tracing::info!(pod = name, ?why, "removing a pod that nobody will finish");
        if !pods::is_finished(pod) {
            let mut status = json!({"phase": "Failed"});
            if why == Why::Orphaned {
                let condition = pods::condition_patch(
                    pod,
                    "DisruptionTarget",
                    "True",
                    Some("DeletionByPodGC"),
                    Some("PodGC: node no longer exists"),
                );
                status["conditions"] = json!([condition]);
            }
            pods::patch_status(&self.client, pod, status).await?;
        }
        pods::delete(&self.client, pod, Some(0)).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // KS-A71: which pods go and why.
    #[test]
    fn only_hopeless_pods_go() {
        let pod = |name: &str, node: Option<&str>, phase: &str, terminating: bool| -> Arc<Pod> {
            let mut value = json!({"metadata": {"name": name}, "spec": {"containers": [], "nodeName": node}, "status": {"phase": phase}});
            if terminating {
                value["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
            Arc::new(serde_json::from_value(value).unwrap())
        };
        let nodes: Vec<Arc<Node>> = [
            json!({"metadata": {"name": "ok"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}),
            json!({"metadata": {"name": "fenced"}, "spec": {"taints": [{"key": OUT_OF_SERVICE, "effect": "NoExecute"}]}}),
            json!({"metadata": {"name": "marked"}, "spec": {"taints": [{"key": OUT_OF_SERVICE, "effect": "NoExecute"}]},
                   "status": {"conditions": [{"type": "Ready", "status": "True"}]}}),
        ]
        .into_iter()
        .map(|v| Arc::new(serde_json::from_value(v).unwrap()))
        .collect();
        let pods = [
            pod("runs", Some("ok"), "Running", false),
            pod("ends", Some("ok"), "Running", true),
            pod("fenced-alive", Some("fenced"), "Running", false),
            pod("fenced-ends", Some("fenced"), "Running", true),
            pod("marked-ends", Some("marked"), "Running", true),
            pod("orphan", Some("away"), "Running", false),
            pod("waits", None, "Pending", false),
            pod("never", None, "Pending", true),
            pod("done-a", Some("ok"), "Succeeded", false),
            pod("done-b", Some("ok"), "Failed", false),
        ];
        let gone = BTreeSet::from(["away".to_owned()]);
        let found: Vec<_> =
            condemned(&pods, &nodes, &gone, 1).into_iter().map(|(p, why)| (p.name_any(), why)).collect();
        assert_eq!(
            found,
            [
                ("fenced-ends".to_owned(), Why::OutOfService),
                ("orphan".to_owned(), Why::Orphaned),
                ("never".to_owned(), Why::NeverScheduled),
                ("done-a".to_owned(), Why::TooOld),
            ]
        );
    }
}
