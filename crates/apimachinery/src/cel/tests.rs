use std::{collections::BTreeSet, path::Path};

use serde_json::{Value, json};

use crate::{field::FieldError, schema::Schema};

/// Every definition of the platform: kind and schema document.
fn definitions() -> Vec<(String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/crds");
    let mut out = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let crd = crate::decode::yaml(&std::fs::read(entry.unwrap().path()).unwrap()).unwrap().value;
        for version in crd["spec"]["versions"].as_array().unwrap() {
            let kind = crd["spec"]["names"]["kind"].as_str().unwrap().to_owned();
            out.push((kind, version["schema"]["openAPIV3Schema"].clone()));
        }
    }
    out
}

/// Messages of all rules below a schema.
fn messages(schema: &Value, out: &mut BTreeSet<String>) {
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        out.insert(rule["message"].as_str().unwrap_or_else(|| rule["rule"].as_str().unwrap()).to_owned());
    }
    for child in schema["properties"].as_object().into_iter().flatten().map(|(_, child)| child) {
        messages(child, out);
    }
    for child in ["items", "additionalProperties"] {
        if schema[child].is_object() {
            messages(&schema[child], out);
        }
    }
}

/// A change or a new object, and what a rule says to it (`""` accepts).
struct Case {
    kinds: &'static [&'static str],
    old: Option<Value>,
    new: Value,
    says: &'static str,
}

fn create(kinds: &'static [&'static str], spec: &Value, says: &'static str) -> Case {
    Case { kinds, old: None, new: json!({ "spec": spec }), says }
}

fn update(kinds: &'static [&'static str], old: &Value, new: &Value, says: &'static str) -> Case {
    Case {
        kinds,
        old: Some(json!({"spec": old["spec"], "status": old["status"]})),
        new: json!({"spec": new["spec"], "status": old["status"]}),
        says,
    }
}

const SOURCES: &[&str] = &["VirtualDisk", "VirtualImage", "ClusterVirtualImage"];

fn cases() -> Vec<Case> {
    let http = json!({"url": "http://x"});
    let container = json!({"image": "r/x"});
    let object = json!({"kind": "ClusterVirtualImage", "name": "x"});
    let source = |ty: &str, fields: Value| {
        let mut source = fields;
        source["type"] = json!(ty);
        json!({ "dataSource": source })
    };
    let class = |cpu: Value| json!({ "cpu": cpu });
    let cores = |cores: Value| json!({"cpu": {"type": "Host"}, "sizingPolicies": [{ "cores": cores }]});
    let provisioning = |fields: Value| json!({ "provisioning": fields });
    let instance = |epoch: i64, power: &str, size: i64, state: &str| json!({"spec": {"epoch": epoch, "power": power, "hardware": {"memoryBytes": size}, "resources": {}}, "status": {"state": state}});
    let reference = json!({"kind": "Secret", "name": "s"});
    vec![
        create(SOURCES, &source("HTTP", json!({"http": http})), ""),
        create(
            SOURCES,
            &source("HTTP", json!({})),
            "type HTTP requires http and cannot be combined with containerImage or objectRef",
        ),
        create(
            SOURCES,
            &source("HTTP", json!({"http": http, "containerImage": container})),
            "type HTTP requires http and cannot be combined with containerImage or objectRef",
        ),
        create(SOURCES, &source("ContainerImage", json!({"containerImage": container})), ""),
        create(
            SOURCES,
            &source("ContainerImage", json!({"http": http, "containerImage": container})),
            "type ContainerImage requires containerImage and cannot be combined with http or objectRef",
        ),
        create(SOURCES, &source("ObjectRef", json!({"objectRef": object})), ""),
        create(
            SOURCES,
            &source("ObjectRef", json!({})),
            "type ObjectRef requires objectRef and cannot be combined with http or containerImage",
        ),
        create(SOURCES, &source("Upload", json!({})), ""),
        create(
            SOURCES,
            &source("Upload", json!({"objectRef": object})),
            "type Upload cannot be combined with http, containerImage or objectRef",
        ),
        create(
            &["ClusterVirtualImage"],
            &source(
                "ObjectRef",
                json!({"objectRef": {"kind": "VirtualImage", "name": "x", "namespace": "n"}}),
            ),
            "",
        ),
        create(
            &["ClusterVirtualImage"],
            &source("ObjectRef", json!({"objectRef": {"kind": "VirtualImage", "name": "x"}})),
            "namespace is required for every kind but ClusterVirtualImage",
        ),
        create(&["VirtualMachineClass"], &class(json!({"type": "Host"})), ""),
        create(
            &["VirtualMachineClass"],
            &class(json!({"type": "HostPassthrough", "model": "x"})),
            "types Host and HostPassthrough take no model, features or discovery",
        ),
        create(&["VirtualMachineClass"], &class(json!({"type": "Discovery", "discovery": {}})), ""),
        create(
            &["VirtualMachineClass"],
            &class(json!({"type": "Discovery", "features": ["x"]})),
            "type Discovery takes no model or features",
        ),
        create(&["VirtualMachineClass"], &class(json!({"type": "Model", "model": "x"})), ""),
        create(
            &["VirtualMachineClass"],
            &class(json!({"type": "Model"})),
            "type Model requires model and takes no features or discovery",
        ),
        create(&["VirtualMachineClass"], &class(json!({"type": "Features", "features": ["x"]})), ""),
        create(
            &["VirtualMachineClass"],
            &class(json!({"type": "Features", "features": ["x"], "model": "y"})),
            "type Features requires features and takes no model or discovery",
        ),
        create(&["VirtualMachineClass"], &cores(json!({"min": 1, "max": 4, "step": 2})), ""),
        create(&["VirtualMachineClass"], &cores(json!({"min": 4, "max": 4})), "max must be greater than min"),
        create(
            &["VirtualMachineClass"],
            &cores(json!({"min": 1, "max": 4, "step": 4})),
            "max must be greater than step",
        ),
        update(
            &["VirtualMachineClass"],
            &json!({"spec": class(json!({"type": "Model", "model": "a"}))}),
            &json!({"spec": class(json!({"type": "Model", "model": "b"}))}),
            "the CPU section of a class cannot be changed: create another class",
        ),
        update(
            &["VirtualMachineClass"],
            &json!({"spec": cores(json!({"min": 1, "max": 4}))}),
            &json!({"spec": cores(json!({"min": 1, "max": 8}))}),
            "",
        ),
        create(&["VirtualMachineOperation"], &json!({"type": "Stop", "force": true}), ""),
        create(&["VirtualMachineOperation"], &json!({"type": "Start", "force": false}), ""),
        create(
            &["VirtualMachineOperation"],
            &json!({"type": "Start", "force": true}),
            "an operation of type Start cannot be forced",
        ),
        create(&["VirtualMachineOperation"], &json!({"type": "Migrate", "migrate": {}}), ""),
        create(
            &["VirtualMachineOperation"],
            &json!({"type": "Evict", "migrate": {}}),
            "migrate can be given for type Migrate only",
        ),
        update(
            &["VirtualMachineOperation"],
            &json!({"spec": {"type": "Stop"}}),
            &json!({"spec": {"type": "Start"}}),
            "spec is immutable: create another operation",
        ),
        create(&["VirtualMachine"], &provisioning(json!({"type": "UserData", "userData": "x"})), ""),
        create(
            &["VirtualMachine"],
            &provisioning(json!({"type": "UserData", "userDataRef": reference})),
            "type UserData requires userData and cannot be combined with userDataRef or sysprepRef",
        ),
        create(
            &["VirtualMachine"],
            &provisioning(json!({"type": "UserDataRef", "userDataRef": reference})),
            "",
        ),
        create(
            &["VirtualMachine"],
            &provisioning(json!({"type": "UserDataRef", "userDataRef": reference, "userData": "x"})),
            "type UserDataRef requires userDataRef and cannot be combined with userData or sysprepRef",
        ),
        create(
            &["VirtualMachine"],
            &provisioning(json!({"type": "SysprepRef", "sysprepRef": reference})),
            "",
        ),
        create(
            &["VirtualMachine"],
            &provisioning(json!({"type": "SysprepRef"})),
            "type SysprepRef requires sysprepRef and cannot be combined with userData or userDataRef",
        ),
        create(
            &["VirtualMachine"],
            &provisioning(json!({"type": "UserData", "userData": "ä".repeat(1024)})),
            "",
        ),
        create(
            &["VirtualMachine"],
            &provisioning(json!({"type": "UserData", "userData": "ä".repeat(1025)})),
            "inline user data is longer than 2048 bytes: put it into a Secret and use userDataRef",
        ),
        update(&["Migration"], &json!({"spec": {"class": 1}}), &json!({"spec": {"class": 1}}), ""),
        update(
            &["Migration"],
            &json!({"spec": {"class": 1}}),
            &json!({"spec": {"class": 2}}),
            "the spec of a Migration never changes",
        ),
        update(&["Instance"], &instance(1, "On", 1, "Ended"), &instance(2, "On", 2, ""), ""),
        update(
            &["Instance"],
            &instance(1, "On", 1, "Running"),
            &instance(2, "On", 1, ""),
            "a new epoch needs the last one to have Ended (INV-3)",
        ),
        update(
            &["Instance"],
            &instance(1, "On", 1, "Ended"),
            &instance(3, "On", 1, ""),
            "a new epoch needs the last one to have Ended (INV-3)",
        ),
        update(&["Instance"], &instance(1, "On", 1, "Running"), &instance(1, "Off", 1, ""), ""),
        update(
            &["Instance"],
            &instance(1, "Off", 1, "Running"),
            &instance(1, "On", 1, ""),
            "within an epoch power goes from On to Off only",
        ),
        update(
            &["Instance"],
            &instance(1, "On", 1, "Running"),
            &instance(1, "On", 2, ""),
            "hardware and resources change only together with the epoch",
        ),
    ]
}

// KS-A54
#[test]
fn every_rule_of_the_platform_accepts_and_refuses() {
    let schemas: Vec<(String, Value, Schema)> = definitions()
        .into_iter()
        .map(|(kind, document)| {
            let schema = Schema::compile(&document, "s").unwrap();
            (kind, document, schema)
        })
        .collect();
    let mut refused: BTreeSet<(String, String)> = BTreeSet::new();
    for case in cases() {
        for (kind, _, schema) in schemas.iter().filter(|(kind, ..)| case.kinds.contains(&kind.as_str())) {
            let mut errors: Vec<FieldError> = Vec::new();
            super::validate(schema, &case.new, case.old.as_ref(), &mut errors);
            let texts: Vec<&str> = errors.iter().map(|e| e.text.as_str()).collect();
            if case.says.is_empty() {
                assert_eq!(texts, Vec::<&str>::new(), "{kind} {}", case.new);
            } else {
                assert!(texts.iter().any(|t| t.ends_with(case.says)), "{kind} {}: {texts:?}", case.new);
                refused.insert((kind.clone(), case.says.to_owned()));
            }
        }
    }
    for (kind, document, _) in &schemas {
        let mut rules = BTreeSet::new();
        messages(document, &mut rules);
        for rule in rules {
            assert!(
                refused.contains(&(kind.clone(), rule.clone())),
                "{kind}: no case refuses by {rule:?}; add one"
            );
        }
    }
}
