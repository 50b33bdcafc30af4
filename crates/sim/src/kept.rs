//! Kept histories: files that say what was done and when, so that a history can be looked at again when the
//! dice of its seed have long gone another way.
//!
//! ```text
//! # What went wrong, in a sentence.
//! {"seed":7,"steps":900,"nodes":3,"vms":3,"mutant":"late-ack-means-no"}
//! 512 {"plot":{"name":"late-answer","vm":"vm-1","scenes":[...]}}
//! ```
//!
//! The seed still decides the order of messages; deeds that belong to a moment of a move are plots, which find
//! it in any order. `mutant` names the deliberate bug with which the history must still fail, so that it is
//! known to meet what it was kept for; without it every history must end well.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::deed::Deed;
use crate::run::{Options, Outcome, run};
use crate::swarm::Swarm;

/// A history in a file.
#[derive(Clone, Debug)]
pub struct Kept {
    /// What it is about, without the `#`.
    pub about: String,
    /// World and dice.
    pub head: Head,
    /// What is done at which step.
    pub deeds: Vec<(u64, Deed)>,
}

/// What a history is made of besides its deeds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Head {
    /// Order of messages and pauses.
    pub seed: u64,
    /// Steps until everything heals.
    pub steps: u64,
    /// Nodes.
    pub nodes: u8,
    /// VMs at the beginning.
    pub vms: usize,
    /// The deliberate bug with which it must fail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mutant: Option<String>,
    /// Disk images have no locks.
    #[serde(default)]
    pub no_locks: bool,
    /// Few addresses.
    #[serde(default)]
    pub few_addresses: bool,
    /// Steps without a message, of a thousand and of ten thousand: only so that the others stay where they were.
    #[serde(default)]
    pub doing_rate: u64,
    /// The same for faults.
    #[serde(default)]
    pub fault_rate: u64,
}

impl Kept {
    /// What `outcome` of `options` was.
    #[must_use]
    pub fn of(options: &Options, outcome: &Outcome) -> Self {
        let swarm = &outcome.swarm;
        let head = Head {
            seed: options.seed,
            steps: options.steps,
            nodes: options.nodes,
            vms: options.vms,
            mutant: options.mutants.first().cloned(),
            no_locks: swarm.no_locks,
            few_addresses: swarm.few_addresses,
            doing_rate: swarm.doing_rate,
            fault_rate: swarm.fault_rate,
        };
        let broken = outcome.violations.first();
        let about = broken.map_or_else(|| "Nothing went wrong.".to_owned(), ToString::to_string);
        Self { about, head, deeds: outcome.deeds.clone() }
    }

    /// How it is run; with its deliberate bug or without.
    #[must_use]
    pub fn options(&self, with_mutant: bool) -> Options {
        let head = &self.head;
        let swarm = Swarm {
            doings: Vec::new(),
            faults: Vec::new(),
            plots: Vec::new(),
            doing_rate: head.doing_rate,
            fault_rate: head.fault_rate,
            no_locks: head.no_locks,
            few_addresses: head.few_addresses,
        };
        Options {
            steps: head.steps,
            nodes: head.nodes,
            vms: head.vms,
            swarm: Some(swarm),
            mutants: head.mutant.iter().filter(|_| with_mutant).cloned().collect(),
            deeds: Some(self.deeds.clone()),
            ..Options::of(head.seed)
        }
    }

    /// Reads a file's text.
    ///
    /// # Errors
    /// A line that cannot be understood.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let mut about = Vec::new();
        let mut head = None;
        let mut deeds = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            let understood = || format!("line {}: {line:?} is not understood", number + 1);
            if let Some(words) = line.strip_prefix('#') {
                about.push(words.trim());
            } else if line.starts_with('{') {
                head = Some(serde_json::from_str(line).with_context(understood)?);
            } else if let Some((step, deed)) = line.split_once(' ') {
                let step = step.parse().with_context(understood)?;
                deeds.push((step, serde_json::from_str(deed).with_context(understood)?));
            }
        }
        let head = head.context("no line with seed, steps, nodes and vms")?;
        Ok(Self { about: about.join(" "), head, deeds })
    }

    /// As text of a file.
    ///
    /// # Errors
    /// Never, in practice.
    pub fn text(&self) -> serde_json::Result<String> {
        let mut text = format!("# {}\n{}\n", self.about, serde_json::to_string(&self.head)?);
        for (step, deed) in &self.deeds {
            text.extend([step.to_string(), " ".to_owned(), serde_json::to_string(deed)?, "\n".to_owned()]);
        }
        Ok(text)
    }
}

/// Every kept history of a directory, by name.
///
/// # Errors
/// A file cannot be read or understood.
pub fn all(dir: &Path) -> anyhow::Result<Vec<(PathBuf, Kept)>> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>()?;
    let mut found = Vec::new();
    for path in paths.into_iter().filter(|path| path.extension().is_some_and(|end| end == "history")) {
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let kept = Kept::parse(&text).with_context(|| format!("read {}", path.display()))?;
        found.push((path, kept));
    }
    found.sort_by(|one, other| one.0.cmp(&other.0));
    Ok(found)
}

/// Replays one; what is wrong with it, if anything.
///
/// # Errors
/// The machine has no room for the files of a history.
pub fn replay(kept: &Kept) -> std::io::Result<Option<String>> {
    let well = run(&kept.options(false))?;
    if let Some(violation) = well.violations.first() {
        return Ok(Some(format!("fails: {violation}")));
    }
    let Some(mutant) = &kept.head.mutant else { return Ok(None) };
    let bad = run(&kept.options(true))?;
    Ok(bad.violations.is_empty().then(|| {
        format!("does not meet {mutant} any more: keep another history of it (--mutant {mutant} --keep FILE)")
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::{Cue, Plot, Scene};
    use crate::user::Action;

    #[test]
    fn a_history_is_read_as_it_was_written() {
        let head = Head {
            seed: 7,
            steps: 900,
            nodes: 3,
            vms: 2,
            mutant: Some("one".to_owned()),
            no_locks: true,
            few_addresses: false,
            doing_rate: 4,
            fault_rate: 10,
        };
        let cut = Deed::Cut {
            from: "target".to_owned(),
            to: "source".to_owned(),
            both: false,
            ms: 3000,
            resets: false,
        };
        let scene = Scene { when: Cue::Passed("commit_sent".to_owned()), deeds: vec![cut] };
        let plot = Plot { name: "late".to_owned(), vm: "vm-1".to_owned(), scenes: vec![scene] };
        let pin = Deed::User(Action::Pin { vm: "vm-1".to_owned(), node: None });
        let kept = Kept { about: "Why.".to_owned(), head, deeds: vec![(12, Deed::Plot(plot)), (13, pin)] };
        let again = Kept::parse(&kept.text().unwrap()).unwrap();
        assert_eq!((again.about, again.head, again.deeds), (kept.about, kept.head, kept.deeds));
    }

    #[test]
    fn what_is_not_understood_is_shown_with_its_line() {
        let error =
            Kept::parse("# x\n{\"seed\":1,\"steps\":2,\"nodes\":3,\"vms\":3}\n5 {\"kil\":1}").unwrap_err();
        assert!(error.to_string().contains("line 3"), "{error}");
    }
}
