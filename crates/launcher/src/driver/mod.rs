//! The driver: the only task that acts. Everything else posts to its inbox.
//!
//! [`crate::queue`] says which request is carried out in which phase; the submodules carry it out:
//! `start` (Prepare, Run, streams), `stop` (every way to an end), `source` and `target` (the two sides of
//! a move).

mod source;
mod start;
mod stop;
mod target;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use holdfast_hypervisor::port::{Event as MachineEvent, Hypervisor, Machine, RunState, StartError, Started};
use holdfast_wire::launcher::{
    Answer, Body, Cause, Event, ExitRecord, GuestFacts, MigrationEvent, MoveFailure, MoveStage, OnReset,
    Request, SeedFiles, State, StopWhy, ToLauncher, VmState,
};
use holdfast_wire::{Id, OLDEST, VERSION};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::control::{FromSource, FromTarget};
use crate::guest::Guest;
use crate::host::Outside;
use crate::queue::{Phase, Verdict};
use crate::records::Records;
use crate::serial::Serial;
use crate::server::{Agents, Arrival};

/// What a launcher must know before anybody talks to it.
#[derive(Clone, Debug)]
pub struct Config {
    /// Who this launcher is: messages about anybody else are refused.
    pub id: Id,
    /// The pod's `run` volume: sockets and records.
    pub run_dir: PathBuf,
    /// Grace period after SIGTERM, seconds.
    pub grace_s: u64,
    /// Let QEMU confine itself with seccomp.
    pub sandbox: bool,
    /// Version of the installed QEMU, for Hello.
    pub qemu_version: String,
    /// The container's termination log; written only where the container runtime made it.
    pub termination_log: PathBuf,
    /// Everything outside of the launcher's memory but QEMU and the records.
    pub outside: Outside,
}

/// Everything that can happen to a launcher.
pub enum Inbox<M> {
    /// An agent connected, asked or left.
    Agent(Arrival),
    /// QEMU is ready, or is not.
    Started(Box<Result<Started<M>, StartError>>),
    /// QEMU said something.
    Machine(MachineEvent),
    /// The target of our move said something.
    FromTarget(FromTarget),
    /// The source of our move said something.
    FromSource(FromSource),
    /// The guest agent said something.
    Guest(GuestFacts),
    /// The pod is being terminated (SIGTERM).
    Terminate,
}

impl<M> From<Arrival> for Inbox<M> {
    fn from(a: Arrival) -> Self {
        Inbox::Agent(a)
    }
}
impl<M> From<FromTarget> for Inbox<M> {
    fn from(m: FromTarget) -> Self {
        Inbox::FromTarget(m)
    }
}
impl<M> From<FromSource> for Inbox<M> {
    fn from(m: FromSource) -> Self {
        Inbox::FromSource(m)
    }
}
impl<M> From<GuestFacts> for Inbox<M> {
    fn from(m: GuestFacts) -> Self {
        Inbox::Guest(m)
    }
}

/// What was prepared.
struct Prepared {
    definition_hash: String,
    machine_type: String,
    accelerator: String,
    incoming: Option<String>,
    on_reset: OnReset,
    /// Kept for the target of a move.
    seed_files: SeedFiles,
}

/// A graceful stop under way.
#[derive(Clone, Copy)]
struct Stopping {
    deadline: Instant,
    next_press: Instant,
    why: StopWhy,
}

/// The driver of one launcher.
pub struct Driver<H: Hypervisor> {
    config: Config,
    hypervisor: H,
    inbox: mpsc::UnboundedSender<Inbox<H::Machine>>,
    agents: Agents,
    records: Records,
    began: Instant,
    phase: Phase,
    prepared: Option<Prepared>,
    /// Connections and numbers of Prepare requests that wait for QEMU.
    awaiting_start: Vec<(u64, u64)>,
    machine: Option<H::Machine>,
    serial: Option<Serial>,
    guest: Option<Guest>,
    guest_facts: Option<GuestFacts>,
    query_status: Option<String>,
    running_since_ms: Option<i64>,
    /// When QEMU last stopped the guest, Unix time in microseconds.
    stopped_at_us: Option<i64>,
    stopping: Option<Stopping>,
    /// A stop that waits until the move is over.
    stop_after_move: Option<Stopping>,
    /// QEMU was told to end; it is killed then.
    kill_at: Option<Instant>,
    /// QEMU shall end as soon as it has started.
    end_after_start: Option<(Cause, String)>,
    exit: Option<ExitRecord>,
    over: bool,
    moves: BTreeMap<String, MigrationEvent>,
    last_move: Option<String>,
    outgoing: Option<source::Outgoing>,
    /// Target: the migration uid whose guest continued here.
    continued: Option<String>,
    /// Target: to be told NACK once QEMU is gone.
    nack: Option<target::PendingNack>,
}

impl<H: Hypervisor> Driver<H> {
    /// A driver without QEMU.
    pub fn new(config: Config, hypervisor: H, inbox: mpsc::UnboundedSender<Inbox<H::Machine>>) -> Self {
        Driver {
            agents: Agents::new(config.id.clone()),
            records: Records::new(&config.run_dir),
            config,
            hypervisor,
            inbox,
            began: Instant::now(),
            phase: Phase::Empty,
            prepared: None,
            awaiting_start: vec![],
            machine: None,
            serial: None,
            guest: None,
            guest_facts: None,
            query_status: None,
            running_since_ms: None,
            stopped_at_us: None,
            stopping: None,
            stop_after_move: None,
            kill_at: None,
            end_after_start: None,
            exit: None,
            over: false,
            moves: BTreeMap::new(),
            last_move: None,
            outgoing: None,
            continued: None,
            nack: None,
        }
    }

    /// Runs until QEMU has ended and everybody who listens was told. Returns the exit record.
    pub async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Inbox<H::Machine>>) -> Option<ExitRecord> {
        if self.records.was_started() {
            self.refuse_second_life().await;
        }
        while !self.over {
            let wake = self.next_wake();
            tokio::select! {
                biased;
                message = inbox.recv() => match message {
                    Some(message) => self.on_message(message).await,
                    None => break,
                },
                () = tokio::time::sleep_until(wake) => self.on_time().await,
            }
        }
        self.agents.drain(Duration::from_millis(500)).await;
        self.exit
    }

    async fn on_message(&mut self, message: Inbox<H::Machine>) {
        match message {
            Inbox::Agent(Arrival::Opened(number, frames)) => {
                self.agents.add(number, frames);
                let state = self.state();
                self.agents.send(number, Body::Event(Event::State(state)), vec![]);
                if let Some(event) = self.last_migration() {
                    self.agents.send(number, Body::Event(Event::Migration(event)), vec![]);
                }
            }
            Inbox::Agent(Arrival::Closed(number)) => self.agents.remove(number),
            Inbox::Agent(Arrival::Request(number, message, fds)) => {
                self.on_request(number, message, fds).await
            }
            Inbox::Started(result) => self.on_started(*result).await,
            Inbox::Machine(event) => self.on_machine(event).await,
            Inbox::FromTarget(word) => self.on_target_word(word).await,
            Inbox::FromSource(word) => self.on_source_word(word).await,
            Inbox::Guest(facts) => {
                self.guest_facts = Some(facts.clone());
                self.agents.tell(&Event::Guest(facts));
            }
            Inbox::Terminate => self.on_terminate().await,
        }
    }

    async fn on_request(&mut self, number: u64, message: ToLauncher, fds: Vec<OwnedFd>) {
        let ToLauncher { v, seq, id, request, .. } = message;
        if !(OLDEST..=VERSION).contains(&v) {
            let why = format!("message version {v} is not spoken here, only {OLDEST} to {VERSION}");
            return self.answer(number, seq, Answer::Refused { why });
        }
        if id != self.config.id {
            let why = format!("this launcher is {}, not {id}", self.config.id);
            return self.answer(number, seq, Answer::Refused { why });
        }
        tracing::debug!(?request, phase = ?self.phase, "request");
        match self.phase.verdict(&request, |uid| self.moves.contains_key(uid)) {
            Verdict::Deny(why) => self.answer(number, seq, Answer::Refused { why }),
            // A repeated Prepare is compared with the first one.
            Verdict::Repeat if !matches!(request, Request::Prepare(_)) => {
                self.answer(number, seq, Answer::Done)
            }
            Verdict::Repeat | Verdict::Act => self.act(number, seq, request, fds).await,
        }
    }

    async fn act(&mut self, number: u64, seq: u64, request: Request, fds: Vec<OwnedFd>) {
        let result = match request {
            Request::Hello { versions } => {
                let answer = self.hello(&versions);
                return self.answer(number, seq, answer);
            }
            Request::Query => {
                self.refresh_status().await;
                let state = Answer::State(self.state());
                return self.answer(number, seq, state);
            }
            Request::Prepare(prepare) => return self.prepare(number, seq, *prepare, fds).await,
            Request::OpenStream(kind) => return self.open_stream(number, seq, kind).await,
            Request::Seed => {
                let files = self.prepared.as_ref().map(|p| p.seed_files.clone()).unwrap_or_default();
                return self.answer(number, seq, Answer::Seed(files));
            }
            Request::DirtyRate { measure_s } => {
                let answer = self.dirty_rate(measure_s).await;
                return self.answer(number, seq, answer);
            }
            Request::Run => self.run_guest().await,
            Request::Stop { grace_s, why } => {
                self.stop(grace_s, why).await;
                Ok(())
            }
            Request::Kill { why } => {
                self.kill(why).await;
                Ok(())
            }
            Request::MigrateOut { migration_uid, config } => self.migrate_out(migration_uid, config).await,
            Request::MigrateIn { migration_uid } => self.migrate_in(migration_uid).await,
            Request::Switch { routes_done, .. } => {
                self.switch(routes_done).await;
                Ok(())
            }
            Request::Cancel { migration_uid, why } => self.cancel(migration_uid, why).await,
            Request::Settle { verdict, .. } => {
                self.settle(verdict).await;
                Ok(())
            }
            Request::SetLimits { config, .. } => self.set_limits(&config).await,
        };
        let answer = match result {
            Ok(()) => Answer::Done,
            Err(why) => Answer::Refused { why },
        };
        self.answer(number, seq, answer);
    }

    fn hello(&self, versions: &[u32]) -> Answer {
        match versions.iter().filter(|v| (OLDEST..=VERSION).contains(*v)).max() {
            Some(version) => {
                Answer::Hello { version: *version, qemu_version: self.config.qemu_version.clone() }
            }
            None => Answer::Refused { why: format!("versions {OLDEST} to {VERSION} are spoken here") },
        }
    }

    fn answer(&mut self, number: u64, seq: u64, answer: Answer) {
        self.agents.send(number, Body::Answer { seq, answer }, vec![]);
    }

    async fn on_machine(&mut self, event: MachineEvent) {
        match event {
            MachineEvent::Ended(exit) => self.on_process_end(exit).await,
            MachineEvent::Shutdown { guest, reason } => self.on_shutdown(guest, &reason).await,
            MachineEvent::Panicked => {
                self.guest_ended(Cause::Crash, "the guest's kernel panicked".into()).await;
            }
            MachineEvent::Migration(status) => self.on_migration_status(status).await,
            MachineEvent::MigrationPass(pass) => self.on_migration_pass(pass).await,
            MachineEvent::AgentPort { open } => {
                if let Some(guest) = &self.guest {
                    guest.port_changed(open);
                }
            }
            MachineEvent::Stopped { at_us } => {
                self.stopped_at_us = at_us;
                self.on_run_state().await;
            }
            MachineEvent::Resumed => self.on_run_state().await,
            MachineEvent::DiskError { reason, stopped } => {
                tracing::warn!(reason, stopped, "a disk of the guest failed");
            }
            MachineEvent::Reset { guest, reason } => tracing::info!(guest, reason, "the machine was reset"),
        }
    }

    /// The guest's CPUs stopped or run, by whose doing ever.
    async fn on_run_state(&mut self) {
        if !matches!(self.phase, Phase::Running | Phase::Paused) {
            return;
        }
        let Some(machine) = &self.machine else { return };
        let Ok(status) = machine.status().await else { return };
        let phase = match &status {
            RunState::Running => Phase::Running,
            // Its own event follows or came already.
            RunState::Shutdown | RunState::Panicked => return,
            _ => Phase::Paused,
        };
        self.query_status = Some(status.as_str().to_owned());
        if phase != self.phase {
            self.enter(phase);
        }
    }

    async fn refresh_status(&mut self) {
        if let Some(machine) = &self.machine
            && let Ok(Ok(status)) = tokio::time::timeout(Duration::from_secs(1), machine.status()).await
        {
            self.query_status = Some(status.as_str().to_owned());
        }
    }

    /// Changes the phase and tells every agent.
    fn enter(&mut self, phase: Phase) {
        tracing::info!(from = ?self.phase, to = ?phase, "phase");
        self.phase = phase;
        self.tell_state();
    }

    fn tell_state(&mut self) {
        let state = self.state();
        self.agents.tell(&Event::State(state));
    }

    fn state(&self) -> State {
        State {
            vm: match self.phase {
                Phase::Empty => VmState::Empty,
                Phase::Preparing => VmState::Preparing,
                Phase::Prepared => VmState::Prepared,
                Phase::Running | Phase::MovingOut(_) => VmState::Running,
                Phase::Paused => VmState::Paused,
                Phase::Incoming(_) | Phase::Listening(_) => VmState::Incoming,
                Phase::GaveUp(_) => VmState::GaveUp,
                Phase::Stopping => VmState::Stopping,
                Phase::Ended => VmState::Ended,
            },
            qemu_pid: self.machine.as_ref().map(Machine::pid),
            query_status: self.query_status.clone(),
            definition_hash: self.prepared.as_ref().map(|p| p.definition_hash.clone()),
            machine_type: self.prepared.as_ref().map(|p| p.machine_type.clone()),
            accelerator: self.prepared.as_ref().map(|p| p.accelerator.clone()),
            running_since_ms: self.running_since_ms,
            migration: self.last_migration(),
            guest: self.guest_facts.clone(),
            exit: if self.phase == Phase::Ended { self.exit.clone() } else { None },
        }
    }

    fn last_migration(&self) -> Option<MigrationEvent> {
        self.moves.get(self.last_move.as_ref()?).cloned()
    }

    /// Records and tells a stage of a move.
    fn tell_move(&mut self, uid: &str, stage: MoveStage, failure: Option<(&str, String)>) {
        let failure = failure.map(|(class, text)| MoveFailure { class: class.to_owned(), text });
        tracing::info!(migration = uid, ?stage, ?failure, "move");
        let new = || MigrationEvent::new(uid, stage);
        let event = self.moves.entry(uid.to_owned()).or_insert_with(new);
        event.stage = stage;
        event.stopped_at_us = self.stopped_at_us;
        event.failure = failure;
        let event = event.clone();
        self.last_move = Some(uid.to_owned());
        self.agents.tell(&Event::Migration(event));
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn next_wake(&self) -> Instant {
        let far = Instant::now() + Duration::from_secs(3600);
        let stop = self.stopping.map(|s| s.deadline.min(s.next_press));
        let outgoing = self.outgoing.as_ref().map(source::Outgoing::next_wake);
        [stop, self.kill_at, outgoing].into_iter().flatten().min().unwrap_or(far)
    }

    async fn on_time(&mut self) {
        self.on_stop_time().await;
        self.on_source_time().await;
    }
}

/// Unix time, milliseconds.
fn unix_ms() -> i64 {
    holdfast_env::now().as_millisecond()
}
