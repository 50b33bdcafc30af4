//! Whether a VM shall start or stop now: run policy, operations, pending changes
//! (vm-lifecycle.md §2.1). Pure, one decision.

use holdfast_api::engine::{
    AfterEnd, AfterReset, ExitCause, Instance, InstanceState, Power, RestartRules, Stop, StopMode,
};
use holdfast_api::vm::{RestartApprovalMode, RunPolicy, VirtualMachineSpec};
use holdfast_api::vmop::{VmopPhase, VmopType};
use holdfast_api::{Time, VirtualMachineOperation};
use holdfast_domain::power;

use super::devices::has_ended;
use super::observe::Observed;
use super::{RESTART, STARTED_BY};

/// What shall happen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    /// A start is wanted (possible or not); who wants it.
    pub start: Option<String>,
    /// The running epoch shall end like this.
    pub stop: Option<Stop>,
    /// A VM that never ran and shall not run gets its record.
    pub record_off: bool,
    /// A start that was wanted is called off by this operation.
    pub call_off: Option<String>,
    /// Rules to store for the ended epoch, when a change of policy overrules them.
    pub rules: Option<RestartRules>,
}

/// The policy that the Instance was last told.
#[must_use]
pub fn applied_policy(instance: &Instance) -> Option<RunPolicy> {
    let spec = instance.spec.applied.vm_spec.as_ref()?;
    serde_json::from_value(spec.get("runPolicy")?.clone()).ok()
}

/// Decides. `pending`: changes wait for a restart, and a restart could apply them now.
#[must_use]
pub fn decide(o: &Observed, pending: bool) -> Decision {
    let policy = o.vm.spec.run_policy;
    let operation = accepted(o);
    match &o.instance {
        None => without_instance(policy, operation),
        Some(instance) if has_ended(instance) => after_the_end(instance, policy, operation),
        Some(instance) => while_on(o, instance, policy, operation, pending),
    }
}

/// The operation in execution, if it is about power: its controller has checked it.
fn accepted(o: &Observed) -> Option<&VirtualMachineOperation> {
    let running = |op: &&std::sync::Arc<VirtualMachineOperation>| {
        !op.spec.type_.is_migration() && op.status.as_ref().is_some_and(|s| s.phase == VmopPhase::InProgress)
    };
    o.operations.iter().find(running).map(|op| &**op)
}

/// How an operation is named in the Instance: with its uid, since a name may be used again.
#[must_use]
pub fn tag(operation: &VirtualMachineOperation) -> String {
    let meta = &operation.metadata;
    format!("vmop/{}/{}", meta.name.as_deref().unwrap_or_default(), meta.uid.as_deref().unwrap_or_default())
}

fn without_instance(policy: RunPolicy, operation: Option<&VirtualMachineOperation>) -> Decision {
    match operation.map(|op| (op.spec.type_, op)) {
        Some((VmopType::Stop, op)) => {
            Decision { record_off: true, call_off: Some(tag(op)), ..Decision::default() }
        }
        Some((VmopType::Start | VmopType::Restart, op)) => {
            Decision { start: Some(tag(op)), ..Decision::default() }
        }
        Some((VmopType::Evict | VmopType::Migrate, _)) | None => match power::starts_first(policy) {
            true => Decision { start: Some("policy".to_owned()), ..Decision::default() },
            false => Decision { record_off: true, ..Decision::default() },
        },
    }
}

fn started_by(instance: &Instance) -> Option<&str> {
    instance.metadata.annotations.as_ref()?.get(STARTED_BY).map(String::as_str)
}

fn after_the_end(
    instance: &Instance,
    policy: RunPolicy,
    operation: Option<&VirtualMachineOperation>,
) -> Decision {
    let mut decision = Decision::default();
    let applied = applied_policy(instance).unwrap_or(policy);
    let changed = applied != policy;
    if changed && matches!(policy, RunPolicy::Manual | RunPolicy::AlwaysOff) {
        // A restart that the old policy wanted is not wanted any more.
        decision.rules = Some(power::restart_rules(RunPolicy::AlwaysOff));
    }
    if policy == RunPolicy::AlwaysOff {
        return decision;
    }
    let new_operation = operation.filter(|op| started_by(instance) != Some(&tag(op)));
    match new_operation.map(|op| (op.spec.type_, op)) {
        Some((VmopType::Stop, op)) => {
            decision.rules = Some(power::restart_rules(RunPolicy::AlwaysOff));
            decision.call_off = Some(tag(op));
            return decision;
        }
        Some((VmopType::Start | VmopType::Restart, op)) => {
            decision.start = Some(tag(op));
            return decision;
        }
        Some((VmopType::Evict | VmopType::Migrate, _)) | None => {}
    }
    let restart = instance.spec.stop.as_ref().and_then(|stop| stop.by.strip_prefix(RESTART));
    if holdfast_env::mutant!("restart-forgotten") && cause(instance) == ExitCause::Crash {
        return decision;
    }
    let by_rules = decision.rules.is_none() && rules_restart(&instance.spec.restart_rules, cause(instance));
    decision.start = if let Some(by) = restart {
        Some(by.to_owned())
    } else if policy == RunPolicy::AlwaysOn || by_rules || (changed && power::change_starts(applied, policy))
    {
        Some("policy".to_owned())
    } else {
        None
    };
    decision
}

fn cause(instance: &Instance) -> ExitCause {
    instance
        .status
        .as_ref()
        .and_then(|status| status.exit.as_ref())
        .map(|exit| exit.cause)
        .unwrap_or_default()
}

/// What the rules of the ended epoch say about its cause.
fn rules_restart(rules: &RestartRules, cause: ExitCause) -> bool {
    match cause {
        ExitCause::NeverStarted | ExitCause::PlatformStop | ExitCause::GraceExpired => false,
        ExitCause::GuestShutdown => rules.guest_shutdown == AfterEnd::Restart,
        ExitCause::GuestReset => rules.guest_reset == AfterReset::Restart,
        ExitCause::Crash => rules.crash == AfterEnd::Restart,
        ExitCause::StartFailed => rules.start_failed == AfterEnd::Restart,
        ExitCause::Evicted => rules.evicted == AfterEnd::Restart,
        ExitCause::NodeLost => rules.node_lost == AfterEnd::Restart,
    }
}

fn while_on(
    o: &Observed,
    instance: &Instance,
    policy: RunPolicy,
    operation: Option<&VirtualMachineOperation>,
    pending: bool,
) -> Decision {
    let stop = |mode, by: String| Decision {
        stop: Some(Stop { mode, by, at: Some(Time(o.now)) }),
        ..Decision::default()
    };
    let forced = |op: &VirtualMachineOperation| match op.spec.force {
        Some(true) => StopMode::Force,
        Some(false) | None => StopMode::Graceful,
    };
    let off = instance.spec.power == Power::Off;
    let mode_now = instance.spec.stop.as_ref().map(|stop| stop.mode);
    let sharper = |mode: StopMode| !off || (mode == StopMode::Force && mode_now != Some(StopMode::Force));
    match operation.map(|op| (op.spec.type_, op)) {
        Some((VmopType::Stop, op)) if sharper(forced(op)) => return stop(forced(op), tag(op)),
        Some((VmopType::Restart, op)) if sharper(forced(op)) && started_by(instance) != Some(&tag(op)) => {
            return stop(forced(op), format!("{RESTART}{}", tag(op)));
        }
        _ => {}
    }
    if off {
        return Decision::default();
    }
    if policy == RunPolicy::AlwaysOff {
        return stop(StopMode::Graceful, "policy".to_owned());
    }
    let state = instance.status.as_ref().and_then(|status| status.state).unwrap_or_default();
    let automatic = o.vm.spec.disruptions.restart_approval_mode == RestartApprovalMode::Automatic;
    // Waiting for the next try of a start that fails: there is no guest to disturb.
    let moving = instance.status.as_ref().and_then(|s| s.migration.as_ref()).is_some_and(|m| m.end.is_none());
    let may_restart = automatic && state == InstanceState::Running && !moving;
    if pending && (state == InstanceState::Waiting || may_restart) {
        return stop(StopMode::Graceful, format!("{RESTART}changes"));
    }
    Decision::default()
}

/// The restart rules the Instance shall have while it is on.
#[must_use]
pub fn rules(spec: &VirtualMachineSpec) -> RestartRules {
    power::restart_rules(spec.run_policy)
}
