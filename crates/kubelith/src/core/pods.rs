//! What only pods have: admission on create, and binding (KS 12.2).

use super::txn::Txn;
use super::{Body, Call, Core};
use crate::registry::Served;
use holdfast_apimachinery::{
    builtin::admission::{self as builtin, PodFacts},
    kind::Endpoint,
    status::{GroupResource, Status},
};
use serde_json::{Value, json};

impl Core {
    /// POST pods/{name}/binding: puts a pod on a node, once.
    ///
    /// # Errors
    /// 404, 409 (bound, terminating, gated), 400.
    pub fn bind(
        &self,
        call: Call<'_>,
        pods: &Served,
        (namespace, name): (&str, &str),
        body: &Body,
    ) -> Result<Value, Status> {
        let txn = self.begin();
        let binding = &body.value;
        let target = &binding["target"];
        let node = target["name"].as_str().unwrap_or("");
        if node.is_empty() || target["kind"].as_str().is_some_and(|k| !k.is_empty() && k != "Node") {
            return Err(Status::bad_request("target.name: Required value, and target.kind must be Node"));
        }
        let old = txn.get(pods, namespace, name)?;
        let before = old.value();
        let refuse = |why: String| Err(Status::conflict(&GroupResource::new("", "pods/binding"), name, &why));
        if before["metadata"]["deletionTimestamp"].is_string() {
            return refuse(format!("pod {name} is being deleted, cannot be assigned to a host"));
        }
        if let Some(bound) = before["spec"]["nodeName"].as_str().filter(|n| !n.is_empty()) {
            return refuse(format!("pod {name} is already assigned to node \"{bound}\""));
        }
        if before["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty()) {
            return refuse(format!("pod {name} has non-empty .spec.schedulingGates"));
        }
        if binding["metadata"]["uid"].as_str().is_some_and(|uid| !uid.is_empty() && uid != &*old.uid) {
            return refuse(format!(
                "the UID in the precondition does not match the UID in record ({})",
                old.uid
            ));
        }
        let mut after = before.clone();
        after["spec"]["nodeName"] = json!(node);
        for part in ["labels", "annotations"] {
            for (key, value) in binding["metadata"][part].as_object().into_iter().flatten() {
                after["metadata"][part][key] = value.clone();
            }
        }
        set_condition(
            &mut after,
            json!({"type": "PodScheduled", "status": "True", "lastTransitionTime": txn.timestamp()}),
        );
        txn.replace(call, pods, (&old, before), after, (Endpoint::Other, "binding"), true)?;
        Ok(Status::created().to_value())
    }
}

impl Txn<'_> {
    /// ServiceAccount, priority and default tolerations of a new pod.
    pub fn pod_admission(&self, pod: &mut Value) -> Result<(), Status> {
        let accounts = self.builtin("", "serviceaccounts")?;
        let namespace = pod["metadata"]["namespace"].as_str().unwrap_or("").to_owned();
        let account = self.find(&accounts, &namespace, builtin::service_account_of(pod)).map(|a| a.value());
        let classes = self.builtin("scheduling.k8s.io", "priorityclasses")?;
        let classes: Vec<Value> = self.list(&classes, None).iter().map(|c| c.value()).collect();
        let random = self.random();
        let facts = PodFacts {
            service_account: account.as_ref(),
            priority_classes: &classes,
            entropy: [random[0], random[1], random[2], random[3], random[4]],
        };
        builtin::pod_create(pod, facts)
    }
}

/// Sets a condition by type; the transition time moves only when the status flips.
pub(super) fn set_condition(object: &mut Value, mut condition: Value) {
    if !object["status"].is_object() {
        object["status"] = json!({});
    }
    let conditions = &mut object["status"]["conditions"];
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    let list = conditions.as_array_mut().expect("invariant: made an array above");
    match list.iter_mut().find(|c| c["type"] == condition["type"]) {
        Some(old) => {
            if old["status"] == condition["status"] {
                condition["lastTransitionTime"] = old["lastTransitionTime"].clone();
            }
            *old = condition;
        }
        None => list.push(condition),
    }
}
