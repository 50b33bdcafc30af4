//! What to do next for one pod: a pure function of the pod, the record and the time.

use k8s_openapi::api::core::v1::Pod;

use crate::image::Image;
use crate::record::{ContainerRecord, Exit, PodRecord, State};

/// What is known when deciding.
#[derive(Debug, Clone, Copy)]
pub struct Observed<'a> {
    /// The pod object; `None` when it is gone from the API.
    pub pod: Option<&'a Pod>,
    /// The record, with no container in `Starting` that init was not asked about.
    pub record: &'a PodRecord,
    /// Milliseconds since 1970.
    pub now_ms: i64,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing now; look again at the instant (milliseconds since 1970) or when something happens.
    Wait(Option<i64>),
    /// Start this container.
    Start(String),
    /// Keep the exit as the last one and wait for the next start.
    Restart {
        /// Which container.
        container: String,
        /// Not before, milliseconds since 1970.
        not_before_ms: i64,
    },
    /// Send SIGTERM to everything and note the time.
    Terminate,
    /// Kill everything.
    Kill,
    /// The final status is written: remove the pod object.
    DeleteObject,
    /// The object is gone and so are the processes: remove directory and record.
    Forget,
}

/// Decides the next step.
#[must_use]
pub fn next(observed: Observed<'_>) -> Step {
    let record = observed.record;
    let Some(pod) = observed.pod else {
        return if record.may_have_processes() { Step::Kill } else { Step::Forget };
    };
    if is_deleted(pod) || is_ended_by_others(pod, record) {
        return end(pod, record, observed.now_ms);
    }
    if refusal(pod).is_some() {
        return Step::Wait(None);
    }
    run(pod, record, observed.now_ms)
}

fn run(pod: &Pod, record: &PodRecord, now_ms: i64) -> Step {
    let policy = restart_policy(pod);
    let mut wake = None;
    for name in container_names(pod) {
        match record.containers.get(name).map(|c| (c, &c.state)) {
            None => return Step::Start(name.to_owned()),
            Some((_, State::Waiting { not_before_ms })) if *not_before_ms <= now_ms => {
                return Step::Start(name.to_owned());
            }
            Some((_, State::Waiting { not_before_ms })) => {
                wake = Some(wake.map_or(*not_before_ms, |at: i64| at.min(*not_before_ms)));
            }
            Some((_, State::Starting)) => return Step::Start(name.to_owned()),
            Some((_, State::Running { .. })) => {}
            Some((container, State::Exited { exit })) if policy.restarts(exit) => {
                let not_before_ms = now_ms + backoff_ms(container.attempt);
                return Step::Restart { container: name.to_owned(), not_before_ms };
            }
            Some((_, State::Exited { .. })) => {}
        }
    }
    Step::Wait(wake)
}

fn end(pod: &Pod, record: &PodRecord, now_ms: i64) -> Step {
    if record.may_have_processes() {
        let grace_s = pod.metadata.deletion_grace_period_seconds.unwrap_or(record.grace_s);
        return match record.term_sent_ms {
            _ if grace_s <= 0 => Step::Kill,
            None => Step::Terminate,
            Some(sent) if sent + grace_s * 1000 <= now_ms => Step::Kill,
            Some(sent) => Step::Wait(Some(sent + grace_s * 1000)),
        };
    }
    // With grace 0 the object is already final; only finalizers of others keep it.
    if is_deleted(pod) && pod.metadata.deletion_grace_period_seconds != Some(0) {
        return Step::DeleteObject;
    }
    Step::Wait(None)
}

/// Delay before start number `attempt + 1`: at once, then 10 s, 20 s … 300 s.
#[must_use]
pub fn backoff_ms(attempt: u32) -> i64 {
    match attempt {
        0 => 0,
        n => (10_000_i64 << (n - 1).min(5)).min(300_000),
    }
}

/// Whether deletion was asked for.
#[must_use]
pub fn is_deleted(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// A terminal phase that does not follow from what ran here (set by eviction or pod GC).
fn is_ended_by_others(pod: &Pod, record: &PodRecord) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Failed" | "Succeeded"))
        && record.containers.values().any(|c| !matches!(c.state, State::Exited { .. }))
}

/// Restart policy of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Whatever the exit code.
    Always,
    /// After an exit code other than 0.
    OnFailure,
    /// Not at all.
    Never,
}

impl RestartPolicy {
    fn restarts(self, exit: &Exit) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => exit.code != 0,
            Self::Never => false,
        }
    }
}

/// The pod's restart policy (default `Always`).
#[must_use]
pub fn restart_policy(pod: &Pod) -> RestartPolicy {
    match pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()) {
        Some("Never") => RestartPolicy::Never,
        Some("OnFailure") => RestartPolicy::OnFailure,
        _ => RestartPolicy::Always,
    }
}

/// Names of the pod's containers in order.
pub fn container_names(pod: &Pod) -> impl Iterator<Item = &str> {
    pod.spec.iter().flat_map(|spec| &spec.containers).map(|container| container.name.as_str())
}

/// Where the whole pod stands, as its `status.phase` says.
#[must_use]
pub fn phase(pod: &Pod, record: &PodRecord) -> &'static str {
    let policy = restart_policy(pod);
    let states: Vec<Option<&ContainerRecord>> =
        container_names(pod).map(|name| record.containers.get(name)).collect();
    let ended = |c: &&ContainerRecord| match &c.state {
        State::Exited { exit } => is_deleted(pod) || !policy.restarts(exit),
        _ => false,
    };
    if !states.is_empty() && states.iter().all(|c| c.as_ref().is_some_and(ended)) {
        let failed = states.iter().flatten().any(|c| match &c.state {
            State::Exited { exit } => exit.code != 0,
            _ => false,
        });
        return if failed { "Failed" } else { "Succeeded" };
    }
    if is_deleted(pod) && !record.may_have_processes() {
        // Deleted before everything was started: nothing of it will ever run here, and whoever keeps the
        // object with a finalizer must be able to see that.
        return "Failed";
    }
    let started = |c: &&ContainerRecord| {
        c.attempt > 0 || matches!(c.state, State::Running { .. } | State::Exited { .. })
    };
    if states.iter().all(|c| c.as_ref().is_some_and(started)) { "Running" } else { "Pending" }
}

/// Why this runtime does not serve a pod: event reason and sentence.
#[must_use]
pub fn refusal(pod: &Pod) -> Option<(&'static str, String)> {
    let spec = pod.spec.as_ref()?;
    for container in &spec.containers {
        let image = container.image.as_deref().unwrap_or_default();
        if Image::of(image).is_none() {
            return Some((
                "ImageNotServed",
                format!(
                    "image {image:?} is not served: nodes of the embedded platform run only \
                     Holdfast's own images (holdfast/launcher, holdfast/importer)"
                ),
            ));
        }
    }
    unserved_field(pod)
        .map(|field| ("PodNotServed", format!("{field} is not available on nodes of the embedded platform")))
}

fn unserved_field(pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    if spec.init_containers.as_ref().is_some_and(|list| !list.is_empty()) {
        return Some("spec.initContainers".to_owned());
    }
    for (index, container) in spec.containers.iter().enumerate() {
        let fields = [
            ("readinessProbe", container.readiness_probe.is_some()),
            ("livenessProbe", container.liveness_probe.is_some()),
            ("startupProbe", container.startup_probe.is_some()),
            ("lifecycle", container.lifecycle.is_some()),
            ("volumeDevices", container.volume_devices.as_ref().is_some_and(|v| !v.is_empty())),
            ("command", container.command.as_ref().is_some_and(|v| !v.is_empty())),
        ];
        if let Some((field, _)) = fields.into_iter().find(|(_, used)| *used) {
            return Some(format!("spec.containers[{index}].{field}"));
        }
    }
    for (index, volume) in spec.volumes.iter().flatten().enumerate() {
        let memory = volume.empty_dir.as_ref().is_some_and(|e| e.medium.as_deref() == Some("Memory"));
        if memory {
            return Some(format!("spec.volumes[{index}].emptyDir.medium Memory"));
        }
        let served = volume.empty_dir.is_some()
            || volume.persistent_volume_claim.is_some()
            || volume.secret.is_some()
            || volume.config_map.is_some();
        if !served {
            return Some(format!("the kind of volume spec.volumes[{index}] ({})", volume.name));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::{record, running};
    use serde_json::json;

    fn pod(extra: &serde_json::Value) -> Pod {
        let mut value = json!({
            "metadata": {"name": "p", "namespace": "default", "uid": "u1"},
            "spec": {"restartPolicy": "Never", "containers": [
                {"name": "compute", "image": "holdfast/launcher:1"}]},
        });
        merge(&mut value, extra);
        serde_json::from_value(value).unwrap()
    }

    fn merge(into: &mut serde_json::Value, from: &serde_json::Value) {
        match (into, from) {
            (serde_json::Value::Object(into), serde_json::Value::Object(from)) => {
                for (key, value) in from {
                    merge(into.entry(key.clone()).or_insert(json!(null)), value);
                }
            }
            (into, from) => *into = from.clone(),
        }
    }

    #[test]
    fn a_pod_deleted_before_its_start_is_final_and_then_goes() {
        let deleted = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
        let record = record(State::Waiting { not_before_ms: 0 });
        assert_eq!(phase(&pod(&json!({})), &record), "Pending");
        assert_eq!(phase(&pod(&deleted), &record), "Failed");
        let pod = pod(&deleted);
        let step = next(Observed { pod: Some(&pod), record: &record, now_ms: 0 });
        assert_eq!(step, Step::DeleteObject);
        assert_eq!(phase(&pod, &crate::record::tests::record(running())), "Running", "it may still run");
    }

    fn exited(code: i32) -> State {
        State::Exited {
            exit: Exit {
                code,
                signal: None,
                reason: "Error".to_owned(),
                message: String::new(),
                started_at: String::new(),
                finished_at: String::new(),
            },
        }
    }

    fn deleted(grace: i64) -> serde_json::Value {
        json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z",
                            "deletionGracePeriodSeconds": grace}})
    }

    #[test]
    fn table() {
        let none = json!({});
        let always = json!({"spec": {"restartPolicy": "Always"}});
        let on_failure = json!({"spec": {"restartPolicy": "OnFailure"}});
        let failed_by_others = json!({"status": {"phase": "Failed"}});
        let start = || Step::Start("compute".to_owned());
        let waiting = State::Waiting { not_before_ms: 0 };
        type Row<'a> = (&'a str, Option<&'a serde_json::Value>, State, Option<i64>, Step);
        let rows: Vec<Row<'_>> = vec![
            ("new", Some(&none), waiting.clone(), None, start()),
            ("crash before asking init", Some(&none), State::Starting, None, start()),
            ("runs", Some(&none), running(), None, Step::Wait(None)),
            ("ended, Never", Some(&none), exited(1), None, Step::Wait(None)),
            ("ended well, OnFailure", Some(&on_failure), exited(0), None, Step::Wait(None)),
            (
                "back-off",
                Some(&always),
                State::Waiting { not_before_ms: 9_000 },
                None,
                Step::Wait(Some(9_000)),
            ),
            (
                "ended, Always",
                Some(&always),
                exited(0),
                None,
                Step::Restart { container: "compute".to_owned(), not_before_ms: 1_000 },
            ),
            ("object gone, runs", None, running(), None, Step::Kill),
            ("object gone, maybe runs", None, State::Starting, None, Step::Kill),
            ("object gone, ended", None, exited(0), None, Step::Forget),
            ("set Failed by pod GC, runs", Some(&failed_by_others), running(), None, Step::Terminate),
            ("our own Failed", Some(&failed_by_others), exited(1), None, Step::Wait(None)),
        ];
        for (what, pod_json, state, term, want) in rows {
            let pod = pod_json.map(pod);
            let mut record = record(state);
            record.term_sent_ms = term;
            let got = next(Observed { pod: pod.as_ref(), record: &record, now_ms: 1_000 });
            assert_eq!(got, want, "{what}");
        }
    }

    #[test]
    fn deletion_is_term_then_grace_then_kill_then_object() {
        let mut record = record(running());
        let pod_30 = pod(&deleted(30));
        let step = |record: &PodRecord, pod: &Pod, now_ms| next(Observed { pod: Some(pod), record, now_ms });
        assert_eq!(step(&record, &pod_30, 0), Step::Terminate);
        record.term_sent_ms = Some(5);
        assert_eq!(step(&record, &pod_30, 6), Step::Wait(Some(30_005)));
        assert_eq!(step(&record, &pod_30, 30_005), Step::Kill);
        assert_eq!(step(&record, &pod(&deleted(0)), 6), Step::Kill, "grace shortened");
        record.containers.get_mut("compute").unwrap().state = exited(143);
        assert_eq!(step(&record, &pod_30, 6), Step::DeleteObject);
        assert_eq!(step(&record, &pod(&deleted(0)), 6), Step::Wait(None), "held by a finalizer");
        let fresh = super::super::record::tests::record(State::Waiting { not_before_ms: 0 });
        assert_eq!(step(&fresh, &pod_30, 6), Step::DeleteObject, "never started");
    }

    #[test]
    fn backoff_grows_to_five_minutes() {
        let delays: Vec<i64> = (0..8).map(|attempt| backoff_ms(attempt) / 1000).collect();
        assert_eq!(delays, [0, 10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn phases() {
        let pod = pod(&json!({}));
        for (state, want) in [
            (State::Waiting { not_before_ms: 0 }, "Pending"),
            (State::Starting, "Pending"),
            (running(), "Running"),
            (exited(0), "Succeeded"),
            (exited(3), "Failed"),
        ] {
            assert_eq!(phase(&pod, &record(state)), want);
        }
    }

    #[test]
    fn what_is_not_served_is_refused_with_its_field() {
        for (extra, reason, text) in [
            (json!({"spec": {"containers": [{"name": "c", "image": "nginx"}]}}), "ImageNotServed", "nginx"),
            (
                json!({"spec": {"containers": [{"name": "c", "image": "holdfast/launcher:1",
                    "livenessProbe": {"exec": {"command": ["x"]}}}]}}),
                "PodNotServed",
                "spec.containers[0].livenessProbe",
            ),
            (
                json!({"spec": {"volumes": [{"name": "h", "hostPath": {"path": "/"}}]}}),
                "PodNotServed",
                "spec.volumes[0]",
            ),
        ] {
            let pod = pod(&extra);
            let (got, sentence) = refusal(&pod).unwrap();
            assert_eq!(got, reason);
            assert!(sentence.contains(text), "{sentence}");
            let step = next(Observed {
                pod: Some(&pod),
                record: &record(State::Waiting { not_before_ms: 0 }),
                now_ms: 0,
            });
            assert_eq!(step, Step::Wait(None));
        }
        assert!(refusal(&pod(&json!({}))).is_none());
    }
}
