//! What the agent writes into the status of Instance and Migration, computed purely from what the
//! launcher says and what the API shows. Each function returns the fields that differ, or none.
//!
//! Written here and nowhere else: `node`, `activePod`, `runtime`, `guest`, `volumes`, `report`, and
//! the fields of a move that first-slice.md §4.1 and §4.2 give to the agents.

use holdfast_api::Time;
use holdfast_api::engine::{
    Claim, ExitCause, Guest, GuestInterface, Instance, InstanceStatus, PodRef, Report, ReportState, Runtime,
    Volume,
};
use holdfast_env::Timestamp;
use holdfast_hypervisor::definition::Definition;
use holdfast_reconcile::merge_difference;
use holdfast_wire::Id;
use holdfast_wire::launcher::{Cause, ExitRecord, GuestFacts, MoveStage, State, VmState};
use serde::Serialize;
use serde_json::{Map, Value, json};

mod moves;

pub use moves::{flip, source_in_instance, source_in_migration, target_in_migration};

/// What is known about one launcher.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Whom it serves.
    pub id: Id,
    /// Name of its pod.
    pub pod_name: String,
    /// This node.
    pub node: String,
    /// Identity of this boot of the node.
    pub boot_id: String,
    /// Version of its QEMU; empty until it has said hello.
    pub qemu_version: String,
    /// Its last word.
    pub state: State,
    /// Disks as QEMU has them.
    pub volumes: Vec<Volume>,
    /// Why it cannot be started here at all.
    pub hopeless: Option<String>,
    /// A move from here whose target could not be reached.
    pub broken: Option<BrokenStream>,
    /// Set once its end is certain: no process is left, none will be started.
    pub end: Option<End>,
}

/// A stream of a move that could not be opened: the cause of which QEMU sees only the effect.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BrokenStream {
    /// Uid of the Migration.
    pub uid: String,
    /// A sentence for people.
    pub why: String,
}

/// A certain end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Cause; none when the guest lives on elsewhere, so that there is nothing to report.
    pub cause: Option<ExitCause>,
    /// A sentence for people.
    pub detail: String,
    /// No word of the launcher tells of it: the cause is inferred from what is left.
    pub inferred: bool,
}

impl End {
    /// The end as the launcher recorded it.
    pub fn recorded(record: &ExitRecord) -> Self {
        Self { cause: exit_cause(record.cause), detail: record.detail.clone(), inferred: false }
    }

    /// The end of a launcher whose pod was removed by force and that left no record.
    pub fn removed() -> Self {
        let detail = "the launcher pod was removed without a move and without a word of its launcher";
        Self { cause: Some(ExitCause::Evicted), detail: detail.to_owned(), inferred: false }
    }

    /// The end of a launcher whose pod was deleted and of which its node has nothing.
    pub fn deleted() -> Self {
        let detail = "the launcher pod was deleted; nothing of it is on its node";
        Self { cause: Some(ExitCause::Evicted), detail: detail.to_owned(), inferred: false }
    }

    /// The end of a launcher that left no record. `started`: QEMU was (about to be) started.
    pub fn unrecorded(started: bool) -> Self {
        let (cause, detail) = if started {
            (ExitCause::Crash, "the launcher ended without a word; QEMU ended with it")
        } else {
            (ExitCause::StartFailed, "the launcher ended before QEMU was started")
        };
        Self { cause: Some(cause), detail: detail.to_owned(), inferred: true }
    }

    /// The end as seen with the claim: a launcher that left no word and was claimed in another boot of
    /// this node ended with that boot, which is no failure of the guest.
    fn under(&self, claim: Option<&Claim>, facts: &Facts) -> Self {
        let other_boot = claim.is_some_and(|c| c.node == facts.node && c.boot_id != facts.boot_id);
        if !(self.inferred && other_boot) {
            return self.clone();
        }
        let detail = format!("node {} came back in another boot; what ran there is gone", facts.node);
        Self { cause: Some(ExitCause::NodeLost), detail, inferred: true }
    }
}

fn exit_cause(cause: Cause) -> Option<ExitCause> {
    Some(match cause {
        Cause::GuestShutdown => ExitCause::GuestShutdown,
        Cause::GuestReset => ExitCause::GuestReset,
        Cause::Crash => ExitCause::Crash,
        Cause::GraceExpired => ExitCause::GraceExpired,
        Cause::PlatformStop => ExitCause::PlatformStop,
        Cause::Evicted => ExitCause::Evicted,
        Cause::StartFailed => ExitCause::StartFailed,
        Cause::MovedAway | Cause::MoveGivenUp => return None,
    })
}

/// The claim names this launcher.
pub fn holds_claim(id: &Id, instance: &Instance) -> bool {
    let claim = instance.status.as_ref().and_then(|s| s.claim.as_ref());
    instance.spec.epoch == id.epoch
        && claim.is_some_and(|claim| claim.epoch == id.epoch && claim.pod_uid == id.pod_uid)
}

/// The report of the launcher that holds the claim; none when nothing changed.
pub fn instance_status(facts: &Facts, instance: &Instance, now: Timestamp) -> Option<Value> {
    if !holds_claim(&facts.id, instance) {
        return None;
    }
    let status = instance.status.clone().unwrap_or_default();
    // A reported end is final for the epoch (INV-7 in spirit): nothing after it changes it.
    let ended = |r: &Report| r.epoch == facts.id.epoch && r.state == ReportState::Ended && r.cgroup_empty;
    if status.report.as_ref().is_some_and(ended) {
        return None;
    }
    let mut patch = Map::new();
    let report = report(facts, &status)?;
    if !same_report(&report, status.report.as_ref()) {
        let new = Report { at: Some(Time(now)), ..report.clone() };
        replace(&mut patch, "report", status.report.as_ref(), &new);
    }
    if matches!(report.state, ReportState::Running | ReportState::Paused) {
        running_fields(facts, &status, now, &mut patch);
    }
    if report.state == ReportState::Ended && status.guest.is_some() {
        patch.insert("guest".into(), Value::Null);
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

fn report(facts: &Facts, status: &InstanceStatus) -> Option<Report> {
    let base = Report { epoch: facts.id.epoch, pod_uid: facts.id.pod_uid.clone(), ..Report::default() };
    if let Some(end) = &facts.end {
        let end = end.under(status.claim.as_ref(), facts);
        return Some(Report {
            state: ReportState::Ended,
            cause: Some(end.cause?),
            detail: end.detail,
            cgroup_empty: true,
            ..base
        });
    }
    let before = status.report.as_ref().filter(|r| r.epoch == base.epoch && r.pod_uid == base.pod_uid);
    let state = match facts.state.vm {
        // Nothing to say before QEMU exists; the end is reported when it is certain.
        VmState::Empty | VmState::Ended => return None,
        VmState::Preparing | VmState::Prepared | VmState::Incoming => ReportState::Starting,
        VmState::Running => ReportState::Running,
        // Stopped for the switch-over, not by anybody's wish: the VM counts as running.
        VmState::Paused if is_moving(&facts.state) => ReportState::Running,
        VmState::Paused => ReportState::Paused,
        VmState::GaveUp | VmState::Stopping => before.map_or(ReportState::Running, |r| r.state),
    };
    let paused_reason =
        (state == ReportState::Paused).then(|| facts.state.query_status.clone().unwrap_or_default());
    Some(Report { state, paused_reason, ..base })
}

/// Puts what turns `old` into `new` into a merge patch, which keeps what it is not told to remove.
fn replace<T: Serialize>(patch: &mut Map<String, Value>, field: &str, old: Option<&T>, new: &T) {
    let old = old.map_or_else(|| json!({}), |old| json!(old));
    if holdfast_env::mutant!("gone-fields-stay") {
        patch.extend((old != json!(new)).then(|| (field.to_owned(), json!(new))));
        return;
    }
    patch.extend(merge_difference(&old, &json!(new)).map(|difference| (field.to_owned(), difference)));
}

/// A report that replaces the one before: a merge keeps what it is not told to remove.
fn whole(report: &Report) -> Value {
    let mut value = json!(report);
    for field in ["cause", "pausedReason"] {
        if value.get(field).is_none() {
            value[field] = Value::Null;
        }
    }
    value
}

fn is_moving(state: &State) -> bool {
    let stage = state.migration.as_ref().map(|m| m.stage);
    matches!(stage, Some(MoveStage::Copying | MoveStage::Suspended | MoveStage::GaveUp))
}

fn same_report(a: &Report, b: Option<&Report>) -> bool {
    b.is_some_and(|b| Report { at: None, ..a.clone() } == Report { at: None, ..b.clone() })
}

fn running_fields(facts: &Facts, status: &InstanceStatus, now: Timestamp, patch: &mut Map<String, Value>) {
    if status.node.as_ref() != Some(&facts.node) {
        patch.insert("node".into(), json!(facts.node));
    }
    let pod = PodRef { name: facts.pod_name.clone(), uid: facts.id.pod_uid.clone() };
    // After a restart of the agent the name comes a moment later than the launcher.
    if !pod.name.is_empty() && status.active_pod.as_ref() != Some(&pod) {
        patch.insert("activePod".into(), json!(pod));
    }
    let known = status.runtime.clone().unwrap_or_default();
    let runtime = runtime(facts, &known, now);
    replace(patch, "runtime", status.runtime.as_ref(), &runtime);
    if let Some(guest) = guest(facts.state.guest.as_ref()) {
        replace(patch, "guest", status.guest.as_ref(), &guest);
    }
    if !facts.volumes.is_empty() && facts.volumes != status.volumes {
        patch.insert("volumes".into(), json!(facts.volumes));
    }
}

fn runtime(facts: &Facts, known: &Runtime, now: Timestamp) -> Runtime {
    let state = &facts.state;
    let started = state.running_since_ms.and_then(|ms| Timestamp::from_millisecond(ms).ok()).unwrap_or(now);
    let or = |said: &Option<String>, known: &String| said.clone().unwrap_or_else(|| known.clone());
    Runtime {
        // The first start of the epoch stays over moves; `starting` clears it for a new one.
        started_at: known.started_at.clone().or(Some(Time(started))),
        qemu_version: match facts.qemu_version.as_str() {
            "" => known.qemu_version.clone(),
            said => said.to_owned(),
        },
        accelerator: or(&state.accelerator, &known.accelerator),
        machine_type: or(&state.machine_type, &known.machine_type),
        definition_hash: or(&state.definition_hash, &known.definition_hash),
        definition: known.definition.clone(),
    }
}

fn guest(facts: Option<&GuestFacts>) -> Option<Guest> {
    let facts = facts?;
    Some(Guest {
        agent_connected: facts.connected,
        agent_version: facts.version.clone(),
        os_info: facts.os_info.clone(),
        interfaces: facts
            .nics
            .iter()
            .map(|nic| GuestInterface {
                name: nic.name.clone(),
                mac: nic.mac.clone(),
                addresses: nic.addresses.clone(),
            })
            .collect(),
    })
}

/// What is recorded before QEMU is started for the first time of an epoch: the definition that both
/// sides of every later move use, and that a start is under way. Clears what the last epoch left.
pub fn starting(facts: &Facts, definition: &Definition, qemu_version: &str, now: Timestamp) -> Value {
    let report = Report {
        epoch: facts.id.epoch,
        pod_uid: facts.id.pod_uid.clone(),
        at: Some(Time(now)),
        ..Report::default()
    };
    json!({
        "report": whole(&report),
        "runtime": {
            "startedAt": null,
            "qemuVersion": qemu_version,
            "accelerator": definition.accelerator.as_str(),
            "machineType": definition.machine,
            "definitionHash": definition.hash(),
            "definition": definition,
        },
        "guest": null,
        "volumes": [],
    })
}

/// Disks as the guest sees them (vm-lifecycle.md §7.2): SCSI or SATA disks are `sda`, `sdb` … in
/// the order of their addresses, CD-ROMs `sr0` … `size` gives a disk's bytes by id.
pub fn volumes(definition: &Definition, size: impl Fn(&str) -> i64) -> Vec<Volume> {
    let mut order: Vec<_> = definition.disks.iter().collect();
    order.sort_by_key(|disk| disk.scsi_id);
    let (mut disks, mut cdroms) = (0, 0);
    order
        .into_iter()
        .map(|disk| {
            let target = if disk.cdrom {
                cdroms += 1;
                format!("sr{}", cdroms - 1)
            } else {
                disks += 1;
                format!("sd{}", letters(disks - 1))
            };
            Volume { id: disk.id.clone(), attached: true, target, size_bytes: size(&disk.id) }
        })
        .collect()
}

/// `a` … `z`, `aa` …, as the kernel names disks.
fn letters(index: u32) -> String {
    let last = char::from(b'a' + u8::try_from(index % 26).expect("invariant: below 26"));
    if index < 26 { last.to_string() } else { format!("{}{last}", letters(index / 26 - 1)) }
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
