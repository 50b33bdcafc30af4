//! Metrics of operations.

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_api::VirtualMachineOperation;
use holdfast_api::condition::{ConditionKind as _, find};
use holdfast_api::engine::Migration;
use holdfast_api::vmop::{Completed, SignalSent, VmopPhase};
use holdfast_env::Timestamp;
use holdfast_reconcile::{Key, Page};
use kube::ResourceExt as _;

use super::{Labels, seconds, with};
use crate::fronts::deckhouse::vmop::migration_name;

pub(super) const PHASE: &str = "d8_virtualization_virtualmachineoperation_status_phase";
pub(super) const CREATED: &str = "d8_virtualization_virtualmachineoperation_created_timestamp_seconds";
pub(super) const STARTED: &str = "d8_virtualization_virtualmachineoperation_started_timestamp_seconds";
pub(super) const FINISHED: &str = "d8_virtualization_virtualmachineoperation_finished_timestamp_seconds";

const PHASES: [VmopPhase; 6] = [
    VmopPhase::Pending,
    VmopPhase::InProgress,
    VmopPhase::Completed,
    VmopPhase::Failed,
    VmopPhase::Terminating,
    VmopPhase::Superseded,
];

struct Row {
    name: String,
    namespace: String,
    uid: String,
    type_: String,
    vm: String,
    phase: VmopPhase,
    created: Option<Timestamp>,
    started: Option<Timestamp>,
    finished: Option<Timestamp>,
}

impl Row {
    fn new(operation: &VirtualMachineOperation, migration: Option<&Migration>) -> Self {
        let status = operation.status.clone().unwrap_or_default();
        let since = |type_: &str| {
            find(&status.conditions, type_).map(|c| (c.status == "True", c.last_transition_time.0))
        };
        let started = since(SignalSent::TYPE).filter(|(sent, _)| *sent).map(|(_, at)| at);
        // A reason that was there before the end keeps its time: the move's own end is exact.
        let moved = migration.and_then(|m| m.status.as_ref()?.finished_at.as_ref()).map(|at| at.0);
        let finished = status.phase.is_final().then(|| moved.or(since(Completed::TYPE).map(|(_, at)| at)));
        Self {
            name: operation.name_any(),
            namespace: operation.namespace().unwrap_or_default(),
            uid: operation.uid().unwrap_or_default(),
            type_: operation.spec.type_.to_string(),
            vm: operation.spec.virtual_machine_name.clone(),
            phase: status.phase,
            created: operation.metadata.creation_timestamp.as_ref().map(|at| at.0),
            started,
            finished: finished.flatten().map(|at| started.map_or(at, |started| at.max(started))),
        }
    }

    fn labels(&self) -> Labels<'_> {
        vec![
            ("name", &self.name),
            ("namespace", &self.namespace),
            ("uid", &self.uid),
            ("type", &self.type_),
            ("virtualmachine", &self.vm),
        ]
    }
}

pub(super) fn write(
    page: &mut Page,
    operations: &[Arc<VirtualMachineOperation>],
    migrations: &[Arc<Migration>],
) {
    let moves: BTreeMap<Key, &Arc<Migration>> = migrations.iter().map(|m| (Key::of(&**m), m)).collect();
    let migration = |operation: &VirtualMachineOperation| {
        let name = migration_name(&operation.name_any());
        moves.get(&Key::new(operation.namespace().unwrap_or_default(), name)).map(|m| &***m)
    };
    let rows: Vec<Row> = operations.iter().map(|op| Row::new(op, migration(op))).collect();
    page.gauge(PHASE, "1 for the phase of the operation, 0 for the others.");
    for row in &rows {
        for phase in PHASES {
            let name = phase.to_string();
            page.whole(&with(&row.labels(), &[("phase", &name)]), i64::from(phase == row.phase));
        }
    }
    type Time = fn(&Row) -> Option<Timestamp>;
    let times: [(&'static str, &str, Time); 3] = [
        (CREATED, "When the operation was created.", |row| row.created),
        (STARTED, "When the operation was handed to the VM.", |row| row.started),
        (FINISHED, "When the operation was over.", |row| row.finished),
    ];
    for (name, help, time) in times {
        page.gauge(name, help);
        for row in &rows {
            if let Some(at) = time(row) {
                page.sample(&row.labels(), seconds(at));
            }
        }
    }
}
