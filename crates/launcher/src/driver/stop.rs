//! Every way to an end. The reason is on disk before QEMU is told to go (first-slice trap 9).

use std::time::Duration;

use holdfast_hypervisor::port::{Hypervisor, Machine, ProcessExit};
use holdfast_wire::launcher::{Cause, Event, ExitRecord, MoveStage, StopWhy};
use tokio::time::Instant;

use super::{Driver, Stopping, unix_ms};
use crate::queue::Phase;

/// How often the power button is pressed: a press before the guest's driver is loaded is lost. Guests that are
/// powering off already ignore it.
const PRESS_EVERY: Duration = Duration::from_secs(1);

/// How long QEMU may take to flush and quit before it is killed.
const QUIT_LIMIT: Duration = Duration::from_secs(10);

fn cause_of(why: StopWhy) -> Cause {
    match why {
        StopWhy::Power => Cause::PlatformStop,
        StopWhy::Evicted => Cause::Evicted,
        StopWhy::MoveOver => Cause::MoveGivenUp,
    }
}

impl<H: Hypervisor> Driver<H> {
    /// SIGTERM: the pod goes away without a move.
    pub(super) async fn on_terminate(&mut self) {
        match &self.phase {
            // Neither run nor end is allowed to be guessed; whoever wants this pod gone kills it.
            Phase::GaveUp(_) => tracing::warn!("SIGTERM during an undecided hand-over is ignored"),
            Phase::Ended => {}
            _ => self.stop(self.config.grace_s, StopWhy::Evicted).await,
        }
    }

    pub(super) async fn stop(&mut self, grace_s: u64, why: StopWhy) {
        let now = Instant::now();
        let deadline = now + Duration::from_secs(grace_s);
        let wanted = Stopping { deadline, next_press: now, why };
        match self.phase.clone() {
            Phase::Running | Phase::Paused => {
                self.stopping = Some(wanted);
                self.enter(Phase::Stopping);
                self.on_stop_time().await;
            }
            Phase::MovingOut(uid) => {
                self.stop_after_move = Some(wanted);
                let _ = self.cancel(uid, "the VM is being stopped".into()).await;
            }
            Phase::Stopping => {
                if let Some(stopping) = &mut self.stopping {
                    stopping.deadline = stopping.deadline.min(deadline);
                }
            }
            Phase::Empty | Phase::Preparing | Phase::Prepared => {
                self.end_now(cause_of(why), "stopped before the guest ran".into()).await;
            }
            Phase::Incoming(uid) | Phase::Listening(uid) => {
                self.give_up_move(
                    &uid,
                    MoveStage::Cancelled,
                    "Cancelled",
                    "the target is being stopped".into(),
                )
                .await;
            }
            Phase::GaveUp(_) | Phase::Ended => {}
        }
    }

    pub(super) async fn kill(&mut self, why: StopWhy) {
        match self.phase.clone() {
            Phase::Incoming(uid) | Phase::Listening(uid) => {
                self.give_up_move(
                    &uid,
                    MoveStage::Cancelled,
                    "Cancelled",
                    "the target was told to end".into(),
                )
                .await;
            }
            Phase::MovingOut(uid) => {
                self.tell_move(&uid, MoveStage::Failed, Some(("SourceEnded", "the VM was killed".into())));
                self.outgoing = None;
                self.end_now(cause_of(why), "killed by the platform".into()).await;
            }
            Phase::GaveUp(_) if why == StopWhy::MoveOver => {
                self.end_now(Cause::MovedAway, "the guest moved away".into()).await;
            }
            _ => self.end_now(cause_of(why), "killed by the platform".into()).await,
        }
    }

    /// The guest ended by itself: QEMU stays until told to go.
    pub(super) async fn on_shutdown(&mut self, guest: bool, reason: &str) {
        if self.exit.is_some() {
            // The echo of our own `quit`.
            return;
        }
        self.log_termination(guest, reason);
        let (cause, detail) = match reason {
            "guest-shutdown" => (Cause::GuestShutdown, "the guest powered off"),
            "guest-reset" => (Cause::GuestReset, "the guest rebooted"),
            "guest-panic" => (Cause::Crash, "the guest's kernel panicked"),
            "host-signal" => (Cause::Crash, "QEMU was told to end by a signal"),
            other => (Cause::Crash, other),
        };
        self.guest_ended(cause, detail.to_owned()).await;
    }

    /// One line per SHUTDOWN in the form that controllers of the seeds' platform read (VL §1.5).
    fn log_termination(&self, guest: bool, reason: &str) {
        use std::io::Write as _;
        let details = serde_json::json!({ "guest": guest, "reason": reason }).to_string();
        let line = serde_json::json!({ "event": "SHUTDOWN", "details": details });
        let open = std::fs::OpenOptions::new().append(true).open(&self.config.termination_log);
        match open.and_then(|mut log| writeln!(log, "{line}")) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => tracing::warn!("writing {}: {e}", self.config.termination_log.display()),
        }
    }

    pub(super) async fn guest_ended(&mut self, cause: Cause, detail: String) {
        if self.exit.is_some() {
            return;
        }
        match self.phase.clone() {
            Phase::MovingOut(uid) => {
                let text = format!("the VM ended during the move: {detail}");
                self.tell_move(&uid, MoveStage::Failed, Some(("SourceEnded", text)));
                self.outgoing = None;
            }
            Phase::Running | Phase::Paused | Phase::Stopping | Phase::Prepared => {}
            // Nothing executes in these; a late event must not end what another launcher may run.
            Phase::GaveUp(_)
            | Phase::Incoming(_)
            | Phase::Listening(_)
            | Phase::Empty
            | Phase::Preparing
            | Phase::Ended => return,
        }
        let wanted = self.stopping.take().or(self.stop_after_move.take());
        // Who asked for the stop has precedence over what the guest did (VL §1.5).
        let cause = wanted.map_or(cause, |s| cause_of(s.why));
        self.end_orderly(cause, detail).await;
    }

    /// Records the cause, then lets QEMU flush and quit.
    pub(super) async fn end_orderly(&mut self, cause: Cause, detail: String) {
        self.record_exit(cause, detail);
        self.stopping = None;
        match self.machine.clone() {
            Some(machine) => {
                self.kill_at = Some(Instant::now() + QUIT_LIMIT);
                // Its answer may never come: the process ends meanwhile.
                tokio::spawn(async move { machine.quit().await });
                if self.phase != Phase::Stopping {
                    self.enter(Phase::Stopping);
                }
            }
            None => self.finish().await,
        }
    }

    /// Records the cause, then kills QEMU.
    pub(super) async fn end_now(&mut self, cause: Cause, detail: String) {
        self.stopping = None;
        if self.phase == Phase::Preparing {
            self.end_after_start = Some((cause, detail));
            return;
        }
        self.record_exit(cause, detail);
        match &self.machine {
            Some(machine) => {
                machine.kill();
                self.kill_at = Some(Instant::now() + QUIT_LIMIT);
                if self.phase != Phase::Stopping {
                    self.enter(Phase::Stopping);
                }
            }
            None => self.finish().await,
        }
    }

    /// Presses the power button again, or runs out of patience.
    pub(super) async fn on_stop_time(&mut self) {
        let now = Instant::now();
        if let Some(stopping) = self.stopping {
            if now >= stopping.deadline {
                let cause = match stopping.why {
                    StopWhy::Power => Cause::GraceExpired,
                    StopWhy::Evicted | StopWhy::MoveOver => cause_of(stopping.why),
                };
                return self
                    .end_now(cause, "the guest did not power off within its grace period".into())
                    .await;
            }
            if now >= stopping.next_press
                && let Some(machine) = self.machine.clone()
            {
                self.stopping = Some(Stopping { next_press: now + PRESS_EVERY, ..stopping });
                if let Some(guest) = &self.guest {
                    guest.power_off();
                }
                if let Err(e) = machine.press_power_button().await {
                    tracing::warn!("pressing the power button: {e}");
                }
            }
        }
        if self.kill_at.is_some_and(|at| now >= at)
            && let Some(machine) = &self.machine
        {
            tracing::warn!("QEMU did not quit in time and is killed");
            machine.kill();
            self.kill_at = Some(now + QUIT_LIMIT);
        }
    }

    pub(super) async fn on_process_end(&mut self, exit: ProcessExit) {
        tracing::info!("{exit}");
        self.machine = None;
        self.kill_at = None;
        self.query_status = None;
        if self.exit.is_none() {
            let (cause, detail) = self.explain(&exit);
            self.record_exit(cause, detail);
        }
        self.settle_nack();
        self.finish().await;
    }

    /// The cause of an end that nobody had asked for.
    fn explain(&mut self, exit: &ProcessExit) -> (Cause, String) {
        let detail = exit.to_string();
        if let Some(stopping) = self.stopping.take() {
            return (cause_of(stopping.why), detail);
        }
        match self.phase.clone() {
            Phase::Incoming(uid) | Phase::Listening(uid) => {
                self.tell_move(&uid, MoveStage::Failed, Some(("TargetEnded", detail.clone())));
                (Cause::MoveGivenUp, detail)
            }
            Phase::MovingOut(uid) => {
                self.tell_move(&uid, MoveStage::Failed, Some(("SourceEnded", detail.clone())));
                self.outgoing = None;
                (Cause::Crash, detail)
            }
            Phase::GaveUp(_) => (Cause::Crash, format!("while a hand-over was undecided: {detail}")),
            Phase::Empty | Phase::Preparing | Phase::Prepared => (Cause::StartFailed, detail),
            Phase::Running | Phase::Paused | Phase::Stopping | Phase::Ended => (Cause::Crash, detail),
        }
    }

    /// Writes the exit record; the first cause stays.
    pub(super) fn record_exit(&mut self, cause: Cause, detail: String) {
        if self.exit.is_some() {
            return;
        }
        tracing::info!(?cause, detail, "end");
        let record = ExitRecord {
            id: self.config.id.clone(),
            cause,
            detail,
            at_ms: unix_ms(),
            ever_ran: self.running_since_ms.is_some(),
        };
        if let Err(e) = self.records.exit(&record) {
            // The agent still hears it from us, and an empty cgroup without a record reads as a crash.
            tracing::error!("writing the exit record: {e}");
        }
        self.exit = Some(record);
    }

    /// QEMU is gone: tells everybody and ends the driver.
    pub(super) async fn finish(&mut self) {
        self.guest = None;
        self.enter(Phase::Ended);
        if let Some(record) = self.exit.clone() {
            self.agents.tell(&Event::Ended(record));
        }
        self.over = true;
    }

    /// A launcher is never restarted in place: QEMU died with its predecessor.
    pub(super) async fn refuse_second_life(&mut self) {
        match self.records.read_exit() {
            Some(record) => self.exit = Some(record),
            None => self.record_exit(Cause::Crash, "the launcher died, and QEMU with it".into()),
        }
        self.finish().await;
    }
}
