//! Run policy: what follows an end, what a change of policy does, which operations are allowed
//! (vm-lifecycle.md §2.1, §2.3).

use holdfast_api::engine::{AfterEnd, AfterReset, ExitCause, RestartRules};
use holdfast_api::vm::{RunPolicy, VmPhase};
use holdfast_api::vmop::VmopType;

/// The restart rules of a run policy, stored in the Instance.
#[must_use]
pub fn restart_rules(policy: RunPolicy) -> RestartRules {
    let all = |shutdown, other| RestartRules {
        guest_shutdown: shutdown,
        guest_reset: AfterReset::Restart,
        crash: other,
        start_failed: other,
        evicted: other,
        node_lost: other,
    };
    match policy {
        RunPolicy::AlwaysOn => all(AfterEnd::Restart, AfterEnd::Restart),
        RunPolicy::AlwaysOnUnlessStoppedManually => all(AfterEnd::Stay, AfterEnd::Restart),
        RunPolicy::Manual => all(AfterEnd::Stay, AfterEnd::Stay),
        RunPolicy::AlwaysOff => {
            RestartRules { guest_reset: AfterReset::Stay, ..all(AfterEnd::Stay, AfterEnd::Stay) }
        }
    }
}

/// Whether a VM whose power-on ended for `cause` is started again by its policy alone.
#[must_use]
pub fn restarts(policy: RunPolicy, cause: ExitCause) -> bool {
    let rules = restart_rules(policy);
    let after = |rule| rule == AfterEnd::Restart;
    match cause {
        // Not an end: the first start is decided by `starts_first`.
        ExitCause::NeverStarted => false,
        ExitCause::GuestShutdown => after(rules.guest_shutdown),
        ExitCause::GuestReset => rules.guest_reset == AfterReset::Restart,
        ExitCause::Crash => after(rules.crash),
        ExitCause::Evicted => after(rules.evicted),
        ExitCause::NodeLost => after(rules.node_lost),
        ExitCause::StartFailed => after(rules.start_failed),
        // Stopped on purpose. Only AlwaysOn knows no such thing.
        ExitCause::PlatformStop | ExitCause::GraceExpired => policy == RunPolicy::AlwaysOn,
    }
}

/// Whether a VM that never ran is started.
#[must_use]
pub fn starts_first(policy: RunPolicy) -> bool {
    match policy {
        RunPolicy::AlwaysOn | RunPolicy::AlwaysOnUnlessStoppedManually => true,
        RunPolicy::Manual | RunPolicy::AlwaysOff => false,
    }
}

/// Whether changing the policy of a **stopped** VM from `applied` to `now` starts it.
#[must_use]
pub fn change_starts(applied: RunPolicy, now: RunPolicy) -> bool {
    match now {
        RunPolicy::AlwaysOn => true,
        RunPolicy::AlwaysOnUnlessStoppedManually => applied == RunPolicy::AlwaysOff,
        RunPolicy::Manual | RunPolicy::AlwaysOff => false,
    }
}

/// Whether an operation fits a run policy.
#[must_use]
pub fn allowed_for_policy(operation: VmopType, policy: RunPolicy) -> bool {
    match (operation, policy) {
        (_, RunPolicy::AlwaysOff) | (VmopType::Start | VmopType::Stop, RunPolicy::AlwaysOn) => false,
        (
            VmopType::Start | VmopType::Stop | VmopType::Restart | VmopType::Evict | VmopType::Migrate,
            RunPolicy::Manual | RunPolicy::AlwaysOnUnlessStoppedManually,
        )
        | (VmopType::Restart | VmopType::Evict | VmopType::Migrate, RunPolicy::AlwaysOn) => true,
    }
}

/// Whether a new operation overtakes one that is not finished (migration-and-maintenance.md §1.4).
/// Both are given as type and force.
#[must_use]
pub fn supersedes(new: (VmopType, bool), unfinished: (VmopType, bool)) -> bool {
    let ends = matches!(new.0, VmopType::Stop | VmopType::Restart);
    match unfinished {
        (VmopType::Start, _) => new.0 == VmopType::Stop,
        (VmopType::Stop | VmopType::Restart, false) => ends && new.1,
        (VmopType::Stop | VmopType::Restart, true) => false,
        (VmopType::Evict | VmopType::Migrate, _) => ends,
    }
}

/// Whether an operation fits a phase of the VM.
#[must_use]
pub fn allowed_in_phase(operation: VmopType, phase: VmPhase, force: bool) -> bool {
    match operation {
        VmopType::Start => matches!(phase, VmPhase::Stopped | VmPhase::Stopping),
        VmopType::Stop => {
            matches!(
                phase,
                VmPhase::Running | VmPhase::Starting | VmPhase::Pending | VmPhase::Pause | VmPhase::Degraded
            ) || (force && phase == VmPhase::Stopping)
        }
        VmopType::Restart => {
            matches!(phase, VmPhase::Running | VmPhase::Starting | VmPhase::Pause | VmPhase::Degraded)
                || (force && phase == VmPhase::Stopping)
        }
        VmopType::Evict | VmopType::Migrate => phase == VmPhase::Running,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_an_end() {
        use ExitCause::{
            Crash, Evicted, GraceExpired, GuestReset, GuestShutdown, NodeLost, PlatformStop, StartFailed,
        };
        // columns: AlwaysOn, AlwaysOnUnlessStoppedManually, Manual, AlwaysOff
        for (cause, want) in [
            (GuestShutdown, [true, false, false, false]),
            (GuestReset, [true, true, true, false]),
            (Crash, [true, true, false, false]),
            (StartFailed, [true, true, false, false]),
            (Evicted, [true, true, false, false]),
            (NodeLost, [true, true, false, false]),
            (PlatformStop, [true, false, false, false]),
            (GraceExpired, [true, false, false, false]),
        ] {
            let policies = [
                RunPolicy::AlwaysOn,
                RunPolicy::AlwaysOnUnlessStoppedManually,
                RunPolicy::Manual,
                RunPolicy::AlwaysOff,
            ];
            for (policy, want) in policies.into_iter().zip(want) {
                assert_eq!(restarts(policy, cause), want, "{policy} {cause:?}");
            }
        }
    }

    #[test]
    fn what_a_change_of_policy_does_to_a_stopped_vm() {
        for now in RunPolicy::ALL {
            for applied in RunPolicy::ALL {
                let want = match now {
                    RunPolicy::AlwaysOn => true,
                    RunPolicy::AlwaysOnUnlessStoppedManually => *applied == RunPolicy::AlwaysOff,
                    RunPolicy::Manual | RunPolicy::AlwaysOff => false,
                };
                assert_eq!(change_starts(*applied, *now), want, "{applied} -> {now}");
            }
        }
    }

    #[test]
    fn operations_and_policies() {
        use VmopType::{Evict, Migrate, Restart, Start, Stop};
        for (operation, on, aousm, manual, off) in [
            (Start, false, true, true, false),
            (Stop, false, true, true, false),
            (Restart, true, true, true, false),
            (Evict, true, true, true, false),
            (Migrate, true, true, true, false),
        ] {
            assert_eq!(allowed_for_policy(operation, RunPolicy::AlwaysOn), on, "{operation}");
            assert_eq!(allowed_for_policy(operation, RunPolicy::AlwaysOnUnlessStoppedManually), aousm);
            assert_eq!(allowed_for_policy(operation, RunPolicy::Manual), manual);
            assert_eq!(allowed_for_policy(operation, RunPolicy::AlwaysOff), off);
        }
    }

    #[test]
    fn which_operation_overtakes_which() {
        use VmopType::{Evict, Migrate, Restart, Start, Stop};
        let all = [
            (Start, false),
            (Stop, false),
            (Stop, true),
            (Restart, false),
            (Restart, true),
            (Evict, false),
            (Migrate, true),
        ];
        for (unfinished, by) in [
            ((Start, false), &[(Stop, false), (Stop, true)][..]),
            ((Stop, false), &[(Stop, true), (Restart, true)]),
            ((Stop, true), &[]),
            ((Restart, false), &[(Stop, true), (Restart, true)]),
            ((Restart, true), &[]),
            ((Evict, false), &[(Stop, false), (Stop, true), (Restart, false), (Restart, true)]),
            ((Evict, true), &[(Stop, false), (Stop, true), (Restart, false), (Restart, true)]),
            ((Migrate, true), &[(Stop, false), (Stop, true), (Restart, false), (Restart, true)]),
        ] {
            for new in all {
                assert_eq!(supersedes(new, unfinished), by.contains(&new), "{new:?} after {unfinished:?}");
            }
        }
    }

    #[test]
    fn operations_and_phases() {
        use VmPhase::{Migrating, Pending, Running, Starting, Stopped, Stopping, Terminating};
        for (operation, phase, force, want) in [
            (VmopType::Start, Stopped, false, true),
            (VmopType::Start, Running, false, false),
            (VmopType::Stop, Pending, false, true),
            (VmopType::Stop, Stopped, false, false),
            (VmopType::Stop, Stopping, false, false),
            (VmopType::Stop, Stopping, true, true),
            (VmopType::Stop, Migrating, false, false),
            (VmopType::Restart, Starting, false, true),
            (VmopType::Restart, Pending, false, false),
            (VmopType::Restart, Stopping, true, true),
            (VmopType::Evict, Running, false, true),
            (VmopType::Evict, Starting, false, false),
            (VmopType::Evict, Terminating, false, false),
        ] {
            assert_eq!(allowed_in_phase(operation, phase, force), want, "{operation} {phase} {force}");
        }
    }
}
