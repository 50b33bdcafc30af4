//! Deleting objects (KS 10): preconditions, finalizers, pods' grace, collections.

use super::txn::Txn;
use super::{Call, Core, DeleteOptions, Deleted, ListOptions, Propagation};
use crate::admission::Operation;
use crate::registry::Served;
use crate::store::Object;
use chrono::TimeDelta;
use holdfast_apimachinery::{
    status::{GroupResource, Status},
    time::rfc3339,
};
use serde_json::{Value, json};
use std::sync::Arc;

/// Namespaces the control plane itself lives in.
const PROTECTED: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];
/// Finalizer that keeps a CustomResourceDefinition until its objects are gone.
pub(super) const DEFINITION_FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

impl Core {
    /// DELETE of one object.
    ///
    /// # Errors
    /// 404, 409 (preconditions), 403 (protected or refused by a rule).
    pub fn delete(
        &self,
        call: Call<'_>,
        served: &Served,
        (namespace, name): (&str, &str),
        options: &DeleteOptions,
    ) -> Result<Deleted, Status> {
        let txn = self.begin();
        let old = txn.get(served, namespace, name)?;
        txn.delete(call, served, &old, options)
    }

    /// DELETE of a collection: everything `what` selects, in list order.
    ///
    /// # Errors
    /// The first refusal; objects before it stay deleted.
    pub fn delete_collection(
        &self,
        call: Call<'_>,
        served: &Served,
        what: &ListOptions,
        options: &DeleteOptions,
    ) -> Result<Vec<Value>, Status> {
        let txn = self.begin();
        let mut deleted = Vec::new();
        for object in txn.list(served, what.namespace.as_deref()) {
            if what.selects(served, &object) {
                deleted.push(txn.delete(call, served, &object, options)?.object);
            }
        }
        Ok(deleted)
    }
}

impl Txn<'_> {
    /// Deletes one object or marks it for deletion.
    pub fn delete(
        &self,
        call: Call<'_>,
        served: &Served,
        old: &Arc<Object>,
        options: &DeleteOptions,
    ) -> Result<Deleted, Status> {
        check_preconditions(served, old, options)?;
        let before = served.read(old);
        if served.is("", "namespaces") && PROTECTED.contains(&&*old.key.name) {
            return Err(Status::forbidden(
                &GroupResource::new("", "namespaces"),
                &old.key.name,
                "this namespace may not be deleted",
            ));
        }
        let mut warnings = Vec::new();
        let mut request =
            self.admission(call, served, Operation::Delete, "", (&old.key.namespace, &old.key.name));
        if self.concerns(&request) {
            request.old_object = Some(before.clone());
            warnings = self.validate(&request)?;
        }
        let mut after = before.clone();
        self.mark(served, &mut after, options);
        let gone = super::update::is_released(served, &after);
        let changed = after != before;
        if call.dry_run {
            return Ok(Deleted { object: after, gone, warnings });
        }
        if gone {
            // The last state clients see is the one before the request, as the reference shows it.
            let last = self.remove(served, before, old);
            return Ok(Deleted { object: served.read(&last), gone, warnings });
        }
        if changed {
            let object = self.put(served, after, Some(old));
            if served.is("apiextensions.k8s.io", "customresourcedefinitions") {
                self.empty_definition(&object)?;
            }
        }
        let now = self.find(served, &old.key.namespace, &old.key.name).filter(|found| found.uid == old.uid);
        let gone = now.is_none();
        let object = served.read(now.as_ref().unwrap_or(old));
        Ok(Deleted { object, gone, warnings })
    }

    /// What a deletion request changes in an object that may stay.
    fn mark(&self, served: &Served, object: &mut Value, options: &DeleteOptions) {
        let first = !object["metadata"]["deletionTimestamp"].is_string();
        set_propagation(object, options.propagation);
        if first && served.is("apiextensions.k8s.io", "customresourcedefinitions") {
            add_finalizer(object, DEFINITION_FINALIZER);
            self.mark_definition(object);
        }
        let period = if served.is("", "pods") { pod_period(object, options) } else { 0 };
        let current = object["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(i64::MAX);
        if first || period < current {
            object["metadata"]["deletionGracePeriodSeconds"] = json!(period);
            // A shortened period counts from now as well.
            let at = self.now + TimeDelta::try_seconds(period).unwrap_or_default();
            object["metadata"]["deletionTimestamp"] = json!(rfc3339(at));
        }
        if first {
            served.kind.prepare_delete(object);
            if served.is("", "namespaces") {
                object["status"]["phase"] = json!("Terminating");
            }
        }
    }
}

fn check_preconditions(served: &Served, old: &Object, options: &DeleteOptions) -> Result<(), Status> {
    let kind = GroupResource::new(served.kind.group.clone(), served.kind.kind.clone());
    let name = &*old.key.name;
    if let Some(uid) = options.uid.as_deref().filter(|uid| **uid != *old.uid) {
        let why = format!(
            "the UID in the precondition ({uid}) does not match the UID in record ({}). The object might have been deleted and then recreated",
            old.uid
        );
        return Err(Status::conflict(&kind, name, &why));
    }
    if let Some(version) = options.resource_version.as_deref().filter(|v| *v != old.rev.to_string()) {
        let why = format!(
            "the ResourceVersion in the precondition ({version}) does not match the ResourceVersion in record ({}). The object might have been modified",
            old.rev
        );
        return Err(Status::conflict(&kind, name, &why));
    }
    Ok(())
}

/// Seconds a pod may take to stop (KS 10.2).
fn pod_period(pod: &Value, options: &DeleteOptions) -> i64 {
    let unscheduled = pod["spec"]["nodeName"].as_str().unwrap_or("").is_empty();
    let finished = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if unscheduled || finished {
        return 0;
    }
    let period = options
        .grace_period_seconds
        .or_else(|| pod["metadata"]["deletionGracePeriodSeconds"].as_i64())
        .or_else(|| pod["spec"]["terminationGracePeriodSeconds"].as_i64())
        .unwrap_or(30);
    if period < 0 { 1 } else { period }
}

fn set_propagation(object: &mut Value, propagation: Option<Propagation>) {
    let Some(propagation) = propagation else { return };
    if let Some(list) = object["metadata"]["finalizers"].as_array_mut() {
        list.retain(|f| f != "orphan" && f != "foregroundDeletion");
    }
    match propagation {
        Propagation::Background => {}
        Propagation::Foreground => add_finalizer(object, "foregroundDeletion"),
        Propagation::Orphan => add_finalizer(object, "orphan"),
    }
    if object["metadata"]["finalizers"].as_array().is_some_and(Vec::is_empty)
        && let Some(metadata) = object["metadata"].as_object_mut()
    {
        metadata.shift_remove("finalizers");
    }
}

fn add_finalizer(object: &mut Value, finalizer: &str) {
    let list = &mut object["metadata"]["finalizers"];
    if !list.is_array() {
        *list = json!([]);
    }
    let list = list.as_array_mut().expect("invariant: made an array above");
    if !list.iter().any(|f| f == finalizer) {
        list.push(json!(finalizer));
    }
}
