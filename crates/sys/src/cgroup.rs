//! Control groups: v2, the hybrid layout's v2 mount, or v1; everything degrades where there is none.
//!
//! Membership (who belongs to a pod, is anything left, kill all) comes from the v2 mount if there is
//! one, else from the v1 `pids`, `freezer` or `memory` hierarchy. Limits are written wherever their
//! controller lives, best effort: a machine without them still runs guests.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::pidfd::PidFd;
use crate::{context, other};

/// v1 hierarchies a group joins when they are mounted.
const V1: [&str; 4] = ["pids", "cpu", "memory", "freezer"];

/// Where control groups are mounted on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hierarchies {
    v2: Option<PathBuf>,
    v1: Vec<(String, PathBuf)>,
}

impl Hierarchies {
    /// Reads `/proc/self/mounts`. Nothing mounted gives an empty, still usable value.
    #[must_use]
    pub fn detect() -> Self {
        Self::parse(&std::fs::read_to_string("/proc/self/mounts").unwrap_or_default())
    }

    fn parse(mounts: &str) -> Self {
        let mut found = Self::default();
        for line in mounts.lines() {
            let fields: Vec<&str> = line.split(' ').collect();
            let [_, target, kind, options, ..] = fields[..] else { continue };
            if kind == "cgroup2" && found.v2.is_none() {
                found.v2 = Some(PathBuf::from(target));
            }
            if kind == "cgroup" {
                for name in V1 {
                    let seen = found.v1.iter().any(|(known, _)| known == name);
                    if !seen && options.split(',').any(|option| option == name) {
                        found.v1.push((name.to_owned(), PathBuf::from(target)));
                    }
                }
            }
        }
        found
    }

    /// Whether groups can be made at all. Without, membership is unknown and callers fall back to
    /// process trees.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.v2.is_some() || !self.v1.is_empty()
    }

    /// Creates (or opens) the group `path`, relative to the root of every hierarchy.
    ///
    /// # Errors
    /// When no hierarchy lets the group be made although some are mounted.
    pub fn create(&self, path: &str) -> io::Result<Cgroup> {
        let group = self.group(path);
        let mut made = 0;
        let mut last = None;
        for dir in group.v2.iter().chain(group.v1.iter().map(|(_, dir)| dir)) {
            match std::fs::create_dir_all(dir) {
                Ok(()) => made += 1,
                Err(error) => last = Some(error),
            }
        }
        match last {
            Some(error) if made == 0 => context(Err(error), || format!("create cgroup {path}")),
            _ => Ok(Cgroup {
                v2: group.v2.filter(|dir| dir.is_dir()),
                v1: group.v1.into_iter().filter(|(_, dir)| dir.is_dir()).collect(),
            }),
        }
    }

    /// The group `path` if it exists anywhere.
    #[must_use]
    pub fn open(&self, path: &str) -> Option<Cgroup> {
        let group = self.group(path);
        let group = Cgroup {
            v2: group.v2.filter(|dir| dir.is_dir()),
            v1: group.v1.into_iter().filter(|(_, dir)| dir.is_dir()).collect(),
        };
        group.is_real().then_some(group)
    }

    fn group(&self, path: &str) -> Cgroup {
        let path = path.trim_matches('/');
        Cgroup {
            v2: self.v2.as_ref().map(|root| root.join(path)),
            v1: self.v1.iter().map(|(name, root)| (name.clone(), root.join(path))).collect(),
        }
    }
}

/// One group, in all hierarchies that have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    v2: Option<PathBuf>,
    v1: Vec<(String, PathBuf)>,
}

impl Cgroup {
    /// Whether it exists in any hierarchy; otherwise every call is a no-op.
    #[must_use]
    pub fn is_real(&self) -> bool {
        self.v2.is_some() || !self.v1.is_empty()
    }

    fn dirs(&self) -> impl Iterator<Item = &PathBuf> {
        self.v2.iter().chain(self.v1.iter().map(|(_, dir)| dir))
    }

    /// Opened `cgroup.procs` files for [`crate::spawn::Command::cgroup`].
    ///
    /// # Errors
    /// With the path.
    pub fn entrances(&self) -> io::Result<Vec<File>> {
        self.dirs().map(|dir| open_for_write(&dir.join("cgroup.procs"))).collect()
    }

    /// Moves a running process in.
    ///
    /// # Errors
    /// When a hierarchy refuses it.
    pub fn add(&self, pid: u32) -> io::Result<()> {
        for dir in self.dirs() {
            write(&dir.join("cgroup.procs"), &pid.to_string())?;
        }
        Ok(())
    }

    /// The processes in the group and below, in the caller's PID namespace (others appear as none).
    ///
    /// # Errors
    /// When the kernel refuses to list them.
    pub fn processes(&self) -> io::Result<Vec<u32>> {
        let Some(dir) = self.dirs().next() else { return Ok(Vec::new()) };
        let mut pids = Vec::new();
        collect(dir, &mut pids)?;
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Whether no process is left in the group and below; a removed group is empty.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn is_empty(&self) -> io::Result<bool> {
        if let Some(dir) = &self.v2 {
            match std::fs::read_to_string(dir.join("cgroup.events")) {
                Ok(text) => return Ok(!text.lines().any(|line| line == "populated 1")),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
                Err(_) => {}
            }
        }
        let Some(dir) = self.dirs().next() else { return Ok(true) };
        Ok(!any_process(dir)?)
    }

    /// Kills every process in the group and below, in one step on v2, else until none is left.
    ///
    /// # Errors
    /// When processes are left after one second.
    pub fn kill(&self) -> io::Result<()> {
        if let Some(dir) = &self.v2 {
            let file = dir.join("cgroup.kill");
            if file.exists() {
                return write(&file, "1");
            }
        }
        let deadline = Instant::now() + Duration::from_secs(1);
        loop {
            let pids = self.processes()?;
            if pids.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(other(format!("{} processes survive the kill", pids.len())));
            }
            for pid in pids {
                if let Ok(process) = PidFd::open(pid) {
                    process.signal(Signal::KILL)?;
                    process.wait(Duration::from_millis(100))?;
                }
            }
        }
    }

    /// Share of CPU time under contention in milli-CPUs requested. Best effort; `false` when no
    /// hierarchy has a CPU controller.
    #[must_use]
    pub fn set_cpu_request(&self, milli: u64) -> bool {
        let shares = (milli * 1024 / 1000).clamp(2, 262_144);
        // The conversion kubelet uses between the ranges of v1 shares and v2 weights.
        let weight = (1 + (shares - 2) * 9999 / 262_142).clamp(1, 10_000);
        self.limit("cpu", "cpu.shares", &shares.to_string(), "cpu.weight", &weight.to_string())
    }

    /// Hard memory limit in bytes. Best effort.
    #[must_use]
    pub fn set_memory_max(&self, bytes: u64) -> bool {
        let value = bytes.to_string();
        self.limit("memory", "memory.limit_in_bytes", &value, "memory.max", &value)
    }

    /// Most tasks. Best effort.
    #[must_use]
    pub fn set_tasks_max(&self, tasks: u64) -> bool {
        let value = tasks.to_string();
        self.limit("pids", "pids.max", &value, "pids.max", &value)
    }

    fn limit(&self, controller: &str, v1: &str, v1_value: &str, v2: &str, v2_value: &str) -> bool {
        let old = self.v1.iter().find(|(name, _)| name == controller);
        if let Some((_, dir)) = old {
            return write(&dir.join(v1), v1_value).is_ok();
        }
        self.v2.as_ref().is_some_and(|dir| write(&dir.join(v2), v2_value).is_ok())
    }

    /// Whether the kernel killed a process of the group for want of memory. Best effort.
    #[must_use]
    pub fn was_out_of_memory(&self) -> bool {
        let count = |path: PathBuf, key: &str| {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
            line.and_then(|number| number.parse::<u64>().ok()).unwrap_or(0)
        };
        let old = self.v1.iter().find(|(name, _)| name == "memory");
        old.is_some_and(|(_, dir)| count(dir.join("memory.oom_control"), "oom_kill ") > 0)
            || self.v2.as_ref().is_some_and(|dir| count(dir.join("memory.events"), "oom_kill ") > 0)
    }

    /// Removes the group and what is below it. A missing group is success.
    ///
    /// # Errors
    /// `ResourceBusy` while processes are left.
    pub fn remove(&self) -> io::Result<()> {
        for dir in self.dirs() {
            remove_tree(dir)?;
        }
        Ok(())
    }
}

fn collect(dir: &Path, pids: &mut Vec<u32>) -> io::Result<()> {
    let text = match std::fs::read_to_string(dir.join("cgroup.procs")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()).filter(|pid| *pid != 0));
    for child in subdirs(dir)? {
        collect(&child, pids)?;
    }
    Ok(())
}

fn any_process(dir: &Path) -> io::Result<bool> {
    // Processes of other PID namespaces are listed as 0: they count here.
    match std::fs::read_to_string(dir.join("cgroup.procs")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
        Ok(text) if !text.trim().is_empty() => return Ok(true),
        Ok(_) => {}
    }
    for child in subdirs(dir)? {
        if any_process(&child)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn subdirs(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
        Ok(entries) => Ok(entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect()),
    }
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    for child in subdirs(dir)? {
        remove_tree(&child)?;
    }
    match std::fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            context(Err(error), || format!("remove cgroup {}", dir.display()))
        }
        _ => Ok(()),
    }
}

fn open_for_write(path: &Path) -> io::Result<File> {
    context(OpenOptions::new().write(true).open(path), || format!("open {}", path.display()))
}

fn write(path: &Path, value: &str) -> io::Result<()> {
    context(std::fs::write(path, value), || format!("write {value} to {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spawn::Command;

    #[test]
    fn layouts_are_recognised() {
        let hybrid = "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup /sys/fs/cgroup/pids cgroup rw,relatime,pids 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let found = Hierarchies::parse(hybrid);
        assert_eq!(found.v2, Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(found.v1.len(), 2);
        assert!(found.is_usable());
        assert!(!Hierarchies::parse("proc /proc proc rw 0 0\n").is_usable());
    }

    #[test]
    fn without_hierarchies_everything_is_a_no_op() {
        let group = Hierarchies::default().create("x/y").unwrap();
        assert!(!group.is_real());
        assert!(group.is_empty().unwrap());
        group.kill().unwrap();
        assert!(!group.set_memory_max(1));
        group.remove().unwrap();
    }

    fn kill_all_in(hierarchies: &Hierarchies) {
        let name = format!("holdfast-test-{}-{:?}", std::process::id(), std::thread::current().id());
        let Ok(group) = hierarchies.create(&name.replace(['(', ')'], "")) else { return };
        let mut command = Command::new("sh").args(["-c", "sleep 60 & wait"]);
        for file in group.entrances().unwrap() {
            command = command.cgroup(file);
        }
        let mut child = command.spawn().unwrap();
        assert!(!group.is_empty().unwrap());
        assert!(group.processes().unwrap().contains(&child.id.pid));
        group.kill().unwrap();
        child.std.wait().unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        while !group.is_empty().unwrap() {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
        group.remove().unwrap();
        assert!(group.is_empty().unwrap());
    }

    #[test]
    fn kill_takes_children_of_children_too() {
        let all = Hierarchies::detect();
        if !rustix::process::geteuid().is_root() || !all.is_usable() {
            return;
        }
        kill_all_in(&all);
        kill_all_in(&Hierarchies { v2: None, ..all });
    }
}
