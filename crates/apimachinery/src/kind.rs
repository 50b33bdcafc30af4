//! One served kind in one version: names, schema and strategy behind one set of methods, whether
//! built-in or from a CustomResourceDefinition.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde_json::Value;

use crate::{
    columns::ColumnDef,
    field::FieldError,
    schema::Schema,
    status::{GroupResource, Status},
};

/// Which endpoint a write arrives at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// The object itself.
    Main,
    /// `/status`.
    Status,
    /// Any other subresource that writes the object (`/finalize`, `/binding` …): nothing is reset.
    Other,
}

/// Where the scale subresource of a custom resource reads and writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScalePaths {
    /// `specReplicasPath`, for example `.spec.replicas`.
    pub spec_replicas: String,
    /// `statusReplicasPath`.
    pub status_replicas: String,
    /// `labelSelectorPath`.
    pub label_selector: Option<String>,
}

/// One subresource as discovery shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subresource {
    /// Name, for example `status`.
    pub name: String,
    /// Group, version, kind of the body when it differs from the parent (`policy`, `v1`, `Eviction`).
    pub body: Option<(String, String, String)>,
    /// Verbs.
    pub verbs: Vec<&'static str>,
}

/// A served kind in one version.
#[derive(Debug)]
pub struct Kind {
    /// API group, empty for core.
    pub group: String,
    /// Version.
    pub version: String,
    /// Kind.
    pub kind: String,
    /// Kind of the list.
    pub list_kind: String,
    /// Plural resource name.
    pub plural: String,
    /// Singular resource name.
    pub singular: String,
    /// Short names.
    pub short_names: Vec<String>,
    /// Categories.
    pub categories: Vec<String>,
    /// Namespaced or cluster-scoped.
    pub namespaced: bool,
    /// Verbs of the main resource; reviews have only `create`.
    pub verbs: Vec<&'static str>,
    /// Subresources in discovery order.
    pub subresources: Vec<Subresource>,
    /// Whether a PUT to a missing name creates (Lease, Event, RBAC).
    pub create_on_update: bool,
    /// Whether a PUT without resourceVersion is allowed (KS §6.2).
    pub unconditional_update: bool,
    /// The compiled schema.
    pub schema: Arc<Schema>,
    /// Scale subresource of a custom resource.
    pub scale: Option<ScalePaths>,
    /// What distinguishes built-in from custom.
    pub(crate) source: Source,
}

/// Built-in strategy or CRD version.
#[derive(Debug)]
pub(crate) enum Source {
    /// A built-in kind.
    Builtin(&'static crate::builtin::BuiltinKind),
    /// A version of a CustomResourceDefinition.
    Custom(crate::crd::CustomVersion),
}

impl Kind {
    /// `v1` or `group/version`.
    #[must_use]
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// The resource within its group.
    #[must_use]
    pub fn group_resource(&self) -> GroupResource {
        GroupResource::new(self.group.clone(), self.plural.clone())
    }

    /// Whether the kind comes from a CRD.
    #[must_use]
    pub fn is_custom(&self) -> bool {
        matches!(self.source, Source::Custom(_))
    }

    /// Whether a `/status` endpoint exists.
    #[must_use]
    pub fn has_status(&self) -> bool {
        self.subresources.iter().any(|s| s.name == "status")
    }

    /// Checks that JSON types fit a built-in kind's schema: Go would refuse to decode the body.
    /// Custom resources report types as 422 in validation instead, so this is `Ok` for them.
    ///
    /// # Errors
    /// 400 with the decoder's text.
    pub fn check_types(&self, object: &Value) -> Result<(), Status> {
        let _ = object;
        todo!()
    }

    /// Drops undeclared fields and returns their paths in document order (`spec.x`), for
    /// [`crate::decode::field_validation`].
    pub fn prune(&self, object: &mut Value) -> Vec<String> {
        let _ = object;
        todo!()
    }

    /// Fills defaults (also on reads of stored custom resources).
    pub fn default(&self, object: &mut Value) {
        let _ = object;
        todo!()
    }

    /// Strategy of a create, after uid, creationTimestamp, name and namespace are set by the
    /// caller: drops status where it is a subresource, sets generation.
    pub fn prepare_create(&self, object: &mut Value) {
        let _ = object;
        todo!()
    }

    /// Strategy of an update: keeps what the endpoint may not write, keeps server-owned metadata,
    /// bumps generation when what counts changed.
    pub fn prepare_update(&self, object: &mut Value, old: &Value, endpoint: Endpoint) {
        let _ = (object, old, endpoint);
        todo!()
    }

    /// Called when deletion is first requested on an object that stays: bumps generation where the
    /// kind has one.
    pub fn prepare_delete(&self, object: &mut Value) {
        let _ = object;
        todo!()
    }

    /// Full validation of a create: metadata (KS §6.4), schema, list types, CEL, kind rules.
    #[must_use]
    pub fn validate_create(&self, object: &Value) -> Vec<FieldError> {
        let _ = object;
        todo!()
    }

    /// Full validation of an update.
    #[must_use]
    pub fn validate_update(&self, object: &Value, old: &Value, endpoint: Endpoint) -> Vec<FieldError> {
        let _ = (object, old, endpoint);
        todo!()
    }

    /// Table columns, `Name` first.
    #[must_use]
    pub fn columns(&self) -> Vec<ColumnDef> {
        todo!()
    }

    /// Table cells of one object, one for each of [`Kind::columns`].
    #[must_use]
    pub fn cells(&self, object: &Value, now: DateTime<Utc>) -> Vec<Value> {
        let _ = (object, now);
        todo!()
    }

    /// Value of a field-selector label for an object.
    ///
    /// # Errors
    /// 400 `field label not supported: …`.
    pub fn field(&self, object: &Value, label: &str) -> Result<String, Status> {
        let _ = (object, label);
        todo!()
    }

    /// Checks every label of a field selector once, before objects are looked at.
    ///
    /// # Errors
    /// 400 `field label not supported: …`.
    pub fn check_field_labels(&self, selector: &crate::selector::FieldSelector) -> Result<(), Status> {
        let _ = selector;
        todo!()
    }

    /// 422 for this kind.
    #[must_use]
    pub fn invalid(&self, name: &str, errors: &[FieldError]) -> Status {
        Status::invalid(&self.group, &self.kind, name, errors)
    }
}

/// All built-in kinds of KS §12.1 (in discovery order of their group), including the reviews.
#[must_use]
pub fn builtins() -> Vec<Arc<Kind>> {
    todo!()
}
