//! Questions every loop asks about pods, and the two writes they share.

use k8s_openapi::api::core::v1::{Pod, Taint, Toleration};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;

use crate::fault;

/// Field manager of the loops' writes.
pub(crate) const MANAGER: &str = "kubelith-loops";

/// Whether the pod has ended for good.
pub(crate) fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// The pod's phase, empty when unset.
pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

/// The node the pod is bound to.
pub(crate) fn node_name(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

/// Whether deletion has begun.
pub(crate) fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Status of a condition, if present.
pub(crate) fn condition<'a>(
    pod: &'a Pod,
    kind: &str,
) -> Option<&'a k8s_openapi::api::core::v1::PodCondition> {
    pod.status.as_ref()?.conditions.iter().flatten().find(|c| c.type_ == kind)
}

/// Names of the claims the pod mounts, those of generic ephemeral volumes included.
pub(crate) fn claims(pod: &Pod) -> Vec<String> {
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    volumes
        .iter()
        .filter_map(|volume| {
            let direct = volume.persistent_volume_claim.as_ref().map(|c| c.claim_name.clone());
            direct.or_else(|| {
                let owner = pod.metadata.name.as_deref()?;
                volume.ephemeral.as_ref().map(|_| format!("{owner}-{}", volume.name))
            })
        })
        .collect()
}

/// Whether one of `tolerations` tolerates the taint.
pub(crate) fn tolerates(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|t| tolerates_one(t, taint))
}

/// Whether this toleration tolerates the taint; its time limit is not considered.
pub(crate) fn tolerates_one(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    if !effect.is_empty() && effect != taint.effect {
        return false;
    }
    let key = toleration.key.as_deref().unwrap_or_default();
    if !key.is_empty() && key != taint.key {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => true,
        "Equal" | "" => {
            !key.is_empty()
                && toleration.value.as_deref().unwrap_or_default()
                    == taint.value.as_deref().unwrap_or_default()
        }
        _ => false,
    }
}

/// The pod's tolerations.
pub(crate) fn tolerations(pod: &Pod) -> &[Toleration] {
    pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default()
}

/// A condition as it is patched into a pod's status (merged by type).
pub(crate) fn condition_patch(
    pod: &Pod,
    kind: &str,
    status: &str,
    reason: Option<&str>,
    message: Option<&str>,
) -> serde_json::Value {
    let old = condition(pod, kind);
    let mut value = json!({"type": kind, "status": status});
    if old.is_none_or(|old| old.status != status) {
        value["lastTransitionTime"] =
            json!(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(holdfast_env::now()));
    }
    if let Some(reason) = reason {
        value["reason"] = json!(reason);
    }
    if let Some(message) = message {
        value["message"] = json!(message);
    }
    value
}

/// Patches a pod's status; the uid in the patch refuses another pod of the same name.
pub(crate) async fn patch_status(client: &Client, pod: &Pod, status: serde_json::Value) -> kube::Result<()> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": status});
    let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    let result = api.patch_status(&pod.name_any(), &params, &Patch::Strategic(patch)).await;
    fault::unless_stale(result).map(|_| ())
}

/// Deletes exactly this pod; `grace_s` of `None` leaves the pod's own grace period.
pub(crate) async fn delete(client: &Client, pod: &Pod, grace_s: Option<u32>) -> kube::Result<()> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let params = DeleteParams {
        grace_period_seconds: grace_s,
        preconditions: Some(Preconditions { uid: pod.metadata.uid.clone(), resource_version: None }),
        ..DeleteParams::default()
    };
    fault::unless_stale(api.delete(&pod.name_any(), &params).await).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerations_follow_the_operators() {
        let taint =
            Taint { key: "a".into(), value: Some("1".into()), effect: "NoExecute".into(), time_added: None };
        let check = |toleration: serde_json::Value, want: bool| {
            let parsed: Toleration = serde_json::from_value(toleration.clone()).unwrap();
            assert_eq!(tolerates_one(&parsed, &taint), want, "{toleration}");
        };
        check(json!({"operator": "Exists"}), true);
        check(json!({"key": "a", "operator": "Exists"}), true);
        check(json!({"key": "a", "operator": "Exists", "effect": "NoSchedule"}), false);
        check(json!({"key": "a", "operator": "Equal", "value": "1"}), true);
        check(json!({"key": "a", "value": "2"}), false);
        check(json!({"key": "b", "operator": "Exists"}), false);
    }
}
