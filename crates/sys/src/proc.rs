//! Processes as `/proc` shows them. Identity is pid **and** start time: pids are reused.

use std::io;

use serde::{Deserialize, Serialize};

use crate::pidfd::PidFd;

/// One process for ever: its pid in the caller's PID namespace and its start time in clock ticks
/// since boot (field 22 of `/proc/<pid>/stat`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessId {
    /// Process number.
    pub pid: u32,
    /// Clock ticks from boot to the start of the process.
    pub start_time: u64,
}

impl ProcessId {
    /// The process that has `pid` now; `None` when there is none or only its zombie.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        let stat = stat(pid)?;
        (!stat.is_dead()).then_some(Self { pid, start_time: stat.start_time })
    }

    /// The calling process.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn own() -> io::Result<Self> {
        Self::of(std::process::id()).ok_or_else(|| crate::other("/proc is not mounted here"))
    }

    /// Whether this very process still runs (zombies do not).
    #[must_use]
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }

    /// Opens this very process; `None` when it has ended, whoever has its pid now.
    #[must_use]
    pub fn open(&self) -> Option<PidFd> {
        let fd = PidFd::open(self.pid).ok()?;
        // Checked after opening: from here on the descriptor cannot change its process.
        self.is_alive().then_some(fd)
    }
}

/// What `/proc/<pid>/stat` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// State letter: `R`, `S`, `Z`, …
    pub state: char,
    /// Parent's pid.
    pub parent: u32,
    /// Clock ticks from boot to start.
    pub start_time: u64,
}

impl Stat {
    /// Ended, though perhaps not reaped yet.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }
}

/// Reads `/proc/<pid>/stat`; `None` when the process is gone.
#[must_use]
pub fn stat(pid: u32) -> Option<Stat> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The name stands in parentheses and may itself hold spaces and parentheses.
    let fields: Vec<&str> = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace().collect();
    Some(Stat {
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        start_time: fields.get(19)?.parse().ok()?,
    })
}

/// All processes of the PID namespace `/proc` belongs to, without zombies.
///
/// # Errors
/// When `/proc` is not mounted.
pub fn list() -> io::Result<Vec<ProcessId>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let pid = entry?.file_name().to_str().and_then(|name| name.parse().ok());
        found.extend(pid.and_then(ProcessId::of));
    }
    found.sort_unstable();
    Ok(found)
}

/// The command line of a process; empty when it is gone, a zombie or a kernel thread.
#[must_use]
pub fn command_line(pid: u32) -> Vec<String> {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes
        .split(|byte| *byte == 0)
        .filter(|part| !part.is_empty())
        .map(|part| String::from_utf8_lossy(part).into_owned())
        .collect()
}

/// Resident memory in KiB (`VmRSS`); `None` when the process is gone.
#[must_use]
pub fn resident_kib(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// Direct children of a process, without zombies.
///
/// # Errors
/// When `/proc` is not mounted.
pub fn children(pid: u32) -> io::Result<Vec<ProcessId>> {
    let mut all = list()?;
    all.retain(|process| stat(process.pid).is_some_and(|stat| stat.parent == pid));
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_spaces_and_parentheses_are_parsed() {
        let text = "42 (a) b (c)) S 7 42 42 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 987654 1 1";
        let stat = parse_stat(text).unwrap();
        assert_eq!(stat, Stat { state: 'S', parent: 7, start_time: 987_654 });
        assert!(parse_stat("42 (a").is_none());
    }

    #[test]
    fn own_process_is_alive_and_a_reused_pid_is_not() {
        let own = ProcessId::own().unwrap();
        assert!(own.is_alive());
        assert!(own.open().is_some());
        let other = ProcessId { start_time: own.start_time + 1, ..own };
        assert!(!other.is_alive());
        assert!(other.open().is_none());
        assert!(list().unwrap().contains(&own));
    }

    #[test]
    fn a_zombie_is_dead() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        PidFd::open(child.id()).unwrap().wait(std::time::Duration::from_secs(5)).unwrap();
        assert_eq!(ProcessId::of(child.id()), None);
        child.wait().unwrap();
    }
}
