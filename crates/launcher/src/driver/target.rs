//! The target of a move (spec migration-and-maintenance.md §2.4 rules 3, 5, 8, 10).

use std::time::Duration;

use holdfast_env::fault;
use holdfast_hypervisor::port::{Hypervisor, Machine, MigrationStatus};
use holdfast_hypervisor::qmp::QmpError;
use holdfast_wire::launcher::{Cause, Control, MoveStage, SOCKET_CONTROL_IN, SOCKET_MEMORY_IN};
use holdfast_wire::local::Access;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Driver;
use crate::control::{self, FromSource};
use crate::queue::Phase;

/// How long the last device state may take to be loaded after COMMIT came.
const LOADED_LIMIT: Duration = Duration::from_secs(2);

/// A refusal that may be told only once QEMU is certainly gone.
pub(super) struct PendingNack {
    uid: String,
    why: String,
    reply: mpsc::UnboundedSender<Control>,
}

impl<H: Hypervisor> Driver<H> {
    pub(super) async fn migrate_in(&mut self, uid: String) -> Result<(), String> {
        let machine = self.machine.clone().ok_or("QEMU is not there")?;
        let (control, memory) =
            (self.config.run_dir.join(SOCKET_CONTROL_IN), self.config.run_dir.join(SOCKET_MEMORY_IN));
        // What an earlier QEMU left; the control socket is replaced by the listener itself.
        let _ = std::fs::remove_file(&memory);
        let sockets = &self.config.outside.sockets;
        let listener = sockets
            .bind(&control, Access::SameUser)
            .map_err(|e| format!("listening on {SOCKET_CONTROL_IN}: {e}"))?;
        tokio::spawn(control::listen(listener, self.inbox.clone()));
        machine.migrate_in(&memory.display().to_string()).await.map_err(|e| e.to_string())?;
        self.enter(Phase::Listening(uid.clone()));
        self.tell_move(&uid, MoveStage::Listening, None);
        fault::point("listening").await;
        Ok(())
    }

    /// Ends a target that has not continued the guest.
    pub(super) async fn give_up_move(&mut self, uid: &str, stage: MoveStage, class: &str, why: String) {
        self.tell_move(uid, stage, Some((class, why.clone())));
        self.end_now(Cause::MoveGivenUp, why).await;
    }

    pub(super) async fn on_incoming_failed(&mut self, uid: &str) {
        let Some(machine) = self.machine.clone() else { return };
        let text = match machine.migration().await {
            Ok(info) => info.error.unwrap_or_else(|| "the stream from the source broke".into()),
            Err(e) => e.to_string(),
        };
        let text = match machine.last_words() {
            words if words.is_empty() => text,
            words => format!("{text}: {words}"),
        };
        self.give_up_move(uid, MoveStage::Failed, "TargetFailed", text).await;
    }

    pub(super) async fn on_source_word(&mut self, message: FromSource) {
        let FromSource { word, reply } = message;
        let Control::Commit { migration_uid: uid, paused } = word else {
            tracing::warn!(?word, "unexpected word on the control stream, ignored");
            return;
        };
        if self.continued.as_deref() == Some(uid.as_str()) {
            let _ = reply.send(Control::Ack { migration_uid: uid });
            return;
        }
        match self.phase.clone() {
            Phase::Listening(current) if current == uid => self.commit(uid, paused, reply).await,
            // Its end is under way and it never continued: the answer follows when QEMU is gone.
            Phase::Stopping
                if self.exit.as_ref().is_some_and(|e| e.cause == Cause::MoveGivenUp)
                    && self
                        .prepared
                        .as_ref()
                        .is_some_and(|p| p.incoming.as_deref() == Some(uid.as_str())) =>
            {
                let why = self.exit.as_ref().map(|e| e.detail.clone()).unwrap_or_default();
                self.nack.get_or_insert(PendingNack { uid, why, reply });
            }
            // Silence is safe: the source stays paused until somebody knows for certain.
            phase => tracing::warn!(migration = uid, ?phase, "COMMIT for a move that is not ours, ignored"),
        }
    }

    /// The source has given up. The record is on disk before the guest continues (§2.4 rule 5).
    async fn commit(&mut self, uid: String, paused: bool, reply: mpsc::UnboundedSender<Control>) {
        let Some(machine) = self.machine.clone() else { return };
        if let Err(why) = Self::wait_loaded(&machine).await {
            return self.refuse_commit(uid, why, reply).await;
        }
        let recorded = match holdfast_env::mutant!("no-continuing-record") {
            true => Ok(()),
            false => self.records.continuing(&self.config.id, &uid),
        };
        if let Err(e) = recorded {
            return self.refuse_commit(uid, format!("recording the hand-over: {e}"), reply).await;
        }
        fault::point("continuing").await;
        if !paused {
            match machine.run().await {
                Ok(()) => {}
                // Refused means: not one instruction was executed.
                Err(e @ QmpError::Refused { .. }) => {
                    return self.refuse_commit(uid, e.to_string(), reply).await;
                }
                Err(e) => {
                    // Nobody knows whether the guest ran. The record stays, no NACK is sent, QEMU is killed.
                    let text = format!("continuing the guest: {e}");
                    self.tell_move(&uid, MoveStage::Failed, Some(("TargetFailed", text.clone())));
                    return self.end_now(Cause::Crash, text).await;
                }
            }
        }
        let _ = reply.send(Control::Ack { migration_uid: uid.clone() });
        self.continued = Some(uid.clone());
        self.phase = if paused { Phase::Paused } else { Phase::Running };
        self.tell_move(&uid, MoveStage::Resumed, None);
        self.guest_runs().await;
        self.tell_state();
        if let Err(e) = machine.announce().await {
            tracing::warn!("announcing the guest on the network: {e}");
        }
    }

    /// The source saw `completed`, so the load ends now; without it `cont` would only be remembered.
    async fn wait_loaded(machine: &H::Machine) -> Result<(), String> {
        let deadline = Instant::now() + LOADED_LIMIT;
        loop {
            let info = machine.migration().await.map_err(|e| e.to_string())?;
            match info.status {
                MigrationStatus::Completed => return Ok(()),
                MigrationStatus::Failed => return Err(info.error.unwrap_or_else(|| "loading failed".into())),
                _ if Instant::now() >= deadline => {
                    return Err("the guest's state was not loaded in time".into());
                }
                _ => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
    }

    async fn refuse_commit(&mut self, uid: String, why: String, reply: mpsc::UnboundedSender<Control>) {
        self.nack = Some(PendingNack { uid: uid.clone(), why: why.clone(), reply });
        self.give_up_move(&uid, MoveStage::Failed, "TargetFailed", why).await;
    }

    /// QEMU is gone and never continued the guest: now the source may know.
    pub(super) fn settle_nack(&mut self) {
        let Some(PendingNack { uid, why, reply }) = self.nack.take() else { return };
        match self.records.never_continued() {
            Ok(()) => {
                let _ = reply.send(Control::Nack { migration_uid: uid, why });
            }
            // The record says "continued"; a NACK would contradict it. The source waits for an agent's word.
            Err(e) => tracing::error!("removing the record: {e}"),
        }
    }
}
