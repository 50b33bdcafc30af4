//! Agent and launcher, over the unix socket `launcher.sock` in the pod's `run` volume; launcher and
//! launcher, over the control stream of a move.
//!
//! The agent sends [`Request`]s and gets exactly one [`Answer`] to each, matched by `seq`; the launcher
//! sends [`Event`]s of its own. On a new connection the launcher sends the present [`Event::State`]
//! (and [`Event::Migration`] when there is one) first, so an agent that was away knows everything.
//! Every request may be repeated: a launcher that has done it already answers as it did before.

mod moves;

use serde::{Deserialize, Serialize};

use crate::Id;

pub use moves::{MigrationEvent, MoveFailure, MoveProgress, MoveStage};

/// Name of the launcher's socket in the pod's `run` volume.
pub const SOCKET: &str = "launcher.sock";
/// Name of the file in the `run` volume that says: this source has given up its right to run.
pub const RECORD_RIGHT: &str = "right";
/// Name of the file in the `run` volume that says: this target has begun to continue the guest.
pub const RECORD_CONTINUING: &str = "continuing";
/// Name of the file in the `run` volume that holds the [`ExitRecord`].
pub const RECORD_EXIT: &str = "exit";
/// Name of the file in the `run` volume that says: QEMU was (about to be) started for this pod.
pub const RECORD_STARTED: &str = "started";
/// Socket in the `run` volume that the source agent listens on; the source's QEMU sends memory into it.
pub const SOCKET_MEMORY_OUT: &str = "memory-out.sock";
/// Socket in the `run` volume that the source agent listens on; the source launcher sends [`Control`] into it.
pub const SOCKET_CONTROL_OUT: &str = "control-out.sock";
/// Socket in the `run` volume that the target's QEMU listens on for memory.
pub const SOCKET_MEMORY_IN: &str = "memory-in.sock";
/// Socket in the `run` volume that the target launcher listens on for [`Control`].
pub const SOCKET_CONTROL_IN: &str = "control-in.sock";

/// From the agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToLauncher {
    /// Version in which the request came, [`Request::since`].
    pub v: u32,
    /// Number of the request on this connection, from 1.
    pub seq: u64,
    /// Whom it is about.
    pub id: Id,
    /// What is asked.
    pub request: Request,
    /// How many file descriptors travel with this frame.
    #[serde(default)]
    pub fds: usize,
}

/// From the launcher.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FromLauncher {
    /// Version of the sender.
    pub v: u32,
    /// Whom it is about.
    pub id: Id,
    /// Answer or event.
    pub body: Body,
    /// How many file descriptors travel with this frame.
    #[serde(default)]
    pub fds: usize,
}

/// See [`FromLauncher`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Body {
    /// To the request with this number.
    Answer {
        /// `seq` of the request.
        seq: u64,
        /// The answer.
        answer: Answer,
    },
    /// Not asked for.
    Event(Event),
}

/// What an agent asks of a launcher.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// First on every connection: versions the agent speaks. Answer: [`Answer::Hello`].
    Hello {
        /// Versions, newest first.
        versions: Vec<u32>,
    },
    /// Start QEMU stopped, with the tap that travels along as the first descriptor.
    /// The launcher takes disk locks and answers Done when QEMU is ready for `Run` or for memory.
    Prepare(Box<Prepare>),
    /// Let the guest run. Never to the target of a move.
    Run,
    /// Power button, repeated; kill when `grace_s` seconds are over.
    Stop {
        /// Grace period, seconds.
        grace_s: u64,
        /// By whose wish: decides the exit cause.
        why: StopWhy,
    },
    /// Kill QEMU at once and end.
    Kill {
        /// By whose wish: decides the exit cause.
        why: StopWhy,
    },
    /// Present state. Answer: [`Answer::State`].
    Query,
    /// Source of a move: send memory into [`SOCKET_MEMORY_OUT`], commit over [`SOCKET_CONTROL_OUT`].
    MigrateOut {
        /// Uid of the Migration.
        migration_uid: String,
        /// Limits.
        config: MoveConfig,
    },
    /// Target of a move (after an incoming `Prepare`): accept [`Control`] for this Migration.
    MigrateIn {
        /// Uid of the Migration.
        migration_uid: String,
    },
    /// Source: routes have been moved (or that failed and the agent goes on without); go on after `Suspended`.
    Switch {
        /// Uid of the Migration.
        migration_uid: String,
        /// Whether routes point to the target now.
        routes_done: bool,
    },
    /// Source: call the move off if the right has not been given up. Target: give the move up if it has not continued.
    Cancel {
        /// Uid of the Migration.
        migration_uid: String,
        /// Why, for logs and status.
        why: String,
    },
    /// Source that waits paused after `GaveUp`: what is known for certain about the target (MM §2.4 rule 7).
    Settle {
        /// Uid of the Migration.
        migration_uid: String,
        /// The certainty.
        verdict: Verdict,
    },
    /// Change the limits of a move that is under way.
    SetLimits {
        /// Uid of the Migration.
        migration_uid: String,
        /// Limits.
        config: MoveConfig,
    },
    /// The provisioning files QEMU was prepared with, for the target of a move: their source may have been
    /// edited since. Answer: [`Answer::Seed`].
    Seed,
    /// How fast the guest dirties memory. With a time: begin to measure for so long. Answer:
    /// [`Answer::DirtyRate`].
    DirtyRate {
        /// Seconds, 1 to 60; none asks for what the last measurement found.
        measure_s: Option<u32>,
    },
    /// A byte stream to the guest. The answer carries one end of a socket pair as its descriptor.
    OpenStream(StreamKind),
}

impl Request {
    /// The version in which it came: only a launcher that speaks at least this one knows it.
    #[must_use]
    pub fn since(&self) -> u32 {
        match self {
            Self::Seed | Self::DirtyRate { .. } => 2,
            Self::Hello { .. }
            | Self::Prepare(_)
            | Self::Run
            | Self::Stop { .. }
            | Self::Kill { .. }
            | Self::Query
            | Self::MigrateOut { .. }
            | Self::MigrateIn { .. }
            | Self::Switch { .. }
            | Self::Cancel { .. }
            | Self::Settle { .. }
            | Self::SetLimits { .. }
            | Self::OpenStream(_) => 1,
        }
    }
}

/// See [`Request::Prepare`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prepare {
    /// `holdfast_hypervisor::definition::Definition`, as JSON.
    pub definition: serde_json::Value,
    /// Uid of the Migration whose memory this QEMU shall take. None: a cold start.
    pub incoming: Option<String>,
    /// Provisioning files by name (`user-data`, `meta-data`, …); the launcher builds the seed disk from them.
    pub seed_files: SeedFiles,
    /// What a reboot by the guest does.
    pub on_reset: OnReset,
}

/// Provisioning files by name. They may hold passwords: only their names are shown.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SeedFiles(pub std::collections::BTreeMap<String, String>);

impl std::fmt::Debug for SeedFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// What a reboot by the guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnReset {
    /// QEMU resets the machine.
    InPlace,
    /// QEMU ends with cause GuestReset; the front starts a new epoch.
    End,
}

/// By whose wish a VM stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopWhy {
    /// `spec.power` is Off.
    Power,
    /// The pod is being removed without a move.
    Evicted,
    /// The move this target was made for is over.
    MoveOver,
}

/// Certainty about the target of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// The target launcher has ended and never continued the guest: the source may go on.
    NeverContinued,
    /// The target runs (or ran) the guest: the source must end.
    Continued,
}

/// Limits of a move, see `MigrationConfig` of the API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct MoveConfig {
    pub bandwidth_bytes_s: i64,
    pub downtime_ms: i64,
    pub auto_converge: bool,
    pub completion_timeout_s: i64,
    pub progress_timeout_s: i64,
}

/// Kinds of byte stream to a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum StreamKind {
    /// The first serial port. The newest client wins; it first gets what the ring buffer holds.
    Serial,
    /// RFB.
    Vnc,
}

/// A launcher's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(
    clippy::large_enum_variant,
    reason = "State is also the most frequent one; messages live for moments"
)]
pub enum Answer {
    /// To Hello.
    Hello {
        /// The version to speak.
        version: u32,
        /// Version of QEMU as installed, `10.0.2`.
        qemu_version: String,
    },
    /// It is done (or was done before).
    Done,
    /// To Query.
    State(State),
    /// To OpenStream; the descriptor travels with the frame.
    Stream,
    /// To Seed; empty when the machine has no provisioning disk.
    Seed(SeedFiles),
    /// To DirtyRate.
    DirtyRate {
        /// Bytes a second; none while it is being measured.
        bytes_s: Option<i64>,
    },
    /// It is not done and will not be; `why` is a sentence for people.
    Refused {
        /// What stood against it.
        why: String,
    },
}

/// What a launcher tells on its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(
    clippy::large_enum_variant,
    reason = "State is also the most frequent one; messages live for moments"
)]
pub enum Event {
    /// Something about the machine changed.
    State(State),
    /// Something about the move changed.
    Migration(MigrationEvent),
    /// New facts from the guest agent.
    Guest(GuestFacts),
    /// QEMU has ended; the record is on disk; the launcher exits next.
    Ended(ExitRecord),
}

/// State of a launcher.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// What is.
    pub vm: VmState,
    /// Process id of QEMU in the launcher's PID namespace.
    pub qemu_pid: Option<u32>,
    /// QEMU's own word, `query-status`.
    pub query_status: Option<String>,
    /// Hash of the definition QEMU was started from.
    pub definition_hash: Option<String>,
    /// Machine type QEMU really uses.
    pub machine_type: Option<String>,
    /// Accelerator QEMU really uses.
    pub accelerator: Option<String>,
    /// Unix time, milliseconds, at which the guest first ran in this launcher.
    pub running_since_ms: Option<i64>,
    /// The move under way or last seen.
    pub migration: Option<MigrationEvent>,
    /// Guest facts as last seen.
    pub guest: Option<GuestFacts>,
    /// Set when `vm` is Ended.
    pub exit: Option<ExitRecord>,
}

/// See [`State`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmState {
    /// No QEMU yet.
    #[default]
    Empty,
    /// QEMU is starting.
    Preparing,
    /// QEMU is ready and stopped, waits for Run.
    Prepared,
    /// QEMU waits for (or receives) memory.
    Incoming,
    /// The guest runs.
    Running,
    /// The guest is stopped inside QEMU (I/O error, panic, pause).
    Paused,
    /// The source gave up its right and waits, paused, for the target's word.
    GaveUp,
    /// A stop is under way.
    Stopping,
    /// QEMU is gone.
    Ended,
}

/// Facts from the guest agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestFacts {
    /// Whether it answers.
    pub connected: bool,
    /// Its version.
    pub version: Option<String>,
    /// `guest-get-osinfo`, keys in camelCase (`id`, `name`, `prettyName`, `version`, `versionId`, `kernelRelease`, `kernelVersion`, `machine`).
    pub os_info: std::collections::BTreeMap<String, String>,
    /// `guest-get-host-name`.
    pub hostname: Option<String>,
    /// Interfaces: name, MAC, addresses with prefix.
    pub nics: Vec<GuestNic>,
}

/// An interface as the guest sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct GuestNic {
    pub name: String,
    pub mac: String,
    pub addresses: Vec<String>,
}

/// How QEMU ended: the content of [`RECORD_EXIT`], written and synced before the launcher exits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Whom it is about.
    pub id: Id,
    /// Cause.
    pub cause: Cause,
    /// A sentence for people; QEMU's last words when it failed.
    pub detail: String,
    /// Unix time, milliseconds.
    pub at_ms: i64,
    /// Whether the guest ever ran in this launcher.
    pub ever_ran: bool,
}

/// Cause of an end, as the launcher can know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Cause {
    GuestShutdown,
    GuestReset,
    Crash,
    GraceExpired,
    PlatformStop,
    Evicted,
    StartFailed,
    /// The guest moved away: the source of a finished move.
    MovedAway,
    /// A target that never continued the guest.
    MoveGivenUp,
}

/// Launcher to launcher, over the control stream. The source sends Commit and Ask, the target answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Control {
    /// The source has given up its right, on disk. `paused`: the guest was paused by a user, do not `cont`.
    Commit {
        /// Uid of the Migration.
        migration_uid: String,
        /// Leave the guest paused.
        paused: bool,
    },
    /// The target continues (on disk and for real).
    Ack {
        /// Uid of the Migration.
        migration_uid: String,
    },
    /// The target could not continue and has quit; the source may go on.
    Nack {
        /// Uid of the Migration.
        migration_uid: String,
        /// Why.
        why: String,
    },
}
