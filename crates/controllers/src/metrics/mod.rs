//! What operators see of VMs, operations and moves, under the names the field uses
//! (migration-and-maintenance.md §11.1). Read from the controllers' caches when somebody asks: no request
//! to the API, and a series lives exactly as long as its object.
//!
//! | File | Metrics |
//! |---|---|
//! | `operations.rs` | `d8_virtualization_virtualmachineoperation_*` |
//! | `machines.rs` | `d8_virtualization_virtualmachine_*`, `kubevirt_vmi_non_evictable`, `kubevirt_vmi_number_of_outdated` |
//! | `moves.rs` | `kubevirt_vmi_migration*` but the figures of a copy, which the agents export; the queue |

mod machines;
mod moves;
mod operations;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use holdfast_api::engine::{Instance, Migration};
use holdfast_api::{VirtualMachine, VirtualMachineOperation};
use holdfast_env::{Clock, Timestamp};
use holdfast_reconcile::{Cache, Caches, Metrics, Page};
use k8s_openapi::api::core::v1::Node;

/// Every metric that the controllers' process exports besides `holdfast_controller_*`.
pub const NAMES: [&str; 29] = [
    operations::PHASE,
    operations::CREATED,
    operations::STARTED,
    operations::FINISHED,
    machines::PHASE,
    machines::FIRMWARE,
    machines::MIGRATABLE,
    machines::POD,
    machines::INFO,
    machines::NON_EVICTABLE,
    machines::OUTDATED,
    machines::UNSCHEDULABLE,
    moves::PENDING,
    moves::SCHEDULING,
    moves::UNSET,
    moves::RUNNING,
    moves::SUCCEEDED,
    moves::FAILED,
    moves::START,
    moves::END,
    moves::TRANSITIONS,
    moves::QUEUE,
    moves::UNDECIDED,
    "holdfast_controller_passes_total",
    "holdfast_controller_pass_seconds_total",
    "holdfast_controller_decision_seconds_total",
    "holdfast_controller_writes_total",
    "holdfast_controller_queue_length",
    LEADING,
];

/// Says which of several controller processes answers.
const LEADING: &str = "holdfast_controller_leading";

/// The caches that the metrics are read from.
#[derive(Debug)]
pub struct Sources {
    operations: Arc<Cache<VirtualMachineOperation>>,
    vms: Arc<Cache<VirtualMachine>>,
    instances: Arc<Cache<Instance>>,
    migrations: Arc<Cache<Migration>>,
    nodes: Arc<Cache<Node>>,
}

impl Sources {
    /// Opens the caches; all of them serve controllers, too.
    #[must_use]
    pub fn new(caches: &Caches) -> Self {
        Self {
            operations: caches.cache(),
            vms: caches.cache(),
            instances: caches.cache(),
            migrations: caches.cache(),
            nodes: caches.cache(),
        }
    }

    /// Has every page of `metrics` show them from now on. Moves that ended before `since` are not counted
    /// in histograms: an earlier process has done that.
    pub fn shown_by(self, metrics: &Metrics, clock: &Clock) {
        let transitions = moves::Transitions::new(clock.now());
        let counted_in = metrics.weak();
        metrics.collect("controllers", move |page| {
            if let Some(metrics) = counted_in.upgrade() {
                transitions.count(&self.migrations.all(), &metrics);
            }
            self.write(page);
        });
    }

    fn write(&self, page: &mut Page) {
        let migrations = self.migrations.all();
        operations::write(page, &self.operations.all(), &migrations);
        machines::write(page, &self.vms.all(), &self.instances.all(), &self.nodes.all());
        moves::write(page, &migrations);
        page.gauge(LEADING, "1 in the process that leads.").whole(&[], 1);
    }
}

/// Seconds since the epoch.
fn seconds(at: Timestamp) -> f64 {
    at.as_duration().as_secs_f64()
}

/// A list of labels of which a part belongs to every sample.
type Labels<'a> = Vec<(&'a str, &'a str)>;

fn with<'a>(labels: &Labels<'a>, more: &[(&'a str, &'a str)]) -> Labels<'a> {
    labels.iter().chain(more).copied().collect()
}
