//! The source of a move (spec migration-and-maintenance.md §2.4 rules 4, 6, 7; §5.3).

use std::time::Duration;

use holdfast_env::fault;
use holdfast_hypervisor::monitor::{CancelReason, Input, Limits, Monitor, Output};
use holdfast_hypervisor::port::{
    Hypervisor, Machine, MigrateParams, MigrationInfo, MigrationStatus, RunState,
};
use holdfast_wire::launcher::{
    Answer, Cause, Control, Event, MoveConfig, MoveProgress, MoveStage, SOCKET_CONTROL_OUT,
    SOCKET_MEMORY_OUT, Verdict,
};
use tokio::time::Instant;

use super::Driver;
use crate::control::{FromTarget, ToTarget};
use crate::queue::Phase;

/// How often QEMU is asked for figures.
const POLL_EVERY: Duration = Duration::from_millis(400);
/// How often COMMIT is said again while nobody answers.
const COMMIT_EVERY: Duration = Duration::from_secs(2);
/// How long the control stream may take to come back before the right is given up.
const CONTROL_LIMIT: Duration = Duration::from_secs(2);
/// How long QEMU may take to resume the guest after a failed move.
const RESUME_LIMIT: Duration = Duration::from_secs(5);

/// A move from here.
pub(super) struct Outgoing {
    uid: String,
    monitor: Monitor,
    bandwidth: u64,
    control: Option<ToTarget>,
    connections: u64,
    next_poll: Instant,
    /// Set once the right was given up: when to say COMMIT again.
    next_commit: Option<Instant>,
}

impl Outgoing {
    pub(super) fn next_wake(&self) -> Instant {
        self.next_commit.unwrap_or(self.next_poll)
    }
}

impl<H: Hypervisor> Driver<H> {
    pub(super) async fn migrate_out(&mut self, uid: String, config: MoveConfig) -> Result<(), String> {
        let machine = self.machine.clone().ok_or("QEMU is not there")?;
        let socket = self.config.run_dir.join(SOCKET_CONTROL_OUT);
        let control = ToTarget::connect(&*self.config.outside.sockets, &socket, 1, self.inbox.clone()).await.map_err(|e| {
            format!(
                "the control stream to the target: {e}; the agent must listen on {SOCKET_CONTROL_OUT} first"
            )
        })?;
        let (params, limits) = settings(&config);
        let monitor = Monitor::new(limits, self.now_ms());
        self.outgoing = Some(Outgoing {
            uid: uid.clone(),
            monitor,
            bandwidth: params.bandwidth,
            control: Some(control),
            connections: 1,
            next_poll: Instant::now() + POLL_EVERY,
            next_commit: None,
        });
        self.enter(Phase::MovingOut(uid.clone()));
        let memory = self.config.run_dir.join(SOCKET_MEMORY_OUT).display().to_string();
        if let Err(e) = machine.migrate_out(&memory, &params).await {
            self.move_stays(MoveStage::Failed, "TransferFailed", e.to_string()).await;
            return Err(e.to_string());
        }
        Ok(())
    }

    /// Feeds the monitor and does what it says.
    async fn monitor(&mut self, input: Input) {
        let now_ms = self.now_ms();
        let Some(outgoing) = &mut self.outgoing else { return };
        let outputs = outgoing.monitor.step(input, now_ms);
        let (uid, bandwidth) = (outgoing.uid.clone(), outgoing.bandwidth);
        for output in outputs {
            let Some(machine) = self.machine.clone() else { return };
            match output {
                Output::Copying => {
                    self.tell_move(&uid, MoveStage::Copying, None);
                    fault::point("copying").await;
                }
                Output::Suspended => {
                    fault::point("suspended").await;
                    self.tell_move(&uid, MoveStage::Suspended, None);
                }
                Output::Continue => report("leaving pre-switchover", machine.migrate_continue().await),
                Output::Cancel => report("cancelling the move", machine.migrate_cancel().await),
                Output::Cut => report("cutting the stream", machine.migrate_cut().await),
                Output::RaiseDowntime(ms) => {
                    report("raising the downtime limit", machine.migrate_limits(bandwidth, ms).await);
                }
                Output::NotConverging(on) => self.tell_convergence(&uid, !on),
                Output::Completed => self.give_up_right(&uid).await,
                Output::Cancelled(why) => {
                    let (stage, class, text) = cancelled(why);
                    self.move_stays(stage, class, text.into()).await;
                }
                Output::Failed { class, text } => self.move_stays(MoveStage::Failed, class, text).await,
            }
        }
    }

    pub(super) async fn on_migration_status(&mut self, status: MigrationStatus) {
        match self.phase.clone() {
            Phase::MovingOut(uid) => {
                if status == MigrationStatus::PreSwitchover
                    && holdfast_env::mutant!("commit-before-completed")
                {
                    return self.give_up_right(&uid).await;
                }
                if status == MigrationStatus::Failed
                    && let Some(machine) = self.machine.clone()
                    && let Ok(info) = machine.migration().await
                {
                    // The query knows why.
                    return self.monitor(Input::Info(info)).await;
                }
                self.monitor(Input::Status(status)).await;
            }
            Phase::Listening(uid) if status == MigrationStatus::Failed => self.on_incoming_failed(&uid).await,
            Phase::Listening(_)
                if status == MigrationStatus::Completed && holdfast_env::mutant!("run-without-commit") =>
            {
                let _ = self.run_guest().await;
            }
            _ => {}
        }
    }

    pub(super) async fn on_migration_pass(&mut self, pass: u64) {
        if matches!(self.phase, Phase::MovingOut(_)) {
            self.monitor(Input::Pass(pass)).await;
        }
    }

    pub(super) async fn switch(&mut self, routes_done: bool) {
        if !routes_done {
            tracing::warn!("routes do not point to the target yet; the move goes on");
        }
        fault::point("routes_moved").await;
        self.monitor(Input::SwitchDone).await;
    }

    pub(super) async fn cancel(&mut self, uid: String, why: String) -> Result<(), String> {
        if holdfast_env::mutant!("cancel-unheard") {
            return Ok(());
        }
        match self.phase.clone() {
            Phase::MovingOut(current) if current == uid => {
                if !self.outgoing.as_ref().is_some_and(|o| o.monitor.can_cancel()) {
                    return Err(
                        "too late: the switch-over has begun and ends by itself within seconds".into()
                    );
                }
                tracing::info!(migration = uid, why, "the move is called off");
                self.monitor(Input::Cancel).await;
            }
            Phase::Incoming(current) | Phase::Listening(current) if current == uid => {
                self.give_up_move(&uid, MoveStage::Cancelled, "Cancelled", why).await;
            }
            // COMMIT came first: the guest runs here and stays.
            _ if self.continued.as_deref() == Some(uid.as_str()) => {}
            // Never begun here: remembered, so that a late MigrateOut does not begin it.
            _ => {
                let present = self.last_move.clone();
                self.tell_move(&uid, MoveStage::Cancelled, Some(("Cancelled", why)));
                if self.phase.migration().is_some() {
                    self.last_move = present;
                }
            }
        }
        Ok(())
    }

    pub(super) async fn set_limits(&mut self, config: &MoveConfig) -> Result<(), String> {
        let machine = self.machine.clone().ok_or("QEMU is not there")?;
        let (params, _) = settings(config);
        if let Some(outgoing) = &mut self.outgoing {
            outgoing.bandwidth = params.bandwidth;
        }
        machine.migrate_limits(params.bandwidth, params.downtime_ms).await.map_err(|e| e.to_string())
    }

    /// The target has everything. The record is on disk before COMMIT leaves (§2.4 rule 4).
    async fn give_up_right(&mut self, uid: &str) {
        fault::point("completed").await;
        if !self.control_is_open(uid).await {
            // The right is still here and no COMMIT can have left, so the target cannot run.
            let text = "the control stream to the target broke before the hand-over".to_owned();
            return self.move_stays(MoveStage::Failed, "ControlLost", text).await;
        }
        let recorded = match holdfast_env::mutant!("no-give-up-record") {
            true => Ok(()),
            false => self.records.give_up(&self.config.id, uid),
        };
        if let Err(e) = recorded {
            // A record of which nobody knows whether it is on disk must not become one.
            report("removing the give-up record", self.records.regain());
            let text = format!("recording the hand-over: {e}");
            return self.move_stays(MoveStage::Failed, "RecordFailed", text).await;
        }
        fault::point("gave_up").await;
        self.phase = Phase::GaveUp(uid.to_owned());
        self.say_commit().await;
        fault::point("commit_sent").await;
        self.read_downtime(uid).await;
        self.tell_move(uid, MoveStage::GaveUp, None);
        self.tell_state();
    }

    async fn control_is_open(&mut self, uid: &str) -> bool {
        let deadline = Instant::now() + CONTROL_LIMIT;
        loop {
            if self.outgoing.as_ref().is_some_and(|o| o.control.is_some()) || self.connect_control().await {
                return true;
            }
            if Instant::now() >= deadline {
                tracing::error!(migration = uid, "no control stream to the target");
                return false;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn connect_control(&mut self) -> bool {
        let socket = self.config.run_dir.join(SOCKET_CONTROL_OUT);
        let Some(outgoing) = &mut self.outgoing else { return false };
        outgoing.connections += 1;
        let sockets = &*self.config.outside.sockets;
        outgoing.control =
            ToTarget::connect(sockets, &socket, outgoing.connections, self.inbox.clone()).await.ok();
        outgoing.control.is_some()
    }

    /// Says COMMIT, the first time or again: the target answers each as it answered the first.
    async fn say_commit(&mut self) {
        if self.outgoing.as_ref().is_some_and(|o| o.control.is_none()) {
            self.connect_control().await;
        }
        let Some(outgoing) = &mut self.outgoing else { return };
        outgoing.next_commit = Some(Instant::now() + COMMIT_EVERY);
        let word = Control::Commit { migration_uid: outgoing.uid.clone(), paused: false };
        if let Some(control) = &mut outgoing.control
            && let Err(e) = control.send(&word).await
        {
            tracing::warn!("sending COMMIT: {e}");
            outgoing.control = None;
        }
    }

    pub(super) async fn on_target_word(&mut self, word: FromTarget) {
        let Some(outgoing) = &mut self.outgoing else { return };
        let uid = outgoing.uid.clone();
        let gave_up = matches!(&self.phase, Phase::GaveUp(current) if *current == uid);
        match word {
            FromTarget::Closed(number) => {
                if outgoing.control.as_ref().is_some_and(|c| c.number() == number) {
                    outgoing.control = None;
                }
            }
            FromTarget::Said(_, Control::Ack { migration_uid }) if gave_up && migration_uid == uid => {
                fault::point("acked").await;
                self.moved_away(&uid).await;
            }
            FromTarget::Said(_, Control::Nack { migration_uid, why }) if gave_up && migration_uid == uid => {
                self.regain_right("TargetRefused", why).await;
            }
            FromTarget::Said(_, word) => {
                tracing::warn!(?word, phase = ?self.phase, "unexpected word, ignored")
            }
        }
    }

    pub(super) async fn settle(&mut self, verdict: Verdict) {
        let Some(uid) = self.outgoing.as_ref().map(|o| o.uid.clone()) else { return };
        match verdict {
            Verdict::Continued => self.moved_away(&uid).await,
            Verdict::NeverContinued => {
                self.regain_right("TargetEnded", "the target ended without having run the guest".into())
                    .await;
            }
        }
    }

    async fn moved_away(&mut self, uid: &str) {
        self.outgoing = None;
        self.tell_move(uid, MoveStage::Acked, None);
        self.end_orderly(Cause::MovedAway, "the guest runs on the target of the move".into()).await;
    }

    /// It is certain that the target never ran and never will.
    async fn regain_right(&mut self, class: &'static str, text: String) {
        if let Err(e) = self.records.regain() {
            // Without the record's removal a crash would later read as "gave up": safe, only wasteful.
            tracing::error!("removing the give-up record: {e}");
        }
        self.move_stays(MoveStage::Failed, class, text).await;
    }

    /// The move is over and the guest stays here: makes sure that it runs, then tells.
    async fn move_stays(&mut self, stage: MoveStage, class: &str, text: String) {
        let Some(outgoing) = self.outgoing.take() else { return };
        let runs = self.resume_here().await;
        self.phase = if runs { Phase::Running } else { Phase::Paused };
        self.tell_move(&outgoing.uid, stage, Some((class, text)));
        self.tell_state();
        if let Some(stop) = self.stop_after_move.take() {
            // The button is pressed at the next turn of the loop.
            self.stopping = Some(stop);
            self.enter(Phase::Stopping);
        }
    }

    /// QEMU resumes by itself after a failed move, except after one that had completed.
    async fn resume_here(&mut self) -> bool {
        let Some(machine) = self.machine.clone() else { return false };
        let deadline = Instant::now() + RESUME_LIMIT;
        loop {
            match machine.status().await {
                Ok(RunState::Running) => {
                    self.query_status = Some("running".into());
                    return true;
                }
                Ok(RunState::Moved | RunState::Paused) => report("resuming the guest", machine.run().await),
                // On its way back from the switch-over, or the end is about to be reported.
                Ok(_) => {}
                Err(e) => tracing::warn!("asking for the run state: {e}"),
            }
            if Instant::now() >= deadline {
                tracing::error!("the guest did not resume after the move failed");
                return false;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(super) async fn on_source_time(&mut self) {
        let now = Instant::now();
        let Some(outgoing) = &mut self.outgoing else { return };
        if let Some(at) = outgoing.next_commit {
            if now >= at && holdfast_env::mutant!("late-ack-means-no") {
                return self.regain_right("Silence", "the target did not answer".into()).await;
            }
            if now >= at {
                self.say_commit().await;
            }
            return;
        }
        if now < outgoing.next_poll {
            return;
        }
        outgoing.next_poll = now + POLL_EVERY;
        let uid = outgoing.uid.clone();
        let Some(machine) = self.machine.clone() else { return };
        match machine.migration().await {
            Ok(info) => {
                self.note_progress(&uid, &info);
                self.monitor(Input::Info(info)).await;
            }
            Err(e) => {
                tracing::warn!("asking for the move's figures: {e}");
                self.monitor(Input::Tick).await;
            }
        }
    }

    fn note_progress(&mut self, uid: &str, info: &MigrationInfo) {
        // Known only once copying was told.
        let Some(event) = self.moves.get_mut(uid) else { return };
        let n = |v: u64| i64::try_from(v).unwrap_or(i64::MAX);
        event.progress = MoveProgress {
            iteration: n(info.passes),
            total_bytes: n(info.total_bytes),
            remaining_bytes: n(info.remaining_bytes),
            transferred_bytes: n(info.transferred_bytes),
            dirty_bytes_s: n(info.dirty_bytes_per_s),
            throttle_pct: i32::try_from(info.throttle_pct).unwrap_or(i32::MAX),
            rate_bytes_s: n(info.rate_bytes_per_s),
            not_converging: event.progress.not_converging,
        };
        let event = event.clone();
        self.agents.tell(&Event::Migration(event));
    }

    fn tell_convergence(&mut self, uid: &str, converges: bool) {
        tracing::warn!(migration = uid, converges, "convergence of the move");
        let Some(event) = self.moves.get_mut(uid) else { return };
        event.progress.not_converging = !converges;
        let event = event.clone();
        self.agents.tell(&Event::Migration(event));
    }

    /// Begins a measurement, or tells what the last one found.
    pub(super) async fn dirty_rate(&self, measure_s: Option<u32>) -> Answer {
        let Some(machine) = self.machine.clone() else {
            return Answer::Refused { why: "QEMU does not run".to_owned() };
        };
        let rate = match measure_s {
            Some(seconds) => machine.measure_dirty_rate(seconds.clamp(1, 60)).await.map(|()| None),
            None => machine.dirty_rate().await,
        };
        match rate {
            Ok(rate) => {
                Answer::DirtyRate { bytes_s: rate.map(|rate| i64::try_from(rate).unwrap_or(i64::MAX)) }
            }
            Err(error) => Answer::Refused { why: error.to_string() },
        }
    }

    async fn read_downtime(&mut self, uid: &str) {
        let Some(machine) = self.machine.clone() else { return };
        let Ok(info) = machine.migration().await else { return };
        if let Some(event) = self.moves.get_mut(uid) {
            event.downtime_ms = info.downtime_ms.and_then(|ms| i64::try_from(ms).ok());
        }
    }
}

fn settings(config: &MoveConfig) -> (MigrateParams, Limits) {
    let n = |v: i64| u64::try_from(v).unwrap_or_default();
    let params = MigrateParams {
        bandwidth: n(config.bandwidth_bytes_s),
        downtime_ms: n(config.downtime_ms),
        auto_converge: config.auto_converge,
    };
    let limits = Limits {
        auto_converge: config.auto_converge,
        completion_ms: n(config.completion_timeout_s).saturating_mul(1000),
        progress_ms: n(config.progress_timeout_s).saturating_mul(1000),
    };
    (params, limits)
}

fn cancelled(why: CancelReason) -> (MoveStage, &'static str, &'static str) {
    match why {
        CancelReason::Asked => (MoveStage::Cancelled, "Cancelled", "the move was called off"),
        CancelReason::NoProgress => (MoveStage::Failed, "NotConverging", "the memory copy made no progress"),
        CancelReason::TooLong => (MoveStage::Failed, "NotConverging", "the memory copy took too long"),
        CancelReason::SwitchTooLong => {
            (MoveStage::Failed, "SwitchTooLong", "the VM's address could not be moved to the target in time")
        }
    }
}

/// Logs a failure that the next event or poll resolves.
fn report<E: std::fmt::Display>(step: &str, result: Result<(), E>) {
    if let Err(e) = result {
        tracing::warn!("{step}: {e}");
    }
}
