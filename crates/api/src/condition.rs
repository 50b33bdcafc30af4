//! Conditions: the trait every condition type implements and the schema of a `conditions` list
//! (api.md §0.4). The enums themselves stand next to their kinds.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::{Schema, SchemaGenerator, json_schema};

use crate::macros::text_enum;

text_enum! {
    /// Status of a condition.
    pub enum Status {
        /// Holds.
        True,
        /// Does not hold.
        False,
        /// Not known.
        #[default]
        Unknown,
    }
}

/// One condition type; its values are the legal pairs of status and reason.
pub trait ConditionKind: Copy + 'static {
    /// The condition's `type`.
    const TYPE: &'static str;
    /// Every legal value, in declared order.
    const ALL: &'static [Self];
    /// The `status` that belongs to this value.
    fn status(self) -> Status;
    /// The `reason` that belongs to this value.
    fn reason(self) -> &'static str;
}

/// The condition of type `kind`, if the list has one.
pub fn find<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.type_ == kind)
}

/// Reads a condition back as its enum; `None` if absent or if the pair is not a legal one.
pub fn get<K: ConditionKind>(conditions: &[Condition]) -> Option<K> {
    let c = find(conditions, K::TYPE)?;
    K::ALL.iter().copied().find(|k| k.reason() == c.reason && k.status().as_str() == c.status)
}

/// True if the condition is `True` and speaks about this generation (api.md §0.4: a stale `True`
/// must not be trusted).
pub fn is_current_true(conditions: &[Condition], kind: &str, generation: i64) -> bool {
    find(conditions, kind).is_some_and(|c| c.status == "True" && c.observed_generation == Some(generation))
}

/// Schema of `status.conditions`.
pub fn list_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "description": "The latest available observations of the object's state.",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["lastTransitionTime", "message", "reason", "status", "type"],
            "properties": {
                "type": {
                    "type": "string", "maxLength": 316,
                    "description": "Type of the condition.",
                },
                "status": {
                    "type": "string", "enum": ["True", "False", "Unknown"],
                    "description": "Whether the condition holds.",
                },
                "reason": {
                    "type": "string", "minLength": 1, "maxLength": 1024,
                    "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
                    "description": "Why, in one word for programs.",
                },
                "message": {
                    "type": "string", "maxLength": 32768,
                    "description": "Why, in a sentence for people.",
                },
                "lastTransitionTime": {
                    "type": "string", "format": "date-time",
                    "description": "When status or reason changed last.",
                },
                "observedGeneration": {
                    "type": "integer", "format": "int64", "minimum": 0,
                    "description": "Generation of the object that the condition speaks about.",
                },
            },
        },
    })
}
