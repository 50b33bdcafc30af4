//! Many seeds on several cores: every seed in a process of its own, so that no history knows of another.

use std::ops::Range;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use anyhow::Context as _;
use holdfast_sim::mutants::Mutant;
use parking_lot::Mutex;

/// What came of some seeds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Seeds that were run.
    pub seeds: u64,
    /// Steps of all of them.
    pub steps: u64,
    /// Completed moves.
    pub moves: u64,
    /// Seeds that failed.
    pub failed: u64,
}

impl std::ops::AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.seeds += other.seeds;
        self.steps += other.steps;
        self.moves += other.moves;
        self.failed += other.failed;
    }
}

impl Totals {
    /// The closing line.
    pub fn line(&self, seconds: f64) -> String {
        let Self { seeds, steps, moves, failed } = self;
        #[expect(clippy::cast_precision_loss, reason = "steps are far fewer than 2^52")]
        let rate = *steps as f64 / seconds.max(0.001);
        format!("{seeds} seeds, {steps} steps, {moves} moves, {rate:.0} steps/s, {failed} failed")
    }

    /// Reads a closing line.
    fn parse(line: &str) -> Option<Self> {
        let mut numbers = line.split(", ").map(|part| part.split(' ').next()?.parse().ok());
        let mut next = || numbers.next()?;
        let (seeds, steps, moves) = (next()?, next()?, next()?);
        next()?;
        Some(Self { seeds, steps, moves, failed: next()? })
    }
}

/// Runs the seeds in `jobs` processes at a time and shows what each of them says.
///
/// # Errors
/// This program cannot be started again.
pub fn run(seeds: Range<u64>, jobs: usize) -> anyhow::Result<Totals> {
    let next = AtomicU64::new(seeds.start);
    let totals = Mutex::new(Totals::default());
    std::thread::scope(|scope| {
        let work = || -> anyhow::Result<()> {
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if !seeds.contains(&seed) {
                    return Ok(());
                }
                let (said, of_seed) = one(seed)?;
                let mut totals = totals.lock();
                print!("{said}");
                *totals += of_seed;
            }
        };
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| match worker.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })?;
    Ok(totals.into_inner())
}

/// Looks for these mutants, each in a process of its own; how many are not found although they should be.
///
/// # Errors
/// This program cannot be started again.
pub fn mutants(all: &[&Mutant], jobs: usize) -> anyhow::Result<u64> {
    let next = AtomicUsize::new(0);
    let missed = AtomicU64::new(0);
    let program = std::env::current_exe().context("find this program's file")?;
    let work = || -> anyhow::Result<()> {
        while let Some(mutant) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut command = Command::new(&program);
            command.args(["--mutants", "--mutant", mutant.name]).stdin(Stdio::null());
            let output = command.stderr(Stdio::inherit()).output();
            let output = output.with_context(|| format!("start a process for {}", mutant.name))?;
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            // The closing line is about all of them.
            println!("{}", said.trim_end().rsplit_once('\n').map_or(&*said, |(line, _)| line));
            missed.fetch_add(u64::from(!output.status.success()), Ordering::Relaxed);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| match worker.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })?;
    Ok(missed.into_inner())
}

/// One seed: what its process said but for the closing line, and that.
fn one(seed: u64) -> anyhow::Result<(String, Totals)> {
    let program = std::env::current_exe().context("find this program's file")?;
    let mut command = Command::new(program);
    command.args(for_one(std::env::args().skip(1), seed)).stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = command.output().with_context(|| format!("start a process for seed {seed}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (said, last) = text.trim_end().rsplit_once('\n').unwrap_or(("", text.trim_end()));
    Ok(match Totals::parse(last) {
        Some(totals) => (format!("{said}\n"), totals),
        None => {
            let said = format!("{text}seed {seed}: its process ended early, with {}\n", output.status);
            (said, Totals { seeds: 1, failed: 1, ..Totals::default() })
        }
    })
}

/// The arguments of this program, for one seed and without jobs.
fn for_one(all: impl Iterator<Item = String>, seed: u64) -> Vec<String> {
    let mut kept = vec!["--seed".to_owned(), seed.to_string()];
    let mut is_value = false;
    for argument in all {
        let name = argument.split('=').next().unwrap_or_default();
        let ours = matches!(name, "--seed" | "--seeds" | "--jobs");
        if !ours && !is_value {
            kept.push(argument.clone());
        }
        is_value = ours && !argument.contains('=');
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_read_back() {
        let totals = Totals { seeds: 1, steps: 5230, moves: 4, failed: 0 };
        assert_eq!(Totals::parse(&totals.line(0.5)), Some(totals));
        assert_eq!(Totals::parse("seed 4: 300 steps"), None);
    }

    #[test]
    fn a_process_gets_its_seed_and_all_other_arguments() {
        let all = ["--seeds=9", "--vms", "4", "--seed", "7", "--twice", "--jobs", "2", "--lines=5"];
        let kept = for_one(all.map(str::to_owned).into_iter(), 8);
        assert_eq!(kept, ["--seed", "8", "--vms", "4", "--twice", "--lines=5"]);
    }
}
