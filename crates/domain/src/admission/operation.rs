//! Rules of operations (api.md A3.7).

use holdfast_api::GROUP;
use holdfast_api::vmop::{VirtualMachineOperation, VmopPhase, VmopType};

use super::{Operation, Request, Verdict, View, parse};
use crate::power;

pub(super) fn validate(request: &Request<'_>, view: &dyn View) -> Verdict {
    if request.operation != Operation::Create {
        return Ok(Vec::new());
    }
    let operation: VirtualMachineOperation = parse(request.object)?;
    let selector = operation.spec.migrate.as_ref().and_then(|migrate| migrate.node_selector.as_ref());
    for (key, value) in selector.into_iter().flatten() {
        check_label(key, value)?;
    }
    // Of the many operations of a large namespace only those of the VM are read.
    let names_it = format!("\"virtualMachineName\":\"{}\"", operation.spec.virtual_machine_name);
    let of_vm = view.list_holding(GROUP, "virtualmachineoperations", Some(request.namespace), &names_it);
    let unfinished = of_vm.iter().find_map(|known| {
        let known: VirtualMachineOperation = parse(known).ok()?;
        let phase = known.status.as_ref().map_or(VmopPhase::Pending, |status| status.phase);
        let same = known.spec.virtual_machine_name == operation.spec.virtual_machine_name;
        let blocks = same && !phase.is_final() && known.metadata.deletion_timestamp.is_none();
        (blocks && !power::supersedes(kind(&operation), kind(&known))).then_some(known)
    });
    match unfinished {
        None => Ok(Vec::new()),
        Some(known) => Err(format!(
            "the previous operation {:?} ({}) of virtual machine {:?} must finish first: wait for it, or delete it to call it off",
            known.metadata.name.unwrap_or_default(),
            known.spec.type_,
            known.spec.virtual_machine_name
        )),
    }
}

fn kind(operation: &VirtualMachineOperation) -> (VmopType, bool) {
    (operation.spec.type_, operation.spec.force == Some(true))
}

/// A label key and value in Kubernetes' form.
pub(super) fn check_label(key: &str, value: &str) -> Result<(), String> {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let prefix_is_fine = prefix.is_none_or(|prefix| {
        !prefix.is_empty() && prefix.len() <= 253 && prefix.split('.').all(is_name_part)
    });
    if !prefix_is_fine || name.is_empty() || !is_label_text(name) {
        return Err(format!("{key:?} is not a valid label key"));
    }
    if !value.is_empty() && !is_label_text(value) {
        return Err(format!("{value:?} is not a valid label value"));
    }
    Ok(())
}

/// A part of a DNS name.
pub(super) fn is_name_part(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !text.is_empty()
        && text.len() <= 63
        && text.chars().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn is_label_text(text: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    text.len() <= 63 && edge(text.chars().next()) && edge(text.chars().next_back()) && text.chars().all(inner)
}

#[cfg(test)]
mod tests {
    use super::super::world::{World, decide};
    use super::*;
    use serde_json::{Value, json};

    fn vmop(name: &str, type_: &str, vm: &str, phase: Option<&str>) -> Value {
        let mut vmop = json!({
            "metadata": {"name": name, "namespace": "shop"},
            "spec": {"type": type_, "virtualMachineName": vm},
        });
        if let Some(phase) = phase {
            vmop["status"] = json!({"phase": phase});
        }
        vmop
    }

    #[test]
    fn one_unfinished_operation_a_vm() {
        for (phase, refused) in [
            (None, true),
            (Some("Pending"), true),
            (Some("InProgress"), true),
            (Some("Completed"), false),
            (Some("Failed"), false),
            (Some("Superseded"), false),
        ] {
            let world = World::default().with(
                GROUP,
                "virtualmachineoperations",
                vmop("old", "Restart", "web", phase),
            );
            let create = |type_: &str, vm: &str| {
                decide(&world, "virtualmachineoperations", &vmop("new", type_, vm, None), None)
            };
            assert_eq!(create("Stop", "web").is_err(), refused, "{phase:?}");
            assert!(create("Stop", "db").is_ok());
            let mut forced = vmop("new", "Stop", "web", None);
            forced["spec"]["force"] = json!(true);
            assert!(decide(&world, "virtualmachineoperations", &forced, None).is_ok(), "it overtakes");
        }
    }

    #[test]
    fn target_labels_must_be_labels() {
        for (key, value, fine) in [
            ("kubernetes.io/hostname", "node-1", true),
            ("zone", "", true),
            ("", "x", false),
            ("a b", "x", false),
            ("/x", "x", false),
            ("zone", "-x", false),
        ] {
            let mut new = vmop("new", "Migrate", "web", None);
            new["spec"]["migrate"] = json!({"nodeSelector": {key: value}});
            assert_eq!(
                decide(&World::default(), "virtualmachineoperations", &new, None).is_ok(),
                fine,
                "{key}={value}"
            );
        }
    }
}
