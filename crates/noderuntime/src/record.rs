//! What the node runtime knows about a pod, on disk before and after every step that could be lost.
//!
//! A container start is identified by (pod uid, container, attempt). `Starting` is written before
//! init is asked; init answers the same start twice with the same process, so a crash between any
//! two lines neither loses nor doubles one.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use holdfast_sys::durable;
use holdfast_sys::proc::ProcessId;
use serde::{Deserialize, Serialize};

use crate::launch::ExitRecord;

/// Record of one pod, `runtime/<uid>.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodRecord {
    /// Pod uid.
    pub uid: String,
    /// Pod namespace.
    pub namespace: String,
    /// Pod name.
    pub name: String,
    /// Boot of the node in which the containers below were started.
    pub boot_id: String,
    /// When this node accepted the pod, RFC 3339.
    pub start_time: String,
    /// Seconds between SIGTERM and SIGKILL if the pod object vanishes before the runtime saw one.
    pub grace_s: i64,
    /// When SIGTERM was sent, milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term_sent_ms: Option<i64>,
    /// By container name.
    pub containers: BTreeMap<String, ContainerRecord>,
}

/// One container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerRecord {
    /// Number of the present (or next) start, from 0; equals the restart count.
    pub attempt: u32,
    /// Where the present start stands.
    pub state: State,
    /// How the start before ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Exit>,
}

impl ContainerRecord {
    /// Before its first start.
    #[must_use]
    pub fn new() -> Self {
        Self { attempt: 0, state: State::Waiting { not_before_ms: 0 }, last: None }
    }
}

impl Default for ContainerRecord {
    fn default() -> Self {
        Self::new()
    }
}

/// Where a start stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum State {
    /// Not asked for yet.
    Waiting {
        /// Back-off: not before this instant, milliseconds since 1970.
        not_before_ms: i64,
    },
    /// Init was, or is about to be, asked.
    Starting,
    /// Init started it.
    Running {
        /// The process, in the node's PID namespace.
        process: ProcessId,
        /// RFC 3339.
        started_at: String,
    },
    /// It has ended.
    Exited {
        /// How.
        exit: Exit,
    },
}

/// How a start ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exit {
    /// Exit code; 128 + signal if a signal ended it.
    pub code: i32,
    /// The signal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// `Completed`, `Error`, `NodeRestarted`, …
    pub reason: String,
    /// Content of the termination log.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// RFC 3339; empty if it never ran.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub started_at: String,
    /// RFC 3339.
    pub finished_at: String,
}

impl PodRecord {
    /// Reads a record; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be read or is not a record: the pod's processes would be unknown, so nothing
    /// must be started for it.
    pub fn load(path: &Path) -> io::Result<Option<Self>> {
        let bytes = match std::fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", path.display()))
        })
    }

    /// Writes the record durably.
    ///
    /// # Errors
    /// With the path.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        durable::write(path, &serde_json::to_vec_pretty(self)?, 0o600)
    }

    /// Any container that runs or may run.
    #[must_use]
    pub fn may_have_processes(&self) -> bool {
        self.containers.values().any(|c| matches!(c.state, State::Starting | State::Running { .. }))
    }

    /// After a new boot of the node: everything of the boot before is gone with its PID namespace.
    /// `exit_of` gives what the init of that boot wrote about a start before it ended. Returns whether
    /// anything changed.
    pub fn enter_boot(
        &mut self,
        boot_id: &str,
        now: &str,
        exit_of: impl Fn(&str, u32) -> Option<ExitRecord>,
    ) -> bool {
        if self.boot_id == boot_id {
            return false;
        }
        boot_id.clone_into(&mut self.boot_id);
        for (name, container) in &mut self.containers {
            let started_at = match &container.state {
                State::Starting => String::new(),
                State::Running { started_at, .. } => started_at.clone(),
                State::Waiting { .. } | State::Exited { .. } => continue,
            };
            let exit = match exit_of(name, container.attempt) {
                Some(known) => Exit {
                    reason: if known.code == 0 { "Completed" } else { "Error" }.to_owned(),
                    message: String::new(),
                    code: known.code,
                    signal: known.signal,
                    started_at,
                    finished_at: known.finished_at,
                },
                None => Exit {
                    code: 137,
                    signal: Some(9),
                    reason: "NodeRestarted".to_owned(),
                    message: "the node was powered off while the container ran".to_owned(),
                    started_at,
                    finished_at: now.to_owned(),
                },
            };
            container.state = State::Exited { exit };
        }
        true
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn record(state: State) -> PodRecord {
        let container = ContainerRecord { attempt: 0, state, last: None };
        PodRecord {
            uid: "u1".to_owned(),
            namespace: "default".to_owned(),
            name: "p".to_owned(),
            boot_id: "b1".to_owned(),
            start_time: "2026-01-01T00:00:00Z".to_owned(),
            grace_s: 30,
            term_sent_ms: None,
            containers: BTreeMap::from([("compute".to_owned(), container)]),
        }
    }

    pub(crate) fn running() -> State {
        State::Running {
            process: ProcessId { pid: 7, start_time: 70 },
            started_at: "2026-01-01T00:00:01Z".to_owned(),
        }
    }

    #[test]
    fn record_survives_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("u1.json");
        assert_eq!(PodRecord::load(&path).unwrap(), None);
        for state in [State::Waiting { not_before_ms: 5 }, State::Starting, running()] {
            let record = record(state);
            record.save(&path).unwrap();
            assert_eq!(PodRecord::load(&path).unwrap(), Some(record));
        }
        std::fs::write(&path, b"{").unwrap();
        assert!(PodRecord::load(&path).is_err());
    }

    #[test]
    fn a_new_boot_ends_what_ran_and_nothing_else() {
        for (state, ended) in
            [(running(), true), (State::Starting, true), (State::Waiting { not_before_ms: 0 }, false)]
        {
            let mut record = record(state.clone());
            assert!(!record.enter_boot("b1", "now", |_, _| None));
            assert!(record.enter_boot("b2", "now", |_, _| None));
            let now = &record.containers["compute"].state;
            assert_eq!(matches!(now, State::Exited { .. }), ended, "{state:?}");
            assert!(!record.may_have_processes());
        }
    }

    #[test]
    fn what_the_init_of_the_boot_before_wrote_is_the_truth() {
        let known = ExitRecord { code: 0, signal: None, finished_at: "then".to_owned() };
        let mut record = record(running());
        assert!(record.enter_boot("b2", "now", |name, attempt| {
            assert_eq!((name, attempt), ("compute", 0));
            Some(known.clone())
        }));
        let State::Exited { exit } = &record.containers["compute"].state else { panic!("not ended") };
        assert_eq!((exit.code, exit.reason.as_str(), exit.finished_at.as_str()), (0, "Completed", "then"));
    }
}
