//! What was measured, as people and `make bench` read it.

use std::fmt;

use serde_json::{Value, json};

use super::measure::at_share;
use super::{Phase, Report};

const MIB: u64 = 1 << 20;

#[expect(clippy::cast_precision_loss, reason = "counts and bytes are far below 2^52")]
fn per(what: u64, of: u64) -> f64 {
    what as f64 / of.max(1) as f64
}

impl Phase {
    fn all_writes(&self) -> u64 {
        self.writes.values().sum()
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, time, wall, costs, writes, vms } = self;
        writeln!(
            f,
            "{name}: {vms} VMs, {:.0} s of the world, {:.1} s of work, {:.1} API writes a VM",
            time.as_secs_f64(),
            wall.as_secs_f64(),
            per(self.all_writes(), *vms)
        )?;
        writeln!(
            f,
            "  {:<10} {:<28} {:>9} {:>10} {:>10} {:>10}",
            "", "", "times", "median", "p99", "longest"
        )?;
        for ((kind, name), costs) in costs {
            let (median, p99) = (at_share(costs, 500), at_share(costs, 990));
            let most = costs.last().copied().unwrap_or(0);
            let count = costs.len();
            writeln!(f, "  {kind:<10} {name:<28} {count:>9} {median:>7} us {p99:>7} us {most:>7} us")?;
        }
        let mut sorted: Vec<_> = writes.iter().collect();
        sorted.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        for ((who, what), count) in sorted.into_iter().filter(|(_, count)| per(**count, *vms) >= 0.05) {
            writeln!(f, "  {:>6.2} a VM: {who}, {what}", per(*count, *vms))?;
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (with, without) = self.memory;
        let vms = u64::from(self.size.vms);
        writeln!(
            f,
            "{} nodes, {vms} VMs of {} objects each, racks of {}",
            self.size.nodes, self.objects, self.size.rack
        )?;
        for phase in &self.phases {
            write!(f, "{phase}")?;
        }
        writeln!(
            f,
            "memory: {} MiB, {:.1} KiB a VM; {} MiB of it, {:.1} KiB a VM, without the controllers",
            with / MIB,
            per(with, vms) / 1024.0,
            without / MIB,
            per(without, vms) / 1024.0
        )
    }
}

impl Report {
    /// The figures for a machine to read.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let phase = |phase: &Phase| {
            let decisions: Vec<&Vec<u32>> =
                phase.costs.iter().filter(|((kind, _), _)| kind == "controller").map(|(_, c)| c).collect();
            let mut all: Vec<u32> = decisions.into_iter().flatten().copied().collect();
            all.sort_unstable();
            json!({
                "name": phase.name, "vms": phase.vms, "work_s": phase.wall.as_secs_f64(),
                "world_s": phase.time.as_secs_f64(), "decisions": all.len(),
                "decision_median_us": at_share(&all, 500), "decision_p99_us": at_share(&all, 990),
                "writes_per_vm": per(phase.all_writes(), phase.vms),
            })
        };
        json!({
            "nodes": self.size.nodes, "vms": self.size.vms,
            "phases": self.phases.iter().map(phase).collect::<Vec<_>>(),
            "memory_bytes": self.memory.0, "memory_without_controllers_bytes": self.memory.1,
        })
    }
}
