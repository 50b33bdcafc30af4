//! Namespaces, nodes, secrets, config maps, services.

use base64::Engine;
use serde_json::{Map, Value, json};

use crate::{
    field::{FieldError, index, key},
    names,
};

/// Largest total of a Secret's or ConfigMap's data.
const DATA_MAX_BYTES: usize = 1024 * 1024;

/// Sets `name` below `pointer` if it is absent, null or an empty string.
pub(super) fn set_default(object: &mut Value, pointer: &str, name: &str, value: Value) {
    if let Some(map) = object.pointer_mut(pointer).and_then(Value::as_object_mut) {
        let missing = map.get(name).is_none_or(|v| v.is_null() || v.as_str() == Some(""));
        if missing {
            map.insert(name.to_owned(), value);
        }
    }
}

pub(super) fn default_namespace(namespace: &mut Value) {
    let name = namespace["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    if name.is_empty() {
        return;
    }
    if let Some(metadata) = namespace.get_mut("metadata").and_then(Value::as_object_mut) {
        let labels = metadata.entry("labels").or_insert_with(|| json!({}));
        if let Some(labels) = labels.as_object_mut() {
            labels.insert("kubernetes.io/metadata.name".into(), json!(name));
        }
    }
}

pub(super) fn create_namespace(namespace: &mut Value) {
    if !namespace["spec"].is_object() {
        namespace["spec"] = json!({});
    }
    let finalizers = namespace["spec"]["finalizers"].as_array().cloned().unwrap_or_default();
    if !finalizers.contains(&json!("kubernetes")) {
        let mut finalizers = finalizers;
        finalizers.push(json!("kubernetes"));
        namespace["spec"]["finalizers"] = Value::Array(finalizers);
    }
    namespace["status"] = json!({"phase": "Active"});
}

/// `spec.finalizers` change through `/finalize` only.
pub(super) fn update_namespace(namespace: &mut Value, old: &Value) {
    if let Some(object) = namespace.as_object_mut() {
        match old.get("spec") {
            Some(spec) => object.insert("spec".into(), spec.clone()),
            None => object.shift_remove("spec"),
        };
    }
}

pub(super) fn default_node(node: &mut Value) {
    if !node["spec"].is_object() {
        node["spec"] = json!({});
    }
    if node["status"].is_object()
        && node["status"]["allocatable"].is_null()
        && node["status"]["capacity"].is_object()
    {
        node["status"]["allocatable"] = node["status"]["capacity"].clone();
    }
}

pub(super) fn validate_node(node: &Value, errors: &mut Vec<FieldError>) {
    let mut seen: Vec<(String, String)> = Vec::new();
    for (position, taint) in node["spec"]["taints"].as_array().into_iter().flatten().enumerate() {
        let at = index("spec.taints", position);
        let text = |name: &str| taint[name].as_str().unwrap_or_default().to_owned();
        for fault in names::qualified_name(&text("key")) {
            errors.push(FieldError::invalid(format!("{at}.key"), &json!(text("key")), fault));
        }
        for fault in names::label_value(&text("value")) {
            errors.push(FieldError::invalid(format!("{at}.value"), &json!(text("value")), fault));
        }
        if !matches!(text("effect").as_str(), "NoSchedule" | "PreferNoSchedule" | "NoExecute") {
            errors.push(FieldError::not_supported(
                format!("{at}.effect"),
                &json!(text("effect")),
                &["NoSchedule", "PreferNoSchedule", "NoExecute"],
            ));
        }
        let identity = (text("key"), text("effect"));
        if seen.contains(&identity) {
            let mut error = FieldError::duplicate(at, taint);
            error.text.push_str(": taints must be unique by key and effect pair");
            errors.push(error);
        } else {
            seen.push(identity);
        }
    }
}

pub(super) fn validate_node_update(node: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    for (field, set_once) in [("podCIDR", true), ("providerID", true)] {
        let before = old["spec"][field].as_str().unwrap_or_default();
        if set_once && !before.is_empty() && node["spec"][field].as_str().unwrap_or_default() != before {
            errors.push(FieldError::forbidden(
                format!("spec.{field}"),
                "node updates may not change providerID except from \"\" to valid"
                    .replace("providerID", field),
            ));
        }
    }
}

pub(super) fn default_secret(secret: &mut Value) {
    set_default(secret, "", "type", json!("Opaque"));
    let Some(object) = secret.as_object_mut() else {
        return;
    };
    if let Some(Value::Object(texts)) = object.shift_remove("stringData") {
        let data = object.entry("data").or_insert_with(|| json!({}));
        if !data.is_object() {
            *data = json!({});
        }
        if let Some(data) = data.as_object_mut() {
            for (name, text) in texts {
                let bytes = text.as_str().unwrap_or_default().as_bytes();
                data.insert(name, json!(base64::engine::general_purpose::STANDARD.encode(bytes)));
            }
        }
    }
}

fn check_keys(map: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for name in map.as_object().into_iter().flat_map(Map::keys) {
        for fault in names::config_key(name) {
            errors.push(FieldError::invalid(key(path, name), &json!(name), fault));
        }
    }
}

fn texts(map: &Value) -> impl Iterator<Item = &str> {
    map.as_object().into_iter().flatten().filter_map(|(_, value)| value.as_str())
}

pub(super) fn validate_secret(secret: &Value, errors: &mut Vec<FieldError>) {
    check_keys(&secret["data"], "data", errors);
    let mut total = 0;
    for (name, value) in secret["data"].as_object().into_iter().flatten() {
        match base64::engine::general_purpose::STANDARD.decode(value.as_str().unwrap_or_default()) {
            Ok(bytes) => total += bytes.len(),
            Err(error) => errors.push(FieldError::invalid(
                key("data", name),
                value,
                format!("illegal base64 data: {error}"),
            )),
        }
    }
    if total > DATA_MAX_BYTES {
        errors.push(FieldError::too_long("data", DATA_MAX_BYTES));
    }
    let required: &[&str] = match secret["type"].as_str().unwrap_or_default() {
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        _ => &[],
    };
    for name in required.iter().filter(|name| secret["data"].get(**name).is_none()) {
        errors.push(FieldError::required(key("data", name), ""));
    }
}

pub(super) fn validate_secret_update(secret: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    if secret["type"] != old["type"] {
        errors.push(FieldError::invalid("type", &secret["type"], "field is immutable"));
    }
    frozen(secret, old, &["data"], errors);
}

pub(super) fn validate_config_map(map: &Value, errors: &mut Vec<FieldError>) {
    check_keys(&map["data"], "data", errors);
    check_keys(&map["binaryData"], "binaryData", errors);
    for name in map["binaryData"]
        .as_object()
        .into_iter()
        .flat_map(Map::keys)
        .filter(|name| map["data"].get(name.as_str()).is_some())
    {
        errors.push(FieldError::invalid(
            key("data", name),
            &json!(name),
            "duplicate of key present in binaryData",
        ));
    }
    let total: usize = texts(&map["data"]).map(str::len).sum::<usize>()
        + texts(&map["binaryData"]).map(|t| t.len() / 4 * 3).sum::<usize>();
    if total > DATA_MAX_BYTES {
        errors.push(FieldError::too_long("", DATA_MAX_BYTES));
    }
}

pub(super) fn validate_config_map_update(map: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    frozen(map, old, &["data", "binaryData"], errors);
}

/// `immutable: true` freezes the data and itself.
fn frozen(new: &Value, old: &Value, fields: &[&str], errors: &mut Vec<FieldError>) {
    if old["immutable"] != json!(true) {
        return;
    }
    if new["immutable"] != json!(true) {
        errors.push(FieldError::forbidden("immutable", "field is immutable when `immutable` is set"));
    }
    for field in fields {
        if new.get(*field) != old.get(*field) {
            errors.push(FieldError::forbidden(*field, "field is immutable when `immutable` is set"));
        }
    }
}

pub(super) fn default_service(service: &mut Value) {
    if !service["spec"].is_object() {
        return;
    }
    set_default(service, "/spec", "type", json!("ClusterIP"));
    set_default(service, "/spec", "sessionAffinity", json!("None"));
    set_default(service, "/spec", "internalTrafficPolicy", json!("Cluster"));
    for port in service.pointer_mut("/spec/ports").and_then(Value::as_array_mut).into_iter().flatten() {
        set_default(port, "", "protocol", json!("TCP"));
        let number = port["port"].clone();
        set_default(port, "", "targetPort", number);
    }
}

/// Services are objects for clients to find; nothing routes them on the embedded plane, so only
/// headless and selector-less-address forms make sense, but all are stored.
pub(super) fn validate_service(service: &Value, errors: &mut Vec<FieldError>) {
    let spec = &service["spec"];
    let kind = spec["type"].as_str().unwrap_or_default();
    if !matches!(kind, "ClusterIP" | "NodePort" | "LoadBalancer" | "ExternalName") {
        errors.push(FieldError::not_supported(
            "spec.type",
            &json!(kind),
            &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"],
        ));
    }
    let ports = spec["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    if ports.is_empty() && kind != "ExternalName" && spec["clusterIP"] != "None" {
        errors.push(FieldError::required("spec.ports", ""));
    }
    for (position, port) in ports.iter().enumerate() {
        let at = index("spec.ports", position);
        if !port["port"].as_i64().is_some_and(|n| (1..=65535).contains(&n)) {
            errors.push(FieldError::invalid(
                format!("{at}.port"),
                &port["port"],
                "must be between 1 and 65535, inclusive",
            ));
        }
        if ports.len() > 1 && port["name"].as_str().unwrap_or_default().is_empty() {
            errors.push(FieldError::required(format!("{at}.name"), ""));
        }
    }
}
