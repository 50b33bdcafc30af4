//! The plan for one NodeMaintenance. Pure.

use holdfast_api::Time;
use holdfast_api::maintenance::{FINALIZER, MaintenancePhase, NodeMaintenanceStatus};
use holdfast_domain::backoff;
use holdfast_reconcile::{Effect, NoteKind, Patch, Plan, Ref};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::json;

use super::lease::Step;
use super::observe::Observed;
use super::{closing, drain, lease};

/// More failures in a row to keep the Lease end the maintenance.
const LEASE_ERRORS_MAX: u32 = 3;
/// Seconds between two of them.
const LEASE_AGAIN_S: i64 = 5;
/// Seconds after which the status of a drain is written even if nothing has changed.
const BEAT_S: i64 = 30;

/// The next step; a node that is closed and empty needs none but the Lease's renewal.
#[must_use]
pub fn plan(o: &Observed) -> Plan {
    if o.object.metadata.deletion_timestamp.is_some() {
        return finish(o);
    }
    let mut plan = Plan::default();
    let old = o.object.status.clone().unwrap_or_default();
    let mut new = old.clone();
    match node(o) {
        Some(node) => maintain(&mut plan, o, node, &mut new),
        None => fail_without_node(&mut plan, o, &mut new),
    }
    let written = old.last_update.as_ref().map(|at| at.0);
    let beat = written.map(|at| backoff::after(at, BEAT_S));
    let running = new.phase == Some(MaintenancePhase::Running) && !new.pending_pods.is_empty();
    if new != old || (running && beat.is_none_or(|beat| beat <= o.now)) {
        new.last_update = Some(Time(o.now));
    }
    if let Some(beat) = beat.filter(|beat| running && o.now < *beat) {
        plan.wake_at(beat);
    }
    plan.set_status(&*o.object, o.object.status.as_ref(), &new);
    plan
}

/// The node, if it is still the one that the maintenance began with.
fn node(o: &Observed) -> Option<&Node> {
    let node = o.node.as_deref()?;
    let owners = o.object.metadata.owner_references.as_deref().unwrap_or_default();
    let began_with = owners.iter().find(|owner| owner.kind == "Node" && owner.api_version == "v1");
    began_with.is_none_or(|owner| Some(&owner.uid) == node.metadata.uid.as_ref()).then_some(node)
}

/// The reference by which the garbage collector deletes an object after the node.
pub(super) fn owner_reference(node: &Node) -> OwnerReference {
    OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node.metadata.name.clone().unwrap_or_default(),
        uid: node.metadata.uid.clone().unwrap_or_default(),
        controller: None,
        block_owner_deletion: None,
    }
}

fn fail_without_node(plan: &mut Plan, o: &Observed, new: &mut NodeMaintenanceStatus) {
    plan.because("the node is gone");
    let text = format!("nodes {:?} not found", o.object.spec.node_name);
    if new.phase != Some(MaintenancePhase::Failed) || new.last_error.as_ref() != Some(&text) {
        plan.then(failed(o));
    }
    new.phase = Some(MaintenancePhase::Failed);
    new.error_on_lease_count = 0;
    new.last_error = Some(text);
}

fn failed(o: &Observed) -> Effect {
    Effect::event(&*o.object, NoteKind::Warning, "FailedMaintenance", "Failed a node maintenance")
}

fn maintain(plan: &mut Plan, o: &Observed, node: &Node, new: &mut NodeMaintenanceStatus) {
    if new.phase == Some(MaintenancePhase::Failed) && new.error_on_lease_count <= LEASE_ERRORS_MAX {
        plan.because("it failed when the node was gone");
        return;
    }
    if new.phase.is_none() {
        new.phase = Some(MaintenancePhase::Running);
        drain::report(o, new);
    }
    if let Some(begin) = begin(o, node) {
        plan.because("begin");
        plan.then(begin);
        let text = "Begin a node maintenance";
        plan.then(Effect::event(&*o.object, NoteKind::Normal, "BeginMaintenance", text));
        return;
    }
    match lease::step(o, node) {
        Step::Held(renew) => {
            plan.wake_at(renew);
        }
        Step::Renew(patch) => {
            plan.then(*patch);
        }
        Step::Take(effect) => {
            plan.because("the lease is to be taken");
            plan.then(*effect);
            return;
        }
        Step::Theirs(holder, until) => {
            plan.wake_at(until);
            return wait_for_lease(plan, o, node, &holder, new);
        }
    }
    if new.error_on_lease_count > 0 {
        new.error_on_lease_count = 0;
        new.phase = Some(MaintenancePhase::Running);
        new.last_error = None;
    }
    empty(plan, o, node, new);
}

/// Finalizer and owner, if one of them is missing.
fn begin(o: &Observed, node: &Node) -> Option<Patch> {
    let metadata = &o.object.metadata;
    let mut finalizers = metadata.finalizers.clone().unwrap_or_default();
    let mut owners = metadata.owner_references.clone().unwrap_or_default();
    let held = finalizers.iter().any(|name| name == FINALIZER);
    let owned = owners.iter().any(|owner| Some(&owner.uid) == node.metadata.uid.as_ref());
    if held && owned {
        return None;
    }
    if !held {
        finalizers.push(FINALIZER.to_owned());
    }
    if !owned {
        owners.push(owner_reference(node));
    }
    let body = json!({ "metadata": { "finalizers": finalizers, "ownerReferences": owners } });
    Some(Patch { target: Ref::exact(&*o.object), status: false, body })
}

/// Somebody else has the node. Before anything has left it that is a matter of waiting; later the
/// maintenance gives the node up.
fn wait_for_lease(plan: &mut Plan, o: &Observed, node: &Node, holder: &str, new: &mut NodeMaintenanceStatus) {
    plan.because(format!("{holder} holds the lease of the node"));
    if new.phase == Some(MaintenancePhase::Failed) {
        // The write that opens the node may have been lost.
        give_up(plan, node);
        return;
    }
    let held = format!("the lease of node {} is held by {holder}", o.object.spec.node_name);
    if new.drain_progress == 0 {
        new.last_error = Some(held);
        return;
    }
    let last = new.last_update.as_ref().map_or(o.now, |at| at.0);
    let due = backoff::after(last, LEASE_AGAIN_S);
    if new.error_on_lease_count > 0 && o.now < due {
        plan.wake_at(due);
        return;
    }
    new.error_on_lease_count += 1;
    let count = new.error_on_lease_count;
    if count <= LEASE_ERRORS_MAX {
        new.last_error = Some(format!("failed to extend lease: {held}, attempt {count}"));
        plan.wake_at(backoff::after(o.now, LEASE_AGAIN_S));
        return;
    }
    new.phase = Some(MaintenancePhase::Failed);
    new.last_error =
        Some(format!("maintenance failed: lease could not be extended after {count} attempts: {held}"));
    give_up(plan, node);
    plan.then(failed(o));
}

fn give_up(plan: &mut Plan, node: &Node) {
    if closing::is_begun(node) {
        uncordon(plan, node);
    }
}

fn uncordon(plan: &mut Plan, node: &Node) {
    if let Some(patch) = closing::open(node) {
        plan.then(patch);
        plan.then(Effect::event(node, NoteKind::Normal, "UncordonNode", "Uncordon a node"));
    }
}

/// The node is ours: closed first, then emptied.
fn empty(plan: &mut Plan, o: &Observed, node: &Node, new: &mut NodeMaintenanceStatus) {
    let close = closing::close(node);
    let closed = close.is_none();
    if let Some(patch) = close {
        plan.because("the node is to be closed");
        plan.then(patch);
    }
    if new.phase == Some(MaintenancePhase::Succeeded) {
        if !o.pods.iter().any(|pod| drain::is_vm(pod)) {
            plan.because("in maintenance");
            return;
        }
        // It came while somebody had opened the node, or just before it was closed.
        plan.because("there is a VM on the node");
        new.phase = Some(MaintenancePhase::Running);
    }
    drain::report(o, new);
    if !new.pending_pods.is_empty() && !holdfast_env::mutant!("maintenance-ends-early") {
        plan.because(format!("{} pods have to leave", new.pending_pods.len()));
        new.last_error = drain::error(plan, o, new.last_error.as_ref());
        drain::evict(plan, o);
    } else if closed {
        plan.because("the node is empty");
        new.phase = Some(MaintenancePhase::Succeeded);
        new.drain_progress = 100;
        new.last_error = None;
        let text = "Node maintenance was succeeded";
        plan.then(Effect::event(&*o.object, NoteKind::Normal, "SucceedMaintenance", text));
    }
}

/// Back in service (migration-and-maintenance.md §8.4).
fn finish(o: &Observed) -> Plan {
    let Some(let_go) = Patch::remove_finalizer(&*o.object, FINALIZER) else {
        return Plan::quiet("being deleted");
    };
    let mut plan = Plan::default();
    plan.because("deleted: the node goes back into service");
    if !o.closed_by_another {
        if let Some(node) = node(o).filter(|node| closing::is_begun(node)) {
            uncordon(&mut plan, node);
        }
        if let Some(lease) = o.lease.as_deref().filter(|lease| lease::is_ours(lease)) {
            plan.then(Effect::Delete { target: Ref::exact(lease), grace_s: None });
        }
    }
    plan.then(let_go);
    let text = "Removed a node maintenance";
    plan.then(Effect::event(&*o.object, NoteKind::Normal, "RemovedMaintenance", text));
    plan
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
