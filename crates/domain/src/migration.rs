//! Rules of live migration: throttling policy, limits, order, classes of failure
//! (migration-and-maintenance.md §1.2, §3, §4).

use holdfast_api::engine::{Failure, MigrationConfig, MigrationPolicy, MigrationReason};
use holdfast_api::settings::LiveMigrationSettings;
use holdfast_api::vmop::Completed;

/// 5 Gbit/s in bytes a second.
pub const BANDWIDTH_BYTES_S: i64 = 625_000_000;
/// Longest stop of the guest, milliseconds.
pub const DOWNTIME_MS: i64 = 100;
/// Seconds allowed for each GiB of guest memory unless set otherwise, begun 512 MiB count whole.
pub const COMPLETION_S_PER_GIB: i64 = 800;
/// Seconds without progress after which a move is called off, unless set otherwise.
pub const PROGRESS_TIMEOUT_S: i64 = 150;
/// Seconds a target pod may stay unschedulable.
pub const UNSCHEDULABLE_S: i64 = 300;
/// Seconds for every other stage of preparation.
pub const PREPARE_S: i64 = 900;
/// Reason of a move that has its slot while its target pod is being created: the operation is not in progress
/// before there is one.
pub const CREATING_TARGET: &str = "CreatingTarget";
/// Reason of a queued move whose target pod the API did not let us create.
pub const TARGET_REFUSED: &str = "TargetRefused";
/// Seconds after which that is tried again.
pub const REFUSED_AGAIN_S: i64 = 10;
/// Seconds after which an abort that nobody answers is reported as having no effect.
pub const ABORT_S: i64 = 30;

/// Whether a move may slow the guest down (auto-converge).
///
/// # Errors
/// The message of `NotApplicableForLiveMigrationPolicy` when `force` contradicts the policy.
pub fn auto_converge(policy: MigrationPolicy, force: Option<bool>) -> Result<bool, String> {
    let refused = |force: bool, name: &str| {
        Err(format!(
            "Operation is invalid: force={force} is not applicable for VM liveMigrationPolicy {name}."
        ))
    };
    match (policy, force) {
        (MigrationPolicy::AlwaysSafe, Some(true)) => refused(true, "AlwaysSafe"),
        (MigrationPolicy::AlwaysForced, Some(false)) => refused(false, "AlwaysForced"),
        (MigrationPolicy::AlwaysSafe, None | Some(false))
        | (MigrationPolicy::PreferSafe, None | Some(false))
        | (MigrationPolicy::PreferForced, Some(false)) => Ok(false),
        (MigrationPolicy::PreferSafe, Some(true))
        | (MigrationPolicy::AlwaysForced, None | Some(true))
        | (MigrationPolicy::PreferForced, None | Some(true)) => Ok(true),
    }
}

/// Time for a whole move, seconds: this many a GiB, in steps that give all of it for 512 MiB.
#[must_use]
pub fn completion_timeout_s(memory_bytes: i64, per_gib_s: i64) -> i64 {
    let gib = (memory_bytes + (1 << 30) - 1) >> 30;
    gib.max(1).saturating_mul(per_gib_s)
}

/// The limits of a move, fixed at hand-off.
#[must_use]
pub fn config(memory_bytes: i64, auto_converge: bool, settings: &LiveMigrationSettings) -> MigrationConfig {
    let per_gib_s = settings.completion_timeout_per_gib.unwrap_or(COMPLETION_S_PER_GIB);
    MigrationConfig {
        bandwidth: BANDWIDTH_BYTES_S,
        downtime_ms: DOWNTIME_MS,
        auto_converge,
        completion_timeout_s: completion_timeout_s(memory_bytes, per_gib_s),
        progress_timeout_s: settings.progress_timeout.unwrap_or(PROGRESS_TIMEOUT_S),
    }
}

/// Queue class of a reason: 1 goes first.
#[must_use]
pub fn class(reason: MigrationReason) -> i32 {
    match reason {
        MigrationReason::Drain => 1,
        MigrationReason::User => 2,
        MigrationReason::Placement => 3,
        MigrationReason::Firmware => 4,
        MigrationReason::Rebalance => 5,
    }
}

/// Class after waiting: one better per ten minutes, never better than 2, and never worse.
#[must_use]
pub fn aged_class(class: i32, waited_s: i64) -> i32 {
    let steps = i32::try_from(waited_s.max(0) / 600).unwrap_or(i32::MAX);
    class.saturating_sub(steps).max(2).min(class)
}

/// Reason and beginning of the message of a failed migration operation.
#[must_use]
pub fn failure_reason(failure: Option<&Failure>, aborted: bool) -> (Completed, &'static str) {
    if aborted {
        return (Completed::Aborted, "Migration aborted");
    }
    match failure.map(|failure| failure.class.as_str()).unwrap_or_default() {
        "NotConverging" | "CompletionTimeout" | "ProgressTimeout" => {
            (Completed::NotConverging, "Migration did not converge")
        }
        "TargetUnschedulable" => {
            (Completed::TargetUnschedulable, "Migration failed: target pod is unschedulable")
        }
        "TargetDiskError" => (Completed::TargetDiskError, "Migration failed: target disk attach error"),
        "Aborted" => (Completed::Aborted, "Migration aborted"),
        _ => (Completed::Failed, "Migration failed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policy_times_force() {
        use MigrationPolicy::{AlwaysForced, AlwaysSafe, PreferForced, PreferSafe};
        for (policy, unset, no, yes) in [
            (AlwaysSafe, Some(false), Some(false), None),
            (PreferSafe, Some(false), Some(false), Some(true)),
            (AlwaysForced, Some(true), None, Some(true)),
            (PreferForced, Some(true), Some(false), Some(true)),
        ] {
            assert_eq!(auto_converge(policy, None).ok(), unset, "{policy:?} unset");
            assert_eq!(auto_converge(policy, Some(false)).ok(), no, "{policy:?} false");
            assert_eq!(auto_converge(policy, Some(true)).ok(), yes, "{policy:?} true");
        }
        let text = auto_converge(AlwaysSafe, Some(true)).unwrap_err();
        assert!(text.contains("force=true is not applicable for VM liveMigrationPolicy AlwaysSafe"));
    }

    #[test]
    fn completion_time_grows_with_memory() {
        for (mib, want) in [(256, 800), (512, 800), (1024, 800), (1025, 1600), (4096, 3200), (65536, 51200)] {
            assert_eq!(completion_timeout_s(mib << 20, COMPLETION_S_PER_GIB), want, "{mib} MiB");
        }
        let short = LiveMigrationSettings {
            completion_timeout_per_gib: Some(20),
            ..LiveMigrationSettings::default()
        };
        let config = config(3 << 30, false, &short);
        assert_eq!((config.completion_timeout_s, config.progress_timeout_s), (60, PROGRESS_TIMEOUT_S));
    }

    #[test]
    fn waiting_improves_the_class_up_to_the_second() {
        for (class, waited, want) in
            [(1, 0, 1), (1, 6000, 1), (2, 6000, 2), (4, 599, 4), (4, 600, 3), (5, 1800, 2), (5, 9000, 2)]
        {
            assert_eq!(aged_class(class, waited), want, "{class} after {waited} s");
        }
    }

    #[test]
    fn failures_have_a_reason_each() {
        let failure = |class: &str| Failure { class: class.into(), text: String::new() };
        assert_eq!(
            failure_reason(Some(&failure("TargetUnschedulable")), false).0,
            Completed::TargetUnschedulable
        );
        assert_eq!(failure_reason(Some(&failure("ProgressTimeout")), false).0, Completed::NotConverging);
        assert_eq!(failure_reason(Some(&failure("whatever")), false).0, Completed::Failed);
        assert_eq!(failure_reason(Some(&failure("whatever")), true).0, Completed::Aborted);
        assert_eq!(failure_reason(None, false).0, Completed::Failed);
    }
}
