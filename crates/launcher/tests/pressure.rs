//! A guest that writes memory faster than the link carries it: what slows it down, and what must not
//! (spec migration-and-maintenance.md §3, §5.5). Two launchers, two real QEMUs; the guest's alphabet on the
//! console counts how much it has written, and a second monitor of QEMU tells what QEMU does to it.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::pair::{Move, UID, config};
use common::watcher::Watched;
use common::*;
use holdfast_wire::launcher::*;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;

/// Bytes a second that the link carries, the least that QEMU keeps to. The guest's 512 KiB take half a second,
/// in which it has written all of them again, even on a machine that has little time for it; slowed down to a
/// hundredth it has not.
const LINK: i64 = 1_000_000;

/// The limits of the moves of these tests. The shorter a guest may be stopped, the less of it may be left.
fn over_the_link() -> MoveConfig {
    MoveConfig { downtime_ms: 20, ..config(LINK) }
}

/// Counts the turns that a guest makes, from its console.
struct Turns {
    count: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Turns {
    fn of(mut console: UnixStream) -> Turns {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = count.clone();
        let task = tokio::spawn(async move {
            let mut letters = [0; 256];
            while let Ok(n @ 1..) = console.read(&mut letters).await {
                counted.fetch_add(n, Ordering::SeqCst);
            }
        });
        Turns { count, task }
    }

    /// Turns within the next second.
    async fn in_a_second(&self) -> usize {
        let before = self.count.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_secs(1)).await;
        self.count.load(Ordering::SeqCst) - before
    }

    /// Turns in the best of some seconds: what the guest can do when this machine has time for it.
    async fn at_best(&self, seconds: usize) -> usize {
        // What the console had kept comes at once.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let mut best = 0;
        for _ in 0..seconds {
            best = best.max(self.in_a_second().await);
        }
        best
    }
}

impl Drop for Turns {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn number(value: &serde_json::Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

/// One guest, first under a policy that spares it, then under one that does not. Same link.
// MM P13, MM-P14
#[tokio::test]
async fn only_a_guest_that_may_be_slowed_down_moves_over_a_slow_link() {
    let mut watch = Watched::new();
    let source = Launcher::start_with("pod-source", Some(watch.program())).await;
    let target = Launcher::start("pod-target", "").await;
    let mut m = Move::between(source, target, WRITER, "Babc").await;
    watch.connect().await;
    let turns = Turns::of(m.source.stream(StreamKind::Serial).await);
    let usual = turns.at_best(6).await;

    // Spared: no throttle at any time, and the guest makes as many turns as before.
    m.listen().await;
    let spared = MoveConfig { completion_timeout_s: 30, ..over_the_link() };
    m.source.done(Request::MigrateOut { migration_uid: UID.into(), config: spared }).await;
    m.source.stage(MoveStage::Copying).await;
    let stuck = |e: &Event| matches!(e, Event::Migration(m) if m.progress.not_converging);
    m.source.until("the guest writes too fast", stuck).await.unwrap();
    let during = turns.at_best(6).await;
    assert!(during * 10 >= usual * 7, "{usual} turns a second before, {during} during the move");
    let failed = m.source.stage(MoveStage::Failed).await;
    assert_eq!(failed.failure.unwrap().class, "NotConverging");
    assert_eq!(failed.progress.throttle_pct, 0);
    let throttled = |e: &Event| matches!(e, Event::Migration(m) if m.progress.throttle_pct > 0);
    assert!(!m.source.log.iter().any(throttled));
    assert_eq!(watch.events("STOP"), 0, "the guest was stopped");
    m.target.ended().await;

    // Not spared: the same guest over the same link completes, because it is slowed down.
    let mut second_watch = Watched::new();
    let mut second = Launcher::start_with("pod-target-2", Some(second_watch.program())).await;
    let uid = "migration-2".to_owned();
    second.done(prepare(&m.definition, Some(&uid), OnReset::End)).await;
    second.done(Request::MigrateIn { migration_uid: uid.clone() }).await;
    second_watch.connect().await;
    m.reconnect(&second);
    let forced = MoveConfig { auto_converge: true, ..over_the_link() };
    m.source.done(Request::MigrateOut { migration_uid: uid.clone(), config: forced }).await;
    let mut throttles = vec![];
    loop {
        let info = watch.ask("query-migrate").await;
        if info["status"] == "pre-switchover" {
            break;
        }
        let now = number(&info["cpu-throttle-percentage"]);
        if now > 0 && throttles.last() != Some(&now) {
            throttles.push(now);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let wanted: Vec<u64> = (0..throttles.len() as u64).map(|n| (20 + 10 * n).min(99)).collect();
    assert!(throttles.len() >= 3 && throttles == wanted, "{throttles:?}");
    m.source.done(Request::Switch { migration_uid: uid, routes_done: true }).await;
    second.stage(MoveStage::Resumed).await;
    assert_eq!(m.source.ended().await.0.cause, Cause::MovedAway);
    drop(turns);

    // Lifted at the target.
    let info = second_watch.ask("query-migrate").await;
    assert_eq!(number(&info["cpu-throttle-percentage"]), 0, "{info}");
    let turns = Turns::of(second.stream(StreamKind::Serial).await);
    let after = turns.at_best(6).await;
    assert!(after * 10 >= usual * 7, "{usual} turns a second before, {after} after the move");
}
