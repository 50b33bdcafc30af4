//! Decides the next step of an Instance. Pure.

use std::sync::Arc;

use holdfast_api::Time;
use holdfast_api::engine::{
    Claim, Exit, ExitCause, Instance, InstanceFirmware, InstanceState, InstanceStatus, LauncherPod,
    MigrationResult, PodRole, Power, Proof, ProofKind, Report, ReportState, StartFailures, Stop, StopMode,
};
use holdfast_api::names::{finalizer, label};
use holdfast_domain::{backoff, exit};
use holdfast_reconcile::{Create, Effect, Patch, Plan, Ref};
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use serde_json::json;

use super::launcher_pod;
use super::observe::Observed;

/// Reasons of a state, for people and for the front.
pub mod reason {
    /// Waiting for the start back-off.
    pub const BACK_OFF: &str = "BackOff";
    /// The API does not let its pod be created: a quota, a rule.
    pub const FAILED_CREATE: &str = "FailedCreate";
    /// The scheduler found no node.
    pub const UNSCHEDULABLE: &str = "Unschedulable";
    /// The pod has a node, the node has no live agent.
    pub const AGENT_MISSING: &str = "NodeAgentMissing";
    /// The launcher pod is being deleted although the VM shall run.
    pub const POD_TERMINATING: &str = "PodTerminating";
    /// The launcher pod is gone, the end of its guest is not proved.
    pub const POD_NOT_FOUND: &str = "PodNotFound";
    /// The container cannot be started.
    pub const CONTAINER_WAITING: &str = "ContainerWaiting";
}

/// The next step; an Instance that needs nothing yields an empty plan.
#[must_use]
pub fn plan(o: &Observed) -> Plan {
    let mut plan = Plan::default();
    let step = Step::decide(o);
    plan.set_status(&*o.instance, o.instance.status.as_ref(), &step.status);
    let old = o.instance.status.clone().unwrap_or_default();
    // The list of launchers and what they are built of is for people: nothing waits for it.
    let (pods, firmware) = (step.status.pods.clone(), step.status.firmware.clone());
    if step.status == (InstanceStatus { pods, firmware, ..old }) {
        plan.unhurried();
    }
    plan.because(step.why());
    if let Some(wake) = step.wake {
        plan.wake_at(wake);
    }
    if o.instance.metadata.deletion_timestamp.is_none() {
        if let Some(patch) = Patch::add_finalizer(&*o.instance, finalizer::INSTANCE_CLEANUP) {
            plan.then(patch);
        }
    } else if let Some(patch) = power_off_because_deleted(o) {
        plan.then(patch);
    }
    if step.create_pod {
        let pod = launcher_pod::build(&o.instance, &o.image);
        let names = launcher_pod::names(&o.instance, &launcher_pod::purpose(&o.instance));
        let pod = Create::of(&pod).or_named(names.into_iter().skip(1)).identified_by(&[label::EPOCH]);
        let claim = launcher_pod::nvram_claim(&o.instance).map(|claim| Create::of(&claim));
        for create in claim.into_iter().chain([pod]) {
            let vm = Ref::owner_of(&*o.instance).unwrap_or_else(|| Ref::identity(&*o.instance));
            let create = create.refusal_told_to(Some(vm), reason::FAILED_CREATE);
            plan.then(create.remembered_for(o.instance.metadata.uid.as_deref()));
        }
    }
    for pod in &o.pods {
        if step.is_over(pod) {
            release(&mut plan, pod);
        } else {
            tend(&mut plan, o, pod, &step.status);
        }
        if step.misplaced.is_some() && step.misplaced == pod.metadata.uid {
            plan.then(Effect::delete(&**pod));
        }
    }
    let ended = step.status.state == Some(InstanceState::Ended);
    if ended
        && o.pods.is_empty()
        && o.instance.metadata.deletion_timestamp.is_some()
        && let Some(patch) = Patch::remove_finalizer(&*o.instance, finalizer::INSTANCE_CLEANUP)
    {
        plan.then(patch);
    }
    plan
}

/// Agents look at `spec.power` only. The front switches it off before it deletes; an Instance
/// deleted by hand is switched off here.
fn power_off_because_deleted(o: &Observed) -> Option<Patch> {
    if o.instance.spec.power == Power::Off {
        return None;
    }
    let mut spec = o.instance.spec.clone();
    spec.power = Power::Off;
    spec.stop = Some(Stop { mode: StopMode::Graceful, by: "deletion".to_owned(), at: Some(Time(o.now)) });
    Patch::field(&*o.instance, "spec", Some(&o.instance.spec), &spec)
}

/// Lets go of a pod whose end is proved.
fn release(plan: &mut Plan, pod: &Arc<Pod>) {
    if let Some(patch) = Patch::remove_finalizer(&**pod, finalizer::POD_PROTECTION) {
        plan.then(patch);
    }
    if pod.metadata.deletion_timestamp.is_none() {
        plan.then(Effect::delete(&**pod));
    }
}

/// Keeps a live pod's labels, annotations and readiness true.
fn tend(plan: &mut Plan, o: &Observed, pod: &Arc<Pod>, status: &InstanceStatus) {
    if let Some(body) = launcher_pod::propagation(&o.instance, pod) {
        plan.then(Patch { target: Ref::exact(&**pod), status: false, body });
    }
    if shall_stop(&o.instance) && was_never_started(pod) && pod.metadata.deletion_timestamp.is_none() {
        // Its container has not been started and shall not be: nobody else would end it.
        plan.then(Effect::delete(&**pod));
    }
    let is_claimed = status.claim.as_ref().map(|claim| claim.pod_uid.as_str()) == pod.metadata.uid.as_deref();
    let runs = is_claimed && status.state == Some(InstanceState::Running);
    if let Some(patch) = readiness(pod, runs, o) {
        plan.then(patch);
    }
}

/// The readiness gate "virtual machine unpaused": True while the guest runs in this very pod.
fn readiness(pod: &Pod, runs: bool, o: &Observed) -> Option<Patch> {
    let gate = holdfast_api::names::object::UNPAUSED_GATE;
    let mut conditions = pod.status.as_ref()?.conditions.clone().unwrap_or_default();
    let wanted = if runs { "True" } else { "False" };
    match conditions.iter_mut().find(|condition| condition.type_ == gate) {
        Some(known) if known.status == wanted => return None,
        Some(known) => {
            wanted.clone_into(&mut known.status);
            known.last_transition_time = Some(Time(o.now));
        }
        // Absent counts as False: nothing is written before the guest first runs.
        None if !runs => return None,
        None => conditions.push(PodCondition {
            type_: gate.to_owned(),
            status: wanted.to_owned(),
            last_transition_time: Some(Time(o.now)),
            reason: Some("GuestRunning".to_owned()),
            ..PodCondition::default()
        }),
    }
    let body = json!({ "status": { "conditions": conditions } });
    Some(Patch { target: Ref::exact(pod), status: true, body })
}

/// What was decided about the Instance itself.
struct Step {
    status: InstanceStatus,
    create_pod: bool,
    /// A pod that waits for a node under an earlier placement of the VM: it gives way to a new one.
    misplaced: Option<String>,
    wake: Option<holdfast_env::Timestamp>,
    epoch: i64,
}

impl Step {
    fn decide(o: &Observed) -> Self {
        let epoch = o.instance.spec.epoch;
        let old = o.instance.status.clone().unwrap_or_default();
        let opens =
            old.state.is_none() || (old.observed_epoch != epoch && old.state == Some(InstanceState::Ended));
        let status = if opens { opened(&o.instance, &old) } else { old };
        let mut step = Self { status, create_pod: false, misplaced: None, wake: None, epoch };
        if step.status.state != Some(InstanceState::Ended) {
            match step.status.claim.clone() {
                None => step.unclaimed(o),
                Some(claim) => step.claimed(o, &claim),
            }
        }
        step.status.pods = step.listed(o);
        step.status.firmware = step.firmware(o);
        step
    }

    /// What the active launcher was made from; kept while its pod cannot be seen.
    fn firmware(&self, o: &Observed) -> Option<InstanceFirmware> {
        let active =
            self.status.active_pod.as_ref().filter(|_| self.status.state != Some(InstanceState::Ended))?;
        let pod = o.pods.iter().find(|pod| pod.metadata.uid.as_deref() == Some(&active.uid));
        match pod.and_then(|pod| launcher_pod::image(pod)) {
            Some(image) => Some(InstanceFirmware { pod_uid: active.uid.clone(), image: image.to_owned() }),
            None => self.status.firmware.clone(),
        }
    }

    fn why(&self) -> String {
        let state = self.status.state.unwrap_or_default();
        match &self.status.reason {
            Some(reason) => format!("epoch {} is {state:?}: {reason}", self.epoch),
            None => format!("epoch {} is {state:?}", self.epoch),
        }
    }

    fn become_state(&mut self, state: InstanceState, reason: Option<&str>, message: impl Into<String>) {
        self.status.state = Some(state);
        self.status.reason = reason.map(str::to_owned);
        let message = message.into();
        self.status.message = (!message.is_empty()).then_some(message);
    }

    fn end(&mut self, o: &Observed, cause: ExitCause, detail: &str, proof: Proof) {
        let never_ran = self.status.runtime.as_ref().is_none_or(|runtime| runtime.started_at.is_none());
        let failed = cause == ExitCause::StartFailed || (cause == ExitCause::Crash && never_ran);
        if failed {
            let count = self.status.start_failures.as_ref().map_or(0, |failures| failures.count) + 1;
            let delay = backoff::start_delay_s(count, o.jitter);
            let retry_at = Some(Time(backoff::after(whole_second(o.now), delay)));
            self.status.start_failures = Some(StartFailures { count, retry_at });
        }
        let proof = Proof { at: Some(Time(whole_second(o.now))), ..proof };
        self.status.exit = Some(Exit { cause, detail: detail.to_owned(), at: proof.at.clone(), proof });
        self.become_state(InstanceState::Ended, Some(&format!("{cause:?}")), detail);
    }

    /// No claim: nothing of this epoch has been allowed to start QEMU.
    fn unclaimed(&mut self, o: &Observed) {
        let never =
            || Proof { kind: ProofKind::NeverStarted, by: Some("instance".to_owned()), ..Proof::default() };
        if shall_stop(&o.instance) {
            return self.end(o, ExitCause::PlatformStop, "Stopped before it was placed on a node.", never());
        }
        let retry_at = self.status.start_failures.as_ref().and_then(|failures| failures.retry_at.clone());
        if let Some(Time(at)) = retry_at
            && o.now < at
        {
            self.wake = Some(at);
            let count = self.status.start_failures.as_ref().map_or(0, |failures| failures.count);
            let message = format!("{count} starts in a row failed; the next one is tried at {at}.");
            return self.become_state(InstanceState::Waiting, Some(reason::BACK_OFF), message);
        }
        let Some(pod) = o.pods.iter().find(|pod| self.is_candidate(pod)) else {
            self.create_pod = true;
            let reason = o.refused.as_ref().map(|_| reason::FAILED_CREATE);
            return self.become_state(InstanceState::Placing, reason, o.refused.clone().unwrap_or_default());
        };
        if is_final(pod) {
            let text = launcher_pod::failure(pod);
            return self.end(o, ExitCause::StartFailed, &text, never());
        }
        let Some(node) = node_of(pod) else {
            if !launcher_pod::is_placed_as_wanted(&o.instance, pod) {
                self.misplaced.clone_from(&pod.metadata.uid);
            }
            let (reason, message) = scheduling(pod);
            return self.become_state(InstanceState::Placing, reason, message);
        };
        let Some(boot_id) = o.boots.get(node) else {
            let message =
                format!("The launcher pod is on node {node}, whose agent does not hold its fence Lease.");
            return self.become_state(InstanceState::Placing, Some(reason::AGENT_MISSING), message);
        };
        self.status.claim = Some(Claim {
            node: node.to_owned(),
            boot_id: boot_id.clone(),
            pod_uid: pod.metadata.uid.clone().unwrap_or_default(),
            epoch: self.epoch,
        });
        self.become_state(InstanceState::Booting, None, "");
    }

    /// A pod that may run this epoch: made for it, not for a move.
    fn is_candidate(&self, pod: &Pod) -> bool {
        epoch_of(pod) == Some(self.epoch) && !is_for_a_move(pod) && pod.metadata.deletion_timestamp.is_none()
    }

    /// A claim was written: only a proof ends the epoch now.
    fn claimed(&mut self, o: &Observed, claim: &Claim) {
        let pod = o.pods.iter().find(|pod| pod.metadata.uid.as_deref() == Some(&claim.pod_uid));
        let pod_deleted = pod.is_some_and(|pod| pod.metadata.deletion_timestamp.is_some());
        let report = self
            .status
            .report
            .clone()
            .filter(|report| report.epoch == self.epoch && report.pod_uid == claim.pod_uid);
        let proof = |kind| Proof {
            kind,
            node: Some(claim.node.clone()),
            boot_id: Some(claim.boot_id.clone()),
            by: Some("instance".to_owned()),
            at: None,
        };
        if let Some(report) = &report
            && report.state == ReportState::Ended
            && report.cgroup_empty
        {
            let power = if shall_stop(&o.instance) { Power::Off } else { Power::On };
            let reported = report.cause.unwrap_or(ExitCause::Crash);
            // What had crashed or powered off before somebody evicted its final pod was not ended by the eviction.
            let ended_first = pod.is_some_and(|pod| launcher_pod::ended_before_deletion(pod));
            let cause = exit::cause(reported, power, pod_deleted && !ended_first);
            let by = Some(format!("agent/{}", claim.node));
            return self.end(o, cause, &report.detail, Proof { by, ..proof(ProofKind::AgentReport) });
        }
        let rebooted = o.boots.get(&claim.node).is_some_and(|boot| *boot != claim.boot_id);
        let moved = self.may_run_on_a_target(o, claim) && !holdfast_env::mutant!("reboot-ends-moved-guest");
        if rebooted && !moved {
            let detail =
                format!("Node {} came back under another boot id; what ran there is gone.", claim.node);
            return self.end(o, ExitCause::NodeLost, &detail, proof(ProofKind::NodeRebooted));
        }
        if pod.is_none() && holdfast_env::mutant!("missing-pod-proves-end") {
            return self.end(o, ExitCause::NodeLost, "its pod is gone", proof(ProofKind::AgentReport));
        }
        if pod.is_some_and(|pod| is_final(pod)) && holdfast_env::mutant!("final-pod-proves-end") {
            return self.end(o, ExitCause::Crash, "its pod has ended", proof(ProofKind::AgentReport));
        }
        self.live(o, report.as_ref(), pod, pod_deleted);
    }

    /// The guest may have been handed over to the target of a move: the loss of the source alone
    /// proves nothing then. Before the hand-off no target may start QEMU; after it its agent tells
    /// when nothing of the target is left, or flips.
    fn may_run_on_a_target(&self, o: &Observed, claim: &Claim) -> bool {
        let record = self.status.migration.as_ref();
        let Some(record) = record.filter(|m| m.end.is_none() && m.source.pod_uid == claim.pod_uid) else {
            return false;
        };
        let migration = o.migration.as_ref().filter(|m| m.metadata.uid.as_ref() == Some(&record.uid));
        let target = migration.and_then(|m| m.status.as_ref()?.target.as_ref());
        match target {
            Some(target) => target.pod_uid != record.target.pod_uid || target.ended_at.is_none(),
            // Removed by force: what is left to look at is its pod.
            None => o.pods.iter().any(|pod| is_for_a_move(pod) && !is_final(pod)),
        }
    }

    fn live(&mut self, o: &Observed, report: Option<&Report>, pod: Option<&Arc<Pod>>, pod_deleted: bool) {
        if shall_stop(&o.instance) {
            return self.become_state(InstanceState::Stopping, None, "");
        }
        if pod_deleted {
            let message = "The launcher pod is being deleted.";
            return self.become_state(InstanceState::Stopping, Some(reason::POD_TERMINATING), message);
        }
        match report.map(|report| (report.state, report)) {
            // The flip moved the claim; the target's own report may lag behind it. The guest runs.
            Some((ReportState::Starting, _)) | None if self.has_just_moved() => {
                self.become_state(InstanceState::Running, None, "");
            }
            Some((ReportState::Running, _)) => {
                self.status.start_failures = None;
                self.become_state(InstanceState::Running, None, "");
            }
            Some((ReportState::Paused, report)) => {
                let why = report.paused_reason.as_deref();
                self.become_state(InstanceState::Paused, why, report.detail.clone());
            }
            // An end without an empty cgroup is not proved yet.
            Some((ReportState::Ended, report)) => {
                self.become_state(InstanceState::Stopping, None, report.detail.clone());
            }
            Some((ReportState::Starting, _)) | None => match pod {
                None => {
                    let message = "The launcher pod is gone; the end of its guest is not proved.";
                    self.become_state(InstanceState::Booting, Some(reason::POD_NOT_FOUND), message);
                }
                Some(pod) => {
                    let waiting = container_waiting(pod).map(|(reason, text)| format!("{reason}: {text}"));
                    let reason = waiting.as_ref().map(|_| reason::CONTAINER_WAITING);
                    self.become_state(InstanceState::Booting, reason, waiting.unwrap_or_default());
                }
            },
        }
    }

    /// Whether nothing of this pod can run any more, so that it may go.
    fn is_over(&self, pod: &Pod) -> bool {
        let ended = self.status.state == Some(InstanceState::Ended);
        let old_epoch = epoch_of(pod) != Some(self.epoch);
        match &self.status.claim {
            _ if ended || old_epoch => true,
            Some(claim) if pod.metadata.uid.as_deref() == Some(&claim.pod_uid) => false,
            // Not the claimed one: it may not start QEMU. Both sides of a move end by themselves and
            // belong to the move until then. A pod without a node has no process, and nobody who
            // would report its end.
            Some(_) => {
                let never_placed = pod.metadata.deletion_timestamp.is_some() && node_of(pod).is_none();
                is_final(pod) || never_placed || !(is_for_a_move(pod) || self.is_source_of_a_move(pod))
            }
            None => is_final(pod) || pod.metadata.deletion_timestamp.is_some(),
        }
    }

    /// The claimed pod took the guest over from another one that ran it.
    fn has_just_moved(&self) -> bool {
        let (Some(migration), Some(claim)) = (&self.status.migration, &self.status.claim) else {
            return false;
        };
        migration.result == Some(MigrationResult::Succeeded)
            && migration.target.pod_uid == claim.pod_uid
            && self.status.state == Some(InstanceState::Running)
    }

    fn is_source_of_a_move(&self, pod: &Pod) -> bool {
        let source = self.status.migration.as_ref().map(|migration| migration.source.pod_uid.as_str());
        source.is_some() && pod.metadata.uid.as_deref() == source
    }

    fn listed(&self, o: &Observed) -> Vec<LauncherPod> {
        let claimed = self.status.claim.as_ref().map(|claim| claim.pod_uid.as_str());
        let list = o.pods.iter().filter(|pod| !self.is_over(pod)).map(|pod| LauncherPod {
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            node: node_of(pod).map(str::to_owned),
            role: match is_for_a_move(pod) && claimed != pod.metadata.uid.as_deref() {
                true => PodRole::Target,
                false => PodRole::Active,
            },
            epoch: epoch_of(pod).unwrap_or_default(),
        });
        list.collect()
    }
}

/// The status with which an epoch begins. The agent's rows of the last epoch are dropped here:
/// nobody else may take an old report for a new one.
fn opened(instance: &Instance, old: &InstanceStatus) -> InstanceStatus {
    let spec = &instance.spec;
    let mut new = InstanceStatus {
        observed_epoch: spec.epoch,
        state: Some(InstanceState::Waiting),
        start_failures: old.start_failures.clone(),
        ..InstanceStatus::default()
    };
    if spec.power == Power::Off && spec.epoch == 0 {
        new.state = Some(InstanceState::Ended);
        new.reason = Some(format!("{:?}", ExitCause::NeverStarted));
        new.exit = Some(Exit::default());
    }
    new
}

fn whole_second(at: holdfast_env::Timestamp) -> holdfast_env::Timestamp {
    holdfast_env::Timestamp::from_second(at.as_second()).unwrap_or(at)
}

fn shall_stop(instance: &Instance) -> bool {
    instance.spec.power == Power::Off || instance.metadata.deletion_timestamp.is_some()
}

fn epoch_of(pod: &Pod) -> Option<i64> {
    pod.metadata.labels.as_ref()?.get(label::EPOCH)?.parse().ok()
}

fn is_for_a_move(pod: &Pod) -> bool {
    pod.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(label::MIGRATION_UID))
}

fn is_final(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// The pod has a node, and the node has not started its container.
fn was_never_started(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    node_of(pod).is_some() && matches!(phase, None | Some("Pending"))
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|node| !node.is_empty())
}

fn scheduling(pod: &Pod) -> (Option<&'static str>, String) {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let refused = conditions.iter().find(|c| c.type_ == "PodScheduled" && c.status == "False");
    match refused {
        Some(condition) => {
            let why = condition.reason.as_deref().unwrap_or(reason::UNSCHEDULABLE);
            let message = condition.message.as_deref().unwrap_or_default();
            (Some(reason::UNSCHEDULABLE), format!("{why}: {message}"))
        }
        None => (None, String::new()),
    }
}

/// What keeps the node from starting the container: a CamelCase word, and a sentence if there is one.
#[must_use]
pub fn container_waiting(pod: &Pod) -> Option<(&str, &str)> {
    let statuses = pod.status.as_ref()?.container_statuses.as_deref()?;
    let waiting = statuses.first()?.state.as_ref()?.waiting.as_ref()?;
    let reason = waiting.reason.as_deref().unwrap_or_default();
    if matches!(reason, "" | "ContainerCreating" | "PodInitializing") {
        return None;
    }
    Some((reason, waiting.message.as_deref().unwrap_or_default()))
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
