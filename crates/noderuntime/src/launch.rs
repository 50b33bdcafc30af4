//! What node init and the program that becomes a container agree on.

use std::collections::BTreeMap;
use std::path::PathBuf;

use holdfast_sys::proc::ProcessId;
use serde::{Deserialize, Serialize};

/// Everything needed to turn a process into a container. Written by noderuntime, read by
/// [`crate::podexec`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Launch {
    /// The program on the host; shown read-only at [`PROGRAM_DIR`] inside.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    /// Working directory inside.
    pub work_dir: PathBuf,
    /// User and group.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Own empty network namespace instead of the node's.
    pub isolated_network: bool,
    /// Empty directory on the host that becomes `/`.
    pub root: PathBuf,
    /// Volumes.
    pub mounts: Vec<Mount>,
    /// Termination log: host file, path inside.
    pub termination_log: (PathBuf, PathBuf),
    /// Control group, relative to each hierarchy's root.
    pub cgroup: String,
    /// CPU request in milli-CPUs, if any.
    pub cpu_request_milli: Option<u64>,
    /// Memory limit in bytes, if any.
    pub memory_max_bytes: Option<u64>,
}

/// Directory inside a container that holds its program.
pub const PROGRAM_DIR: &str = "/holdfast/bin";

/// A bind mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mount {
    /// On the host.
    pub source: PathBuf,
    /// Inside.
    pub target: PathBuf,
    /// No writing.
    pub read_only: bool,
}

/// One start of one container: the key under which init knows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StartKey {
    /// Pod uid.
    pub pod_uid: String,
    /// Container name.
    pub container: String,
    /// Number of the start.
    pub attempt: u32,
}

impl StartKey {
    /// File name of the exit record.
    #[must_use]
    pub fn file_name(&self) -> String {
        format!("{}.{}.{}.json", self.pod_uid, self.container, self.attempt)
    }
}

impl std::fmt::Display for StartKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "pod {} container {} start {}", self.pod_uid, self.container, self.attempt)
    }
}

/// A line to init.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Request {
    /// Start a container unless this very start was made already. Answer: its process.
    Start {
        /// Which start.
        key: StartKey,
        /// The [`Launch`] file.
        launch: PathBuf,
        /// File for standard output and error.
        log: PathBuf,
    },
    /// What became of a start.
    Query {
        /// Which start.
        key: StartKey,
    },
    /// The exit has been recorded elsewhere; init need not remember it.
    Forget {
        /// Which start.
        key: StartKey,
    },
}

/// Init's answer line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Answer {
    /// It runs.
    Running {
        /// The process.
        process: ProcessId,
    },
    /// It has ended.
    Exited {
        /// How.
        exit: ExitRecord,
    },
    /// Never started in this boot (or forgotten).
    Unknown,
    /// Could not be started.
    Failed {
        /// Why.
        error: String,
    },
    /// Done (answer to `Forget`).
    Done,
}

/// How a start ended, as init saw it; also the content of the exit file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExitRecord {
    /// Exit code; 128 + signal if a signal ended it.
    pub code: i32,
    /// The signal.
    pub signal: Option<i32>,
    /// RFC 3339 with milliseconds.
    pub finished_at: String,
}
