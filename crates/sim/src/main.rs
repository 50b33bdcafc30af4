//! `holdfast-sim`: runs histories of the simulation. See docs/simulation.md.

mod jobs;

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use holdfast_sim::mutants::MUTANTS;
use holdfast_sim::run::{Options, Outcome, run};
use holdfast_sim::shrink;
use holdfast_sim::trace::{HEADING, Keep, parting};

use crate::jobs::Totals;

// A third of a history's time goes into many small pieces of JSON.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Runs histories of the platform under seeded faults and judges every step.
#[derive(Parser)]
struct Arguments {
    /// First seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many seeds.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// How many seeds at a time, each in a process of its own.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Cut the history off at this step and show the whole trace up to it.
    #[arg(long)]
    until: Option<u64>,
    /// Steps of each history before everything heals.
    #[arg(long, default_value_t = 4_000)]
    steps: u64,
    /// Nodes.
    #[arg(long, default_value_t = 3)]
    nodes: u8,
    /// VMs at the beginning.
    #[arg(long, default_value_t = 3)]
    vms: usize,
    /// Deliberate bugs to switch on.
    #[arg(long)]
    mutant: Vec<String>,
    /// Lines of the trace to show for a history that fails.
    #[arg(long, default_value_t = 60)]
    lines: usize,
    /// Run each seed twice and compare the traces.
    #[arg(long)]
    twice: bool,
    /// Leave out actions and faults of a failing history as long as it fails in the same way.
    #[arg(long)]
    shrink: bool,
    /// Actions and faults to leave out, by number, as `--shrink` prints them.
    #[arg(long, value_delimiter = ',')]
    without: Vec<u64>,
    /// Run the catalogue of deliberate bugs instead: each must be found within its seeds.
    #[arg(long)]
    mutants: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_env("HOLDFAST_LOG"))
        .with_writer(std::io::stderr)
        .init();
    if arguments.mutants {
        return mutants(&arguments);
    }
    let seeds = arguments.seed..arguments.seed + arguments.seeds;
    let began = Instant::now();
    let totals = if arguments.jobs > 1 {
        jobs::run(seeds, arguments.jobs)?
    } else {
        let mut totals = Totals::default();
        for seed in seeds {
            totals += one(&arguments, seed)?;
        }
        totals
    };
    println!("{}", totals.line(began.elapsed().as_secs_f64()));
    Ok(if totals.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One seed, and what there is to say about it.
fn one(arguments: &Arguments, seed: u64) -> anyhow::Result<Totals> {
    let options = options(arguments, seed);
    let started = Instant::now();
    let outcome = run(&options)?;
    let took = started.elapsed().as_secs_f64();
    let fails = !outcome.violations.is_empty();
    if fails || arguments.until.is_some() {
        show(&outcome, if arguments.until.is_some() { usize::MAX } else { arguments.lines });
    }
    println!("{}", summary(seed, &outcome, took));
    let mut totals =
        Totals { seeds: 1, steps: outcome.steps, moves: outcome.moves, failed: u64::from(fails) };
    if arguments.twice {
        let again = run(&options)?;
        totals.steps += again.steps;
        if again.hash != outcome.hash {
            println!("seed {seed}: the second run went another way");
            parting(&outcome.lines, &again.lines).into_iter().flatten().for_each(|line| println!("{line}"));
            totals.failed = 1;
        }
    }
    if fails && arguments.shrink {
        shrink(&options)?;
    }
    Ok(totals)
}

fn options(arguments: &Arguments, seed: u64) -> Options {
    Options {
        steps: arguments.steps,
        until: arguments.until,
        nodes: arguments.nodes,
        vms: arguments.vms,
        mutants: arguments.mutant.iter().cloned().collect(),
        keep: match arguments.until {
            _ if arguments.twice => Keep::Whole,
            Some(_) => Keep::All,
            None => Keep::Last(arguments.lines),
        },
        without: arguments.without.iter().copied().collect(),
        ..Options::of(seed)
    }
}

fn shrink(options: &Options) -> anyhow::Result<()> {
    let Some(shrunk) = shrink::shrink(options, 300)? else { return Ok(()) };
    println!("shrunk to {} actions and faults in {} runs; the story:", shrunk.strokes, shrunk.runs);
    println!("{HEADING}");
    for line in &shrunk.outcome.story {
        println!("{line}");
    }
    for violation in &shrunk.outcome.violations {
        println!("VIOLATION {violation}");
    }
    let without: Vec<String> = shrunk.options.without.iter().map(ToString::to_string).collect();
    println!("again: --seed {} --without {}", options.seed, without.join(","));
    Ok(())
}

/// Every mutant within its seeds; those known not to be found are listed.
fn mutants(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let mut missed = 0;
    for mutant in MUTANTS {
        let Some(within) = mutant.within else {
            println!("{:<34} a hole: {}", mutant.name, mutant.hole);
            continue;
        };
        let mut found = None;
        for seed in 1..=within {
            let options = Options { mutants: [mutant.name.to_owned()].into(), ..options(arguments, seed) };
            if let Some(violation) = run(&options)?.violations.first() {
                found = Some((seed, violation.rule));
                break;
            }
        }
        match found {
            Some((seed, rule)) => println!("{:<34} found by seed {seed}: {rule}", mutant.name),
            None => {
                println!("{:<34} NOT FOUND within {within} seeds: {}", mutant.name, mutant.what);
                missed += 1;
            }
        }
    }
    println!("{} mutants, {missed} missed", MUTANTS.len());
    Ok(if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn show(outcome: &Outcome, most: usize) {
    println!(" swarm: {}", outcome.swarm);
    println!("{HEADING}");
    for line in &outcome.story {
        println!("{line}");
    }
    println!(" the last messages:");
    for line in &outcome.lines[outcome.lines.len().saturating_sub(most)..] {
        println!("{line}");
    }
    for violation in &outcome.violations {
        println!("VIOLATION {violation}");
    }
}

fn summary(seed: u64, outcome: &Outcome, took: f64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "steps are far fewer than 2^52")]
    let rate = outcome.steps as f64 / took.max(0.001);
    format!(
        "seed {seed}: {} steps, {:.0} s of the world, {} strokes, {} moves, well after {:.0} s, {rate:.0} steps/s, trace {:016x}{}",
        outcome.steps,
        outcome.time.as_secs_f64(),
        outcome.strokes,
        outcome.moves,
        outcome.settled_after.as_secs_f64(),
        outcome.hash,
        if outcome.violations.is_empty() { "" } else { ", FAILED" },
    )
}
