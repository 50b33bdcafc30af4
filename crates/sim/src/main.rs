//! `holdfast-sim`: runs histories of the simulation. See docs/simulation.md.

mod jobs;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context as _;
use clap::Parser;
use holdfast_sim::kept::{self, Kept};
use holdfast_sim::mutants::{MUTANTS, Mutant};
use holdfast_sim::page;
use holdfast_sim::plots::PLOTS;
use holdfast_sim::run::{Options, Outcome, run};
use holdfast_sim::scale::Size;
use holdfast_sim::shrink;
use holdfast_sim::swarm::Swarm;
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
    /// Nodes [default: 3; 1000 with --scale].
    #[arg(long)]
    nodes: Option<u32>,
    /// VMs at the beginning [default: 3; 50000 with --scale].
    #[arg(long)]
    vms: Option<u32>,
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
    /// Run the catalogue of deliberate bugs instead: each must be found within its seeds. With `--mutant`, these.
    #[arg(long)]
    mutants: bool,
    /// Only these plots (see `plots.rs`), and no other faults.
    #[arg(long)]
    plot: Vec<String>,
    /// Replay the kept histories of a directory instead (crates/sim/histories).
    #[arg(long, value_name = "DIR", num_args = 0..=1, default_missing_value = KEPT)]
    kept: Option<PathBuf>,
    /// Replay the history in this file.
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,
    /// Write a page that shows the history into this file (one seed).
    #[arg(long, value_name = "FILE")]
    page: Option<PathBuf>,
    /// Write the deeds of a failing history into this file; with `--shrink`, those that matter.
    #[arg(long, value_name = "FILE")]
    keep: Option<PathBuf>,
    /// Measure the control plane and the controllers with a large cluster instead, whose nodes are played.
    #[arg(long)]
    scale: bool,
    /// Print the figures of --scale as JSON, in one line.
    #[arg(long)]
    json: bool,
}

/// Where kept histories are.
const KEPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/histories");

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_env("HOLDFAST_LOG"))
        .with_writer(std::io::stderr)
        .init();
    if arguments.mutants {
        return mutants(&arguments);
    }
    if let Some(dir) = &arguments.kept {
        return replay_kept(dir);
    }
    if let Some(file) = &arguments.history {
        let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
        let history = Kept::parse(&text).with_context(|| format!("read {}", file.display()))?;
        let totals = one(&arguments, history.head.seed, Some(&history))?;
        return Ok(if totals.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    if arguments.scale {
        return scale(&arguments);
    }
    anyhow::ensure!(arguments.nodes.is_none_or(|nodes| nodes < 250), "histories have fewer than 250 nodes");
    let seeds = arguments.seed..arguments.seed + arguments.seeds;
    let began = Instant::now();
    let totals = if arguments.jobs > 1 {
        jobs::run(seeds, arguments.jobs)?
    } else {
        let mut totals = Totals::default();
        for seed in seeds {
            totals += one(&arguments, seed, None)?;
        }
        totals
    };
    println!("{}", totals.line(began.elapsed().as_secs_f64()));
    Ok(if totals.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One seed, and what there is to say about it.
fn one(arguments: &Arguments, seed: u64, kept: Option<&Kept>) -> anyhow::Result<Totals> {
    let mut options = options(arguments, seed);
    if let Some(kept) = kept {
        let whole = kept.options(true);
        options = Options { keep: options.keep, until: options.until, timeline: options.timeline, ..whole };
    }
    let options = options;
    let started = Instant::now();
    let outcome = run(&options)?;
    let took = started.elapsed().as_secs_f64();
    let fails = !outcome.violations.is_empty();
    if fails || arguments.until.is_some() {
        show(&outcome, if arguments.until.is_some() { usize::MAX } else { arguments.lines });
    }
    println!("{}", summary(seed, &outcome, took));
    if let Some(file) = &arguments.page {
        write_page(file, &options, &outcome)?;
    }
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
        shrink(arguments, &options)?;
    } else if let Some(file) = arguments.keep.as_deref().filter(|_| fails) {
        write_kept(file, &options, &outcome)?;
    }
    Ok(totals)
}

fn options(arguments: &Arguments, seed: u64) -> Options {
    let plots: Vec<&'static str> =
        PLOTS.into_iter().filter(|name| arguments.plot.iter().any(|n| n == name)).collect();
    Options {
        swarm: (!plots.is_empty()).then(|| Swarm::of_plots(seed, &plots)),
        steps: arguments.steps,
        until: arguments.until,
        nodes: arguments.nodes.and_then(|nodes| u8::try_from(nodes).ok()).unwrap_or(3),
        vms: arguments.vms.and_then(|vms| usize::try_from(vms).ok()).unwrap_or(3),
        mutants: arguments.mutant.iter().cloned().collect(),
        keep: match arguments.until {
            _ if arguments.twice => Keep::Whole,
            Some(_) => Keep::All,
            None => Keep::Last(arguments.lines),
        },
        timeline: arguments.page.is_some(),
        without: arguments.without.iter().copied().collect(),
        ..Options::of(seed)
    }
}

fn write_page(file: &Path, options: &Options, outcome: &Outcome) -> anyhow::Result<()> {
    let mutants: String = options.mutants.iter().map(|name| format!(" --mutant {name}")).collect();
    let title = format!("Seed {}{}", options.seed, mutants.replace(" --mutant", ", with the deliberate bug"));
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let again = format!("cargo run -p xtask -- sim {}", arguments.join(" "));
    std::fs::write(file, page::page(&title, &again, outcome))
        .with_context(|| format!("write {}", file.display()))?;
    println!("a page of it: {}", file.display());
    Ok(())
}

fn write_kept(file: &Path, options: &Options, outcome: &Outcome) -> anyhow::Result<()> {
    let text = Kept::of(options, outcome).text()?;
    std::fs::write(file, text).with_context(|| format!("write {}", file.display()))?;
    println!("kept as {}; its first line wants a sentence of yours", file.display());
    Ok(())
}

/// Runs the large cluster and prints what it costs.
fn scale(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let size = Size::of(arguments.nodes.unwrap_or(1000), arguments.vms.unwrap_or(50_000));
    let began = Instant::now();
    let say = |what: &str| {
        if !arguments.json {
            println!("[{:6.1} s] {what}", began.elapsed().as_secs_f64());
        }
    };
    let report = holdfast_sim::scale::run(size, &say)?;
    if arguments.json {
        println!("{}", report.to_json());
    } else {
        print!("{report}");
    }
    Ok(ExitCode::SUCCESS)
}

fn shrink(arguments: &Arguments, options: &Options) -> anyhow::Result<()> {
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
    let steps = shrunk.options.steps;
    println!("again: --seed {} --steps {steps} --without {}", options.seed, without.join(","));
    match &arguments.keep {
        Some(file) => write_kept(file, &shrunk.options, &shrunk.outcome),
        None => Ok(()),
    }
}

/// Every mutant within its seeds; those known not to be found are listed.
fn mutants(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    let wanted =
        |mutant: &&Mutant| arguments.mutant.is_empty() || arguments.mutant.iter().any(|n| n == mutant.name);
    let all: Vec<&Mutant> = MUTANTS.iter().filter(wanted).collect();
    let missed = if arguments.jobs > 1 {
        jobs::mutants(&all, arguments.jobs)?
    } else {
        let mut missed = 0;
        for mutant in &all {
            let (line, found) = look_for(arguments, mutant)?;
            println!("{line}");
            missed += u64::from(!found);
        }
        missed
    };
    let holes = all.iter().filter(|mutant| mutant.within.is_none()).count();
    let seconds = began.elapsed().as_secs();
    println!("{} mutants, {holes} known holes, {missed} missed, {seconds} s", all.len());
    Ok(if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What came of looking for a mutant, and whether that is as the catalogue says.
fn look_for(arguments: &Arguments, mutant: &Mutant) -> anyhow::Result<(String, bool)> {
    let Some(within) = mutant.within else {
        return Ok((format!("{:<34} a hole: {}", mutant.name, mutant.hole), true));
    };
    for seed in 1..=within {
        let swarm = (!mutant.plots.is_empty()).then(|| Swarm::of_plots(seed, mutant.plots));
        let mutants = [mutant.name.to_owned()].into();
        let outcome = run(&Options { mutants, swarm, ..options(arguments, seed) })?;
        if let Some(violation) = outcome.violations.first() {
            return Ok((format!("{:<34} found by seed {seed}: {}", mutant.name, violation.rule), true));
        }
    }
    Ok((format!("{:<34} NOT FOUND within {within} seeds: {}", mutant.name, mutant.what), false))
}

/// Every kept history ends as it should.
fn replay_kept(dir: &Path) -> anyhow::Result<ExitCode> {
    let mut bad = 0;
    let all = kept::all(dir)?;
    for (path, history) in &all {
        let name = path.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        match kept::replay(history)? {
            None => println!("{name:<34} well: {}", history.about),
            Some(why) => {
                println!("{name:<34} BAD: {why}");
                bad += 1;
            }
        }
    }
    println!("{} kept histories, {bad} bad", all.len());
    Ok(if bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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
