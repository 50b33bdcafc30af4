//! One served kind in one version: names, schema and strategy behind one set of methods, whether
//! built-in or from a CustomResourceDefinition.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde_json::Value;

use std::sync::LazyLock;

use serde_json::json;

use crate::{
    builtin::{self, BuiltinKind, NameRule, StatusRule},
    columns::ColumnDef,
    crd::CustomVersion,
    field::FieldError,
    object,
    schema::Schema,
    selector::FieldSelector,
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
    Builtin(&'static BuiltinKind),
    /// A version of a CustomResourceDefinition.
    Custom(CustomVersion),
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
        // Schemas inside a definition are "a schema or something else", which types cannot say.
        if self.is_custom() || self.kind == "CustomResourceDefinition" {
            return Ok(());
        }
        match self.schema.type_fault(object) {
            None => Ok(()),
            Some(fault) => Err(Status::bad_request(format!(
                "{kind} in version \"{version}\" cannot be handled as a {kind}: {fault}",
                kind = self.kind,
                version = self.version
            ))),
        }
    }

    /// Drops undeclared fields and returns their paths in document order (`spec.x`), for
    /// [`crate::decode::field_validation`].
    pub fn prune(&self, object: &mut Value) -> Vec<String> {
        self.schema.prune(object)
    }

    /// Fills defaults (also on reads of stored custom resources).
    pub fn default(&self, object: &mut Value) {
        self.schema.default(object);
        object::compact_metadata(object);
        if let Source::Builtin(kind) = &self.source {
            self.schema.canonical_quantities(object);
            (kind.strategy.default)(object);
        }
    }

    /// Strategy of a create, after uid, creationTimestamp, name and namespace are set by the
    /// caller: drops status where it is a subresource, sets generation.
    pub fn prepare_create(&self, object: &mut Value) {
        let drops_status = match &self.source {
            Source::Builtin(kind) => kind.status == StatusRule::Subresource,
            Source::Custom(version) => version.status,
        };
        if let (true, Some(map)) = (drops_status, object.as_object_mut()) {
            map.shift_remove("status");
        }
        set_generation(object, self.has_generation().then_some(1));
        if let Source::Builtin(kind) = &self.source {
            (kind.strategy.create)(object);
            // Defaults that depend on the name are there now.
            (kind.strategy.default)(object);
        }
    }

    /// Strategy of an update: keeps what the endpoint may not write, keeps server-owned metadata,
    /// bumps generation when what counts changed.
    pub fn prepare_update(&self, object: &mut Value, old: &Value, endpoint: Endpoint) {
        match endpoint {
            Endpoint::Main => {
                if self.has_status() {
                    copy(object, old, "status");
                }
                if let Source::Builtin(kind) = &self.source {
                    (kind.strategy.update)(object, old);
                }
            }
            Endpoint::Status => self.keep_but_status(object, old),
            Endpoint::Other => {}
        }
        if let (Some(metadata), Some(before)) = (object.get_mut("metadata"), old.get("metadata")) {
            for field in [
                "uid",
                "creationTimestamp",
                "generation",
                "deletionTimestamp",
                "deletionGracePeriodSeconds",
                "namespace",
                "name",
                "generateName",
                "selfLink",
            ] {
                copy(metadata, before, field);
            }
        }
        if self.has_generation() {
            let now = old["metadata"]["generation"].as_i64().unwrap_or(1);
            set_generation(object, Some(if self.counts_alike(object, old) { now } else { now + 1 }));
        }
    }

    /// `/status`: everything else is the old object; built-in kinds also take labels, annotations
    /// and finalizers.
    fn keep_but_status(&self, object: &mut Value, old: &Value) {
        let mut kept = old.clone();
        copy(&mut kept, object, "status");
        copy(&mut kept, object, "apiVersion");
        let fields: &[&str] = if self.is_custom() {
            &["managedFields", "resourceVersion"]
        } else {
            &["managedFields", "resourceVersion", "labels", "annotations", "finalizers"]
        };
        if let (Some(metadata), Some(given)) = (kept.get_mut("metadata"), object.get("metadata")) {
            for field in fields {
                copy(metadata, given, field);
            }
        }
        *object = kept;
    }

    /// Called when deletion is first requested on an object that stays: bumps generation where the
    /// kind has one.
    pub fn prepare_delete(&self, object: &mut Value) {
        if self.has_generation() {
            let now = object["metadata"]["generation"].as_i64().unwrap_or(0);
            set_generation(object, Some(now + 1));
        }
    }

    /// Full validation of a create: metadata (KS §6.4), schema, list types, CEL, kind rules.
    #[must_use]
    pub fn validate_create(&self, object: &Value) -> Vec<FieldError> {
        self.validate(object, None, Endpoint::Main)
    }

    /// Full validation of an update.
    #[must_use]
    pub fn validate_update(&self, object: &Value, old: &Value, endpoint: Endpoint) -> Vec<FieldError> {
        self.validate(object, Some(old), endpoint)
    }

    fn validate(&self, object: &Value, old: Option<&Value>, endpoint: Endpoint) -> Vec<FieldError> {
        let mut errors = Vec::new();
        match &self.source {
            Source::Builtin(kind) => {
                object::validate_metadata(object, old, kind.names, &mut errors);
                object::validate_finalizer_domains(object, &mut errors);
                match old {
                    // Rules of the main endpoint only: a status write leaves the spec alone.
                    Some(old) if endpoint == Endpoint::Main => {
                        (kind.strategy.validate_update)(object, old, &mut errors)
                    }
                    Some(_) => return errors,
                    None => {}
                }
                (kind.strategy.validate)(object, &mut errors);
            }
            Source::Custom(_) => {
                let api_version = self.api_version();
                for (field, expected) in [("kind", self.kind.as_str()), ("apiVersion", api_version.as_str())]
                {
                    if object[field] != json!(expected) {
                        errors.push(FieldError::invalid(
                            field,
                            &object[field],
                            format!("must be {expected}"),
                        ));
                    }
                }
                object::validate_metadata(object, old, NameRule::Subdomain, &mut errors);
                errors.extend(self.schema.validate(object, old));
            }
        }
        errors
    }

    /// Table columns, `Name` first.
    #[must_use]
    pub fn columns(&self) -> Vec<ColumnDef> {
        match &self.source {
            Source::Builtin(kind) => kind
                .columns
                .iter()
                .map(|(name, ty, format, priority)| ColumnDef {
                    name: (*name).into(),
                    kind: (*ty).into(),
                    format: (*format).into(),
                    description: format!("{name} of the {}.", self.kind),
                    priority: *priority,
                })
                .collect(),
            Source::Custom(version) => std::iter::once(ColumnDef::name_column())
                .chain(version.columns.iter().map(|(column, _)| column.clone()))
                .collect(),
        }
    }

    /// Table cells of one object, one for each of [`Kind::columns`].
    #[must_use]
    pub fn cells(&self, object: &Value, now: DateTime<Utc>) -> Vec<Value> {
        match &self.source {
            Source::Builtin(kind) => (kind.strategy.cells)(object, now),
            Source::Custom(version) => {
                let name = json!(object::name(object));
                std::iter::once(name)
                    .chain(version.columns.iter().map(|(column, path)| column.cell(path, object, now)))
                    .collect()
            }
        }
    }

    /// Conditions of a Table row: finished pods say so.
    #[must_use]
    pub fn row_conditions(&self, object: &Value) -> Option<Value> {
        if self.group.is_empty() && self.kind == "Pod" { builtin::pod_conditions(object) } else { None }
    }

    /// Value of a field-selector label for an object.
    ///
    /// # Errors
    /// 400 `field label not supported: …`.
    pub fn field(&self, object: &Value, label: &str) -> Result<String, Status> {
        match label {
            "metadata.name" => return Ok(object::name(object).to_owned()),
            "metadata.namespace" if self.namespaced => return Ok(object::namespace(object).to_owned()),
            _ => {}
        }
        let found = match &self.source {
            Source::Builtin(kind) => {
                let pointer =
                    kind.fields.iter().find(|(name, _)| *name == label).map(|(_, pointer)| *pointer);
                pointer.map(|pointer| {
                    (object.pointer(pointer), matches!(label, "spec.unschedulable" | "spec.hostNetwork"))
                })
            }
            Source::Custom(version) => version
                .selectable
                .iter()
                .find(|(name, _)| name == label)
                .map(|(_, path)| (path.first(object), false)),
        };
        let Some((value, boolean)) = found else {
            return Err(Status::bad_request(format!("field label not supported: {label}")));
        };
        Ok(match value {
            Some(Value::String(text)) => text.clone(),
            None | Some(Value::Null) if boolean => "false".to_owned(),
            None | Some(Value::Null) => String::new(),
            Some(other) => other.to_string(),
        })
    }

    /// Checks every label of a field selector once, before objects are looked at.
    ///
    /// # Errors
    /// 400 `field label not supported: …`.
    pub fn check_field_labels(&self, selector: &FieldSelector) -> Result<(), Status> {
        selector
            .requirements
            .iter()
            .try_for_each(|requirement| self.field(&Value::Null, &requirement.field).map(drop))
    }

    /// Component name of a built-in kind's schema.
    pub(crate) fn builtin_component(&self) -> Option<&'static str> {
        match &self.source {
            Source::Builtin(kind) => Some(kind.component),
            Source::Custom(_) => None,
        }
    }

    /// 422 for this kind.
    #[must_use]
    pub fn invalid(&self, name: &str, errors: &[FieldError]) -> Status {
        Status::invalid(&self.group, &self.kind, name, errors)
    }

    fn has_generation(&self) -> bool {
        match &self.source {
            Source::Builtin(kind) => kind.generation,
            Source::Custom(_) => true,
        }
    }

    /// Whether nothing differs whose change bumps the generation: everything outside metadata and status.
    fn counts_alike(&self, a: &Value, b: &Value) -> bool {
        let counts = |field: &str| match field {
            "metadata" | "apiVersion" | "kind" => false,
            "status" => !self.has_status(),
            _ => true,
        };
        let fields =
            |object: &'_ Value| object.as_object().map_or(0, |o| o.keys().filter(|k| counts(k)).count());
        fields(a) == fields(b)
            && a.as_object().into_iter().flatten().all(|(name, v)| !counts(name) || b.get(name) == Some(v))
    }
}

/// Makes `to[field]` what `from[field]` is, absence included.
fn copy(to: &mut Value, from: &Value, field: &str) {
    if let Some(map) = to.as_object_mut() {
        match from.get(field) {
            Some(value) => map.insert(field.to_owned(), value.clone()),
            None => map.shift_remove(field),
        };
    }
}

fn set_generation(object: &mut Value, generation: Option<i64>) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        match generation {
            Some(number) => metadata.insert("generation".into(), json!(number)),
            None => metadata.shift_remove("generation"),
        };
    }
}

static BUILTINS: LazyLock<Vec<Arc<Kind>>> =
    LazyLock::new(|| builtin::all().map(|kind| Arc::new(from_builtin(kind))).collect());

/// All built-in kinds of KS §12.1 (in discovery order of their group), including the reviews.
#[must_use]
pub fn builtins() -> Vec<Arc<Kind>> {
    BUILTINS.clone()
}

fn from_builtin(kind: &'static BuiltinKind) -> Kind {
    let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    Kind {
        group: kind.group.into(),
        version: kind.version.into(),
        kind: kind.kind.into(),
        list_kind: format!("{}List", kind.kind),
        plural: kind.plural.into(),
        singular: kind.kind.to_lowercase(),
        short_names: owned(kind.short),
        categories: owned(kind.categories),
        namespaced: kind.namespaced,
        verbs: kind.verbs.to_vec(),
        subresources: kind
            .subresources
            .iter()
            .map(|sub| Subresource {
                name: sub.name.into(),
                body: sub.body.map(|(group, version, kind)| (group.into(), version.into(), kind.into())),
                verbs: sub.verbs.to_vec(),
            })
            .collect(),
        create_on_update: kind.create_on_update,
        unconditional_update: kind.unconditional_update,
        schema: Arc::new(Schema::builtin(builtin::definitions(), kind.component)),
        scale: None,
        source: Source::Builtin(kind),
    }
}
