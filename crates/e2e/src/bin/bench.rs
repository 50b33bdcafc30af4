//! `holdfast-bench`: measures the platform and bare QEMU in one run, prints a table, writes target/bench.json.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use holdfast_e2e::bench::bare::{self, Machine, Template};
use holdfast_e2e::bench::drain::{self, Drained};
use holdfast_e2e::bench::memory::{self, Use};
use holdfast_e2e::bench::ping::{self, Ping};
use holdfast_e2e::bench::report::{self, Figure};
use holdfast_e2e::bench::simulation;
use holdfast_e2e::bench::watch::{Phases, Story};
use holdfast_e2e::home::{ok, programs};
use holdfast_e2e::{Guest, Home, manifests, s, wait_for};
use serde_json::{Map, Value, json};

const NODES: usize = 3;
const LONG: Duration = s(300);
const GOAL_UP_S: f64 = 3.0;
const GOAL_START_MORE_MS: f64 = 300.0;
const GOAL_EVICT_FACTOR: f64 = 1.2;
const GOAL_EVICT_MORE_MS: f64 = 500.0;
const GOAL_DOWNTIME_MS: f64 = 100.0;
const GOAL_GAP_MS: f64 = 200.0;
const GOAL_LAUNCHER_MIB: f64 = 10.0;
const GOAL_PLATFORM_MIB: f64 = 150.0;
const GOAL_IDLE_MS: f64 = 100.0;
const GOAL_WRITES: f64 = 12.0;

/// How often the TCP ping of a single guest is sent.
const PING_EVERY: Duration = Duration::from_millis(10);

struct Options {
    runs: usize,
    vms: usize,
    drain_vms: usize,
    json: PathBuf,
    simulation: bool,
}

fn options() -> Result<Options> {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/bench.json");
    let mut options = Options { runs: 3, vms: 8, drain_vms: 20, json: default, simulation: true };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} needs a value"));
        match word.as_str() {
            "--runs" => options.runs = value()?.parse().context("--runs needs a number")?,
            "--vms" => options.vms = value()?.parse().context("--vms needs a number")?,
            "--drain-vms" => options.drain_vms = value()?.parse().context("--drain-vms needs a number")?,
            "--json" => options.json = value()?.into(),
            "--no-simulation" => options.simulation = false,
            _ => bail!(
                "{word}? Usage: holdfast-bench [--runs 3] [--vms 8] [--drain-vms 20] [--json FILE] [--no-simulation]"
            ),
        }
    }
    ensure!(options.runs > 0, "--runs must be at least 1");
    Ok(options)
}

/// What was found so far.
struct Bench {
    options: Options,
    begun: Instant,
    figures: Vec<Figure>,
    details: Map<String, Value>,
    machine: Value,
}

fn main() -> Result<()> {
    let options = options()?;
    let mut bench = Bench {
        options,
        begun: Instant::now(),
        figures: Vec::new(),
        details: Map::new(),
        machine: Value::Null,
    };
    let load = load();
    if load > 0.5 {
        println!("note: the load of this machine was {load} before: figures are too high");
    }
    bench.up()?;
    let home = Home::up(NODES)?;
    let outcome = bench.inside(&home);
    drop(home);
    outcome?;
    bench.drained()?;
    bench.simulation()?;
    bench.machine["loadBefore"] = json!(load);
    println!("\n{}", report::table(&bench.figures));
    let document = report::document(bench.machine, &bench.figures, bench.details);
    let file = &bench.options.json;
    std::fs::write(file, serde_json::to_string_pretty(&document)? + "\n")
        .with_context(|| format!("cannot write {}", file.display()))?;
    println!("written: {}", file.canonicalize()?.display());
    Ok(())
}

impl Bench {
    fn say(&self, text: &str) {
        println!("[{:4}s] {text}", self.begun.elapsed().as_secs());
    }

    /// `holdfast up` of a fresh home.
    fn up(&mut self) -> Result<()> {
        let mut runs = Vec::new();
        for run in 1..=self.options.runs {
            let took = up_once()?;
            self.say(&format!("holdfast up --nodes {NODES}, run {run}: {took:.2} s"));
            runs.push(took);
        }
        self.figures.push(
            Figure::new("holdfast up --nodes 3, fresh, to Ready", "s", runs).goal(GOAL_UP_S, "issue's goal"),
        );
        Ok(())
    }

    /// The simulation's speed, and what a large cluster costs.
    fn simulation(&mut self) -> Result<()> {
        let Some(program) = simulation::program().filter(|_| self.options.simulation) else {
            self.say("the simulation is left out");
            return Ok(());
        };
        self.say("the simulation's speed");
        self.figures.push(simulation::speed(&program)?);
        self.say("a large cluster, with nodes that are played");
        let (figures, found) = simulation::scale(&program)?;
        self.figures.extend(figures);
        self.details.insert("scale".into(), found);
        Ok(())
    }

    fn inside(&mut self, home: &Home) -> Result<()> {
        self.say("letting an empty platform settle");
        std::thread::sleep(s(8));
        let kinds = memory::platform(home)?;
        self.platform_memory("idle", &kinds);
        self.say("making a disk");
        home.apply(&format!("{}{}", manifests::demo_image(), manifests::disk("b-root")))?;
        home.wait_field("vd b-root", "/status/phase", "Ready", LONG)?;
        let template = self.starts(home)?;
        let limits = self.moves(home)?;
        self.say("deleting the VM, then the same guest under bare QEMU");
        delete_vm(home, "b")?;
        self.bare(template, &limits)?;
        self.many(home)
    }

    /// VM create → Running; the guest of the last run stays.
    fn starts(&mut self, home: &Home) -> Result<Template> {
        let watch = Phases::start(home, "vm")?;
        let mut stories: Vec<Story> = Vec::new();
        for run in 1..=self.options.runs {
            if run > 1 {
                delete_vm(home, "b")?;
            }
            let story = watch.create(home, "b", &manifests::vm("b", ""), "Running")?;
            self.say(&format!("create → Running, run {run}: {story:.0?}"));
            stories.push(story);
        }
        let runs = stories.iter().map(|s| s.last().map_or(f64::NAN, |(_, t)| ms(*t))).collect();
        self.figures.push(Figure::new("VM create → Running", "ms", runs));
        self.details.insert(
            "createPhases".into(),
            stories
                .iter()
                .map(|s| json!(s.iter().map(|(p, t)| json!([p, ms(*t)])).collect::<Vec<_>>()))
                .collect(),
        );
        let pids = home.pids(&["qemu-system-x86_64"]);
        ensure!(pids.len() == 1, "QEMU processes: {pids:?}");
        let template = Template::of(pids[0])?;
        self.machine = machine(&template)?;
        Ok(template)
    }

    /// Evict with a ping running; the limits that the platform set for the move.
    fn moves(&mut self, home: &Home) -> Result<Value> {
        self.say("waiting for the guest to boot");
        home.wait_condition("vm b", "AgentReady", "True", LONG)?;
        let guest = Guest { address: home.field("vm b", "/status/ipAddress") };
        guest.wait_ssh(LONG)?;
        self.launcher(home)?;
        ping::serve(&guest)?;
        let still = Ping::start(&guest, PING_EVERY)?;
        std::thread::sleep(s(3));
        let still = ms(still.end()?);

        let watch = Phases::start(home, "vmop")?;
        let (mut took, mut downtime, mut gaps, mut sent) = (vec![], vec![], vec![], vec![]);
        let mut limits = Value::Null;
        for run in 1..=self.options.runs {
            let ping = Ping::start(&guest, PING_EVERY)?;
            std::thread::sleep(Duration::from_millis(500));
            let name = format!("move-{run}");
            let story = watch.create(home, &name, &manifests::vmop(&name, "b", "Evict"), "Completed")?;
            std::thread::sleep(s(1));
            let gap = ms(ping.end()?);
            let migration = wait_for("the downtime is known", s(10), || {
                let object =
                    home.get(&format!("migrations.internal.virtualization.deckhouse.io vmop-{name}"));
                let object = object.unwrap_or_default();
                if object["status"]["source"]["downtimeMs"].is_number() {
                    Ok(object)
                } else {
                    Err(object.to_string())
                }
            })?;
            limits = migration["status"]["config"].clone();
            if limits.is_null() {
                limits = migration["spec"]["config"].clone();
            }
            self.say(&format!("Evict, run {run}: {story:.0?}, gap {gap:.0} ms"));
            took.push(story.last().map_or(f64::NAN, |(_, t)| ms(*t)));
            downtime.push(migration["status"]["source"]["downtimeMs"].as_f64().unwrap_or(f64::NAN));
            gaps.push(gap);
            let bytes = migration.pointer("/status/progress/processedBytes").and_then(Value::as_f64);
            sent.push(bytes.unwrap_or(f64::NAN) / f64::from(1 << 20));
            self.details.insert(format!("migration{run}"), migration["status"].clone());
        }
        self.figures.extend([
            Figure::new("Evict: vmop created → Completed", "ms", took),
            Figure::new("guest downtime in a move (QEMU)", "ms", downtime)
                .goal(GOAL_DOWNTIME_MS, "issue's goal"),
            Figure::new("longest gap of a 10 ms TCP ping in a move", "ms", gaps)
                .goal(GOAL_GAP_MS, format!("{still:.0} ms in 3 s without a move")),
            Figure::new("memory sent in a move", "MiB", sent).note("as last reported before the switch"),
        ]);
        Ok(limits)
    }

    fn launcher(&mut self, home: &Home) -> Result<()> {
        let all = memory::platform(home)?;
        let used = all.get("holdfast-launcher").context("no launcher runs")?;
        let each = mib(used.rss_kib) / used.count as f64;
        self.figures.push(
            Figure::new("launcher RSS without QEMU", "MiB", vec![each])
                .goal(GOAL_LAUNCHER_MIB, format!("PSS {:.1} MiB", mib(used.pss_kib) / used.count as f64)),
        );
        Ok(())
    }

    /// The same under bare QEMU; sets the goals that depend on it.
    fn bare(&mut self, template: Template, limits: &Value) -> Result<()> {
        let dir = tempfile::Builder::new().prefix("holdfast-bench-").tempdir()?;
        let machine: Machine = template.machine(dir.path())?;
        let mut starts = Vec::new();
        for _ in 0..self.options.runs {
            starts.push(ms(machine.start(false)?.wait_running()?));
        }
        self.say(&format!("bare QEMU to running: {starts:.0?} ms; booting it to move it"));
        let mut guest = machine.start(false)?;
        guest.wait_agent()?;
        let (mut copies, mut wholes, mut downtimes, mut sent) = (vec![], vec![], vec![], vec![]);
        for run in 1..=self.options.runs {
            let (target, moved) = bare::migrate(&machine, guest, limits)?;
            self.say(&format!("bare migration, run {run}: {moved:.0?}"));
            guest = target;
            copies.push(ms(moved.copy));
            wholes.push(ms(moved.whole));
            downtimes.push(moved.downtime_ms);
            sent.push(moved.sent_bytes as f64 / f64::from(1 << 20));
        }
        let start = report::median(&starts);
        let copy = report::median(&copies);
        self.set_goal("VM create", start + GOAL_START_MORE_MS, &format!("bare {start:.0} ms + 300 ms"));
        let goal = copy * GOAL_EVICT_FACTOR + GOAL_EVICT_MORE_MS;
        self.set_goal("Evict", goal, &format!("1.2 × bare {copy:.0} ms + 500 ms"));
        self.figures.extend([
            Figure::new("bare QEMU to running", "ms", starts),
            Figure::new("bare migration, target ready before", "ms", copies),
            Figure::new("bare migration with start of the target", "ms", wholes),
            Figure::new("guest downtime in a bare migration", "ms", downtimes),
            Figure::new("memory sent in a bare migration", "MiB", sent),
        ]);
        self.details.insert("limits".into(), limits.clone());
        Ok(())
    }

    fn set_goal(&mut self, name: &str, goal: f64, note: &str) {
        for figure in self.figures.iter_mut().filter(|f| f.name.starts_with(name)) {
            figure.goal = Some(goal);
            figure.note = note.to_owned();
        }
    }

    /// A node full of guests is drained, in a platform of two nodes, so that all find room.
    fn drained(&mut self) -> Result<()> {
        let count = self.options.drain_vms;
        if count == 0 {
            return Ok(());
        }
        self.say(&format!("starting {count} guests on one node, to drain it"));
        let home = Home::up(2)?;
        let (node, guests) = drain::fill(&home, count)?;
        self.say(&format!("all answer; draining {node}"));
        let drained = drain::drain(&home, &node, &guests)?;
        self.say(&format!("drained in {:.1?}", drained.took));
        for (step, times) in &drained.steps {
            let times: Vec<f64> = times.iter().map(|t| ms(*t)).collect();
            let most = times.iter().copied().fold(0.0, f64::max);
            println!("       {step:<10} median {:>5.0} ms, longest {most:>5.0} ms", report::median(&times));
        }
        for (what, n) in &drained.writes {
            println!("       {:>6.2} a move: {what}", *n as f64 / drained.moves as f64);
        }
        self.drain_figures(&drained);
        Ok(())
    }

    fn drain_figures(&mut self, drained: &Drained) {
        let moves = drained.moves as f64;
        let took = drained.took.as_secs_f64();
        let idle: Vec<f64> = drained.idle.iter().map(|t| ms(*t)).collect();
        let writes: u64 = drained.writes.values().sum();
        let error = (drained.planned_s / took - 1.0) * 100.0;
        let copying = drained
            .steps
            .get("Copying")
            .map_or(f64::NAN, |times| times.iter().map(|t| ms(*t)).sum::<f64>() / moves);
        let whole = drained.steps.values().flatten().map(|t| ms(*t)).sum::<f64>() / moves;
        self.figures.extend([
            Figure::new(format!("drain of a node with {moves} VMs"), "s", vec![took]).note(format!(
                "planned {:.1} s ({error:+.0} %), {:.1} s a move",
                drained.planned_s, drained.planned_each_s
            )),
            Figure::new("a move in the drain, without its queue", "ms", vec![whole])
                .note(format!("{copying:.0} ms of it copying")),
            Figure::new("from the end of a move to the next one's slot", "ms", idle)
                .goal(GOAL_IDLE_MS, "issue's goal"),
            Figure::new(
                "longest silence of a guest in the drain",
                "ms",
                vec![ms(drain::longest(&drained.silence))],
            )
            .goal(GOAL_GAP_MS, format!("{:.0} ms in 5 s without moves", ms(drained.quiet))),
            Figure::new("writes to the API for one move", "", vec![writes as f64 / moves])
                .goal(GOAL_WRITES, "without kubectl's and heartbeats"),
        ]);
        let steps: Map<String, Value> = drained
            .steps
            .iter()
            .map(|(step, times)| ((*step).to_owned(), times.iter().map(|t| ms(*t)).collect()))
            .collect();
        self.details.insert("drain, steps in ms".into(), steps.into());
        self.details.insert("drain, writes".into(), json!(drained.writes));
    }

    /// Memory with many VMs.
    fn many(&mut self, home: &Home) -> Result<()> {
        let names: Vec<String> = (1..=self.options.vms).map(|n| format!("m{n}")).collect();
        self.say(&format!("starting {} VMs", names.len()));
        let disks: String = names.iter().map(|n| manifests::disk(&format!("{n}-root"))).collect();
        let vms: String = names.iter().map(|n| manifests::vm(n, "")).collect();
        home.apply(&(disks + &vms))?;
        for name in &names {
            home.wait_phase(name, "Running", s(900))?;
        }
        self.say("all run; letting them settle");
        std::thread::sleep(s(10));
        let kinds = memory::platform(home)?;
        self.platform_memory(&format!("with {} VMs", names.len()), &kinds);
        Ok(())
    }

    fn platform_memory(&mut self, when: &str, kinds: &std::collections::BTreeMap<String, Use>) {
        let mut sum = Use::default();
        println!(
            "       {:<28} {:>5} {:>9} {:>9} {:>9}  (MiB, {when})",
            "PROCESS", "COUNT", "RSS", "ANON", "PSS"
        );
        for (kind, used) in kinds {
            print_use(kind, used);
            sum.add(*used);
        }
        print_use("all", &sum);
        let detail: Map<String, Value> = kinds.iter().map(|(k, u)| (k.clone(), use_json(u))).collect();
        self.details.insert(format!("memory, {when}"), detail.into());
        let note = format!("{} processes; anonymous {:.1} MiB", sum.count, mib(sum.anonymous_kib));
        // One a VM, with a goal of their own: told with and without them.
        let launchers = kinds.get("holdfast-launcher").copied().unwrap_or_default();
        if launchers.count > 0 {
            let name = format!("platform of 3 nodes, RSS, {when}, without launchers");
            let rest = mib(sum.rss_kib - launchers.rss_kib);
            let note = format!("{} launchers", launchers.count);
            self.figures.push(Figure::new(name, "MiB", vec![rest]).goal(GOAL_PLATFORM_MIB, note));
        }
        self.figures.extend([
            Figure::new(format!("platform of 3 nodes, RSS, {when}"), "MiB", vec![mib(sum.rss_kib)])
                .goal(GOAL_PLATFORM_MIB, note),
            Figure::new(format!("platform of 3 nodes, PSS, {when}"), "MiB", vec![mib(sum.pss_kib)])
                .note("shared pages once: what the machine spends"),
        ]);
    }
}

fn print_use(kind: &str, used: &Use) {
    let [rss, anonymous, pss] = [used.rss_kib, used.anonymous_kib, used.pss_kib].map(mib);
    println!("       {kind:<28} {:>5} {rss:>9.1} {anonymous:>9.1} {pss:>9.1}", used.count);
}

fn use_json(used: &Use) -> Value {
    json!({
        "count": used.count, "rssMiB": mib(used.rss_kib),
        "anonymousMiB": mib(used.anonymous_kib), "pssMiB": mib(used.pss_kib),
    })
}

/// Facts of this machine.
fn machine(template: &Template) -> Result<Value> {
    let qemu = ok(Command::new("qemu-system-x86_64").arg("--version"))?;
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let model = text("/proc/cpuinfo").lines().find_map(|l| l.strip_prefix("model name").map(str::to_owned));
    Ok(json!({
        "cores": std::thread::available_parallelism()?.get(),
        "cpu": model.unwrap_or_default().trim_start_matches(['\t', ' ', ':']),
        "memory": text("/proc/meminfo").lines().next().unwrap_or_default(),
        "kernel": text("/proc/sys/kernel/osrelease").trim(),
        "accel": template.option("-accel"),
        "qemu": qemu.lines().next().unwrap_or_default(),
    }))
}

/// Average load of the last minute, before the bench adds its own.
fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|l| l.parse().ok()).unwrap_or(f64::NAN)
}

/// Seconds of `holdfast up` in a home of its own, which is purged again.
fn up_once() -> Result<f64> {
    let dir = tempfile::Builder::new().prefix("holdfast-bench-up-").tempdir()?;
    let holdfast = |args: &[&str]| {
        let mut command = Command::new(programs().join("holdfast"));
        ok(command.args(args).env("HOLDFAST_HOME", dir.path()).env_remove("KUBECONFIG"))
    };
    let begun = Instant::now();
    let up = holdfast(&["up", "--nodes", &NODES.to_string()]);
    let took = begun.elapsed();
    let purged = holdfast(&["down", "--purge"]);
    up?;
    purged?;
    Ok(took.as_secs_f64())
}

fn delete_vm(home: &Home, name: &str) -> Result<()> {
    home.k(&["delete", "vm", name])?;
    wait_for("QEMU is gone", s(90), || {
        let left = home.pids(&["qemu-system-x86_64"]);
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}
