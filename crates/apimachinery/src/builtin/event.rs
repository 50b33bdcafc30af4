//! Events of both groups (KS §12.5).

use serde_json::Value;

use crate::field::FieldError;

/// `involvedObject.namespace` must be the event's; events of cluster-scoped objects live in
/// `default` (or `kube-system`).
fn check_namespace(event: &Value, object: &str, errors: &mut Vec<FieldError>) {
    let own = event["metadata"]["namespace"].as_str().unwrap_or_default();
    let involved = &event[object]["namespace"];
    let text = involved.as_str().unwrap_or_default();
    let fits = if text.is_empty() { matches!(own, "default" | "kube-system") } else { text == own };
    if !fits {
        let value = Value::String(text.to_owned());
        errors.push(FieldError::invalid(
            format!("{object}.namespace"),
            &value,
            "does not match event.namespace",
        ));
    }
}

/// Core events.
pub(super) fn validate(event: &Value, errors: &mut Vec<FieldError>) {
    // An event written through the new API keeps its rules.
    check_namespace(event, "involvedObject", errors);
}

/// Events of `events.k8s.io`.
pub(super) fn validate_new(event: &Value, errors: &mut Vec<FieldError>) {
    check_namespace(event, "regarding", errors);
    // Events migrated from core carry the deprecated fields instead.
    if event.get("deprecatedCount").is_some() || event.get("deprecatedFirstTimestamp").is_some() {
        return;
    }
    for field in ["eventTime", "reportingController", "reportingInstance", "action", "reason"] {
        if event.get(field).and_then(Value::as_str).unwrap_or_default().is_empty() {
            errors.push(FieldError::required(field, ""));
        }
    }
    let kind = event["type"].as_str().unwrap_or_default();
    if !matches!(kind, "Normal" | "Warning") {
        errors.push(FieldError::invalid("type", &Value::String(kind.to_owned()), "has invalid value: "));
    }
    if event["note"].as_str().is_some_and(|note| note.len() > 1024) {
        errors.push(FieldError::invalid(
            "message",
            &Value::String(String::new()),
            "can have at most 1024 characters",
        ));
    }
}
