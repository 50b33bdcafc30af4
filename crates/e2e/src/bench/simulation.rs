//! Speed and scale of the simulation, measured by its own program (docs/simulation.md).

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::report::Figure;
use crate::home::ok;

/// A million steps within this: 20,000 a second.
const GOAL_MILLION_S: f64 = 50.0;
/// Nodes and VMs of the large cluster: a size that takes a minute or two.
const SCALE: [&str; 4] = ["--nodes", "50", "--vms", "1000"];

/// The program, if it is built.
pub fn program() -> Option<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"));
    Some(target.join("release/holdfast-sim")).filter(|program| program.exists())
}

/// Steps a second of histories with 5 nodes and 20 VMs, on one core.
pub fn speed(program: &Path) -> Result<Figure> {
    let seeds = ["--seed", "1", "--seeds", "4", "--nodes", "5", "--vms", "20"];
    let said = ok(Command::new(program).args(seeds))?;
    let rate = said.lines().last().and_then(rate_of);
    let rate = rate.with_context(|| format!("the simulation told no speed: {said}"))?;
    Ok(Figure::new("simulation, 5 nodes, 20 VMs: 10^6 steps", "s", vec![1e6 / rate])
        .goal(GOAL_MILLION_S, format!("{rate:.0} steps/s on one core")))
}

/// The `… steps/s` of a closing line.
fn rate_of(line: &str) -> Option<f64> {
    line.split(", ").find_map(|part| part.strip_suffix(" steps/s")?.parse().ok())
}

/// Decisions, writes and memory with a large cluster.
pub fn scale(program: &Path) -> Result<(Vec<Figure>, Value)> {
    let said = ok(Command::new(program).arg("--scale").arg("--json").args(SCALE))?;
    let found: Value = serde_json::from_str(said.trim()).context("figures of the large cluster")?;
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    let size = format!("{} nodes, {} VMs", found["nodes"], found["vms"]);
    let mut figures = Vec::new();
    for phase in found["phases"].as_array().into_iter().flatten() {
        let name = phase["name"].as_str().unwrap_or_default();
        let p99 = number(&phase["decision_p99_us"]) / 1000.0;
        let median = number(&phase["decision_median_us"]);
        let note = format!(
            "{} decisions, median {median:.0} µs; {:.1} API writes a VM",
            phase["decisions"],
            number(&phase["writes_per_vm"])
        );
        figures.push(Figure::new(format!("{size}, {name}: decision, p99"), "ms", vec![p99]).note(note));
    }
    let memory = number(&found["memory_bytes"]) / f64::from(1 << 20);
    let each = memory * 1024.0 / number(&found["vms"]);
    let note = format!("{each:.1} KiB a VM, control plane and controllers in one process");
    figures.push(Figure::new(format!("{size}: memory"), "MiB", vec![memory]).note(note));
    Ok((figures, found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_speed_stands_in_the_closing_line() {
        assert_eq!(rate_of("4 seeds, 61000 steps, 30 moves, 21400 steps/s, 0 failed"), Some(21400.0));
        assert_eq!(rate_of("nothing"), None);
    }
}
