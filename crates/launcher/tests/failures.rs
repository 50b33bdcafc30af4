//! What goes wrong at the end of a move, where a millisecond decides: a target that dies or falls silent in
//! the device stage, a disk that takes no record. Two launchers, two real QEMUs, and a second monitor of each
//! QEMU, which shows what it does when nobody asks.

mod common;

use std::sync::atomic::Ordering;

use common::pair::{Move, UID};
use common::watcher::Watched;
use common::*;
use holdfast_wire::launcher::*;
use rustix::process::Signal;

/// A move whose target listens, and what watches source and target.
async fn watched() -> (Move, Watched, Watched) {
    let (source_watch, target_watch) = (Watched::new(), Watched::new());
    let source = Launcher::start_with("pod-source", Some(source_watch.program())).await;
    let target = Launcher::start_with("pod-target", Some(target_watch.program())).await;
    let mut m = Move::between(source, target, BOOT_SECTOR, "Babc").await;
    m.listen().await;
    (m, source_watch, target_watch)
}

/// Lets a suspended move come to the device stage: the source has sent all and waits for the target's last word.
async fn into_the_device_stage(m: &mut Move, source: &mut Watched) {
    m.source.tell(Request::Switch { migration_uid: UID.into(), routes_done: true }).await;
    source.until_status("device").await;
}

// MM-F5
#[tokio::test]
async fn the_target_is_killed_in_the_device_stage() {
    let (mut m, mut source, _) = watched().await;
    source.connect().await;
    let qemu = m.target.qemu_pid().await;
    m.begin(625_000_000).await;
    m.source.stage(MoveStage::Suspended).await;
    // It hangs, so that the stage lasts until it is killed.
    signal(qemu, Signal::STOP);
    into_the_device_stage(&mut m, &mut source).await;
    signal(qemu, Signal::KILL);
    let failed = m.source.stage(MoveStage::Failed).await;
    // Not the limit of ten seconds: the end of the stream is noticed at once.
    assert_eq!(failed.failure.unwrap().class, "TransferFailed");
    m.source_runs().await;
    assert_eq!(m.target.ended().await.0.cause, Cause::MoveGivenUp);
    assert!(!m.target.dir.join(RECORD_CONTINUING).exists());
}

// MM-F32
#[tokio::test]
async fn a_loaded_target_whose_last_word_is_lost_never_runs() {
    let (mut m, mut source, mut target) = watched().await;
    for watch in [&mut source, &mut target] {
        watch.connect().await;
    }
    m.begin(625_000_000).await;
    m.source.stage(MoveStage::Suspended).await;
    m.relay.rules.drop_returns.store(true, Ordering::SeqCst);
    into_the_device_stage(&mut m, &mut source).await;
    target.until_status("completed").await;
    let failed = m.source.stage(MoveStage::Failed).await;
    assert_eq!(failed.failure.unwrap().class, "TransferFailed");
    m.source_runs().await;
    // It has everything, and waits for a word that never comes.
    let state = m.target.state().await;
    assert_eq!((state.vm, state.query_status.as_deref()), (VmState::Incoming, Some("paused")));
    m.target.tell(Request::Cancel { migration_uid: UID.into(), why: "the move failed".into() }).await;
    assert_eq!(m.target.ended().await.0.cause, Cause::MoveGivenUp);
    assert!(!m.target.dir.join(RECORD_CONTINUING).exists());
    assert_eq!(target.events("RESUME"), 0, "the guest ran on the target");
    m.source_runs().await;
}

/// A directory of a few pages that can be filled.
struct Small(tempfile::TempDir);

impl Small {
    fn new() -> Small {
        let dir = tempfile::tempdir().unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=256k,mode=755", "holdfast-test"])
            .arg(dir.path())
            .status();
        assert!(mounted.unwrap().success(), "a small tmpfs is needed");
        Small(dir)
    }

    /// Leaves not a byte.
    fn fill(&self) {
        use std::io::Write as _;
        let mut file = std::fs::File::create(self.0.path().join("ballast")).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // What still has files open in it lets go later.
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

// MM §2.4 rules 4 and 5: no record, no hand-over. The disk of either side is full.
#[tokio::test]
async fn without_room_for_a_record_the_guest_stays() {
    for full in ["source", "target"] {
        let (source_dir, target_dir) = (Small::new(), Small::new());
        let mut source = Launcher::start_in(source_dir.0.path(), "pod-source", "");
        let mut target = Launcher::start_in(target_dir.0.path(), "pod-target", "");
        source.connect().await;
        target.connect().await;
        let mut m = Move::between(source, target, BOOT_SECTOR, "Babc").await;
        m.listen().await;
        if full == "source" {
            source_dir.fill()
        } else {
            target_dir.fill()
        }
        m.begin(625_000_000).await;
        m.switch().await;
        let failed = m.source.stage(MoveStage::Failed).await.failure.unwrap();
        let class = if full == "source" { "RecordFailed" } else { "TargetRefused" };
        assert_eq!(failed.class, class, "{full}: {}", failed.text);
        assert!(failed.text.contains("recording the hand-over"), "{full}: {}", failed.text);
        m.source_runs().await;
        assert!(!m.target.dir.join(RECORD_CONTINUING).exists(), "{full}");
    }
}
