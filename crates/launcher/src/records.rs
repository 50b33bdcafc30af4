//! Records: small files in the pod's `run` volume that outlive the launcher and decide what a crash meant.
//!
//! Each is written to a temporary file, synced, renamed, and its directory is synced (spec
//! migration-and-maintenance.md §2.4). Their names are in [`holdfast_wire::launcher`].

use std::io;
use std::path::PathBuf;

use holdfast_wire::Id;
use holdfast_wire::launcher::{ExitRecord, RECORD_CONTINUING, RECORD_EXIT, RECORD_RIGHT, RECORD_STARTED};
use serde::{Deserialize, Serialize};

/// Content of the records `right` and `continuing`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveRecord {
    /// Whose record it is.
    pub id: Id,
    /// The Migration it speaks of.
    pub migration_uid: String,
}

/// The records of one launcher.
#[derive(Clone, Debug)]
pub struct Records {
    dir: PathBuf,
}

impl Records {
    /// Records in this directory.
    pub fn new(dir: impl Into<PathBuf>) -> Records {
        Records { dir: dir.into() }
    }

    fn write(&self, name: &str, content: &impl Serialize) -> io::Result<()> {
        let bytes = serde_json::to_vec(content)?;
        holdfast_sys::durable::write(&self.dir.join(name), &bytes, 0o644)
    }

    /// QEMU is about to be started.
    pub fn started(&self, id: &Id) -> io::Result<()> {
        self.write(RECORD_STARTED, id)
    }

    /// Whether a QEMU was ever about to be started in this directory.
    pub fn was_started(&self) -> bool {
        self.dir.join(RECORD_STARTED).exists()
    }

    /// Source: the right to run is given up.
    pub fn give_up(&self, id: &Id, migration_uid: &str) -> io::Result<()> {
        self.write(RECORD_RIGHT, &MoveRecord { id: id.clone(), migration_uid: migration_uid.to_owned() })
    }

    /// Source: the target is known never to run; the right is back.
    pub fn regain(&self) -> io::Result<()> {
        holdfast_sys::durable::remove(&self.dir.join(RECORD_RIGHT))
    }

    /// Target: the guest is about to continue here.
    pub fn continuing(&self, id: &Id, migration_uid: &str) -> io::Result<()> {
        self.write(RECORD_CONTINUING, &MoveRecord { id: id.clone(), migration_uid: migration_uid.to_owned() })
    }

    /// Target: QEMU refused to continue and has ended.
    pub fn never_continued(&self) -> io::Result<()> {
        holdfast_sys::durable::remove(&self.dir.join(RECORD_CONTINUING))
    }

    /// How it ended.
    pub fn exit(&self, record: &ExitRecord) -> io::Result<()> {
        self.write(RECORD_EXIT, record)
    }

    /// The exit record, if there is one.
    pub fn read_exit(&self) -> Option<ExitRecord> {
        let bytes = std::fs::read(self.dir.join(RECORD_EXIT)).ok()?;
        serde_json::from_slice(&bytes).ok()
    }
}
