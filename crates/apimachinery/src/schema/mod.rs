//! Structural schemas, compiled once: pruning, defaulting, validation, list types.

use serde_json::Value;

use crate::field::FieldError;

/// A compiled schema of a whole kind.
#[derive(Debug)]
pub struct Schema {}

impl Schema {
    /// Compiles `openAPIV3Schema` of a CRD version.
    ///
    /// # Errors
    /// Every structural fault with its path below `path`.
    pub fn compile(schema: &Value, path: &str) -> Result<Self, Vec<FieldError>> {
        let _ = (schema, path);
        todo!()
    }

    /// Drops undeclared fields, returns their paths.
    pub fn prune(&self, object: &mut Value) -> Vec<String> {
        let _ = object;
        todo!()
    }

    /// Fills defaults.
    pub fn default(&self, object: &mut Value) {
        let _ = object;
        todo!()
    }

    /// Value validation, list types, then CEL; `old` switches on transition rules and ratcheting.
    #[must_use]
    pub fn validate(&self, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let _ = (object, old);
        todo!()
    }
}
