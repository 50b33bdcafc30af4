//! The plan for one Instance. Pure.

use holdfast_api::Time;
use holdfast_api::engine::{EvacuationFailures, Instance, InstanceState, InstanceStatus};
use holdfast_api::names::{annotation, finalizer, object};
use holdfast_api::vm::VmPhase;
use holdfast_api::vmop::{Completed, VmopPhase};
use holdfast_domain::{backoff, eviction};
use holdfast_reconcile::{Effect, NoteKind, Patch, Plan, Ref};
use kube::ResourceExt as _;
use serde_json::json;

use super::observe::Observed;
use crate::operations::{self, Operation};

/// Annotation on an Instance: its value is the marked node, which was seen cordoned. Its uncordon takes the mark
/// back; an eviction on a node that never was cordoned is no drain and stays. Only for marks that do not name
/// their cordon themselves: the node was closed after the eviction, or an earlier release made the mark.
const CORDONED: &str = "internal.virtualization.deckhouse.io/evacuation-cordoned";

/// Value of [`annotation::EVACUATION_CAUSE`]: the rebalancer asked, nobody else.
const REBALANCE: &str = "rebalance";

/// The next step; an Instance that needs nothing yields an empty plan.
#[must_use]
pub fn plan(o: &Observed) -> Plan {
    let mut plan = Plan::default();
    let old = o.machine.instance.status.clone().unwrap_or_default();
    let mut new = old.clone();
    settle_finished(&mut plan, o, &mut new);
    if !still_blocks(o, &old) {
        new.evacuation_blocked_node = None;
    }
    let cancelled = settle_deleted(&mut plan, o, &old);
    let decision = decide(o, &old, cancelled);
    match decision {
        Decision::Unmarked(why) => {
            plan.because(why);
            new.evacuation_failures = None;
            // Agents of an earlier release leave it behind when the VM has moved.
            new.evacuation_node_version = None;
            forget_cordon(&mut plan, &o.machine.instance);
        }
        Decision::TakeBack(why) => {
            plan.because(why);
            new.evacuation_node_name = None;
            new.evacuation_source = None;
            new.evacuation_node_version = None;
            new.evacuation_failures = None;
            forget_cordon(&mut plan, &o.machine.instance);
            operations::call_off(&mut plan, &o.machine.operations, annotation::EVACUATION);
        }
        Decision::Wait(why) => {
            plan.because(why);
            remember_cordon(&mut plan, o, &old);
        }
        Decision::Overtake => {
            plan.because("what is queued in a later class gives way to the evacuation");
            remember_cordon(&mut plan, o, &old);
            operations::call_off_all(&mut plan, moves(o));
        }
        Decision::Evacuate => {
            remember_cordon(&mut plan, o, &old);
            evacuate(&mut plan, o, &new);
        }
    }
    plan.set_status(&*o.machine.instance, o.machine.instance.status.as_ref(), &new);
    plan
}

enum Decision {
    /// There is no mark.
    Unmarked(&'static str),
    /// There is a mark that holds no more.
    TakeBack(&'static str),
    /// There is a mark and nothing to do now.
    Wait(&'static str),
    /// There is a mark, and a move of the platform's own waits in a later class of the queue.
    Overtake,
    /// There is a mark, and an operation is due (or soon).
    Evacuate,
}

fn decide(o: &Observed, status: &InstanceStatus, cancelled: bool) -> Decision {
    let mark = status.evacuation_node_name.as_deref().filter(|node| !node.is_empty());
    let Some(mark) = mark else { return Decision::Unmarked("not marked") };
    if cancelled {
        return Decision::TakeBack("its evacuation was deleted: it stays");
    }
    if status.state == Some(InstanceState::Ended) {
        return Decision::TakeBack("the VM has ended");
    }
    if status.node.as_deref().is_some_and(|node| node != mark) {
        return Decision::TakeBack("the VM has left the node");
    }
    if is_uncordoned(o, status, mark) && !holdfast_env::mutant!("mark-kept-after-uncordon") {
        return Decision::TakeBack("the node is uncordoned");
    }
    let Some(vm) = &o.machine.vm else { return Decision::Wait("no VM of this front") };
    if vm.metadata.deletion_timestamp.is_some() {
        return Decision::Wait("the VM is being deleted");
    }
    let phase = vm.status.as_ref().and_then(|status| status.phase);
    if moves(o).next().is_some() {
        return match moves(o).all(|op| gives_way(op, status)) {
            true => Decision::Overtake,
            false => Decision::Wait("a migration is under way"),
        };
    }
    if phase != Some(VmPhase::Running) || status.state != Some(InstanceState::Running) {
        return Decision::Wait("the VM is not running");
    }
    if eviction::migratable(&o.machine.instance).is_err() {
        return Decision::Wait("the VM cannot be moved");
    }
    if o.machine.operations.iter().any(|op| !op.is_final()) {
        return Decision::Wait("another operation is under way");
    }
    Decision::Evacuate
}

/// Unfinished operations that move the VM.
fn moves(o: &Observed) -> impl Iterator<Item = &Operation> {
    o.machine.operations.iter().filter(|op| !op.is_final() && op.object.spec.type_.is_migration())
}

/// The cordon that the mark belongs to was undone. A node that looks open proves nothing when it is older than
/// the mark: the cache has not heard of the cordon yet.
fn is_uncordoned(o: &Observed, status: &InstanceStatus, mark: &str) -> bool {
    let Some(node) = o.node.filter(|node| !node.closed) else { return false };
    let is_later =
        status.evacuation_node_version.is_some_and(|then| node.version.is_some_and(|now| now > then));
    !is_rebalancing(status) && (is_later || annotation_of(&o.machine.instance) == Some(mark))
}

fn is_rebalancing(status: &InstanceStatus) -> bool {
    status.evacuation_source.as_deref() == Some(eviction::SOURCE_REBALANCE)
}

/// The operation was made for the rebalancer, but a drain wants the VM away as well by now.
fn is_outdated(operation: &Operation, status: &InstanceStatus) -> bool {
    let cause = operation.object.annotations().get(annotation::EVACUATION_CAUSE);
    is_evacuation(operation) && cause.is_some_and(|cause| cause == REBALANCE) && !is_rebalancing(status)
}

/// What waits in a later class of the queue than the evacuation would.
fn gives_way(operation: &Operation, status: &InstanceStatus) -> bool {
    operation.queued && (operation.is_marked(annotation::WORKLOAD_UPDATE) || is_outdated(operation, status))
}

/// A drain still waits for this VM, which cannot move.
fn still_blocks(o: &Observed, status: &InstanceStatus) -> bool {
    status.evacuation_blocked_node == status.node
        && is_closed(o)
        && status.state != Some(InstanceState::Ended)
        && eviction::migratable(&o.machine.instance).is_err()
}

fn is_closed(o: &Observed) -> bool {
    o.node.is_some_and(|node| node.closed)
}

fn is_evacuation(operation: &Operation) -> bool {
    operation.is_marked(annotation::EVACUATION)
}

fn is_held(operation: &Operation) -> bool {
    let finalizers = operation.object.metadata.finalizers.as_deref().unwrap_or_default();
    finalizers.iter().any(|name| name == finalizer::VMOP_EVACUATION)
}

/// Finished evacuations are counted once (their finalizer says whether they were) and let go.
fn settle_finished(plan: &mut Plan, o: &Observed, new: &mut InstanceStatus) {
    for operation in
        o.machine.operations.iter().filter(|op| is_evacuation(op) && is_held(op) && op.is_final())
    {
        let status = operation.object.status.clone().unwrap_or_default();
        let completed = holdfast_api::condition::find(
            &status.conditions,
            <Completed as holdfast_api::condition::ConditionKind>::TYPE,
        );
        let aborted = completed.is_some_and(|condition| condition.reason == "Aborted");
        // Its finalizer may outlive the count by a conflict: a later one is made after the last count.
        let made = operation.object.metadata.creation_timestamp.as_ref().map(|at| at.0);
        let last = new.evacuation_failures.as_ref().and_then(|f| f.last_at.as_ref()).map(|at| at.0);
        let counted = made.zip(last).is_some_and(|(made, last)| last >= made);
        if status.phase == VmopPhase::Failed && !aborted && !counted {
            // Not the condition's time: an unschedulable target shows its reason long before it fails.
            let failures = new.evacuation_failures.clone().unwrap_or_default();
            let count = failures.count + 1;
            let why = completed.map(|condition| condition.message.clone()).unwrap_or_default();
            let text = format!(
                "Evacuation failed {count} times in a row; the next one is tried after {} s. {why}",
                backoff::evacuation_delay_s(count)
            );
            new.evacuation_failures =
                Some(EvacuationFailures { count, last_at: Some(Time(o.now)), message: Some(why) });
            if let Some(vm) = &o.machine.vm {
                plan.then(Effect::event(&**vm, NoteKind::Warning, "MigrationBackoff", text));
            }
        }
        if let Some(patch) = Patch::remove_finalizer(&*operation.object, finalizer::VMOP_EVACUATION) {
            plan.then(patch);
        }
    }
}

/// An unfinished evacuation that somebody deletes is let go; `true` if that says that the VM shall stay. One
/// that has given way to a drain says nothing.
fn settle_deleted(plan: &mut Plan, o: &Observed, status: &InstanceStatus) -> bool {
    let mut found = false;
    for operation in
        o.machine.operations.iter().filter(|op| is_evacuation(op) && is_held(op) && !op.is_final())
    {
        if operation.object.metadata.deletion_timestamp.is_some() {
            found |= !is_outdated(operation, status);
            if let Some(patch) = Patch::remove_finalizer(&*operation.object, finalizer::VMOP_EVACUATION) {
                plan.then(patch);
            }
        }
    }
    found
}

fn annotation_of(instance: &Instance) -> Option<&str> {
    instance.metadata.annotations.as_ref()?.get(CORDONED).map(String::as_str)
}

fn annotate(instance: &Instance, value: Option<&str>) -> Patch {
    let body = json!({ "metadata": { "annotations": { CORDONED: value } } });
    Patch { target: Ref::exact(instance), status: false, body }
}

fn remember_cordon(plan: &mut Plan, o: &Observed, status: &InstanceStatus) {
    let mark = status.evacuation_node_name.as_deref().filter(|_| status.evacuation_node_version.is_none());
    if is_closed(o) && mark.is_some() && annotation_of(&o.machine.instance) != mark {
        plan.then(annotate(&o.machine.instance, mark));
    }
}

fn forget_cordon(plan: &mut Plan, instance: &Instance) {
    if annotation_of(instance).is_some() {
        plan.then(annotate(instance, None));
    }
}

/// Creates the next operation, or waits for its time.
fn evacuate(plan: &mut Plan, o: &Observed, status: &InstanceStatus) {
    let Some(vm) = &o.machine.vm else { return };
    let failures = status.evacuation_failures.clone().unwrap_or_default();
    if let Some(Time(last)) = failures.last_at {
        let due = backoff::after(last, backoff::evacuation_delay_s(failures.count));
        if o.now < due {
            plan.because(format!("backing off after {} failures", failures.count));
            plan.wake_at(due);
            return;
        }
    }
    plan.because(format!("evacuation after {} failures", failures.count));
    let cause = if is_rebalancing(status) { REBALANCE } else { "drain" };
    let marks = [(annotation::EVACUATION, "true"), (annotation::EVACUATION_CAUSE, cause)];
    let held_by = [finalizer::VMOP_EVACUATION];
    let known = &o.machine.operations;
    if let Some(create) =
        operations::evict(vm, known, object::EVACUATION_PREFIX, "evacuation", &marks, &held_by)
    {
        plan.then(create);
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
