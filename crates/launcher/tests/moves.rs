//! Two launchers, two real QEMUs, the test as both agents: moves, their failures, and a crash of either
//! side at every named point. In the end at most one guest runs, and it is the right one.

mod common;

use std::sync::atomic::Ordering;

use common::pair::{Move, UID, config};
use common::relay::Relay;
use common::*;
use holdfast_wire::launcher::*;
use rustix::process::Signal;
use tokio::net::UnixStream;

#[tokio::test]
async fn a_guest_moves_and_goes_on() {
    let mut m = Move::listening("", "").await;
    m.begin(625_000_000).await;
    m.switch().await;
    m.target.stage(MoveStage::Resumed).await;
    let acked = m.source.stage(MoveStage::Acked).await;
    assert!(acked.downtime_ms.is_some());
    let (record, code) = m.source.ended().await;
    assert_eq!((record.cause, code), (Cause::MovedAway, 0));
    assert!(m.source.dir.join(RECORD_RIGHT).exists());
    assert!(m.target.dir.join(RECORD_CONTINUING).exists());
    m.target_runs().await;
    // The target is a usual VM now: repeats are harmless, and it can be stopped.
    m.target.done(Request::MigrateIn { migration_uid: UID.into() }).await;
    m.target.done(Request::Cancel { migration_uid: UID.into(), why: String::new() }).await;
    m.target.done(Request::Stop { grace_s: 60, why: StopWhy::Power }).await;
    assert_eq!(m.target.ended().await.0.cause, Cause::PlatformStop);
}

#[tokio::test]
async fn a_uefi_guest_moves() {
    let volume = tempfile::tempdir().unwrap();
    let kept = volume.path().join("vars.fd");
    let mut definition = machine(&[]);
    definition.memory_bytes = 128 << 20;
    definition.firmware = holdfast_hypervisor::definition::Firmware::Efi {
        code: "/usr/share/OVMF/OVMF_CODE_4M.fd".into(),
        vars: "/usr/share/OVMF/OVMF_VARS_4M.fd".into(),
        kept: Some(kept.clone()),
        secure_boot: false,
    };
    let mut source = Launcher::start("pod-source", "").await;
    let mut target = Launcher::start("pod-target", "").await;
    let mut console = source.boot(&definition, OnReset::End).await;
    read_until(&mut console, "BdsDxe").await;
    let _relay = Relay::start(&source.dir, &target.dir);
    target.done(prepare(&definition, Some(UID), OnReset::End)).await;
    target.done(Request::MigrateIn { migration_uid: UID.into() }).await;
    source.done(Request::MigrateOut { migration_uid: UID.into(), config: config(625_000_000) }).await;
    source.stage(MoveStage::Suspended).await;
    source.done(Request::Switch { migration_uid: UID.into(), routes_done: true }).await;
    target.stage(MoveStage::Resumed).await;
    assert_eq!(source.ended().await.0.cause, Cause::MovedAway);
    assert_eq!(target.state().await.query_status.as_deref(), Some("running"));
    let template = std::fs::read("/usr/share/OVMF/OVMF_VARS_4M.fd").unwrap();
    assert!(std::fs::read(&kept).unwrap() != template, "the variables of the source are still there");
}

// MM-S3
#[tokio::test]
async fn both_sides_never_run_at_once() {
    let mut m = Move::listening("", "").await;
    m.begin(625_000_000).await;
    let mut switched = false;
    loop {
        let target = m.target.state().await;
        let seq = m.source.tell(Request::Query).await;
        let Some(Answer::State(source)) = m.source.answer(seq).await else { break };
        let runs = |s: &State| s.query_status.as_deref() == Some("running");
        // The target's answer is the older one: running there stays running.
        assert!(!(runs(&source) && runs(&target)), "{source:?} {target:?}");
        if !switched
            && m.source
                .log
                .iter()
                .any(|e| matches!(e, Event::Migration(x) if x.stage == MoveStage::Suspended))
        {
            switched = true;
            m.source.tell(Request::Switch { migration_uid: UID.into(), routes_done: true }).await;
        }
        if source.vm == VmState::Ended {
            break;
        }
    }
    m.target.stage(MoveStage::Resumed).await;
    m.target_runs().await;
}

// MM-S10 (the boot and the disk lock, over several hops)
#[tokio::test]
async fn moves_in_a_row_are_one_boot() {
    let disk = tempfile::tempdir().unwrap();
    let image = disk.path().join("disk.img");
    write_disk(&image);
    let definition = machine(&[&image]);
    let mut source = Launcher::start("pod-0", "").await;
    let mut console = source.boot(&definition, OnReset::End).await;
    read_until(&mut console, "Babc").await;
    for hop in 1..=6 {
        let uid = || format!("migration-{hop}");
        let mut target = Launcher::start(&format!("pod-{hop}"), "").await;
        let _relay = Relay::start(&source.dir, &target.dir);
        target.done(prepare(&definition, Some(&uid()), OnReset::End)).await;
        target.done(Request::MigrateIn { migration_uid: uid() }).await;
        let console = target.stream(StreamKind::Serial).await;
        source.done(Request::MigrateOut { migration_uid: uid(), config: config(625_000_000) }).await;
        source.stage(MoveStage::Suspended).await;
        source.done(Request::Switch { migration_uid: uid(), routes_done: true }).await;
        target.stage(MoveStage::Resumed).await;
        assert_eq!(source.ended().await.0.cause, Cause::MovedAway);
        let mut console = console;
        let text = read_until(&mut console, "z").await;
        assert!(!text.contains('B'), "hop {hop} booted: {text}");
        source = target;
    }
    source.done(Request::Stop { grace_s: 60, why: StopWhy::Power }).await;
    assert_eq!(source.ended().await.0.cause, Cause::PlatformStop);
}

#[tokio::test]
async fn a_cancelled_move_leaves_the_guest_where_it_is_and_another_succeeds() {
    let mut m = Move::listening("", "").await;
    m.begin(20_000).await;
    m.source.stage(MoveStage::Copying).await;
    m.source.done(Request::Cancel { migration_uid: UID.into(), why: "test".into() }).await;
    m.source.stage(MoveStage::Cancelled).await;
    m.source_runs().await;
    // The same uid is not carried out again.
    m.source.done(Request::MigrateOut { migration_uid: UID.into(), config: config(0) }).await;
    assert_eq!(m.source.state().await.vm, VmState::Running);
    assert_eq!(m.target.ended().await.0.cause, Cause::MoveGivenUp);

    let mut second = Launcher::start("pod-target-2", "").await;
    second.done(prepare(&m.definition, Some("migration-2"), OnReset::End)).await;
    second.done(Request::MigrateIn { migration_uid: "migration-2".into() }).await;
    m.reconnect(&second);
    let out = Request::MigrateOut { migration_uid: "migration-2".into(), config: config(625_000_000) };
    m.source.done(out).await;
    m.source.stage(MoveStage::Suspended).await;
    m.source.done(Request::Switch { migration_uid: "migration-2".into(), routes_done: true }).await;
    second.stage(MoveStage::Resumed).await;
    assert_eq!(m.source.ended().await.0.cause, Cause::MovedAway);
}

#[tokio::test]
async fn a_move_can_be_called_off_while_suspended() {
    let mut m = Move::listening("", "").await;
    m.begin(625_000_000).await;
    m.source.stage(MoveStage::Suspended).await;
    m.source.done(Request::Cancel { migration_uid: UID.into(), why: "test".into() }).await;
    m.source.stage(MoveStage::Cancelled).await;
    m.source_runs().await;
}

#[tokio::test]
async fn routes_that_do_not_move_call_the_move_off() {
    let mut m = Move::listening("", "").await;
    m.begin(625_000_000).await;
    let failed = m.source.stage(MoveStage::Failed).await;
    assert_eq!(failed.failure.unwrap().class, "SwitchTooLong");
    m.source_runs().await;
}

// MM-F3
#[tokio::test]
async fn the_target_is_killed_while_copying() {
    let mut m = Move::listening("", "").await;
    m.begin(20_000).await;
    m.source.stage(MoveStage::Copying).await;
    let qemu = m.target.qemu_pid().await;
    signal(qemu, Signal::KILL);
    m.source.stage(MoveStage::Failed).await;
    m.source_runs().await;
    assert_eq!(m.target.ended().await.0.cause, Cause::MoveGivenUp);
    assert!(!m.target.dir.join(RECORD_CONTINUING).exists());
}

// MM-F4
#[tokio::test]
async fn the_target_is_killed_while_the_source_is_suspended() {
    let mut m = Move::listening("", "").await;
    m.begin(625_000_000).await;
    m.source.stage(MoveStage::Suspended).await;
    let qemu = m.target.qemu_pid().await;
    signal(qemu, Signal::KILL);
    assert_eq!(m.target.ended().await.0.cause, Cause::MoveGivenUp);
    m.source.done(Request::Switch { migration_uid: UID.into(), routes_done: true }).await;
    m.source.stage(MoveStage::Failed).await;
    m.source_runs().await;
}

// MM-F6
#[tokio::test]
async fn the_target_ends_before_commit_arrives() {
    let mut m = Move::listening("", "").await;
    m.relay.rules.hold_commit.store(true, Ordering::SeqCst);
    m.begin(625_000_000).await;
    m.switch().await;
    m.source.stage(MoveStage::GaveUp).await;
    assert_eq!(m.source.state().await.vm, VmState::GaveUp);
    // Nothing but certainty moves it: neither a stop nor a run nor a cancel.
    m.source.refused(Request::Run).await;
    m.source.refused(Request::Stop { grace_s: 1, why: StopWhy::Power }).await;
    m.source.refused(Request::Cancel { migration_uid: UID.into(), why: String::new() }).await;
    let qemu = m.target.qemu_pid().await;
    signal(qemu, Signal::KILL);
    assert_eq!(m.target.ended().await.0.cause, Cause::MoveGivenUp);
    assert!(!m.target.dir.join(RECORD_CONTINUING).exists());
    m.source.done(Request::Settle { migration_uid: UID.into(), verdict: Verdict::NeverContinued }).await;
    m.source.stage(MoveStage::Failed).await;
    m.source_runs().await;
}

// MM-F7
#[tokio::test]
async fn a_lost_ack_is_asked_for_again() {
    let mut m = Move::listening("", "").await;
    m.relay.rules.drop_answers.store(1, Ordering::SeqCst);
    m.begin(625_000_000).await;
    m.switch().await;
    m.target.stage(MoveStage::Resumed).await;
    assert_eq!(m.source.state().await.vm, VmState::GaveUp);
    assert_eq!(m.source.ended().await.0.cause, Cause::MovedAway);
    m.target_runs().await;
}

// MM-F7
#[tokio::test]
async fn the_agents_word_settles_a_hand_over_without_ack() {
    let mut m = Move::listening("", "").await;
    m.relay.rules.drop_answers.store(usize::MAX, Ordering::SeqCst);
    m.begin(625_000_000).await;
    m.switch().await;
    m.target.stage(MoveStage::Resumed).await;
    m.source.stage(MoveStage::GaveUp).await;
    m.source.done(Request::Settle { migration_uid: UID.into(), verdict: Verdict::Continued }).await;
    assert_eq!(m.source.ended().await.0.cause, Cause::MovedAway);
    m.target_runs().await;
}

// MM-F10
#[tokio::test]
async fn a_target_that_hangs_while_copying_is_given_up() {
    let mut m = Move::listening("", "").await;
    let qemu = m.target.qemu_pid().await;
    signal(qemu, Signal::STOP);
    let short = MoveConfig { progress_timeout_s: 2, ..config(625_000_000) };
    m.source.done(Request::MigrateOut { migration_uid: UID.into(), config: short }).await;
    let failed = m.source.stage(MoveStage::Failed).await;
    assert_eq!(failed.failure.unwrap().class, "NotConverging");
    m.source_runs().await;
}

// MM-F11
#[tokio::test]
async fn a_target_that_hangs_in_the_device_stage_is_cut_off() {
    let mut m = Move::listening("", "").await;
    m.begin(625_000_000).await;
    m.source.stage(MoveStage::Suspended).await;
    let qemu = m.target.qemu_pid().await;
    signal(qemu, Signal::STOP);
    m.source.done(Request::Switch { migration_uid: UID.into(), routes_done: true }).await;
    let failed = m.source.stage(MoveStage::Failed).await;
    assert_eq!(failed.failure.unwrap().class, "TargetHangs");
    m.source_runs().await;
}

// MM-F12
#[tokio::test]
async fn the_source_qemu_is_killed_while_copying() {
    let mut m = Move::listening("", "").await;
    m.begin(20_000).await;
    m.source.stage(MoveStage::Copying).await;
    let qemu = m.source.qemu_pid().await;
    signal(qemu, Signal::KILL);
    assert_eq!(m.source.ended().await.0.cause, Cause::Crash);
    assert_eq!(m.target.ended().await.0.cause, Cause::MoveGivenUp);
}

// MM-F23: another machine type is noticed by QEMU, and the source goes on.
#[tokio::test]
async fn a_target_with_another_machine_is_refused_by_qemu() {
    let mut m = Move::new("", "").await;
    let mut other = m.definition.clone();
    other.machine = "pc-q35-7.1".into();
    m.target.done(prepare(&other, Some(UID), OnReset::End)).await;
    m.target.done(Request::MigrateIn { migration_uid: UID.into() }).await;
    m.begin(625_000_000).await;
    m.source.stage(MoveStage::Failed).await;
    m.source_runs().await;
    let failed = m.target.stage(MoveStage::Failed).await.failure.unwrap();
    assert!(failed.text.contains("achine type"), "{}", failed.text);
}

// MM-F27
#[tokio::test]
async fn a_guest_that_powers_off_during_the_move_ends_it() {
    let mut m = Move::listening("", "").await;
    m.begin(20_000).await;
    m.source.stage(MoveStage::Copying).await;
    let mut console = m.source.stream(StreamKind::Serial).await;
    tokio::io::AsyncWriteExt::write_all(&mut console, b"p").await.unwrap();
    let ended = m.source.ended().await;
    assert_eq!(ended.0.cause, Cause::GuestShutdown);
    assert_eq!(m.target.ended().await.0.cause, Cause::MoveGivenUp);
}

#[tokio::test]
async fn a_stop_during_a_move_calls_it_off_and_stops() {
    let mut m = Move::listening("", "").await;
    m.begin(20_000).await;
    m.source.stage(MoveStage::Copying).await;
    m.source.done(Request::Stop { grace_s: 60, why: StopWhy::Power }).await;
    assert_eq!(m.source.ended().await.0.cause, Cause::PlatformStop);
    assert_eq!(m.target.ended().await.0.cause, Cause::MoveGivenUp);
}

/// The source dies at `point`. Returns whether the target's guest runs in the end.
async fn source_dies_at(point: &str) -> bool {
    let mut m = Move::listening(&format!("{point}=kill"), "").await;
    let source_qemu = m.source.qemu_pid().await;
    m.source.tell(Request::MigrateOut { migration_uid: UID.into(), config: config(625_000_000) }).await;
    let suspended = |e: &Event| matches!(e, Event::Migration(x) if x.stage == MoveStage::Suspended);
    if m.source.until("suspended", suspended).await.is_some() {
        m.source.tell(Request::Switch { migration_uid: UID.into(), routes_done: true }).await;
    }
    m.source.exit_code().await;
    eventually("QEMU outlived its launcher", || !alive(source_qemu)).await;
    let decided = |e: &Event| match e {
        Event::Ended(_) => true,
        Event::Migration(x) => x.stage == MoveStage::Resumed,
        _ => false,
    };
    // A target that has everything but no COMMIT stays paused until its agent decides.
    let gave_up = m.source.dir.join(RECORD_RIGHT).exists();
    if !gave_up || point == "gave_up" {
        let seq = m.target.tell(Request::Query).await;
        match m.target.answer(seq).await {
            Some(Answer::State(state)) => {
                assert_ne!(state.query_status.as_deref(), Some("running"), "{point}")
            }
            // Cut off in the middle of the memory, it may have ended by itself.
            other => assert!(other.is_none() && point != "gave_up", "{point}: {other:?}"),
        }
        if point == "gave_up" {
            // The agent delivers the COMMIT that the dead launcher had recorded (MM §2.8).
            let mut control = UnixStream::connect(m.target.dir.join(SOCKET_CONTROL_IN)).await.unwrap();
            let commit = Control::Commit { migration_uid: UID.into(), paused: false };
            holdfast_wire::frame::write(&mut control, &commit).await.unwrap();
            let answer: Control = holdfast_wire::frame::read(&mut control).await.unwrap().unwrap();
            assert_eq!(answer, Control::Ack { migration_uid: UID.into() });
        } else {
            m.target.tell(Request::Cancel { migration_uid: UID.into(), why: "source ended".into() }).await;
        }
    }
    m.target.until("a decision", decided).await;
    let runs = m.target.dir.join(RECORD_CONTINUING).exists();
    if runs {
        m.target_runs().await;
    } else {
        assert_eq!(m.target.ended().await.0.cause, Cause::MoveGivenUp, "{point}");
    }
    // Whoever may run has its record, and nobody else can.
    assert_eq!(runs, gave_up, "{point}");
    runs
}

// MM-F30 and the crash matrix of first-slice §4.3: the source's side.
#[tokio::test]
async fn the_source_dies_at_every_point() {
    for point in ["copying", "suspended", "routes_moved", "completed"] {
        assert!(!source_dies_at(point).await, "{point}");
    }
    for point in ["gave_up", "commit_sent", "acked"] {
        assert!(source_dies_at(point).await, "{point}");
    }
}

// The crash matrix of first-slice §4.3: the target's side.
#[tokio::test]
async fn the_target_dies_at_every_point() {
    for point in ["prepared", "listening"] {
        let mut m = Move::new("", &format!("{point}=kill")).await;
        let seq = m.target.tell(prepare(&m.definition, Some(UID), OnReset::End)).await;
        m.target.answer(seq).await;
        m.target.tell(Request::MigrateIn { migration_uid: UID.into() }).await;
        m.target.exit_code().await;
        m.source.tell(Request::MigrateOut { migration_uid: UID.into(), config: config(625_000_000) }).await;
        m.source.stage(MoveStage::Failed).await;
        m.source_runs().await;
    }
    // Dead after its record and before `cont`: nobody knows from outside whether it ran.
    let mut m = Move::listening("", "continuing=kill").await;
    m.begin(625_000_000).await;
    m.switch().await;
    m.target.exit_code().await;
    m.source.stage(MoveStage::GaveUp).await;
    assert!(m.target.dir.join(RECORD_CONTINUING).exists());
    assert_eq!(m.source.state().await.query_status.as_deref(), Some("postmigrate"));
    // The record says "continued", so the source's copy is stale and ends; the VM is started anew.
    m.source.done(Request::Settle { migration_uid: UID.into(), verdict: Verdict::Continued }).await;
    assert_eq!(m.source.ended().await.0.cause, Cause::MovedAway);
}
