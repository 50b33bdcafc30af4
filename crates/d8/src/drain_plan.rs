//! `d8 v drain-plan NODE`: what a drain would do, before anything is touched. The plan comes from the API
//! server's side; here it is shown. Exit codes: 0 the drain would go through, 2 something blocks, 1 no plan.

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use holdfast_api::drain_plan::{Blocked, DrainPlan, PlannedMove};

use crate::connection::ConnectionFlags;

/// Exit code when something blocks.
const BLOCKED: u8 = 2;
const PATH: &str = "/apis/subresources.virtualization.deckhouse.io/v1alpha2/nodes";

/// Arguments of the command.
#[derive(Args, Debug)]
pub struct DrainPlanArgs {
    /// Node that would be drained
    node: String,
    /// How the plan is printed
    #[arg(long, short = 'o')]
    output: Option<Output>,
    /// Have QEMU measure for so many seconds (1 to 10) how fast each guest writes to its memory
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1",
        value_parser = clap::value_parser!(u32).range(1..=10))]
    measure: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Json,
}

/// Runs the command.
pub async fn run(flags: &ConnectionFlags, args: &DrainPlanArgs) -> Result<ExitCode> {
    let client = flags.client().await?;
    let node = &args.node;
    if node.is_empty() || !node.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.') {
        bail!("{node:?} is no name of a node");
    }
    let query = args.measure.map(|seconds| format!("?measure={seconds}")).unwrap_or_default();
    let request = http::Request::get(format!("{PATH}/{node}/drainplan{query}")).body(Vec::new())?;
    let text = client.request_text(request).await.map_err(plain)?;
    let plan: DrainPlan =
        serde_json::from_str(&text).context("the API server's answer is not a plan this d8 understands")?;
    match args.output {
        Some(Output::Json) => println!("{}", serde_json::to_string_pretty(&plan)?),
        None => print!("{}", show(&plan)),
    }
    Ok(if plan.goes_through { ExitCode::SUCCESS } else { ExitCode::from(BLOCKED) })
}

/// The server's sentence without what the client wraps around it.
fn plain(error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => anyhow::anyhow!("{}", status.message),
        other => other.into(),
    }
}

fn show(plan: &DrainPlan) -> String {
    let mut text = String::new();
    let verdict = if plan.goes_through { "goes through" } else { "does not go through" };
    let count = match plan.moves.len() {
        0 => "nothing moves".to_owned(),
        1 => format!("1 move, about {}", time(plan.total_seconds)),
        n => format!("{n} moves one after another, about {}", time(plan.total_seconds)),
    };
    let _ = writeln!(text, "A drain of node {} {verdict}: {count}.", plan.node);
    let limits = &plan.limits;
    if limits.taken > 0 {
        let _ = writeln!(
            text,
            "Moves of other nodes' VMs hold {} of {} slots; a move waits while none is free.",
            limits.taken, limits.cluster
        );
    }
    if !plan.moves.is_empty() {
        table(&mut text, &plan.moves);
    }
    for stop in &plan.stops {
        let _ = writeln!(text, "\nStops: {}/{}\n  {}", stop.namespace, stop.name, stop.message);
    }
    for blocked in &plan.blocked {
        show_blocked(&mut text, blocked);
    }
    text
}

fn table(text: &mut String, moves: &[PlannedMove]) {
    let mut rows = vec![["#", "VM", "TO", "MEMORY", "DIRTY", "AFTER", "TAKES"].map(str::to_owned)];
    for (n, planned) in moves.iter().enumerate() {
        let target = match planned.alternatives.as_slice() {
            [] => planned.target.clone(),
            others => format!("{} (or {})", planned.target, others.join(", ")),
        };
        let dirty = planned.dirty_bytes_per_second.map_or_else(|| "-".to_owned(), rate);
        rows.push([
            (n + 1).to_string(),
            format!("{}/{}", planned.namespace, planned.name),
            target,
            format!("{} MiB", planned.memory_bytes >> 20),
            dirty,
            if planned.under_way { "under way".to_owned() } else { time(planned.starts_after_seconds) },
            time(planned.seconds),
        ]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..7).map(width).collect();
    text.push('\n');
    for (n, row) in rows.iter().enumerate() {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, w)| format!("{cell:<w$}")).collect();
        let _ = writeln!(text, "{}", cells.join("   ").trim_end());
        let notes = n.checked_sub(1).and_then(|n| moves.get(n)).map(|m| m.notes.as_slice());
        for note in notes.unwrap_or_default() {
            let _ = writeln!(text, "    {note}");
        }
    }
}

fn show_blocked(text: &mut String, blocked: &Blocked) {
    let Blocked { namespace, name, reason, message, nodes, cures } = blocked;
    let _ = writeln!(text, "\nBlocks: {namespace}/{name} ({reason})\n  {message}");
    for refusal in nodes {
        let _ = writeln!(text, "    {}: {}", refusal.node, refusal.reasons.join(", "));
    }
    let _ = writeln!(text, "  Any of these would help:");
    for cure in cures {
        let _ = writeln!(text, "    - {cure}");
    }
}

fn time(seconds: f64) -> String {
    if seconds < 120.0 { format!("{seconds:.1} s") } else { format!("{:.1} min", seconds / 60.0) }
}

fn rate(bytes: i64) -> String {
    format!("{} MB/s", bytes / 1_000_000)
}

#[cfg(test)]
mod tests {
    use holdfast_api::drain_plan::{Limits, NodeRefusal, PlannedStop};

    use super::*;

    #[test]
    fn a_plan_is_shown_as_people_read_it() {
        let planned = |name: &str, after: f64| PlannedMove {
            namespace: "shop".into(),
            name: name.into(),
            target: "n2".into(),
            memory_bytes: 1 << 30,
            starts_after_seconds: after,
            seconds: 2.2,
            ..PlannedMove::default()
        };
        let mut second = planned("db", 2.2);
        second.alternatives = vec!["n3".into()];
        second.dirty_bytes_per_second = Some(40_000_000);
        second.notes = vec!["Changes wait.".into()];
        let plan = DrainPlan {
            node: "n1".into(),
            moves: vec![planned("web", 0.0), second],
            stops: vec![PlannedStop {
                namespace: "shop".into(),
                name: "job".into(),
                message: "It stops.".into(),
            }],
            blocked: vec![Blocked {
                namespace: "shop".into(),
                name: "big".into(),
                reason: "NoNode".into(),
                message: "0/3 nodes are available.".into(),
                nodes: vec![NodeRefusal { node: "n2".into(), reasons: vec!["Insufficient memory".into()] }],
                cures: vec!["free 1 MiB".into(), "stop it".into()],
            }],
            limits: Limits { cluster: 3, taken: 1, ..Limits::default() },
            total_seconds: 4.4,
            ..DrainPlan::default()
        };
        let want = "\
A drain of node n1 does not go through: 2 moves one after another, about 4.4 s.
Moves of other nodes' VMs hold 1 of 3 slots; a move waits while none is free.

#   VM         TO           MEMORY     DIRTY     AFTER   TAKES
1   shop/web   n2           1024 MiB   -         0.0 s   2.2 s
2   shop/db    n2 (or n3)   1024 MiB   40 MB/s   2.2 s   2.2 s
    Changes wait.

Stops: shop/job
  It stops.

Blocks: shop/big (NoNode)
  0/3 nodes are available.
    n2: Insufficient memory
  Any of these would help:
    - free 1 MiB
    - stop it
";
        assert_eq!(show(&plan), want);
        let empty = DrainPlan { node: "n1".into(), goes_through: true, ..DrainPlan::default() };
        assert_eq!(show(&empty), "A drain of node n1 goes through: nothing moves.\n");
    }
}
