//! Volumes, claims and storage classes (KS §12.1).

use serde_json::{Value, json};

use super::core::set_default;
use crate::{
    field::{FieldError, index},
    quantity::Quantity,
};

const ACCESS_MODES: [&str; 4] = ["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"];
/// Fields of a volume's spec that are not its source.
const VOLUME_FIELDS: [&str; 9] = [
    "capacity",
    "accessModes",
    "claimRef",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "mountOptions",
    "volumeMode",
    "nodeAffinity",
    "volumeAttributesClassName",
];

pub(super) fn default_volume(volume: &mut Value) {
    if volume["spec"].is_object() {
        set_default(volume, "/spec", "persistentVolumeReclaimPolicy", json!("Retain"));
        set_default(volume, "/spec", "volumeMode", json!("Filesystem"));
    }
}

pub(super) fn create_volume(volume: &mut Value) {
    volume["status"] = json!({"phase": "Pending"});
}

pub(super) fn default_claim(claim: &mut Value) {
    if claim["spec"].is_object() {
        set_default(claim, "/spec", "volumeMode", json!("Filesystem"));
    }
}

pub(super) fn create_claim(claim: &mut Value) {
    claim["status"] = json!({"phase": "Pending"});
}

pub(super) fn default_class(class: &mut Value) {
    set_default(class, "", "reclaimPolicy", json!("Delete"));
    set_default(class, "", "volumeBindingMode", json!("Immediate"));
}

fn check_modes(spec: &Value, errors: &mut Vec<FieldError>) {
    let modes = spec["accessModes"].as_array().map(Vec::as_slice).unwrap_or_default();
    if modes.is_empty() {
        errors.push(FieldError::required("spec.accessModes", "at least 1 access mode is required"));
    }
    for mode in modes.iter().filter(|m| !ACCESS_MODES.contains(&m.as_str().unwrap_or_default())) {
        errors.push(FieldError::not_supported("spec.accessModes", mode, &ACCESS_MODES));
    }
    let mode = &spec["volumeMode"];
    if !mode.is_null() && !matches!(mode.as_str(), Some("Block" | "Filesystem")) {
        errors.push(FieldError::not_supported("spec.volumeMode", mode, &["Block", "Filesystem"]));
    }
}

fn check_storage(value: &Value, field: &str, errors: &mut Vec<FieldError>) {
    match Quantity::from_value(value) {
        _ if value.is_null() => errors.push(FieldError::required(field, "")),
        Ok(quantity) if quantity > Quantity::ZERO => {}
        Ok(_) => errors.push(FieldError::invalid(field, value, "must be greater than zero")),
        Err(error) => errors.push(FieldError::invalid(field, value, error.to_string())),
    }
}

pub(super) fn validate_volume(volume: &Value, errors: &mut Vec<FieldError>) {
    let spec = &volume["spec"];
    check_modes(spec, errors);
    check_storage(&spec["capacity"]["storage"], "spec.capacity[storage]", errors);
    let policy = &spec["persistentVolumeReclaimPolicy"];
    if !matches!(policy.as_str(), Some("Retain" | "Delete" | "Recycle")) {
        errors.push(FieldError::not_supported(
            "spec.persistentVolumeReclaimPolicy",
            policy,
            &["Delete", "Recycle", "Retain"],
        ));
    }
    let sources = sources(spec).len();
    if sources == 0 {
        errors.push(FieldError::required("spec", "must specify a volume type"));
    } else if sources > 1 {
        errors.push(FieldError::forbidden("spec", "may not specify more than 1 volume type"));
    }
}

fn sources(spec: &Value) -> Vec<(&String, &Value)> {
    spec.as_object()
        .into_iter()
        .flatten()
        .filter(|(name, value)| !VOLUME_FIELDS.contains(&name.as_str()) && !value.is_null())
        .collect()
}

pub(super) fn validate_volume_update(volume: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    if sources(&volume["spec"]) != sources(&old["spec"]) {
        errors.push(FieldError::forbidden(
            "spec.persistentvolumesource",
            "spec.persistentvolumesource is immutable after creation",
        ));
    }
    if volume["spec"]["volumeMode"] != old["spec"]["volumeMode"] {
        errors.push(FieldError::invalid(
            "spec.volumeMode",
            &volume["spec"]["volumeMode"],
            "field is immutable",
        ));
    }
    if !old["spec"]["nodeAffinity"].is_null() && volume["spec"]["nodeAffinity"] != old["spec"]["nodeAffinity"]
    {
        errors.push(FieldError::invalid(
            "spec.nodeAffinity",
            &json!("object"),
            "field is immutable, except for updating from beta label to GA",
        ));
    }
}

pub(super) fn validate_claim(claim: &Value, errors: &mut Vec<FieldError>) {
    let spec = &claim["spec"];
    check_modes(spec, errors);
    check_storage(&spec["resources"]["requests"]["storage"], "spec.resources[storage]", errors);
    if let Some(name) = spec["storageClassName"].as_str().filter(|name| !name.is_empty()) {
        for fault in crate::names::dns1123_subdomain(name) {
            errors.push(FieldError::invalid("spec.storageClassName", &json!(name), fault));
        }
    }
}

/// The spec is fixed except: volumeName once, storage requests upward, a first storageClassName.
pub(super) fn validate_claim_update(claim: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    let mut allowed = old["spec"].clone();
    let new = &claim["spec"];
    if old["spec"]["volumeName"].as_str().unwrap_or_default().is_empty() && !new["volumeName"].is_null() {
        allowed["volumeName"] = new["volumeName"].clone();
    }
    if old["spec"]["storageClassName"].is_null() && !new["storageClassName"].is_null() {
        allowed["storageClassName"] = new["storageClassName"].clone();
    }
    let bound = old["status"]["phase"] == "Bound";
    let (now, before) = (storage_request(new), storage_request(&old["spec"]));
    if bound && now != before && now >= before {
        allowed["resources"]["requests"]["storage"] = new["resources"]["requests"]["storage"].clone();
    }
    if !new["volumeAttributesClassName"].is_null() {
        allowed["volumeAttributesClassName"] = new["volumeAttributesClassName"].clone();
    }
    if allowed != *new {
        let text = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        errors.push(FieldError::forbidden("spec", text));
    }
    if bound && now < before {
        let text = "field can not be less than status.capacity";
        errors.push(FieldError::forbidden("spec.resources.requests.storage", text));
    }
}

fn storage_request(spec: &Value) -> Option<Quantity> {
    Quantity::from_value(&spec["resources"]["requests"]["storage"]).ok()
}

pub(super) fn validate_class(class: &Value, errors: &mut Vec<FieldError>) {
    if class["provisioner"].as_str().unwrap_or_default().is_empty() {
        errors.push(FieldError::required("provisioner", ""));
    }
    let one_of = |field: &str, supported: &[&str], errors: &mut Vec<FieldError>| {
        if !supported.contains(&class[field].as_str().unwrap_or_default()) {
            errors.push(FieldError::not_supported(field, &class[field], supported));
        }
    };
    one_of("reclaimPolicy", &["Delete", "Retain"], errors);
    one_of("volumeBindingMode", &["Immediate", "WaitForFirstConsumer"], errors);
    for (position, topology) in class["allowedTopologies"].as_array().into_iter().flatten().enumerate() {
        if !topology.is_object() {
            errors.push(FieldError::required(index("allowedTopologies", position), ""));
        }
    }
}

pub(super) fn validate_class_update(class: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    for field in ["parameters", "provisioner", "volumeBindingMode"] {
        if class.get(field) != old.get(field) {
            errors.push(FieldError::forbidden(
                field,
                "updates to provisioner are forbidden.".replace("provisioner", field),
            ));
        }
    }
    if class["reclaimPolicy"] != old["reclaimPolicy"] {
        errors.push(FieldError::forbidden("reclaimPolicy", "updates to reclaimPolicy are forbidden."));
    }
}
