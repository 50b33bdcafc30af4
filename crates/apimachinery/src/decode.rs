//! Request bodies: JSON and YAML into values, duplicate keys, the `fieldValidation` rule.

use serde_json::Value;

use crate::status::Status;

/// A decoded body.
#[derive(Clone, Debug)]
pub struct Body {
    /// The value; the last of duplicate keys wins.
    pub value: Value,
    /// Paths of duplicate keys in document order.
    pub duplicates: Vec<String>,
}

/// `fieldValidation` of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    /// Drop silently.
    Ignore,
    /// Drop with a warning (the default).
    #[default]
    Warn,
    /// Refuse.
    Strict,
}

/// Decodes a JSON body.
///
/// # Errors
/// The parser's text.
pub fn json(bytes: &[u8]) -> Result<Body, String> {
    let _ = bytes;
    todo!()
}

/// Decodes a YAML (or JSON) body of one document.
///
/// # Errors
/// The parser's text.
pub fn yaml(bytes: &[u8]) -> Result<Body, String> {
    let _ = bytes;
    todo!()
}

/// Decodes by content type (`application/json`, `application/yaml`, protobuf; empty = JSON).
/// `type_name` is what the object must be (`Pod`), for the error text.
///
/// # Errors
/// 400 for a malformed body, 415 for another type.
pub fn body(content_type: &str, bytes: &[u8], type_name: &str) -> Result<Body, Status> {
    let _ = (content_type, bytes, type_name);
    todo!()
}

/// Applies the rule to unknown and duplicate fields: warnings to send, or the 400 of Strict.
///
/// # Errors
/// 400 naming every field.
pub fn field_validation(
    mode: FieldValidation,
    kind: &str,
    version: &str,
    unknown: &[String],
    duplicates: &[String],
) -> Result<Vec<String>, Status> {
    let _ = (mode, kind, version, unknown, duplicates);
    todo!()
}
