//! Memory of a home's processes, by kind.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use crate::{Home, leaks};

/// Memory of processes of one kind, KiB.
#[derive(Clone, Copy, Debug, Default)]
pub struct Use {
    /// How many processes.
    pub count: u64,
    /// `VmRSS`: pages of the program's file count once for each process.
    pub rss_kib: u64,
    /// Part of it that is no file.
    pub anonymous_kib: u64,
    /// `Pss`: a shared page counts in parts, so that the sum is what the machine really spends.
    pub pss_kib: u64,
}

impl Use {
    /// Adds up.
    pub fn add(&mut self, other: Use) {
        self.count += other.count;
        self.rss_kib += other.rss_kib;
        self.anonymous_kib += other.anonymous_kib;
        self.pss_kib += other.pss_kib;
    }
}

/// Memory by kind of process. QEMU and the user's own commands are not the platform.
pub fn platform(home: &Home) -> Result<BTreeMap<String, Use>> {
    let id = home.facts()?["id"].as_str().context("home.json has no id")?.to_owned();
    let mut kinds: BTreeMap<String, Use> = BTreeMap::new();
    for (pid, _) in leaks::processes(home.path(), &id) {
        // It may have ended since.
        if let (Some(kind), Ok(used)) = (kind(pid), of(pid)) {
            kinds.entry(kind).or_default().add(used);
        }
    }
    Ok(kinds)
}

/// `agent` of `holdfast agent …`, `holdfast-launcher` of that program; nothing for other programs.
fn kind(pid: i32) -> Option<String> {
    let raw = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut words = raw.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).into_owned());
    let program = words.next()?;
    let name = program.rsplit('/').next()?;
    match name {
        "holdfast" | "holdfast-keeper" | "holdfast-node" => Some(format!("{name} {}", words.next()?)),
        _ if name.starts_with("holdfast-") => Some(name.to_owned()),
        _ => None,
    }
}

/// Memory of one process.
pub fn of(pid: i32) -> Result<Use> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    Ok(Use {
        count: 1,
        rss_kib: kib(&status, "VmRSS:").context("it has no memory")?,
        anonymous_kib: kib(&status, "RssAnon:").unwrap_or_default(),
        pss_kib: kib(&rollup, "Pss:").unwrap_or_default(),
    })
}

fn kib(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find(|l| l.starts_with(key))?;
    line.split_whitespace().nth(1)?.parse().ok()
}
