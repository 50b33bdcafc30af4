//! The plan for one VM. Pure.

use holdfast_api::engine::{
    AfterEnd, ExitCause, Instance, InstanceSpec, MigrationState, Power, Stop, StopMode,
};
use holdfast_api::names::{finalizer, label};
use holdfast_api::vm::{RestartAwaitingChange, VirtualMachineStatus, VmPhase};
use holdfast_api::vmip::{IpAddressType, VirtualMachineIPAddressSpec};
use holdfast_api::{Time, VirtualMachineIPAddress};
use holdfast_domain::{changes, eviction};
use holdfast_env::derived_name;
use holdfast_reconcile::{Create, Effect, NoteKind, Patch, Plan, Ref, owner_reference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use serde_json::json;

use super::dependencies::Dependencies;
use super::desire;
use super::devices::has_ended;
use super::observe::Observed;
use super::phase;
use super::power::{self, Decision};
use super::project::{self, Decided};
use super::{RESTART, STARTED_BY};
use crate::placement_update::misplaced;

/// How many names are tried for the automatic address.
const ADDRESS_NAMES: u64 = 4;

/// The next step; a VM that needs nothing yields an empty plan.
#[must_use]
pub fn plan(o: &Observed) -> Plan {
    if o.vm.metadata.deletion_timestamp.is_some() {
        return deletion(o);
    }
    let mut plan = Plan::default();
    let dependencies = Dependencies::of(o);
    let changes = pending_changes(o);
    let placement = waiting_placement(o);
    let first_pass = o.vm.status.as_ref().is_none_or(|status| status.phase.is_none());
    // The first pass records Pending; what follows is decided from there.
    let ready = dependencies.ready() && !o.foreign_instance;
    // A restart that could not end in a running VM is not begun for the sake of changes.
    let pending = ready && (!changes.is_empty() || placement.is_some());
    let decision = if first_pass { Decision::default() } else { power::decide(o, pending) };
    let phase = phase::of(o, &decision, ready);
    let decided = Decided {
        phase,
        dependencies: &dependencies,
        changes: &changes,
        placement: placement.as_deref(),
        start_wanted: decision.start.is_some(),
    };
    let status = project::status(o, &decided);
    plan.set_status(&*o.vm, o.vm.status.as_ref(), &status);
    if !is_waited_for(o.vm.status.as_ref(), &status) {
        plan.unhurried();
    }
    plan.because(why(o, phase, &decision, ready));
    if let Some(patch) = Patch::add_finalizer(&*o.vm, finalizer::VM_CLEANUP) {
        plan.then(patch);
    }
    notes(&mut plan, o, &status);
    if let Some(create) = automatic_address(o) {
        plan.then(create);
    }
    if !first_pass && !o.foreign_instance {
        act(&mut plan, o, &decision, ready);
    }
    plan
}

/// Whether the change is one that people and programs wait for: what they asked for is answered, the VM is in
/// another phase, on another node.
fn is_waited_for(old: Option<&VirtualMachineStatus>, new: &VirtualMachineStatus) -> bool {
    let what = |status: &VirtualMachineStatus| {
        (status.phase, status.node_name.clone(), status.ip_address.clone(), status.observed_generation)
    };
    old.is_none_or(|old| what(old) != what(new))
}

/// What waits for a restart of the running epoch.
fn pending_changes(o: &Observed) -> Vec<RestartAwaitingChange> {
    let Some(instance) = o.instance.as_deref().filter(|instance| !has_ended(instance)) else {
        return Vec::new();
    };
    match desire::applied_spec(instance) {
        Some(applied) => changes::awaiting_restart(&applied, &o.vm.spec),
        None => Vec::new(),
    }
}

/// Why a changed placement waits for a restart: the node is wrong, and the VM cannot be moved.
fn waiting_placement(o: &Observed) -> Option<String> {
    let instance = o.instance.as_deref().filter(|instance| !has_ended(instance))?;
    let node = misplaced(instance)?;
    let why = eviction::migratable(instance).err()?;
    Some(format!(
        "The placement was modified: node {node} does not satisfy it, a restart would apply it. {why}"
    ))
}

fn why(o: &Observed, phase: VmPhase, decision: &Decision, ready: bool) -> String {
    let mut text = format!("phase {phase}");
    if let Some(by) = &decision.start {
        text += &format!("; start wanted by {by}{}", if ready { "" } else { ", dependencies are not ready" });
    }
    if let Some(stop) = &decision.stop {
        text += &format!("; stop {:?} by {}", stop.mode, stop.by);
    }
    if o.foreign_instance {
        text += "; an Instance of the same name belongs to another object";
    }
    text
}

/// Creates, restarts, stops or updates the Instance: one write at most.
fn act(plan: &mut Plan, o: &Observed, decision: &Decision, ready: bool) {
    let event = |plan: &mut Plan, reason: &str, text: String| {
        plan.then(Effect::event(&*o.vm, NoteKind::Normal, reason, text));
    };
    match (&o.instance, &decision.start) {
        (None, Some(by)) if ready => {
            plan.then(Create::of(&desire::first(o, desire::power_on(o, 1), by)));
            event(plan, "Started", format!("Start initiated by {}.", initiator(by)));
        }
        (None, None) if decision.record_off && (ready || decision.call_off.is_some()) => {
            let by = decision.call_off.as_deref().unwrap_or("policy");
            plan.then(Create::of(&desire::first(o, desire::never_on(o), by)));
        }
        (None, _) => {}
        (Some(instance), Some(by)) if ready && has_ended(instance) => {
            let spec = desire::power_on(o, instance.spec.epoch + 1);
            plan.then(new_epoch(instance, &spec, by));
            let was = o.vm.status.as_ref().and_then(|status| status.phase);
            let first = instance.spec.epoch == 0 || was == Some(VmPhase::Stopped);
            let reason = if first { "Started" } else { "Restarted" };
            // A restart of ours was announced when it was decided.
            if !instance.spec.stop.as_ref().is_some_and(|stop| stop.by.starts_with(RESTART)) {
                event(plan, reason, format!("Start initiated by {}{}.", initiator(by), after(instance)));
            }
        }
        (Some(instance), _) => {
            let ended = has_ended(instance);
            let mut spec = desire::live(o, instance, ended);
            if let Some(stop) = &decision.stop {
                spec.power = Power::Off;
                spec.stop = Some(stop.clone());
                announce(plan, o, &stop.by);
            }
            if let Some(rules) = &decision.rules {
                spec.restart_rules = rules.clone();
            }
            if let Some(by) = &decision.call_off {
                spec.stop = Some(Stop { mode: StopMode::Graceful, by: by.clone(), at: Some(Time(o.now)) });
            }
            update(plan, instance, spec);
        }
    }
}

/// Says who stops or restarts a running VM, and what for.
fn announce(plan: &mut Plan, o: &Observed, by: &str) {
    let mut event = |reason: &str, text: String| {
        plan.then(Effect::event(&*o.vm, NoteKind::Normal, reason, text));
    };
    let who = initiator(by);
    match by.strip_prefix(RESTART) {
        Some("changes") => {
            event("Restarted", "Restart initiated by controller to apply changes.".to_owned());
            event("ChangesApplied", "Changes are applied with a restart.".to_owned());
        }
        Some(_) => event("Restarted", format!("Restart initiated by {who}.")),
        None if by == "policy" => {
            event("Stopped", format!("Stop initiated by {who} to ensure {}.", o.vm.spec.run_policy));
        }
        None => event("Stopped", format!("Stop initiated by {who}.")),
    }
}

/// How the epoch ended, as the end of a sentence.
fn after(instance: &Instance) -> &'static str {
    let exit = instance.status.as_ref().and_then(|status| status.exit.as_ref());
    match exit.map(|exit| exit.cause).unwrap_or_default() {
        ExitCause::GuestShutdown | ExitCause::GuestReset => " from inside the guest",
        ExitCause::Crash | ExitCause::StartFailed => " after the guest failed",
        ExitCause::Evicted => " after the deletion of the pod",
        ExitCause::NodeLost => " after the loss of the node",
        ExitCause::NeverStarted | ExitCause::PlatformStop | ExitCause::GraceExpired => "",
    }
}

/// Says once that the VM has stopped by itself; a stop of ours was announced when it was asked for.
fn ended(plan: &mut Plan, o: &Observed, new: &VirtualMachineStatus) {
    let before = o.vm.status.as_ref().and_then(|status| status.phase);
    let was_on =
        matches!(before, Some(VmPhase::Running | VmPhase::Migrating | VmPhase::Stopping | VmPhase::Starting));
    let stopped = was_on && new.phase == Some(VmPhase::Stopped);
    let Some(instance) = o.instance.as_ref().filter(|_| stopped) else { return };
    let by_itself = after(instance);
    if !by_itself.is_empty() {
        plan.then(Effect::event(&*o.vm, NoteKind::Normal, "Stopped", format!("Stopped{by_itself}.")));
    }
}

fn initiator(by: &str) -> String {
    let by = by.strip_prefix(RESTART).unwrap_or(by);
    match by.strip_prefix("vmop/") {
        Some(rest) => format!("VirtualMachineOperation {}", rest.split('/').next().unwrap_or_default()),
        None if by == "policy" => "controller by the run policy".to_owned(),
        None => format!("controller ({by})"),
    }
}

fn new_epoch(instance: &Instance, spec: &InstanceSpec, by: &str) -> Effect {
    let difference = Patch::field(instance, "spec", Some(&instance.spec), spec);
    let mut patch =
        difference.unwrap_or_else(|| Patch { target: Ref::exact(instance), status: false, body: json!({}) });
    patch.body["metadata"] = json!({ "annotations": { STARTED_BY: by } });
    Effect::Patch(patch)
}

fn update(plan: &mut Plan, instance: &Instance, mut spec: InstanceSpec) {
    // A generation alone is no reason to write.
    spec.applied.vm_generation = instance.spec.applied.vm_generation;
    if let Some(patch) = Patch::field(instance, "spec", Some(&instance.spec), &spec) {
        plan.then(patch);
    }
}

fn automatic_address(o: &Observed) -> Option<Create> {
    if o.vmip.is_some() || o.vm.spec.virtual_machine_ip_address_name.is_some() {
        return None;
    }
    let uid = o.vm.metadata.uid.clone()?;
    let vm = o.vm.metadata.name.as_deref().unwrap_or_default();
    let names: Vec<String> =
        (0..ADDRESS_NAMES).map(|attempt| derived_name(vm, &uid, "vmip", attempt)).collect();
    let spec = VirtualMachineIPAddressSpec { type_: IpAddressType::Auto, static_ip: None };
    let mut address = VirtualMachineIPAddress::new(names.first()?, spec);
    address.metadata = ObjectMeta {
        namespace: o.vm.metadata.namespace.clone(),
        labels: Some([(label::VM_UID.to_owned(), uid)].into()),
        owner_references: Some(vec![owner_reference(&*o.vm)]),
        ..address.metadata
    };
    Some(Create::of(&address).or_named(names.into_iter().skip(1)))
}

/// Events about conditions that got worse, once per change.
fn notes(plan: &mut Plan, o: &Observed, new: &VirtualMachineStatus) {
    let old = o.vm.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    for (type_, kind) in [
        ("VirtualMachineClassReady", NoteKind::Warning),
        ("BlockDevicesReady", NoteKind::Normal),
        ("EvictionRequired", NoteKind::Normal),
    ] {
        let Some(now) = holdfast_api::condition::find(&new.conditions, type_) else { continue };
        let bad = (type_ == "EvictionRequired") == (now.status == "True");
        let before = holdfast_api::condition::find(old, type_);
        let news = before.is_none_or(|before| before.reason != now.reason || before.status != now.status);
        if bad && news && !now.message.is_empty() {
            plan.then(Effect::event(&*o.vm, kind, now.reason.clone(), now.message.clone()));
        }
    }
    let running = |conditions: &[Condition]| holdfast_api::condition::find(conditions, "Running").cloned();
    let is_silent = |one: &Condition| one.reason == "NodeUnresponsive";
    if let Some(silent) = running(&new.conditions).filter(is_silent)
        && !running(old).as_ref().is_some_and(is_silent)
    {
        plan.then(Effect::event(&*o.vm, NoteKind::Warning, silent.reason, silent.message));
    }
    ended(plan, o, new);
    let waiting = |changes: usize| changes > 0;
    let had = o.vm.status.as_ref().map_or(0, |status| status.restart_awaiting_changes.len());
    if waiting(new.restart_awaiting_changes.len()) && !waiting(had) {
        let text = "Configuration changes wait for a restart of the VM.";
        plan.then(Effect::event(&*o.vm, NoteKind::Normal, "RestartAwaitingChanges", text));
    }
}

/// The order of first-slice.md §4.5: moves, Instance, then our finalizer.
fn deletion(o: &Observed) -> Plan {
    let mut plan = Plan::default();
    let mut status = o.vm.status.clone().unwrap_or_default();
    status.phase = Some(VmPhase::Terminating);
    plan.set_status(&*o.vm, o.vm.status.as_ref(), &status);
    let unfinished: Vec<_> = o
        .migrations
        .iter()
        .filter(|m| !m.status.as_ref().and_then(|status| status.state).is_some_and(MigrationState::is_final))
        .collect();
    if !unfinished.is_empty() {
        plan.because("deletion: moves are being called off first");
        for migration in unfinished.iter().filter(|m| m.metadata.deletion_timestamp.is_none()) {
            plan.then(Effect::delete(&***migration));
        }
        return plan;
    }
    if let Some(instance) = &o.instance {
        plan.because("deletion: the Instance ends first");
        if instance.metadata.deletion_timestamp.is_none() {
            let mut spec = instance.spec.clone();
            spec.power = Power::Off;
            spec.restart_rules.guest_shutdown = AfterEnd::Stay;
            if instance.spec.power == Power::On {
                let by = "deletion".to_owned();
                spec.stop = Some(Stop { mode: StopMode::Graceful, by, at: Some(Time(o.now)) });
            }
            update(&mut plan, instance, spec);
            plan.then(Effect::delete(&**instance));
        }
        return plan;
    }
    plan.because("deletion: nothing is left");
    if let Some(patch) = Patch::remove_finalizer(&*o.vm, finalizer::VM_CLEANUP) {
        plan.then(patch);
    }
    plan
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "changes_tests.rs"]
mod changes_tests;
