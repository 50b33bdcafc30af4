//! What both sides of a move tell of it.

use serde::{Deserialize, Serialize};

/// State of a move, as one side sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MigrationEvent {
    /// Uid of the Migration.
    pub migration_uid: String,
    /// What happened last.
    pub stage: MoveStage,
    /// Copy figures, as far as known.
    #[serde(default)]
    pub progress: MoveProgress,
    /// Stop of the guest as QEMU measured it, milliseconds.
    pub downtime_ms: Option<i64>,
    /// Set when `stage` is Failed or Cancelled.
    pub failure: Option<MoveFailure>,
    /// Source: when the guest was last stopped, Unix time in microseconds, as far as QEMU said it.
    #[serde(default)]
    pub stopped_at_us: Option<i64>,
}

impl MigrationEvent {
    /// The first word of a move.
    pub fn new(migration_uid: impl Into<String>, stage: MoveStage) -> Self {
        Self {
            migration_uid: migration_uid.into(),
            stage,
            progress: MoveProgress::default(),
            downtime_ms: None,
            failure: None,
            stopped_at_us: None,
        }
    }
}

/// Stages of a move. Source: Started … Acked. Target: Listening, Resumed. Both: Failed, Cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MoveStage {
    /// Target: QEMU waits for memory.
    Listening,
    /// Source: memory is being copied.
    Copying,
    /// Source: the guest is stopped; waits for Switch.
    Suspended,
    /// Source: QEMU says completed; the right is given up on disk; COMMIT leaves.
    GaveUp,
    /// Target: the guest runs here.
    Resumed,
    /// Source: the target acknowledged; QEMU ends.
    Acked,
    /// It failed; on the source the guest runs again (unless the launcher ended).
    Failed,
    /// It was called off; on the source the guest runs again.
    Cancelled,
}

/// Copy figures of QEMU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct MoveProgress {
    pub iteration: i64,
    pub total_bytes: i64,
    pub remaining_bytes: i64,
    pub transferred_bytes: i64,
    pub dirty_bytes_s: i64,
    pub throttle_pct: i32,
    #[serde(default)]
    pub rate_bytes_s: i64,
    /// The guest writes faster than is copied, and is slowed down as far as it may be.
    #[serde(default)]
    pub not_converging: bool,
}

/// Why a move failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveFailure {
    /// Class of MM §2.7, a CamelCase word.
    pub class: String,
    /// A sentence for people.
    pub text: String,
}
