//! A move over a link of finite speed: passes over the memory, a guest that dirties it meanwhile,
//! auto-converge, a device stage that takes time, a stream that breaks.

use std::path::Path;
use std::time::Duration;

use super::{Fake, Model, World, back_to_source};
use crate::port::{Event, MigrateParams, MigrationStatus, RunState};

/// How often a journey looks at what has changed around it.
const SLICE: Duration = Duration::from_millis(50);
/// Throttling of auto-converge: first step, increment and limit in percent, as QEMU's defaults.
const THROTTLE: (u32, u32, u32) = (20, 10, 99);

/// Where a source stands in a move.
#[derive(Debug, Default)]
pub(super) struct Journey {
    bandwidth: u64,
    downtime: Duration,
    auto_converge: bool,
    pub left_bytes: u64,
    pub sent_bytes: u64,
    pub dirty_bytes_s: u64,
    pub rate_bytes_s: u64,
    pub passes: u64,
    pub throttle_pct: u32,
    last_pass_bytes: u64,
}

impl Journey {
    pub fn of(memory_bytes: u64, p: &MigrateParams) -> Self {
        let mut journey =
            Self { auto_converge: p.auto_converge, left_bytes: memory_bytes, ..Self::default() };
        journey.limit(p.bandwidth, p.downtime_ms);
        journey
    }

    pub fn limit(&mut self, bandwidth: u64, downtime_ms: u64) {
        self.bandwidth = if bandwidth == 0 { u64::MAX } else { bandwidth };
        self.downtime = Duration::from_millis(downtime_ms);
    }
}

impl Fake {
    /// From now on memory moves at this many bytes a second at most, and the device stage takes as long
    /// as given. Needs a tokio runtime where machines are driven.
    pub fn set_link(&self, bytes_per_s: u64, device_stage: Duration) {
        let mut world = self.lock();
        world.link = Some(bytes_per_s.max(1));
        world.device_stage = device_stage;
    }

    /// The guest in this run directory dirties memory at this many bytes a second.
    pub fn guest_dirties(&self, run_dir: &Path, bytes_per_s: u64) {
        self.with(run_dir, |m| m.dirty_bytes_s = bytes_per_s);
    }

    /// A source was told to move and connects to its target.
    pub fn begin_setup(&self, run_dir: &Path) {
        self.with(run_dir, |m| m.status(MigrationStatus::Setup));
    }

    /// The stream of the move in which this machine takes part breaks, seen from this machine only.
    pub fn break_stream(&self, run_dir: &Path) {
        self.with(run_dir, stream_broke);
    }
}

fn stream_broke(m: &mut Model) {
    if m.state == RunState::Incoming {
        if m.migration != MigrationStatus::Failed {
            m.error = Some("load of migration failed: Input/output error".into());
            m.status(MigrationStatus::Failed);
        }
        return;
    }
    let moves = matches!(
        m.migration,
        MigrationStatus::Setup
            | MigrationStatus::Active
            | MigrationStatus::PreSwitchover
            | MigrationStatus::Device
    );
    if moves {
        m.error = Some("Channel error: Connection reset by peer".into());
        back_to_source(m, MigrationStatus::Failed);
    }
}

/// Source and target are connected.
pub(super) fn depart(world: &mut World, pid: u32, peer: u32) {
    for machine in [peer, pid] {
        if let Some(model) = world.machines.get_mut(&machine) {
            model.status(MigrationStatus::Active);
        }
    }
}

/// Copies until what is left fits into the allowed stop; ends early when the move does.
pub(super) async fn travel(world: Fake, pid: u32) {
    loop {
        let pause = step(&mut world.lock(), pid);
        match pause {
            Some(pause) => tokio::time::sleep(pause).await,
            None => return,
        }
    }
}

/// One slice of copying. None: nothing is left to do for this journey.
fn step(world: &mut World, pid: u32) -> Option<Duration> {
    let link = world.link?;
    let source = world.machines.get_mut(&pid)?;
    if source.migration != MigrationStatus::Active {
        return None;
    }
    let peer = source.peer;
    let stands = source.hangs || peer.and_then(|peer| world.machines.get(&peer)).is_some_and(|m| m.hangs);
    if stands {
        return Some(SLICE);
    }
    let source = world.machines.get_mut(&pid)?;
    // A guest that stands still writes nothing.
    let dirty = if source.state == RunState::Running { source.dirty_bytes_s } else { 0 };
    let memory = source.memory_bytes;
    let journey = &mut source.journey;
    let rate = link.min(journey.bandwidth);
    journey.rate_bytes_s = rate;
    if journey.passes == 0 {
        journey.passes = 1;
        journey.last_pass_bytes = journey.left_bytes;
        source.tell(Event::MigrationPass(1));
        return Some(duration(source.journey.left_bytes, rate).min(SLICE));
    }
    let sliced = bytes(SLICE, rate).max(1);
    let sent = sliced.min(journey.left_bytes);
    journey.left_bytes -= sent;
    journey.sent_bytes += sent;
    if journey.left_bytes > 0 {
        return Some(duration(journey.left_bytes, rate).min(SLICE));
    }
    // The end of a pass: what was dirtied meanwhile is the next one.
    let slowed = dirty * u64::from(100 - journey.throttle_pct) / 100;
    let next = bytes(duration(journey.last_pass_bytes, rate), slowed).min(memory);
    journey.dirty_bytes_s = slowed;
    if duration(next, rate) <= journey.downtime {
        journey.left_bytes = 0;
        source.enter(RunState::Switching, Event::Stopped { at_us: None });
        source.status(MigrationStatus::PreSwitchover);
        return None;
    }
    journey.passes += 1;
    if journey.auto_converge && journey.passes > 2 && next * 2 > journey.last_pass_bytes {
        let (first, more, most) = THROTTLE;
        journey.throttle_pct =
            if journey.throttle_pct == 0 { first } else { journey.throttle_pct + more }.min(most);
    }
    journey.last_pass_bytes = next;
    journey.left_bytes = next;
    let passes = journey.passes;
    source.tell(Event::MigrationPass(passes));
    Some(duration(next, rate).min(SLICE))
}

/// The device stage: its end makes the target a complete machine, unless something has ended meanwhile.
pub(super) async fn arrive(world: Fake, pid: u32) {
    let stage = world.lock().device_stage;
    tokio::time::sleep(stage).await;
    loop {
        {
            let mut world = world.lock();
            let Some(source) = world.machines.get_mut(&pid) else { return };
            if source.migration != MigrationStatus::Device {
                return;
            }
            let Some(peer) = source.peer else {
                return stream_broke(source);
            };
            let hangs = source.hangs;
            match world.machines.get(&peer) {
                None => {
                    if let Some(source) = world.machines.get_mut(&pid) {
                        stream_broke(source);
                    }
                    return;
                }
                Some(target) if !target.hangs && !hangs => {
                    world.loaded(pid, peer);
                    break;
                }
                Some(_) => {}
            }
        }
        tokio::time::sleep(SLICE).await;
    }
    // The target's word that it has everything travels back; if it is lost, the source goes on by itself.
    tokio::time::sleep(stage / 4).await;
    let mut world = world.lock();
    let target_lives = |world: &World| {
        let peer = world.machines.get(&pid).and_then(|source| source.peer);
        peer.is_some_and(|peer| world.machines.contains_key(&peer))
    };
    let lives = target_lives(&world);
    let Some(source) = world.machines.get_mut(&pid) else { return };
    match (source.migration == MigrationStatus::Device, lives) {
        (true, true) => world.sent(pid),
        (true, false) => stream_broke(source),
        (false, _) => {}
    }
}

fn bytes(time: Duration, per_s: u64) -> u64 {
    u64::try_from(time.as_micros() * u128::from(per_s) / 1_000_000).unwrap_or(u64::MAX)
}

fn duration(bytes: u64, per_s: u64) -> Duration {
    let micros = u128::from(bytes) * 1_000_000 / u128::from(per_s.max(1));
    Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
}
