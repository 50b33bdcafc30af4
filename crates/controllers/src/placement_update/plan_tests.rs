use std::sync::Arc;

use holdfast_api::engine::{Disk, InstanceMigration, InstanceSpec, InstanceStatus};
use holdfast_api::vm::{VirtualMachineSpec, VirtualMachineStatus};
use holdfast_api::vmop::{VirtualMachineOperationStatus, VmopPhase};
use holdfast_api::{Time, VirtualMachine, VirtualMachineOperation};

use super::super::misplaced;
use super::*;
use crate::operations::Machine;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn observed(fits: bool) -> Observed {
    let mut instance = Instance::new("web", InstanceSpec { power: Power::On, ..InstanceSpec::default() });
    instance.metadata.uid = Some("uid-i".into());
    instance.spec.hardware.disks = vec![Disk { shared: true, ..Disk::default() }];
    instance.spec.placement.node_selector = [("zone".to_owned(), "blue".to_owned())].into();
    instance.status = Some(InstanceStatus {
        state: Some(InstanceState::Running),
        node: Some("n1".into()),
        ..InstanceStatus::default()
    });
    let mut vm = VirtualMachine::new("web", VirtualMachineSpec::default());
    vm.metadata.uid = Some("uid-vm".into());
    vm.status = Some(VirtualMachineStatus { phase: Some(VmPhase::Running), ..Default::default() });
    Observed {
        now: at(0),
        machine: Machine { instance: Arc::new(instance), vm: Some(Arc::new(vm)), operations: Vec::new() },
        fits: Some(fits),
        fits_elsewhere: true,
    }
}

fn created(plan: &Plan) -> Option<VirtualMachineOperation> {
    plan.effects.iter().find_map(|effect| match effect {
        Effect::Create(create) => serde_json::from_value(create.object.value.clone()).ok(),
        Effect::Patch(_) | Effect::Delete { .. } | Effect::Evict(_) | Effect::Event(_) => None,
    })
}

fn name(operation: &VirtualMachineOperation) -> String {
    operation.metadata.name.clone().unwrap()
}

/// Does what the plan says; created operations are there, Pending.
fn settle(o: &mut Observed) -> Plan {
    let plan = plan(o);
    for effect in &plan.effects {
        match effect {
            Effect::Patch(patch) => {
                let all = Arc::make_mut(&mut o.machine.instance).metadata.annotations.get_or_insert_default();
                for (key, value) in patch.body["metadata"]["annotations"].as_object().unwrap() {
                    match value.as_str() {
                        Some(value) => all.insert(key.clone(), value.to_owned()),
                        None => all.remove(key),
                    };
                }
            }
            Effect::Create(_) => {
                let object = Arc::new(created(&plan).unwrap());
                o.machine.operations.push(Operation { object, copying: false, queued: false });
            }
            Effect::Delete { target, .. } => {
                o.machine.operations.retain(|op| name(&op.object) != target.name);
            }
            Effect::Evict(_) | Effect::Event(_) => {}
        }
    }
    plan
}

fn finish(o: &mut Observed, phase: VmopPhase) {
    for operation in &mut o.machine.operations {
        let status = VirtualMachineOperationStatus { phase, ..Default::default() };
        Arc::make_mut(&mut operation.object).status = Some(status);
    }
}

// MM C1, VL C10 (what is decided)
#[test]
fn a_node_that_fits_causes_nothing() {
    assert!(plan(&observed(true)).is_empty());
}

#[test]
fn a_node_that_does_not_fit_causes_one_operation_per_placement() {
    let mut o = observed(false);
    let first = created(&settle(&mut o)).unwrap();
    assert!(name(&first).starts_with("nodeplacement-update-"), "{first:?}");
    assert_eq!(first.spec.force, None);
    assert_eq!(misplaced(&o.machine.instance), Some("n1"));
    assert!(plan(&o).is_empty(), "it is under way");
    finish(&mut o, VmopPhase::Failed);
    assert!(plan(&o).is_empty(), "it was tried");
    let wanted = &mut Arc::make_mut(&mut o.machine.instance).spec.placement.node_selector;
    wanted.insert("zone".into(), "red".into());
    assert_ne!(name(&created(&plan(&o)).unwrap()), name(&first));
}

#[test]
fn a_placement_that_failed_is_tried_again_when_a_node_fits() {
    let mut o = observed(false);
    o.fits_elsewhere = false;
    let first = created(&settle(&mut o)).unwrap();
    finish(&mut o, VmopPhase::Failed);
    o.now = at(AGAIN_S + 5);
    assert!(plan(&o).is_empty(), "no node fits");
    o.fits_elsewhere = true;
    o.now = at(AGAIN_S - 1);
    assert_eq!(plan(&o).wake, Some(at(AGAIN_S)), "at most every ten minutes");
    o.now = at(AGAIN_S);
    let again = created(&settle(&mut o)).unwrap();
    assert_ne!(name(&again), name(&first));
    assert!(plan(&o).is_empty());
}

// MM-C7
#[test]
fn a_change_that_is_taken_back_calls_the_operation_off() {
    let mut o = observed(false);
    settle(&mut o);
    o.fits = Some(true);
    settle(&mut o);
    assert!(o.machine.operations.is_empty(), "deleted while it was queued");
    assert_eq!(misplaced(&o.machine.instance), None);
    assert!(plan(&o).is_empty());
    o.fits = Some(false);
    assert!(created(&settle(&mut o)).is_some(), "and again");
    o.machine.operations[0].copying = true;
    o.fits = Some(true);
    settle(&mut o);
    assert_eq!(o.machine.operations.len(), 1, "a transfer finishes");
}

#[test]
fn what_makes_it_wait() {
    let mut busy = observed(false);
    let spec = created(&plan(&busy)).unwrap().spec;
    let other = Arc::new(VirtualMachineOperation::new("mine", spec));
    busy.machine.operations.push(Operation { object: other, copying: false, queued: false });
    assert!(created(&plan(&busy)).is_none());
    let mut moved = observed(false);
    let end = Some(Time(at(-10)));
    let status = Arc::make_mut(&mut moved.machine.instance).status.as_mut().unwrap();
    status.migration = Some(InstanceMigration { end, ..InstanceMigration::default() });
    let waiting = plan(&moved);
    assert!(waiting.is_empty());
    assert_eq!(waiting.wake, Some(at(50)));
}

#[test]
fn a_vm_that_cannot_be_moved_is_told_once() {
    let mut o = observed(false);
    Arc::make_mut(&mut o.machine.instance).spec.hardware.disks[0].shared = false;
    let told = settle(&mut o);
    assert!(created(&told).is_none());
    assert!(matches!(told.effects.as_slice(), [Effect::Event(_), Effect::Patch(_)]), "{told:?}");
    assert_eq!(misplaced(&o.machine.instance), Some("n1"));
    assert!(plan(&o).is_empty());
}
