//! How containers end: noticing it, killing, recording, removing what is left.

use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use super::{Worker, names_in};
use crate::launch::{Answer, ExitRecord, Request, StartKey};
use crate::record::{Exit, State};
use crate::time;

/// Longest termination message kept (as Kubernetes does).
const MAX_MESSAGE: u64 = 4096;

impl Worker {
    pub(super) async fn collect_exits(&mut self) -> Result<(), String> {
        for name in names_in(&self.record, |state| matches!(state, State::Running { .. })) {
            if self.processes.get(&name).is_some_and(|fd| !fd.get_ref().has_ended()) {
                continue;
            }
            let Some(State::Running { started_at, .. }) = self.state(&name) else { continue };
            let started_at = started_at.clone();
            let exit = match self.ask(&Request::Query { key: self.key(&name) }).await? {
                Answer::Exited { exit } => exit,
                // Ended this instant and init has not reaped it yet, or a process of init that is
                // not visible here: ask again, never guess.
                Answer::Running { process } if process.is_alive() => continue,
                Answer::Running { .. } => return Err(format!("{name}: waiting for init to reap it")),
                Answer::Unknown | Answer::Failed { .. } | Answer::Done => self
                    .exit_from_file(&name)
                    .unwrap_or_else(|| ExitRecord { code: 137, signal: None, finished_at: time::now() }),
            };
            self.set_exited(&name, &exit, Some(started_at)).await?;
        }
        Ok(())
    }

    pub(super) fn exit_from_file(&self, container: &str) -> Option<ExitRecord> {
        read_exit(&self.shared.dir.exits().join(self.key(container).file_name()))
    }

    /// Records an end, once nothing of the container is left: a QEMU must not outlive the word
    /// "terminated" (INV-1).
    pub(super) async fn set_exited(
        &mut self,
        name: &str,
        exit: &ExitRecord,
        started_at: Option<String>,
    ) -> Result<(), String> {
        self.end_leftovers(name).await?;
        let first = self.is_first(name);
        let message = read_message(&self.dir.termination_log(name, first));
        let oom = exit.signal == Some(9) && self.cgroup(name).is_some_and(|group| group.was_out_of_memory());
        let reason = match (exit.code, oom) {
            (0, _) => "Completed",
            (_, true) => "OOMKilled",
            _ => "Error",
        };
        let exit = Exit {
            code: exit.code,
            signal: exit.signal,
            reason: reason.to_owned(),
            message,
            started_at: started_at.unwrap_or_default(),
            finished_at: exit.finished_at.clone(),
        };
        self.processes.remove(name);
        self.ready.remove(name);
        self.set(name, State::Exited { exit });
        self.save()?;
        let _ = self.ask(&Request::Forget { key: self.key(name) }).await;
        Ok(())
    }

    pub(super) async fn end_leftovers(&self, name: &str) -> Result<(), String> {
        let Some(group) = self.cgroup(name) else { return Ok(()) };
        let text = |error: std::io::Error| error.to_string();
        for _ in 0..400 {
            if group.is_empty().map_err(text)? {
                return Ok(());
            }
            group.kill().map_err(text)?;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Err(format!("container {name}: processes survive SIGKILL"))
    }

    pub(super) async fn kill(&mut self) -> Result<(), String> {
        self.signal(Signal::KILL);
        for name in names_in(&self.record, |state| matches!(state, State::Running { .. } | State::Starting)) {
            self.end_leftovers(&name).await?;
            if let Some(process) = self.processes.get(&name) {
                let limit = Duration::from_secs(5);
                let _ = tokio::time::timeout(limit, process.readable()).await;
            }
        }
        Ok(())
    }

    pub(super) fn forget(&mut self) -> Result<(), String> {
        let text = |error: std::io::Error| error.to_string();
        for name in self.record.containers.keys() {
            if let Some(group) = self.cgroup(name) {
                group.remove().map_err(text)?;
            }
        }
        let parent = format!("{}/{}", self.shared.config.cgroup, self.record.uid);
        if let Some(group) = self.shared.cgroups.open(&parent) {
            group.remove().map_err(text)?;
        }
        remove_dir(self.dir.path()).map_err(text)?;
        for (name, container) in &self.record.containers {
            for attempt in 0..=container.attempt {
                let key = StartKey { attempt, ..self.key(name) };
                let _ = std::fs::remove_file(self.shared.dir.exits().join(key.file_name()));
            }
        }
        // Last: as long as the record is there a crash here is repaired.
        holdfast_sys::durable::remove(&self.shared.dir.record(&self.record.uid)).map_err(text)
    }
}

pub(super) fn read_exit(path: &Path) -> Option<ExitRecord> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

fn read_message(path: &Path) -> String {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    if let Ok(file) = std::fs::File::open(path) {
        let _ = file.take(MAX_MESSAGE).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn remove_dir(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            holdfast_sys::context(Err(error), || format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
