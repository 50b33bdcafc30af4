//! Accessors of object metadata and its validation common to all kinds (KS §6.4).

use serde_json::{Map, Value, json};

use crate::{
    builtin::NameRule,
    field::{FieldError, index},
    names,
};

/// Largest total of keys and values of annotations.
const ANNOTATIONS_MAX_BYTES: usize = 256 * 1024;
/// Finalizers without a domain that Kubernetes itself uses.
const OWN_FINALIZERS: [&str; 3] = ["kubernetes", "orphan", "foregroundDeletion"];

/// `metadata.name`, or empty.
#[must_use]
pub fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// `metadata.namespace`, or empty.
#[must_use]
pub fn namespace(object: &Value) -> &str {
    object["metadata"]["namespace"].as_str().unwrap_or_default()
}

/// `metadata.uid`, or empty.
#[must_use]
pub fn uid(object: &Value) -> &str {
    object["metadata"]["uid"].as_str().unwrap_or_default()
}

/// Whether deletion was requested.
#[must_use]
pub fn is_terminating(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_string()
}

/// `metadata.finalizers`.
pub fn finalizers(object: &Value) -> impl Iterator<Item = &str> {
    object["metadata"]["finalizers"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// Drops members of metadata that Go would not write: nulls and empty maps and lists.
pub(crate) fn compact_metadata(object: &mut Value) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        // An empty list of managed fields is a request to clear them.
        metadata.retain(|name, value| match value {
            Value::Array(_) if name == "managedFields" => true,
            Value::Null => false,
            Value::Object(map) => !map.is_empty(),
            Value::Array(list) => !list.is_empty(),
            Value::String(text) => !text.is_empty(),
            Value::Bool(_) | Value::Number(_) => true,
        });
    }
}

/// Rules for the metadata of any object; `old` on updates.
pub(crate) fn validate_metadata(
    object: &Value,
    old: Option<&Value>,
    rule: NameRule,
    errors: &mut Vec<FieldError>,
) {
    let metadata = &object["metadata"];
    if old.is_none() {
        validate_name(metadata, rule, errors);
    }
    for (label, value) in entries(&metadata["labels"]) {
        for fault in names::qualified_name(label) {
            errors.push(FieldError::invalid("metadata.labels", &json!(label), fault));
        }
        for fault in names::label_value(value.as_str().unwrap_or_default()) {
            errors.push(FieldError::invalid("metadata.labels", value, fault));
        }
    }
    let mut total = 0;
    for (annotation, value) in entries(&metadata["annotations"]) {
        // Annotation keys may be written in any case.
        for fault in names::qualified_name(&annotation.to_lowercase()) {
            errors.push(FieldError::invalid("metadata.annotations", &json!(annotation), fault));
        }
        total += annotation.len() + value.as_str().unwrap_or_default().len();
    }
    if total > ANNOTATIONS_MAX_BYTES {
        errors.push(FieldError::too_long("metadata.annotations", ANNOTATIONS_MAX_BYTES));
    }
    validate_owners(metadata, errors);
    validate_finalizers(object, old, errors);
}

fn entries(map: &Value) -> impl Iterator<Item = (&String, &Value)> {
    map.as_object().into_iter().flat_map(Map::iter)
}

fn validate_name(metadata: &Value, rule: NameRule, errors: &mut Vec<FieldError>) {
    let name = metadata["name"].as_str().unwrap_or_default();
    if name.is_empty() {
        errors.push(FieldError::required("metadata.name", "name or generateName is required"));
        return;
    }
    let faults = match rule {
        NameRule::Subdomain => names::dns1123_subdomain(name),
        NameRule::Label => names::dns1123_label(name),
        NameRule::Label1035 => names::dns1035_label(name),
        NameRule::PathSegment => names::path_segment(name),
    };
    errors.extend(faults.into_iter().map(|fault| FieldError::invalid("metadata.name", &json!(name), fault)));
}

fn validate_owners(metadata: &Value, errors: &mut Vec<FieldError>) {
    let mut controllers = 0;
    for (position, owner) in metadata["ownerReferences"].as_array().into_iter().flatten().enumerate() {
        let at = index("metadata.ownerReferences", position);
        for (field, text) in [
            ("apiVersion", "version must not be empty"),
            ("kind", "must not be empty"),
            ("name", "must not be empty"),
            ("uid", "must not be empty"),
        ] {
            if owner[field].as_str().unwrap_or_default().is_empty() {
                errors.push(FieldError::invalid(format!("{at}.{field}"), &json!(""), text));
            }
        }
        if owner["kind"] == "Event" && matches!(owner["apiVersion"].as_str(), Some("v1" | "events.k8s.io/v1"))
        {
            errors.push(FieldError::invalid(at, &json!("object"), "Event is disallowed from being an owner"));
        }
        controllers += usize::from(owner["controller"] == json!(true));
    }
    if controllers > 1 {
        errors.push(FieldError::invalid(
            "metadata.ownerReferences",
            &json!("array"),
            "Only one reference can have Controller set to true",
        ));
    }
}

/// Finalizers of built-in kinds need a domain; those of custom ones do not (medik8s' has none).
pub(crate) fn validate_finalizer_domains(object: &Value, errors: &mut Vec<FieldError>) {
    for finalizer in finalizers(object) {
        if !finalizer.contains('/') && !OWN_FINALIZERS.contains(&finalizer) {
            errors.push(FieldError::invalid(
                "metadata.finalizers",
                &json!(finalizer),
                "name is neither a standard finalizer name nor is it fully qualified",
            ));
        }
    }
}

fn validate_finalizers(object: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    for finalizer in finalizers(object) {
        let value = json!(finalizer);
        for fault in names::qualified_name(finalizer) {
            errors.push(FieldError::invalid("metadata.finalizers", &value, fault));
        }
    }
    let terminating = old.filter(|old| is_terminating(old));
    if let Some(old) = terminating {
        let added: Vec<String> = finalizers(object)
            .filter(|f| !finalizers(old).any(|o| o == *f))
            .map(|f| format!("{f:?}"))
            .collect();
        if !added.is_empty() {
            let text = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                added.join(", ")
            );
            errors.push(FieldError::forbidden("metadata.finalizers", text));
        }
    }
}
