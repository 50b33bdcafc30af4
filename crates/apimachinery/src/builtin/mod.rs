//! Built-in kinds: catalogue, defaults, strategies, admission (KS §12).

pub mod admission;
mod catalogue;
mod cells;
mod core;
mod event;
mod pod;
mod pod_validation;
mod policy;
pub mod quota;
mod storage;
mod types;

use chrono::{DateTime, Utc};
use serde_json::Value;

pub use catalogue::all;
pub(crate) use cells::pod_conditions;
pub use types::definitions;
pub(crate) use types::object_meta;

use crate::field::FieldError;

/// Rule for `metadata.name`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// DNS-1123 subdomain.
    Subdomain,
    /// DNS-1123 label.
    Label,
    /// DNS-1035 label.
    Label1035,
    /// Path segment (RBAC).
    PathSegment,
}

/// Who may write `status` (KS §6.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusRule {
    /// No status subresource.
    None,
    /// Status only through `/status`, which also accepts labels, annotations and finalizers.
    Subresource,
    /// As `Subresource`, but a create keeps the status of the body.
    KeptOnCreate,
}

/// A subresource in discovery.
#[derive(Clone, Copy, Debug)]
pub struct BuiltinSubresource {
    /// Name.
    pub name: &'static str,
    /// Group, version, kind of the body, if not the parent's.
    pub body: Option<(&'static str, &'static str, &'static str)>,
    /// Verbs.
    pub verbs: &'static [&'static str],
}

/// A column of a built-in Table: name, type, format, priority.
pub type BuiltinColumn = (&'static str, &'static str, &'static str, i64);

/// What a kind does beyond data; every hook may be a no-op.
#[derive(Clone, Copy, Debug)]
pub struct Strategy {
    /// Defaults of every decoded object.
    pub default: fn(&mut Value),
    /// Before a create.
    pub create: fn(&mut Value),
    /// Before an update through the main endpoint.
    pub update: fn(&mut Value, &Value),
    /// Validation of any written object.
    pub validate: fn(&Value, &mut Vec<FieldError>),
    /// Validation of an update through the main endpoint: new, old.
    pub validate_update: fn(&Value, &Value, &mut Vec<FieldError>),
    /// Table cells.
    pub cells: fn(&Value, DateTime<Utc>) -> Vec<Value>,
}

/// One built-in kind as data.
#[derive(Debug)]
pub struct BuiltinKind {
    /// API group.
    pub group: &'static str,
    /// Version.
    pub version: &'static str,
    /// Kind.
    pub kind: &'static str,
    /// Plural.
    pub plural: &'static str,
    /// Short names.
    pub short: &'static [&'static str],
    /// Categories.
    pub categories: &'static [&'static str],
    /// Namespaced.
    pub namespaced: bool,
    /// Verbs.
    pub verbs: &'static [&'static str],
    /// Subresources.
    pub subresources: &'static [BuiltinSubresource],
    /// Component name of the schema.
    pub component: &'static str,
    /// Columns.
    pub columns: &'static [BuiltinColumn],
    /// Field-selector labels besides name and namespace, with the path of their value.
    pub fields: &'static [(&'static str, &'static str)],
    /// Rule for names.
    pub names: NameRule,
    /// Rule for status.
    pub status: StatusRule,
    /// Whether `metadata.generation` is kept (KS §6.3).
    pub generation: bool,
    /// PUT to a missing name creates.
    pub create_on_update: bool,
    /// PUT without resourceVersion is allowed.
    pub unconditional_update: bool,
    /// Hooks.
    pub strategy: Strategy,
}
