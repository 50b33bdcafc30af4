//! Schema pieces used by several kinds: quantities, timestamps, free-form objects.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::quantity::Quantity;

/// Pattern of quantity text (api.md §0.2).
pub const QUANTITY_PATTERN: &str = r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$";
/// Pattern of a core fraction (api.md §0.2); `Auto` is not built.
pub const PERCENT_PATTERN: &str = "^(100|[1-9][0-9]?)%$";
/// Pattern of a download address (api.md §0.2).
pub const URL_PATTERN: &str =
    r"^http[s]?:\/\/(?:[a-zA-Z]|[0-9]|[$-_@.&+]|[!*\(\),]|(?:%[0-9a-fA-F][0-9a-fA-F]))+$";

impl JsonSchema for Quantity {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Quantity".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "pattern": QUANTITY_PATTERN,
        })
    }
}

/// A quantity that must be written as text.
pub fn quantity_text(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "pattern": QUANTITY_PATTERN})
}

/// A quantity that may be an integer.
pub fn quantity(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "anyOf": [{"type": "integer"}, {"type": "string"}],
        "pattern": QUANTITY_PATTERN,
    })
}

/// Any object, kept as it is.
pub fn free_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

/// A list of objects, each kept as it is.
pub fn free_objects(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "items": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
    })
}

/// A timestamp that may be null (`crds` adds `nullable`).
pub fn nullable_time(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "format": "date-time"})
}

/// A text (such as a duration) that may be null (`crds` adds `nullable`).
pub fn nullable_text(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string"})
}
