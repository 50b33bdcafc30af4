//! Status of disruption budgets (kubernetes-surface.md §16.5). The eviction subresource decides by it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_apimachinery::labels;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{ApiResource, Patch, PatchParams};
use kube::core::{DynamicObject, GroupVersionKind};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;
use tokio::sync::Notify;

use crate::cache::Caches;
use crate::drive::{Pass, drive};
use crate::events::{Recorder, Severity};
use crate::{fault, pods};

const COMPONENT: &str = "controllermanager";
/// An eviction that was allowed but never happened counts for this long.
const DISRUPTED_FOR: SignedDuration = SignedDuration::from_secs(120);
const IDLE: Duration = Duration::from_secs(60);

struct Budgets {
    client: Client,
    caches: Arc<Caches>,
    recorder: Recorder,
}

/// Runs the disruption budgets for ever.
pub(crate) async fn run(client: Client, caches: Arc<Caches>, recorder: Recorder) {
    let wake = Arc::new(Notify::new());
    caches.pods.wakes(&wake);
    caches.budgets.wakes(&wake);
    let budgets = Budgets { client, caches, recorder };
    drive("disruption", wake, Duration::from_millis(20), budgets).await;
}

/// The numbers of a budget.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Numbers {
    expected: i32,
    desired: i32,
    healthy: i32,
    allowed: i32,
    disrupted: BTreeMap<String, Time>,
}

/// Number of pods expected when it does not follow from the pods alone.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Scale {
    /// Sum of the controllers' replicas.
    Known(i32),
    /// Why it cannot be known.
    Unknown(String),
}

fn numbers(
    budget: &PodDisruptionBudget,
    matching: &[&Pod],
    scale: &Scale,
    now: Timestamp,
) -> Result<Numbers, String> {
    let spec = budget.spec.clone().unwrap_or_default();
    let count = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    let scaled = || match scale {
        Scale::Known(replicas) => Ok(*replicas),
        Scale::Unknown(why) => Err(why.clone()),
    };
    let (expected, desired) = match (&spec.max_unavailable, &spec.min_available) {
        (Some(most), _) => {
            let expected = scaled()?;
            (expected, (expected - resolve(most, expected)?).max(0))
        }
        (None, Some(IntOrString::Int(least))) => (count(matching.len()), *least),
        (None, Some(percent)) => {
            let expected = scaled()?;
            (expected, resolve(percent, expected)?)
        }
        (None, None) => (count(matching.len()), 0),
    };
    let disrupted: BTreeMap<String, Time> = budget
        .status
        .iter()
        .flat_map(|s| s.disrupted_pods.iter().flatten())
        .filter(|(name, at)| {
            let pending = matching.iter().any(|p| p.name_any() == **name && !pods::is_terminating(p));
            pending && now.duration_since(at.0) < DISRUPTED_FOR
        })
        .map(|(name, at)| (name.clone(), at.clone()))
        .collect();
    let is_healthy = |pod: &&&Pod| {
        let ready = pods::condition(pod, "Ready").is_some_and(|c| c.status == "True");
        ready && !pods::is_terminating(pod) && !disrupted.contains_key(&pod.name_any())
    };
    let healthy = count(matching.iter().filter(is_healthy).count());
    let allowed = if expected == 0 { 0 } else { (healthy - desired).max(0) };
    Ok(Numbers { expected, desired, healthy, allowed, disrupted })
}

/// An absolute number, or a percentage of `whole` rounded up.
fn resolve(value: &IntOrString, whole: i32) -> Result<i32, String> {
    match value {
        IntOrString::Int(number) => Ok(*number),
        IntOrString::String(text) => {
            let percent: i64 = text
                .strip_suffix('%')
                .and_then(|n| n.parse().ok())
                .ok_or_else(|| format!("invalid value {text:?}: not a percentage"))?;
            let scaled = (i64::from(whole) * percent + 99).div_euclid(100);
            i32::try_from(scaled).map_err(|_| format!("invalid value {text:?}: too large"))
        }
    }
}

impl Pass for Budgets {
    async fn pass(&mut self) -> anyhow::Result<Duration> {
        self.caches.budgets.ready().await?;
        self.caches.pods.ready().await?;
        let all = self.caches.pods.all();
        let mut next = IDLE;
        for budget in self.caches.budgets.all() {
            let matching = matching(&budget, &all);
            let now = holdfast_env::now();
            let scale = if needs_scale(&budget) { self.scale(&matching).await? } else { Scale::Known(0) };
            match numbers(&budget, &matching, &scale, now) {
                Ok(numbers) => {
                    if !numbers.disrupted.is_empty() {
                        next = next.min(Duration::from_secs(5));
                    }
                    self.write(&budget, &numbers).await?;
                }
                Err(why) => self.fail(&budget, &why).await?,
            }
        }
        self.reset_targets(&all).await?;
        Ok(next)
    }
}

fn matching<'a>(budget: &PodDisruptionBudget, all: &'a [Arc<Pod>]) -> Vec<&'a Pod> {
    let selector = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
    all.iter()
        .map(AsRef::as_ref)
        .filter(|pod: &&Pod| pod.metadata.namespace == budget.metadata.namespace)
        .filter(|pod| !pods::is_finished(pod) && labels::selects(selector, pod.metadata.labels.as_ref()))
        .collect()
}

fn needs_scale(budget: &PodDisruptionBudget) -> bool {
    let Some(spec) = &budget.spec else { return false };
    spec.max_unavailable.is_some() || matches!(spec.min_available, Some(IntOrString::String(_)))
}

impl Budgets {
    /// Sum of the replicas of the pods' controllers.
    async fn scale(&self, matching: &[&Pod]) -> anyhow::Result<Scale> {
        let mut replicas = 0;
        let mut seen = Vec::new();
        for pod in matching {
            let controller = pod.owner_references().iter().find(|o| o.controller == Some(true));
            let Some(controller) = controller else {
                return Ok(Scale::Unknown(format!("found no controller ref for pod {:?}", pod.name_any())));
            };
            if seen.contains(&controller.uid) {
                continue;
            }
            seen.push(controller.uid.clone());
            let (group, version) =
                controller.api_version.split_once('/').unwrap_or(("", &controller.api_version));
            let kind = GroupVersionKind::gvk(group, version, &controller.kind);
            let found = kube::discovery::pinned_kind(&self.client, &kind).await;
            let resource = found.map_or_else(|_| ApiResource::from_gvk(&kind), |(resource, _)| resource);
            let api: Api<DynamicObject> =
                Api::namespaced_with(self.client.clone(), &pod.namespace().unwrap_or_default(), &resource);
            match api.get_scale(&controller.name).await {
                Ok(scale) => replicas += scale.spec.and_then(|s| s.replicas).unwrap_or(0),
                Err(kube::Error::Api(_)) => {
                    return Ok(Scale::Unknown(format!(
                        "{}.{group} does not implement the scale subresource",
                        resource.plural
                    )));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Scale::Known(replicas))
    }

    async fn write(&self, budget: &PodDisruptionBudget, numbers: &Numbers) -> anyhow::Result<()> {
        let (status, reason) =
            if numbers.allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
        let old = budget.status.clone().unwrap_or_default();
        let condition = condition(budget, status, reason, "");
        let same = old.observed_generation == budget.metadata.generation
            && [old.expected_pods, old.desired_healthy, old.current_healthy, old.disruptions_allowed]
                == [numbers.expected, numbers.desired, numbers.healthy, numbers.allowed].map(Some)
            && old.disrupted_pods.unwrap_or_default() == numbers.disrupted
            && condition.is_none();
        if same {
            return Ok(());
        }
        // A merge patch removes a key only when told so.
        let mut disrupted: BTreeMap<String, serde_json::Value> = BTreeMap::new();
        for name in budget.status.iter().flat_map(|s| s.disrupted_pods.iter().flatten()).map(|(name, _)| name)
        {
            disrupted.insert(name.clone(), serde_json::Value::Null);
        }
        for (name, at) in &numbers.disrupted {
            disrupted.insert(name.clone(), json!(at));
        }
        let mut patch = json!({
            "observedGeneration": budget.metadata.generation,
            "expectedPods": numbers.expected,
            "desiredHealthy": numbers.desired,
            "currentHealthy": numbers.healthy,
            "disruptionsAllowed": numbers.allowed,
            "disruptedPods": disrupted,
        });
        if let Some(condition) = condition {
            patch["conditions"] = json!([condition]);
        }
        self.patch(budget, patch).await
    }

    async fn fail(&self, budget: &PodDisruptionBudget, why: &str) -> anyhow::Result<()> {
        let Some(condition) = condition(budget, "False", "SyncFailed", why) else {
            return Ok(());
        };
        tracing::debug!(
            budget = budget.name_any(),
            why,
            "budget cannot be computed; no disruption is allowed"
        );
        self.recorder.publish(
            COMPONENT,
            budget,
            Severity::Warning,
            "CalculateExpectedPodCountFailed",
            format!("Failed to calculate the number of expected pods: {why}"),
        );
        let patch = json!({
            "observedGeneration": budget.metadata.generation,
            "expectedPods": 0, "desiredHealthy": 0, "currentHealthy": 0,
            "disruptionsAllowed": 0,
            "conditions": [condition],
        });
        self.patch(budget, patch).await
    }

    async fn patch(&self, budget: &PodDisruptionBudget, status: serde_json::Value) -> anyhow::Result<()> {
        let api: Api<PodDisruptionBudget> =
            Api::namespaced(self.client.clone(), &budget.namespace().unwrap_or_default());
        let patch = json!({
            "metadata": {"uid": budget.metadata.uid, "resourceVersion": budget.metadata.resource_version},
            "status": status,
        });
        let params = PatchParams { field_manager: Some(pods::MANAGER.to_owned()), ..PatchParams::default() };
        let result = api.patch_status(&budget.name_any(), &params, &Patch::Merge(patch)).await;
        fault::unless_stale(result)?;
        Ok(())
    }

    /// Takes back the mark of evictions that were allowed but never happened.
    async fn reset_targets(&self, all: &[Arc<Pod>]) -> anyhow::Result<()> {
        for pod in all.iter().filter(|p| !pods::is_terminating(p) && !pods::is_finished(p)) {
            let Some(mark) = pods::condition(pod, "DisruptionTarget") else { continue };
            let age = mark.last_transition_time.as_ref().map(|t| holdfast_env::now().duration_since(t.0));
            if mark.status == "True" && age.is_none_or(|age| age >= DISRUPTED_FOR) {
                let condition = pods::condition_patch(pod, "DisruptionTarget", "False", None, None);
                pods::patch_status(&self.client, pod, json!({"conditions": [condition]})).await?;
            }
        }
        Ok(())
    }
}

/// The budget's condition, if it has to be written.
fn condition(budget: &PodDisruptionBudget, status: &str, reason: &str, message: &str) -> Option<Condition> {
    let old = budget
        .status
        .as_ref()
        .and_then(|s| s.conditions.as_deref())
        .and_then(|all| all.iter().find(|c| c.type_ == "DisruptionAllowed"));
    let same = old.is_some_and(|o| {
        o.status == status
            && o.reason == reason
            && o.message == message
            && o.observed_generation == budget.metadata.generation
    });
    (!same).then(|| Condition {
        type_: "DisruptionAllowed".to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: budget.metadata.generation,
        last_transition_time: old
            .filter(|o| o.status == status)
            .map_or_else(|| Time(holdfast_env::now()), |o| o.last_transition_time.clone()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, ready: bool) -> Pod {
        let status = if ready { "True" } else { "False" };
        serde_json::from_value(json!({"metadata": {"name": name}, "status": {"conditions": [{"type": "Ready", "status": status}]}})).unwrap()
    }

    // KS-A72: integers, percentages rounded up, maxUnavailable, disrupted pods for two minutes.
    #[test]
    fn budgets_add_up() {
        let now: Timestamp = "2026-01-01T00:10:00Z".parse().unwrap();
        let check = |spec: serde_json::Value,
                     ready: usize,
                     unready: usize,
                     replicas: i32,
                     want: (i32, i32, i32, i32)| {
            let budget: PodDisruptionBudget =
                serde_json::from_value(json!({"metadata": {"name": "b"}, "spec": spec})).unwrap();
            let pods: Vec<Pod> = (0..ready + unready).map(|n| pod(&format!("p{n}"), n < ready)).collect();
            let matching: Vec<&Pod> = pods.iter().collect();
            let n = numbers(&budget, &matching, &Scale::Known(replicas), now).unwrap();
            assert_eq!((n.expected, n.desired, n.healthy, n.allowed), want, "{spec}");
        };
        check(json!({"minAvailable": 2}), 3, 0, 0, (3, 2, 3, 1));
        check(json!({"minAvailable": 2}), 1, 2, 0, (3, 2, 1, 0));
        check(json!({"minAvailable": 0}), 0, 0, 0, (0, 0, 0, 0));
        check(json!({"minAvailable": "50%"}), 5, 0, 5, (5, 3, 5, 2));
        check(json!({"maxUnavailable": 1}), 3, 0, 3, (3, 2, 3, 1));
        check(json!({"maxUnavailable": "34%"}), 3, 0, 3, (3, 1, 3, 2));
        check(json!({"maxUnavailable": 5}), 2, 0, 2, (2, 0, 2, 2));

        let budget: PodDisruptionBudget = serde_json::from_value(json!({
            "metadata": {"name": "b"}, "spec": {"minAvailable": 1},
            "status": {"currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0,
                       "disruptedPods": {"p0": "2026-01-01T00:09:00Z", "p1": "2026-01-01T00:07:59Z", "gone": "2026-01-01T00:09:00Z"}}
        }))
        .unwrap();
        let pods = [pod("p0", true), pod("p1", true), pod("p2", true)];
        let matching: Vec<&Pod> = pods.iter().collect();
        let n = numbers(&budget, &matching, &Scale::Known(0), now).unwrap();
        assert_eq!(n.disrupted.keys().collect::<Vec<_>>(), ["p0"]);
        assert_eq!((n.healthy, n.allowed), (2, 1));
    }

    #[test]
    fn a_controller_without_scale_is_said() {
        let budget: PodDisruptionBudget =
            serde_json::from_value(json!({"metadata": {"name": "b"}, "spec": {"maxUnavailable": 1}}))
                .unwrap();
        let why = Scale::Unknown("no scale".to_owned());
        assert_eq!(numbers(&budget, &[], &why, Timestamp::UNIX_EPOCH), Err("no scale".to_owned()));
    }
}
