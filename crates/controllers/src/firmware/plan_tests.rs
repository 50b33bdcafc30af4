use std::sync::Arc;

use holdfast_api::engine::{Disk, InstanceFirmware, InstanceSpec, InstanceStatus, PodRef};
use holdfast_api::vm::{VirtualMachineSpec, VirtualMachineStatus};
use holdfast_api::vmop::{VirtualMachineOperationStatus, VmopPhase};
use holdfast_api::{VirtualMachine, VirtualMachineOperation};
use holdfast_reconcile::Effect;

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn machine(name: &str, image: &str) -> Machine {
    let mut instance = Instance::new(name, InstanceSpec { power: Power::On, ..InstanceSpec::default() });
    instance.metadata.uid = Some(format!("uid-{name}"));
    instance.spec.hardware.disks = vec![Disk { shared: true, ..Disk::default() }];
    instance.status = Some(InstanceStatus {
        state: Some(InstanceState::Running),
        active_pod: Some(PodRef { name: "p".into(), uid: "pod".into() }),
        firmware: Some(InstanceFirmware { pod_uid: "pod".into(), image: image.into() }),
        ..InstanceStatus::default()
    });
    let mut vm = VirtualMachine::new(name, VirtualMachineSpec::default());
    vm.metadata.uid = Some(format!("uid-vm-{name}"));
    vm.status = Some(VirtualMachineStatus { phase: Some(VmPhase::Running), ..Default::default() });
    Machine { instance: Arc::new(instance), vm: Some(Arc::new(vm)), operations: Vec::new() }
}

fn observed(machines: Vec<Machine>) -> Observed {
    Observed { now: at(0), image: "l:2".into(), enabled: true, limit: 3, machines }
}

/// Does what the plan says, as far as these tests look at it. Returns the VMs that got an operation.
fn settle(o: &mut Observed) -> Vec<String> {
    let plan = plan(o);
    let mut created = Vec::new();
    for effect in &plan.effects {
        match effect {
            Effect::Create(create) => {
                let object: VirtualMachineOperation =
                    serde_json::from_value(create.object.value.clone()).unwrap();
                let name = object.spec.virtual_machine_name.clone();
                assert!(object.metadata.name.as_ref().unwrap().starts_with("firmware-update-"));
                of(o, &name).operations.push(Operation {
                    object: Arc::new(object),
                    copying: false,
                    queued: false,
                });
                created.push(name);
            }
            Effect::Patch(patch) => {
                let note = patch.body["metadata"]["annotations"][TRIED].as_str().unwrap().to_owned();
                let instance = Arc::make_mut(&mut of(o, &patch.target.name).instance);
                instance.metadata.annotations.get_or_insert_default().insert(TRIED.into(), note);
            }
            Effect::Delete { target, .. } => {
                for machine in &mut o.machines {
                    machine.operations.retain(|op| op.object.metadata.name.as_ref() != Some(&target.name));
                }
            }
            Effect::Evict(_) | Effect::Event(_) => {}
        }
    }
    created
}

fn of<'o>(o: &'o mut Observed, name: &str) -> &'o mut Machine {
    let is = |m: &&mut Machine| m.instance.metadata.name.as_deref() == Some(name);
    o.machines.iter_mut().find(is).unwrap()
}

fn finish(o: &mut Observed, name: &str, phase: VmopPhase) {
    for op in &mut of(o, name).operations {
        let status = VirtualMachineOperationStatus { phase, ..Default::default() };
        Arc::make_mut(&mut op.object).status = Some(status);
    }
}

fn moved(o: &mut Observed, name: &str, image: &str) {
    let instance = Arc::make_mut(&mut of(o, name).instance);
    let firmware = InstanceFirmware { pod_uid: "pod-2".into(), image: image.into() };
    let status = instance.status.as_mut().unwrap();
    status.active_pod = Some(PodRef { name: "q".into(), uid: "pod-2".into() });
    status.firmware = Some(firmware);
}

#[test]
fn outdated_vms_are_updated_a_few_at_a_time() {
    let names: Vec<String> = (0..9).map(|n| format!("vm-{n}")).collect();
    let mut o = observed(names.iter().map(|name| machine(name, "l:1")).collect());
    let first = settle(&mut o);
    assert_eq!(first.len(), 6, "twice the limit of three");
    assert_eq!(settle(&mut o), [""; 0], "the plan is settled");
    moved(&mut o, &first[0], "l:2");
    finish(&mut o, &first[0], VmopPhase::Completed);
    assert_eq!(settle(&mut o).len(), 1, "one has finished, the next one follows");
}

// MM W2
#[test]
fn what_cannot_or_need_not_move_is_left_alone() {
    let mut pinned = machine("pinned", "l:1");
    Arc::make_mut(&mut pinned.instance).spec.hardware.disks[0].shared = false;
    let mut stopped = machine("stopped", "l:1");
    Arc::make_mut(&mut stopped.instance).status.as_mut().unwrap().state = Some(InstanceState::Stopping);
    let mut migrating = machine("migrating", "l:1");
    Arc::make_mut(migrating.vm.as_mut().unwrap()).status.as_mut().unwrap().phase = Some(VmPhase::Migrating);
    let mut unknown = machine("unknown", "l:1");
    Arc::make_mut(&mut unknown.instance).status.as_mut().unwrap().firmware = None;
    let current = machine("current", "l:2");
    let mut o = observed(vec![pinned, stopped, migrating, unknown, current]);
    assert_eq!(settle(&mut o), [""; 0]);
}

// MM W4
#[test]
fn a_failed_update_is_tried_again_each_hour_and_five_times_in_all() {
    let mut o = observed(vec![machine("web", "l:1")]);
    for hour in 0..6 {
        o.now = at(hour * 3600);
        assert_eq!(settle(&mut o), ["web"], "hour {hour}");
        finish(&mut o, "web", VmopPhase::Failed);
        o.now = at(hour * 3600 + 3599);
        assert_eq!(settle(&mut o), [""; 0]);
    }
    o.now = at(1_000_000);
    assert_eq!(settle(&mut o), [""; 0], "a user or the next image");
    o.image = "l:3".into();
    assert_eq!(settle(&mut o), ["web"]);
}

// MM W3, W5
#[test]
fn queued_updates_are_called_off_when_they_are_not_needed_any_more() {
    let mut o = observed(vec![machine("one", "l:1"), machine("two", "l:1")]);
    assert_eq!(settle(&mut o).len(), 2);
    moved(&mut o, "one", "l:2");
    settle(&mut o);
    assert!(of(&mut o, "one").operations.is_empty(), "an evacuation has updated it");
    assert_eq!(of(&mut o, "two").operations.len(), 1);
    of(&mut o, "two").operations[0].copying = true;
    o.enabled = false;
    settle(&mut o);
    assert_eq!(of(&mut o, "two").operations.len(), 1, "a move that copies finishes");
    of(&mut o, "two").operations[0].copying = false;
    settle(&mut o);
    assert!(of(&mut o, "two").operations.is_empty());
}
