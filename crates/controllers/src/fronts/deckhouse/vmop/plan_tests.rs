use std::sync::Arc;

use holdfast_api::engine::{
    Exit, ExitCause, Instance, InstanceSpec, InstanceState, Migration, MigrationState,
};
use holdfast_api::vm::{RunPolicy, VirtualMachineSpec, VirtualMachineStatus};
use holdfast_api::vmop::VirtualMachineOperationSpec;
use holdfast_api::{Time, VirtualMachine, VirtualMachineOperation};

use super::*;
use crate::fronts::deckhouse::vm::STARTED_BY;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn observed(type_: VmopType, policy: RunPolicy, phase: VmPhase) -> Observed {
    let spec =
        VirtualMachineOperationSpec { type_, virtual_machine_name: "web".into(), force: None, migrate: None };
    let mut operation = VirtualMachineOperation::new("op", spec);
    operation.metadata.namespace = Some("shop".into());
    operation.metadata.uid = Some("uid-op".into());
    operation.metadata.creation_timestamp = Some(Time(at(0)));
    operation.metadata.generation = Some(1);
    let mut vm = VirtualMachine::new("web", VirtualMachineSpec { run_policy: policy, ..Default::default() });
    vm.metadata.uid = Some("uid-vm".into());
    let mut conditions = Conditions::carry(&[], Some(1), at(0));
    conditions.is(holdfast_api::vm::conditions::Migratable::Migratable, "");
    vm.status = Some(VirtualMachineStatus {
        phase: Some(phase),
        conditions: conditions.finish(),
        ..VirtualMachineStatus::default()
    });
    let mut instance = Instance::new("web", InstanceSpec { epoch: 1, ..InstanceSpec::default() });
    instance.metadata.uid = Some("uid-instance".into());
    Observed {
        now: at(0),
        operation: Arc::new(operation),
        vm: Some(Arc::new(vm)),
        instance: Some(Arc::new(instance)),
        migration: None,
        other_migration: None,
        older: None,
        overtakes: Vec::new(),
        overtook: false,
        newer_finished: 0,
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

fn settle(o: &mut Observed) -> Plan {
    let plan = plan(o);
    let mut operation = serde_json::to_value(&*o.operation).unwrap();
    if let Some(status) = &plan.status {
        merge(&mut operation, &status.body);
    }
    for effect in &plan.effects {
        match effect {
            Effect::Patch(patch) => merge(&mut operation, &patch.body),
            Effect::Create(create) => {
                o.migration = Some(Arc::new(serde_json::from_value(create.object.value.clone()).unwrap()));
            }
            Effect::Delete { .. } | Effect::Evict(_) | Effect::Event(_) => {}
        }
    }
    o.operation = Arc::new(serde_json::from_value(operation).unwrap());
    plan
}

fn result(o: &Observed) -> (VmopPhase, String) {
    let status = o.operation.status.clone().unwrap();
    let completed = holdfast_api::condition::find(&status.conditions, "Completed").unwrap();
    (status.phase, format!("{}/{}", completed.status, completed.reason))
}

fn set_phase(o: &mut Observed, phase: VmPhase) {
    let mut vm = (**o.vm.as_ref().unwrap()).clone();
    vm.status.as_mut().unwrap().phase = Some(phase);
    o.vm = Some(Arc::new(vm));
}

fn set_instance(o: &mut Observed, by: &str, state: InstanceState) {
    let mut instance = (**o.instance.as_ref().unwrap()).clone();
    instance.metadata.annotations = Some([(STARTED_BY.to_owned(), by.to_owned())].into());
    let epoch = instance.spec.epoch;
    let status = instance.status.get_or_insert_default();
    status.observed_epoch = epoch;
    status.state = Some(state);
    status.exit = Some(Exit { cause: ExitCause::StartFailed, detail: "no disk".into(), ..Exit::default() });
    o.instance = Some(Arc::new(instance));
}

fn set_migration(o: &mut Observed, state: MigrationState, change: impl FnOnce(&mut Migration)) {
    let mut migration = (**o.migration.as_ref().unwrap()).clone();
    migration.status.get_or_insert_default().state = Some(state);
    change(&mut migration);
    o.migration = Some(Arc::new(migration));
}

// VL-P4, VL-P5, VL-P6, VL-P12, VL-P13, VL-P14, MM-O4, MM-O5, MM-O6
#[test]
fn refusals_end_it_as_failed_and_nothing_happens() {
    type Break = fn(&mut Observed);
    let nothing: Break = |_| ();
    use RunPolicy::{AlwaysOff, AlwaysOn, AlwaysOnUnlessStoppedManually as Default_, Manual};
    for (type_, policy, phase, broken, reason) in [
        (VmopType::Start, AlwaysOn, VmPhase::Stopped, nothing, "NotApplicableForVirtualMachineRunPolicy"),
        (VmopType::Stop, AlwaysOff, VmPhase::Running, nothing, "NotApplicableForVirtualMachineRunPolicy"),
        (VmopType::Stop, AlwaysOn, VmPhase::Running, nothing, "NotApplicableForVirtualMachineRunPolicy"),
        (VmopType::Start, AlwaysOff, VmPhase::Stopped, nothing, "NotApplicableForVirtualMachineRunPolicy"),
        (VmopType::Restart, AlwaysOff, VmPhase::Running, nothing, "NotApplicableForVirtualMachineRunPolicy"),
        (VmopType::Evict, AlwaysOff, VmPhase::Running, nothing, "NotApplicableForVirtualMachineRunPolicy"),
        (VmopType::Restart, Default_, VmPhase::Stopped, nothing, "NotApplicableForVirtualMachinePhase"),
        (VmopType::Evict, Default_, VmPhase::Stopped, nothing, "NotApplicableForVirtualMachinePhase"),
        (VmopType::Start, Manual, VmPhase::Running, nothing, "NotApplicableForVirtualMachinePhase"),
        (VmopType::Stop, Manual, VmPhase::Stopped, nothing, "NotApplicableForVirtualMachinePhase"),
        (VmopType::Evict, Default_, VmPhase::Starting, nothing, "NotApplicableForVirtualMachinePhase"),
        (VmopType::Stop, Default_, VmPhase::Running, (|o| o.vm = None) as Break, "VirtualMachineNotFound"),
        (
            VmopType::Stop,
            Default_,
            VmPhase::Running,
            (|o| o.older = Some("x".into())) as Break,
            "NotReadyToBeExecuted",
        ),
        (
            VmopType::Evict,
            Default_,
            VmPhase::Running,
            (|o| o.other_migration = Some("x".into())) as Break,
            "OtherMigrationInProgress",
        ),
        (VmopType::Evict, Default_, VmPhase::Running, (|o| o.instance = None) as Break, "OperationFailed"),
    ] {
        let mut o = observed(type_, policy, phase);
        broken(&mut o);
        settle(&mut o);
        settle(&mut o);
        assert_eq!(result(&o), (VmopPhase::Failed, format!("False/{reason}")), "{type_} {policy} {phase}");
        assert!(o.migration.is_none());
        settle(&mut o);
        let rest = plan(&o);
        assert!(rest.is_empty(), "{rest:?}");
    }
}

#[test]
fn a_stop_is_done_when_the_vm_is_stopped() {
    let mut o = observed(VmopType::Stop, RunPolicy::Manual, VmPhase::Running);
    settle(&mut o);
    assert_eq!(o.operation.status.as_ref().unwrap().phase, VmopPhase::Pending);
    settle(&mut o);
    assert_eq!(result(&o), (VmopPhase::InProgress, "False/StopInProgress".into()));
    settle(&mut o);
    assert!(
        o.operation.metadata.finalizers.as_ref().is_some_and(|all| all.len() == 1),
        "only while in progress"
    );
    set_phase(&mut o, VmPhase::Stopped);
    settle(&mut o);
    assert_eq!(result(&o), (VmopPhase::Completed, "True/OperationCompleted".into()));
    settle(&mut o);
    assert!(o.operation.metadata.finalizers.as_ref().is_none_or(Vec::is_empty));
    assert_eq!(o.operation.metadata.labels.as_ref().unwrap()[label::VM_UID], "uid-vm");
    assert!(plan(&o).is_empty());
}

#[test]
fn a_restart_is_done_when_the_epoch_it_began_runs() {
    let mut o = observed(VmopType::Restart, RunPolicy::AlwaysOn, VmPhase::Running);
    set_instance(&mut o, "policy", InstanceState::Running);
    for _ in 0..4 {
        settle(&mut o);
    }
    assert_eq!(result(&o), (VmopPhase::InProgress, "False/RestartInProgress".into()), "the old epoch runs");
    set_instance(&mut o, "vmop/op/uid-op", InstanceState::Running);
    settle(&mut o);
    assert_eq!(result(&o), (VmopPhase::Completed, "True/OperationCompleted".into()));
}

#[test]
fn a_start_is_done_when_the_vm_runs_whoever_started_it() {
    let mut o = observed(VmopType::Start, RunPolicy::Manual, VmPhase::Stopped);
    settle(&mut o);
    settle(&mut o);
    set_phase(&mut o, VmPhase::Running);
    set_instance(&mut o, "policy", InstanceState::Running);
    settle(&mut o);
    assert_eq!(result(&o), (VmopPhase::Completed, "True/OperationCompleted".into()));
}

#[test]
fn a_start_whose_vm_gives_up_fails_with_the_reason() {
    let mut o = observed(VmopType::Start, RunPolicy::Manual, VmPhase::Stopped);
    settle(&mut o);
    settle(&mut o);
    set_instance(&mut o, "vmop/op/uid-op", InstanceState::Ended);
    settle(&mut o);
    assert_eq!(result(&o), (VmopPhase::Failed, "False/OperationFailed".into()));
}

#[test]
fn an_eviction_follows_its_migration_stage_by_stage() {
    let mut o = observed(VmopType::Evict, RunPolicy::Manual, VmPhase::Running);
    settle(&mut o);
    settle(&mut o);
    let migration = o.migration.clone().unwrap();
    assert_eq!(migration.metadata.name.as_deref(), Some("vmop-op"));
    assert_eq!(
        (migration.spec.reason, migration.spec.class),
        (holdfast_api::engine::MigrationReason::User, 2)
    );
    settle(&mut o);
    assert_eq!(result(&o), (VmopPhase::Pending, "False/MigrationPending".into()));
    assert!(signal_sent(&o));
    for (state, want) in [
        (MigrationState::Placing, "False/TargetScheduling"),
        (MigrationState::Preparing, "False/TargetPreparing"),
        (MigrationState::Copying, "False/Syncing"),
        (MigrationState::Switching, "False/SourceSuspended"),
    ] {
        set_migration(&mut o, state, |_| ());
        settle(&mut o);
        assert_eq!(result(&o), (VmopPhase::InProgress, want.to_owned()));
        assert!(plan(&o).is_empty(), "{state:?}");
    }
    set_migration(&mut o, MigrationState::Queued, |_| ());
    settle(&mut o);
    assert_eq!(result(&o).0, VmopPhase::InProgress, "a phase never goes back");
    set_migration(&mut o, MigrationState::Done, |_| ());
    settle(&mut o);
    assert_eq!(result(&o), (VmopPhase::Completed, "True/Completed".into()));
    assert_eq!(o.operation.status.as_ref().unwrap().progress.as_deref(), Some("100%"));
}

// INV-7
#[test]
fn a_finished_operation_never_changes() {
    let mut o = observed(VmopType::Stop, RunPolicy::Manual, VmPhase::Stopped);
    settle(&mut o);
    settle(&mut o);
    settle(&mut o);
    let finished = o.operation.status.clone();
    assert_eq!(finished.as_ref().unwrap().phase, VmopPhase::Failed);
    for phase in VmPhase::ALL {
        set_phase(&mut o, *phase);
        settle(&mut o);
        assert_eq!(o.operation.status, finished);
    }
}

#[test]
fn deleting_a_migration_operation_calls_the_migration_off_and_waits() {
    let mut o = observed(VmopType::Evict, RunPolicy::Manual, VmPhase::Running);
    for _ in 0..3 {
        settle(&mut o);
    }
    set_migration(&mut o, MigrationState::Copying, |_| ());
    settle(&mut o);
    let mut operation = (*o.operation).clone();
    operation.metadata.deletion_timestamp = Some(Time(at(9)));
    o.operation = Arc::new(operation);
    let first = settle(&mut o);
    assert!(matches!(first.effects.as_slice(), [Effect::Delete { .. }]), "{first:?}");
    assert_eq!(o.operation.status.as_ref().unwrap().phase, VmopPhase::Terminating);
    set_migration(&mut o, MigrationState::Copying, |m| m.metadata.deletion_timestamp = Some(Time(at(9))));
    assert!(plan(&o).is_empty(), "waits for the abort to be settled");
    set_migration(&mut o, MigrationState::Aborted, |_| ());
    settle(&mut o);
    assert!(o.operation.metadata.finalizers.as_ref().is_none_or(Vec::is_empty));
}

fn annotate(o: &mut Observed, key: &str, value: &str) {
    let mut operation = (*o.operation).clone();
    operation.metadata.annotations.get_or_insert_default().insert(key.to_owned(), value.to_owned());
    o.operation = Arc::new(operation);
}

#[test]
fn an_overtaken_eviction_is_called_off_and_ends_superseded() {
    let mut o = observed(VmopType::Evict, RunPolicy::Manual, VmPhase::Running);
    for _ in 0..3 {
        settle(&mut o);
    }
    set_migration(&mut o, MigrationState::Copying, |_| ());
    settle(&mut o);
    annotate(&mut o, SUPERSEDED_BY, "vmop/stop/uid-stop");
    let first = settle(&mut o);
    assert!(matches!(first.effects.as_slice(), [Effect::Delete { .. }]), "{first:?}");
    set_migration(&mut o, MigrationState::Copying, |m| m.metadata.deletion_timestamp = Some(Time(at(9))));
    assert!(plan(&o).is_empty(), "waits for the abort to be settled");
    set_migration(&mut o, MigrationState::Aborted, |_| ());
    settle(&mut o);
    assert_eq!(result(&o), (VmopPhase::Superseded, "True/Superseded".into()));
    settle(&mut o);
    assert!(o.operation.metadata.finalizers.as_ref().is_none_or(Vec::is_empty));
}

#[test]
fn an_overtaken_eviction_that_is_through_is_completed() {
    let mut o = observed(VmopType::Evict, RunPolicy::Manual, VmPhase::Running);
    for _ in 0..3 {
        settle(&mut o);
    }
    annotate(&mut o, SUPERSEDED_BY, "vmop/stop/uid-stop");
    set_migration(&mut o, MigrationState::Done, |_| ());
    settle(&mut o);
    assert_eq!(result(&o), (VmopPhase::Completed, "True/Completed".into()));
}

#[test]
fn a_stop_waits_for_the_eviction_that_it_overtakes() {
    let eviction = observed(VmopType::Evict, RunPolicy::Manual, VmPhase::Running).operation;
    let mut o = observed(VmopType::Stop, RunPolicy::Manual, VmPhase::Migrating);
    let mut named = (*o.operation).clone();
    named.metadata.name = Some("stop".into());
    named.metadata.uid = Some("uid-stop".into());
    o.operation = Arc::new(named);
    settle(&mut o);
    o.overtakes = vec![eviction.clone()];
    let told = plan(&o);
    let patch = told.effects.iter().find_map(|effect| match effect {
        Effect::Patch(patch) if patch.target.name == "op" => Some(patch.body.clone()),
        Effect::Patch(_)
        | Effect::Create(_)
        | Effect::Delete { .. }
        | Effect::Evict(_)
        | Effect::Event(_) => None,
    });
    assert_eq!(patch.unwrap()["metadata"]["annotations"][SUPERSEDED_BY], "vmop/stop/uid-stop");
    let mut overtaken = (*eviction).clone();
    overtaken.metadata.annotations =
        Some([(SUPERSEDED_BY.to_owned(), "vmop/stop/uid-stop".to_owned())].into());
    o.overtakes = vec![Arc::new(overtaken)];
    o.overtook = true;
    settle(&mut o);
    assert_eq!(result(&o), (VmopPhase::Pending, "Unknown/Unknown".into()));
    assert!(plan(&o).is_empty());
    o.overtakes.clear();
    settle(&mut o);
    assert_eq!(o.operation.status.as_ref().unwrap().phase, VmopPhase::Pending, "the VM still shows the move");
    // Its node was lost in the move: the user's wish is not lost with it.
    set_phase(&mut o, VmPhase::Stopping);
    settle(&mut o);
    assert_eq!(o.operation.status.as_ref().unwrap().phase, VmopPhase::Pending, "the VM ends with its node");
    let mut stopped = o.clone();
    set_phase(&mut stopped, VmPhase::Stopped);
    settle(&mut stopped);
    assert_eq!(result(&stopped), (VmopPhase::Completed, "True/OperationCompleted".into()));
    for phase in [VmPhase::Starting, VmPhase::Running] {
        let mut o = o.clone();
        set_phase(&mut o, phase);
        settle(&mut o);
        assert_eq!(result(&o), (VmopPhase::InProgress, "False/StopInProgress".into()), "{phase}");
    }
}

#[test]
fn a_stop_that_is_refused_overtakes_nothing() {
    let eviction = observed(VmopType::Evict, RunPolicy::AlwaysOn, VmPhase::Running).operation;
    let mut o = observed(VmopType::Stop, RunPolicy::AlwaysOn, VmPhase::Migrating);
    o.overtakes = vec![eviction];
    settle(&mut o);
    let refused = settle(&mut o);
    assert_eq!(result(&o), (VmopPhase::Failed, "False/NotApplicableForVirtualMachineRunPolicy".into()));
    let foreign =
        |effect: &Effect| matches!(effect, Effect::Patch(p) if p.body["metadata"]["annotations"].is_object());
    assert!(!refused.effects.iter().any(foreign), "{refused:?}");
}

// MM-O14
#[test]
fn finished_operations_go_after_a_day_or_when_ten_newer_are_finished() {
    let mut o = observed(VmopType::Stop, RunPolicy::Manual, VmPhase::Stopped);
    settle(&mut o);
    settle(&mut o);
    settle(&mut o);
    let rest = plan(&o);
    assert_eq!((rest.effects.len(), rest.wake), (0, Some(at(KEPT_S))));
    o.newer_finished = 10;
    assert!(matches!(plan(&o).effects.as_slice(), [Effect::Delete { .. }]));
    o.newer_finished = 9;
    o.now = at(KEPT_S);
    assert!(matches!(plan(&o).effects.as_slice(), [Effect::Delete { .. }]));
}
