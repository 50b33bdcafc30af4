//! Node lifecycle: a node whose heartbeats stop becomes Unknown, tainted, and its pods not ready
//! (kubernetes-surface.md §16.2). Nothing is judged by a node's clock, nor while this process could not
//! have seen a heartbeat.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::cache::Caches;
use crate::drive::{Pass, drive};
use crate::events::{Recorder, Severity};
use crate::{fault, pods};

const COMPONENT: &str = "node-controller";
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
const CONDITION_TAINTS: [(&str, &str, &str); 4] = [
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
];
/// Conditions that only the node can report.
const REPORTED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// Timers of node health. `Default` is the embedded profile.
#[derive(Clone, Copy, Debug)]
pub struct Timers {
    /// Time between two looks.
    pub period: Duration,
    /// A node silent for this long becomes Unknown.
    pub grace: Duration,
    /// The same for a node that has never reported.
    pub startup_grace: Duration,
    /// Least time between two nodes being marked for eviction of their pods.
    pub eviction_interval: Duration,
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            period: Duration::from_secs(1),
            grace: Duration::from_secs(10),
            startup_grace: Duration::from_secs(20),
            eviction_interval: Duration::from_secs(10),
        }
    }
}

impl Timers {
    /// The reference's defaults.
    #[must_use]
    pub fn upstream() -> Self {
        Self {
            period: Duration::from_secs(5),
            grace: Duration::from_secs(50),
            startup_grace: Duration::from_secs(60),
            eviction_interval: Duration::from_secs(10),
        }
    }
}

/// What a node last said, and when this process saw it.
struct Heard {
    signs: (Option<String>, Option<String>),
    at: Instant,
}

struct Lifecycle {
    client: Client,
    caches: Arc<Caches>,
    recorder: Recorder,
    timers: Timers,
    heard: BTreeMap<String, Heard>,
    breaks: u64,
    last_pass: Instant,
    last_eviction_mark: Option<Instant>,
    known: Option<BTreeSet<String>>,
}

/// Runs the node lifecycle for ever.
pub(crate) async fn run(client: Client, caches: Arc<Caches>, recorder: Recorder, timers: Timers) {
    let wake = Arc::new(Notify::new());
    caches.nodes.wakes(&wake);
    let lifecycle = Lifecycle {
        client,
        caches,
        recorder,
        timers,
        heard: BTreeMap::new(),
        breaks: 0,
        last_pass: Instant::now(),
        last_eviction_mark: None,
        known: None,
    };
    drive("node-lifecycle", wake, Duration::from_millis(5), lifecycle).await;
}

impl Pass for Lifecycle {
    async fn pass(&mut self) -> anyhow::Result<Duration> {
        self.caches.nodes.ready().await?;
        self.caches.node_leases.ready().await?;
        let nodes = self.caches.nodes.all();
        self.note_membership(&nodes);
        self.listen(&nodes);
        let mut views = Vec::new();
        for node in &nodes {
            let silent_for = self.heard.get(&node.name_any()).map_or(Duration::ZERO, |h| h.at.elapsed());
            let changed = silent_conditions(node, silent_for, &self.timers);
            if !changed.is_empty()
                && let Err(error) = self.mark_silent(node, &changed).await
            {
                tracing::warn!(
                    node = node.name_any(),
                    "silent node not marked, will be tried again: {error:#}"
                );
            }
            let ready =
                changed.iter().find(|c| c.type_ == "Ready").map_or_else(|| ready_status(node), |_| "Unknown");
            views.push((node.clone(), ready.to_owned()));
        }
        let zones = zone_states(&views);
        for (node, ready) in &views {
            // One node that cannot be written must not hide the others.
            if let Err(error) = self.follow(node, ready, zones[&zone(node)]).await {
                tracing::warn!(
                    node = node.name_any(),
                    "node not brought in line, will be tried again: {error:#}"
                );
            }
        }
        Ok(self.timers.period)
    }
}

impl Lifecycle {
    /// Events for nodes that came and went since the last pass.
    fn note_membership(&mut self, nodes: &[Arc<Node>]) {
        let now: BTreeSet<String> = nodes.iter().map(|n| n.name_any()).collect();
        let Some(before) = self.known.replace(now.clone()) else { return };
        for node in nodes.iter().filter(|n| !before.contains(&n.name_any())) {
            let text = format!("Node {0} event: Registered Node {0} in Controller", node.name_any());
            self.recorder.publish(COMPONENT, node.as_ref(), Severity::Normal, "RegisteredNode", text);
        }
        for name in before.difference(&now) {
            let about = k8s_openapi::api::core::v1::ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Node".to_owned()),
                name: Some(name.clone()),
                ..Default::default()
            };
            let text = format!("Node {name} event: Removing Node {name} from Controller");
            self.recorder.publish_about(COMPONENT, about, Severity::Normal, "RemovingNode", text);
        }
    }

    /// Notes each node's signs of life. After any time in which signs may have gone unseen (watch broken,
    /// this process stalled), every node's silence starts anew.
    fn listen(&mut self, nodes: &[Arc<Node>]) {
        let leases = &self.caches.node_leases;
        let breaks = leases.breaks() + self.caches.nodes.breaks();
        let stalled = self.last_pass.elapsed() > self.timers.period * 3;
        let deaf = stalled || breaks != self.breaks;
        self.breaks = breaks;
        self.last_pass = Instant::now();
        let present: BTreeSet<String> = nodes.iter().map(|n| n.name_any()).collect();
        self.heard.retain(|name, _| present.contains(name));
        for node in nodes {
            let name = node.name_any();
            let lease = leases.get(Some("kube-node-lease"), &name);
            let renewed = lease.and_then(|l| l.spec.as_ref()?.renew_time.as_ref().map(|t| t.0.to_string()));
            let signs = (heartbeat(node), renewed);
            let heard =
                self.heard.entry(name).or_insert_with(|| Heard { signs: signs.clone(), at: Instant::now() });
            if deaf || heard.signs != signs {
                heard.signs = signs;
                heard.at = Instant::now();
            }
        }
    }

    async fn mark_silent(&self, node: &Node, changed: &[NodeCondition]) -> anyhow::Result<()> {
        tracing::warn!(node = node.name_any(), "node stopped reporting; conditions become Unknown");
        let api: Api<Node> = Api::all(self.client.clone());
        let patch = json!({
            "metadata": {"uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version},
            "status": {"conditions": changed},
        });
        let result = api.patch_status(&node.name_any(), &params(), &Patch::Strategic(patch)).await;
        fault::unless_stale(result)?;
        let text = format!("Node {} status is now: NodeNotReady", node.name_any());
        self.recorder.publish(COMPONENT, node, Severity::Normal, "NodeNotReady", text);
        Ok(())
    }

    /// Taints and pods of a node follow its conditions.
    async fn follow(&mut self, node: &Node, ready: &str, zone: ZoneState) -> anyhow::Result<()> {
        self.taint(node, ready, zone).await?;
        if ready != "True" {
            self.pods_not_ready(node).await?;
        }
        Ok(())
    }

    /// Brings the node's own taints in line with its conditions.
    async fn taint(&mut self, node: &Node, ready: &str, zone: ZoneState) -> anyhow::Result<()> {
        let may_mark = self.last_eviction_mark.is_none_or(|at| at.elapsed() >= self.timers.eviction_interval);
        let now = Time(holdfast_env::now());
        let Some((taints, marked)) = wanted_taints(node, ready, zone, may_mark, &now) else {
            return Ok(());
        };
        let api: Api<Node> = Api::all(self.client.clone());
        let patch = json!({
            "metadata": {"uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version},
            "spec": {"taints": taints},
        });
        let result = api.patch(&node.name_any(), &params(), &Patch::Merge(patch)).await;
        if fault::unless_stale(result)?.is_some() && marked {
            self.last_eviction_mark = Some(Instant::now());
        }
        Ok(())
    }

    async fn pods_not_ready(&self, node: &Node) -> anyhow::Result<()> {
        let name = node.name_any();
        for pod in self.caches.pods.all() {
            let ready = pods::condition(&pod, "Ready").is_some_and(|c| c.status == "True");
            if ready && pods::node_name(&pod) == Some(&name) {
                self.pod_not_ready(&pod).await?;
            }
        }
        Ok(())
    }

    async fn pod_not_ready(&self, pod: &Pod) -> anyhow::Result<()> {
        let condition = pods::condition_patch(pod, "Ready", "False", Some("NodeNotReady"), None);
        pods::patch_status(&self.client, pod, json!({"conditions": [condition]})).await?;
        let text = "Node is not ready".to_owned();
        self.recorder.publish(COMPONENT, pod, Severity::Warning, "NodeNotReady", text);
        Ok(())
    }
}

fn params() -> PatchParams {
    PatchParams { field_manager: Some(pods::MANAGER.to_owned()), ..PatchParams::default() }
}

fn conditions(node: &Node) -> &[NodeCondition] {
    node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default()
}

fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    conditions(node).iter().find(|c| c.type_ == kind)
}

fn ready_status(node: &Node) -> &str {
    condition(node, "Ready").map_or("Unknown", |c| c.status.as_str())
}

fn heartbeat(node: &Node) -> Option<String> {
    condition(node, "Ready")?.last_heartbeat_time.as_ref().map(|t| t.0.to_string())
}

/// Conditions to write because the node has been silent too long; empty when there is nothing to do.
fn silent_conditions(node: &Node, silent_for: Duration, timers: &Timers) -> Vec<NodeCondition> {
    let reported =
        condition(node, "Ready").is_some_and(|c| c.reason.as_deref() != Some("NodeStatusNeverUpdated"));
    let grace = if reported { timers.grace } else { timers.startup_grace };
    if silent_for <= grace {
        return Vec::new();
    }
    let now = Time(holdfast_env::now());
    REPORTED
        .iter()
        .filter(|kind| condition(node, kind).is_none_or(|c| c.status != "Unknown"))
        .map(|kind| {
            let old = condition(node, kind);
            let (reason, message) = match old {
                Some(_) => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
                None => ("NodeStatusNeverUpdated", "Kubelet never posted node status."),
            };
            NodeCondition {
                type_: (*kind).to_owned(),
                status: "Unknown".to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(message.to_owned()),
                last_heartbeat_time: old.map_or_else(
                    || node.metadata.creation_timestamp.clone(),
                    |c| c.last_heartbeat_time.clone(),
                ),
                last_transition_time: Some(now.clone()),
            }
        })
        .collect()
}

/// How much of a zone is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ZoneState {
    Normal,
    /// A majority of at least three nodes is lost: pods stay where they are.
    Partial,
    /// Every node is lost: more likely this side is.
    Full,
}

fn zone(node: &Node) -> (String, String) {
    let label = |key: &str| node.labels().get(key).cloned().unwrap_or_default();
    (label("topology.kubernetes.io/region"), label("topology.kubernetes.io/zone"))
}

fn zone_states(views: &[(Arc<Node>, String)]) -> BTreeMap<(String, String), ZoneState> {
    let mut counts: BTreeMap<(String, String), (usize, usize)> = BTreeMap::new();
    for (node, ready) in views {
        let count = counts.entry(zone(node)).or_default();
        count.0 += 1;
        count.1 += usize::from(ready != "True");
    }
    counts
        .into_iter()
        .map(|(zone, (all, lost))| {
            let state = if lost == all {
                ZoneState::Full
            } else if lost > 2 && lost * 100 >= all * 55 {
                ZoneState::Partial
            } else {
                ZoneState::Normal
            };
            (zone, state)
        })
        .collect()
}

/// The node's taints as they should be and whether a NoExecute taint is new among them; `None` when they
/// are right already. Taints set by others stay.
fn wanted_taints(
    node: &Node,
    ready: &str,
    zone: ZoneState,
    may_mark: bool,
    now: &Time,
) -> Option<(Vec<Taint>, bool)> {
    let spec = node.spec.as_ref();
    let have = spec.and_then(|s| s.taints.clone()).unwrap_or_default();
    let health = match ready {
        "True" => None,
        "False" => Some(NOT_READY),
        _ => Some(UNREACHABLE),
    };
    let mut wanted: Vec<(&str, &str)> = health.iter().map(|key| (*key, "NoSchedule")).collect();
    for (kind, status, key) in CONDITION_TAINTS {
        if condition(node, kind).is_some_and(|c| c.status == status) {
            wanted.push((key, "NoSchedule"));
        }
    }
    if spec.and_then(|s| s.unschedulable).unwrap_or(false) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let is_marked = have.iter().any(|t| is_health(&t.key) && t.effect == "NoExecute");
    let mut marks = false;
    if let Some(key) = health {
        let keep = is_marked && zone != ZoneState::Full;
        let add = !is_marked && zone == ZoneState::Normal && may_mark;
        if keep || add {
            wanted.push((key, "NoExecute"));
            marks = add;
        }
    }
    let mut taints: Vec<Taint> = have
        .iter()
        .filter(|t| !is_ours(t) || wanted.contains(&(t.key.as_str(), t.effect.as_str())))
        .cloned()
        .collect();
    for (key, effect) in wanted {
        if !taints.iter().any(|t| t.key == key && t.effect == effect) {
            taints.push(Taint {
                key: key.to_owned(),
                effect: effect.to_owned(),
                time_added: Some(now.clone()),
                value: None,
            });
        }
    }
    (taints != have).then_some((taints, marks))
}

fn is_health(key: &str) -> bool {
    key == NOT_READY || key == UNREACHABLE
}

fn is_ours(taint: &Taint) -> bool {
    let of_conditions = CONDITION_TAINTS.iter().any(|(_, _, key)| *key == taint.key);
    match taint.effect.as_str() {
        "NoSchedule" => is_health(&taint.key) || of_conditions || taint.key == UNSCHEDULABLE,
        "NoExecute" => is_health(&taint.key),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::jiff::Timestamp;
    use serde_json::Value;

    fn node(value: Value) -> Node {
        serde_json::from_value(value).unwrap()
    }

    fn ready(status: &str) -> Value {
        json!({"metadata": {"name": "n1"}, "status": {"conditions": [{"type": "Ready", "status": status}]}})
    }

    // KS-A70: grace per kind of node, reasons and texts.
    #[test]
    fn silence_makes_conditions_unknown() {
        let timers = Timers::default();
        let kinds = |node: &Node, silent_s: u64| {
            silent_conditions(node, Duration::from_secs(silent_s), &timers)
                .into_iter()
                .map(|c| format!("{}={}/{}", c.type_, c.status, c.reason.unwrap()))
                .collect::<Vec<_>>()
        };
        let reporting = node(ready("True"));
        assert!(kinds(&reporting, 10).is_empty());
        assert_eq!(
            kinds(&reporting, 11),
            [
                "Ready=Unknown/NodeStatusUnknown",
                "MemoryPressure=Unknown/NodeStatusNeverUpdated",
                "DiskPressure=Unknown/NodeStatusNeverUpdated",
                "PIDPressure=Unknown/NodeStatusNeverUpdated"
            ]
        );
        let fresh = node(json!({"metadata": {"name": "n1"}}));
        assert!(kinds(&fresh, 20).is_empty());
        assert_eq!(kinds(&fresh, 21)[0], "Ready=Unknown/NodeStatusNeverUpdated");
        assert!(kinds(&node(ready("Unknown")), 60).iter().all(|k| !k.starts_with("Ready")));
    }

    fn taints(node: &Node, ready: &str, zone: ZoneState, may_mark: bool) -> Option<Vec<String>> {
        let now = Time(Timestamp::UNIX_EPOCH);
        let (taints, _) = wanted_taints(node, ready, zone, may_mark, &now)?;
        Some(
            taints
                .iter()
                .map(|t| format!("{}:{}", t.key.trim_start_matches("node.kubernetes.io/"), t.effect))
                .collect(),
        )
    }

    // KS-A70: both taints, exclusive keys, majority loss evicts nothing.
    #[test]
    fn taints_follow_conditions() {
        let bare = node(ready("True"));
        assert_eq!(taints(&bare, "True", ZoneState::Normal, true), None);
        let want = |list: &[&str]| Some(list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
        assert_eq!(
            taints(&bare, "Unknown", ZoneState::Normal, true),
            want(&["unreachable:NoSchedule", "unreachable:NoExecute"])
        );
        assert_eq!(
            taints(&bare, "False", ZoneState::Normal, true),
            want(&["not-ready:NoSchedule", "not-ready:NoExecute"])
        );
        assert_eq!(taints(&bare, "Unknown", ZoneState::Normal, false), want(&["unreachable:NoSchedule"]));
        assert_eq!(taints(&bare, "Unknown", ZoneState::Partial, true), want(&["unreachable:NoSchedule"]));
        assert_eq!(taints(&bare, "Unknown", ZoneState::Full, true), want(&["unreachable:NoSchedule"]));

        let mut marked = ready("False");
        marked["spec"] = json!({"taints": [
            {"key": "mine", "effect": "NoSchedule"},
            {"key": UNREACHABLE, "effect": "NoSchedule"},
            {"key": UNREACHABLE, "effect": "NoExecute"},
        ]});
        let marked = node(marked);
        assert_eq!(taints(&marked, "True", ZoneState::Normal, true), want(&["mine:NoSchedule"]));
        assert_eq!(
            taints(&marked, "False", ZoneState::Partial, false),
            want(&["mine:NoSchedule", "not-ready:NoSchedule", "not-ready:NoExecute"])
        );
        assert_eq!(
            taints(&marked, "Unknown", ZoneState::Full, true),
            want(&["mine:NoSchedule", "unreachable:NoSchedule"])
        );

        let mut cordoned = ready("True");
        cordoned["spec"] = json!({"unschedulable": true});
        assert_eq!(
            taints(&node(cordoned), "True", ZoneState::Normal, true),
            want(&["unschedulable:NoSchedule"])
        );
    }

    #[test]
    fn zones_count_their_losses() {
        let state = |statuses: &[&str]| {
            let views: Vec<_> =
                statuses.iter().map(|s| (Arc::new(node(ready(s))), (*s).to_owned())).collect();
            zone_states(&views)[&(String::new(), String::new())]
        };
        assert_eq!(state(&["True", "True", "Unknown"]), ZoneState::Normal);
        assert_eq!(state(&["True", "False", "Unknown"]), ZoneState::Normal);
        assert_eq!(state(&["False", "False", "Unknown"]), ZoneState::Full);
        assert_eq!(state(&["True", "True", "False", "False", "Unknown"]), ZoneState::Partial);
        assert_eq!(state(&["Unknown"]), ZoneState::Full);
    }
}
