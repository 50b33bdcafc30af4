//! Errors of single fields: the causes of a 422 answer, with the texts Kubernetes clients know.

use std::fmt;

use serde_json::Value;

/// What is wrong with a field (KS §3.5); each has its cause reason and text form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ErrorType {
    /// `FieldValueNotFound`.
    NotFound,
    /// `FieldValueRequired`.
    Required,
    /// `FieldValueDuplicate`.
    Duplicate,
    /// `FieldValueInvalid`.
    Invalid,
    /// `FieldValueNotSupported`.
    NotSupported,
    /// `FieldValueForbidden`.
    Forbidden,
    /// `FieldValueTooLong`.
    TooLong,
    /// `FieldValueTooMany`.
    TooMany,
    /// `InternalError`.
    Internal,
    /// `FieldValueTypeInvalid`.
    TypeInvalid,
}

impl ErrorType {
    /// The `reason` of the cause in `details.causes`.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::NotFound => "FieldValueNotFound",
            Self::Required => "FieldValueRequired",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::Internal => "InternalError",
            Self::TypeInvalid => "FieldValueTypeInvalid",
        }
    }
}

/// One wrong field: path, kind of error, and the text after the path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// What kind of error.
    pub kind: ErrorType,
    /// Dotted path, such as `spec.containers[0].name`; `<nil>` for the whole object.
    pub field: String,
    /// The text after `field: `, such as `Invalid value: "x": must be a number`.
    pub text: String,
}

impl FieldError {
    /// `Required value[: detail]`.
    pub fn required(field: impl Into<String>, detail: &str) -> Self {
        let text =
            if detail.is_empty() { "Required value".to_owned() } else { format!("Required value: {detail}") };
        Self { kind: ErrorType::Required, field: field.into(), text }
    }

    /// `Invalid value: <value>: detail`; strings are quoted, other values printed as Go would.
    pub fn invalid(field: impl Into<String>, value: &Value, detail: impl AsRef<str>) -> Self {
        Self::with_value(ErrorType::Invalid, "Invalid value", field, value, detail.as_ref())
    }

    /// `Invalid value: "<type>": detail` as the CRD validator prints type errors.
    pub fn type_invalid(field: impl Into<String>, value: &Value, detail: impl AsRef<str>) -> Self {
        Self::with_value(ErrorType::TypeInvalid, "Invalid value", field, value, detail.as_ref())
    }

    /// `Unsupported value: "C": supported values: "A", "B"`.
    pub fn not_supported<S: AsRef<str>>(field: impl Into<String>, value: &Value, supported: &[S]) -> Self {
        let mut text = format!("Unsupported value: {}", display_value(value));
        if !supported.is_empty() {
            let list: Vec<String> = supported.iter().map(|s| quote(s.as_ref())).collect();
            text.push_str(": supported values: ");
            text.push_str(&list.join(", "));
        }
        Self { kind: ErrorType::NotSupported, field: field.into(), text }
    }

    /// `Duplicate value: <value>`.
    pub fn duplicate(field: impl Into<String>, value: &Value) -> Self {
        Self {
            kind: ErrorType::Duplicate,
            field: field.into(),
            text: format!("Duplicate value: {}", display_value(value)),
        }
    }

    /// `Forbidden: detail`.
    pub fn forbidden(field: impl Into<String>, detail: impl AsRef<str>) -> Self {
        Self {
            kind: ErrorType::Forbidden,
            field: field.into(),
            text: format!("Forbidden: {}", detail.as_ref()),
        }
    }

    /// `Too long: may not be more than <max> bytes`.
    pub fn too_long(field: impl Into<String>, max: usize) -> Self {
        Self {
            kind: ErrorType::TooLong,
            field: field.into(),
            text: format!("Too long: may not be more than {max} bytes"),
        }
    }

    /// `Too many: <actual>: must have at most <max> items`.
    pub fn too_many(field: impl Into<String>, actual: usize, max: usize) -> Self {
        Self {
            kind: ErrorType::TooMany,
            field: field.into(),
            text: format!("Too many: {actual}: must have at most {max} items"),
        }
    }

    /// `Not found: <value>`.
    pub fn not_found(field: impl Into<String>, value: &Value) -> Self {
        Self {
            kind: ErrorType::NotFound,
            field: field.into(),
            text: format!("Not found: {}", display_value(value)),
        }
    }

    /// `Internal error: detail`.
    pub fn internal(field: impl Into<String>, detail: impl AsRef<str>) -> Self {
        Self {
            kind: ErrorType::Internal,
            field: field.into(),
            text: format!("Internal error: {}", detail.as_ref()),
        }
    }

    fn with_value(
        kind: ErrorType,
        word: &str,
        field: impl Into<String>,
        value: &Value,
        detail: &str,
    ) -> Self {
        let mut text = format!("{word}: {}", display_value(value));
        if !detail.is_empty() {
            text.push_str(": ");
            text.push_str(detail);
        }
        Self { kind, field: field.into(), text }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.text)
    }
}

/// A value as error texts show it: quoted string, bare scalar, compact JSON for the rest.
#[must_use]
pub fn display_value(value: &Value) -> String {
    match value {
        Value::String(text) => quote(text),
        Value::Null => "null".to_owned(),
        other => other.to_string(),
    }
}

/// A Go `%q` string: double quotes, the usual escapes.
#[must_use]
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if u32::from(c) < 0x20 || c == '\x7f' => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Joins a path and a field name; the root path is empty.
#[must_use]
pub fn child(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// Path of a list element: `path[3]`.
#[must_use]
pub fn index(path: &str, position: usize) -> String {
    format!("{path}[{position}]")
}

/// Path of a map entry: `path[key]`.
#[must_use]
pub fn key(path: &str, key: &str) -> String {
    format!("{path}[{key}]")
}
