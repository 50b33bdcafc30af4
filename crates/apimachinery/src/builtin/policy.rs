//! Disruption budgets, priority classes, leases, RBAC bindings.

use serde_json::{Value, json};

use crate::field::FieldError;

/// User-defined priorities end here.
const USER_PRIORITY_MAX: i64 = 1_000_000_000;

pub(super) fn create_budget(budget: &mut Value) {
    if let Some(object) = budget.as_object_mut() {
        object.insert(
            "status".into(),
            json!({"disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0}),
        );
    }
}

pub(super) fn validate_budget(budget: &Value, errors: &mut Vec<FieldError>) {
    let spec = &budget["spec"];
    if !spec["minAvailable"].is_null() && !spec["maxUnavailable"].is_null() {
        errors.push(FieldError::invalid(
            "spec",
            &json!("object"),
            "minAvailable and maxUnavailable cannot be both set",
        ));
    }
    for name in ["minAvailable", "maxUnavailable"] {
        let field = format!("spec.{name}");
        match &spec[name] {
            Value::Null => {}
            Value::Number(number) if number.as_i64().is_some_and(|n| n >= 0) => {}
            Value::String(text) => match text.strip_suffix('%').and_then(|digits| digits.parse::<u32>().ok()) {
                Some(percent) if percent <= 100 => {}
                Some(_) => errors.push(FieldError::invalid(field, &spec[name], "must not be greater than 100%")),
                None => errors.push(FieldError::invalid(
                    field,
                    &spec[name],
                    "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')",
                )),
            },
            other => errors.push(FieldError::invalid(field, other, "must be greater than or equal to 0")),
        }
    }
    if let Some(policy) = spec["unhealthyPodEvictionPolicy"].as_str()
        && !matches!(policy, "IfHealthyBudget" | "AlwaysAllow")
    {
        errors.push(FieldError::not_supported(
            "spec.unhealthyPodEvictionPolicy",
            &json!(policy),
            &["AlwaysAllow", "IfHealthyBudget"],
        ));
    }
    if let Err(text) = crate::selector::LabelSelector::from_object(&spec["selector"]) {
        errors.push(FieldError::invalid("spec.selector", &json!("object"), text));
    }
}

pub(super) fn default_priority_class(class: &mut Value) {
    if class["preemptionPolicy"].is_null() {
        class["preemptionPolicy"] = json!("PreemptLowerPriority");
    }
    if class["value"].is_null() {
        class["value"] = json!(0);
    }
}

pub(super) fn validate_priority_class(class: &Value, errors: &mut Vec<FieldError>) {
    let name = class["metadata"]["name"].as_str().unwrap_or_default();
    let value = class["value"].as_i64().unwrap_or_default();
    let system = matches!(name, "system-cluster-critical" | "system-node-critical");
    if name.starts_with("system-") && !system {
        errors.push(FieldError::forbidden(
            "metadata.name",
            "priority class names with 'system-' prefix are reserved for system use only",
        ));
    }
    if value > USER_PRIORITY_MAX && !system {
        errors.push(FieldError::forbidden(
            "value",
            format!("maximum allowed value of a user defined priority is {USER_PRIORITY_MAX}"),
        ));
    }
    let policy = class["preemptionPolicy"].as_str().unwrap_or_default();
    if !matches!(policy, "Never" | "PreemptLowerPriority") {
        errors.push(FieldError::not_supported(
            "preemptionPolicy",
            &json!(policy),
            &["Never", "PreemptLowerPriority"],
        ));
    }
}

pub(super) fn validate_priority_class_update(class: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    if class["value"] != old["value"] {
        errors.push(FieldError::forbidden("value", "may not be changed in an update."));
    }
    if class["preemptionPolicy"] != old["preemptionPolicy"] {
        errors.push(FieldError::invalid(
            "preemptionPolicy",
            &class["preemptionPolicy"],
            "field is immutable",
        ));
    }
}

pub(super) fn validate_lease(lease: &Value, errors: &mut Vec<FieldError>) {
    let spec = &lease["spec"];
    if let Some(seconds) = spec["leaseDurationSeconds"].as_i64()
        && seconds <= 0
    {
        errors.push(FieldError::invalid(
            "spec.leaseDurationSeconds",
            &json!(seconds),
            "must be greater than 0",
        ));
    }
    if let Some(transitions) = spec["leaseTransitions"].as_i64()
        && transitions < 0
    {
        errors.push(FieldError::invalid(
            "spec.leaseTransitions",
            &json!(transitions),
            "must be greater than or equal to 0",
        ));
    }
}

pub(super) fn default_binding(binding: &mut Value) {
    const RBAC: &str = "rbac.authorization.k8s.io";
    if binding["roleRef"].is_object()
        && binding["roleRef"]["apiGroup"].as_str().unwrap_or_default().is_empty()
    {
        binding["roleRef"]["apiGroup"] = json!(RBAC);
    }
    for subject in binding.get_mut("subjects").and_then(Value::as_array_mut).into_iter().flatten() {
        let kind = subject["kind"].as_str().unwrap_or_default();
        if matches!(kind, "User" | "Group") && subject["apiGroup"].as_str().unwrap_or_default().is_empty() {
            subject["apiGroup"] = json!(RBAC);
        }
    }
}

pub(super) fn validate_binding(binding: &Value, errors: &mut Vec<FieldError>) {
    let role = &binding["roleRef"];
    let kind = role["kind"].as_str().unwrap_or_default();
    let allowed: &[&str] = if binding["metadata"]["namespace"].as_str().unwrap_or_default().is_empty() {
        &["ClusterRole"]
    } else {
        &["Role", "ClusterRole"]
    };
    if !allowed.contains(&kind) {
        errors.push(FieldError::not_supported("roleRef.kind", &json!(kind), allowed));
    }
    if role["name"].as_str().unwrap_or_default().is_empty() {
        errors.push(FieldError::required("roleRef.name", ""));
    }
    for (position, subject) in binding["subjects"].as_array().into_iter().flatten().enumerate() {
        let at = format!("subjects[{position}]");
        if subject["name"].as_str().unwrap_or_default().is_empty() {
            errors.push(FieldError::required(format!("{at}.name"), ""));
        }
        match subject["kind"].as_str().unwrap_or_default() {
            "User" | "Group" => {}
            "ServiceAccount" if subject["namespace"].as_str().unwrap_or_default().is_empty() => {
                errors.push(FieldError::required(format!("{at}.namespace"), ""))
            }
            "ServiceAccount" => {}
            other => errors.push(FieldError::not_supported(
                format!("{at}.kind"),
                &json!(other),
                &["ServiceAccount", "User", "Group"],
            )),
        }
    }
}

pub(super) fn validate_binding_update(binding: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    if binding["roleRef"] != old["roleRef"] {
        errors.push(FieldError::invalid("roleRef", &binding["roleRef"], "cannot change roleRef"));
    }
}
