//! RFC 6902, RFC 7386 and strategic merge patches.

use serde_json::Value;

use crate::{schema::Schema, status::Status};

/// Applies a JSON patch (≤ 10 000 operations).
///
/// # Errors
/// 400 malformed, 413 too many operations, 422 impossible.
pub fn json(document: &Value, patch: &Value) -> Result<Value, Status> {
    let _ = (document, patch);
    todo!()
}

/// Applies a merge patch.
#[must_use]
pub fn merge(document: &Value, patch: &Value) -> Value {
    let _ = (document, patch);
    todo!()
}

/// Applies a strategic merge patch to a built-in kind.
///
/// # Errors
/// 422 or 400 for a patch that does not fit.
pub fn strategic(schema: &Schema, document: &Value, patch: &Value) -> Result<Value, Status> {
    let _ = (schema, document, patch);
    todo!()
}
