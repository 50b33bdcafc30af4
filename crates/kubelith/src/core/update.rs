//! Replacing objects: the common end of PUT, PATCH and subresource writes.

use super::create::{accept, fit_url};
use super::txn::Txn;
use super::{Body, Call, Core, Shown, Written};
use crate::admission::Operation;
use crate::registry::Served;
use crate::store::Object;
use holdfast_apimachinery::{
    apply::{self, Writer},
    field::FieldError,
    kind::Endpoint,
    status::Status,
};
use serde_json::{Map, Value, json};
use std::sync::Arc;

impl Core {
    /// PUT of an object or of its status. `true` in the result's `created` if the kind creates on update.
    ///
    /// # Errors
    /// Every refusal of KS 3.5 that an update can meet.
    pub fn update(
        &self,
        call: Call<'_>,
        served: &Served,
        (namespace, name): (&str, &str),
        subresource: &str,
        body: Body,
    ) -> Result<Written, Status> {
        let txn = self.begin();
        let Some(old) = txn.find(served, namespace, name) else {
            if served.kind.create_on_update && subresource.is_empty() {
                return txn.create(call, served, (namespace, Some(name)), body);
            }
            return Err(Status::not_found(&served.kind.group_resource(), name));
        };
        let Body { mut value, duplicates } = body;
        let mut warnings = accept(served, call, &mut value, &duplicates)?;
        fit_url(served, namespace, Some(name), &mut value)?;
        if !served.kind.unconditional_update && text(&value["metadata"]["resourceVersion"]).is_empty() {
            let error =
                FieldError::invalid("metadata.resourceVersion", &json!(0), "must be specified for an update");
            return Err(Status::invalid(&served.kind.group, &served.kind.plural, name, &[error]));
        }
        let before = served.read(&old);
        served.kind.default(&mut value);
        let mut written = txn.replace(call, served, (&old, before), value, endpoint(subresource), true)?;
        warnings.append(&mut written.warnings);
        Ok(Written { warnings, ..written })
    }
}

/// Endpoint of a subresource name, with the name.
pub(super) fn endpoint(subresource: &str) -> (Endpoint, &str) {
    match subresource {
        "" => (Endpoint::Main, ""),
        "status" => (Endpoint::Status, "status"),
        other => (Endpoint::Other, other),
    }
}

impl Txn<'_> {
    /// Replaces `old` (with its endpoint form `before`) by `after`: preconditions, admission, strategy,
    /// field tracking (unless apply has done it: `track`), validation, commit, removal after the last finalizer.
    pub fn replace(
        &self,
        call: Call<'_>,
        served: &Served,
        (old, before): (&Arc<Object>, Value),
        mut after: Value,
        (endpoint, subresource): (Endpoint, &str),
        track: bool,
    ) -> Result<Written, Status> {
        let kind = &served.kind;
        let name = &*old.key.name;
        self.check_preconditions(served, old, &after)?;
        let mut warnings = Vec::new();
        let mut request =
            self.admission(call, served, Operation::Update, subresource, (&old.key.namespace, name));
        let concerned = self.concerns(&request);
        if concerned {
            request.object = Some(after);
            request.old_object = Some(before.clone());
            warnings.extend(self.mutate(&mut request)?);
            after = request.object.take().unwrap_or_default();
        }
        kind.prepare_update(&mut after, &before, endpoint);
        after["metadata"]["resourceVersion"] = json!(old.rev.to_string());
        if track {
            let writer = Writer { manager: call.manager, subresource, endpoint, now: &self.timestamp() };
            apply::track(kind, Some(&before), &mut after, writer);
        }
        let errors = kind.validate_update(&after, &before, endpoint);
        if !errors.is_empty() {
            return Err(kind.invalid(name, &errors));
        }
        self.check_escalation(call, served, &after, Some(&before))?;
        if concerned {
            request.object = Some(after);
            warnings.extend(self.validate(&request)?);
            after = request.object.take().unwrap_or_default();
        }
        if same_but_times(&after, &before) {
            return Ok(Written { shown: Shown::Stored(old.clone()), created: false, warnings });
        }
        self.within_quota(served, &old.key.namespace, &after, Some(&before))?;
        if call.dry_run {
            return Ok(Written { shown: Shown::Value(after), created: false, warnings });
        }
        let object = if is_released(served, &after) {
            self.remove(served, after, old)
        } else {
            self.put(served, after, Some(old))
        };
        let stored = self
            .find(served, &old.key.namespace, name)
            .filter(|found| found.uid == object.uid)
            .unwrap_or(object);
        Ok(Written { shown: Shown::Stored(stored), created: false, warnings })
    }

    fn check_preconditions(&self, served: &Served, old: &Object, after: &Value) -> Result<(), Status> {
        let resource = served.kind.group_resource();
        let uid = text(&after["metadata"]["uid"]);
        if !uid.is_empty() && *uid != *old.uid {
            let why =
                format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {}", old.uid);
            return Err(Status::conflict(&resource, &old.key.name, &why));
        }
        let version = text(&after["metadata"]["resourceVersion"]);
        if holdfast_env::mutant!("stale-update-accepted") {
            return Ok(());
        }
        if !version.is_empty() && version != "0" && version != old.rev.to_string() {
            return Err(Status::modified(&resource, &old.key.name));
        }
        Ok(())
    }
}

/// Whether a terminating object has lost its last holder.
pub(super) fn is_released(served: &Served, value: &Value) -> bool {
    let metadata = &value["metadata"];
    let held = |list: &Value| list.as_array().is_some_and(|finalizers| !finalizers.is_empty());
    metadata["deletionTimestamp"].is_string()
        && metadata["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
        && !held(&metadata["finalizers"])
        && !(served.is("", "namespaces") && held(&value["spec"]["finalizers"]))
}

/// Whether two states differ at most in the times of their managedFields: then nothing is written (KS 6.2).
fn same_but_times(a: &Value, b: &Value) -> bool {
    same_fields(a, b, "metadata", |a, b| same_fields(a, b, "managedFields", same_managers))
}

/// Whether two objects have the same fields; `alike` compares the one called `special`.
fn same_fields(a: &Value, b: &Value, special: &str, alike: impl Fn(&Value, &Value) -> bool) -> bool {
    let (Some(x), Some(y)) = (a.as_object(), b.as_object()) else { return a == b };
    let ordinary = |fields: &Map<String, Value>| fields.len() - usize::from(fields.contains_key(special));
    ordinary(x) == ordinary(y)
        && x.iter().all(|(key, value)| key == special || y.get(key) == Some(value))
        && alike(&a[special], &b[special])
}

fn same_managers(a: &Value, b: &Value) -> bool {
    let entries = |list: &'_ Value| list.as_array().map_or(0, Vec::len);
    let pairs = a.as_array().into_iter().flatten().zip(b.as_array().into_iter().flatten());
    entries(a) == entries(b) && pairs.into_iter().all(|(a, b)| same_fields(a, b, "time", |_, _| true))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("")
}
