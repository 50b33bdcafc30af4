//! Start, Stop, Restart. This controller checks and judges; the VM controller acts on an operation
//! as soon as it is InProgress, and records in the Instance which one it acted on.

use holdfast_api::engine::{Instance, InstanceState};
use holdfast_api::vm::VmPhase;
use holdfast_api::vmop::{Completed, VmopPhase, VmopType};

use holdfast_reconcile::{Patch, Plan, Ref};
use serde_json::json;

use super::SUPERSEDED_BY;
use super::observe::Observed;
use super::plan::{Outcome, in_progress, refusal, unsettled};
use crate::fronts::deckhouse::vm::{STARTED_BY, tag};

/// What the operation has come to; `None` if nothing is new.
#[must_use]
pub fn advance(plan: &mut Plan, o: &Observed, phase: VmopPhase) -> Option<Outcome> {
    if phase != VmopPhase::Pending {
        return Some(judge(o));
    }
    if let Some(refused) = refusal(o) {
        return Some(refused);
    }
    if let Some(outcome) = overtake(plan, o) {
        return Some(outcome);
    }
    Some(Outcome::stage(VmopPhase::InProgress, in_progress(o.operation.spec.type_), ""))
}

/// Tells the operations that this one overtakes, and waits until they are finished and the VM is
/// past the move they were about.
fn overtake(plan: &mut Plan, o: &Observed) -> Option<Outcome> {
    let by = tag(&o.operation);
    for older in &o.overtakes {
        let told = older.metadata.annotations.as_ref().and_then(|all| all.get(SUPERSEDED_BY));
        if told.is_none() {
            let body = json!({ "metadata": { "annotations": { SUPERSEDED_BY: by } } });
            plan.then(Patch { target: Ref::exact(&**older), status: false, body });
        }
    }
    let phase = o.vm.as_ref().and_then(|vm| vm.status.as_ref()?.phase).unwrap_or(VmPhase::Pending);
    let message = match o.overtakes.first() {
        Some(older) => {
            let name = older.metadata.name.as_deref().unwrap_or_default();
            format!("Waiting until operation {name} has been called off.")
        }
        None if !unsettled(o, phase) => return None,
        None if phase == VmPhase::Migrating => {
            "Waiting until the migration of the VM has been called off.".to_owned()
        }
        // Its node was lost in the move.
        None => "Waiting until the VM, which ended in the move, has settled.".to_owned(),
    };
    let waiting = Outcome::stage(VmopPhase::Pending, Completed::NotYetKnown, message);
    Some(Outcome { signal: None, ..waiting })
}

fn judge(o: &Observed) -> Outcome {
    let type_ = o.operation.spec.type_;
    let Some(vm) = &o.vm else {
        return Outcome::failed(Completed::OperationFailed, "The VirtualMachine has been deleted.");
    };
    let phase = vm.status.as_ref().and_then(|status| status.phase).unwrap_or(VmPhase::Pending);
    let done = || Outcome::stage(VmopPhase::Completed, Completed::OperationCompleted, "");
    match type_ {
        VmopType::Stop if phase == VmPhase::Stopped => return done(),
        // Whoever started it: the policy may have been first.
        VmopType::Start if phase == VmPhase::Running && o.instance.as_deref().is_some_and(runs) => {
            return done();
        }
        VmopType::Start | VmopType::Restart => {
            let instance = o.instance.as_deref().filter(|instance| began(instance, o));
            if let Some(instance) = instance {
                if phase == VmPhase::Running && runs(instance) {
                    return done();
                }
                if let Some(why) = gave_up(instance, phase) {
                    return Outcome::failed(Completed::OperationFailed, why);
                }
            }
        }
        VmopType::Stop | VmopType::Evict | VmopType::Migrate => {}
    }
    let message = match phase {
        VmPhase::Pending => {
            "The request has been sent to the VM, which is waiting to enter the Starting phase."
        }
        _ => "The request has been sent to the VM.",
    };
    Outcome::stage(VmopPhase::InProgress, in_progress(type_), message)
}

/// The present epoch was begun because of this operation.
fn began(instance: &Instance, o: &Observed) -> bool {
    instance.metadata.annotations.as_ref().and_then(|all| all.get(STARTED_BY)) == Some(&tag(&o.operation))
}

fn runs(instance: &Instance) -> bool {
    instance.status.as_ref().is_some_and(|status| {
        status.observed_epoch == instance.spec.epoch && status.state == Some(InstanceState::Running)
    })
}

/// The epoch it began is over and nobody begins another.
fn gave_up(instance: &Instance, phase: VmPhase) -> Option<String> {
    let status = instance.status.as_ref()?;
    let ended = status.state == Some(InstanceState::Ended) && status.observed_epoch == instance.spec.epoch;
    if !ended || phase != VmPhase::Stopped {
        return None;
    }
    let exit = status.exit.as_ref()?;
    Some(format!("The VM ended before it was seen running ({:?}): {}", exit.cause, exit.detail))
}
