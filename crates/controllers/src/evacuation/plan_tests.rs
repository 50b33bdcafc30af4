use std::sync::Arc;

use holdfast_api::engine::{Disk, InstanceSpec};
use holdfast_api::vm::{VirtualMachineSpec, VirtualMachineStatus};
use holdfast_api::vmop::{VirtualMachineOperationStatus, VmopType};
use holdfast_api::{VirtualMachine, VirtualMachineOperation};
use holdfast_env::Timestamp;
use holdfast_reconcile::Conditions;

use super::super::NodeSeen;
use super::*;
use crate::operations::Machine;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn seen(closed: bool, version: i64) -> Option<NodeSeen> {
    Some(NodeSeen { closed, version: Some(version) })
}

/// A VM that a drain has marked, as an earlier release did: the mark does not say to which cordon it belongs.
fn observed() -> Observed {
    let mut instance = Instance::new("web", InstanceSpec { epoch: 1, ..InstanceSpec::default() });
    instance.metadata.namespace = Some("shop".into());
    instance.metadata.uid = Some("uid-i".into());
    instance.metadata.resource_version = Some("1".into());
    instance.spec.hardware.disks = vec![Disk { shared: true, ..Disk::default() }];
    instance.status = Some(InstanceStatus {
        state: Some(InstanceState::Running),
        observed_epoch: 1,
        node: Some("n1".into()),
        evacuation_node_name: Some("n1".into()),
        evacuation_source: Some(eviction::SOURCE_EVICTION.into()),
        ..InstanceStatus::default()
    });
    let mut vm = VirtualMachine::new("web", VirtualMachineSpec::default());
    vm.metadata.namespace = Some("shop".into());
    vm.metadata.uid = Some("uid-vm".into());
    vm.status =
        Some(VirtualMachineStatus { phase: Some(VmPhase::Running), ..VirtualMachineStatus::default() });
    Observed {
        now: at(0),
        machine: Machine { instance: Arc::new(instance), vm: Some(Arc::new(vm)), operations: Vec::new() },
        node: seen(true, 10),
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
    let mut instance = serde_json::to_value(&*o.machine.instance).unwrap();
    if let Some(status) = &plan.status {
        merge(&mut instance, &status.body);
    }
    for effect in &plan.effects {
        match effect {
            Effect::Create(create) => {
                let object: VirtualMachineOperation =
                    serde_json::from_value(create.object.value.clone()).unwrap();
                assert!(
                    o.machine.operations.iter().all(|op| op.object.metadata.name != object.metadata.name)
                );
                o.machine.operations.push(Operation {
                    object: Arc::new(object),
                    copying: false,
                    queued: false,
                });
            }
            Effect::Patch(patch) if patch.target.api.kind == "Instance" => merge(&mut instance, &patch.body),
            Effect::Patch(patch) => {
                for operation in &mut o.machine.operations {
                    if operation.object.metadata.name.as_deref() == Some(&patch.target.name) {
                        let mut json = serde_json::to_value(&*operation.object).unwrap();
                        merge(&mut json, &patch.body);
                        operation.object = Arc::new(serde_json::from_value(json).unwrap());
                    }
                }
            }
            Effect::Delete { target, .. } => {
                for operation in &mut o.machine.operations {
                    if operation.object.metadata.name.as_deref() == Some(&target.name) {
                        Arc::make_mut(&mut operation.object).metadata.deletion_timestamp = Some(Time(o.now));
                    }
                }
            }
            Effect::Evict(_) | Effect::Event(_) => {}
        }
    }
    o.machine.instance = Arc::new(serde_json::from_value(instance).unwrap());
    plan
}

fn finish(o: &mut Observed, completed: Completed, phase: VmopPhase) {
    let now = o.now;
    let operation = o.machine.operations.last_mut().unwrap();
    let mut conditions = Conditions::carry(&[], None, now);
    conditions.is(completed, "");
    Arc::make_mut(&mut operation.object).status =
        Some(VirtualMachineOperationStatus { phase, conditions: conditions.finish(), ..Default::default() });
}

fn mark(o: &Observed) -> Option<String> {
    o.machine.instance.status.as_ref().unwrap().evacuation_node_name.clone()
}

#[test]
fn a_marked_vm_gets_one_evacuation() {
    let mut o = observed();
    settle(&mut o);
    assert_eq!(o.machine.operations.len(), 1);
    let operation = o.machine.operations[0].object.clone();
    assert!(operation.metadata.name.as_ref().unwrap().starts_with("evacuation-"));
    assert_eq!(operation.spec.type_, VmopType::Evict);
    assert_eq!(
        operation.metadata.annotations.as_ref().unwrap()["virtualization.deckhouse.io/evacuation"],
        "true"
    );
    assert_eq!(operation.metadata.finalizers.as_ref().unwrap().len(), 2);
    assert!(plan(&o).is_empty(), "one at a time");
}

#[test]
fn failures_are_counted_once_and_delay_the_next_attempt() {
    let mut o = observed();
    settle(&mut o);
    for (n, delay) in [(1, 2), (2, 4), (3, 8), (4, 16)] {
        finish(&mut o, Completed::TargetUnschedulable, VmopPhase::Failed);
        settle(&mut o);
        let failures = o.machine.instance.status.as_ref().unwrap().evacuation_failures.clone().unwrap();
        assert_eq!(failures.count, n);
        let waiting = settle(&mut o);
        assert_eq!(waiting.wake, Some(backoff::after(o.now, delay)), "after failure {n}");
        assert_eq!(o.machine.operations.len(), usize::try_from(n).unwrap());
        assert!(plan(&o).is_empty());
        o.now = waiting.wake.unwrap();
        settle(&mut o);
        assert_eq!(o.machine.operations.len(), usize::try_from(n).unwrap() + 1, "a new attempt, a new name");
    }
}

#[test]
fn success_forgets_the_failures() {
    let mut o = observed();
    settle(&mut o);
    finish(&mut o, Completed::Failed, VmopPhase::Failed);
    settle(&mut o);
    o.now = at(100);
    settle(&mut o);
    finish(&mut o, Completed::Completed, VmopPhase::Completed);
    let mut instance = (*o.machine.instance).clone();
    let status = instance.status.as_mut().unwrap();
    status.node = Some("n2".into());
    status.evacuation_node_name = None;
    o.machine.instance = Arc::new(instance);
    settle(&mut o);
    assert_eq!(o.machine.instance.status.as_ref().unwrap().evacuation_failures, None);
    settle(&mut o);
    assert!(plan(&o).is_empty());
    assert!(o.machine.operations.iter().all(|op| !is_held(op)));
}

// INV-6
#[test]
fn uncordon_takes_the_mark_back_and_calls_off_what_does_not_copy_yet() {
    for copying in [false, true] {
        let mut o = observed();
        settle(&mut o);
        o.machine.operations[0].copying = copying;
        o.node = seen(false, 11);
        settle(&mut o);
        assert_eq!(mark(&o), None);
        assert_eq!(o.machine.operations[0].object.metadata.deletion_timestamp.is_some(), !copying);
        settle(&mut o);
        assert!(plan(&o).is_empty());
    }
}

#[test]
fn an_eviction_on_a_node_that_was_never_cordoned_stays() {
    let mut o = observed();
    o.node = seen(false, 11);
    settle(&mut o);
    assert_eq!((mark(&o).as_deref(), o.machine.operations.len()), (Some("n1"), 1));
    assert!(plan(&o).is_empty());
}

// INV-6
#[test]
fn a_mark_that_names_its_cordon_holds_until_a_later_version_of_the_node_is_open() {
    let (e, r) = (eviction::SOURCE_EVICTION, eviction::SOURCE_REBALANCE);
    // The mark's source and version, what the controller remembers, the node as its cache has it; whether it holds.
    let table = [
        // Whether or not the controller ever saw the node closed.
        (e, Some(7), None, seen(false, 8), false),
        (e, Some(7), None, seen(true, 9), true),
        // The cache is behind the mark: open as it was before the cordon.
        (e, Some(7), None, seen(false, 6), true),
        (e, Some(7), None, seen(false, 7), true),
        (e, Some(7), None, None, true),
        (e, Some(7), None, Some(NodeSeen { closed: false, version: None }), true),
        // An eviction on an open node is no drain.
        (e, None, None, seen(false, 8), true),
        // Marks of an earlier release: the controller remembers that it saw the node closed.
        (e, None, Some("n1"), seen(false, 8), false),
        (e, None, Some("n1"), seen(true, 8), true),
        (e, None, Some("n2"), seen(false, 8), true),
        (e, Some(7), Some("n1"), seen(false, 8), false),
        // The rebalancer's stay.
        (r, None, Some("n1"), seen(false, 8), true),
        (r, Some(7), None, seen(false, 8), true),
    ];
    for (source, version, remembered, node, holds) in table {
        let mut o = observed();
        let instance = Arc::make_mut(&mut o.machine.instance);
        let annotations = remembered.map(|node| [(CORDONED.to_owned(), node.to_owned())].into());
        instance.metadata.annotations = annotations;
        let status = instance.status.as_mut().unwrap();
        status.evacuation_source = Some(source.into());
        status.evacuation_node_version = version;
        o.node = node;
        settle(&mut o);
        let row = format!("{source} {version:?} {remembered:?} {node:?}");
        assert_eq!(mark(&o).is_some(), holds, "{row}");
        settle(&mut o);
        assert!(plan(&o).is_empty(), "{row}");
        if !holds {
            assert_eq!(o.machine.instance.status.as_ref().unwrap().evacuation_node_version, None, "{row}");
            assert_eq!(annotation_of(&o.machine.instance), None, "{row}");
        }
    }
}

#[test]
fn a_cordon_is_remembered_only_for_marks_that_do_not_name_it() {
    for (version, remembered) in [(Some(7), None), (None, Some("n1"))] {
        let mut o = observed();
        let instance = Arc::make_mut(&mut o.machine.instance);
        instance.status.as_mut().unwrap().evacuation_node_version = version;
        settle(&mut o);
        assert_eq!(annotation_of(&o.machine.instance), remembered);
    }
}

#[test]
fn what_an_agent_of_an_earlier_release_leaves_of_a_mark_is_removed() {
    let mut o = observed();
    let status = Arc::make_mut(&mut o.machine.instance).status.as_mut().unwrap();
    status.node = Some("n2".into());
    (status.evacuation_node_name, status.evacuation_source) = (None, None);
    status.evacuation_node_version = Some(7);
    o.node = None;
    settle(&mut o);
    assert_eq!(o.machine.instance.status.as_ref().unwrap().evacuation_node_version, None);
    assert!(plan(&o).is_empty());
}

#[test]
fn a_queued_move_of_the_rebalancer_gives_way_to_a_drain() {
    let cause = |o: &Observed| {
        let annotations = o.machine.operations.last().unwrap().object.annotations().clone();
        annotations[annotation::EVACUATION_CAUSE].clone()
    };
    let source = |o: &mut Observed, source: &str| {
        let status = Arc::make_mut(&mut o.machine.instance).status.as_mut().unwrap();
        status.evacuation_source = Some(source.into());
    };
    for queued in [true, false] {
        let mut o = observed();
        source(&mut o, eviction::SOURCE_REBALANCE);
        settle(&mut o);
        assert_eq!(cause(&o), "rebalance");
        o.machine.operations[0].queued = queued;
        source(&mut o, eviction::SOURCE_EVICTION);
        settle(&mut o);
        let deleted = o.machine.operations[0].object.metadata.deletion_timestamp.is_some();
        assert_eq!(deleted, queued, "what has a slot goes on");
        if !queued {
            continue;
        }
        settle(&mut o);
        assert!(!is_held(&o.machine.operations[0]), "let go");
        assert!(plan(&o).is_empty());
        assert_eq!(mark(&o).as_deref(), Some("n1"), "nobody wishes that it stays");
        // It is gone.
        o.machine.operations.clear();
        settle(&mut o);
        assert_eq!(cause(&o), "drain");
        assert!(plan(&o).is_empty());
    }
}

#[test]
fn a_deleted_evacuation_is_the_wish_to_stay() {
    let mut o = observed();
    settle(&mut o);
    Arc::make_mut(&mut o.machine.operations[0].object).metadata.deletion_timestamp = Some(Time(at(1)));
    settle(&mut o);
    assert_eq!(mark(&o), None);
    assert!(!is_held(&o.machine.operations[0]));
}

// MM W5 (decision).
#[test]
fn a_queued_update_gives_way_and_one_that_has_begun_does_not() {
    for queued in [true, false] {
        let mut o = observed();
        settle(&mut o);
        let mut update = (*o.machine.operations[0].object).clone();
        update.metadata.name = Some("firmware-update-x".into());
        update.metadata.finalizers = None;
        update.metadata.annotations = Some([(annotation::WORKLOAD_UPDATE.into(), "true".into())].into());
        o.machine.operations = vec![Operation { object: Arc::new(update), copying: false, queued }];
        let deletes = plan(&o).effects.iter().any(|effect| matches!(effect, Effect::Delete { .. }));
        assert_eq!(deletes, queued);
        Arc::make_mut(&mut o.machine.operations[0].object).metadata.annotations = None;
        assert!(plan(&o).is_empty(), "a user's own is waited for");
    }
}

#[test]
fn what_makes_it_wait() {
    type Change = fn(&mut Observed);
    for (what, change) in [
        (
            "VM starting",
            (|o| {
                let vm = Arc::make_mut(o.machine.vm.as_mut().unwrap());
                vm.status.as_mut().unwrap().phase = Some(VmPhase::Starting);
            }) as Change,
        ),
        ("local disk", |o| Arc::make_mut(&mut o.machine.instance).spec.hardware.disks[0].shared = false),
        ("no VM", |o| o.machine.vm = None),
    ] {
        let mut o = observed();
        change(&mut o);
        settle(&mut o);
        assert!(o.machine.operations.is_empty(), "{what}");
        assert_eq!(mark(&o).as_deref(), Some("n1"), "{what}");
        assert!(plan(&o).is_empty(), "{what}");
    }
}

#[test]
fn a_vm_that_left_or_ended_is_not_marked_any_more() {
    let mut o = observed();
    Arc::make_mut(&mut o.machine.instance).status.as_mut().unwrap().node = Some("n2".into());
    settle(&mut o);
    assert_eq!(mark(&o), None);
    let mut o = observed();
    Arc::make_mut(&mut o.machine.instance).status.as_mut().unwrap().state = Some(InstanceState::Ended);
    settle(&mut o);
    assert_eq!(mark(&o), None);
}

#[test]
fn a_vm_that_cannot_move_blocks_its_node_until_that_is_open_or_it_is_gone() {
    let blocked = |change: fn(&mut Observed)| {
        let mut o = observed();
        let instance = Arc::make_mut(&mut o.machine.instance);
        instance.spec.hardware.disks[0].shared = false;
        let status = instance.status.as_mut().unwrap();
        status.evacuation_node_name = None;
        status.evacuation_blocked_node = Some("n1".into());
        change(&mut o);
        settle(&mut o);
        o.machine.instance.status.as_ref().unwrap().evacuation_blocked_node.is_some()
    };
    assert!(blocked(|_| ()));
    assert!(!blocked(|o| o.node = seen(false, 11)));
    assert!(!blocked(|o| o.node = None));
    assert!(!blocked(|o| Arc::make_mut(&mut o.machine.instance).spec.hardware.disks[0].shared = true));
    assert!(!blocked(|o| {
        let status = Arc::make_mut(&mut o.machine.instance).status.as_mut().unwrap();
        status.state = Some(InstanceState::Ended);
    }));
    assert!(!blocked(|o| {
        Arc::make_mut(&mut o.machine.instance).status.as_mut().unwrap().node = Some("n2".into());
    }));
}
