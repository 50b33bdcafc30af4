//! Walks an object along its schema: types and values, list-type uniqueness, ratcheting.

use serde_json::{Map, Value};

use super::{ListType, NodeId, Schema, Type, correlated, element_keys, logic};
use crate::field::{ErrorType, FieldError, child, index};
use crate::quantity::Quantity;

/// Errors after which CEL rules are not run.
pub(super) fn blocks_rules(error: &FieldError) -> bool {
    matches!(
        error.kind,
        ErrorType::Required
            | ErrorType::NotSupported
            | ErrorType::TooLong
            | ErrorType::TooMany
            | ErrorType::TypeInvalid
    )
}

/// Types and value validations. With `old`, sub-values equal to their old ones are not checked
/// again (ratcheting).
pub(super) fn values(schema: &Schema, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    visit(schema, schema.root, object, old, "", &mut errors);
    errors
}

/// Types and value validations of a value below the root (schema defaults).
pub(super) fn values_at(schema: &Schema, id: NodeId, value: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    visit(schema, id, value, None, "", &mut errors);
    errors
}

fn visit(
    schema: &Schema,
    id: NodeId,
    value: &Value,
    old: Option<&Value>,
    path: &str,
    errors: &mut Vec<FieldError>,
) {
    if old == Some(value) {
        return;
    }
    let node = schema.node(id);
    if value.is_null() && (node.nullable || node.ty == Type::Any) {
        return;
    }
    if !node.ty.holds(value) {
        errors.push(logic::type_error(node.ty, value, path));
        if value.is_null() {
            return;
        }
    }
    node.logic.check(value, path, errors);
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                if let Some(child_id) = schema.child(id, name) {
                    visit(schema, child_id, value, old.and_then(|o| o.get(name)), &child(path, name), errors);
                }
            }
            if node.embedded {
                embedded(map, path, errors);
            }
        }
        Value::Array(list) => {
            if let Some(items) = node.items {
                for (position, value) in list.iter().enumerate() {
                    visit(
                        schema,
                        items,
                        value,
                        correlated(schema, node, old, value),
                        &index(path, position),
                        errors,
                    );
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

impl Schema {
    /// The first value of the wrong JSON type, as Go's decoder words it; nulls are fine there.
    pub(crate) fn type_fault(&self, object: &Value) -> Option<String> {
        fault(self, self.root, object, "")
    }
}

fn fault(schema: &Schema, id: NodeId, value: &Value, path: &str) -> Option<String> {
    let node = schema.node(id);
    if value.is_null() {
        return None;
    }
    // Quantities may be written as any number.
    let number = node.ty == Type::IntOrString && value.is_number();
    if !node.ty.holds(value) && !number {
        let actual = match value {
            Value::Null => "null",
            Value::Bool(_) => "bool",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        let expected = match node.ty {
            Type::Any => "any",
            Type::Object => "object",
            Type::Array => "slice",
            Type::String => "string",
            Type::Integer => "int64",
            Type::Number => "float64",
            Type::Boolean => "bool",
            Type::IntOrString => "int or string",
        };
        return Some(format!(
            "json: cannot unmarshal {actual} into Go struct field {path} of type {expected}"
        ));
    }
    if node.quantity
        && let Err(error) = Quantity::from_value(value)
    {
        return Some(error.to_string());
    }
    if node.format == "date-time"
        && let Some(text) = value.as_str()
        && !super::format::string_fits("date-time", text)
    {
        let layout = "2006-01-02T15:04:05Z07:00";
        return Some(format!("parsing time {text:?} as {layout:?}: cannot parse {text:?} as \"2006\""));
    }
    match value {
        Value::Object(map) => map
            .iter()
            .find_map(|(name, value)| fault(schema, schema.child(id, name)?, value, &child(path, name))),
        Value::Array(list) => list.iter().find_map(|value| fault(schema, node.items?, value, path)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}

/// An embedded resource must say what it is.
fn embedded(map: &Map<String, Value>, path: &str, errors: &mut Vec<FieldError>) {
    for name in ["apiVersion", "kind"] {
        match map.get(name) {
            None => errors.push(FieldError::required(child(path, name), "must not be empty")),
            Some(Value::String(text)) if text.is_empty() => {
                errors.push(FieldError::required(child(path, name), "must not be empty"))
            }
            Some(_) => {}
        }
    }
}

/// Uniqueness of set values and of list-map keys.
pub(super) fn list_types(schema: &Schema, object: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    visit_lists(schema, schema.root, object, old, "", errors);
}

fn visit_lists(
    schema: &Schema,
    id: NodeId,
    value: &Value,
    old: Option<&Value>,
    path: &str,
    errors: &mut Vec<FieldError>,
) {
    if old == Some(value) {
        return;
    }
    let node = schema.node(id);
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                if let Some(child_id) = schema.child(id, name) {
                    visit_lists(
                        schema,
                        child_id,
                        value,
                        old.and_then(|o| o.get(name)),
                        &child(path, name),
                        errors,
                    );
                }
            }
        }
        Value::Array(list) => {
            duplicates(schema, id, list, path, errors);
            if let Some(items) = node.items {
                for (position, value) in list.iter().enumerate() {
                    visit_lists(
                        schema,
                        items,
                        value,
                        correlated(schema, node, old, value),
                        &index(path, position),
                        errors,
                    );
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn duplicates(schema: &Schema, id: NodeId, list: &[Value], path: &str, errors: &mut Vec<FieldError>) {
    let node = schema.node(id);
    let mut seen: Vec<Value> = Vec::new();
    for (position, element) in list.iter().enumerate() {
        let identity = match &node.list {
            ListType::Atomic => return,
            ListType::Set => element.clone(),
            ListType::Map(keys) => {
                // Elements without their keys are reported by `required`.
                let Some(mut pairs) = element_keys(schema, node.items, keys, element) else {
                    continue;
                };
                pairs.sort_by(|a, b| a.0.cmp(&b.0));
                Value::Object(pairs.into_iter().collect())
            }
        };
        if seen.contains(&identity) {
            errors.push(FieldError::duplicate(index(path, position), &identity));
        } else {
            seen.push(identity);
        }
    }
}
