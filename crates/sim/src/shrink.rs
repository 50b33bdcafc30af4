//! Shrinks a history that fails: leaves out actions and faults, then steps, as long as the same rule is broken.

use std::collections::BTreeSet;

use crate::run::{Options, Outcome, run};

/// A history reduced to what matters.
#[derive(Debug)]
pub struct Shrunk {
    /// How to run it.
    pub options: Options,
    /// What comes of it.
    pub outcome: Outcome,
    /// Actions and faults that are left.
    pub strokes: u64,
    /// Histories that were run to get there.
    pub runs: u32,
}

/// Shrinks the history of `options`, which fails; none when it does not. Runs at most `most` histories.
///
/// # Errors
/// The machine has no room for the files of a history.
pub fn shrink(options: &Options, most: u32) -> std::io::Result<Option<Shrunk>> {
    let outcome = run(options)?;
    let Some(rule) = outcome.violations.first().map(|violation| violation.rule) else { return Ok(None) };
    let mut left: Vec<u64> = (0..outcome.strokes).filter(|n| !options.without.contains(n)).collect();
    let mut best = Shrunk { options: options.clone(), outcome, strokes: 0, runs: 1 };
    let mut size = left.len().div_ceil(2).max(1);
    while !left.is_empty() && best.runs < most {
        let mut smaller = false;
        let mut at = 0;
        while at < left.len() && best.runs < most {
            let chunk: BTreeSet<u64> = left[at..left.len().min(at + size)].iter().copied().collect();
            let mut candidate = best.options.clone();
            candidate.without.extend(&chunk);
            let outcome = run(&candidate)?;
            best.runs += 1;
            if outcome.violations.first().is_some_and(|violation| violation.rule == rule) {
                left.retain(|n| !chunk.contains(n));
                best.options = candidate;
                best.outcome = outcome;
                smaller = true;
            } else {
                at += size;
            }
        }
        if size == 1 && !smaller {
            break;
        }
        size = size.div_ceil(2);
    }
    best.strokes = u64::try_from(left.len()).unwrap_or(u64::MAX);
    fewer_steps(&mut best, rule, most)?;
    Ok(Some(best))
}

/// Ends the storm as early as the rule is still broken.
fn fewer_steps(best: &mut Shrunk, rule: &str, most: u32) -> std::io::Result<()> {
    let (mut too_few, mut enough) = (0, best.options.steps);
    while enough - too_few > 1 + enough / 50 && best.runs < most {
        let steps = too_few.midpoint(enough);
        let candidate = Options { steps, ..best.options.clone() };
        let outcome = run(&candidate)?;
        best.runs += 1;
        if outcome.violations.first().is_some_and(|violation| violation.rule == rule) {
            enough = steps;
            (best.options, best.outcome) = (candidate, outcome);
        } else {
            too_few = steps;
        }
    }
    Ok(())
}
