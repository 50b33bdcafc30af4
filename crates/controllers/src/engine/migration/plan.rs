//! The plan for one move. Pure.

use std::sync::Arc;

use holdfast_api::Time;
use holdfast_api::engine::{
    Abort, Failure, Instance, InstanceMigration, InstanceState, InstanceStatus, MigrationResult,
    MigrationState, MigrationStatus, Power, Side,
};
use holdfast_api::names::{finalizer, label};
use holdfast_domain::{backoff, migration as rules};
use holdfast_env::Timestamp;
use holdfast_reconcile::{Create, Effect, Patch, Plan};
use k8s_openapi::api::core::v1::Pod;

use super::observe::Observed;
use super::{events, target_pod};
use crate::engine::instance::container_waiting;

/// Why a move was called off: words of `status.abort.reason`.
mod abort {
    /// The Migration was deleted.
    pub const DELETED: &str = "Deleted";
    /// One side reported a failure.
    pub const FAILED: &str = "Failed";
    /// The whole move took too long.
    pub const COMPLETION: &str = "CompletionTimeout";
    /// The preparation took too long.
    pub const PREPARATION: &str = "PreparationTimeout";
    /// The target pod is gone.
    pub const TARGET_LOST: &str = "TargetLost";
    /// The source's node is back under another boot id, and the target has not continued the guest.
    pub const SOURCE_LOST: &str = holdfast_api::engine::ABORT_SOURCE_LOST;
    /// The VM is being switched off.
    pub const INSTANCE_GONE: &str = "InstanceGone";
}

/// The next step; a move that needs nothing yields an empty plan.
#[must_use]
pub fn plan(o: &Observed) -> Plan {
    let mut plan = Plan::default();
    let old = o.migration.status.clone().unwrap_or_default();
    let Some(state) = old.state else {
        let new = MigrationStatus {
            state: Some(MigrationState::Queued),
            queued_at: Some(Time(o.now)),
            ..MigrationStatus::default()
        };
        plan.because("queued");
        plan.set_status(&*o.migration, o.migration.status.as_ref(), &new);
        return plan;
    };
    if state.is_final() {
        clean_up(&mut plan, o, &old);
        return plan;
    }
    let mut step = Step { o, new: old.clone(), wake: None, target: None };
    match state {
        MigrationState::Queued => step.queued(),
        MigrationState::Placing => step.placing(),
        MigrationState::Preparing | MigrationState::Copying | MigrationState::Switching => step.handed_over(),
        MigrationState::Done | MigrationState::Failed | MigrationState::Aborted => {}
    }
    plan.because(format!("{:?}", step.new.state.unwrap_or_default()));
    if let Some(at) = step.wake {
        plan.wake_at(at);
    }
    let (new, target) = (step.new, step.target);
    plan.set_status(&*o.migration, Some(&old), &new);
    if is_only_told(&old, &new) {
        plan.unhurried();
    }
    if let Some(create) = target {
        let name = create.object.value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let create = create.refusal_told_to(Some(events::operation(&o.migration)), "FailedCreate");
        plan.then(create.remembered_for(o.migration.metadata.uid.as_deref()));
        events::created(&mut plan, o, &name);
    }
    events::changed(&mut plan, o, &old, &new);
    if new.state.is_some_and(MigrationState::is_final) {
        close(&mut plan, o, &new);
        remove_targets(&mut plan, o, &new);
    } else if new.state == Some(MigrationState::Queued) {
        // Of an earlier try that waited too long for its inbound slot.
        remove_targets(&mut plan, o, &new);
    } else if let Some(patch) = open(o, &new) {
        plan.then(patch);
    }
    plan
}

/// Whether nothing is decided by the change: words, and how far the agents say they are. That the guest changes
/// hands is over before anybody can read it, and right then the processors have better things to do.
fn is_only_told(old: &MigrationStatus, new: &MigrationStatus) -> bool {
    let told = MigrationStatus { reason: new.reason.clone(), message: new.message.clone(), ..old.clone() };
    let switching = new.state == Some(MigrationState::Switching);
    let told = MigrationStatus { state: if switching { new.state } else { old.state }, ..told };
    told == *new
}

struct Step<'o> {
    o: &'o Observed,
    new: MigrationStatus,
    wake: Option<Timestamp>,
    target: Option<Create>,
}

impl Step<'_> {
    fn finish(&mut self, state: MigrationState, failure: Option<Failure>) {
        self.new.state = Some(state);
        self.new.reason = failure.as_ref().map(|failure| failure.class.clone());
        self.new.message =
            failure.as_ref().map(|failure| failure.text.clone()).filter(|text| !text.is_empty());
        self.new.finished_at = Some(Time(self.o.now));
        self.new.result = Some(match state {
            MigrationState::Done => MigrationResult::Succeeded,
            MigrationState::Aborted => MigrationResult::Aborted,
            _ => MigrationResult::Failed,
        });
        // That a side was told to give up is no cause.
        if self.new.failure.as_ref().is_none_or(|told| told.class == "Cancelled") {
            self.new.failure = failure;
        }
    }

    fn fail(&mut self, class: &str, text: impl Into<String>) {
        self.finish(MigrationState::Failed, Some(Failure { class: class.to_owned(), text: text.into() }));
    }

    fn wake_at(&mut self, at: Timestamp) {
        self.wake = Some(self.wake.map_or(at, |known| known.min(at)));
    }

    /// What ends a move that was not handed over yet; `true` if it has ended.
    fn ended_early(&mut self) -> bool {
        if self.o.migration.metadata.deletion_timestamp.is_some() {
            let text = "The migration was called off before it began.".to_owned();
            self.finish(MigrationState::Aborted, Some(Failure { class: "Aborted".to_owned(), text }));
            return true;
        }
        if let Some(text) = unmovable(self.o) {
            self.fail("InstanceGone", text);
            return true;
        }
        false
    }

    fn queued(&mut self) {
        self.ended_early();
    }

    /// Has a slot: the target pod is created, scheduled and started.
    fn placing(&mut self) {
        if self.ended_early() {
            return;
        }
        let Some(instance) = self.o.instance.clone() else { return };
        let slot_at = self.new.slot_at.as_ref().map_or(self.o.now, |time| time.0);
        let target = self.o.targets().next().cloned();
        let Some(pod) = target else {
            let others = self.o.pods.iter().any(|pod| !is_final(pod) && !is_claimed(&instance, pod));
            if others {
                // The next change of that pod wakes us.
                self.say(None, "Waiting until an earlier launcher of the VM is gone.");
                return;
            }
            if let Some(why) = self.o.refused.clone() {
                return self.refused(why);
            }
            let source = self.new.source.clone().unwrap_or_default();
            let pod = target_pod::build(&instance, &self.o.migration, &source.node, &self.o.image);
            let names = target_pod::names(&instance, &self.o.migration);
            let create =
                Create::of(&pod).or_named(names.into_iter().skip(1)).identified_by(&[label::MIGRATION_UID]);
            self.target = Some(create);
            return self.say(Some(rules::CREATING_TARGET), "The target pod is being created.");
        };
        if is_final(&pod) || pod.metadata.deletion_timestamp.is_some() {
            return self.fail("TargetLost", "The target pod shut down during the migration.");
        }
        if self.new.reason.as_deref() == Some("WaitingForSyncSlot") {
            // The decider watches the time of those that wait for it.
            return;
        }
        let deadline = backoff::after(slot_at, rules::PREPARE_S);
        let hindrance = hindrance(&pod);
        if self.o.now >= deadline {
            let late = format!("The target was not ready within {} s.", rules::PREPARE_S);
            return match hindrance {
                Some((class, why)) => {
                    self.fail(class.unwrap_or("TargetPreparationTimeout"), format!("{late} {why}"));
                }
                None => self.fail("TargetPreparationTimeout", late),
            };
        }
        self.wake_at(deadline);
        match hindrance {
            _ if node_of(&pod).is_none() => self.unscheduled(&pod, slot_at),
            Some((class, why)) => self.say(class, why),
            None => self.say(None, "The target is being prepared."),
        }
    }

    /// The API does not let the target pod be created (a quota, a rule): the slot serves others until it is
    /// tried again.
    fn refused(&mut self, why: String) {
        self.new.state = Some(MigrationState::Queued);
        self.new.queued_at = Some(Time(self.o.now));
        self.new.slot_at = None;
        self.new.source = None;
        self.say(Some(rules::TARGET_REFUSED), why);
    }

    fn unscheduled(&mut self, pod: &Pod, slot_at: Timestamp) {
        let Some(why) = unschedulable(pod) else { return self.say(None, "The target is being scheduled.") };
        let limit = backoff::after(slot_at, rules::UNSCHEDULABLE_S);
        if self.o.now >= limit {
            let text = "No available nodes were found to place the target VM within the timeout period";
            return self.fail("TargetUnschedulable", format!("{text}: {why}"));
        }
        self.wake_at(limit);
        self.say(Some("Unschedulable"), why);
    }

    fn say(&mut self, reason: Option<&str>, message: impl Into<String>) {
        self.new.reason = reason.map(str::to_owned);
        self.new.message = Some(message.into());
    }

    /// The agents act. Only the flip or the source's word ends it.
    fn handed_over(&mut self) {
        let source = self.new.source.clone().unwrap_or_default();
        if let Some(record) = record(self.o)
            && record.end.is_some()
            && record.result == Some(MigrationResult::Succeeded)
        {
            return self.finish(MigrationState::Done, None);
        }
        if self.guest_ended() {
            return self.fail("InstanceGone", "The VM ended during the migration.");
        }
        if source.aborted_at.is_some() {
            let wanted = self.new.abort.as_ref().map_or(abort::FAILED, |abort| &abort.reason).to_owned();
            // That it was called off is what the source knows; why, stands in the call-off.
            // What breaks because of the call-off is no cause either.
            let called_off = matches!(wanted.as_str(), abort::DELETED | "Uncordoned");
            let told = self.new.failure.take();
            let told = told.filter(|failure| failure.class != "Cancelled" && !called_off);
            let failure = told.unwrap_or_else(|| abort_text(&wanted));
            let state = if called_off { MigrationState::Aborted } else { MigrationState::Failed };
            return self.finish(state, Some(failure));
        }
        if self.is_settled_without_source() {
            let text =
                "The source's node was lost during the migration, and the guest did not continue on the \
                        target."
                    .to_owned();
            return self.fail(abort::SOURCE_LOST, text);
        }
        if source.suspended_at.is_some() {
            self.new.state = Some(MigrationState::Switching);
        } else if source.started_at.is_some() {
            self.new.state = Some(MigrationState::Copying);
        }
        self.say(None, "");
        self.new.message = None;
        // After the right was given up it is too late: one of the two sides will tell.
        if self.new.abort.is_none() && source.gave_up_at.is_none() {
            self.call_off_if_needed();
        }
        if self.new.abort.as_ref().is_none_or(|abort| abort.reason != abort::SOURCE_LOST) {
            self.call_off_if_source_is_lost();
        }
    }

    /// The guest of the source is gone with its node, and nothing of the target is left.
    fn is_settled_without_source(&self) -> bool {
        let claimed = self.o.instance.as_ref().and_then(|i| i.status.as_ref()?.claim.clone());
        let at_source = claimed.zip(self.new.source.as_ref()).is_some_and(|(c, s)| c.pod_uid == s.pod_uid);
        let target_ended = self.new.target.as_ref().is_some_and(|target| target.ended_at.is_some());
        self.o.source_lost.is_some() && at_source && target_ended
    }

    /// A source that gave up the right and was lost left its record on its disk: its agent delivers
    /// the COMMIT when the node is back. When that does not happen in time the target is told to
    /// give up; its launcher alone decides which of the two came first.
    fn call_off_if_source_is_lost(&mut self) {
        // One that does not answer a call-off counts as lost, too: until then the target waits for its word.
        let asked = self.new.abort.as_ref().and_then(|abort| abort.at.as_ref()).map(|at| at.0);
        let Some(since) = self.o.source_lost.into_iter().chain(asked).min() else { return };
        let limit = backoff::after(since, rules::ABORT_S);
        if self.o.now < limit {
            return self.wake_at(limit);
        }
        let at = Some(Time(asked.unwrap_or(self.o.now)));
        self.new.abort = Some(Abort { reason: abort::SOURCE_LOST.to_owned(), at });
    }

    fn call_off_if_needed(&mut self) {
        let o = self.o;
        let source = self.new.source.clone().unwrap_or_default();
        let target_lost = match &self.new.target {
            Some(target) => !o
                .pods
                .iter()
                .any(|pod| pod.metadata.uid.as_deref() == Some(&target.pod_uid) && !is_final(pod)),
            None => true,
        };
        let slot_at = self.new.slot_at.as_ref().map_or(o.now, |time| time.0);
        let completion = self.new.config.as_ref().map_or(i64::MAX, |config| config.completion_timeout_s);
        let (deadline, late) = match &source.started_at {
            Some(started) => (backoff::after(started.0, completion), abort::COMPLETION),
            None => (backoff::after(slot_at, rules::PREPARE_S), abort::PREPARATION),
        };
        let reason = if o.migration.metadata.deletion_timestamp.is_some() {
            abort::DELETED
        } else if self.new.failure.is_some() {
            abort::FAILED
        } else if o.instance.as_ref().is_none_or(|instance| instance.spec.power == Power::Off) {
            abort::INSTANCE_GONE
        } else if target_lost {
            abort::TARGET_LOST
        } else if o.now >= deadline {
            late
        } else {
            self.wake_at(deadline);
            return;
        };
        self.new.abort = Some(Abort { reason: reason.to_owned(), at: Some(Time(o.now)) });
    }

    /// The source's guest is gone with a proof (the engine wrote it), or the Instance itself is.
    fn guest_ended(&self) -> bool {
        match &self.o.instance {
            None => true,
            Some(instance) => {
                let status = instance.status.clone().unwrap_or_default();
                instance.spec.epoch != self.o.migration.spec.instance.epoch
                    || (status.state == Some(InstanceState::Ended)
                        && status.observed_epoch == instance.spec.epoch)
            }
        }
    }
}

/// What keeps the target's node from starting the launcher: the class of a failure that has one, and why.
fn hindrance(pod: &Pod) -> Option<(Option<&'static str>, String)> {
    let (reason, text) = container_waiting(pod)?;
    let disk = matches!(reason, "FailedMount" | "FailedAttachVolume");
    Some((disk.then_some("TargetDiskError"), format!("{reason}: {text}")))
}

fn abort_text(reason: &str) -> Failure {
    let text = match reason {
        abort::DELETED => "Live migration has been aborted.",
        abort::COMPLETION => "The migration did not finish within its completion timeout.",
        abort::PREPARATION => "The target was not prepared in time.",
        abort::TARGET_LOST => "The target pod shut down during the migration.",
        abort::INSTANCE_GONE => "The VM is being stopped.",
        _ => "The migration failed.",
    };
    Failure {
        class: if reason == abort::DELETED { "Aborted".to_owned() } else { reason.to_owned() },
        text: text.to_owned(),
    }
}

/// Why the Instance cannot be moved (any more).
fn unmovable(o: &Observed) -> Option<&'static str> {
    let Some(instance) = &o.instance else { return Some("The VM does not exist any more.") };
    if instance.spec.epoch != o.migration.spec.instance.epoch {
        return Some("The VM has been restarted meanwhile.");
    }
    let state = instance.status.as_ref().and_then(|status| status.state);
    let runs = matches!(state, Some(InstanceState::Running | InstanceState::Paused));
    if instance.spec.power == Power::Off || instance.metadata.deletion_timestamp.is_some() || !runs {
        return Some("The VM is not running any more.");
    }
    None
}

/// The Instance's record of this very move.
fn record(o: &Observed) -> Option<&InstanceMigration> {
    let record = o.instance.as_ref()?.status.as_ref()?.migration.as_ref()?;
    (Some(&record.uid) == o.migration.metadata.uid.as_ref()).then_some(record)
}

/// The record in the Instance that lets the agents act: after the hand-off, once.
fn open(o: &Observed, new: &MigrationStatus) -> Option<Patch> {
    if new.state.is_none_or(|state| state < MigrationState::Preparing) || record(o).is_some() {
        return None;
    }
    let (instance, migration) = (o.instance.as_ref()?, &o.migration);
    let (source, target) = (new.source.clone()?, new.target.clone()?);
    let old = instance.status.clone().unwrap_or_default();
    let record = InstanceMigration {
        uid: migration.metadata.uid.clone()?,
        name: migration.metadata.name.clone()?,
        source: Side { node: source.node, pod: source.pod_name, pod_uid: source.pod_uid },
        target: Side { node: target.node, pod: target.pod_name, pod_uid: target.pod_uid },
        ..InstanceMigration::default()
    };
    let new = InstanceStatus { migration: Some(record), ..old.clone() };
    Patch::status(&**instance, Some(&old), &new)
}

/// Closes the Instance's record of a move that did not succeed.
fn close(plan: &mut Plan, o: &Observed, new: &MigrationStatus) {
    let (Some(instance), Some(record)) = (&o.instance, record(o)) else { return };
    if record.end.is_some() || new.result == Some(MigrationResult::Succeeded) {
        return;
    }
    let old = instance.status.clone().unwrap_or_default();
    let closed = InstanceMigration {
        end: Some(Time(o.now)),
        result: new.result,
        failure: new.failure.as_ref().map(|failure| failure.text.clone()),
        ..record.clone()
    };
    let status = InstanceStatus { migration: Some(closed), ..old.clone() };
    if let Some(patch) = Patch::status(&**instance, Some(&old), &status) {
        plan.then(patch);
    }
}

/// Deletes the pods of a move that did not succeed. Their launchers never got the right to run, or
/// gave it back; the engine lets go of them when they have ended.
fn remove_targets(plan: &mut Plan, o: &Observed, new: &MigrationStatus) {
    if new.result == Some(MigrationResult::Succeeded) {
        return;
    }
    let claimed = |pod: &Pod| o.instance.as_ref().is_some_and(|instance| is_claimed(instance, pod));
    for pod in o.targets().filter(|pod| pod.metadata.deletion_timestamp.is_none() && !claimed(pod)) {
        plan.then(Effect::delete(&**pod));
        events::deleted(plan, o, pod);
    }
}

/// A finished move never changes (INV-7); what an interrupted pass left is put right here.
fn clean_up(plan: &mut Plan, o: &Observed, status: &MigrationStatus) {
    plan.because("finished");
    close(plan, o, status);
    remove_targets(plan, o, status);
    let succeeded = status.result == Some(MigrationResult::Succeeded);
    let left = o.targets().any(|_| !succeeded);
    if o.migration.metadata.deletion_timestamp.is_some()
        && !left
        && let Some(patch) = Patch::remove_finalizer(&*o.migration, finalizer::MIGRATION_CLEANUP)
    {
        plan.then(patch);
    }
}

/// The Instance's claim names the pod.
#[must_use]
pub fn is_claimed(instance: &Instance, pod: &Pod) -> bool {
    let claim = instance.status.as_ref().and_then(|status| status.claim.as_ref());
    claim.is_some_and(|claim| pod.metadata.uid.as_deref() == Some(claim.pod_uid.as_str()))
}

fn is_final(pod: &Arc<Pod>) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|node| !node.is_empty())
}

fn unschedulable(pod: &Pod) -> Option<String> {
    let conditions = pod.status.as_ref()?.conditions.as_deref()?;
    let refused = conditions.iter().find(|c| c.type_ == "PodScheduled" && c.status == "False")?;
    let reason = refused.reason.as_deref().unwrap_or("Unschedulable");
    Some(format!("{reason}: {}", refused.message.as_deref().unwrap_or_default()))
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
