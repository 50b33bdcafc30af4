//! CustomResourceDefinitions: defaulting and validation of the definition, compilation of its
//! versions into [`Kind`]s (KS §11).

use std::sync::Arc;

use serde_json::Value;

use crate::{columns::ColumnDef, field::FieldError, jsonpath::JsonPath, kind::Kind};

/// What a custom version adds to a [`Kind`].
#[derive(Debug)]
pub(crate) struct CustomVersion {
    /// Whether `/status` exists.
    pub status: bool,
    /// Columns after `Name`.
    pub columns: Vec<(ColumnDef, JsonPath)>,
    /// Selectable fields: label and path.
    pub selectable: Vec<(String, JsonPath)>,
}

/// Compiled definition.
#[derive(Debug)]
pub struct Compiled {
    /// One kind for each served version, in Kubernetes version order.
    pub served: Vec<Arc<Kind>>,
    /// Version objects are stored as.
    pub storage_version: String,
}

/// Fills the defaults of a CustomResourceDefinition (names, conversion).
pub fn default(crd: &mut Value) {
    let _ = crd;
    todo!()
}

/// Rules of KS §11.2 for a new definition; `old` for updates.
#[must_use]
pub fn validate(crd: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let _ = (crd, old);
    todo!()
}

/// Compiles a stored definition.
///
/// # Errors
/// The fields that make it impossible; never for a definition that passed [`validate`].
pub fn compile(crd: &Value) -> Result<Compiled, Vec<FieldError>> {
    let _ = crd;
    todo!()
}

/// Names in use by another definition of the same group; used by [`accept_names`].
#[derive(Clone, Debug, Default)]
pub struct TakenNames {
    /// Plural, singular and short names.
    pub resources: Vec<String>,
    /// Kinds and list kinds.
    pub kinds: Vec<String>,
}

/// The naming loop (KS §11.1): returns the new `status` (acceptedNames, storedVersions,
/// conditions NamesAccepted and Established).
#[must_use]
pub fn accept_names(crd: &Value, taken: &TakenNames, now: &str) -> Value {
    let _ = (crd, taken, now);
    todo!()
}
