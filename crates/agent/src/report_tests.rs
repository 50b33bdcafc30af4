use std::collections::BTreeMap;

use holdfast_api::engine::{
    Abort, InstanceMigration, InstanceRef, Migration, MigrationResult, MigrationSource, MigrationStatus,
    MigrationTarget, Side,
};
use holdfast_wire::launcher::{MigrationEvent, MoveFailure, MoveProgress};

use super::*;
use crate::definition::tests::instance as vm;

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn facts(vm: VmState) -> Facts {
    Facts {
        qemu_version: String::new(),
        hopeless: None,
        broken: None,
        id: Id { instance_uid: "vm".into(), epoch: 1, pod_uid: "p".into() },
        pod_name: "virt-launcher-linux-vm-abcde".into(),
        node: "n1".into(),
        boot_id: "b1".into(),
        state: State { vm, ..State::default() },
        volumes: vec![],
        end: None,
    }
}

fn moving(vm: VmState, stage: MoveStage) -> Facts {
    let mut facts = facts(vm);
    let progress = MoveProgress { total_bytes: 200, remaining_bytes: 50, ..MoveProgress::default() };
    facts.state.migration = Some(MigrationEvent { progress, ..MigrationEvent::new("m", stage) });
    facts
}

fn instance(claim_pod: &str) -> Instance {
    let mut instance = vm();
    let claim = Claim { node: "n0".into(), pod_uid: claim_pod.into(), epoch: 1, ..Claim::default() };
    instance.status = Some(InstanceStatus { claim: Some(claim), ..InstanceStatus::default() });
    instance
}

/// Applies a merge patch to the status, as the API does.
fn merged(instance: &Instance, patch: &Value) -> Instance {
    fn merge(into: &mut Value, patch: &Value) {
        let Some(fields) = patch.as_object() else {
            *into = patch.clone();
            return;
        };
        if !into.is_object() {
            *into = json!({});
        }
        for (key, value) in fields {
            if value.is_null() {
                into.as_object_mut().unwrap().remove(key);
            } else {
                merge(&mut into[key], value);
            }
        }
    }
    let mut status = json!(instance.status);
    merge(&mut status, patch);
    Instance { status: serde_json::from_value(status).unwrap(), ..instance.clone() }
}

/// What a report of these facts says, and that saying it twice changes nothing.
fn reported(facts: &Facts, before: &Instance) -> String {
    let Some(patch) = instance_status(facts, before, NOW) else { return "nothing".into() };
    let after = merged(before, &patch);
    assert_eq!(instance_status(facts, &after, NOW), None, "a settled report writes nothing");
    let status = after.status.unwrap();
    let report = status.report.unwrap();
    let cause = report.cause.map(|c| format!(" {c:?}")).unwrap_or_default();
    let node = status.node.map(|n| format!(" on {n}")).unwrap_or_default();
    format!("{:?}{cause}{node}", report.state)
}

#[test]
fn a_guest_agent_comes_and_goes() {
    let mut with = facts(VmState::Running);
    with.state.guest = Some(GuestFacts {
        connected: true,
        version: Some("7.2.22".into()),
        os_info: [("id".to_owned(), "debian".to_owned())].into(),
        ..GuestFacts::default()
    });
    let without = {
        let mut facts = with.clone();
        facts.state.guest = Some(GuestFacts::default());
        facts
    };
    let mut now = instance("p");
    for (facts, connected) in [(&with, true), (&without, false), (&with, true), (&without, false)] {
        assert_eq!(reported(facts, &now), "Running on n1");
        now = merged(&now, &instance_status(facts, &now, NOW).unwrap());
        let guest = now.status.as_ref().unwrap().guest.clone().unwrap();
        assert_eq!((guest.agent_connected, guest.os_info.len()), (connected, usize::from(connected)));
    }
}

// INV-3: the end is reported only when it is certain
#[test]
fn report_table() {
    let ended = |cause, state| {
        let record = ExitRecord { id: Id::default(), cause, detail: "bye".into(), at_ms: 0, ever_ran: true };
        Facts { end: Some(End::recorded(&record)), ..facts(state) }
    };
    let lost = |started| Facts { end: Some(End::unrecorded(started)), ..facts(VmState::Running) };
    let rows = [
        ("no QEMU yet", facts(VmState::Empty), "nothing"),
        ("starting", facts(VmState::Preparing), "Starting"),
        ("ready", facts(VmState::Prepared), "Starting"),
        ("running", facts(VmState::Running), "Running on n1"),
        ("paused", facts(VmState::Paused), "Paused on n1"),
        ("stopped for the switch-over", moving(VmState::Paused, MoveStage::Suspended), "Running on n1"),
        ("hand-over undecided", moving(VmState::GaveUp, MoveStage::GaveUp), "Running on n1"),
        ("stopping", facts(VmState::Stopping), "Running on n1"),
        ("said to have ended, not certain", facts(VmState::Ended), "nothing"),
        ("powered off", ended(Cause::GuestShutdown, VmState::Ended), "Ended GuestShutdown"),
        ("rebooted", ended(Cause::GuestReset, VmState::Ended), "Ended GuestReset"),
        ("moved away", ended(Cause::MovedAway, VmState::Ended), "nothing"),
        ("target given up", ended(Cause::MoveGivenUp, VmState::Ended), "nothing"),
        ("launcher killed", lost(true), "Ended Crash"),
        ("launcher never started QEMU", lost(false), "Ended StartFailed"),
    ];
    for (what, facts, expected) in rows {
        assert_eq!(reported(&facts, &instance("p")), expected, "{what}");
        assert_eq!(reported(&facts, &instance("q")), "nothing", "{what}, without the claim");
    }
}

#[test]
fn what_died_with_its_node_is_no_crash_of_the_guest() {
    let record = ExitRecord {
        id: Id::default(),
        cause: Cause::GuestShutdown,
        detail: "bye".into(),
        at_ms: 0,
        ever_ran: true,
    };
    let rows = [
        ("no word", End::unrecorded(true), "Ended NodeLost"),
        ("no word, no QEMU yet", End::unrecorded(false), "Ended NodeLost"),
        ("ended by itself before", End::recorded(&record), "Ended GuestShutdown"),
    ];
    let mut before = instance("p");
    let claim = before.status.as_mut().unwrap().claim.as_mut().unwrap();
    (claim.node, claim.boot_id) = ("n1".into(), "b0".into());
    for (what, end, expected) in rows {
        let facts = Facts { end: Some(end), ..facts(VmState::Running) };
        assert_eq!(reported(&facts, &before), expected, "{what}");
    }
}

#[test]
fn a_pause_ends_without_a_trace() {
    let mut paused = facts(VmState::Paused);
    paused.state.query_status = Some("io-error".into());
    let before = instance("p");
    let after = merged(&before, &instance_status(&paused, &before, NOW).unwrap());
    assert_eq!(reported(&facts(VmState::Running), &after), "Running on n1");
}

#[test]
fn a_reported_end_never_changes() {
    let record = ExitRecord {
        id: Id::default(),
        cause: Cause::GuestShutdown,
        detail: String::new(),
        at_ms: 0,
        ever_ran: true,
    };
    let ended = Facts { end: Some(End::recorded(&record)), ..facts(VmState::Ended) };
    let patch = instance_status(&ended, &instance("p"), NOW).unwrap();
    let after = merged(&instance("p"), &patch);
    let late = Facts { end: Some(End::unrecorded(true)), ..ended };
    assert_eq!(instance_status(&late, &after, NOW), None);
    assert_eq!(instance_status(&facts(VmState::Running), &after, NOW), None);
}

#[test]
fn a_new_epoch_clears_what_the_last_one_left() {
    let mut before = instance("p");
    let status = before.status.as_mut().unwrap();
    status.report = Some(Report { cause: Some(ExitCause::Crash), cgroup_empty: true, ..Report::default() });
    status.runtime = Some(Runtime { started_at: Some(Time(NOW)), ..Runtime::default() });
    status.guest = Some(Guest::default());
    let node = crate::definition::NodeFacts {
        accelerator: holdfast_hypervisor::definition::Accelerator::Tcg,
        qemu_version: "10.0.2".into(),
    };
    let definition = crate::definition::build(&before, &node, &BTreeMap::new(), |_| true).unwrap();
    let after = merged(&before, &starting(&facts(VmState::Empty), &definition, "10.0.2", NOW));
    let status = after.status.unwrap();
    let report = status.report.unwrap();
    assert_eq!((report.state, report.cause, report.cgroup_empty), (ReportState::Starting, None, false));
    let runtime = status.runtime.unwrap();
    assert_eq!((runtime.started_at, runtime.machine_type.as_str()), (None, "pc-q35-10.0"));
    assert_eq!(runtime.definition_hash, definition.hash());
    assert!(status.guest.is_none());
}

fn with_move(mut instance: Instance) -> Instance {
    let side = |node: &str, pod: &str| Side { node: node.into(), pod: pod.into(), pod_uid: pod.into() };
    instance.status.as_mut().unwrap().migration = Some(InstanceMigration {
        uid: "m".into(),
        source: side("n0", "source"),
        target: side("n1", "planned"),
        ..InstanceMigration::default()
    });
    instance
}

// MM-S4
#[test]
fn the_flip_moves_everything_in_one_write() {
    let mut before = with_move(instance("source"));
    before.status.as_mut().unwrap().evacuation_node_name = Some("n0".into());
    before.status.as_mut().unwrap().evacuation_node_version = Some(7);
    let facts = moving(VmState::Running, MoveStage::Resumed);
    let patch = flip(&facts, &before, NOW).unwrap();
    let after = merged(&before, &patch);
    assert_eq!(flip(&facts, &after, NOW), None, "written once");
    let status = after.status.unwrap();
    assert_eq!(status.node.as_deref(), Some("n1"));
    let claim = status.claim.unwrap();
    assert_eq!((claim.node.as_str(), claim.boot_id.as_str(), claim.pod_uid.as_str()), ("n1", "b1", "p"));
    assert_eq!(status.active_pod.unwrap().uid, "p");
    let migration = status.migration.unwrap();
    assert_eq!(migration.result, Some(MigrationResult::Succeeded));
    assert!(migration.end.is_some());
    assert_eq!((status.evacuation_node_name, status.evacuation_node_version), (None, None));
    assert_eq!(migration.target.pod_uid, "p", "the record names where the guest really is");
}

#[test]
fn flip_table() {
    let before = || with_move(instance("source"));
    let resumed = || moving(VmState::Running, MoveStage::Resumed);
    assert!(flip(&moving(VmState::Incoming, MoveStage::Listening), &before(), NOW).is_none());
    let mut other = before();
    other.status.as_mut().unwrap().migration.as_mut().unwrap().uid = "m2".into();
    assert!(flip(&resumed(), &other, NOW).is_none(), "another move is named");
    let mut newer = before();
    newer.spec.epoch = 2;
    assert!(flip(&resumed(), &newer, NOW).is_none(), "another epoch");
    let mut marked = before();
    marked.status.as_mut().unwrap().evacuation_node_name = Some("n1".into());
    let after = merged(&marked, &flip(&resumed(), &marked, NOW).unwrap());
    let mark = after.status.unwrap().evacuation_node_name;
    assert_eq!(mark.as_deref(), Some("n1"), "a mark for the new node stays");
}

fn migration(edit: impl FnOnce(&mut MigrationStatus)) -> Migration {
    let mut migration = Migration::default();
    migration.metadata.uid = Some("m".into());
    migration.spec.instance = InstanceRef { name: "linux-vm".into(), uid: "vm".into(), epoch: 1 };
    let mut status = MigrationStatus {
        source: Some(MigrationSource { pod_uid: "p".into(), ..MigrationSource::default() }),
        target: Some(MigrationTarget { pod_uid: "p".into(), ..MigrationTarget::default() }),
        ..MigrationStatus::default()
    };
    edit(&mut status);
    migration.status = Some(status);
    migration
}

fn keys(patch: Option<Value>, of: &str) -> Vec<String> {
    let patch = patch.unwrap_or_default();
    patch[of].as_object().map(|fields| fields.keys().cloned().collect()).unwrap_or_default()
}

#[test]
fn source_milestones_table() {
    let rows: &[(MoveStage, &[&str])] = &[
        (MoveStage::Copying, &["startedAt"]),
        (MoveStage::Suspended, &["startedAt", "suspendedAt"]),
        (MoveStage::GaveUp, &["startedAt", "suspendedAt", "gaveUpAt"]),
        (MoveStage::Acked, &["startedAt", "suspendedAt", "gaveUpAt", "ackAt"]),
        (MoveStage::Failed, &[]),
    ];
    for (stage, expected) in rows {
        let patch = source_in_migration(&moving(VmState::Running, *stage), &migration(|_| ()), NOW, false);
        assert_eq!(keys(patch, "source"), *expected, "{stage:?}");
    }
}

#[test]
fn abort_is_settled_when_the_guest_is_known_to_stay() {
    let aborted = || migration(|s| s.abort = Some(Abort::default()));
    let settled = |facts: &Facts, migration: &Migration| {
        keys(source_in_migration(facts, migration, NOW, false), "source").contains(&"abortedAt".to_owned())
    };
    assert!(settled(&facts(VmState::Running), &aborted()), "never began");
    assert!(!settled(&moving(VmState::Running, MoveStage::Copying), &aborted()), "still copying");
    assert!(settled(&moving(VmState::Running, MoveStage::Cancelled), &aborted()));
    assert!(settled(&moving(VmState::Running, MoveStage::Failed), &aborted()));
    assert!(!settled(&moving(VmState::GaveUp, MoveStage::GaveUp), &aborted()), "too late");
    let gave_up = migration(|s| {
        s.source = Some(MigrationSource { gave_up_at: Some(Time(NOW)), ..s.source.clone().unwrap() });
    });
    assert!(!settled(&moving(VmState::GaveUp, MoveStage::GaveUp), &gave_up));
    assert!(settled(&moving(VmState::Running, MoveStage::Failed), &gave_up), "nobody else ends the move");
    assert!(!settled(&moving(VmState::Running, MoveStage::Failed), &migration(|_| ())), "a call-off follows");
    assert!(!settled(&facts(VmState::Running), &migration(|_| ())), "nobody asked");
}

#[test]
fn progress_is_written_rarely_but_with_every_change_of_state() {
    let copying = moving(VmState::Running, MoveStage::Copying);
    let begun = migration(|s| s.source.as_mut().unwrap().started_at = Some(Time(NOW)));
    assert!(source_in_migration(&copying, &begun, NOW, false).is_none());
    let patch = source_in_migration(&copying, &begun, NOW, true).unwrap();
    assert_eq!(patch["progress"]["percent"], 75);
    let first = source_in_migration(&copying, &migration(|_| ()), NOW, false).unwrap();
    assert_eq!(first["progress"]["percent"], 75);
    // Whether it converges is no figure: users are told at once, when it turns and when it turns back.
    let mut stuck = copying.clone();
    stuck.state.migration.as_mut().unwrap().progress.not_converging = true;
    let turned = source_in_migration(&stuck, &begun, NOW, false).unwrap();
    assert_eq!(turned["progress"]["notConverging"], true);
    let mut known = begun.clone();
    known.status.as_mut().unwrap().progress =
        Some(serde_json::from_value(turned["progress"].clone()).unwrap());
    assert!(source_in_migration(&stuck, &known, NOW, false).is_none());
    assert_eq!(
        source_in_migration(&copying, &known, NOW, false).unwrap()["progress"]["notConverging"],
        false
    );
}

#[test]
fn failures_are_told_once_and_never_after_the_end() {
    let mut failed = moving(VmState::Running, MoveStage::Failed);
    failed.state.migration.as_mut().unwrap().failure =
        Some(MoveFailure { class: "Connection".into(), text: "cut".into() });
    let told = |edit: fn(&mut MigrationStatus)| {
        let patch = source_in_migration(&failed, &migration(edit), NOW, false).unwrap_or_default();
        patch["failure"]["class"].as_str().map(str::to_owned)
    };
    assert_eq!(told(|_| ()).as_deref(), Some("Connection"));
    // Of a connection that was not opened QEMU knows only that it is not there.
    let because = |uid: &str, class: &str| {
        let mut failed = failed.clone();
        failed.state.migration.as_mut().unwrap().failure.as_mut().unwrap().class = class.into();
        failed.broken = Some(BrokenStream { uid: uid.into(), why: "no such certificate".into() });
        source_in_migration(&failed, &migration(|_| ()), NOW, false).unwrap()["failure"].clone()
    };
    let named = json!({"class": "TargetUnreachable", "text": "no such certificate"});
    assert_eq!(because("m", "TransferFailed"), named);
    assert_eq!(because("m", "NotConverging")["text"], "cut");
    assert_eq!(because("another", "TransferFailed")["text"], "The transfer of memory broke off: cut");
    assert_eq!(told(|s| s.failure = Some(Default::default())), None);
    assert_eq!(told(|s| s.state = Some(holdfast_api::engine::MigrationState::Failed)), None);
}

#[test]
fn the_target_publishes_where_it_listens() {
    let listening = moving(VmState::Incoming, MoveStage::Listening);
    let patch = target_in_migration(&listening, &migration(|_| ()), "10.0.0.2", 4130, NOW).unwrap();
    assert_eq!(patch["target"]["address"], "10.0.0.2");
    assert_eq!(patch["target"]["ports"]["memory"], 4130);
    let published = migration(|s| s.target.as_mut().unwrap().listening = true);
    assert!(target_in_migration(&listening, &published, "10.0.0.2", 4130, NOW).is_none());
}

#[test]
fn a_target_that_cannot_be_started_says_why_once() {
    let mut hopeless = facts(VmState::Empty);
    hopeless.hopeless = Some("the VM cannot be built: too new".into());
    let told = |m: &Migration| target_in_migration(&hopeless, m, "10.0.0.2", 4130, NOW);
    let patch = told(&migration(|_| ())).unwrap();
    assert_eq!(patch["failure"], json!({"class": "TargetFailed", "text": "the VM cannot be built: too new"}));
    let known = migration(|status| status.failure = Some(holdfast_api::engine::Failure::default()));
    assert_eq!(told(&known), None);
}

#[test]
fn the_end_of_a_target_that_never_continued_is_told_once() {
    let ended = |facts: Facts| Facts { end: Some(End::unrecorded(true)), ..facts };
    let told = |facts: &Facts, known: fn(&mut MigrationStatus)| {
        keys(target_in_migration(facts, &migration(known), "10.0.0.2", 4130, NOW), "target")
    };
    assert_eq!(told(&ended(facts(VmState::Ended)), |_| ()), ["endedAt"], "it never took memory");
    assert_eq!(told(&ended(moving(VmState::Ended, MoveStage::Failed)), |_| ()), ["endedAt"]);
    assert_eq!(told(&ended(moving(VmState::Ended, MoveStage::Resumed)), |_| ()), ["resumedAt"]);
    assert_eq!(told(&moving(VmState::Incoming, MoveStage::Failed), |_| ()), [""; 0], "QEMU is there");
    let known: fn(&mut MigrationStatus) = |s| s.target.as_mut().unwrap().ended_at = Some(Time(NOW));
    assert_eq!(told(&ended(facts(VmState::Ended)), known), [""; 0]);
}

#[test]
fn disk_names_follow_the_addresses() {
    assert_eq!([0, 25, 26, 51, 52].map(letters), ["a", "z", "aa", "az", "ba"]);
}
