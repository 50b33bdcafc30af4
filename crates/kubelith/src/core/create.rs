//! Creating objects (KS 9.1).

use super::txn::Txn;
use super::{Body, Call, Core, Shown, Written};
use crate::admission::Operation;
use crate::registry::Served;
use holdfast_apimachinery::{
    apply::{self, Writer},
    builtin::admission as builtin,
    decode,
    field::FieldError,
    kind::Endpoint,
    names,
    status::{GroupResource, Status},
};
use serde_json::{Value, json};

/// How often a generated name may collide before the request fails.
const NAME_ATTEMPTS: usize = 8;

impl Core {
    /// POST of an object to a collection.
    ///
    /// # Errors
    /// Every refusal of KS 3.5 that a create can meet.
    pub fn create(
        &self,
        call: Call<'_>,
        served: &Served,
        namespace: &str,
        body: Body,
    ) -> Result<Written, Status> {
        self.begin().create(call, served, (namespace, None), body)
    }
}

impl Txn<'_> {
    /// Creates an object; `name` is that of the URL, if it has one (PUT, apply).
    pub fn create(
        &self,
        call: Call<'_>,
        served: &Served,
        place: (&str, Option<&str>),
        body: Body,
    ) -> Result<Written, Status> {
        let Body { mut value, duplicates } = body;
        let mut warnings = accept(served, call, &mut value, &duplicates)?;
        fit_url(served, place.0, place.1, &mut value)?;
        if value["metadata"]["resourceVersion"].as_str().is_some_and(|rv| !rv.is_empty()) {
            return Err(Status::bad_request("resourceVersion should not be set on objects to be created"));
        }
        self.create_value(call, served, place.0, value, Tracking::Update, &mut warnings)
            .map(|shown| Written { shown, created: true, warnings })
    }

    /// Creates an object from an accepted value.
    pub fn create_value(
        &self,
        call: Call<'_>,
        served: &Served,
        namespace: &str,
        mut value: Value,
        tracking: Tracking,
        warnings: &mut Vec<String>,
    ) -> Result<Shown, Status> {
        let kind = &served.kind;
        self.namespace_accepts(served, namespace, value["metadata"]["name"].as_str().unwrap_or(""))?;
        let name = self.own_metadata(served, namespace, &mut value)?;
        kind.default(&mut value);
        self.builtin_admission(served, &mut value)?;
        let mut request = self.admission(call, served, Operation::Create, "", (namespace, &name));
        let concerned = self.concerns(&request);
        if concerned {
            request.object = Some(value);
            warnings.extend(self.mutate(&mut request)?);
            value = request.object.take().unwrap_or_default();
        }
        kind.prepare_create(&mut value);
        if tracking == Tracking::Update {
            let writer = Writer {
                manager: call.manager,
                subresource: "",
                endpoint: Endpoint::Main,
                now: &self.timestamp(),
            };
            apply::track(kind, None, &mut value, writer);
        }
        let errors = kind.validate_create(&value);
        if !errors.is_empty() {
            return Err(kind.invalid(&name, &errors));
        }
        self.check_escalation(call, served, &value, None)?;
        if concerned {
            request.object = Some(value);
            warnings.extend(self.validate(&request)?);
            value = request.object.take().unwrap_or_default();
        }
        if let Some(existing) = self.find(served, namespace, &name) {
            let terminating = existing.value()["metadata"]["deletionTimestamp"].is_string();
            return Err(Status::already_exists(&kind.group_resource(), &name, terminating));
        }
        self.within_quota(served, namespace, &value, None)?;
        if call.dry_run {
            return Ok(Shown::Value(value));
        }
        let object = self.put(served, value, None);
        // A definition has been given its status meanwhile.
        let object = self.find(served, namespace, &name).unwrap_or(object);
        Ok(Shown::Stored(object))
    }

    /// NamespaceLifecycle: the namespace exists and is not being deleted.
    fn namespace_accepts(&self, served: &Served, namespace: &str, name: &str) -> Result<(), Status> {
        if !served.kind.namespaced {
            return Ok(());
        }
        let namespaces = self.builtin("", "namespaces")?;
        let found = self
            .find(&namespaces, "", namespace)
            .ok_or_else(|| Status::not_found(&GroupResource::new("", "namespaces"), namespace))?;
        if found.value()["metadata"]["deletionTimestamp"].is_string() {
            return Err(Status::namespace_terminating(&served.kind.group_resource(), name, namespace));
        }
        Ok(())
    }

    /// Sets the metadata that belongs to the server and returns the name.
    fn own_metadata(&self, served: &Served, namespace: &str, value: &mut Value) -> Result<String, Status> {
        let name = self.final_name(served, namespace, value)?;
        let metadata = &mut value["metadata"];
        metadata["name"] = json!(name);
        if served.kind.namespaced {
            metadata["namespace"] = json!(namespace);
        }
        metadata["uid"] = json!(self.uid());
        metadata["creationTimestamp"] = json!(self.timestamp());
        if let Some(fields) = metadata.as_object_mut() {
            for field in [
                "resourceVersion",
                "deletionTimestamp",
                "deletionGracePeriodSeconds",
                "selfLink",
                "generation",
            ] {
                fields.shift_remove(field);
            }
        }
        Ok(name)
    }

    fn final_name(&self, served: &Served, namespace: &str, value: &Value) -> Result<String, Status> {
        let text = |field: &str| value["metadata"][field].as_str().unwrap_or("");
        if !text("name").is_empty() {
            return Ok(text("name").to_owned());
        }
        let prefix = text("generateName");
        if prefix.is_empty() {
            let error = FieldError::required("metadata.name", "name or generateName is required");
            return Err(served.kind.invalid("", &[error]));
        }
        for _ in 0..NAME_ATTEMPTS {
            let random = self.random();
            let name = names::generate(prefix, [random[0], random[1], random[2], random[3], random[4]]);
            if self.find(served, namespace, &name).is_none() {
                return Ok(name);
            }
        }
        Err(Status::already_exists(&served.kind.group_resource(), prefix, false))
    }

    /// Admission of built-in kinds that needs other objects (KS 13).
    fn builtin_admission(&self, served: &Served, value: &mut Value) -> Result<(), Status> {
        let kind = &served.kind;
        match (kind.group.as_str(), kind.plural.as_str()) {
            ("", "pods") => self.pod_admission(value),
            ("", "nodes") => {
                builtin::node_create(value);
                Ok(())
            }
            ("", "persistentvolumes") => {
                builtin::volume_create(value);
                Ok(())
            }
            ("", "persistentvolumeclaims") => {
                let classes = self.builtin("storage.k8s.io", "storageclasses")?;
                let classes: Vec<Value> = self.list(&classes, None).iter().map(|c| c.value()).collect();
                builtin::claim_create(value, &classes);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// Who is credited with the fields of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tracking {
    /// The managedFields still have to be computed (any write but apply).
    Update,
    /// Server-side apply has computed them.
    Applied,
}

/// Checks a body against the endpoint: shape, kind, version, types, unknown and duplicate fields.
pub(super) fn accept(
    served: &Served,
    call: Call<'_>,
    value: &mut Value,
    duplicates: &[String],
) -> Result<Vec<String>, Status> {
    let kind = &served.kind;
    if !value.is_object() {
        return Err(Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): couldn't get version/kind; json parse error: not an object",
            kind.kind
        )));
    }
    let (group_version, body_kind) = (text(&value["apiVersion"]), text(&value["kind"]));
    if kind.is_custom() {
        if !body_kind.is_empty() && body_kind != kind.kind {
            let error = FieldError::invalid("kind", &value["kind"], format!("must be {}", kind.kind));
            return Err(kind.invalid(text(&value["metadata"]["name"]), &[error]));
        }
        if !group_version.is_empty() && *group_version != *served.api_version {
            return Err(Status::bad_request(format!(
                "the API version in the data ({group_version}) does not match the expected API version ({})",
                served.api_version
            )));
        }
    } else if (!body_kind.is_empty() && body_kind != kind.kind)
        || (!group_version.is_empty() && *group_version != *served.api_version)
    {
        let version = if group_version.is_empty() { &*served.api_version } else { group_version };
        return Err(Status::bad_request(format!(
            "{body_kind} in version \"{version}\" cannot be handled as a {}: no kind \"{body_kind}\" is registered for the expected type",
            kind.kind
        )));
    }
    value["apiVersion"] = json!(&*served.api_version);
    value["kind"] = json!(kind.kind);
    if !value["metadata"].is_object() {
        value["metadata"] = json!({});
    }
    kind.check_types(value)?;
    let unknown = kind.prune(value);
    decode::field_validation(call.validation, &kind.kind, &kind.version, &unknown, duplicates)
}

/// Compares namespace and name of a body with the URL; fills what the body leaves out.
pub(super) fn fit_url(
    served: &Served,
    namespace: &str,
    name: Option<&str>,
    value: &mut Value,
) -> Result<(), Status> {
    let given = text(&value["metadata"]["namespace"]);
    if served.kind.namespaced {
        if !given.is_empty() && given != namespace {
            return Err(Status::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        value["metadata"]["namespace"] = json!(namespace);
    } else if let Some(metadata) = value["metadata"].as_object_mut() {
        metadata.shift_remove("namespace");
    }
    if let Some(name) = name {
        let given = text(&value["metadata"]["name"]);
        if !given.is_empty() && given != name {
            return Err(Status::bad_request(format!(
                "the name of the object ({given}) does not match the name on the URL ({name})"
            )));
        }
        value["metadata"]["name"] = json!(name);
    }
    Ok(())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("")
}
