//! The plan for one Instance. Pure.

use holdfast_api::engine::{Instance, InstanceState, Placement, Power};
use holdfast_api::names::{annotation, object};
use holdfast_api::vm::VmPhase;
use holdfast_domain::{backoff, eviction};
use holdfast_env::{Timestamp, suffix};
use holdfast_reconcile::{Effect, NoteKind, Patch, Plan, Ref};
use serde_json::{Map, Value, json};

use super::{MISMATCH, Observed};
use crate::operations::{self, Operation};

/// Annotation on an Instance: the placement that was tried (or told) last and when, `<sum>/<unix s>`.
/// It is not tried again soon.
const TRIED: &str = "internal.virtualization.deckhouse.io/placement-tried";
/// Seconds after a move before the placement is looked at again.
const SETTLE_S: i64 = 60;
/// Seconds after which a placement that failed may be tried again, if a node fits now.
const AGAIN_S: i64 = 600;

/// The next step; an Instance whose node fits yields an empty plan.
#[must_use]
pub fn plan(o: &Observed) -> Plan {
    let instance = &*o.machine.instance;
    let status = instance.status.clone().unwrap_or_default();
    let running = status.state == Some(InstanceState::Running) && instance.spec.power == Power::On;
    let (true, Some(fits), Some(node)) = (running, o.fits, status.node.as_deref()) else {
        return Plan::quiet("not running");
    };
    let mut plan = Plan::default();
    if fits {
        plan.because("the node fits");
        let ours: Vec<Operation> =
            o.machine.operations.iter().filter(|op| is_placement_update(op)).cloned().collect();
        operations::call_off(&mut plan, &ours, annotation::WORKLOAD_UPDATE);
        note(&mut plan, instance, &[(MISMATCH, None), (TRIED, None)]);
        return plan;
    }
    let settled =
        status.migration.as_ref().and_then(|m| m.end.as_ref()).map(|end| backoff::after(end.0, SETTLE_S));
    if let Some(at) = settled.filter(|at| o.now < *at) {
        plan.because("the node does not fit; the last move has just ended");
        plan.wake_at(at);
        return plan;
    }
    misfit(&mut plan, o, node);
    plan
}

fn is_placement_update(operation: &Operation) -> bool {
    let name = operation.object.metadata.name.as_deref().unwrap_or_default();
    name.starts_with(object::NODE_PLACEMENT_PREFIX)
}

fn misfit(plan: &mut Plan, o: &Observed, node: &str) {
    let instance = &*o.machine.instance;
    let Some(vm) = &o.machine.vm else { return };
    let mismatch = (MISMATCH, Some(node.to_owned()));
    let sum = sum(&instance.spec.placement);
    let tried = tried(instance).filter(|(known, _)| *known == sum).map(|(_, at)| at);
    let now_tried = (TRIED, Some(format!("{sum}/{}", o.now.as_second())));
    if let Err(why) = eviction::migratable(instance) {
        plan.because("the node does not fit, and the VM cannot be moved");
        if tried.is_some() {
            return note(plan, instance, &[mismatch]);
        }
        let text = format!(
            "Node {node} no longer satisfies the placement of the VM; a restart would apply it. {why}"
        );
        plan.then(Effect::event(&**vm, NoteKind::Warning, "NodePlacementNotMatched", text));
        return note(plan, instance, &[mismatch, now_tried]);
    }
    if let Some(at) = tried {
        let again = backoff::after(at, AGAIN_S);
        if !o.fits_elsewhere || o.now < again {
            plan.because("the node does not fit, this placement was tried");
            if o.fits_elsewhere {
                plan.wake_at(again);
            }
            return note(plan, instance, &[mismatch]);
        }
    }
    let phase = vm.status.as_ref().and_then(|status| status.phase);
    let busy = o.machine.operations.iter().any(|op| !op.is_final());
    if busy || phase != Some(VmPhase::Running) {
        plan.because("the node does not fit; another operation is under way");
        return note(plan, instance, &[mismatch]);
    }
    plan.because(format!("node {node} does not fit"));
    let marks = [(annotation::WORKLOAD_UPDATE, "true")];
    let known = &o.machine.operations;
    if let Some(create) = operations::evict(vm, known, object::NODE_PLACEMENT_PREFIX, &sum, &marks, &[]) {
        plan.then(create);
        note(plan, instance, &[mismatch, now_tried]);
    }
}

fn tried(instance: &Instance) -> Option<(&str, Timestamp)> {
    let (sum, at) = instance.metadata.annotations.as_ref()?.get(TRIED)?.split_once('/')?;
    Some((sum, Timestamp::from_second(at.parse().ok()?).ok()?))
}

/// Tells one placement from another.
fn sum(placement: &Placement) -> String {
    let text = json!({ "nodeSelector": placement.node_selector, "affinity": placement.affinity }).to_string();
    format!("{}{}", suffix(&text, "a", 0), suffix(&text, "b", 0))
}

/// Writes annotations of the Instance that differ.
fn note(plan: &mut Plan, instance: &Instance, wanted: &[(&str, Option<String>)]) {
    let known = instance.metadata.annotations.as_ref();
    let mut changed = Map::new();
    for (key, value) in wanted {
        if known.and_then(|known| known.get(*key)) != value.as_ref() {
            changed.insert((*key).to_owned(), value.clone().map_or(Value::Null, Value::String));
        }
    }
    if !changed.is_empty() {
        let body = json!({ "metadata": { "annotations": changed } });
        plan.then(Patch { target: Ref::exact(instance), status: false, body });
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
