//! Rules of virtual machines (api.md A1.10). Order of the checks: metadata, IP, duplicate devices,
//! sizing policy, device limit, affinity, topology spread, cores; the first fault wins, warnings
//! accumulate (vm-lifecycle.md §0.4).

use std::collections::BTreeSet;

use holdfast_api::GROUP;
use holdfast_api::vm::VirtualMachine;
use holdfast_api::vmclass::{SizingPolicy, VirtualMachineClass};
use serde_json::{Value, json};

use super::cores::list;
use super::{Operation, Request, Verdict, View, affinity, class, ip, is_being_deleted, name, parse, policy};
use crate::topology;

/// Longest name of a VM: it becomes a host name.
const NAME_MAX: usize = 63;
/// Most devices of a VM, static and attached.
const DEVICES_MAX: usize = 16;
/// Parts of label and annotation keys that belong to the platform.
const RESERVED: [&str; 2] = ["kubevirt.io", "virtualization.deckhouse.io"];

/// Class name and core fraction where they are left out. The object has not passed the schema yet:
/// what has an unexpected form is left for the schema to refuse.
pub(super) fn mutate(object: &mut Value, view: &dyn View) -> Verdict {
    if is_being_deleted(object) || !object["spec"].is_object() {
        return Ok(Vec::new());
    }
    let spec = &object["spec"];
    let class_name = spec["virtualMachineClassName"].as_str().unwrap_or_default().to_owned();
    if class_name.is_empty() {
        object["spec"]["virtualMachineClassName"] = json!(class::default_name(view)?);
    }
    let spec = &object["spec"];
    let (Some(cores), true) =
        (spec["cpu"]["cores"].as_i64(), spec["cpu"].get("coreFraction").is_none_or(Value::is_null))
    else {
        return Ok(Vec::new());
    };
    let name = spec["virtualMachineClassName"].as_str().unwrap_or_default();
    let Some(policies) = policies(name, view) else { return Ok(Vec::new()) };
    let fraction = default_fraction(name, &policies, i32::try_from(cores).unwrap_or(i32::MAX))?;
    object["spec"]["cpu"]["coreFraction"] = json!(format!("{fraction}%"));
    Ok(Vec::new())
}

/// Sizing policies of a class; `None` if the class is missing.
fn policies(name: &str, view: &dyn View) -> Option<Vec<SizingPolicy>> {
    let class = view.get(GROUP, "virtualmachineclasses", "", name)?;
    let class: VirtualMachineClass = parse(&class).ok()?;
    Some(class.spec.sizing_policies.unwrap_or_default())
}

fn default_fraction(class: &str, policies: &[SizingPolicy], cores: i32) -> Result<i32, String> {
    if policies.is_empty() {
        return Ok(100);
    }
    let Some(policy) = policy::covering(policies, cores) else {
        let ranges = policy::ranges(policies);
        return Err(format!(
            "the virtual machine does not fit the sizing policy of class {class:?}: no range fits {cores} cores, the ranges are {ranges}"
        ));
    };
    if let Some(default) = policy.default_core_fraction {
        return Ok(default);
    }
    if policy.core_fractions.is_empty() || policy.core_fractions.contains(&100) {
        return Ok(100);
    }
    Err(format!(
        "no coreFraction is given and class {class:?} has no default one for {cores} cores: set one of {}",
        list(&policy.core_fractions)
    ))
}

pub(super) fn validate(request: &Request<'_>, view: &dyn View) -> Verdict {
    if is_being_deleted(request.object) || is_untouched(request) {
        return Ok(Vec::new());
    }
    let vm: VirtualMachine = parse(request.object)?;
    metadata(request)?;
    address(request, &vm, view)?;
    duplicates(&vm)?;
    let warnings = sizing(&vm, view)?;
    device_limit(&vm, request, view)?;
    affinity::check(&vm.spec)?;
    topology::check(vm.spec.cpu.cores)?;
    Ok(warnings)
}

/// Finalizers and owners may always change: what users wrote is the same as before.
fn is_untouched(request: &Request<'_>) -> bool {
    let same = |old: &Value, field: &str| old["metadata"].get(field) == request.object["metadata"].get(field);
    request.old.is_some_and(|old| {
        old["spec"] == request.object["spec"] && same(old, "labels") && same(old, "annotations")
    })
}

fn metadata(request: &Request<'_>) -> Result<(), String> {
    let name = name(request.object);
    if request.operation == Operation::Create && name.len() > NAME_MAX {
        return Err(format!("the name is {} characters long: at most {NAME_MAX} are possible", name.len()));
    }
    if request.is_platform {
        return Ok(());
    }
    for field in ["annotations", "labels"] {
        let keys = request.object["metadata"][field].as_object().into_iter().flatten().map(|(key, _)| key);
        for key in keys {
            if let Some(group) = RESERVED.iter().find(|group| key.contains(*group)) {
                return Err(format!(
                    "using the {group} group's name in the {} is prohibited: rename {key:?}",
                    field.trim_end_matches('s')
                ));
            }
        }
    }
    Ok(())
}

fn address(request: &Request<'_>, vm: &VirtualMachine, view: &dyn View) -> Result<(), String> {
    let name = name(request.object);
    match &vm.spec.virtual_machine_ip_address_name {
        Some(_) if ip::subnets(view).is_empty() => {
            Err("spec.virtualMachineIPAddressName is set but no subnets for virtual machines are configured"
                .to_owned())
        }
        None if request.operation == Operation::Create
            && !name.is_empty()
            && view.get(GROUP, "virtualmachineipaddresses", request.namespace, name).is_some() =>
        {
            Err(format!(
                "a VirtualMachineIPAddress named {name:?} like the virtual machine exists: set \
                 spec.virtualMachineIPAddressName to use it"
            ))
        }
        _ => Ok(()),
    }
}

fn duplicates(vm: &VirtualMachine) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    match vm.spec.block_device_refs.iter().find(|device| !seen.insert(*device)) {
        None => Ok(()),
        Some(device) => {
            Err(format!("{} {:?} is listed twice in spec.blockDeviceRefs", device.kind, device.name))
        }
    }
}

fn sizing(vm: &VirtualMachine, view: &dyn View) -> Verdict {
    let class = &vm.spec.virtual_machine_class_name;
    match policies(class, view) {
        Some(policies) => policy::check(&vm.spec, class, &policies).map(|()| Vec::new()),
        None => Ok(vec![format!(
            "the VirtualMachineClass {class:?} does not exist: the virtual machine stays Pending until it does"
        )]),
    }
}

fn device_limit(vm: &VirtualMachine, request: &Request<'_>, view: &dyn View) -> Result<(), String> {
    let attachments = view.list(GROUP, "virtualmachineblockdeviceattachments", Some(request.namespace));
    let ours = attachments.iter().filter(|a| a["spec"]["virtualMachineName"] == name(request.object)).count();
    let found = vm.spec.block_device_refs.len() + ours;
    if found > DEVICES_MAX {
        return Err(format!("the limit of block devices is reached: found {found}, maximum {DEVICES_MAX}"));
    }
    Ok(())
}

#[cfg(test)]
#[path = "vm_tests.rs"]
mod tests;
