//! Pods: validation of new pods and of updates (KS §12.2).

use serde_json::{Value, json};

use super::pod::CONTAINER_LISTS;
use crate::{
    field::{FieldError, index, key},
    names,
    quantity::Quantity,
};

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn one_of(value: &Value, field: String, supported: &[&str], errors: &mut Vec<FieldError>) {
    if !value.is_null() && !supported.contains(&text(value)) {
        errors.push(FieldError::not_supported(field, value, supported));
    }
}

pub(super) fn validate(pod: &Value, errors: &mut Vec<FieldError>) {
    let spec = &pod["spec"];
    if spec["containers"].as_array().is_none_or(Vec::is_empty) {
        errors.push(FieldError::required("spec.containers", ""));
    }
    let volumes = validate_volumes(spec, errors);
    let mut seen: Vec<&str> = Vec::new();
    for list in CONTAINER_LISTS {
        for (position, container) in spec[list].as_array().into_iter().flatten().enumerate() {
            let at = index(&format!("spec.{list}"), position);
            let name = text(&container["name"]);
            if seen.contains(&name) {
                errors.push(FieldError::duplicate(format!("{at}.name"), &container["name"]));
            }
            seen.push(name);
            validate_container(container, &at, &volumes, errors);
        }
    }
    one_of(&spec["restartPolicy"], "spec.restartPolicy".into(), &["Always", "OnFailure", "Never"], errors);
    one_of(
        &spec["dnsPolicy"],
        "spec.dnsPolicy".into(),
        &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"],
        errors,
    );
    if let Some(seconds) = spec["activeDeadlineSeconds"].as_i64()
        && seconds < 1
    {
        errors.push(FieldError::invalid(
            "spec.activeDeadlineSeconds",
            &json!(seconds),
            "must be between 1 and 2147483647, inclusive",
        ));
    }
    validate_scheduling(spec, errors);
    for (field, rule) in [
        ("nodeName", names::dns1123_subdomain as fn(&str) -> Vec<String>),
        ("serviceAccountName", names::dns1123_subdomain),
        ("hostname", names::dns1123_label),
    ] {
        let value = text(&spec[field]);
        if !value.is_empty() {
            errors.extend(
                rule(value)
                    .into_iter()
                    .map(|fault| FieldError::invalid(format!("spec.{field}"), &spec[field], fault)),
            );
        }
    }
    for (position, gate) in spec["readinessGates"].as_array().into_iter().flatten().enumerate() {
        for fault in names::qualified_name(text(&gate["conditionType"])) {
            errors.push(FieldError::invalid(
                format!("spec.readinessGates[{position}].conditionType"),
                &gate["conditionType"],
                fault,
            ));
        }
    }
}

fn validate_volumes<'p>(spec: &'p Value, errors: &mut Vec<FieldError>) -> Vec<&'p str> {
    let mut volumes: Vec<&str> = Vec::new();
    for (position, volume) in spec["volumes"].as_array().into_iter().flatten().enumerate() {
        let at = index("spec.volumes", position);
        let name = text(&volume["name"]);
        label_name(name, &format!("{at}.name"), errors);
        if volumes.contains(&name) {
            errors.push(FieldError::duplicate(format!("{at}.name"), &volume["name"]));
        }
        let sources = volume
            .as_object()
            .map_or(0, |map| map.iter().filter(|(key, value)| *key != "name" && !value.is_null()).count());
        if sources > 1 {
            errors.push(FieldError::forbidden(at, "may not specify more than 1 volume type"));
        }
        volumes.push(name);
    }
    volumes
}

fn label_name(name: &str, field: &str, errors: &mut Vec<FieldError>) {
    if name.is_empty() {
        errors.push(FieldError::required(field, ""));
    } else {
        errors.extend(
            names::dns1123_label(name)
                .into_iter()
                .map(|fault| FieldError::invalid(field, &json!(name), fault)),
        );
    }
}

fn validate_container(container: &Value, at: &str, volumes: &[&str], errors: &mut Vec<FieldError>) {
    label_name(text(&container["name"]), &format!("{at}.name"), errors);
    let image = text(&container["image"]);
    if image.is_empty() {
        errors.push(FieldError::required(format!("{at}.image"), ""));
    } else if image.trim() != image {
        errors.push(FieldError::invalid(
            format!("{at}.image"),
            &container["image"],
            "must not have leading or trailing whitespace",
        ));
    }
    one_of(
        &container["imagePullPolicy"],
        format!("{at}.imagePullPolicy"),
        &["Always", "IfNotPresent", "Never"],
        errors,
    );
    one_of(
        &container["terminationMessagePolicy"],
        format!("{at}.terminationMessagePolicy"),
        &["FallbackToLogsOnError", "File"],
        errors,
    );
    for (position, port) in container["ports"].as_array().into_iter().flatten().enumerate() {
        if !port["containerPort"].as_i64().is_some_and(|n| (1..=65535).contains(&n)) {
            errors.push(FieldError::invalid(
                format!("{at}.ports[{position}].containerPort"),
                &port["containerPort"],
                "must be between 1 and 65535, inclusive",
            ));
        }
        one_of(
            &port["protocol"],
            format!("{at}.ports[{position}].protocol"),
            &["SCTP", "TCP", "UDP"],
            errors,
        );
    }
    for (list, path) in [("volumeMounts", "mountPath"), ("volumeDevices", "devicePath")] {
        for (position, mount) in container[list].as_array().into_iter().flatten().enumerate() {
            let name = text(&mount["name"]);
            if !volumes.contains(&name) {
                errors.push(FieldError::not_found(format!("{at}.{list}[{position}].name"), &mount["name"]));
            }
            if text(&mount[path]).is_empty() {
                errors.push(FieldError::required(format!("{at}.{list}[{position}].{path}"), ""));
            }
        }
    }
    for (position, variable) in container["env"].as_array().into_iter().flatten().enumerate() {
        if text(&variable["name"]).is_empty() {
            errors.push(FieldError::required(format!("{at}.env[{position}].name"), ""));
        }
    }
    validate_resources(&container["resources"], &format!("{at}.resources"), errors);
}

fn validate_resources(resources: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let native = |name: &str| !name.contains('/') || name.starts_with("kubernetes.io/");
    for list in ["limits", "requests"] {
        for (name, value) in resources[list].as_object().into_iter().flatten() {
            let field = key(&format!("{at}.{list}"), name);
            match Quantity::from_value(value) {
                Err(error) => errors.push(FieldError::invalid(field, value, error.to_string())),
                Ok(quantity) if quantity < Quantity::ZERO => {
                    errors.push(FieldError::invalid(field, value, "must be greater than or equal to 0"))
                }
                Ok(quantity) if !native(name) && !quantity.is_integer() => {
                    errors.push(FieldError::invalid(field, value, "must be an integer"))
                }
                Ok(_) => {}
            }
        }
    }
    for (name, value) in resources["requests"].as_object().into_iter().flatten() {
        let limit = &resources["limits"][name];
        let field = key(&format!("{at}.requests"), name);
        match (Quantity::from_value(value), Quantity::from_value(limit)) {
            (Ok(request), Ok(bound)) if !native(name) && request != bound => {
                errors.push(FieldError::invalid(
                    field,
                    value,
                    format!("must be equal to {name} limit of {bound}"),
                ));
            }
            (Ok(request), Ok(bound)) if request > bound => {
                errors.push(FieldError::invalid(
                    field,
                    value,
                    format!("must be less than or equal to {name} limit of {bound}"),
                ));
            }
            (Ok(_), Err(_)) if !native(name) => errors.push(FieldError::required(
                key(&format!("{at}.limits"), name),
                "Limit must be set for non overcommitable resources",
            )),
            _ => {}
        }
    }
}

fn validate_scheduling(spec: &Value, errors: &mut Vec<FieldError>) {
    for (position, toleration) in spec["tolerations"].as_array().into_iter().flatten().enumerate() {
        let at = index("spec.tolerations", position);
        one_of(&toleration["operator"], format!("{at}.operator"), &["Equal", "Exists"], errors);
        one_of(
            &toleration["effect"],
            format!("{at}.effect"),
            &["NoSchedule", "PreferNoSchedule", "NoExecute", ""],
            errors,
        );
        let name = text(&toleration["key"]);
        if name.is_empty() && toleration["operator"] != "Exists" {
            errors.push(FieldError::invalid(
                format!("{at}.operator"),
                &toleration["operator"],
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            ));
        } else if !name.is_empty() {
            errors.extend(
                names::qualified_name(name)
                    .into_iter()
                    .map(|fault| FieldError::invalid(format!("{at}.key"), &toleration["key"], fault)),
            );
        }
        if toleration["operator"] == "Exists" && !text(&toleration["value"]).is_empty() {
            errors.push(FieldError::invalid(
                format!("{at}.operator"),
                toleration,
                "value must be empty when `operator` is 'Exists'",
            ));
        }
        if !toleration["tolerationSeconds"].is_null() && toleration["effect"] != "NoExecute" {
            errors.push(FieldError::invalid(
                format!("{at}.effect"),
                &toleration["effect"],
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            ));
        }
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let at = format!("spec.affinity.{kind}");
        let terms = &spec["affinity"][kind];
        for (position, term) in terms["requiredDuringSchedulingIgnoredDuringExecution"]
            .as_array()
            .into_iter()
            .flatten()
            .enumerate()
        {
            affinity_term(
                term,
                &index(&format!("{at}.requiredDuringSchedulingIgnoredDuringExecution"), position),
                errors,
            );
        }
        for (position, weighted) in terms["preferredDuringSchedulingIgnoredDuringExecution"]
            .as_array()
            .into_iter()
            .flatten()
            .enumerate()
        {
            let at = index(&format!("{at}.preferredDuringSchedulingIgnoredDuringExecution"), position);
            weight(weighted, &at, errors);
            affinity_term(&weighted["podAffinityTerm"], &format!("{at}.podAffinityTerm"), errors);
        }
    }
    let node = &spec["affinity"]["nodeAffinity"];
    let at = "spec.affinity.nodeAffinity";
    let required = &node["requiredDuringSchedulingIgnoredDuringExecution"];
    if required.is_object() && required["nodeSelectorTerms"].as_array().is_none_or(Vec::is_empty) {
        errors.push(FieldError::required(
            format!("{at}.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms"),
            "must have at least one node selector term",
        ));
    }
    for (position, term) in required["nodeSelectorTerms"].as_array().into_iter().flatten().enumerate() {
        node_term(
            term,
            &format!("{at}.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[{position}]"),
            errors,
        );
    }
    for (position, weighted) in
        node["preferredDuringSchedulingIgnoredDuringExecution"].as_array().into_iter().flatten().enumerate()
    {
        let at = format!("{at}.preferredDuringSchedulingIgnoredDuringExecution[{position}]");
        weight(weighted, &at, errors);
        node_term(&weighted["preference"], &format!("{at}.preference"), errors);
    }
    for (position, spread) in spec["topologySpreadConstraints"].as_array().into_iter().flatten().enumerate() {
        let at = index("spec.topologySpreadConstraints", position);
        if spread["maxSkew"].as_i64().is_none_or(|n| n <= 0) {
            errors.push(FieldError::invalid(
                format!("{at}.maxSkew"),
                &spread["maxSkew"],
                "must be greater than zero",
            ));
        }
        if text(&spread["topologyKey"]).is_empty() {
            errors.push(FieldError::required(format!("{at}.topologyKey"), "can not be empty"));
        }
        if !matches!(text(&spread["whenUnsatisfiable"]), "DoNotSchedule" | "ScheduleAnyway") {
            errors.push(FieldError::not_supported(
                format!("{at}.whenUnsatisfiable"),
                &spread["whenUnsatisfiable"],
                &["DoNotSchedule", "ScheduleAnyway"],
            ));
        }
    }
}

fn weight(weighted: &Value, at: &str, errors: &mut Vec<FieldError>) {
    if !weighted["weight"].as_i64().is_some_and(|n| (1..=100).contains(&n)) {
        errors.push(FieldError::invalid(
            format!("{at}.weight"),
            &weighted["weight"],
            "must be in the range 1-100",
        ));
    }
}

fn affinity_term(term: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let topology = text(&term["topologyKey"]);
    if topology.is_empty() {
        errors.push(FieldError::required(format!("{at}.topologyKey"), "can not be empty"));
    } else {
        errors.extend(
            names::qualified_name(topology)
                .into_iter()
                .map(|fault| FieldError::invalid(format!("{at}.topologyKey"), &term["topologyKey"], fault)),
        );
    }
    for name in ["labelSelector", "namespaceSelector"] {
        if let Err(fault) = crate::selector::LabelSelector::from_object(&term[name]) {
            errors.push(FieldError::invalid(format!("{at}.{name}"), &json!("object"), fault));
        }
    }
}

fn node_term(term: &Value, at: &str, errors: &mut Vec<FieldError>) {
    for list in ["matchExpressions", "matchFields"] {
        if let Err(fault) = crate::selector::matches_expressions(&term[list], &json!({})) {
            errors.push(FieldError::invalid(format!("{at}.{list}"), &json!("array"), fault));
        }
    }
}

/// Only images, a deadline, more tolerations, a negative grace period and fewer scheduling gates
/// may change.
pub(super) fn validate_update(pod: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    let mut allowed = old["spec"].clone();
    let new = &pod["spec"];
    for list in ["containers", "initContainers"] {
        let images: Vec<Value> =
            new[list].as_array().into_iter().flatten().map(|c| c["image"].clone()).collect();
        if let Some(containers) = allowed.get_mut(list).and_then(Value::as_array_mut)
            && containers.len() == images.len()
        {
            for (container, image) in containers.iter_mut().zip(images) {
                container["image"] = image;
            }
        }
    }
    let (before, after) =
        (old["spec"]["activeDeadlineSeconds"].as_i64(), new["activeDeadlineSeconds"].as_i64());
    if let Some(after) = after
        && before.is_none_or(|before| after <= before)
    {
        allowed["activeDeadlineSeconds"] = json!(after);
    }
    let tolerations: Vec<&Value> = new["tolerations"].as_array().into_iter().flatten().collect();
    let kept = old["spec"]["tolerations"].as_array().into_iter().flatten().all(|t| tolerations.contains(&t));
    if kept && !new["tolerations"].is_null() {
        allowed["tolerations"] = new["tolerations"].clone();
    }
    if old["spec"]["terminationGracePeriodSeconds"].as_i64().is_some_and(|s| s < 0)
        && new["terminationGracePeriodSeconds"] == json!(1)
    {
        allowed["terminationGracePeriodSeconds"] = json!(1);
    }
    if let Some(gates) = old["spec"]["schedulingGates"].as_array()
        && new["schedulingGates"].as_array().is_none_or(|left| left.iter().all(|gate| gates.contains(gate)))
    {
        match new.get("schedulingGates") {
            Some(left) => allowed["schedulingGates"] = left.clone(),
            None => {
                allowed.as_object_mut().map(|spec| spec.shift_remove("schedulingGates"));
            }
        }
    }
    if allowed != *new {
        let text = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
        errors.push(FieldError::forbidden("spec", text));
    }
}
