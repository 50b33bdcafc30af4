//! Changes of a VM that runs: what waits, what is applied at once, what restarts it.

use holdfast_api::engine::{Disk, ExitCause, InstanceState, RestartRules};
use holdfast_api::vm::{BlockDeviceKind, ChangeOperation, Provisioning, RestartApprovalMode, RunPolicy};
use holdfast_api::vmop::VmopType;
use serde_json::{Value, json};

use super::tests::{
    condition, device, edit, edit_vm, end, engine, epoch, moving, observed, operation, phase, running, settle,
};
use super::*;
use crate::fronts::deckhouse::vm::Device;
use crate::placement_update::MISMATCH;

const DEFAULT: RunPolicy = RunPolicy::AlwaysOnUnlessStoppedManually;

/// Reasons of the events of a plan.
fn events(plan: &Plan) -> Vec<String> {
    let reasons = plan.effects.iter().filter_map(|effect| match effect {
        Effect::Event(note) => Some(note.reason.clone()),
        Effect::Create(_) | Effect::Patch(_) | Effect::Delete { .. } | Effect::Evict(_) => None,
    });
    reasons.collect()
}

/// The pending changes as the user reads them.
fn waiting(o: &Observed) -> Vec<(ChangeOperation, String, Option<Value>, Option<Value>)> {
    let all = o.vm.status.clone().unwrap().restart_awaiting_changes;
    all.into_iter().map(|c| (c.operation, c.path, c.current_value, c.desired_value)).collect()
}

fn needs_restart(o: &Observed) -> bool {
    condition(o, "AwaitingRestartToApplyConfiguration") == Some(("True", "ChangesPendingRestart"))
}

// VL-C1
#[test]
fn a_change_of_cores_waits_for_the_restart() {
    let mut o = running(RunPolicy::AlwaysOnUnlessStoppedManually);
    edit_vm(&mut o, |vm| vm.spec.cpu.cores = 2);
    settle(&mut o);
    let status = o.vm.status.clone().unwrap();
    assert_eq!(status.restart_awaiting_changes.len(), 1);
    assert_eq!(status.restart_awaiting_changes[0].path, "cpu.cores");
    assert_eq!(status.resources.unwrap().cpu.cores, 1, "the guest still has one");
    assert_eq!(condition(&o, "AwaitingRestartToApplyConfiguration"), Some(("True", "ChangesPendingRestart")));
    assert_eq!(condition(&o, "ConfigurationApplied"), Some(("False", "ConfigurationNotApplied")));
    assert!(plan(&o).is_empty());
    end(&mut o, ExitCause::GuestReset);
    settle(&mut o);
    settle(&mut o);
    assert_eq!(o.instance.as_ref().unwrap().spec.hardware.cpu.cores_per_socket, 2);
    assert!(o.vm.status.as_ref().unwrap().restart_awaiting_changes.is_empty());
}

// VL-C6
#[test]
fn automatic_approval_restarts_at_once() {
    let mut o = running(RunPolicy::AlwaysOnUnlessStoppedManually);
    edit_vm(&mut o, |vm| {
        vm.spec.disruptions.restart_approval_mode = RestartApprovalMode::Automatic;
        vm.spec.memory.size = "2Gi".into();
    });
    assert_eq!(events(&settle(&mut o)), ["RestartAwaitingChanges", "Restarted", "ChangesApplied"]);
    assert_eq!(phase(&o), VmPhase::Stopping);
    end(&mut o, ExitCause::PlatformStop);
    settle(&mut o);
    settle(&mut o);
    assert_eq!((phase(&o), epoch(&o)), (VmPhase::Starting, 2));
    assert_eq!(o.instance.as_ref().unwrap().spec.hardware.memory_bytes, 2 << 30);
}

#[test]
fn what_applies_at_once_reaches_the_instance_without_a_restart() {
    let mut o = running(RunPolicy::AlwaysOnUnlessStoppedManually);
    edit_vm(&mut o, |vm| {
        vm.spec.run_policy = RunPolicy::Manual;
        vm.spec.node_selector = Some([("zone".into(), "a".into())].into());
        vm.spec.tolerations = Some(vec![Default::default()]);
        vm.metadata.labels = Some([("app".into(), "web".into())].into());
    });
    settle(&mut o);
    let spec = o.instance.as_ref().unwrap().spec.clone();
    assert_eq!(spec.restart_rules.crash, RestartRules::default().crash);
    assert_eq!(spec.placement.node_selector.get("zone").map(String::as_str), Some("a"));
    assert_eq!(spec.metadata.labels.get("app").map(String::as_str), Some("web"));
    assert!(spec.placement.tolerations.is_empty(), "tolerations wait for the restart");
    let changes = o.vm.status.clone().unwrap().restart_awaiting_changes;
    assert_eq!(changes.iter().map(|c| c.path.as_str()).collect::<Vec<_>>(), ["tolerations"]);
    settle(&mut o);
    assert!(plan(&o).is_empty());
}

// VL-C3
#[test]
fn a_change_that_is_taken_back_waits_for_nothing() {
    let mut o = running(DEFAULT);
    edit_vm(&mut o, |vm| vm.spec.cpu.cores = 2);
    settle(&mut o);
    assert!(needs_restart(&o));
    edit_vm(&mut o, |vm| vm.spec.cpu.cores = 1);
    settle(&mut o);
    assert!(waiting(&o).is_empty());
    assert_eq!(condition(&o, "AwaitingRestartToApplyConfiguration"), Some(("False", "NoRestartRequired")));
    assert_eq!(condition(&o, "ConfigurationApplied"), Some(("True", "ConfigurationApplied")));
}

// VL-C5
#[test]
fn cores_and_fraction_are_one_entry() {
    let mut o = running(DEFAULT);
    edit_vm(&mut o, |vm| {
        vm.spec.cpu.cores = 2;
        vm.spec.cpu.core_fraction = Some("50%".into());
    });
    settle(&mut o);
    let [(ChangeOperation::Replace, path, Some(current), Some(desired))] = &waiting(&o)[..] else {
        panic!("{:?}", waiting(&o));
    };
    assert_eq!((path.as_str(), &current["cores"], &desired["cores"]), ("cpu", &json!(1), &json!(2)));
    assert_eq!(desired["coreFraction"], "50%");
}

// VL-C7
#[test]
fn automatic_approval_restarts_the_vm_by_itself() {
    let mut o = running(DEFAULT);
    edit_vm(&mut o, |vm| vm.spec.cpu.cores = 2);
    settle(&mut o);
    assert_eq!(phase(&o), VmPhase::Running, "Manual");
    edit_vm(&mut o, |vm| vm.spec.disruptions.restart_approval_mode = RestartApprovalMode::Automatic);
    settle(&mut o);
    assert_eq!(phase(&o), VmPhase::Stopping);
    assert_eq!(o.instance.as_ref().unwrap().spec.stop.as_ref().unwrap().mode, StopMode::Graceful);
    end(&mut o, ExitCause::PlatformStop);
    let start = settle(&mut o);
    assert!(events(&start).is_empty(), "{start:?}");
    settle(&mut o);
    engine(&mut o, InstanceState::Running);
    settle(&mut o);
    assert_eq!((phase(&o), epoch(&o)), (VmPhase::Running, 2));
    assert!(waiting(&o).is_empty());
    assert!(plan(&o).is_empty());
}

#[test]
fn what_keeps_automatic_approval_from_restarting() {
    type Change = fn(&mut Observed);
    for (what, hinder) in [
        ("a dependency is not ready", (|o| o.class = None) as Change),
        ("the VM is being moved", |o| moving(o, 1, None)),
    ] {
        let mut o = running(DEFAULT);
        hinder(&mut o);
        edit_vm(&mut o, |vm| {
            vm.spec.disruptions.restart_approval_mode = RestartApprovalMode::Automatic;
            vm.spec.memory.size = "2Gi".into();
        });
        settle(&mut o);
        assert_eq!(o.instance.as_ref().unwrap().spec.power, Power::On, "{what}");
    }
}

// VL-C8
#[test]
fn a_stopped_vm_takes_changes_with_its_next_start() {
    let mut o = running(DEFAULT);
    operation(&mut o, "stop", VmopType::Stop, None);
    settle(&mut o);
    end(&mut o, ExitCause::PlatformStop);
    o.operations.clear();
    settle(&mut o);
    edit_vm(&mut o, |vm| vm.spec.cpu.cores = 2);
    settle(&mut o);
    assert_eq!(phase(&o), VmPhase::Stopped);
    assert!(waiting(&o).is_empty());
    assert_eq!(condition(&o, "AwaitingRestartToApplyConfiguration"), None);
    operation(&mut o, "start", VmopType::Start, None);
    settle(&mut o);
    assert_eq!(o.instance.as_ref().unwrap().spec.hardware.cpu.cores_per_socket, 2);
}

// VL-C9
#[test]
fn a_run_policy_applies_without_an_entry() {
    let mut o = running(DEFAULT);
    edit_vm(&mut o, |vm| vm.spec.run_policy = RunPolicy::Manual);
    settle(&mut o);
    assert!(waiting(&o).is_empty() && !needs_restart(&o));
    assert_eq!(o.instance.as_ref().unwrap().spec.restart_rules, power::rules(&o.vm.spec));
    assert_eq!(power::applied_policy(o.instance.as_ref().unwrap()), Some(RunPolicy::Manual));
    end(&mut o, ExitCause::Crash);
    settle(&mut o);
    assert_eq!(phase(&o), VmPhase::Stopped);
}

// VL-C13, VL-C14, VL-C15
#[test]
fn block_devices_are_listed_by_index() {
    use ChangeOperation::{Add, Replace};
    let disk = |name: &str| holdfast_api::vm::BlockDeviceRef {
        kind: BlockDeviceKind::VirtualDisk,
        name: name.to_owned(),
    };
    let json = |name: &str| json!({ "kind": "VirtualDisk", "name": name });
    // (devices of the running VM, devices wanted, entries)
    for (from, to, entries) in [
        (&["a"][..], &["a", "b"][..], vec![(Add, "blockDeviceRefs.1".to_owned(), None, Some(json("b")))]),
        (
            &["a", "b"],
            &["b", "a"],
            vec![
                (Replace, "blockDeviceRefs.0".to_owned(), Some(json("a")), Some(json("b"))),
                (Replace, "blockDeviceRefs.1".to_owned(), Some(json("b")), Some(json("a"))),
            ],
        ),
        (&["a"], &["b"], vec![(Replace, "blockDeviceRefs.0".to_owned(), Some(json("a")), Some(json("b")))]),
    ] {
        let named = |names: &[&str]| -> Vec<Device> {
            names.iter().map(|name| Device { reference: disk(name), ..device() }).collect()
        };
        let mut o = observed(DEFAULT);
        edit_vm(&mut o, |vm| vm.spec.block_device_refs = from.iter().map(|name| disk(name)).collect());
        o.devices = named(from);
        settle(&mut o);
        settle(&mut o);
        engine(&mut o, InstanceState::Running);
        settle(&mut o);
        edit_vm(&mut o, |vm| vm.spec.block_device_refs = to.iter().map(|name| disk(name)).collect());
        o.devices = named(to);
        settle(&mut o);
        assert_eq!(waiting(&o), entries, "{from:?} -> {to:?}");
        assert_eq!(phase(&o), VmPhase::Running);
    }
}

#[test]
fn an_image_that_is_taken_out_stays_listed_until_the_restart() {
    let image =
        holdfast_api::vm::BlockDeviceRef { kind: BlockDeviceKind::VirtualImage, name: "cd".to_owned() };
    let mut o = observed(DEFAULT);
    let device = Device { reference: image.clone(), size: "96M".into(), ..device() };
    edit_vm(&mut o, |vm| vm.spec.block_device_refs.push(image));
    o.devices.push(device);
    settle(&mut o);
    settle(&mut o);
    engine(&mut o, InstanceState::Running);
    settle(&mut o);
    edit_vm(&mut o, |vm| vm.spec.block_device_refs.truncate(1));
    o.devices.truncate(1);
    settle(&mut o);
    let listed = &o.vm.status.as_ref().unwrap().block_device_refs;
    let listed: Vec<_> = listed.iter().map(|d| (d.kind, d.name.as_str(), d.size.as_str())).collect();
    assert_eq!(listed[1], (BlockDeviceKind::VirtualImage, "cd", "96M"), "{listed:?}");
}

// VL-C16
#[test]
fn a_removed_provisioning_is_one_entry() {
    let mut o = observed(DEFAULT);
    edit_vm(&mut o, |vm| {
        vm.spec.provisioning =
            Some(Provisioning { user_data: Some("#cloud-config".into()), ..Provisioning::default() });
    });
    settle(&mut o);
    settle(&mut o);
    engine(&mut o, InstanceState::Running);
    settle(&mut o);
    edit_vm(&mut o, |vm| vm.spec.provisioning = None);
    settle(&mut o);
    let [(ChangeOperation::Remove, path, Some(_), None)] = &waiting(&o)[..] else {
        panic!("{:?}", waiting(&o));
    };
    assert_eq!(path, "provisioning");
}

// VL-C17
#[test]
fn the_default_grace_period_is_no_change() {
    // Absent is filled by the schema's default, which is what is compared.
    let absent: holdfast_api::vm::VirtualMachineSpec = serde_json::from_value(json!({
        "virtualMachineClassName": "host", "cpu": {"cores": 1}, "memory": {"size": "1Gi"}, "blockDeviceRefs": [],
    }))
    .unwrap();
    assert_eq!(absent.termination_grace_period_seconds, 60);
    let mut o = running(DEFAULT);
    edit_vm(&mut o, |vm| vm.spec.termination_grace_period_seconds = 60);
    settle(&mut o);
    assert!(waiting(&o).is_empty());
    edit_vm(&mut o, |vm| vm.spec.termination_grace_period_seconds = 61);
    settle(&mut o);
    assert_eq!(waiting(&o).len(), 1);
}

// VL-C19
#[test]
fn an_edit_that_also_switches_off_stops_the_vm_and_applies_the_rest() {
    let mut o = running(RunPolicy::Manual);
    edit_vm(&mut o, |vm| {
        vm.spec.cpu.cores = 2;
        vm.spec.run_policy = RunPolicy::AlwaysOff;
    });
    settle(&mut o);
    assert_eq!(phase(&o), VmPhase::Stopping);
    end(&mut o, ExitCause::PlatformStop);
    settle(&mut o);
    assert_eq!(phase(&o), VmPhase::Stopped);
    assert!(waiting(&o).is_empty());
    assert_eq!(o.vm.status.as_ref().unwrap().resources.as_ref().unwrap().cpu.cores, 2);
    edit_vm(&mut o, |vm| vm.spec.run_policy = RunPolicy::AlwaysOn);
    settle(&mut o);
    assert_eq!(o.instance.as_ref().unwrap().spec.hardware.cpu.cores_per_socket, 2);
}

// VL-C20
#[test]
fn changes_wait_for_dependencies_too() {
    let mut o = running(DEFAULT);
    edit_vm(&mut o, |vm| vm.spec.cpu.cores = 2);
    settle(&mut o);
    o.class = None;
    settle(&mut o);
    assert_eq!(condition(&o, "ConfigurationApplied"), Some(("False", "ConfigurationNotApplied")));
    let conditions = &o.vm.status.as_ref().unwrap().conditions;
    let text = &holdfast_api::condition::find(conditions, "ConfigurationApplied").unwrap().message;
    assert!(text.starts_with("Waiting for the dependent resources"), "{text}");
    assert_eq!(phase(&o), VmPhase::Running);
    assert_eq!(o.instance.as_ref().unwrap().spec.power, Power::On);
}

/// The placement controller has found the node of a running VM wrong.
fn misplace(o: &mut Observed) {
    edit(o, |instance| {
        instance.metadata.annotations.get_or_insert_default().insert(MISMATCH.into(), "n1".into());
    });
}

// VL C12 (the VM's side; the event and that no operation is made: `placement_update`)
#[test]
fn a_placement_that_cannot_be_moved_to_waits_for_a_restart() {
    let mut o = running(DEFAULT);
    misplace(&mut o);
    settle(&mut o);
    assert!(!needs_restart(&o), "it will be moved");
    edit(&mut o, |i| i.spec.hardware.disks = vec![Disk { shared: false, ..Disk::default() }]);
    settle(&mut o);
    assert!(needs_restart(&o));
    assert!(waiting(&o).is_empty(), "placement is never listed");
    assert_eq!(condition(&o, "ConfigurationApplied"), Some(("False", "ConfigurationNotApplied")));
    assert_eq!(phase(&o), VmPhase::Running);
    edit_vm(&mut o, |vm| vm.spec.disruptions.restart_approval_mode = RestartApprovalMode::Automatic);
    settle(&mut o);
    assert_eq!(phase(&o), VmPhase::Stopping);
}
