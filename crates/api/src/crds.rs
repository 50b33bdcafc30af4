//! The CustomResourceDefinitions of every kind, and the one place where what the derives cannot
//! say is put right: structural clean-up, labels, per-kind differences of shared types.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::{Map, Value, json};

use crate::engine;

/// All CRDs of Holdfast, sorted by name.
///
/// # Panics
/// Never for the kinds of this crate: the test `every_crd_is_structural` builds them all.
pub fn crds() -> Vec<CustomResourceDefinition> {
    let mut all = vec![
        finish(crate::VirtualMachine::crd(), |_| ()),
        finish(crate::VirtualMachineClass::crd(), |_| ()),
        finish(crate::VirtualMachineOperation::crd(), |_| ()),
        finish(crate::VirtualMachineBlockDeviceAttachment::crd(), |_| ()),
        finish(crate::VirtualMachineIPAddress::crd(), |_| ()),
        finish(crate::VirtualMachineIPAddressLease::crd(), |_| ()),
        finish(crate::VirtualDisk::crd(), disk_source),
        finish(crate::VirtualImage::crd(), namespaced_source),
        finish(crate::ClusterVirtualImage::crd(), cluster_image),
        finish(crate::ModuleConfig::crd(), |_| ()),
        finish(engine::Instance::crd(), |_| ()),
        finish(engine::Migration::crd(), |_| ()),
    ];
    all.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    all
}

/// Cleans the schema of every version, applies `special` to it, adds the module's labels.
fn finish(crd: CustomResourceDefinition, special: fn(&mut Value)) -> CustomResourceDefinition {
    let mut value = serde_json::to_value(crd).expect("invariant: a CRD is JSON");
    let labels = json!({"heritage": "deckhouse", "module": "virtualization"});
    value["metadata"]["labels"] = labels;
    if let Some(versions) = value["spec"]["versions"].as_array_mut() {
        for version in versions {
            let schema = &mut version["schema"]["openAPIV3Schema"];
            clean(schema);
            special(schema);
        }
    }
    serde_json::from_value(value).expect("invariant: a cleaned CRD is a CRD")
}

/// Removes what Rust adds and Kubernetes schemas do not have: `nullable` of every `Option`, titles,
/// unsigned formats, empty defaults.
fn clean(schema: &mut Value) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(clean),
        Value::Object(object) => {
            clean_keywords(object);
            for (key, value) in object.iter_mut() {
                match (key.as_str(), &mut *value) {
                    // Keys below `properties` are field names, not keywords.
                    ("properties", Value::Object(fields)) => {
                        fields.values_mut().for_each(clean);
                    }
                    ("default" | "enum" | "x-kubernetes-validations", _) => (),
                    _ => clean(value),
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => (),
    }
}

fn clean_keywords(object: &mut Map<String, Value>) {
    if object.remove("x-keep-nullable").is_none() {
        object.remove("nullable");
    }
    object.remove("title");
    if object.get("format").and_then(Value::as_str).is_some_and(|f| f.starts_with("uint")) {
        object.remove("format");
    }
    if object.get("default").is_some_and(Value::is_null) {
        object.remove("default");
    }
    if object.get("required").and_then(Value::as_array).is_some_and(Vec::is_empty) {
        object.remove("required");
    }
}

fn at<'a>(schema: &'a mut Value, path: &[&str]) -> &'a mut Value {
    path.iter().fold(schema, |node, field| &mut node["properties"][*field])
}

/// Sources of namespaced kinds live in the object's own namespace.
fn namespaced_source(schema: &mut Value) {
    for path in [
        &["spec", "dataSource", "objectRef"][..],
        &["spec", "dataSource", "containerImage", "imagePullSecret"][..],
    ] {
        if let Some(fields) = at(schema, path)["properties"].as_object_mut() {
            fields.remove("namespace");
        }
    }
}

/// A disk cannot be the source of a disk.
fn disk_source(schema: &mut Value) {
    namespaced_source(schema);
    let kinds = &mut at(schema, &["spec", "dataSource", "objectRef", "kind"])["enum"];
    if let Some(kinds) = kinds.as_array_mut() {
        kinds.retain(|kind| kind != "VirtualDisk");
    }
}

/// Cluster images name the namespace of a namespaced source and have no claim-related phase.
fn cluster_image(schema: &mut Value) {
    at(schema, &["spec", "dataSource", "objectRef"])["x-kubernetes-validations"] = json!([{
        "rule": "self.kind == 'ClusterVirtualImage' || has(self.__namespace__)",
        "message": "namespace is required for every kind but ClusterVirtualImage",
    }]);
    let phases = &mut at(schema, &["status", "phase"])["enum"];
    if let Some(phases) = phases.as_array_mut() {
        phases.retain(|phase| phase != "PVCLost");
    }
}
