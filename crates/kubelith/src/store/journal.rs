//! What the in-memory truth needs from a durable medium.

use bytes::Bytes;
use std::sync::Arc;

/// One committed change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Revision of the change; also its place in the log.
    pub rev: u64,
    /// Storage name of the kind (`pods`, `virtualmachines.virtualization.deckhouse.io`).
    pub storage: Arc<str>,
    /// Namespace, empty for cluster-scoped kinds.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// Uid of the object.
    pub uid: Arc<str>,
    /// Whether the object is gone after the change.
    pub deleted: bool,
    /// Revision of the version this one replaces, 0 for a new object.
    pub prev_rev: u64,
    /// The object after the change; for a deletion its last state with the revision of the deletion.
    pub json: Bytes,
    /// Unix time in seconds, only for trimming by age.
    pub at: i64,
}

/// A log row read back at start.
pub type LogEntry = Record;

/// Everything read back at start.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Highest revision ever given out.
    pub rev: u64,
    /// Changes at or below this revision are no longer in the log.
    pub floor: u64,
    /// Live objects: storage name, revision, JSON.
    pub objects: Vec<(Arc<str>, u64, Bytes)>,
    /// Log rows in order of revision; rows at or below `floor` are kept only as predecessors.
    pub log: Vec<LogEntry>,
}

/// Why the medium failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database refused an operation.
    #[error("store {path}: {step}: {source}; check free space and permissions, then start again")]
    Database {
        /// Path of the database.
        path: String,
        /// What was being done.
        step: &'static str,
        /// Cause.
        source: rusqlite::Error,
    },
    /// The file exists but is not ours.
    #[error("store {path}: {why}")]
    Foreign {
        /// Path of the database.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// The medium takes nothing.
    #[error("store: {why}")]
    Refused {
        /// Why.
        why: String,
    },
}

/// A durable medium. One thread uses it.
pub trait Journal: Send {
    /// Reads everything back.
    ///
    /// # Errors
    /// The medium cannot be read.
    fn load(&mut self) -> Result<Loaded, StoreError>;
    /// Makes `records` durable, all or none; durable when it returns.
    ///
    /// # Errors
    /// The medium refused; nothing of `records` is durable then.
    fn append(&mut self, records: &[Record]) -> Result<(), StoreError>;
    /// Forgets log rows older than `before` (Unix seconds), live objects excepted.
    ///
    /// # Errors
    /// The medium refused; trimming is tried again later.
    fn trim(&mut self, before: i64) -> Result<(), StoreError>;
}
