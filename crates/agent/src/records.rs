//! What can be known for certain about a launcher from its pod's directory and processes, whether or
//! not it still talks: its records, and whether any process of it is left.

use std::io;
use std::path::{Path, PathBuf};

use holdfast_api::names::launcher_pod::RUN_VOLUME;
use holdfast_wire::Id;
use holdfast_wire::launcher::{
    ExitRecord, RECORD_CONTINUING, RECORD_EXIT, RECORD_RIGHT, RECORD_STARTED, SOCKET,
};
use holdfast_wire::peer::Records;

use crate::host::Outside;

/// The pods of one node on disk.
#[derive(Debug, Clone)]
pub struct PodsDir {
    dir: PathBuf,
    outside: Outside,
}

/// What the records in a pod's `run` volume say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OnDisk {
    /// QEMU was, or was about to be, started.
    pub started: bool,
    /// For whom.
    pub served: Option<Id>,
    /// This source gave up its right to run, to this Migration.
    pub gave_up: Option<String>,
    /// This target began to continue the guest of this Migration.
    pub continuing: Option<String>,
    /// How QEMU ended.
    pub exit: Option<ExitRecord>,
}

impl PodsDir {
    /// The pods below `dir`.
    pub fn new(dir: PathBuf, outside: Outside) -> Self {
        Self { dir, outside }
    }

    /// The `run` volume of a pod.
    pub fn run(&self, pod_uid: &str) -> PathBuf {
        self.dir.join(pod_uid).join("volumes/kubernetes.io~empty-dir").join(RUN_VOLUME)
    }

    /// The launcher's socket of a pod.
    pub fn socket(&self, pod_uid: &str) -> PathBuf {
        self.run(pod_uid).join(SOCKET)
    }

    /// Where the agent records the network of the pod's guest.
    pub fn network(&self, pod_uid: &str) -> PathBuf {
        self.dir.join(pod_uid).join("network.json")
    }

    /// A volume of the pod by name, whatever its kind.
    pub fn volume(&self, pod_uid: &str, name: &str) -> Option<PathBuf> {
        let kinds = std::fs::read_dir(self.dir.join(pod_uid).join("volumes")).ok()?;
        kinds.flatten().map(|kind| kind.path().join(name)).find(|path| path.exists())
    }

    /// uids of the pods that have a launcher's `run` volume.
    ///
    /// # Errors
    /// The directory cannot be read; a missing one has no pods.
    pub fn launchers(&self) -> io::Result<Vec<String>> {
        let entries = match std::fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
            other => holdfast_sys::context(other, || format!("read {}", self.dir.display()))?,
        };
        let mut uids: Vec<String> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|uid| self.has(uid))
            .collect();
        uids.sort_unstable();
        Ok(uids)
    }

    /// Whether the pod's directory exists.
    pub fn exists(&self, pod_uid: &str) -> bool {
        self.dir.join(pod_uid).exists()
    }

    /// Whether the pod has a launcher's `run` volume: then a driver follows it.
    pub fn has(&self, pod_uid: &str) -> bool {
        self.run(pod_uid).is_dir()
    }

    /// Reads the records; none when the volume is gone.
    ///
    /// # Errors
    /// The exit record is there and cannot be read.
    pub fn on_disk(&self, pod_uid: &str) -> io::Result<Option<OnDisk>> {
        let run = self.run(pod_uid);
        if !run.is_dir() {
            return Ok(None);
        }
        let has = |name: &str| run.join(name).exists();
        Ok(Some(OnDisk {
            started: has(RECORD_STARTED),
            // Its presence counts; what cannot be read of it is learnt from the pod.
            served: read(&run.join(RECORD_STARTED)).ok().flatten(),
            gave_up: read::<MoveRecord>(&run.join(RECORD_RIGHT))?.map(|record| record.migration_uid),
            continuing: read::<MoveRecord>(&run.join(RECORD_CONTINUING))?.map(|record| record.migration_uid),
            exit: read(&run.join(RECORD_EXIT))?,
        }))
    }

    /// Whether no process of the pod is left. Unknown (`None`) where control groups are not used.
    pub fn is_empty(&self, pod_uid: &str) -> Option<bool> {
        self.outside.host.pod_is_empty(pod_uid)
    }

    /// What another agent may be told about a launcher here. `talks`: it is connected right now.
    pub fn answer(&self, pod_uid: &str, talks: bool) -> Records {
        let on_disk = self.on_disk(pod_uid).ok().flatten();
        let ended = !talks && self.has_ended(pod_uid, on_disk.as_ref());
        let found = on_disk.is_some();
        let on_disk = on_disk.unwrap_or_default();
        Records { ended, continued: on_disk.continuing.is_some(), gave_up: on_disk.gave_up.is_some(), found }
    }

    /// Whether the launcher has ended for good: QEMU had been started or an end was recorded, and
    /// nothing of it is left. A launcher that never got that far has not ended by this rule; its
    /// pod's phase tells.
    pub fn has_ended(&self, pod_uid: &str, on_disk: Option<&OnDisk>) -> bool {
        let past_start = on_disk.is_some_and(|records| records.started || records.exit.is_some());
        if holdfast_env::mutant!("processes-not-looked-at") {
            return past_start;
        }
        past_start && self.is_gone(pod_uid)
    }

    /// Whether nothing of the launcher is left (or nothing was started yet).
    pub fn is_gone(&self, pod_uid: &str) -> bool {
        self.is_empty(pod_uid).unwrap_or(true) && !self.listens(pod_uid)
    }

    /// Whether a process listens at the launcher's socket.
    pub fn listens(&self, pod_uid: &str) -> bool {
        self.outside.sockets.listens(&self.socket(pod_uid))
    }
}

/// What matters here of the records `right` and `continuing`.
#[derive(serde::Deserialize)]
struct MoveRecord {
    migration_uid: String,
}

/// Reads one record; none when it does not exist.
fn read<T: serde::de::DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => holdfast_sys::context(Err(error), || format!("read {}", path.display())),
        Ok(bytes) => {
            holdfast_sys::context(serde_json::from_slice(&bytes), || format!("parse {}", path.display()))
                .map(Some)
        }
    }
}

#[cfg(test)]
mod tests {
    use holdfast_wire::launcher::Cause;

    use std::sync::Arc;

    use holdfast_wire::local::Unix;

    use super::*;
    use crate::host::System;
    use crate::memory::{Node, Underlay};

    /// Real sockets, and no control groups.
    fn pods() -> (tempfile::TempDir, PodsDir) {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::new("n", std::net::Ipv4Addr::LOCALHOST, &Underlay::default());
        let outside =
            Outside { sockets: Arc::new(Unix), host: Arc::new(System::new(None)), ..node.outside() };
        let pods = PodsDir::new(dir.path().to_owned(), outside);
        std::fs::create_dir_all(pods.run("p")).unwrap();
        (dir, pods)
    }

    fn put(pods: &PodsDir, name: &str, text: &str) {
        std::fs::write(pods.run("p").join(name), text).unwrap();
    }

    #[test]
    fn a_launcher_that_never_started_qemu_has_not_ended_by_its_records() {
        let (_dir, pods) = pods();
        assert_eq!(pods.launchers().unwrap(), ["p"]);
        let on_disk = pods.on_disk("p").unwrap().unwrap();
        assert_eq!(on_disk, OnDisk::default());
        assert!(!pods.has_ended("p", Some(&on_disk)), "it may be about to start");
        assert_eq!(pods.on_disk("q").unwrap(), None);
    }

    // MM-F6, MM-F7 (what the target's agent answers)
    #[test]
    fn answers_come_from_the_records() {
        let (_dir, pods) = pods();
        put(&pods, RECORD_STARTED, "{}");
        let answer = |talks| pods.answer("p", talks);
        assert!(!answer(true).ended, "it talks");
        assert!(answer(false).ended && !answer(false).continued);
        put(
            &pods,
            RECORD_CONTINUING,
            r#"{"id":{"instance_uid":"i","epoch":1,"pod_uid":"p"},"migration_uid":"m"}"#,
        );
        assert!(answer(false).continued);
        assert_eq!(pods.on_disk("p").unwrap().unwrap().continuing.as_deref(), Some("m"));
        let unknown = pods.answer("q", false);
        assert!(!unknown.found && !unknown.ended, "no trace proves nothing");
    }

    #[test]
    fn a_socket_that_answers_means_alive() {
        let (_dir, pods) = pods();
        put(&pods, RECORD_STARTED, "{}");
        let listener = holdfast_sys::unixat::bind(&pods.socket("p")).unwrap();
        let on_disk = pods.on_disk("p").unwrap();
        assert!(!pods.has_ended("p", on_disk.as_ref()));
        drop(listener);
        assert!(pods.has_ended("p", on_disk.as_ref()));
    }

    #[test]
    fn the_exit_record_tells_the_cause() {
        let (_dir, pods) = pods();
        let id = Id { instance_uid: "i".into(), epoch: 1, pod_uid: "p".into() };
        let record =
            ExitRecord { id, cause: Cause::GuestShutdown, detail: String::new(), at_ms: 1, ever_ran: true };
        put(&pods, RECORD_EXIT, &serde_json::to_string(&record).unwrap());
        assert_eq!(pods.on_disk("p").unwrap().unwrap().exit, Some(record));
        put(&pods, RECORD_EXIT, "half a rec");
        assert!(pods.on_disk("p").is_err(), "what cannot be read is not guessed");
    }
}
