//! PATCH in its four forms (KS 9.3).

use super::create::{Tracking, accept};
use super::txn::Txn;
use super::update::endpoint;
use super::{Body, Call, Core, PatchType, Written};
use crate::registry::Served;
use crate::store::Object;
use holdfast_apimachinery::{
    apply::{self, Writer},
    decode,
    field::FieldError,
    kind::Endpoint,
    patch,
    status::Status,
};
use serde_json::Value;
use std::sync::Arc;

impl Core {
    /// PATCH of an object or of its status.
    ///
    /// # Errors
    /// Every refusal of KS 3.5 that a patch can meet.
    pub fn patch(
        &self,
        call: Call<'_>,
        served: &Served,
        place: (&str, &str),
        subresource: &str,
        how: PatchType,
        body: Body,
    ) -> Result<Written, Status> {
        let txn = self.begin();
        match how {
            PatchType::Apply { force } => txn.apply(call, served, place, subresource, force, body),
            PatchType::Json | PatchType::Merge | PatchType::Strategic => {
                let old = txn.get(served, place.0, place.1)?;
                txn.modify(call, served, &old, subresource, how, &body)
            }
        }
    }
}

impl Txn<'_> {
    fn modify(
        &self,
        call: Call<'_>,
        served: &Served,
        old: &Arc<Object>,
        subresource: &str,
        how: PatchType,
        body: &Body,
    ) -> Result<Written, Status> {
        let kind = &served.kind;
        let before = served.read(old);
        let mut after = match how {
            PatchType::Json => patch::json(&before, &body.value)?,
            PatchType::Strategic => patch::strategic(&kind.schema, &before, &body.value)?,
            PatchType::Merge | PatchType::Apply { .. } => patch::merge(&before, &body.value),
        };
        let mut warnings = accept(served, call, &mut after, &body.duplicates)
            .map_err(|e| strict_patch(served, &old.key.name, how, body, e))?;
        for field in ["name", "namespace"] {
            let (was, is) = (&before["metadata"][field], &after["metadata"][field]);
            if was != is && !(is.is_null() || is == "") {
                let message = match field {
                    "name" => format!(
                        "the name of the object ({}) does not match the name on the URL ({})",
                        is.as_str().unwrap_or(""), old.key.name
                    ),
                    _ => "the namespace of the provided object does not match the namespace sent on the request".to_owned(),
                };
                return Err(Status::bad_request(message));
            }
            if !was.is_null() {
                after["metadata"][field] = was.clone();
            }
        }
        kind.default(&mut after);
        let mut written = self.replace(call, served, (old, before), after, endpoint(subresource), true)?;
        warnings.append(&mut written.warnings);
        Ok(Written { warnings, ..written })
    }

    fn apply(
        &self,
        call: Call<'_>,
        served: &Served,
        (namespace, name): (&str, &str),
        subresource: &str,
        force: bool,
        body: Body,
    ) -> Result<Written, Status> {
        let kind = &served.kind;
        let mut config = body.value;
        self.check_applied(served, (namespace, name), &config)?;
        let old = self.find(served, namespace, name);
        let before = old.as_ref().map(|object| served.read(object));
        if config["metadata"]["name"].is_null() {
            config["metadata"]["name"] = Value::from(name);
        }
        if kind.namespaced && config["metadata"]["namespace"].is_null() {
            config["metadata"]["namespace"] = Value::from(namespace);
        }
        let (place, subresource) = endpoint(subresource);
        let now = self.timestamp();
        let writer = Writer { manager: call.manager, subresource, endpoint: place, now: &now };
        let mut merged = apply::apply(kind, before.as_ref(), &config, writer, force)?;
        let (Some(old), Some(before)) = (old, before) else {
            if place != Endpoint::Main {
                return Err(Status::not_found(&kind.group_resource(), name));
            }
            return self.apply_new(call, served, namespace, merged);
        };
        kind.check_types(&merged)?;
        let unknown = kind.prune(&mut merged);
        let mut warnings =
            decode::field_validation(call.validation, &kind.kind, &kind.version, &unknown, &[])?;
        kind.default(&mut merged);
        let mut written = self.replace(call, served, (&old, before), merged, (place, subresource), false)?;
        warnings.append(&mut written.warnings);
        Ok(Written { warnings, ..written })
    }

    fn apply_new(
        &self,
        call: Call<'_>,
        served: &Served,
        namespace: &str,
        mut merged: Value,
    ) -> Result<Written, Status> {
        let kind = &served.kind;
        if merged["metadata"]["uid"].as_str().is_some_and(|uid| !uid.is_empty()) {
            let name = merged["metadata"]["name"].as_str().unwrap_or("");
            return Err(Status::conflict(
                &kind.group_resource(),
                name,
                "uid mismatch: the provided object specified a uid, and no existing object was found",
            ));
        }
        kind.check_types(&merged)?;
        let unknown = kind.prune(&mut merged);
        let mut warnings =
            decode::field_validation(call.validation, &kind.kind, &kind.version, &unknown, &[])?;
        let shown = self.create_value(call, served, namespace, merged, Tracking::Applied, &mut warnings)?;
        Ok(Written { shown, created: true, warnings })
    }

    fn check_applied(
        &self,
        served: &Served,
        (namespace, name): (&str, &str),
        config: &Value,
    ) -> Result<(), Status> {
        let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
        let (version, kind) = (text(&config["apiVersion"]), text(&config["kind"]));
        if version != *served.api_version || kind != served.kind.kind {
            return Err(Status::bad_request(format!(
                "the apiVersion and kind of the applied configuration ({version}, {kind}) must be those of the endpoint ({}, {})",
                served.api_version, served.kind.kind
            )));
        }
        for (field, expected, message) in [
            (
                "name",
                name,
                format!(
                    "the name of the object ({}) does not match the name on the URL ({name})",
                    text(&config["metadata"]["name"])
                ),
            ),
            (
                "namespace",
                namespace,
                "the namespace of the provided object does not match the namespace sent on the request"
                    .to_owned(),
            ),
        ] {
            let given = text(&config["metadata"][field]);
            if !given.is_empty() && given != expected {
                return Err(Status::bad_request(message));
            }
        }
        Ok(())
    }
}

/// A strict merge patch with unknown fields is told as an invalid `patch` (KS 9.2).
fn strict_patch(served: &Served, name: &str, how: PatchType, body: &Body, error: Status) -> Status {
    let Some((_, what)) = error.message.split_once("strict decoding error: ") else { return error };
    if how != PatchType::Merge {
        return error;
    }
    let shown = Value::from(body.value.to_string());
    served
        .kind
        .invalid(name, &[FieldError::invalid("patch", &shown, format!("strict decoding error: {what}"))])
}
