//! The plan for one Instance. Pure.

use std::collections::BTreeMap;

use holdfast_api::engine::{Instance, InstanceState, Placement, Power};
use holdfast_api::names::{annotation, finalizer, label, object};
use holdfast_api::vm::VmPhase;
use holdfast_api::vmop::{VirtualMachineOperationSpec, VmopType};
use holdfast_api::{VirtualMachine, VirtualMachineOperation};
use holdfast_domain::{backoff, eviction, placement};
use holdfast_env::{derived_name, suffix};
use holdfast_reconcile::{Create, Effect, NoteKind, Patch, Plan, Ref};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;

use super::Observed;

/// Annotation on an Instance: the placement that was tried (or told) last; it is not tried again.
const TRIED: &str = "internal.virtualization.deckhouse.io/placement-tried";
/// Seconds after a move before the placement is looked at again.
const SETTLE_S: i64 = 60;

/// The next step; an Instance whose node fits yields an empty plan.
#[must_use]
pub fn plan(o: &Observed) -> Plan {
    let status = o.instance.status.clone().unwrap_or_default();
    let (Some(vm), Some(labels), Some(node)) = (&o.vm, &o.node_labels, &status.node) else {
        return Plan::quiet("not running");
    };
    let running = status.state == Some(InstanceState::Running) && o.instance.spec.power == Power::On;
    if !running || placement::node_satisfies(&o.instance.spec.placement, node, labels) {
        return Plan::quiet("the node fits");
    }
    let sum = sum(&o.instance.spec.placement);
    if tried(&o.instance) == Some(&sum) {
        return Plan::quiet("the node does not fit, this placement was tried");
    }
    let mut plan = Plan::default();
    let settled =
        status.migration.as_ref().and_then(|m| m.end.as_ref()).map(|end| backoff::after(end.0, SETTLE_S));
    if let Some(at) = settled.filter(|at| o.now < *at) {
        plan.because("the node does not fit; the last move has just ended");
        plan.wake_at(at);
        return plan;
    }
    if let Err(why) = eviction::migratable(&o.instance) {
        plan.because("the node does not fit, and the VM cannot be moved");
        let text = format!(
            "Node {node} no longer satisfies the placement of the VM; a restart would apply it. {why}"
        );
        plan.then(Effect::event(&**vm, NoteKind::Warning, "NodePlacementNotMatched", text));
        plan.then(remember(&o.instance, &sum));
        return plan;
    }
    let phase = vm.status.as_ref().and_then(|status| status.phase);
    if o.busy || phase != Some(VmPhase::Running) {
        plan.because("the node does not fit; another operation is under way");
        return plan;
    }
    plan.because(format!("node {node} does not fit"));
    if let Some(operation) = operation(vm, &sum) {
        plan.then(Create::of(&operation).identified_by(&[label::VM_UID]));
        plan.then(remember(&o.instance, &sum));
    }
    plan
}

fn tried(instance: &Instance) -> Option<&String> {
    instance.metadata.annotations.as_ref()?.get(TRIED)
}

/// Tells one placement from another.
fn sum(placement: &Placement) -> String {
    let text = json!({ "nodeSelector": placement.node_selector, "affinity": placement.affinity }).to_string();
    format!("{}{}", suffix(&text, "a", 0), suffix(&text, "b", 0))
}

fn remember(instance: &Instance, sum: &str) -> Patch {
    let body = json!({ "metadata": { "annotations": { TRIED: sum } } });
    Patch { target: Ref::exact(instance), status: false, body }
}

fn operation(vm: &VirtualMachine, sum: &str) -> Option<VirtualMachineOperation> {
    let uid = vm.metadata.uid.clone()?;
    let spec = VirtualMachineOperationSpec {
        type_: VmopType::Evict,
        virtual_machine_name: vm.metadata.name.clone()?,
        force: None,
        migrate: None,
    };
    let name = derived_name(object::NODE_PLACEMENT_PREFIX.trim_end_matches('-'), &uid, sum, 0);
    let mut operation = VirtualMachineOperation::new(&name, spec);
    operation.metadata = ObjectMeta {
        namespace: vm.metadata.namespace.clone(),
        labels: Some([(label::VM_UID.to_owned(), uid)].into()),
        annotations: Some(BTreeMap::from([(annotation::WORKLOAD_UPDATE.to_owned(), "true".to_owned())])),
        finalizers: Some(vec![finalizer::VMOP_CLEANUP.to_owned()]),
        ..operation.metadata
    };
    Some(operation)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use holdfast_api::Time;
    use holdfast_api::engine::{Disk, InstanceMigration, InstanceSpec, InstanceStatus};
    use holdfast_api::vm::{VirtualMachineSpec, VirtualMachineStatus};
    use holdfast_env::Timestamp;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn observed(wanted: &str, have: &str) -> Observed {
        let mut instance = Instance::new("web", InstanceSpec { power: Power::On, ..InstanceSpec::default() });
        instance.metadata.uid = Some("uid-i".into());
        instance.spec.hardware.disks = vec![Disk { shared: true, ..Disk::default() }];
        instance.spec.placement.node_selector = [("zone".to_owned(), wanted.to_owned())].into();
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
            instance: Arc::new(instance),
            vm: Some(Arc::new(vm)),
            node_labels: Some([("zone".to_owned(), have.to_owned())].into()),
            busy: false,
        }
    }

    fn created(plan: &Plan) -> Option<String> {
        plan.effects.iter().find_map(|effect| match effect {
            Effect::Create(create) => create.object.value["metadata"]["name"].as_str().map(str::to_owned),
            Effect::Patch(_) | Effect::Delete { .. } | Effect::Event(_) => None,
        })
    }

    #[test]
    fn a_node_that_fits_causes_nothing() {
        assert!(plan(&observed("a", "a")).is_empty());
    }

    #[test]
    fn a_node_that_does_not_fit_causes_one_operation_per_placement() {
        let mut o = observed("a", "b");
        let first = plan(&o);
        let name = created(&first).unwrap();
        assert!(name.starts_with("nodeplacement-update-"), "{name}");
        let sum = sum(&o.instance.spec.placement);
        Arc::make_mut(&mut o.instance).metadata.annotations = Some([(TRIED.to_owned(), sum)].into());
        assert!(plan(&o).is_empty());
        Arc::make_mut(&mut o.instance).spec.placement.node_selector.insert("zone".into(), "c".into());
        assert_ne!(created(&plan(&o)).unwrap(), name);
    }

    #[test]
    fn what_makes_it_wait() {
        let mut busy = observed("a", "b");
        busy.busy = true;
        assert!(plan(&busy).is_empty());
        let mut moved = observed("a", "b");
        let end = Some(Time(at(-10)));
        let status = Arc::make_mut(&mut moved.instance).status.as_mut().unwrap();
        status.migration = Some(InstanceMigration { end, ..InstanceMigration::default() });
        let waiting = plan(&moved);
        assert!(waiting.is_empty());
        assert_eq!(waiting.wake, Some(at(50)));
    }

    #[test]
    fn a_vm_that_cannot_be_moved_is_told_once() {
        let mut o = observed("a", "b");
        Arc::make_mut(&mut o.instance).spec.hardware.disks[0].shared = false;
        let told = plan(&o);
        assert!(created(&told).is_none());
        assert!(matches!(told.effects.as_slice(), [Effect::Event(_), Effect::Patch(_)]), "{told:?}");
    }
}
