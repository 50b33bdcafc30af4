//! Metrics of moves.

use std::collections::BTreeSet;
use std::sync::Arc;

use holdfast_api::engine::{Migration, MigrationState};
use holdfast_env::Timestamp;
use holdfast_reconcile::{Metrics, Page};
use kube::ResourceExt as _;
use parking_lot::Mutex;

use super::seconds;

pub(super) const PENDING: &str = "kubevirt_vmi_migrations_in_pending_phase";
pub(super) const SCHEDULING: &str = "kubevirt_vmi_migrations_in_scheduling_phase";
pub(super) const UNSET: &str = "kubevirt_vmi_migrations_in_unset_phase";
pub(super) const RUNNING: &str = "kubevirt_vmi_migrations_in_running_phase";
pub(super) const SUCCEEDED: &str = "kubevirt_vmi_migration_succeeded";
pub(super) const FAILED: &str = "kubevirt_vmi_migration_failed";
pub(super) const START: &str = "kubevirt_vmi_migration_start_time_seconds";
pub(super) const END: &str = "kubevirt_vmi_migration_end_time_seconds";
pub(super) const TRANSITIONS: &str = "kubevirt_vmi_migration_phase_transition_time_from_creation_seconds";
pub(super) const QUEUE: &str = "holdfast_migration_queue_length";
pub(super) const UNDECIDED: &str = "holdfast_migration_undecided";

/// Upper bounds of the time from creation to a phase, seconds.
const BOUNDS: [f64; 12] = [0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0];
/// Queue classes.
const CLASSES: std::ops::RangeInclusive<i32> = 1..=5;

fn state(migration: &Migration) -> Option<MigrationState> {
    migration.status.as_ref()?.state
}

fn began(migration: &Migration) -> Option<Timestamp> {
    Some(migration.status.as_ref()?.source.as_ref()?.started_at.as_ref()?.0)
}

fn ended(migration: &Migration) -> Option<Timestamp> {
    Some(migration.status.as_ref()?.finished_at.as_ref()?.0)
}

pub(super) fn write(page: &mut Page, migrations: &[Arc<Migration>]) {
    let count = |is: &dyn Fn(Option<MigrationState>) -> bool| {
        i64::try_from(migrations.iter().filter(|m| is(state(m))).count()).unwrap_or(i64::MAX)
    };
    use MigrationState::{Copying, Placing, Preparing, Queued, Switching};
    let stages: [(&'static str, &str, i64); 4] = [
        (UNSET, "Moves nobody has looked at yet.", count(&|s| s.is_none())),
        (PENDING, "Moves that wait for a slot.", count(&|s| s == Some(Queued))),
        (
            SCHEDULING,
            "Moves whose target is being placed and prepared.",
            count(&|s| matches!(s, Some(Placing | Preparing))),
        ),
        (RUNNING, "Moves in transfer.", count(&|s| matches!(s, Some(Copying | Switching)))),
    ];
    for (name, help, number) in stages {
        page.gauge(name, help).whole(&[], number);
    }
    page.gauge(
        QUEUE,
        "Moves that wait for a slot, by class: 1 drain, 2 user, 3 placement, 4 firmware, 5 rebalancing.",
    );
    for class in CLASSES {
        let queued = migrations.iter().filter(|m| state(m) == Some(Queued) && m.spec.class == class).count();
        page.whole(&[("class", &class.to_string())], i64::try_from(queued).unwrap_or(i64::MAX));
    }
    type Sample = fn(&Migration) -> Option<f64>;
    let of_each: [(&'static str, &str, Sample); 5] = [
        (SUCCEEDED, "1 for a move after which the VM runs on the target.", |m| {
            (state(m) == Some(MigrationState::Done)).then_some(1.0)
        }),
        (FAILED, "1 for a move that failed or was called off.", |m| {
            matches!(state(m), Some(MigrationState::Failed | MigrationState::Aborted)).then_some(1.0)
        }),
        (START, "When the transfer began.", |m| began(m).map(seconds)),
        (END, "When the move was over.", |m| ended(m).map(seconds)),
        (
            UNDECIDED,
            "1 while the source has given up its right to run and the target has not answered.",
            |m| {
                let source = m.status.as_ref()?.source.as_ref()?;
                let open = source.gave_up_at.is_some() && source.ack_at.is_none();
                (open && !state(m)?.is_final()).then_some(1.0)
            },
        ),
    ];
    for (name, help, sample) in of_each {
        page.gauge(name, help);
        for migration in migrations {
            if let Some(value) = sample(migration) {
                let (namespace, name) = (migration.namespace().unwrap_or_default(), migration.name_any());
                let vmi = &migration.spec.instance.name;
                page.sample(&[("vmi", vmi), ("vmim", &name), ("namespace", &namespace)], value);
            }
        }
    }
}

/// Counts how long moves took to reach their phases, each move once a phase.
#[derive(Debug)]
pub(super) struct Transitions {
    since: Timestamp,
    /// Uid and phase; only of moves that still exist.
    counted: Mutex<BTreeSet<(String, &'static str)>>,
}

impl Transitions {
    pub(super) fn new(since: Timestamp) -> Self {
        Self { since, counted: Mutex::default() }
    }

    /// Counts what has happened since it was last called. Moves outlive their end by far more than the time
    /// between two scrapes.
    pub(super) fn count(&self, migrations: &[Arc<Migration>], metrics: &Metrics) {
        let mut counted = self.counted.lock();
        let mut living = BTreeSet::new();
        for migration in migrations {
            let Some(uid) = migration.metadata.uid.clone() else { continue };
            let Some(created) = migration.metadata.creation_timestamp.as_ref().map(|at| at.0) else {
                continue;
            };
            for (phase, at) in phases(migration) {
                let key = (uid.clone(), phase);
                if at >= self.since && !counted.contains(&key) {
                    let took = at.duration_since(created).as_secs_f64().max(0.0);
                    let help = "Time from the creation of a move to each of its phases.";
                    metrics.observe(TRANSITIONS, help, &BOUNDS, &[("phase", phase)], took);
                }
                living.insert(key);
            }
        }
        *counted = living;
    }
}

/// The phases a move has reached, and when.
fn phases(migration: &Migration) -> Vec<(&'static str, Timestamp)> {
    let Some(status) = &migration.status else { return Vec::new() };
    let last = match status.state {
        Some(MigrationState::Done) => "Succeeded",
        _ => "Failed",
    };
    let times = [
        ("Pending", status.queued_at.as_ref().map(|at| at.0)),
        ("Scheduling", status.slot_at.as_ref().map(|at| at.0)),
        ("Running", began(migration)),
        (last, ended(migration)),
    ];
    times.into_iter().filter_map(|(phase, at)| Some((phase, at?))).collect()
}
