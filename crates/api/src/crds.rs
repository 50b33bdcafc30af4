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
        finish(crate::VirtualMachine::crd(), vm_nullables),
        finish(crate::VirtualMachineClass::crd(), |_| ()),
        finish(crate::VirtualMachineOperation::crd(), |_| ()),
        finish(crate::VirtualMachineBlockDeviceAttachment::crd(), |_| ()),
        finish(crate::VirtualMachineIPAddress::crd(), |_| ()),
        finish(crate::VirtualMachineIPAddressLease::crd(), |_| ()),
        finish(crate::VirtualDisk::crd(), disk_source),
        finish(crate::VirtualImage::crd(), namespaced_source),
        finish(crate::ClusterVirtualImage::crd(), cluster_image),
        finish(crate::ModuleConfig::crd(), |_| ()),
        finish(crate::NodeMaintenance::crd(), |_| ()),
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
    let kind = value["spec"]["names"]["kind"].as_str().unwrap_or_default();
    value["spec"]["names"]["listKind"] = format!("{kind}List").into();
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
    object.remove("nullable");
    object.remove("title");
    if object.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true)) {
        // kube's rewriter empties the two branches; Kubernetes allows exactly this form.
        object.insert("anyOf".into(), json!([{"type": "integer"}, {"type": "string"}]));
        object.remove("type");
    }
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

/// Marks fields of a status that may be written as null (api.md A1.7, A7.3).
fn nullable(schema: &mut Value, path: &[&str], fields: &[&str]) {
    for field in fields {
        let path: Vec<&str> = path.iter().chain([field]).copied().collect();
        at(schema, &path)["nullable"] = Value::Bool(true);
    }
}

fn vm_nullables(schema: &mut Value) {
    nullable(schema, &["status", "migrationState"], &["startTimestamp", "endTimestamp"]);
    let launch = &["status", "stats", "launchTimeDuration"];
    let steps = ["waitingForDependencies", "virtualMachineStarting", "guestOSAgentStarting"];
    nullable(schema, launch, &steps);
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
    let creation = &["status", "stats", "creationDuration"];
    let steps = ["waitingForDependencies", "dvcrProvisioning", "totalProvisioning"];
    nullable(schema, creation, &steps);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(node: &Value, path: &str, bad: &mut Vec<String>) {
        let Some(object) = node.as_object() else { return };
        for keyword in ["$ref", "definitions", "$defs", "oneOf", "allOf", "not", "const", "title"] {
            if object.contains_key(keyword) {
                bad.push(format!("{path}: {keyword}"));
            }
        }
        let is_int_or_string = object.get("x-kubernetes-int-or-string").is_some();
        if !object.contains_key("type") && !is_int_or_string {
            bad.push(format!("{path}: no type"));
        }
        if object.contains_key("anyOf") && !is_int_or_string {
            bad.push(format!("{path}: anyOf"));
        }
        for (name, field) in object.get("properties").and_then(Value::as_object).into_iter().flatten() {
            walk(field, &format!("{path}.{name}"), bad);
        }
        for key in ["items", "additionalProperties"] {
            if let Some(inner) = object.get(key) {
                walk(inner, &format!("{path}[]"), bad);
            }
        }
    }

    #[test]
    fn every_crd_is_structural() {
        let mut bad = Vec::new();
        for crd in crds() {
            let crd = serde_json::to_value(crd).unwrap();
            for version in crd["spec"]["versions"].as_array().unwrap() {
                let name = crd["spec"]["names"]["kind"].as_str().unwrap();
                walk(&version["schema"]["openAPIV3Schema"], name, &mut bad);
            }
        }
        assert!(bad.is_empty(), "{bad:#?}");
    }

    fn columns(crd: &Value, wide: bool) -> String {
        let columns = crd["spec"]["versions"][0]["additionalPrinterColumns"].as_array().unwrap();
        let shown = columns.iter().filter(|c| wide || c["priority"].as_i64().unwrap_or(0) == 0);
        let names: Vec<_> = shown.map(|c| c["name"].as_str().unwrap().to_uppercase()).collect();
        names.join(" ")
    }

    fn crd_of(kind: &str) -> Value {
        let crds = crds().into_iter().map(|crd| serde_json::to_value(crd).unwrap());
        crds.into_iter().find(|crd| crd["spec"]["names"]["kind"] == kind).unwrap()
    }

    /// The rows a terminal shows are checked end to end; here the lists themselves.
    #[test]
    fn printed_columns_are_the_specified_ones() {
        for (kind, narrow, wide) in [
            (
                "VirtualMachine",
                "PHASE NODE IPADDRESS AGE",
                "PHASE CORES COREFRACTION MEMORY NEED RESTART AGENT MIGRATABLE NODE IPADDRESS AGE",
            ),
            ("VirtualMachineClass", "PHASE ISDEFAULT AGE", "PHASE ISDEFAULT AGE"),
            (
                "VirtualMachineOperation",
                "PHASE TYPE VIRTUALMACHINE AGE",
                "PHASE PROGRESS TYPE VIRTUALMACHINE AGE",
            ),
            (
                "VirtualMachineBlockDeviceAttachment",
                "PHASE VIRTUAL MACHINE NAME AGE",
                "PHASE BLOCKDEVICE KIND BLOCKDEVICE NAME VIRTUAL MACHINE NAME AGE",
            ),
            ("VirtualMachineIPAddress", "ADDRESS STATUS VM AGE", "ADDRESS STATUS VM AGE"),
            (
                "VirtualMachineIPAddressLease",
                "VIRTUALMACHINEIPADDRESS STATUS AGE",
                "VIRTUALMACHINEIPADDRESS STATUS AGE",
            ),
            (
                "VirtualDisk",
                "PHASE CAPACITY VIRTUALMACHINE AGE",
                "PHASE CAPACITY INUSE VIRTUALMACHINE PROGRESS STORAGECLASS TARGETPVC AGE",
            ),
            (
                "VirtualImage",
                "PHASE CDROM PROGRESS AGE",
                "PHASE CDROM PROGRESS STOREDSIZE UNPACKEDSIZE REGISTRY URL TARGETPVC AGE",
            ),
            (
                "ClusterVirtualImage",
                "PHASE CDROM PROGRESS AGE",
                "PHASE CDROM PROGRESS STOREDSIZE UNPACKEDSIZE REGISTRY URL AGE",
            ),
        ] {
            let crd = crd_of(kind);
            assert_eq!(columns(&crd, false), narrow, "{kind}");
            assert_eq!(columns(&crd, true), wide, "{kind}");
        }
    }

    #[test]
    fn names_are_the_specified_ones() {
        for (kind, plural, short, scope, categories) in [
            ("VirtualMachine", "virtualmachines", "vm", "Namespaced", "all,virtualization"),
            (
                "VirtualMachineClass",
                "virtualmachineclasses",
                "vmc,vmclass",
                "Cluster",
                "virtualization-cluster",
            ),
            ("VirtualMachineOperation", "virtualmachineoperations", "vmop", "Namespaced", "virtualization"),
            (
                "VirtualMachineBlockDeviceAttachment",
                "virtualmachineblockdeviceattachments",
                "vmbda",
                "Namespaced",
                "virtualization",
            ),
            ("VirtualMachineIPAddress", "virtualmachineipaddresses", "vmip", "Namespaced", "virtualization"),
            (
                "VirtualMachineIPAddressLease",
                "virtualmachineipaddressleases",
                "vmipl,vmiplease",
                "Cluster",
                "virtualization-cluster",
            ),
            ("VirtualDisk", "virtualdisks", "vd", "Namespaced", "virtualization"),
            ("VirtualImage", "virtualimages", "vi", "Namespaced", "virtualization"),
            ("ClusterVirtualImage", "clustervirtualimages", "cvi", "Cluster", "virtualization-cluster"),
        ] {
            let spec = &crd_of(kind)["spec"];
            let list = |v: &Value| {
                let texts: Vec<_> = v.as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
                texts.join(",")
            };
            assert_eq!(spec["names"]["plural"], plural);
            assert_eq!(spec["names"]["singular"], kind.to_lowercase());
            assert_eq!(spec["names"]["listKind"], format!("{kind}List"));
            assert_eq!(list(&spec["names"]["shortNames"]), short);
            assert_eq!(list(&spec["names"]["categories"]), categories);
            assert_eq!(spec["scope"], scope);
            assert_eq!(spec["versions"][0]["subresources"]["status"], json!({}));
        }
    }

    /// `kubectl get nodemaintenance` prints NAME and AGE, which Kubernetes adds by itself.
    #[test]
    fn node_maintenance_is_medik8s_own() {
        let crd = crd_of("NodeMaintenance");
        assert_eq!(crd["metadata"]["name"], "nodemaintenances.nodemaintenance.medik8s.io");
        assert_eq!(crd["spec"]["scope"], "Cluster");
        assert_eq!(crd["spec"]["names"]["shortNames"], json!(["nm"]));
        let version = &crd["spec"]["versions"][0];
        assert_eq!(version["name"], "v1beta1");
        assert_eq!(version["subresources"]["status"], json!({}));
        assert!(version["additionalPrinterColumns"].as_array().is_none_or(Vec::is_empty));
        let status = &version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"];
        assert!(!status["totalpods"].is_null() && !status["errorOnLeaseCount"].is_null());
    }
}
