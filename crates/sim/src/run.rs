//! One history: a seed, a number of steps, and what came of it.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::check::Violation;
use crate::deed::{self, Cast, Deed};
use crate::net::ProcessId;
use crate::random::Dice;
use crate::surroundings::Surroundings;
use crate::swarm::{Doing, Swarm};
use crate::timeline::{Span, Timeline};
use crate::trace::{Keep, Trace};
use crate::user::{self, Action};
use crate::world::{Role, World};
use crate::{fault, liveness, panics, plot, process, start};

/// What a history is made of.
#[derive(Clone, Debug)]
pub struct Options {
    /// Seed.
    pub seed: u64,
    /// Steps with actions and faults; then everything heals.
    pub steps: u64,
    /// The history is cut off at this step.
    pub until: Option<u64>,
    /// Nodes.
    pub nodes: u8,
    /// VMs at the beginning.
    pub vms: usize,
    /// Actions and faults; drawn from the seed where there is none.
    pub swarm: Option<Swarm>,
    /// Deliberate bugs that are switched on.
    pub mutants: BTreeSet<String>,
    /// How much of the trace is kept.
    pub keep: Keep,
    /// Strokes (actions and faults, counted from 0) that are left out: how a history is shrunk.
    pub without: BTreeSet<u64>,
    /// Note what is true when, for a page.
    pub timeline: bool,
    /// Deeds and their steps, instead of those that would be drawn: how a kept history is replayed.
    pub deeds: Option<Vec<(u64, Deed)>>,
}

impl Options {
    /// The usual size of a history.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        Self {
            seed,
            steps: 4_000,
            until: None,
            nodes: 3,
            vms: 3,
            swarm: None,
            mutants: BTreeSet::new(),
            keep: Keep::Last(60),
            without: BTreeSet::new(),
            timeline: false,
            deeds: None,
        }
    }
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// The mix of actions and faults.
    pub swarm: Swarm,
    /// Steps taken.
    pub steps: u64,
    /// Actions and faults that happened.
    pub strokes: u64,
    /// Virtual time.
    pub time: Duration,
    /// Hash of the trace.
    pub hash: u64,
    /// What must never have happened.
    pub violations: Vec<Violation>,
    /// The trace as far as it was kept.
    pub lines: Vec<String>,
    /// What a person must know to understand it.
    pub story: Vec<String>,
    /// How often each rule was looked at with something to look at.
    pub looked: BTreeMap<&'static str, u64>,
    /// Fault points that were passed.
    pub points: BTreeSet<String>,
    /// What was true when, and the times of steps; empty unless asked for.
    pub timeline: (Vec<Span>, Vec<(u64, u64)>),
    /// What was done, and at which step.
    pub deeds: Vec<(u64, Deed)>,
    /// Completed moves.
    pub moves: u64,
    /// Time of the world until all was well again.
    pub settled_after: Duration,
}

/// Most steps until all is well: more means that somebody is busy without an end.
const CALM_STEPS: u64 = 400_000;

/// A history under way.
struct History<'o> {
    world: World,
    options: &'o Options,
    swarm: Swarm,
    strokes: u64,
    names: u64,
    deeds: Vec<(u64, Deed)>,
    timeline: Option<Timeline>,
}

/// One history at a time: numbers of tasks and of open files are counted through the whole OS process.
static ONE: Mutex<()> = Mutex::new(());

/// Runs one history. A second one on another thread waits for it.
///
/// # Errors
/// The machine has no room for its files.
pub fn run(options: &Options) -> std::io::Result<Outcome> {
    let _alone = ONE.lock();
    process::align_task_numbers();
    panics::collect();
    let surroundings = Rc::new(Surroundings::new(options.seed, options.mutants.clone()));
    let _installed = holdfast_env::ambient::install(surroundings.clone());
    let world = World::new(options.seed, surroundings, Trace::new(options.keep))?;
    let swarm = options.swarm.clone().unwrap_or_else(|| Swarm::draw(options.seed));
    let timeline = options.timeline.then(Timeline::default);
    let mut history = History { world, options, swarm, strokes: 0, names: 0, deeds: Vec::new(), timeline };
    history.begin()?;
    history.warm_up();
    history.storm();
    let settled_after = history.calm();
    Ok(history.outcome(settled_after))
}

impl History<'_> {
    fn begin(&mut self) -> std::io::Result<()> {
        let world = &mut self.world;
        world.machines.set_link(625_000_000, Duration::from_millis(20));
        if self.swarm.no_locks {
            world.machines.without_locks();
        }
        if self.swarm.few_addresses && self.options.vms <= 3 {
            start::FEW_ADDRESSES.clone_into(&mut world.cidr);
        }
        start::plane(world);
        start::controller(world);
        for number in 1..=self.options.nodes {
            let name = start::add_node(world, number)?;
            start::power_on(world, &name);
        }
        for _ in 0..self.options.vms {
            let create = self.create();
            user::act(&mut self.world, create);
        }
        self.world.settle();
        Ok(())
    }

    /// Most histories begin with VMs that run; some with VMs that are just being made.
    fn warm_up(&mut self) {
        if self.world.dice.happens(200) {
            return;
        }
        let all = self.options.vms;
        while self.world.machines.executing().len() < all && self.world.trace.step < 2_500 && !self.is_over()
        {
            self.world.trace.step += 1;
            pass(&mut self.world);
            self.finish_step();
        }
    }

    fn is_over(&self) -> bool {
        let cut_off = self.options.until.is_some_and(|until| self.world.trace.step >= until);
        cut_off || !self.world.checker.violations().is_empty()
    }

    /// Actions and faults.
    fn storm(&mut self) {
        let end = self.world.trace.step + self.options.steps;
        while self.world.trace.step < end && !self.is_over() {
            self.world.trace.step += 1;
            if self.world.dice.happens(self.swarm.doing_rate) {
                self.stroke(true);
            } else if self.world.dice.below(10_000) < usize::try_from(self.swarm.fault_rate).unwrap_or(0) {
                self.stroke(false);
            } else {
                pass(&mut self.world);
            }
            self.replay();
            self.finish_step();
            plot::look(&mut self.world);
        }
    }

    /// No more actions, no more faults: all must become well. Returns how long it took.
    fn calm(&mut self) -> Duration {
        if self.is_over() || self.options.until.is_some() {
            return Duration::ZERO;
        }
        let began = self.world.time();
        self.world.trace.tell(began, "calm", "everything heals");
        fault::heal(&mut self.world);
        self.world.settle();
        self.make_room();
        let most = self.world.trace.step + CALM_STEPS;
        let mut look_at = began + Duration::from_secs(20);
        let mut well_since: Option<Duration> = None;
        while !self.is_over() {
            self.world.trace.step += 1;
            pass(&mut self.world);
            self.finish_step();
            let time = self.world.time();
            if time < look_at && self.world.trace.step < most {
                continue;
            }
            look_at = time + Duration::from_secs(10);
            let left = liveness::unfinished(&self.world);
            if self.world.trace.step > most {
                self.world.checker.violate("liveness", "somebody is busy without an end");
            } else if left.is_empty() {
                // Well, and well again a while later: not by chance between two mistakes.
                if well_since.is_some_and(|since| time > since + Duration::from_secs(30)) {
                    break;
                }
                well_since.get_or_insert(time);
            } else if time > began + liveness::BOUND {
                for what in left {
                    self.world.checker.violate("liveness", what);
                }
            } else {
                well_since = None;
            }
        }
        self.world.time().saturating_sub(began)
    }

    /// Users let the platform do its work: every node is open, no VM is pinned to one.
    fn make_room(&mut self) {
        // Nobody comes with a wish of before any more, such as a pin that failed and is tried again.
        let trying = self.world.processes.iter().filter(|(_, running)| running.role == Role::User);
        let trying: Vec<ProcessId> =
            trying.map(|(id, _)| *id).filter(|id| !self.world.drains.contains_key(id)).collect();
        for id in trying {
            self.world.kill(id);
        }
        let nodes: Vec<String> = self.world.nodes.keys().map(ToString::to_string).collect();
        // A drain that is still wanted goes on: it must end.
        let wanted: BTreeSet<String> = self.world.drains.values().cloned().collect();
        if !liveness::objects(&self.world, "nodemaintenance.medik8s.io", "nodemaintenances").is_empty() {
            // One maintenance may last, unless a drain is to end as well.
            for node in nodes.iter().skip(usize::from(wanted.is_empty())) {
                user::act(&mut self.world, Action::EndMaintenance { node: node.clone() });
            }
        }
        let wanted: BTreeSet<String> = self.world.drains.values().cloned().collect();
        for node in nodes.into_iter().filter(|node| !wanted.contains(node)) {
            user::act(&mut self.world, Action::Uncordon { node });
        }
        if wanted.len() >= self.world.nodes.len() {
            let node = self.world.nodes.keys().next().map(ToString::to_string);
            user::act(&mut self.world, Action::Uncordon { node: node.unwrap_or_default() });
        }
        let vms: BTreeSet<String> = self.world.checker.instances().keys().cloned().collect();
        for vm in vms.iter().filter_map(|key| key.split_once('/')).map(|(_, vm)| vm.to_owned()) {
            user::act(&mut self.world, Action::Pin { vm, node: None });
        }
        self.world.settle();
    }

    fn finish_step(&mut self) {
        self.world.settle();
        self.world.judge();
        if let Some(timeline) = &mut self.timeline {
            timeline.sample(&self.world);
        }
    }

    /// One action or one fault. It draws from dice of its own, so that leaving it out moves nothing else.
    fn stroke(&mut self, doing: bool) {
        let number = self.strokes;
        self.strokes += 1;
        if self.options.deeds.is_some() || self.options.without.contains(&number) {
            return;
        }
        let own = Dice::new(self.options.seed, &format!("stroke {number}"));
        let others = std::mem::replace(&mut self.world.dice, own);
        let deed = if doing {
            self.draw_doing()
        } else {
            let fault = self.swarm.pick_fault(&mut self.world.dice);
            fault.and_then(|fault| fault::draw(&mut self.world, &self.swarm, fault))
        };
        self.world.dice = others;
        if let Some(deed) = deed {
            self.carry_out(deed);
        }
    }

    /// Does it, with dice of its own for what follows from it, such as pauses before a restart.
    fn carry_out(&mut self, deed: Deed) {
        let step = self.world.trace.step;
        let own = Dice::new(self.options.seed, &format!("deed at {step}"));
        let others = std::mem::replace(&mut self.world.dice, own);
        deed::carry_out(&mut self.world, &deed, &Cast::default());
        self.world.dice = others;
        self.deeds.push((step, deed));
    }

    /// The deeds of a kept history that belong to this step.
    fn replay(&mut self) {
        let step = self.world.trace.step;
        let Some(deeds) = &self.options.deeds else { return };
        let now: Vec<Deed> =
            deeds.iter().filter(|(at, _)| *at == step).map(|(_, deed)| deed.clone()).collect();
        for deed in now {
            self.carry_out(deed);
        }
    }

    fn draw_doing(&mut self) -> Option<Deed> {
        let moving: Vec<Doing> =
            self.swarm.doings.iter().copied().filter(|d| matches!(d, Doing::Evict | Doing::Drain)).collect();
        // Moves are what histories are for.
        let pool = if self.world.dice.happens(400) { &moving } else { &self.swarm.doings };
        let doing = self.world.dice.pick(pool).copied()?;
        if doing == Doing::Guest { self.guest_acts() } else { self.act(doing).map(Deed::User) }
    }

    fn name(&mut self, prefix: &str) -> String {
        self.names += 1;
        format!("{prefix}-{}", self.names)
    }

    fn create(&mut self) -> Action {
        let vm = self.name("vm");
        let policies = [
            "AlwaysOn",
            "AlwaysOn",
            "AlwaysOnUnlessStoppedManually",
            "AlwaysOnUnlessStoppedManually",
            "Manual",
        ];
        let policy = policies[self.world.dice.below(policies.len())];
        let moves = ["AlwaysSafe", "PreferSafe", "AlwaysForced", "PreferForced"];
        let migration = moves[self.world.dice.below(moves.len())];
        Action::Create { vm, policy: policy.to_owned(), migration: migration.to_owned() }
    }

    /// A VM that exists or has existed.
    fn some_vm(&mut self) -> Option<String> {
        let all: Vec<String> = self.world.checker.instances().keys().cloned().collect();
        let key = self.world.dice.pick(&all)?;
        key.split_once('/').map(|(_, name)| name.to_owned())
    }

    fn some_node(&mut self) -> Option<String> {
        let all: Vec<String> = self.world.nodes.keys().map(ToString::to_string).collect();
        self.world.dice.pick(&all).cloned()
    }

    fn operate(&mut self, kind: &str) -> Option<Action> {
        let vm = self.some_vm()?;
        let force = [None, None, Some(true), Some(false)][self.world.dice.below(4)];
        let force = if kind == "Start" { None } else { force };
        let name = self.name("op");
        Some(Action::Operate { vm, kind: kind.to_owned(), force, name })
    }

    fn act(&mut self, doing: Doing) -> Option<Action> {
        match doing {
            Doing::Create if self.world.checker.instances().len() < self.options.vms * 2 => {
                Some(self.create())
            }
            Doing::Create => None,
            Doing::Delete => self.some_vm().map(|vm| Action::Delete { vm }),
            Doing::Power => {
                let kind = if self.world.dice.happens(500) { "Stop" } else { "Start" };
                self.operate(kind)
            }
            Doing::Restart => self.operate("Restart"),
            Doing::Evict => self.operate("Evict"),
            Doing::Cancel => self.some_vm().map(|vm| Action::Cancel { vm }),
            Doing::Drain => self.some_node().map(|node| Action::Drain { node }),
            Doing::Uncordon => self.some_node().map(|node| match self.world.dice.below(3) {
                0 => Action::CallOff { node },
                _ => Action::Uncordon { node },
            }),
            Doing::Maintain => {
                let begin = self.world.dice.happens(500);
                self.some_node().map(|node| match begin {
                    true => Action::Maintain { node },
                    false => Action::EndMaintenance { node },
                })
            }
            Doing::Cores => {
                let cores = 1 + u8::try_from(self.world.dice.below(4)).unwrap_or(0);
                self.some_vm().map(|vm| Action::Cores { vm, cores })
            }
            Doing::Pin => {
                let node = if self.world.dice.happens(500) { self.some_node() } else { None };
                self.some_vm().map(|vm| Action::Pin { vm, node })
            }
            Doing::Guest => None,
        }
    }

    fn guest_acts(&mut self) -> Option<Deed> {
        let all = self.world.machines.executing();
        let run_dir = &self.world.dice.pick(&all)?.0;
        let reboots = self.world.dice.happens(500);
        let vm = self.world.vm_of_pod.get(start::pod_of(run_dir))?.split_once('/')?.1.to_owned();
        Some(Deed::Guest { vm, reboots })
    }

    fn outcome(self, settled_after: Duration) -> Outcome {
        let world = self.world;
        Outcome {
            swarm: self.swarm,
            steps: world.trace.step,
            strokes: self.strokes,
            time: world.time(),
            hash: world.trace.hash(),
            violations: world.checker.violations().to_vec(),
            lines: world.trace.lines().collect(),
            story: world.trace.story().to_vec(),
            looked: world.checker.looked.clone(),
            points: world.surroundings.passed(),
            timeline: self.timeline.map(|t| t.finish(world.trace.step)).unwrap_or_default(),
            deeds: self.deeds,
            moves: world.checker.moves,
            settled_after,
        }
    }
}

/// One message arrives, or time passes.
fn pass(world: &mut World) {
    let waiting = world.net().waiting();
    if waiting == 0 || world.dice.happens(15) {
        advance(world, waiting == 0);
    } else {
        deliver(world, waiting);
    }
}

fn advance(world: &mut World, idle: bool) {
    let millis = match (idle, world.dice.below(10)) {
        (true, 0..=2) => 1000,
        (true, 3..=6) => 200,
        (true, _) => 20,
        (false, 0) => 100,
        (false, _) => 1 + world.dice.draw() % 10,
    };
    let time = world.time();
    world.trace.line(time, "time", &format!("+{millis} ms"));
    world.advance(Duration::from_millis(millis));
}

/// Lets one of the waiting messages arrive; time passes when the first few cannot.
fn deliver(world: &mut World, waiting: usize) {
    let lag = usize::try_from(world.weather.lag).unwrap_or(0);
    for _ in 0..4 {
        let nth = world.dice.below(waiting);
        let late = lag > 0 && world.dice.below(100) < lag;
        let net = world.net().clone();
        let message = net.take(nth, |message| {
            let put_off = late && message.kind == crate::net::Kind::Watch;
            !put_off && world.takes(&message.to)
        });
        let Some(message) = message else { continue };
        let lost = fault::is_lost(world, message.kind);
        let who = world.name_of(&message.to);
        let what = format!(
            "{:?} from {}: {}{}",
            message.kind,
            message.from,
            message.what,
            if lost { " LOST" } else { "" }
        );
        let time = world.time();
        world.trace.line(time, &who, &what);
        if lost {
            world.run_later(&message.to);
            drop(message);
            // Whoever waits for the answer may be anybody.
            world.stir_all();
        } else {
            world.deliver(message);
        }
        return;
    }
    advance(world, false);
}
