//! A model of QEMU with faults to inject, for tests of what sits above the port.
//!
//! Proven by the same contract tests as the real driver (`tests/contract.rs`). All machines of one
//! [`Fake`] (and its clones) live in one world: they see each other's disk locks and migration sockets.
//! Memory moves at once, or over a link of finite speed against a guest that dirties it (`travel`).

mod travel;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::mpsc;

use self::travel::Journey;
use crate::argv::Runtime;
use crate::definition::Definition;
use crate::port::{
    Event, Hypervisor, Machine, MigrateParams, MigrationInfo, MigrationStatus, ProcessExit, RunState,
    StartError, Started,
};
use crate::qmp::QmpError;

/// A bandwidth below this never finishes copying, bytes a second.
const CRAWL_BYTES_S: u64 = 1 << 20;

/// Starts machines that exist only in memory.
#[derive(Debug, Clone, Default)]
pub struct Fake(Arc<Mutex<World>>);

#[derive(Debug, Default)]
struct World {
    /// Grows whenever something here may have changed.
    version: u64,
    machines: BTreeMap<u32, Model>,
    last_pid: u32,
    start_failure: Option<String>,
    run_refusal: Option<String>,
    no_locks: bool,
    /// Socket that a source is told to connect to, and the one on which its target listens.
    relays: BTreeMap<String, String>,
    violations: Vec<String>,
    /// Number of the last run on each disk: whoever begins to execute begins a run.
    runs: BTreeMap<PathBuf, u64>,
    last_run: u64,
    /// Machines whose process has ended while their guest executed, since the last look.
    ended: Vec<PathBuf>,
    /// Machines whose power button was pressed while their guest executed, since the last look.
    pressed: Vec<PathBuf>,
    /// Bytes a second that a move gets at most; none: everything at once.
    link: Option<u64>,
    /// Length of the device stage of a move over a link.
    device_stage: Duration,
}

#[derive(Debug)]
struct Model {
    run_dir: PathBuf,
    disks: Vec<PathBuf>,
    holds_locks: bool,
    memory_bytes: u64,
    machine: String,
    state: RunState,
    migration: MigrationStatus,
    error: Option<String>,
    crawl: bool,
    /// Other end of a move.
    peer: Option<u32>,
    listening: Option<String>,
    reboot_ends: bool,
    ignores_button: bool,
    hangs: bool,
    /// Its node stands still.
    frozen: bool,
    /// The last run on its disks that its memory knows of: when another has run since, it must never run again.
    /// None: it has not run, and knows of nothing.
    knows: Option<u64>,
    /// It went on by itself after a failed move, and nobody has looked at it since.
    went_on: bool,
    /// Memory the guest dirties by itself, bytes a second.
    dirty_bytes_s: u64,
    journey: Journey,
    events: mpsc::UnboundedSender<Event>,
}

impl Model {
    fn tell(&self, event: Event) {
        // Nobody may be listening any more.
        let _ = self.events.send(event);
    }

    fn status(&mut self, status: MigrationStatus) {
        self.migration = status;
        self.tell(Event::Migration(status));
    }

    fn enter(&mut self, state: RunState, event: Event) {
        self.state = state;
        self.tell(event);
    }
}

/// A machine of a [`Fake`].
#[derive(Debug, Clone)]
pub struct FakeMachine {
    pid: u32,
    world: Fake,
}

impl Fake {
    fn lock(&self) -> MutexGuard<'_, World> {
        let mut world = self.look();
        world.version += 1;
        world
    }

    /// Locked by somebody who changes nothing.
    fn look(&self) -> MutexGuard<'_, World> {
        self.0.lock().expect("invariant: no panic while the world is locked")
    }

    /// A number that is the same only as long as nothing has changed.
    pub fn version(&self) -> u64 {
        self.look().version
    }

    /// The next start fails with these words.
    pub fn fail_next_start(&self, words: &str) {
        self.lock().start_failure = Some(words.to_owned());
    }

    /// The next `cont` is refused with these words.
    pub fn refuse_next_run(&self, words: &str) {
        self.lock().run_refusal = Some(words.to_owned());
    }

    /// Disks are block devices without locks: nothing but the launchers' records keeps two apart.
    pub fn without_locks(&self) {
        self.lock().no_locks = true;
    }

    /// A source told to send to the socket `from` reaches the target that listens on `to`.
    pub fn relay(&self, from: &str, to: &str) {
        self.lock().relays.insert(from.to_owned(), to.to_owned());
    }

    /// What must never happen and did: two copies at once, or a copy that others had overtaken.
    pub fn violations(&self) -> Vec<String> {
        let mut world = self.lock();
        world.note_resumed();
        world.violations.clone()
    }

    /// Run state of the machine in this run directory, if its process lives.
    pub fn state(&self, run_dir: &Path) -> Option<RunState> {
        let world = self.look();
        world.machines.values().find(|m| m.run_dir == run_dir).map(|m| m.state.clone())
    }

    /// Kills the process in this run directory, if it lives.
    pub fn kill(&self, run_dir: &Path) {
        let mut world = self.lock();
        let pid = world.machines.iter().find(|(_, m)| m.run_dir == run_dir).map(|(pid, _)| *pid);
        if let Some(pid) = pid {
            world.end(pid, ProcessExit { signal: Some(9), ..ProcessExit::default() });
        }
    }

    /// The guest in this run directory powers off.
    pub fn guest_powers_off(&self, run_dir: &Path) {
        self.guest_ends(run_dir, "guest-shutdown");
    }

    /// The guest in this run directory reboots.
    pub fn guest_reboots(&self, run_dir: &Path) {
        let ends = self.with(run_dir, |m| m.reboot_ends);
        if ends {
            self.guest_ends(run_dir, "guest-reset");
        } else {
            self.with(run_dir, |m| m.tell(Event::Reset { guest: true, reason: "guest-reset".into() }));
        }
    }

    /// The guest in this run directory ignores its power button from now on.
    pub fn guest_ignores_button(&self, run_dir: &Path) {
        self.with(run_dir, |m| m.ignores_button = true);
    }

    /// The process in this run directory stops answering (SIGSTOP), or answers again.
    pub fn hang(&self, run_dir: &Path, hangs: bool) {
        self.with(run_dir, |m| m.hangs = hangs);
    }

    /// Run directories of machines whose process has ended while their guest executed, since the last call.
    pub fn take_ended(&self) -> Vec<PathBuf> {
        std::mem::take(&mut self.lock().ended)
    }

    /// Run directories of the machines whose power button was pressed while their guest executed, since the last
    /// call.
    pub fn take_pressed(&self) -> Vec<PathBuf> {
        std::mem::take(&mut self.lock().pressed)
    }

    /// Run directories of the machines that are sending their memory away.
    pub fn leaving(&self) -> Vec<PathBuf> {
        use MigrationStatus::{Active, Device, PreSwitchover};
        let world = self.look();
        // One that has not found its target yet sends nothing.
        let leaves = |m: &&Model| {
            m.state != RunState::Incoming && matches!(m.migration, Active | PreSwitchover | Device)
        };
        world.machines.values().filter(leaves).map(|m| m.run_dir.clone()).collect()
    }

    /// Run directories of the machines whose guest executes, with the disks they write.
    pub fn executing(&self) -> Vec<(PathBuf, Vec<PathBuf>)> {
        let world = self.look();
        let running = world.machines.values().filter(|m| m.state == RunState::Running && !m.frozen);
        running.map(|m| (m.run_dir.clone(), m.disks.clone())).collect()
    }

    /// The whole node of this run directory stands still, or goes on: its guests execute nothing meanwhile.
    pub fn freeze(&self, run_dir: &Path, frozen: bool) {
        let mut world = self.lock();
        let found = world.machines.iter_mut().find(|(_, m)| m.run_dir == run_dir);
        let Some((pid, model)) = found else { return };
        let (pid, runs) = (*pid, model.state == RunState::Running);
        model.frozen = frozen;
        model.hangs = frozen;
        if runs && !frozen {
            world.note_running(pid);
        }
    }

    fn guest_ends(&self, run_dir: &Path, reason: &str) {
        self.with(run_dir, |m| {
            if m.state != RunState::Running {
                return;
            }
            m.tell(Event::Shutdown { guest: true, reason: reason.to_owned() });
            m.enter(RunState::Shutdown, Event::Stopped { at_us: None });
        });
    }

    /// Acts on the machine in a run directory; a default where its process has ended.
    fn with<T: Default>(&self, run_dir: &Path, act: impl FnOnce(&mut Model) -> T) -> T {
        let mut world = self.lock();
        world.machines.values_mut().find(|m| m.run_dir == run_dir).map(act).unwrap_or_default()
    }
}

impl World {
    /// Ends a process; what its peer notices of it depends on the stage of their move.
    fn end(&mut self, pid: u32, exit: ProcessExit) {
        let Some(model) = self.machines.remove(&pid) else { return };
        if model.state == RunState::Running {
            self.ended.push(model.run_dir.clone());
        }
        model.tell(Event::Ended(exit));
        let Some(peer) = model.peer else { return };
        let Some(other) = self.machines.get_mut(&peer) else { return };
        other.peer = None;
        match (other.state.clone(), other.migration) {
            (RunState::Incoming, _) => {
                other.error = Some("load of migration failed: Input/output error".into());
                other.status(MigrationStatus::Failed);
            }
            (_, MigrationStatus::Setup | MigrationStatus::Active) => {
                other.error = Some("Connection reset by peer".into());
                other.status(MigrationStatus::Failed);
            }
            // Not noticed before `migrate_continue`, as with QEMU.
            _ => {}
        }
    }

    fn locked_by_other(&self, pid: u32) -> bool {
        if self.no_locks {
            return false;
        }
        let Some(me) = self.machines.get(&pid) else { return false };
        self.machines
            .iter()
            .any(|(other, m)| *other != pid && m.holds_locks && m.disks.iter().any(|d| me.disks.contains(d)))
    }
}

impl World {
    /// A source has sent everything and given its disks away.
    fn sent(&mut self, pid: u32) {
        let Some(source) = self.machines.get_mut(&pid) else { return };
        source.peer = None;
        source.holds_locks = false;
        source.state = RunState::Moved;
        source.status(MigrationStatus::Completed);
    }

    /// A target has loaded everything and waits for `cont`.
    fn loaded(&mut self, from: u32, pid: u32) {
        let knows = self.machines.get(&from).and_then(|source| source.knows);
        let Some(target) = self.machines.get_mut(&pid) else { return };
        target.peer = None;
        target.knows = knows;
        target.state = RunState::Paused;
        target.status(MigrationStatus::Completed);
    }

    /// Sources that went on by themselves after a failed move.
    fn note_resumed(&mut self) {
        let went_on = |m: &mut Model| std::mem::take(&mut m.went_on) && m.state == RunState::Running;
        let resumed: Vec<u32> =
            self.machines.iter_mut().filter_map(|(pid, m)| went_on(m).then_some(*pid)).collect();
        resumed.into_iter().for_each(|pid| self.note_running(pid));
    }

    /// Called whenever a machine begins to execute.
    fn note_running(&mut self, pid: u32) {
        let Some(me) = self.machines.get(&pid) else { return };
        let (knows, disks) = (me.knows, me.disks.clone());
        let newest = disks.iter().filter_map(|disk| self.runs.get(disk)).max();
        if knows.is_some_and(|knows| newest.is_some_and(|newest| *newest > knows)) {
            let what = format!("machine {pid} ran although another had run on its disks since it knew them");
            self.violations.push(what);
        }
        let shares = |m: &Model| {
            m.state == RunState::Running && !m.frozen && m.disks.iter().any(|d| disks.contains(d))
        };
        let others: Vec<u32> =
            self.machines.iter().filter(|(p, m)| **p != pid && shares(m)).map(|(p, _)| *p).collect();
        for other in others {
            self.violations.push(format!("machines {pid} and {other} ran at once"));
        }
        self.last_run += 1;
        for disk in disks {
            self.runs.insert(disk, self.last_run);
        }
        if let Some(me) = self.machines.get_mut(&pid) {
            me.knows = Some(self.last_run);
        }
    }
}

fn refused(command: &str, desc: &str) -> QmpError {
    QmpError::Refused { command: command.to_owned(), class: "GenericError".into(), desc: desc.to_owned() }
}

impl Hypervisor for Fake {
    type Machine = FakeMachine;

    fn needs_tap(&self) -> bool {
        false
    }

    async fn start(
        &self,
        d: &Definition,
        rt: &Runtime,
        _tap: Option<OwnedFd>,
    ) -> Result<Started<FakeMachine>, StartError> {
        d.check()?;
        let mut world = self.lock();
        let failed = |words: String| {
            Err(StartError::Exited(ProcessExit { code: Some(1), signal: None, last_words: words }))
        };
        if let Some(words) = world.start_failure.take() {
            return failed(words);
        }
        let (events_tx, events) = mpsc::unbounded_channel();
        world.last_pid += 1;
        let pid = world.last_pid;
        let model = Model {
            run_dir: rt.run_dir.clone(),
            disks: d.disks.iter().filter(|disk| !disk.read_only).map(|disk| disk.path.clone()).collect(),
            holds_locks: !rt.incoming,
            memory_bytes: d.memory_bytes,
            machine: d.machine.clone(),
            state: if rt.incoming { RunState::Incoming } else { RunState::Paused },
            migration: MigrationStatus::None,
            error: None,
            crawl: false,
            peer: None,
            listening: None,
            reboot_ends: false,
            ignores_button: false,
            hangs: false,
            frozen: false,
            knows: None,
            went_on: false,
            dirty_bytes_s: 0,
            journey: Journey::default(),
            events: events_tx,
        };
        world.machines.insert(pid, model);
        if !rt.incoming && world.locked_by_other(pid) {
            world.machines.remove(&pid);
            return failed("Failed to get \"write\" lock".into());
        }
        Ok(Started { machine: FakeMachine { pid, world: self.clone() }, events })
    }
}

impl FakeMachine {
    fn act<T>(
        &self,
        command: &str,
        act: impl FnOnce(&mut World, u32) -> Result<T, QmpError>,
    ) -> Result<T, QmpError> {
        let mut world = self.world.lock();
        match world.machines.get(&self.pid) {
            None => Err(QmpError::Gone { command: command.to_owned() }),
            Some(m) if m.hangs => Err(QmpError::Timeout { command: command.to_owned(), after_ms: 0 }),
            Some(_) => act(&mut world, self.pid),
        }
    }

    fn model<T>(&self, command: &str, act: impl FnOnce(&mut Model) -> T) -> Result<T, QmpError> {
        self.act(command, |world, pid| {
            Ok(act(world.machines.get_mut(&pid).expect("invariant: looked up above")))
        })
    }
}

/// Copies everything, then stops the guest: as far as a move goes by itself.
fn copy(world: &mut World, pid: u32, peer: u32) {
    if let Some(target) = world.machines.get_mut(&peer) {
        target.status(MigrationStatus::Active);
    }
    let Some(source) = world.machines.get_mut(&pid) else { return };
    source.status(MigrationStatus::Active);
    source.tell(Event::MigrationPass(1));
    if !source.crawl {
        source.enter(RunState::Switching, Event::Stopped { at_us: None });
        source.status(MigrationStatus::PreSwitchover);
    }
}

fn back_to_source(source: &mut Model, status: MigrationStatus) {
    source.peer = None;
    source.status(status);
    if source.state == RunState::Switching {
        source.enter(RunState::Running, Event::Resumed);
        source.went_on = true;
    }
}

impl Machine for FakeMachine {
    fn pid(&self) -> u32 {
        self.pid
    }

    fn version(&self) -> String {
        "10.0.2".into()
    }

    fn last_words(&self) -> String {
        String::new()
    }

    async fn status(&self) -> Result<RunState, QmpError> {
        self.model("query-status", |m| m.state.clone())
    }

    async fn run(&self) -> Result<(), QmpError> {
        self.act("cont", |world, pid| {
            if world.locked_by_other(pid) {
                return Err(refused("cont", "Failed to get \"write\" lock"));
            }
            if let Some(words) = world.run_refusal.take() {
                return Err(refused("cont", &words));
            }
            let m = world.machines.get_mut(&pid).expect("invariant: looked up above");
            match m.state {
                RunState::Paused | RunState::Moved | RunState::IoError => {
                    m.holds_locks = true;
                    m.enter(RunState::Running, Event::Resumed);
                    world.note_running(pid);
                    Ok(())
                }
                RunState::Shutdown | RunState::Panicked => {
                    Err(refused("cont", "Resetting the Virtual Machine is required"))
                }
                _ => Ok(()),
            }
        })
    }

    async fn pause(&self) -> Result<(), QmpError> {
        self.model("stop", |m| {
            if m.state == RunState::Running {
                m.enter(RunState::Paused, Event::Stopped { at_us: None });
            }
        })
    }

    async fn end_on_reboot(&self) -> Result<(), QmpError> {
        self.model("set-action", |m| m.reboot_ends = true)
    }

    async fn press_power_button(&self) -> Result<(), QmpError> {
        self.act("system_powerdown", |world, pid| {
            let m = world.machines.get_mut(&pid).expect("invariant: looked up above");
            if m.state == RunState::Running {
                world.pressed.push(m.run_dir.clone());
                if !m.ignores_button {
                    m.tell(Event::Shutdown { guest: true, reason: "guest-shutdown".into() });
                    m.enter(RunState::Shutdown, Event::Stopped { at_us: None });
                }
            }
            Ok(())
        })
    }

    async fn quit(&self) -> Result<(), QmpError> {
        self.act("quit", |world, pid| {
            world.end(pid, ProcessExit { code: Some(0), ..ProcessExit::default() });
            Ok(())
        })
    }

    fn kill(&self) {
        self.world.lock().end(self.pid, ProcessExit { signal: Some(9), ..ProcessExit::default() });
    }

    async fn announce(&self) -> Result<(), QmpError> {
        self.model("announce-self", |_| ())
    }

    async fn migrate_in(&self, socket: &str) -> Result<(), QmpError> {
        self.model("migrate-incoming", |m| {
            m.listening = Some(socket.to_owned());
            m.status(MigrationStatus::Setup);
        })
    }

    async fn migrate_out(&self, socket: &str, p: &MigrateParams) -> Result<(), QmpError> {
        self.act("migrate", |world, pid| {
            let socket = world.relays.get(socket).map_or(socket, String::as_str).to_owned();
            let listens =
                |m: &Model| m.listening.as_deref() == Some(socket.as_str()) && m.state == RunState::Incoming;
            let target = world.machines.iter().find(|(_, m)| listens(m)).map(|(peer, _)| *peer);
            let source = world.machines.get_mut(&pid).expect("invariant: looked up above");
            let Some(peer) = target else {
                return Err(refused("migrate", "Failed to connect: No such file or directory"));
            };
            source.crawl = p.bandwidth < CRAWL_BYTES_S;
            source.journey = Journey::of(source.memory_bytes, p);
            source.error = None;
            source.peer = Some(peer);
            if source.migration != MigrationStatus::Setup {
                source.status(MigrationStatus::Setup);
            }
            let machine = source.machine.clone();
            let target = world.machines.get_mut(&peer).expect("invariant: found above");
            target.peer = Some(pid);
            target.listening = None;
            if target.machine == machine {
                if world.link.is_none() {
                    copy(world, pid, peer);
                } else {
                    travel::depart(world, pid, peer);
                    tokio::spawn(travel::travel(self.world.clone(), pid));
                }
            } else {
                let text = format!("Machine type received is '{machine}' and local is '{}'", target.machine);
                target.error = Some(text);
                target.status(MigrationStatus::Failed);
                let source = world.machines.get_mut(&pid).expect("invariant: looked up above");
                source.error = Some("Channel error: Input/output error".into());
                back_to_source(source, MigrationStatus::Failed);
            }
            Ok(())
        })
    }

    async fn migrate_continue(&self) -> Result<(), QmpError> {
        self.act("migrate-continue", |world, pid| {
            let source = world.machines.get_mut(&pid).expect("invariant: looked up above");
            if source.migration != MigrationStatus::PreSwitchover {
                return Err(refused("migrate-continue", "Migration not in expected state"));
            }
            source.status(MigrationStatus::Device);
            if world.link.is_some() {
                tokio::spawn(travel::arrive(self.world.clone(), pid));
                return Ok(());
            }
            let target = source.peer.filter(|peer| world.machines.contains_key(peer));
            let hangs = target.is_some_and(|peer| world.machines[&peer].hangs);
            let source = world.machines.get_mut(&pid).expect("invariant: looked up above");
            match target {
                None => {
                    source.error = Some("Unable to write to socket: Broken pipe".into());
                    back_to_source(source, MigrationStatus::Failed);
                }
                Some(_) if hangs => {}
                Some(peer) => {
                    world.sent(pid);
                    world.loaded(pid, peer);
                }
            }
            Ok(())
        })
    }

    async fn migrate_cancel(&self) -> Result<(), QmpError> {
        self.act("migrate_cancel", |world, pid| {
            let source = world.machines.get_mut(&pid).expect("invariant: looked up above");
            if matches!(
                source.migration,
                MigrationStatus::Setup | MigrationStatus::Active | MigrationStatus::PreSwitchover
            ) {
                let peer = source.peer;
                source.status(MigrationStatus::Cancelling);
                back_to_source(source, MigrationStatus::Cancelled);
                if let Some(target) = peer.and_then(|peer| world.machines.get_mut(&peer)) {
                    target.peer = None;
                    target.error = Some("load of migration failed: Input/output error".into());
                    target.status(MigrationStatus::Failed);
                }
            }
            Ok(())
        })
    }

    async fn migrate_cut(&self) -> Result<(), QmpError> {
        self.model("yank", |m| {
            if matches!(m.migration, MigrationStatus::Active | MigrationStatus::Device) {
                m.error = Some("Channel error: Input/output error".into());
                back_to_source(m, MigrationStatus::Failed);
            }
        })
    }

    async fn migrate_limits(&self, bandwidth: u64, downtime_ms: u64) -> Result<(), QmpError> {
        self.act("migrate-set-parameters", |world, pid| {
            let source = world.machines.get_mut(&pid).expect("invariant: looked up above");
            source.journey.limit(bandwidth, downtime_ms);
            if world.link.is_some() {
                return Ok(());
            }
            if source.crawl && bandwidth >= CRAWL_BYTES_S && source.migration == MigrationStatus::Active {
                source.crawl = false;
                source.enter(RunState::Switching, Event::Stopped { at_us: None });
                source.status(MigrationStatus::PreSwitchover);
            }
            Ok(())
        })
    }

    async fn migration(&self) -> Result<MigrationInfo, QmpError> {
        self.model("query-migrate", |m| MigrationInfo {
            status: m.migration,
            error: m.error.clone(),
            blocked: vec![],
            total_bytes: m.memory_bytes,
            remaining_bytes: if m.crawl { m.memory_bytes } else { m.journey.left_bytes },
            transferred_bytes: m.journey.sent_bytes,
            dirty_bytes_per_s: m.journey.dirty_bytes_s,
            rate_bytes_per_s: m.journey.rate_bytes_s,
            passes: m.journey.passes.max(1),
            throttle_pct: m.journey.throttle_pct,
            downtime_ms: (m.migration == MigrationStatus::Completed).then_some(1),
        })
    }

    async fn measure_dirty_rate(&self, _seconds: u32) -> Result<(), QmpError> {
        self.model("calc-dirty-rate", |_| ())
    }

    async fn dirty_rate(&self) -> Result<Option<u64>, QmpError> {
        self.model("query-dirty-rate", |m| Some(m.dirty_bytes_s))
    }
}
