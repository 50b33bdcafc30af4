//! The pod status this node writes: a pure function of pod, record and facts.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Pod, PodCondition};
use serde_json::{Map, Value, json};

use crate::plan;
use crate::record::{ContainerRecord, Exit, PodRecord, State};

/// Facts that are neither in the pod nor in the record.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The node's address.
    pub node_ip: String,
    /// Containers that are ready to serve.
    pub ready: BTreeSet<String>,
    /// What keeps a container from starting: reason and sentence.
    pub hindrance: Option<(String, String)>,
    /// Now, RFC 3339.
    pub now: String,
}

/// Whether what was to be written about a pod need not be written any more: the pod is gone.
///
/// A conflict says less: another pod of that name, which the watch will bring, or a server that was too busy to
/// find a quiet moment. It is tried again, since the pod's end would be told to nobody otherwise.
#[must_use]
pub fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// The part of `status` this node owns. Conditions of others (readiness gates, PodScheduled) are
/// absent and thereby left alone by a strategic merge.
#[must_use]
pub fn build(pod: &Pod, record: &PodRecord, facts: &Facts) -> Value {
    let phase = plan::phase(pod, record);
    let mut status = Map::new();
    status.insert("phase".to_owned(), json!(phase));
    if let Some(generation) = pod.metadata.generation {
        status.insert("observedGeneration".to_owned(), json!(generation));
    }
    status.insert("hostIP".to_owned(), json!(facts.node_ip));
    status.insert("hostIPs".to_owned(), json!([{"ip": facts.node_ip}]));
    if phase != "Pending" {
        status.insert("podIP".to_owned(), json!(facts.node_ip));
        status.insert("podIPs".to_owned(), json!([{"ip": facts.node_ip}]));
    }
    status.insert("startTime".to_owned(), json!(record.start_time));
    status.insert("conditions".to_owned(), conditions(pod, record, facts, phase));
    let statuses: Vec<Value> = pod
        .spec
        .iter()
        .flat_map(|spec| &spec.containers)
        .map(|container| {
            let image = container.image.as_deref().unwrap_or_default();
            container_status(&container.name, image, record, facts)
        })
        .collect();
    status.insert("containerStatuses".to_owned(), Value::Array(statuses));
    Value::Object(status)
}

fn conditions(pod: &Pod, record: &PodRecord, facts: &Facts, phase: &str) -> Value {
    let names: Vec<&str> = plan::container_names(pod).collect();
    let ended = matches!(phase, "Succeeded" | "Failed");
    let unready: Vec<&str> = names.iter().copied().filter(|name| !facts.ready.contains(*name)).collect();
    let containers_ready = !names.is_empty() && unready.is_empty() && !ended;
    let reason = match (ended, containers_ready) {
        (true, _) if phase == "Succeeded" => Some(("PodCompleted", String::new())),
        (true, _) => Some(("PodFailed", String::new())),
        (false, false) => {
            Some(("ContainersNotReady", format!("containers with unready status: {unready:?}")))
        }
        (false, true) => None,
    };
    let gate = missing_gate(pod);
    let ready_reason = reason.clone().or_else(|| {
        gate.as_ref().map(|gate| {
            ("ReadinessGatesNotReady", format!("the status of pod readiness gate {gate:?} is not \"True\""))
        })
    });
    let sandbox = record.may_have_processes();
    json!([
        condition(pod, facts, "PodReadyToStartContainers", sandbox, None),
        condition(
            pod,
            facts,
            "Initialized",
            true,
            (phase == "Succeeded").then(|| ("PodCompleted", String::new()))
        ),
        condition(pod, facts, "ContainersReady", containers_ready, reason),
        condition(pod, facts, "Ready", containers_ready && gate.is_none(), ready_reason),
    ])
}

/// The first readiness gate whose condition is not True.
fn missing_gate(pod: &Pod) -> Option<String> {
    let gates = pod.spec.as_ref()?.readiness_gates.as_ref()?;
    gates
        .iter()
        .find(|gate| existing(pod, &gate.condition_type).is_none_or(|c| c.status != "True"))
        .map(|gate| gate.condition_type.clone())
}

fn existing<'a>(pod: &'a Pod, name: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == name)
}

fn condition(pod: &Pod, facts: &Facts, name: &str, is: bool, reason: Option<(&str, String)>) -> Value {
    let status = if is { "True" } else { "False" };
    let since = existing(pod, name)
        .filter(|old| old.status == status)
        .and_then(|old| serde_json::to_value(old.last_transition_time.as_ref()?).ok())
        .unwrap_or_else(|| json!(facts.now));
    let (reason, message) = match reason {
        Some((reason, message)) => {
            (json!(reason), if message.is_empty() { Value::Null } else { json!(message) })
        }
        // null removes what an earlier status left there
        None => (Value::Null, Value::Null),
    };
    let mut condition = json!({"type": name, "status": status, "lastTransitionTime": since,
                               "reason": reason, "message": message});
    if let Some(generation) = pod.metadata.generation {
        condition["observedGeneration"] = json!(generation);
    }
    condition
}

fn container_status(name: &str, image: &str, record: &PodRecord, facts: &Facts) -> Value {
    let fresh = ContainerRecord::new();
    let container = record.containers.get(name).unwrap_or(&fresh);
    let running = matches!(container.state, State::Running { .. });
    let mut status = json!({
        "name": name,
        "image": image,
        "imageID": image,
        "ready": running && facts.ready.contains(name),
        "started": running,
        "restartCount": container.attempt,
        "state": state(container, facts),
        "lastState": container.last.as_ref().map_or(json!({}), |exit| {
            let attempt = container.attempt.saturating_sub(1);
            json!({"terminated": terminated(exit, &container_id(record, name, attempt))})
        }),
    });
    if running || matches!(container.state, State::Exited { .. }) {
        status["containerID"] = json!(container_id(record, name, container.attempt));
    }
    if let State::Exited { exit } = &container.state {
        status["state"]["terminated"] = terminated(exit, &container_id(record, name, container.attempt));
    }
    status
}

fn state(container: &ContainerRecord, facts: &Facts) -> Value {
    match &container.state {
        State::Running { started_at, .. } => json!({"running": {"startedAt": started_at}}),
        State::Exited { .. } => json!({}),
        State::Waiting { .. } | State::Starting => {
            let (reason, message) = match (&facts.hindrance, container.attempt) {
                (Some((reason, message)), _) => (reason.as_str(), message.clone()),
                (None, 0) => ("ContainerCreating", String::new()),
                (None, n) => (
                    "CrashLoopBackOff",
                    format!("the container ended {n} times; waiting before the next start"),
                ),
            };
            let mut waiting = json!({"reason": reason});
            if !message.is_empty() {
                waiting["message"] = json!(message);
            }
            json!({"waiting": waiting})
        }
    }
}

fn terminated(exit: &Exit, id: &str) -> Value {
    let mut value = json!({"exitCode": exit.code, "reason": exit.reason,
                           "finishedAt": exit.finished_at, "containerID": id});
    if let Some(signal) = exit.signal {
        value["signal"] = json!(signal);
    }
    if !exit.message.is_empty() {
        value["message"] = json!(exit.message);
    }
    if !exit.started_at.is_empty() {
        value["startedAt"] = json!(exit.started_at);
    }
    value
}

fn container_id(record: &PodRecord, name: &str, attempt: u32) -> String {
    format!("holdfast://{}/{name}/{attempt}", record.uid)
}

/// Whether `have` already says everything `want` says. Conditions are compared by type, and times of
/// transition do not count.
#[must_use]
pub fn is_satisfied(have: &Value, want: &Value) -> bool {
    match (have, want) {
        (_, Value::Null) => have.is_null(),
        (Value::Object(have), Value::Object(want)) => want.iter().all(|(key, value)| {
            key == "lastTransitionTime" || is_satisfied(have.get(key).unwrap_or(&Value::Null), value)
        }),
        (Value::Null, Value::Object(want)) => want.is_empty(),
        (Value::Array(have), Value::Array(want)) => {
            if want.iter().all(|item| item.get("type").is_some()) && !want.is_empty() {
                want.iter().all(|item| {
                    have.iter().any(|other| other["type"] == item["type"] && is_satisfied(other, item))
                })
            } else {
                have.len() == want.len() && have.iter().zip(want).all(|(h, w)| is_satisfied(h, w))
            }
        }
        _ => have == want,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::{record, running};

    #[test]
    fn a_write_is_given_up_only_for_a_pod_that_is_gone() {
        for (code, gone) in [(404, true), (409, false), (429, false), (500, false), (503, false)] {
            let status = kube::core::Status { code, ..kube::core::Status::default() };
            assert_eq!(is_gone(&kube::Error::Api(Box::new(status))), gone, "{code}");
        }
        assert!(!is_gone(&kube::Error::TlsRequired), "nobody answered");
    }

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "uid": "u1", "generation": 2},
            "spec": {"readinessGates": [{"conditionType": "kubevirt.io/virtual-machine-unpaused"}],
                     "containers": [{"name": "compute", "image": "holdfast/launcher:1"}]},
        }))
        .unwrap()
    }

    fn facts(ready: bool) -> Facts {
        Facts {
            node_ip: "10.0.0.2".to_owned(),
            ready: ready.then(|| "compute".to_owned()).into_iter().collect(),
            hindrance: None,
            now: "2026-01-01T00:00:09Z".to_owned(),
        }
    }

    fn condition_of<'a>(status: &'a Value, name: &str) -> &'a Value {
        status["conditions"].as_array().unwrap().iter().find(|c| c["type"] == name).unwrap()
    }

    #[test]
    fn ready_needs_the_gate_too() {
        let mut pod = pod();
        let status = build(&pod, &record(running()), &facts(true));
        assert_eq!(condition_of(&status, "ContainersReady")["status"], "True");
        assert_eq!(condition_of(&status, "Ready")["status"], "False");
        assert_eq!(condition_of(&status, "Ready")["reason"], "ReadinessGatesNotReady");
        pod.status = Some(
            serde_json::from_value(json!({"conditions": [
                {"type": "kubevirt.io/virtual-machine-unpaused", "status": "True"},
                {"type": "Ready", "status": "True", "lastTransitionTime": "2025-01-01T00:00:00Z"}]}))
            .unwrap(),
        );
        let status = build(&pod, &record(running()), &facts(true));
        assert_eq!(condition_of(&status, "Ready")["status"], "True");
        assert_eq!(condition_of(&status, "Ready")["lastTransitionTime"], "2025-01-01T00:00:00Z");
        assert_eq!(status["phase"], "Running");
        assert_eq!(status["containerStatuses"][0]["ready"], true);
    }

    #[test]
    fn an_end_is_told_with_code_signal_and_message() {
        let exit = Exit {
            code: 137,
            signal: Some(9),
            reason: "Error".to_owned(),
            message: "last words".to_owned(),
            started_at: "2026-01-01T00:00:01Z".to_owned(),
            finished_at: "2026-01-01T00:00:02Z".to_owned(),
        };
        let mut pod = pod();
        pod.spec.as_mut().unwrap().restart_policy = Some("Never".to_owned());
        let status = build(&pod, &record(State::Exited { exit }), &facts(false));
        assert_eq!(status["phase"], "Failed");
        let terminated = &status["containerStatuses"][0]["state"]["terminated"];
        assert_eq!(terminated["exitCode"], 137);
        assert_eq!(terminated["signal"], 9);
        assert_eq!(terminated["message"], "last words");
        assert_eq!(condition_of(&status, "Ready")["reason"], "PodFailed");
    }

    #[test]
    fn written_status_satisfies_itself_whatever_others_added() {
        let want = build(&pod(), &record(running()), &facts(true));
        let mut have: Value = want.clone();
        have["conditions"].as_array_mut().unwrap().push(json!({"type": "PodScheduled", "status": "True"}));
        have["qosClass"] = json!("Burstable");
        assert!(is_satisfied(&have, &want));
        have["conditions"][3]["status"] = json!("Unknown");
        assert!(!is_satisfied(&have, &want), "node lifecycle set Ready to something else");
    }
}
