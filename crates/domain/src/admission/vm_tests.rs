//! Tables of the rules of virtual machines.

use super::super::world::{World, decide};
use super::*;

fn vm(change: Value) -> Value {
    let mut vm = json!({
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {
            "virtualMachineClassName": "host",
            "cpu": {"cores": 2},
            "memory": {"size": "2Gi"},
            "blockDeviceRefs": [{"kind": "VirtualDisk", "name": "root"}],
        },
    });
    merge(&mut vm, &change);
    vm
}

fn merge(into: &mut Value, change: &Value) {
    match (into, change) {
        (Value::Object(into), Value::Object(change)) => {
            for (key, value) in change {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, change) => *into = change.clone(),
    }
}

fn class(name: &str, policies: Value) -> Value {
    json!({"metadata": {"name": name}, "spec": {"cpu": {"type": "Host"}, "sizingPolicies": policies}})
}

fn world() -> World {
    let address = json!({"metadata": {"name": "taken", "namespace": "shop"}, "spec": {"type": "Auto"}});
    let policies = json!([
        {"cores": {"min": 1, "max": 4}, "coreFractions": [5, 10], "defaultCoreFraction": 10},
        {"cores": {"min": 5, "max": 8}, "coreFractions": [20, 50]},
    ]);
    World::default()
        .with(GROUP, "virtualmachineclasses", class("host", json!([])))
        .with(GROUP, "virtualmachineclasses", class("tight", policies))
        .with(GROUP, "virtualmachineipaddresses", address)
        .subnets(&["10.66.10.0/24"])
}

// AP-19, VL-N13, VL-B5. Parts of rows AP 18 (creation) and VL B4 (17 references)
#[test]
fn creation() {
    let devices = |count: usize| -> Value {
        (0..count).map(|n| json!({"kind": "VirtualDisk", "name": format!("d{n}")})).collect()
    };
    let twice = json!([{"kind": "VirtualDisk", "name": "a"}, {"kind": "VirtualDisk", "name": "a"}]);
    let same_name = json!([{"kind": "VirtualDisk", "name": "a"}, {"kind": "VirtualImage", "name": "a"}]);
    for (change, refused) in [
        (json!({}), ""),
        (json!({"metadata": {"name": "x".repeat(63)}}), ""),
        (json!({"metadata": {"name": "x".repeat(64)}}), "64 characters long"),
        (json!({"metadata": {"labels": {"app": "web"}}}), ""),
        (
            json!({"metadata": {"labels": {"vm.kubevirt.io/x": "1"}}}),
            "using the kubevirt.io group's name in the label",
        ),
        (
            json!({"metadata": {"annotations": {"virtualization.deckhouse.io/x": "1"}}}),
            "group's name in the annotation",
        ),
        (json!({"metadata": {"name": "taken"}}), "set spec.virtualMachineIPAddressName to use it"),
        (json!({"metadata": {"name": "taken"}, "spec": {"virtualMachineIPAddressName": "taken"}}), ""),
        (json!({"spec": {"blockDeviceRefs": twice}}), "VirtualDisk \"a\" is listed twice"),
        (json!({"spec": {"blockDeviceRefs": same_name}}), ""),
        (json!({"spec": {"blockDeviceRefs": devices(16)}}), ""),
        (json!({"spec": {"blockDeviceRefs": devices(17)}}), "found 17, maximum 16"),
        (
            json!({"spec": {"virtualMachineClassName": "tight", "cpu": {"cores": 9}}}),
            "no range fits 9 cores, the ranges are 1..4, 5..8",
        ),
        (
            json!({"spec": {"virtualMachineClassName": "tight", "cpu": {"coreFraction": "7%"}}}),
            "set one of 5%, 10%",
        ),
        (
            json!({"spec": {"affinity": {"virtualMachineAndPodAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": ""}]}}}}),
            "topologyKey: can not be empty",
        ),
    ] {
        let verdict = decide(&world(), "virtualmachines", &vm(change.clone()), None);
        match refused {
            "" => assert_eq!(verdict, Ok(vec![]), "{change}"),
            text => assert!(verdict.as_ref().unwrap_err().contains(text), "{change}: {verdict:?}"),
        }
    }
}

// VL-U1, VL-U7: every count from 1 to 256.
#[test]
fn numbers_of_cores() {
    for cores in 1..=256 {
        let expected = match cores {
            1..=16 => None,
            17..=32 => (cores % 2 != 0).then_some("multiple of 2"),
            33..=64 => (cores % 4 != 0).then_some("multiple of 4"),
            65..=248 => (cores % 8 != 0).then_some("multiple of 8"),
            _ => Some("248"),
        };
        let verdict =
            decide(&world(), "virtualmachines", &vm(json!({"spec": {"cpu": {"cores": cores}}})), None);
        match expected {
            None => assert!(verdict.is_ok(), "{cores}"),
            Some(text) => assert!(verdict.unwrap_err().contains(text), "{cores}"),
        }
    }
}

#[test]
fn a_missing_class_is_a_warning() {
    let vm = vm(json!({"spec": {"virtualMachineClassName": "later"}}));
    let warnings = decide(&world(), "virtualmachines", &vm, None).unwrap();
    assert!(warnings[0].contains("stays Pending"), "{warnings:?}");
}

// The admission part of AP 18: a tightened policy refuses any edit, but lets controllers finish their work.
#[test]
fn a_tightened_policy_refuses_edits_only() {
    let old =
        vm(json!({"spec": {"virtualMachineClassName": "tight", "cpu": {"cores": 9, "coreFraction": "5%"}}}));
    let update = |change: Value| {
        let mut new = old.clone();
        merge(&mut new, &change);
        decide(&world(), "virtualmachines", &new, Some(&old))
    };
    assert!(update(json!({"metadata": {"annotations": {"a": "b"}}})).unwrap_err().contains("no range fits"));
    assert!(update(json!({"spec": {"runPolicy": "AlwaysOff"}})).is_err());
    assert!(update(json!({"metadata": {"finalizers": ["x"]}})).is_ok());
    assert!(update(json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"runPolicy": "AlwaysOff"}})).is_ok());
}

#[test]
fn core_fractions_are_filled() {
    for (class, cores, given, expected) in [
        ("host", 2, None, Ok("100%")),
        ("host", 2, Some("5%"), Ok("5%")),
        ("tight", 2, None, Ok("10%")),
        ("tight", 6, None, Err("set one of 20%, 50%")),
        ("tight", 6, Some("20%"), Ok("20%")),
        ("tight", 60, None, Err("no range fits 60 cores")),
        ("later", 2, None, Ok("")),
    ] {
        let mut vm = vm(json!({"spec": {"virtualMachineClassName": class, "cpu": {"cores": cores}}}));
        if let Some(given) = given {
            vm["spec"]["cpu"]["coreFraction"] = json!(given);
        }
        let result = mutate(&mut vm, &world());
        match expected {
            Ok(text) => {
                result.unwrap();
                assert_eq!(
                    vm["spec"]["cpu"]["coreFraction"].as_str().unwrap_or_default(),
                    text,
                    "{class} {cores}"
                );
            }
            Err(text) => assert!(result.unwrap_err().contains(text), "{class} {cores}"),
        }
    }
}

#[test]
fn an_empty_class_name_becomes_the_default_class() {
    let mut default = class("host", json!([]));
    default["metadata"]["annotations"] = json!({holdfast_api::names::annotation::DEFAULT_CLASS: "true"});
    let world = World::default().with(GROUP, "virtualmachineclasses", default);
    let mut vm = vm(json!({"spec": {"virtualMachineClassName": ""}}));
    mutate(&mut vm, &world).unwrap();
    assert_eq!(vm["spec"]["virtualMachineClassName"], "host");
    vm["spec"]["virtualMachineClassName"] = json!("");
    assert!(mutate(&mut vm, &World::default()).unwrap_err().contains("no class is marked as default"));
}

#[test]
fn what_is_no_vm_is_left_to_the_schema() {
    for mut object in
        [json!({}), json!({"spec": 1}), json!({"spec": {"cpu": "x", "virtualMachineClassName": "host"}})]
    {
        let before = object.clone();
        mutate(&mut object, &world()).unwrap();
        assert_eq!(object, before);
    }
}

#[test]
fn attachments_are_refused_with_a_way_out() {
    let vmbda = json!({
        "metadata": {"name": "a", "namespace": "shop"},
        "spec": {"virtualMachineName": "web", "blockDeviceRef": {"kind": "VirtualDisk", "name": "d"}},
    });
    let text = decide(&world(), "virtualmachineblockdeviceattachments", &vmbda, None).unwrap_err();
    assert!(text.contains("not available yet"), "{text}");
}
