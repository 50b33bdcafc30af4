use std::sync::Arc;

use holdfast_api::engine::{
    Claim, Exit, ExitCause, InstanceMigration, InstanceState, Report, ReportState, Side,
};
use holdfast_api::vm::{BlockDeviceKind, BlockDeviceRef, RunPolicy, VirtualMachineSpec};
use holdfast_api::vmclass::VmClassPhase;
use holdfast_api::vmip::{VirtualMachineIPAddressStatus, VmipPhase};
use holdfast_api::vmop::{VirtualMachineOperationSpec, VirtualMachineOperationStatus, VmopPhase, VmopType};
use holdfast_api::{VirtualMachine, VirtualMachineClass, VirtualMachineOperation};
use holdfast_env::Timestamp;

use super::*;
use crate::fronts::deckhouse::vm::Device;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

pub(super) fn vm(policy: RunPolicy) -> VirtualMachine {
    let mut spec = VirtualMachineSpec { run_policy: policy, ..VirtualMachineSpec::default() };
    spec.virtual_machine_class_name = "host".into();
    spec.cpu.cores = 1;
    spec.memory.size = "1Gi".into();
    spec.block_device_refs = vec![BlockDeviceRef { kind: BlockDeviceKind::VirtualDisk, name: "root".into() }];
    let mut vm = VirtualMachine::new("web", spec);
    vm.metadata.namespace = Some("shop".into());
    vm.metadata.uid = Some("uid-vm".into());
    vm.metadata.generation = Some(1);
    vm.metadata.resource_version = Some("1".into());
    vm
}

pub(super) fn class() -> Arc<VirtualMachineClass> {
    let mut class = VirtualMachineClass::new("host", Default::default());
    class.status.get_or_insert_default().phase = VmClassPhase::Ready;
    Arc::new(class)
}

fn vmip(phase: VmipPhase) -> Arc<VirtualMachineIPAddress> {
    let mut address = VirtualMachineIPAddress::new("web-xxxxx", Default::default());
    address.status = Some(VirtualMachineIPAddressStatus {
        phase: Some(phase),
        address: Some("10.66.10.4".into()),
        virtual_machine_name: (phase == VmipPhase::Attached).then(|| "web".to_owned()),
        ..VirtualMachineIPAddressStatus::default()
    });
    Arc::new(address)
}

pub(super) fn device() -> Device {
    Device {
        reference: BlockDeviceRef { kind: BlockDeviceKind::VirtualDisk, name: "root".into() },
        uid: "uid-root".into(),
        ready: true,
        claim: Some("d8v-vd-root-1".into()),
        shared: true,
        size: "1Gi".into(),
        ..Device::default()
    }
}

pub(super) fn observed(policy: RunPolicy) -> Observed {
    Observed {
        silent_node: None,
        launcher_image: "holdfast/launcher:1".into(),
        now: at(0),
        vm: Arc::new(vm(policy)),
        class: Some(class()),
        devices: vec![device()],
        nvram: None,
        vmip: Some(vmip(VmipPhase::Attached)),
        secret: None,
        instance: None,
        foreign_instance: false,
        migrations: Vec::new(),
        operations: Vec::new(),
    }
}

fn merge(into: &mut serde_json::Value, patch: &serde_json::Value) {
    match (into.as_object_mut(), patch.as_object()) {
        (Some(map), Some(patch)) => {
            for (key, value) in patch {
                if value.is_null() {
                    map.remove(key);
                } else {
                    merge(map.entry(key.clone()).or_insert(json!({})), value);
                }
            }
        }
        _ => *into = patch.clone(),
    }
}

/// Carries the plan out on the observed world, as the API would.
pub(super) fn settle(o: &mut Observed) -> Plan {
    let plan = plan(o);
    let mut vm = serde_json::to_value(&*o.vm).unwrap();
    if let Some(status) = &plan.status {
        merge(&mut vm, &status.body);
    }
    for effect in &plan.effects {
        match effect {
            Effect::Create(create) if create.object.api.kind == "Instance" => {
                assert!(o.instance.is_none(), "one Instance a VM");
                let mut instance: Instance = serde_json::from_value(create.object.value.clone()).unwrap();
                instance.metadata.uid = Some("uid-instance".into());
                instance.metadata.resource_version = Some("1".into());
                o.instance = Some(Arc::new(instance));
            }
            Effect::Create(_) => o.vmip = Some(vmip(VmipPhase::Pending)),
            Effect::Patch(patch) if patch.target.api.kind == "VirtualMachine" => merge(&mut vm, &patch.body),
            Effect::Patch(patch) => {
                let before = o.instance.clone().unwrap();
                let mut json = serde_json::to_value(&*before).unwrap();
                merge(&mut json, &patch.body);
                let after: Instance = serde_json::from_value(json).unwrap();
                legal(&before, &after);
                o.instance = Some(Arc::new(after));
            }
            Effect::Delete { .. } => edit(o, |i| i.metadata.deletion_timestamp = Some(Time(at(0)))),
            Effect::Evict(_) | Effect::Event(_) => {}
        }
    }
    o.vm = Arc::new(serde_json::from_value(vm).unwrap());
    plan
}

/// The rules that the CRD of Instance enforces.
fn legal(before: &Instance, after: &Instance) {
    let (old, new) = (&before.spec, &after.spec);
    if old.epoch == new.epoch {
        assert!(old.power == new.power || new.power == Power::Off, "On to Off only");
        assert_eq!(old.hardware, new.hardware);
        assert_eq!(old.resources, new.resources);
    } else {
        assert_eq!(new.epoch, old.epoch + 1);
        assert!(has_ended(before), "INV-3");
    }
}

pub(super) fn edit(o: &mut Observed, change: impl FnOnce(&mut Instance)) {
    let mut instance = (**o.instance.as_ref().unwrap()).clone();
    change(&mut instance);
    o.instance = Some(Arc::new(instance));
}

pub(super) fn edit_vm(o: &mut Observed, change: impl FnOnce(&mut VirtualMachine)) {
    let mut vm = (*o.vm).clone();
    change(&mut vm);
    vm.metadata.generation = vm.metadata.generation.map(|g| g + 1);
    o.vm = Arc::new(vm);
}

/// What the engine would make of the Instance.
pub(super) fn engine(o: &mut Observed, state: InstanceState) {
    edit(o, |instance| {
        let epoch = instance.spec.epoch;
        let status = instance.status.get_or_insert_default();
        status.observed_epoch = epoch;
        status.state = Some(state);
        status.exit = None;
        status.claim = Some(Claim { node: "n1".into(), pod_uid: "p1".into(), epoch, ..Claim::default() });
        status.node = Some("n1".into());
        status.report = Some(Report { epoch, state: ReportState::Running, ..Report::default() });
    });
}

pub(super) fn end(o: &mut Observed, cause: ExitCause) {
    engine(o, InstanceState::Ended);
    edit(o, |instance| {
        let status = instance.status.as_mut().unwrap();
        status.exit = Some(Exit { cause, ..Exit::default() });
        status.claim = None;
    });
}

pub(super) fn phase(o: &Observed) -> VmPhase {
    o.vm.status.as_ref().unwrap().phase.unwrap()
}

pub(super) fn epoch(o: &Observed) -> i64 {
    o.instance.as_ref().map_or(-1, |instance| instance.spec.epoch)
}

pub(super) fn running(policy: RunPolicy) -> Observed {
    let mut o = observed(policy);
    settle(&mut o);
    settle(&mut o);
    if o.instance.as_ref().is_some_and(|instance| instance.spec.epoch == 0) {
        end(&mut o, ExitCause::NeverStarted);
        operation(&mut o, "start", VmopType::Start, None);
        settle(&mut o);
        o.operations.clear();
    }
    engine(&mut o, InstanceState::Running);
    settle(&mut o);
    assert_eq!(phase(&o), VmPhase::Running);
    let rest = plan(&o);
    assert!(rest.is_empty(), "{rest:?}");
    o
}

pub(super) fn operation(o: &mut Observed, name: &str, type_: VmopType, force: Option<bool>) {
    let spec =
        VirtualMachineOperationSpec { type_, virtual_machine_name: "web".into(), force, migrate: None };
    let mut op = VirtualMachineOperation::new(name, spec);
    op.status = Some(VirtualMachineOperationStatus { phase: VmopPhase::InProgress, ..Default::default() });
    o.operations = vec![Arc::new(op)];
}

pub(super) fn condition<'o>(o: &'o Observed, type_: &str) -> Option<(&'o str, &'o str)> {
    let all = &o.vm.status.as_ref().unwrap().conditions;
    let found = holdfast_api::condition::find(all, type_)?;
    Some((found.status.as_str(), found.reason.as_str()))
}

#[test]
fn uefi_variables_lie_beside_the_first_disk() {
    use holdfast_api::vm::Bootloader;
    let nvram = |o: &Observed| super::desire::power_on(o, 1).hardware.nvram;
    let mut o = observed(RunPolicy::AlwaysOn);
    o.devices[0].storage_class = Some("shared".into());
    assert_eq!(nvram(&o), None, "BIOS has none");
    Arc::make_mut(&mut o.vm).spec.bootloader = Bootloader::EFI;
    let beside = nvram(&o).unwrap();
    assert_eq!(beside.claim, "d8v-nvram-web-uid-vm");
    assert_eq!((beside.storage_class.as_deref(), beside.shared), (Some("shared"), true));
    // A claim made earlier stays as it is, whatever became of the disk.
    let claim = json!({"spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "local"}});
    o.nvram = Some(Arc::new(serde_json::from_value(claim).unwrap()));
    let before = nvram(&o).unwrap();
    assert_eq!((before.storage_class.as_deref(), before.shared), (Some("local"), false));
    let mut instance = super::desire::first(&o, super::desire::power_on(&o, 1), "policy");
    let why = holdfast_domain::eviction::migratable(&instance).unwrap_err();
    assert!(why.contains("UEFI variables"), "{why}");
    instance.spec.hardware.nvram.as_mut().unwrap().shared = true;
    assert_eq!(holdfast_domain::eviction::migratable(&instance), Ok(()));
    o.devices[0].reference.kind = BlockDeviceKind::VirtualImage;
    assert_eq!(nvram(&o), None, "a VM without a disk of its own");
}

#[test]
fn a_new_vm_shows_pending_starting_running() {
    let mut o = observed(RunPolicy::AlwaysOnUnlessStoppedManually);
    settle(&mut o);
    assert_eq!((phase(&o), epoch(&o)), (VmPhase::Pending, -1));
    settle(&mut o);
    assert_eq!((phase(&o), epoch(&o)), (VmPhase::Starting, 1));
    let spec = o.instance.as_ref().unwrap().spec.clone();
    assert_eq!((spec.power, spec.owner.uid.as_str()), (Power::On, "uid-vm"));
    assert_eq!(spec.hardware.nic.as_ref().unwrap().address, "10.66.10.4");
    assert_eq!(spec.hardware.disks[0].claim, "d8v-vd-root-1");
    engine(&mut o, InstanceState::Booting);
    settle(&mut o);
    assert_eq!(phase(&o), VmPhase::Starting);
    engine(&mut o, InstanceState::Running);
    settle(&mut o);
    assert_eq!(phase(&o), VmPhase::Running);
    let status = o.vm.status.clone().unwrap();
    assert_eq!((status.node_name.as_deref(), status.ip_address.as_deref()), (Some("n1"), Some("10.66.10.4")));
    assert_eq!(condition(&o, "Running"), Some(("True", "Running")));
    assert_eq!(condition(&o, "Migratable"), Some(("True", "VirtualMachineMigratable")));
    assert_eq!(condition(&o, "AgentReady"), Some(("False", "AgentNotReady")));
    assert_eq!(condition(&o, "AwaitingRestartToApplyConfiguration"), Some(("False", "NoRestartRequired")));
    let seen: Vec<_> = status.stats.unwrap().phases_transitions.iter().map(|t| t.phase).collect();
    assert_eq!(seen, [VmPhase::Pending, VmPhase::Starting, VmPhase::Running]);
    assert!(plan(&o).is_empty());
}

#[test]
fn what_is_missing_keeps_the_vm_pending_and_says_so() {
    type Break = fn(&mut Observed);
    for (what, broken, type_, want) in [
        (
            "class missing",
            (|o| o.class = None) as Break,
            "VirtualMachineClassReady",
            ("False", "VirtualMachineClassNotReady"),
        ),
        (
            "disk not ready",
            |o| o.devices[0].ready = false,
            "BlockDevicesReady",
            ("False", "BlockDevicesNotReady"),
        ),
        (
            "disk taken",
            |o| o.devices[0].taken_by = Some("in use by another VM".into()),
            "BlockDevicesReady",
            ("False", "BlockDevicesNotReady"),
        ),
        (
            "address pending",
            |o| o.vmip = Some(vmip(VmipPhase::Pending)),
            "VirtualMachineIPAddressReady",
            ("False", "VirtualMachineIPAddressNotReady"),
        ),
    ] {
        let mut o = observed(RunPolicy::AlwaysOnUnlessStoppedManually);
        broken(&mut o);
        settle(&mut o);
        settle(&mut o);
        assert_eq!((phase(&o), epoch(&o)), (VmPhase::Pending, -1), "{what}");
        assert_eq!(condition(&o, type_), Some(want), "{what}");
        assert!(plan(&o).is_empty(), "{what}");
        let repaired = observed(RunPolicy::AlwaysOnUnlessStoppedManually);
        o.class = repaired.class;
        o.devices = repaired.devices;
        o.vmip = repaired.vmip;
        settle(&mut o);
        assert_eq!((phase(&o), epoch(&o)), (VmPhase::Starting, 1), "{what}");
    }
}

#[test]
fn an_address_is_created_when_none_is_named() {
    let mut o = observed(RunPolicy::AlwaysOnUnlessStoppedManually);
    o.vmip = None;
    let first = settle(&mut o);
    let create = first.effects.iter().find_map(|effect| match effect {
        Effect::Create(create) => Some(&create.object.value),
        _ => None,
    });
    let create = create.unwrap();
    assert!(create["metadata"]["name"].as_str().unwrap().starts_with("web-"));
    assert_eq!(create["metadata"]["ownerReferences"][0]["controller"], true);
    assert_eq!(create["spec"]["type"], "Auto");
}

// VL-P1, VL-P18, VL-P19
#[test]
fn a_manual_vm_is_recorded_as_never_started_and_stays_off_under_any_later_policy_but_always_on() {
    let mut o = observed(RunPolicy::Manual);
    settle(&mut o);
    settle(&mut o);
    assert_eq!((phase(&o), epoch(&o)), (VmPhase::Pending, 0));
    end(&mut o, ExitCause::NeverStarted);
    settle(&mut o);
    assert_eq!((phase(&o), epoch(&o)), (VmPhase::Stopped, 0));
    edit_vm(&mut o, |vm| vm.spec.run_policy = RunPolicy::AlwaysOnUnlessStoppedManually);
    settle(&mut o);
    settle(&mut o);
    assert_eq!((phase(&o), epoch(&o)), (VmPhase::Stopped, 0));
    edit_vm(&mut o, |vm| vm.spec.run_policy = RunPolicy::AlwaysOn);
    settle(&mut o);
    assert_eq!((phase(&o), epoch(&o)), (VmPhase::Starting, 1));
}

// VL-P17
#[test]
fn always_off_to_the_default_policy_starts() {
    let mut o = observed(RunPolicy::AlwaysOff);
    settle(&mut o);
    settle(&mut o);
    end(&mut o, ExitCause::NeverStarted);
    settle(&mut o);
    edit_vm(&mut o, |vm| vm.spec.run_policy = RunPolicy::AlwaysOnUnlessStoppedManually);
    settle(&mut o);
    assert_eq!(epoch(&o), 1);
}

#[test]
fn what_follows_an_end_per_policy() {
    use ExitCause::{Crash, Evicted, GuestReset, GuestShutdown, NodeLost};
    use RunPolicy::{AlwaysOn, AlwaysOnUnlessStoppedManually, Manual};
    for (policy, cause, restarts) in [
        (AlwaysOnUnlessStoppedManually, GuestShutdown, false),
        (AlwaysOnUnlessStoppedManually, GuestReset, true),
        (AlwaysOnUnlessStoppedManually, Crash, true),
        (AlwaysOnUnlessStoppedManually, Evicted, true),
        (AlwaysOnUnlessStoppedManually, NodeLost, true),
        (AlwaysOn, GuestShutdown, true),
        (Manual, GuestReset, true),
        (Manual, Crash, false),
        (Manual, GuestShutdown, false),
    ] {
        let mut o = running(policy);
        let before = epoch(&o);
        end(&mut o, cause);
        settle(&mut o);
        let want = if restarts { VmPhase::Stopping } else { VmPhase::Stopped };
        assert_eq!((phase(&o), epoch(&o)), (want, before + i64::from(restarts)), "{policy} {cause:?}");
        settle(&mut o);
        if restarts {
            assert_eq!(phase(&o), VmPhase::Starting, "{policy} {cause:?}");
        }
        assert!(plan(&o).is_empty(), "{policy} {cause:?}");
    }
}

#[test]
fn a_crash_under_manual_stays_off_when_the_policy_changes_later() {
    let mut o = running(RunPolicy::Manual);
    end(&mut o, ExitCause::Crash);
    settle(&mut o);
    let before = epoch(&o);
    edit_vm(&mut o, |vm| vm.spec.run_policy = RunPolicy::AlwaysOnUnlessStoppedManually);
    settle(&mut o);
    settle(&mut o);
    assert_eq!((phase(&o), epoch(&o)), (VmPhase::Stopped, before));
    assert!(plan(&o).is_empty());
}

#[test]
fn stop_and_start_operations() {
    let mut o = running(RunPolicy::AlwaysOnUnlessStoppedManually);
    operation(&mut o, "stop", VmopType::Stop, None);
    settle(&mut o);
    assert_eq!(phase(&o), VmPhase::Stopping);
    let stop = o.instance.as_ref().unwrap().spec.stop.clone().unwrap();
    assert_eq!((stop.mode, stop.by.as_str()), (StopMode::Graceful, "vmop/stop/"));
    settle(&mut o);
    assert!(plan(&o).is_empty(), "asked once");
    operation(&mut o, "stop", VmopType::Stop, Some(true));
    settle(&mut o);
    assert_eq!(o.instance.as_ref().unwrap().spec.stop.as_ref().unwrap().mode, StopMode::Force);
    end(&mut o, ExitCause::PlatformStop);
    settle(&mut o);
    assert_eq!((phase(&o), epoch(&o)), (VmPhase::Stopped, 1));
    o.operations.clear();
    settle(&mut o);
    assert!(plan(&o).is_empty(), "stays off");
    operation(&mut o, "start", VmopType::Start, None);
    settle(&mut o);
    assert_eq!((phase(&o), epoch(&o)), (VmPhase::Starting, 2));
    assert!(o.instance.as_ref().unwrap().spec.stop.is_none());
}

#[test]
fn a_restart_operation_restarts_once_and_never_shows_stopped() {
    let mut o = running(RunPolicy::AlwaysOnUnlessStoppedManually);
    operation(&mut o, "again", VmopType::Restart, None);
    settle(&mut o);
    assert_eq!(phase(&o), VmPhase::Stopping);
    end(&mut o, ExitCause::PlatformStop);
    settle(&mut o);
    assert_eq!((phase(&o), epoch(&o)), (VmPhase::Stopping, 2));
    settle(&mut o);
    assert_eq!(phase(&o), VmPhase::Starting);
    engine(&mut o, InstanceState::Running);
    settle(&mut o);
    settle(&mut o);
    assert_eq!((phase(&o), epoch(&o)), (VmPhase::Running, 2), "the same operation does not restart it twice");
    assert!(plan(&o).is_empty());
}

// VL-P23
#[test]
fn a_restart_goes_on_when_its_operation_is_deleted() {
    let mut o = running(RunPolicy::Manual);
    let before = epoch(&o);
    operation(&mut o, "again", VmopType::Restart, None);
    settle(&mut o);
    o.operations.clear();
    end(&mut o, ExitCause::PlatformStop);
    settle(&mut o);
    assert_eq!(epoch(&o), before + 1);
}

#[test]
fn a_stop_of_a_vm_that_waits_for_its_disk_calls_the_start_off() {
    let mut o = observed(RunPolicy::AlwaysOnUnlessStoppedManually);
    o.devices[0].ready = false;
    settle(&mut o);
    settle(&mut o);
    operation(&mut o, "stop", VmopType::Stop, None);
    settle(&mut o);
    assert_eq!(epoch(&o), 0);
    end(&mut o, ExitCause::NeverStarted);
    o.devices[0].ready = true;
    o.operations.clear();
    settle(&mut o);
    settle(&mut o);
    assert_eq!((phase(&o), epoch(&o)), (VmPhase::Stopped, 0));
}

#[test]
fn a_wanted_restart_waits_as_pending_and_a_stop_calls_it_off() {
    let mut o = running(RunPolicy::AlwaysOnUnlessStoppedManually);
    o.devices[0].ready = false;
    end(&mut o, ExitCause::Crash);
    settle(&mut o);
    assert_eq!((phase(&o), epoch(&o)), (VmPhase::Pending, 1));
    assert!(plan(&o).is_empty());
    operation(&mut o, "stop", VmopType::Stop, None);
    settle(&mut o);
    settle(&mut o);
    assert_eq!(phase(&o), VmPhase::Stopped);
    o.operations.clear();
    o.devices[0].ready = true;
    settle(&mut o);
    assert_eq!((phase(&o), epoch(&o)), (VmPhase::Stopped, 1));
    assert!(plan(&o).is_empty());
}

#[test]
fn always_off_stops_a_running_vm() {
    let mut o = running(RunPolicy::AlwaysOn);
    edit_vm(&mut o, |vm| vm.spec.run_policy = RunPolicy::AlwaysOff);
    settle(&mut o);
    assert_eq!(o.instance.as_ref().unwrap().spec.stop.as_ref().unwrap().by, "policy");
    end(&mut o, ExitCause::PlatformStop);
    settle(&mut o);
    settle(&mut o);
    assert_eq!((phase(&o), epoch(&o)), (VmPhase::Stopped, 1));
}

pub(super) fn moving(o: &mut Observed, start: i64, end: Option<i64>) {
    edit(o, |instance| {
        let status = instance.status.as_mut().unwrap();
        status.migration = Some(InstanceMigration {
            uid: "m".into(),
            source: Side { node: "n1".into(), ..Side::default() },
            target: Side { node: "n2".into(), ..Side::default() },
            start: Some(Time(at(start))),
            end: end.map(|end| Time(at(end))),
            result: end.map(|_| holdfast_api::engine::MigrationResult::Succeeded),
            ..InstanceMigration::default()
        });
        if end.is_some() {
            status.node = Some("n2".into());
        }
    });
}

#[test]
fn a_move_is_shown_even_if_it_was_over_before_we_looked() {
    let mut o = running(RunPolicy::AlwaysOnUnlessStoppedManually);
    moving(&mut o, 10, Some(11));
    settle(&mut o);
    let node = |o: &Observed| o.vm.status.as_ref().unwrap().node_name.clone();
    assert_eq!((phase(&o), node(&o).as_deref()), (VmPhase::Migrating, Some("n1")));
    settle(&mut o);
    assert_eq!((phase(&o), node(&o).as_deref()), (VmPhase::Running, Some("n2")));
    assert!(plan(&o).is_empty());
    let state = o.vm.status.clone().unwrap().migration_state.unwrap();
    assert_eq!(state.result, Some(holdfast_api::vm::MigrationResult::Succeeded));
}

#[test]
fn a_move_under_way_shows_migrating_until_its_end() {
    let mut o = running(RunPolicy::AlwaysOnUnlessStoppedManually);
    moving(&mut o, 10, None);
    settle(&mut o);
    settle(&mut o);
    assert_eq!(phase(&o), VmPhase::Migrating);
    assert_eq!(condition(&o, "Migrating"), Some(("True", "InProgress")));
    moving(&mut o, 10, Some(12));
    settle(&mut o);
    assert_eq!(phase(&o), VmPhase::Running);
    assert_eq!(condition(&o, "Migrating"), None);
}

#[test]
fn deletion_switches_off_waits_for_the_instance_and_goes() {
    let mut o = running(RunPolicy::AlwaysOn);
    edit_vm(&mut o, |vm| vm.metadata.deletion_timestamp = Some(Time(at(5))));
    settle(&mut o);
    assert_eq!(phase(&o), VmPhase::Terminating);
    let instance = o.instance.clone().unwrap();
    assert_eq!(instance.spec.power, Power::Off);
    assert!(instance.metadata.deletion_timestamp.is_some());
    assert!(plan(&o).is_empty(), "waits");
    o.instance = None;
    settle(&mut o);
    assert!(o.vm.metadata.finalizers.as_ref().is_none_or(Vec::is_empty));
}

#[test]
fn an_instance_of_an_older_vm_of_the_same_name_is_waited_for() {
    let mut o = observed(RunPolicy::AlwaysOn);
    o.foreign_instance = true;
    settle(&mut o);
    settle(&mut o);
    assert_eq!((phase(&o), epoch(&o)), (VmPhase::Pending, -1));
}

#[test]
fn a_change_that_nobody_waits_for_waits_for_more() {
    let old = VirtualMachineStatus { phase: Some(VmPhase::Running), ..VirtualMachineStatus::default() };
    let with = |change: fn(&mut VirtualMachineStatus)| {
        let mut new = old.clone();
        change(&mut new);
        new
    };
    for (waited_for, new) in [
        (true, with(|status| status.phase = Some(VmPhase::Migrating))),
        (true, with(|status| status.node_name = Some("n2".into()))),
        (true, with(|status| status.ip_address = Some("10.0.0.1".into()))),
        (true, with(|status| status.observed_generation = Some(2))),
        (false, with(|status| status.virtual_machine_pods.push(Default::default()))),
    ] {
        assert_eq!(is_waited_for(Some(&old), &new), waited_for, "{new:?}");
    }
    assert!(is_waited_for(None, &old), "the first status");
}

// FR D6 (phase and condition; that the guest starts elsewhere is not shown)
#[test]
fn a_silent_node_is_told_once_and_changes_no_phase() {
    let mut o = running(RunPolicy::AlwaysOnUnlessStoppedManually);
    let before = o.vm.status.clone().unwrap();
    o.silent_node = Some(("n1".into(), at(60)));
    let told = settle(&mut o);
    let events = |plan: &Plan| -> Vec<String> {
        let event = |effect: &Effect| match effect {
            Effect::Event(note) => Some(note.reason.clone()),
            _ => None,
        };
        plan.effects.iter().filter_map(event).collect()
    };
    assert_eq!(events(&told), ["NodeUnresponsive"]);
    let status = o.vm.status.clone().unwrap();
    assert_eq!((status.phase, &status.node_name), (before.phase, &before.node_name));
    let shown = |type_: &str| {
        let condition = holdfast_api::condition::find(&status.conditions, type_).unwrap();
        format!("{}/{}: {}", condition.status, condition.reason, condition.message)
    };
    assert!(
        shown("Running").starts_with("Unknown/NodeUnresponsive: Nothing has been heard of node n1 since")
    );
    assert!(shown("AgentReady").starts_with("Unknown/AgentNotReady"), "{}", shown("AgentReady"));
    assert!(plan(&o).is_empty(), "once");
    o.silent_node = None;
    assert_eq!(events(&settle(&mut o)), Vec::<String>::new());
    assert_eq!(phase(&o), VmPhase::Running);
}
