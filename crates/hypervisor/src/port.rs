//! The port: what the launcher may ask of a hypervisor and what it may hear from it.
//!
//! Two implementations pass the same contract tests (`tests/contract.rs`): [`crate::qemu`] drives a real
//! process, [`crate::fake`] is a model with faults to inject.

use std::future::Future;
use std::os::fd::OwnedFd;

use tokio::sync::mpsc;

use crate::argv::Runtime;
use crate::definition::{Definition, InvalidDefinition};
use crate::qmp::QmpError;

/// Starts machines.
pub trait Hypervisor: Clone + Send + Sync + 'static {
    /// A started machine.
    type Machine: Machine;

    /// Whether a machine with a network card can be started only with the descriptor of a tap.
    fn needs_tap(&self) -> bool {
        true
    }

    /// Starts a machine stopped (`-S`), or waiting for a migration when `runtime.incoming` is set. Returns
    /// when it answers questions; the guest does not run yet. `tap` becomes the network card's other end;
    /// `runtime.tap_fd` is set from it.
    fn start(
        &self,
        definition: &Definition,
        runtime: &Runtime,
        tap: Option<OwnedFd>,
    ) -> impl Future<Output = Result<Started<Self::Machine>, StartError>> + Send;
}

/// A started machine and what it tells.
pub struct Started<M> {
    /// Commands go here. Clones share the machine.
    pub machine: M,
    /// Ends with [`Event::Ended`], always exactly once and last.
    pub events: mpsc::UnboundedReceiver<Event>,
}

/// Commands to a started machine. All return quickly; what takes time is reported by events.
pub trait Machine: Clone + Send + Sync + 'static {
    /// Process id, for the report.
    fn pid(&self) -> u32;
    /// Version of the hypervisor, such as `10.0.2`.
    fn version(&self) -> String;
    /// The last lines the process wrote to its standard error; QEMU's real reason for a failed load is there.
    fn last_words(&self) -> String;
    /// Asks for the run state.
    fn status(&self) -> impl Future<Output = Result<RunState, QmpError>> + Send;
    /// Lets the guest run (`cont`).
    fn run(&self) -> impl Future<Output = Result<(), QmpError>> + Send;
    /// Stops the guest's CPUs.
    fn pause(&self) -> impl Future<Output = Result<(), QmpError>> + Send;
    /// From now on a guest reboot ends as `guest-reset` instead of resetting in place.
    fn end_on_reboot(&self) -> impl Future<Output = Result<(), QmpError>> + Send;
    /// Presses the power button once.
    fn press_power_button(&self) -> impl Future<Output = Result<(), QmpError>> + Send;
    /// Ends the process in order. Its end is reported by [`Event::Ended`].
    fn quit(&self) -> impl Future<Output = Result<(), QmpError>> + Send;
    /// Ends the process at once (SIGKILL).
    fn kill(&self);
    /// Announces the guest's MAC address on its network.
    fn announce(&self) -> impl Future<Output = Result<(), QmpError>> + Send;
    /// Target: waits for a migration stream on the unix socket `socket`.
    fn migrate_in(&self, socket: &str) -> impl Future<Output = Result<(), QmpError>> + Send;
    /// Source: sends the guest to the unix socket `socket`.
    fn migrate_out(
        &self,
        socket: &str,
        p: &MigrateParams,
    ) -> impl Future<Output = Result<(), QmpError>> + Send;
    /// Source: leaves `pre-switchover`.
    fn migrate_continue(&self) -> impl Future<Output = Result<(), QmpError>> + Send;
    /// Source: calls the move off; without effect from the device stage on.
    fn migrate_cancel(&self) -> impl Future<Output = Result<(), QmpError>> + Send;
    /// Source: cuts the stream even while the main loop is blocked (`yank`).
    fn migrate_cut(&self) -> impl Future<Output = Result<(), QmpError>> + Send;
    /// Source: changes limits during a move.
    fn migrate_limits(
        &self,
        bandwidth: u64,
        downtime_ms: u64,
    ) -> impl Future<Output = Result<(), QmpError>> + Send;
    /// Either side: how the move stands.
    fn migration(&self) -> impl Future<Output = Result<MigrationInfo, QmpError>> + Send;
    /// Begins to measure how fast the guest dirties memory, for 1 to 60 seconds. The guest goes on.
    fn measure_dirty_rate(&self, seconds: u32) -> impl Future<Output = Result<(), QmpError>> + Send;
    /// What the last measurement found, bytes a second; `None` while it goes on.
    fn dirty_rate(&self) -> impl Future<Output = Result<Option<u64>, QmpError>> + Send;
}

/// Settings of one outgoing move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrateParams {
    /// Bytes a second; 0 = unlimited.
    pub bandwidth: u64,
    /// Longest intended stop, milliseconds.
    pub downtime_ms: u64,
    /// The guest may be slowed down.
    pub auto_converge: bool,
}

/// QEMU's run state, as far as Holdfast tells states apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunState {
    /// The guest executes.
    Running,
    /// Started with `-S`, or stopped by `pause`, or loaded by a migration.
    Paused,
    /// Waits for a migration stream.
    Incoming,
    /// Source in the switch-over.
    Switching,
    /// Source after a completed move.
    Moved,
    /// The guest powered off or asked for a reboot; the process stays.
    Shutdown,
    /// The guest's kernel panicked.
    Panicked,
    /// Stopped by a disk error.
    IoError,
    /// Any other state, by QEMU's name.
    Other(String),
}

impl RunState {
    /// Reads QEMU's name of a state.
    pub fn from_qemu(name: &str) -> RunState {
        match name {
            "running" => RunState::Running,
            "paused" | "prelaunch" => RunState::Paused,
            "inmigrate" => RunState::Incoming,
            "finish-migrate" => RunState::Switching,
            "postmigrate" => RunState::Moved,
            "shutdown" => RunState::Shutdown,
            "guest-panicked" => RunState::Panicked,
            "io-error" => RunState::IoError,
            other => RunState::Other(other.to_owned()),
        }
    }

    /// The word shown in reports.
    pub fn as_str(&self) -> &str {
        match self {
            RunState::Running => "running",
            RunState::Paused => "paused",
            RunState::Incoming => "inmigrate",
            RunState::Switching => "finish-migrate",
            RunState::Moved => "postmigrate",
            RunState::Shutdown => "shutdown",
            RunState::Panicked => "guest-panicked",
            RunState::IoError => "io-error",
            RunState::Other(name) => name,
        }
    }
}

/// Status of a move as QEMU names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MigrationStatus {
    /// No move was ever started in this process.
    None,
    /// Connecting.
    Setup,
    /// Copying memory while the guest runs.
    Active,
    /// The guest is stopped and the source waits for `migrate_continue`.
    PreSwitchover,
    /// Device state is being sent; no way back but failure.
    Device,
    /// A cancel was accepted.
    Cancelling,
    /// Called off; the guest runs on the source.
    Cancelled,
    /// Everything was loaded by the target.
    Completed,
    /// Failed.
    Failed,
    /// A state this build does not know (post-copy, COLO): treated as still moving.
    Unknown,
}

impl MigrationStatus {
    /// Reads QEMU's name of a status.
    pub fn from_qemu(name: &str) -> MigrationStatus {
        match name {
            "none" => MigrationStatus::None,
            "setup" => MigrationStatus::Setup,
            "active" => MigrationStatus::Active,
            "pre-switchover" => MigrationStatus::PreSwitchover,
            "device" => MigrationStatus::Device,
            "cancelling" => MigrationStatus::Cancelling,
            "cancelled" => MigrationStatus::Cancelled,
            "completed" => MigrationStatus::Completed,
            "failed" | "failing" => MigrationStatus::Failed,
            _ => MigrationStatus::Unknown,
        }
    }
}

/// What `query-migrate` tells (spec migration-and-maintenance.md §5.4). Sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrationInfo {
    /// Present status.
    pub status: MigrationStatus,
    /// QEMU's text when it failed.
    pub error: Option<String>,
    /// Why a move cannot start; empty when it can.
    pub blocked: Vec<String>,
    /// Guest memory in all.
    pub total_bytes: u64,
    /// Left in this pass.
    pub remaining_bytes: u64,
    /// Sent so far.
    pub transferred_bytes: u64,
    /// Rate at which the guest dirties memory, bytes a second; 0 before the second pass.
    pub dirty_bytes_per_s: u64,
    /// Speed of the transfer, bytes a second; 0 before it is known.
    pub rate_bytes_per_s: u64,
    /// Passes over the memory, from 1.
    pub passes: u64,
    /// How much the guest is slowed down, percent.
    pub throttle_pct: u32,
    /// Length of the guest's stop, milliseconds; known at the end only.
    pub downtime_ms: Option<u64>,
}

/// What a machine tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The guest asked to end, with QEMU's reason: `guest-shutdown`, `guest-reset`, `host-signal`...
    Shutdown {
        /// Whether the guest itself caused it.
        guest: bool,
        /// QEMU's reason.
        reason: String,
    },
    /// The machine was reset in place.
    Reset {
        /// Whether the guest itself caused it.
        guest: bool,
        /// QEMU's reason.
        reason: String,
    },
    /// CPUs stopped.
    Stopped {
        /// Unix time, microseconds; none where it is not told.
        at_us: Option<i64>,
    },
    /// CPUs run.
    Resumed,
    /// The guest's kernel panicked.
    Panicked,
    /// A disk failed.
    DiskError {
        /// QEMU's reason.
        reason: String,
        /// Whether the guest was stopped by it.
        stopped: bool,
    },
    /// The guest opened or closed the agent's port.
    AgentPort {
        /// Open.
        open: bool,
    },
    /// A move changed its status.
    Migration(MigrationStatus),
    /// A pass over the memory began.
    MigrationPass(u64),
    /// The process ended. Nothing follows.
    Ended(ProcessExit),
}

/// How the hypervisor's process ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProcessExit {
    /// Exit code, if it exited.
    pub code: Option<i32>,
    /// Signal, if it was killed.
    pub signal: Option<i32>,
    /// The last lines it wrote to its standard error.
    pub last_words: String,
}

impl std::fmt::Display for ProcessExit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "QEMU exited with code {code}")?,
            (None, Some(signal)) => write!(f, "QEMU was killed by signal {signal}")?,
            (None, None) => write!(f, "QEMU ended in an unknown way")?,
        }
        match self.last_words.trim() {
            "" => Ok(()),
            words => write!(f, ": {words}"),
        }
    }
}

/// Why a machine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The definition cannot be run by any QEMU.
    #[error(transparent)]
    Definition(#[from] InvalidDefinition),
    /// The program could not be executed.
    #[error("cannot execute {program}: {source}")]
    Spawn {
        /// Path of the program.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// The process ended before it answered.
    #[error("{0}")]
    Exited(ProcessExit),
    /// The process lives but does not answer.
    #[error("QEMU did not become ready: {0}")]
    NotReady(String),
}
