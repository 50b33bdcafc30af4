//! Taint eviction: pods that do not tolerate a NoExecute taint of their node are deleted, after their
//! toleration's time (kubernetes-surface.md §16.2).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Taint};
use k8s_openapi::jiff::Timestamp;
use kube::{Client, ResourceExt as _};
use serde_json::json;
use tokio::sync::Notify;

use crate::cache::Caches;
use crate::drive::{Pass, drive};
use crate::events::{Recorder, Severity};
use crate::pods;

const COMPONENT: &str = "taint-eviction-controller";
const IDLE: Duration = Duration::from_secs(60);

struct Eviction {
    client: Client,
    caches: Arc<Caches>,
    recorder: Recorder,
    /// When a taint without a time was first seen: (node uid, key, effect).
    first_seen: BTreeMap<(String, String), Timestamp>,
    /// Pods with a deadline in the future, by uid.
    scheduled: BTreeMap<String, Arc<Pod>>,
}

/// Runs taint eviction for ever.
pub(crate) async fn run(client: Client, caches: Arc<Caches>, recorder: Recorder) {
    let wake = Arc::new(Notify::new());
    caches.nodes.wakes(&wake);
    caches.pods.wakes(&wake);
    let eviction =
        Eviction { client, caches, recorder, first_seen: BTreeMap::new(), scheduled: BTreeMap::new() };
    drive(COMPONENT, wake, Duration::from_millis(20), eviction).await;
}

/// When the pod has to leave because of the taints; `None` = never. Each taint comes with the instant it
/// counts from.
fn leaves_at(pod: &Pod, taints: &[(Taint, Timestamp)]) -> Option<Timestamp> {
    taints.iter().filter_map(|(taint, since)| leaves_one(pod, taint, *since)).min()
}

fn leaves_one(pod: &Pod, taint: &Taint, since: Timestamp) -> Option<Timestamp> {
    let used: Vec<_> = pods::tolerations(pod).iter().filter(|t| pods::tolerates_one(t, taint)).collect();
    if used.is_empty() {
        return Some(since);
    }
    let seconds = used.iter().filter_map(|t| t.toleration_seconds).min()?;
    let wait = k8s_openapi::jiff::SignedDuration::from_secs(seconds.max(0));
    Some(since.checked_add(wait).unwrap_or(Timestamp::MAX))
}

impl Pass for Eviction {
    async fn pass(&mut self) -> anyhow::Result<Duration> {
        self.caches.nodes.ready().await?;
        self.caches.pods.ready().await?;
        let now = holdfast_env::now();
        let tainted = self.tainted(now);
        let mut scheduled = BTreeMap::new();
        let mut next = IDLE;
        for pod in self.caches.pods.all() {
            let Some(taints) = pods::node_name(&pod).and_then(|node| tainted.get(node)) else { continue };
            if pods::is_terminating(&pod) || pods::is_finished(&pod) {
                continue;
            }
            let Some(at) = leaves_at(&pod, taints) else { continue };
            if at <= now {
                self.evict(&pod).await?;
                self.scheduled.remove(pod.metadata.uid.as_deref().unwrap_or_default());
            } else {
                next = next.min(Duration::try_from(at.duration_since(now)).unwrap_or(IDLE));
                scheduled.insert(pod.metadata.uid.clone().unwrap_or_default(), pod);
            }
        }
        let before = std::mem::replace(&mut self.scheduled, scheduled);
        for (uid, pod) in before {
            let alive = self.caches.pods.get(pod.metadata.namespace.as_deref(), &pod.name_any());
            let is_same =
                alive.is_some_and(|p| p.metadata.uid == pod.metadata.uid && !pods::is_terminating(&p));
            if is_same && !self.scheduled.contains_key(&uid) {
                let text = format!(
                    "Cancelling deletion of Pod {}/{}",
                    pod.namespace().unwrap_or_default(),
                    pod.name_any()
                );
                self.recorder.publish(
                    COMPONENT,
                    pod.as_ref(),
                    Severity::Normal,
                    "TaintManagerEviction",
                    text,
                );
            }
        }
        Ok(next.max(Duration::from_millis(10)))
    }
}

impl Eviction {
    /// NoExecute taints of each node with the instant each counts from.
    fn tainted(&mut self, now: Timestamp) -> BTreeMap<String, Vec<(Taint, Timestamp)>> {
        let mut tainted = BTreeMap::new();
        let mut seen = BTreeMap::new();
        for node in self.caches.nodes.all() {
            let taints = node.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
            let mut list = Vec::new();
            for taint in taints.into_iter().filter(|t| t.effect == "NoExecute") {
                let key = (node.uid().unwrap_or_default(), taint.key.clone());
                let first = self.first_seen.get(&key).copied().unwrap_or(now);
                let since = taint.time_added.as_ref().map_or(first, |t| t.0);
                seen.insert(key, first);
                list.push((taint, since));
            }
            if !list.is_empty() {
                tainted.insert(node.name_any(), list);
            }
        }
        self.first_seen = seen;
        tainted
    }

    async fn evict(&self, pod: &Pod) -> anyhow::Result<()> {
        let name = format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
        tracing::info!(pod = name, "deleting because of a NoExecute taint");
        let text = format!("Marking for deletion Pod {name}");
        self.recorder.publish(COMPONENT, pod, Severity::Normal, "TaintManagerEviction", text);
        let condition = pods::condition_patch(
            pod,
            "DisruptionTarget",
            "True",
            Some("DeletionByTaintManager"),
            Some("Taint manager: deleting due to NoExecute taint"),
        );
        pods::patch_status(&self.client, pod, json!({"conditions": [condition]})).await?;
        pods::delete(&self.client, pod, None).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // KS-A70: eviction at tolerationSeconds, none for those that tolerate without limit.
    #[test]
    fn shortest_toleration_decides() {
        let taint =
            |key: &str| Taint { key: key.to_owned(), effect: "NoExecute".to_owned(), ..Taint::default() };
        let check = |tolerations: serde_json::Value, keys: &[&str], want: Option<i64>| {
            let pod: Pod = serde_json::from_value(
                json!({"metadata": {}, "spec": {"containers": [], "tolerations": tolerations}}),
            )
            .unwrap();
            let taints: Vec<_> = keys.iter().map(|k| (taint(k), Timestamp::UNIX_EPOCH)).collect();
            assert_eq!(
                leaves_at(&pod, &taints).map(Timestamp::as_second),
                want,
                "{tolerations} against {keys:?}"
            );
        };
        check(json!([]), &[], None);
        check(json!([]), &["a"], Some(0));
        check(json!([{"key": "a", "operator": "Exists"}]), &["a"], None);
        check(json!([{"key": "a", "operator": "Exists", "tolerationSeconds": 300}]), &["a"], Some(300));
        check(
            json!([{"key": "a", "operator": "Exists", "tolerationSeconds": 300}, {"operator": "Exists", "tolerationSeconds": 5}]),
            &["a"],
            Some(5),
        );
        check(json!([{"key": "a", "operator": "Exists", "tolerationSeconds": 300}]), &["a", "b"], Some(0));
        check(
            json!([{"operator": "Exists"}, {"key": "a", "operator": "Exists", "tolerationSeconds": 7}]),
            &["a"],
            Some(7),
        );
    }
}
