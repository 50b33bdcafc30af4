//! Grants slots and hand-offs. Pure.

use std::collections::BTreeSet;

use holdfast_api::Time;
use holdfast_api::engine::{
    Failure, MigrationResult, MigrationSource, MigrationState, MigrationStatus, MigrationTarget,
};
use holdfast_domain::{backoff, migration as rules};
use holdfast_env::Timestamp;
use holdfast_reconcile::{Patch, Plan};
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::Pod;

use super::{Move, Observed};

/// How often the queue is looked at although nothing changed: classes improve with waiting.
const AGEING_S: i64 = 60;

/// The next grants; a settled queue yields an empty plan.
#[must_use]
pub fn plan(o: &Observed) -> Plan {
    let mut plan = Plan::default();
    grant_slots(&mut plan, o);
    hand_over(&mut plan, o);
    if o.moves.iter().any(|m| state(m) == MigrationState::Queued) {
        plan.wake_at(o.now.checked_add(SignedDuration::from_secs(AGEING_S)).unwrap_or(o.now));
    }
    plan
}

fn status(m: &Move) -> MigrationStatus {
    m.migration.status.clone().unwrap_or_default()
}

fn state(m: &Move) -> MigrationState {
    status(m).state.unwrap_or_default()
}

/// Counts against the limits: it has its slot. Not any more when it was called off, nothing of its
/// target is left and its source is not heard of: such a move may wait for long, and does nothing.
fn holds_slot(o: &Observed, m: &Move) -> bool {
    let status = status(m);
    let abort_at = status.abort.as_ref().and_then(|abort| abort.at.as_ref());
    let unheard = abort_at.is_some_and(|at| o.now >= backoff::after(at.0, rules::ABORT_S));
    let target_ended = status.target.as_ref().is_some_and(|target| target.ended_at.is_some());
    if holdfast_env::mutant!("slot-freed-at-switch") && state(m) == MigrationState::Switching {
        return false;
    }
    state(m) >= MigrationState::Placing && !(unheard && target_ended)
}

/// The node a move leaves.
fn source_node(m: &Move) -> Option<String> {
    let recorded = status(m).source.map(|source| source.node).filter(|node| !node.is_empty());
    recorded.or_else(|| m.instance.as_ref()?.status.as_ref()?.claim.as_ref().map(|claim| claim.node.clone()))
}

fn target_node(m: &Move) -> Option<String> {
    let handed_over = status(m).target.map(|target| target.node).filter(|node| !node.is_empty());
    handed_over.filter(|_| state(m) >= MigrationState::Preparing)
}

fn grant_slots(plan: &mut Plan, o: &Observed) {
    let mut taken = o.moves.iter().filter(|m| holds_slot(o, m)).count();
    let mut leaving: BTreeSet<String> =
        o.moves.iter().filter(|m| holds_slot(o, m)).filter_map(source_node).collect();
    let mut queue: Vec<&Move> =
        o.moves.iter().filter(|m| status(m).state == Some(MigrationState::Queued) && may_start(m)).collect();
    queue.sort_by_key(|m| order(o, m));
    for m in queue {
        let Some(node) = source_node(m) else { continue };
        if let Some(at) = refused_until(m).filter(|at| o.now < *at) {
            plan.wake_at(at);
            continue;
        }
        let waiting = if taken >= o.able_nodes {
            Some(format!(
                "Waiting for a free migration slot: the cluster limit of {} is reached.",
                o.able_nodes
            ))
        } else if leaving.contains(&node) && !holdfast_env::mutant!("outbound-slot-ignored") {
            Some(format!("Waiting for a free migration slot: outbound slot on source node {node:?}."))
        } else {
            None
        };
        let old = status(m);
        let mut new = old.clone();
        if let Some(text) = waiting {
            new.reason = Some("WaitingForSlot".to_owned());
            new.message = Some(text);
        } else {
            taken += 1;
            leaving.insert(node.clone());
            new.state = Some(MigrationState::Placing);
            new.slot_at = Some(Time(o.now));
            new.reason = Some(rules::CREATING_TARGET.to_owned());
            new.message = Some("The target pod is being created.".to_owned());
            new.source = Some(MigrationSource { node, ..MigrationSource::default() });
            plan.because(format!("{} may start", name(m)));
        }
        write(plan, m, &old, &new);
    }
}

/// When a move is tried again whose target pod the API did not let us create.
fn refused_until(m: &Move) -> Option<Timestamp> {
    let status = status(m);
    let refused = status.reason.as_deref() == Some(rules::TARGET_REFUSED);
    status.queued_at.filter(|_| refused).map(|at| backoff::after(at.0, rules::REFUSED_AGAIN_S))
}

/// Not being called off, there is a guest to move, and nothing of an earlier try is left.
fn may_start(m: &Move) -> bool {
    m.migration.metadata.deletion_timestamp.is_none()
        && m.instance.is_some()
        && (!m.leftover || holdfast_env::mutant!("leftover-ignored"))
}

/// Class (better with waiting), then age, then uid.
fn order(o: &Observed, m: &Move) -> (i32, Option<Timestamp>, String) {
    let created = m.migration.metadata.creation_timestamp.as_ref().map(|t| t.0);
    let waited = created.map_or(0, |created| o.now.duration_since(created).as_secs());
    let class = rules::aged_class(m.migration.spec.class, waited);
    (class, created, m.migration.metadata.uid.clone().unwrap_or_default())
}

fn name(m: &Move) -> &str {
    m.migration.metadata.name.as_deref().unwrap_or_default()
}

fn write(plan: &mut Plan, m: &Move, old: &MigrationStatus, new: &MigrationStatus) {
    if let Some(patch) = Patch::status(&*m.migration, Some(old), new) {
        plan.then(patch);
    }
}

/// Moves whose target waits, oldest slot first: handed over if nobody else enters that node.
fn hand_over(plan: &mut Plan, o: &Observed) {
    let mut entered: BTreeSet<String> =
        o.moves.iter().filter(|m| holds_slot(o, m)).filter_map(target_node).collect();
    let mut ready: Vec<&Move> = o
        .moves
        .iter()
        .filter(|m| status(m).state == Some(MigrationState::Placing) && may_start(m))
        .filter(|m| m.target.as_ref().is_some_and(|pod| containers_ready(pod)))
        .collect();
    ready.sort_by_key(|m| (status(m).slot_at.map(|t| t.0), m.migration.metadata.uid.clone()));
    for m in ready {
        let Some(node) = m.target.as_ref().and_then(|pod| pod.spec.as_ref()?.node_name.clone()) else {
            continue;
        };
        let old = status(m);
        let mut new = old.clone();
        if !entered.insert(node.clone()) && !holdfast_env::mutant!("inbound-slot-ignored") {
            wait_for_inbound(plan, o, &mut new, &node);
            write(plan, m, &old, &new);
            continue;
        }
        if prepare(o, m, &mut new, node) {
            // The migration controller then names the move in its Instance, which lets the agents act.
            plan.because(format!("{} is handed over", name(m)));
        }
        write(plan, m, &old, &new);
    }
}

/// Waits for the inbound slot of a node; after the limit the move goes back to the queue, so that
/// its outbound slot serves others and the scheduler may find another node. The migration
/// controller removes the target pod.
fn wait_for_inbound(plan: &mut Plan, o: &Observed, new: &mut MigrationStatus, node: &str) {
    let limit = new.slot_at.as_ref().map_or(o.now, |at| backoff::after(at.0, rules::PREPARE_S));
    if o.now < limit {
        plan.wake_at(limit);
        new.reason = Some("WaitingForSyncSlot".to_owned());
        new.message =
            Some(format!("Waiting for a free migration slot: inbound slot on target node {node:?}."));
        return;
    }
    plan.because(format!("inbound slot of {node} stayed busy, queued again"));
    new.state = Some(MigrationState::Queued);
    new.slot_at = None;
    new.source = None;
    new.reason = Some("InboundSlotBusy".to_owned());
    new.message = Some(format!(
        "Queued again: the inbound slot on target node {node:?} stayed busy for {} s.",
        rules::PREPARE_S
    ));
}

/// Everything the agents need, in one write; `false` if the policy has turned against the move.
fn prepare(o: &Observed, m: &Move, new: &mut MigrationStatus, node: String) -> bool {
    let Some(instance) = &m.instance else { return false };
    let Some(claim) = instance.status.as_ref().and_then(|status| status.claim.clone()) else { return false };
    let converge = match rules::auto_converge(instance.spec.migration_policy, m.migration.spec.force) {
        Ok(converge) => converge,
        Err(text) => {
            new.state = Some(MigrationState::Failed);
            new.result = Some(MigrationResult::Failed);
            new.finished_at = Some(Time(o.now));
            new.failure = Some(Failure { class: "NotApplicableForLiveMigrationPolicy".to_owned(), text });
            return false;
        }
    };
    new.state = Some(MigrationState::Preparing);
    new.reason = None;
    new.message = None;
    new.config = Some(rules::config(instance.spec.hardware.memory_bytes, converge, &o.limits));
    new.source = Some(MigrationSource {
        node: claim.node,
        pod_name: m.source_pod.clone().unwrap_or_default(),
        pod_uid: claim.pod_uid,
        ..MigrationSource::default()
    });
    new.target = m.target.as_ref().map(|pod| MigrationTarget {
        pod_name: pod.metadata.name.clone().unwrap_or_default(),
        pod_uid: pod.metadata.uid.clone().unwrap_or_default(),
        node,
        ..MigrationTarget::default()
    });
    true
}

/// The launcher runs; the readiness gate is not looked at, it stays False until the guest runs there.
fn containers_ready(pod: &Pod) -> bool {
    let Some(status) = &pod.status else { return false };
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let ready = conditions.iter().any(|c| c.type_ == "ContainersReady" && c.status == "True");
    status.phase.as_deref() == Some("Running") && ready && pod.metadata.deletion_timestamp.is_none()
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
