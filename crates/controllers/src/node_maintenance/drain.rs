//! Which pods leave the node, and how the drain gets on (migration-and-maintenance.md §8.3 row 9). Pure.

use std::sync::Arc;

use holdfast_api::maintenance::{NodeMaintenanceStatus, PodReference};
use holdfast_domain::{backoff, eviction};
use holdfast_env::Timestamp;
use holdfast_reconcile::{Answer, Effect, Plan, controller_of};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use super::observe::Observed;

/// Seconds between two evictions of a pod.
const AGAIN_S: i64 = 5;
/// Seconds after which a pod that should have ended is an error.
const LATE_S: i64 = 30;
/// How many errors the status names.
const ERRORS_MAX: usize = 10;
/// On pods that the kubelet made from a file: the API cannot evict them.
const MIRROR: &str = "kubernetes.io/config.mirror";

fn is_finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Whether a drain with `--force --delete-emptydir-data --ignore-daemonsets` evicts the pod: all but mirror
/// pods and what a DaemonSet keeps running. kubectl asks whether the DaemonSet is there still; pods of one
/// that is not are the garbage collector's.
pub(super) fn has_to_leave(pod: &Pod) -> bool {
    let kept = controller_of(pod).is_some_and(|owner| owner.kind == "DaemonSet") && !is_finished(pod);
    !kept && !pod.annotations().contains_key(MIRROR)
}

/// Whether a guest may run in the pod.
pub(super) fn is_vm(pod: &Pod) -> bool {
    eviction::is_launcher(pod) && !is_finished(pod)
}

pub(super) fn leaving(o: &Observed) -> Vec<&Arc<Pod>> {
    o.pods.iter().filter(|pod| has_to_leave(pod)).collect()
}

fn count(pods: usize) -> u32 {
    u32::try_from(pods).unwrap_or(u32::MAX)
}

/// Writes what is left into the status. Pods that were placed before the node was closed and are seen only
/// now count as if they had been seen at the start.
pub(super) fn report(o: &Observed, status: &mut NodeMaintenanceStatus) {
    let left = leaving(o);
    let pending = count(left.len());
    if status.total_pods == 0 {
        status.total_pods = count(o.pods.len());
    }
    status.eviction_pods = status.eviction_pods.max(pending);
    status.total_pods = status.total_pods.max(status.eviction_pods);
    status.drain_progress = (status.eviction_pods - pending) * 100 / status.eviction_pods.max(1);
    let reference = |pod: &&Arc<Pod>| PodReference {
        namespace: pod.namespace().unwrap_or_default(),
        name: pod.name_any(),
    };
    status.pending_pods_refs = left.iter().map(reference).collect();
    status.pending_pods = status.pending_pods_refs.iter().map(|pod| pod.name.clone()).collect();
}

/// Asks for what is due.
pub(super) fn evict(plan: &mut Plan, o: &Observed) {
    let mut asked = false;
    for pod in leaving(o) {
        if pod.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let due = answer(o, pod).map_or(o.now, |answer| backoff::after(answer.at, AGAIN_S));
        if o.now < due {
            plan.wake_at(due);
        } else {
            plan.then(Effect::evict(pod));
            asked = true;
        }
    }
    if asked {
        // At once: what is answered belongs into the status.
        plan.wake_at(o.now);
    }
}

fn answer<'a>(o: &'a Observed, pod: &Pod) -> Option<&'a Answer> {
    o.answers.get(pod.metadata.uid.as_deref()?)
}

/// When a pod that is being deleted is late.
fn late_at(pod: &Pod) -> Option<Timestamp> {
    Some(backoff::after(pod.metadata.deletion_timestamp.as_ref()?.0, LATE_S))
}

/// What keeps the pods, in kubectl's words; `known` while nothing was asked yet.
pub(super) fn error(plan: &mut Plan, o: &Observed, known: Option<&String>) -> Option<String> {
    let left = leaving(o);
    let waiting = left.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
    if waiting.clone().count() > 0 && waiting.clone().all(|pod| answer(o, pod).is_none()) {
        return known.cloned();
    }
    let mut errors = Vec::new();
    for pod in left {
        let (name, namespace) = (pod.name_any(), pod.namespace().unwrap_or_default());
        if let Some(late) = late_at(pod) {
            if late <= o.now {
                errors.push(format!(
                    "error when waiting for pod {name:?} in namespace {namespace:?} to terminate: its grace period is over"
                ));
            } else {
                plan.wake_at(late);
            }
        } else if let Some(text) = answer(o, pod).and_then(|answer| answer.refused.as_deref()) {
            errors.push(format!("error when evicting pods/{name:?} -n {namespace:?}: {text}"));
        }
    }
    let more = errors.len().saturating_sub(ERRORS_MAX);
    errors.truncate(ERRORS_MAX);
    if more > 0 {
        errors.push(format!("and {more} more"));
    }
    match errors.len() {
        0 => None,
        1 => errors.pop(),
        _ => Some(format!("[{}]", errors.join(", "))),
    }
}
