//! What operators see of this node: the figures of moves that leave it, as QEMU reports them, and how long
//! guests stood still (migration-and-maintenance.md §11.1). Read from what the launchers have told when
//! somebody asks; nothing is requested for it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};

use holdfast_api::engine::Instance;
use holdfast_reconcile::{MetricKind, Metrics, Page, label_text};
use holdfast_wire::launcher::{MigrationEvent, MoveProgress, MoveStage};
use kube::ResourceExt as _;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::node_agent::NodeAgent;

const TOTAL: &str = "kubevirt_vmi_migration_data_bytes_total";
const PROCESSED: &str = "kubevirt_vmi_migration_data_processed_bytes";
const REMAINING: &str = "kubevirt_vmi_migration_data_remaining_bytes";
const DIRTY: &str = "kubevirt_vmi_migration_dirty_memory_rate_bytes";
const RATE: &str = "kubevirt_vmi_migration_memory_transfer_rate_bytes";
const DOWNTIME: &str = "holdfast_migration_downtime_seconds";
const LAUNCHERS: &str = "holdfast_agent_launchers";

/// Every metric that an agent exports.
pub const NAMES: [&str; 7] = [TOTAL, PROCESSED, REMAINING, DIRTY, RATE, DOWNTIME, LAUNCHERS];

/// Upper bounds of the time a guest stands still, seconds.
const BOUNDS: [f64; 9] = [0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 30.0];

/// Guests that stand still for a switch-over, by uid of the Migration.
#[derive(Debug, Default)]
pub struct Stops(Mutex<BTreeMap<String, Instant>>);

impl Stops {
    /// Takes in what a source tells; how long the guest stood still, once the target has answered.
    fn note(&self, event: &MigrationEvent, now: Instant) -> Option<f64> {
        let mut stops = self.0.lock();
        let uid = &event.migration_uid;
        match event.stage {
            MoveStage::Suspended | MoveStage::GaveUp => {
                stops.entry(uid.clone()).or_insert(now);
                None
            }
            MoveStage::Acked => Some(now.duration_since(stops.remove(uid)?).as_secs_f64()),
            MoveStage::Listening
            | MoveStage::Copying
            | MoveStage::Resumed
            | MoveStage::Failed
            | MoveStage::Cancelled => {
                stops.remove(uid);
                None
            }
        }
    }
}

fn place(instance: &Instance) -> (String, String) {
    (instance.namespace().unwrap_or_default(), instance.name_any())
}

/// A source told something about its move.
pub fn note(agent: &NodeAgent, instance_uid: &str, event: &MigrationEvent) {
    let Some(stood) = agent.stops.note(event, Instant::now()) else { return };
    let Some(instance) = agent.cluster.instances.get(instance_uid) else { return };
    let (namespace, name) = place(&instance);
    let help =
        "How long the guest of a move away from this node stood still: from its stop to the target's word.";
    let labels = [("namespace", &*namespace), ("name", &*name)];
    agent.config.metrics.observe(DOWNTIME, help, &BOUNDS, &labels, stood);
}

/// Has the pages of the agent's metrics show it as long as it lives.
pub fn show(agent: &Arc<NodeAgent>) {
    let weak = Arc::downgrade(agent);
    agent.config.metrics.collect("agent", move |page| collect(&weak, page));
}

fn collect(agent: &Weak<NodeAgent>, page: &mut Page) {
    let Some(agent) = agent.upgrade() else { return };
    forget_the_gone(&agent.config.metrics, &agent.cluster.instances.all());
    let launchers = agent.launchers();
    let rows: Vec<(String, String, MoveProgress)> = launchers
        .iter()
        .filter_map(|launcher| {
            let event = launcher.state.migration.as_ref()?;
            let leaves = matches!(event.stage, MoveStage::Copying | MoveStage::Suspended | MoveStage::GaveUp);
            let instance = agent.cluster.instances.get(&launcher.id.instance_uid).filter(|_| leaves)?;
            let (namespace, name) = place(&instance);
            Some((namespace, name, event.progress.clone()))
        })
        .collect();
    page.gauge(LAUNCHERS, "Launchers connected to the agent of this node.")
        .whole(&[("node", &agent.config.node)], i64::try_from(launchers.len()).unwrap_or(i64::MAX));
    write(page, &agent.config.node, &rows);
}

/// The histogram has one series a VM: those of VMs that are gone go, too.
fn forget_the_gone(metrics: &Metrics, instances: &[Arc<Instance>]) {
    let living: BTreeSet<String> = instances
        .iter()
        .map(|instance| {
            let (namespace, name) = place(instance);
            label_text(&[("namespace", &namespace), ("name", &name)])
        })
        .collect();
    metrics.keep(DOWNTIME, &living);
}

fn write(page: &mut Page, node: &str, rows: &[(String, String, MoveProgress)]) {
    type Figure = fn(&MoveProgress) -> i64;
    let figures: [(&'static str, MetricKind, &str, Figure); 5] = [
        (TOTAL, MetricKind::Counter, "Memory of the guest that is being moved.", |p| p.total_bytes),
        (PROCESSED, MetricKind::Gauge, "Bytes that the move has sent.", |p| p.transferred_bytes),
        (REMAINING, MetricKind::Gauge, "Bytes left in the present pass over the memory.", |p| {
            p.remaining_bytes
        }),
        (DIRTY, MetricKind::Gauge, "Memory that the guest dirties, bytes a second.", |p| p.dirty_bytes_s),
        (RATE, MetricKind::Gauge, "Speed of the transfer, bytes a second.", |p| p.rate_bytes_s),
    ];
    for (name, kind, help, figure) in figures {
        page.metric(name, kind, help);
        for (namespace, vm, progress) in rows {
            page.whole(&[("namespace", namespace), ("name", vm), ("node", node)], figure(progress));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn event(stage: MoveStage) -> MigrationEvent {
        let progress = MoveProgress::default();
        MigrationEvent { progress, ..MigrationEvent::new("m", stage) }
    }

    // MM X1: what a scrape shows of a copy.
    #[test]
    fn the_figures_are_qemus() {
        let progress = MoveProgress {
            iteration: 2,
            total_bytes: 1 << 30,
            remaining_bytes: 5,
            transferred_bytes: 6,
            dirty_bytes_s: 7,
            throttle_pct: 0,
            rate_bytes_s: 8,
            not_converging: false,
        };
        let mut page = Page::default();
        write(&mut page, "n1", &[("shop".into(), "web".into(), progress)]);
        let text = page.into_text();
        for (name, value) in [(TOTAL, 1 << 30), (PROCESSED, 6), (REMAINING, 5), (DIRTY, 7), (RATE, 8)] {
            let line = format!("{name}{{namespace=\"shop\",name=\"web\",node=\"n1\"}} {value}");
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
        assert_eq!(text.lines().filter(|line| line.starts_with("# TYPE")).count(), 5);
        assert!(text.contains(&format!("# TYPE {TOTAL} counter")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_stands_still_from_its_stop_to_the_targets_word() {
        let stops = Stops::default();
        let start = Instant::now();
        let later = |ms: u64| start + Duration::from_millis(ms);
        assert_eq!(stops.note(&event(MoveStage::Acked), start), None, "its stop was not seen");
        stops.note(&event(MoveStage::Suspended), start);
        stops.note(&event(MoveStage::GaveUp), later(30));
        assert_eq!(stops.note(&event(MoveStage::Acked), later(50)), Some(0.05));
        assert_eq!(stops.note(&event(MoveStage::Acked), later(60)), None, "counted once");
        stops.note(&event(MoveStage::Suspended), start);
        stops.note(&event(MoveStage::Failed), later(10));
        assert_eq!(stops.note(&event(MoveStage::Acked), later(20)), None, "it ran again meanwhile");
    }
}
