//! The plan for one operation. Pure.

use holdfast_api::condition::{ConditionKind as _, get};
use holdfast_api::engine::MigrationState;
use holdfast_api::names::{finalizer, label};
use holdfast_api::vm::VmPhase;
use holdfast_api::vmop::{Completed, SignalSent, VirtualMachineOperationStatus, VmopPhase, VmopType};
use holdfast_domain::power as rules;
use holdfast_env::Timestamp;
use holdfast_reconcile::{Conditions, Effect, NoteKind, Patch, Plan, Ref};
use jiff::SignedDuration;
use serde_json::json;

use super::observe::Observed;
use super::{SUPERSEDED_BY, migration, power};

/// How long a finished operation is kept, seconds.
const KEPT_S: i64 = 24 * 3600;
/// How many finished operations of a VM are kept.
const KEPT_MAX: usize = 10;

/// What an operation has come to.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Phase.
    pub phase: VmopPhase,
    /// Condition `Completed`.
    pub completed: Completed,
    /// Its message.
    pub message: String,
    /// Condition `SignalSent`, where it changes.
    pub signal: Option<SignalSent>,
    /// Percent of a migration.
    pub progress: Option<i32>,
}

impl Outcome {
    /// A refusal or failure.
    pub fn failed(completed: Completed, message: impl Into<String>) -> Self {
        Self { phase: VmopPhase::Failed, completed, message: message.into(), signal: None, progress: None }
    }

    /// A stage on the way.
    pub fn stage(phase: VmopPhase, completed: Completed, message: impl Into<String>) -> Self {
        Self {
            phase,
            completed,
            message: message.into(),
            signal: Some(SignalSent::SignalSentSuccess),
            progress: None,
        }
    }
}

/// The next step; an operation that needs nothing yields an empty plan.
#[must_use]
pub fn plan(o: &Observed) -> Plan {
    let mut plan = Plan::default();
    let status = o.operation.status.clone();
    let phase = status.as_ref().map(|status| status.phase);
    if o.operation.metadata.deletion_timestamp.is_some() {
        deletion(&mut plan, o, phase);
        return plan;
    }
    match phase {
        None => initialise(&mut plan, o),
        Some(phase) if phase.is_final() => retire(&mut plan, o),
        Some(VmopPhase::Terminating) => {}
        Some(phase) => {
            adorn(&mut plan, o);
            let outcome = if let Some(by) = overtaken_by(o) {
                give_way(&mut plan, o, by)
            } else if o.operation.spec.type_.is_migration() {
                migration::advance(&mut plan, o, phase)
            } else {
                power::advance(&mut plan, o, phase)
            };
            if let Some(outcome) = outcome {
                conclude(&mut plan, o, &outcome);
            }
        }
    }
    plan
}

fn overtaken_by(o: &Observed) -> Option<&str> {
    o.operation.metadata.annotations.as_ref()?.get(SUPERSEDED_BY).map(String::as_str)
}

/// A later operation overtakes this one: its move is called off and waited for. One that is through
/// already has done what it should.
fn give_way(plan: &mut Plan, o: &Observed, by: &str) -> Option<Outcome> {
    if let Some(migration) = &o.migration {
        let state = migration.status.as_ref().and_then(|status| status.state).unwrap_or_default();
        if state == MigrationState::Done {
            return migration::advance(plan, o, VmopPhase::InProgress);
        }
        if !state.is_final() {
            plan.because("overtaken: the migration is being called off");
            if migration.metadata.deletion_timestamp.is_none() {
                plan.then(Effect::delete(&**migration));
            }
            return None;
        }
    }
    let name = by.split('/').nth(1).unwrap_or(by);
    let message = format!("Superseded by operation {name}.");
    Some(Outcome { phase: VmopPhase::Superseded, ..Outcome::failed(Completed::Superseded, message) })
}

fn initialise(plan: &mut Plan, o: &Observed) {
    let mut conditions = Conditions::carry(&[], o.operation.metadata.generation, o.now);
    conditions.is(Completed::NotYetKnown, "").is(SignalSent::NotYetKnown, "");
    let new = VirtualMachineOperationStatus {
        phase: VmopPhase::Pending,
        progress: None,
        conditions: conditions.finish(),
        observed_generation: o.operation.metadata.generation,
    };
    plan.because("accepted");
    plan.set_status(&*o.operation, o.operation.status.as_ref(), &new);
    adorn(plan, o);
    let text = format!("Operation {} of VirtualMachine {} accepted.", o.operation.spec.type_, vm_name(o));
    plan.then(Effect::event(&*o.operation, NoteKind::Normal, "VirtualMachineOperationStarted", text));
}

fn vm_name(o: &Observed) -> &str {
    &o.operation.spec.virtual_machine_name
}

/// Finalizer and label that an unfinished operation carries.
fn adorn(plan: &mut Plan, o: &Observed) {
    let phase = o.operation.status.as_ref().map(|status| status.phase);
    let needs = o.operation.spec.type_.is_migration() || phase == Some(VmopPhase::InProgress);
    let uid = o.vm.as_ref().and_then(|vm| vm.metadata.uid.clone());
    let labelled = o.operation.metadata.labels.as_ref().and_then(|labels| labels.get(label::VM_UID)).cloned();
    let mut metadata = serde_json::Map::new();
    if needs && let Some(patch) = Patch::add_finalizer(&*o.operation, finalizer::VMOP_CLEANUP) {
        metadata.insert("finalizers".to_owned(), patch.body["metadata"]["finalizers"].clone());
    }
    if uid.is_some() && labelled != uid {
        metadata.insert("labels".to_owned(), json!({ label::VM_UID: uid }));
    }
    if !metadata.is_empty() {
        let body = json!({ "metadata": metadata });
        plan.then(Patch { target: Ref::exact(&*o.operation), status: false, body });
    }
}

/// Writes an outcome, once: the same outcome yields nothing.
fn conclude(plan: &mut Plan, o: &Observed, outcome: &Outcome) {
    let old = o.operation.status.clone().unwrap_or_default();
    let mut conditions = Conditions::carry(&old.conditions, o.operation.metadata.generation, o.now);
    conditions.is(outcome.completed, outcome.message.clone());
    match outcome.signal {
        Some(signal) => conditions.is(signal, ""),
        None => conditions.keep(SignalSent::TYPE),
    };
    let new = VirtualMachineOperationStatus {
        phase: outcome.phase,
        progress: outcome.progress.map(|percent| format!("{percent}%")).or(old.progress.clone()),
        conditions: conditions.finish(),
        observed_generation: o.operation.metadata.generation,
    };
    plan.because(format!("{}: {:?}", outcome.phase, outcome.completed));
    plan.set_status(&*o.operation, Some(&old), &new);
    if new.phase == old.phase {
        plan.unhurried();
    }
    let waits = outcome.completed == Completed::QuotaExceeded
        && get::<Completed>(&old.conditions) != Some(Completed::QuotaExceeded);
    if outcome.phase == old.phase && !waits {
        return;
    }
    let event = match outcome.phase {
        _ if waits => Some(("VirtualMachineOperationPending", NoteKind::Warning)),
        VmopPhase::Completed => Some(("VirtualMachineOperationSucceeded", NoteKind::Normal)),
        VmopPhase::Failed => Some(("VirtualMachineOperationFailed", NoteKind::Warning)),
        VmopPhase::InProgress => Some(("VirtualMachineOperationInProgress", NoteKind::Normal)),
        VmopPhase::Pending | VmopPhase::Terminating | VmopPhase::Superseded => None,
    };
    if let Some((reason, kind)) = event {
        let text = if outcome.message.is_empty() {
            format!("{:?}", outcome.completed)
        } else {
            outcome.message.clone()
        };
        plan.then(Effect::event(&*o.operation, kind, reason, text));
    }
}

/// A finished operation lets go of its finalizer and goes when its time has come.
fn retire(plan: &mut Plan, o: &Observed) {
    if holdfast_env::mutant!("finished-operation-rewritten")
        && let Some(old) = &o.operation.status
        && o.newer_finished > 0
    {
        let new = VirtualMachineOperationStatus { phase: VmopPhase::Failed, ..old.clone() };
        plan.set_status(&*o.operation, Some(old), &new);
    }
    if let Some(patch) = Patch::remove_finalizer(&*o.operation, finalizer::VMOP_CLEANUP) {
        plan.because("finished");
        plan.then(patch);
        return;
    }
    let status = o.operation.status.clone().unwrap_or_default();
    let finished = holdfast_api::condition::find(&status.conditions, Completed::TYPE)
        .map(|condition| condition.last_transition_time.0)
        .or_else(|| o.operation.metadata.creation_timestamp.as_ref().map(|t| t.0))
        .unwrap_or(o.now);
    let until = finished.checked_add(SignedDuration::from_secs(KEPT_S)).unwrap_or(Timestamp::MAX);
    if o.now >= until || o.newer_finished >= KEPT_MAX {
        plan.because("kept long enough");
        plan.then(Effect::delete(&*o.operation));
    } else {
        plan.because("finished");
        plan.wake_at(until);
    }
}

/// Deleting a power operation undoes nothing. Deleting a migration calls it off: its Migration is
/// deleted, and waited for.
fn deletion(plan: &mut Plan, o: &Observed, phase: Option<VmopPhase>) {
    let is_final = phase.is_some_and(VmopPhase::is_final);
    if let Some(old) = o.operation.status.as_ref().filter(|_| !is_final) {
        let new = VirtualMachineOperationStatus { phase: VmopPhase::Terminating, ..old.clone() };
        plan.set_status(&*o.operation, Some(old), &new);
    }
    let unsettled = o.migration.as_ref().filter(|migration| {
        !is_final && !migration.status.as_ref().and_then(|s| s.state).is_some_and(|state| state.is_final())
    });
    if let Some(migration) = unsettled {
        plan.because("deleted: the migration is being called off");
        if migration.metadata.deletion_timestamp.is_none() {
            plan.then(Effect::delete(&**migration));
        }
        return;
    }
    plan.because("deleted");
    if holdfast_env::mutant!("finalizer-kept") {
        return;
    }
    if let Some(patch) = Patch::remove_finalizer(&*o.operation, finalizer::VMOP_CLEANUP) {
        plan.then(patch);
    }
}

/// The checks that all types share, in the order of the spec; `None` if all hold.
#[must_use]
pub fn refusal(o: &Observed) -> Option<Outcome> {
    let operation = &o.operation.spec;
    let Some(vm) = o.vm.as_ref().filter(|vm| vm.metadata.deletion_timestamp.is_none()) else {
        return Some(Outcome::failed(Completed::VirtualMachineNotFound, "VirtualMachine not found."));
    };
    if let Some(older) = &o.older {
        let text = format!("Previously created operation {older} should finish first.");
        return Some(Outcome::failed(Completed::NotReadyToBeExecuted, text));
    }
    if operation.type_.is_migration()
        && let Some(other) = &o.other_migration
    {
        let text = format!("Another migration of the VM is in progress: {other}.");
        return Some(Outcome::failed(Completed::OtherMigrationInProgress, text));
    }
    let policy = vm.spec.run_policy;
    if !rules::allowed_for_policy(operation.type_, policy) {
        let text =
            format!("Operation type {} is not applicable for VM with runPolicy {policy}.", operation.type_);
        return Some(Outcome::failed(Completed::NotApplicableForVirtualMachineRunPolicy, text));
    }
    let phase = vm.status.as_ref().and_then(|status| status.phase).unwrap_or(VmPhase::Pending);
    // What it overtakes may be a move: that ends first, perhaps with its node, and the VM settles.
    let overtaking = o.overtook || !o.overtakes.is_empty();
    if overtaking && unsettled(o, phase) {
        return None;
    }
    if overtaking && operation.type_ == VmopType::Stop && phase == VmPhase::Stopped {
        return Some(Outcome::stage(VmopPhase::Completed, Completed::OperationCompleted, ""));
    }
    if !rules::allowed_in_phase(operation.type_, phase, operation.force == Some(true)) {
        let text = format!("Operation type {} is not applicable for VM in phase {phase}.", operation.type_);
        return Some(Outcome::failed(Completed::NotApplicableForVirtualMachinePhase, text));
    }
    None
}

/// The VM is still in the move that the operation overtakes, or ends with it.
#[must_use]
pub fn unsettled(o: &Observed, phase: VmPhase) -> bool {
    let operation = &o.operation.spec;
    matches!(phase, VmPhase::Migrating | VmPhase::Stopping)
        && !rules::allowed_in_phase(operation.type_, phase, operation.force == Some(true))
}

/// The signal was sent before.
#[must_use]
pub fn signal_sent(o: &Observed) -> bool {
    let conditions =
        o.operation.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    get::<SignalSent>(conditions) == Some(SignalSent::SignalSentSuccess)
}

/// `StartInProgress` and its like.
#[must_use]
pub fn in_progress(type_: VmopType) -> Completed {
    match type_ {
        VmopType::Start => Completed::StartInProgress,
        VmopType::Stop => Completed::StopInProgress,
        VmopType::Restart => Completed::RestartInProgress,
        VmopType::Evict | VmopType::Migrate => Completed::MigrationPending,
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
