//! Phase of a VM (vm-lifecycle.md §1.1). Derived here and nowhere else.

use holdfast_api::engine::{ExitCause, Instance, InstanceMigration, InstanceState, Power};
use holdfast_api::vm::VmPhase;

use super::devices::has_ended;
use super::observe::Observed;
use super::power::Decision;
use crate::engine::instance::reason;

/// The move to be shown: under way, or begun and not shown yet (a small guest moves faster than
/// a watch is followed; first-slice.md §6 trap 1).
#[must_use]
pub fn move_to_show(o: &Observed) -> Option<&InstanceMigration> {
    let migration = o.instance.as_ref()?.status.as_ref()?.migration.as_ref()?;
    let start = migration.start.as_ref()?;
    let shown = o.vm.status.as_ref().and_then(|status| status.migration_state.as_ref());
    let is_new = shown.and_then(|state| state.start_timestamp.as_ref()).map(|t| t.0.as_second())
        != Some(start.0.as_second());
    (migration.end.is_none() || is_new).then_some(migration)
}

/// The phase; first match wins.
#[must_use]
pub fn of(o: &Observed, decision: &Decision, ready: bool) -> VmPhase {
    if o.vm.metadata.deletion_timestamp.is_some() {
        return VmPhase::Terminating;
    }
    let before = o.vm.status.as_ref().and_then(|status| status.phase);
    let Some(before) = before else { return VmPhase::Pending };
    match &o.instance {
        None if o.foreign_instance => VmPhase::Pending,
        None => match &decision.start {
            Some(_) if ready => VmPhase::Starting,
            Some(_) | None => VmPhase::Pending,
        },
        Some(instance) if has_ended(instance) => ended(instance, decision, ready, before),
        Some(instance) => on(o, instance, decision),
    }
}

fn ended(instance: &Instance, decision: &Decision, ready: bool, before: VmPhase) -> VmPhase {
    if decision.start.is_none() {
        return VmPhase::Stopped;
    }
    let cause = instance.status.as_ref().and_then(|status| status.exit.as_ref()).map(|exit| exit.cause);
    if !ready || cause == Some(ExitCause::StartFailed) {
        return VmPhase::Pending;
    }
    // A restart never shows Stopped.
    match before {
        VmPhase::Running | VmPhase::Migrating | VmPhase::Stopping | VmPhase::Pause | VmPhase::Starting => {
            VmPhase::Stopping
        }
        VmPhase::Pending | VmPhase::Stopped | VmPhase::Terminating | VmPhase::Degraded => VmPhase::Starting,
    }
}

fn on(o: &Observed, instance: &Instance, decision: &Decision) -> VmPhase {
    let status = instance.status.clone().unwrap_or_default();
    // The engine has not looked at this epoch yet.
    let fresh = status.observed_epoch != instance.spec.epoch;
    let state = if fresh { InstanceState::Waiting } else { status.state.unwrap_or_default() };
    if instance.spec.power == Power::Off
        || decision.stop.is_some()
        || instance.metadata.deletion_timestamp.is_some()
    {
        return VmPhase::Stopping;
    }
    match state {
        InstanceState::Running if move_to_show(o).is_some() => VmPhase::Migrating,
        InstanceState::Running => VmPhase::Running,
        InstanceState::Paused if move_to_show(o).is_some() => VmPhase::Migrating,
        InstanceState::Paused => VmPhase::Pause,
        InstanceState::Stopping => VmPhase::Stopping,
        InstanceState::Waiting if !fresh && status.reason.as_deref() == Some(reason::BACK_OFF) => {
            VmPhase::Pending
        }
        InstanceState::Booting if status.reason.as_deref() == Some(reason::CONTAINER_WAITING) => {
            VmPhase::Pending
        }
        InstanceState::Waiting | InstanceState::Placing | InstanceState::Booting | InstanceState::Ended => {
            VmPhase::Starting
        }
    }
}
