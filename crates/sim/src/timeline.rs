//! What was true from when to when, for a page that a person looks at: guests, processes, links, moves.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_hypervisor::port::RunState;
use serde::Serialize;

use crate::net::Place;
use crate::start;
use crate::world::{Role, World};

/// Lane and row.
type Row = (String, String);

/// Something that lasted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Span {
    /// Machine, or `moves`, `links`.
    pub lane: String,
    /// Whose: a VM, a process, a link.
    pub row: String,
    /// What: a word that is also its colour.
    pub what: String,
    /// First step.
    pub from: u64,
    /// Step at which it was over.
    pub to: u64,
}

/// Spans of a history.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    open: BTreeMap<Row, (String, u64)>,
    spans: Vec<Span>,
    /// Time of some steps, in milliseconds.
    times: Vec<(u64, u64)>,
}

impl Timeline {
    /// Looks at the world after a step.
    pub fn sample(&mut self, world: &World) {
        let step = world.trace.step;
        let now = facts(world);
        let before = std::mem::take(&mut self.open);
        for (row, (what, from)) in before {
            if now.get(&row) == Some(&what) {
                self.open.insert(row, (what, from));
            } else {
                self.close(row, what, from, step);
            }
        }
        for (row, what) in now {
            self.open.entry(row).or_insert((what, step));
        }
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let time = millis(world.time());
        if self.times.last().is_none_or(|(at, last)| time >= last + 200 || step >= at + 50) {
            self.times.push((step, time));
        }
    }

    fn close(&mut self, (lane, row): Row, what: String, from: u64, to: u64) {
        self.spans.push(Span { lane, row, what, from, to });
    }

    /// Everything until `step`, in the order in which it began.
    #[must_use]
    pub fn finish(mut self, step: u64) -> (Vec<Span>, Vec<(u64, u64)>) {
        for (row, (what, from)) in std::mem::take(&mut self.open) {
            self.close(row, what, from, step);
        }
        self.spans.sort_by(|a, b| (a.from, &a.lane, &a.row).cmp(&(b.from, &b.lane, &b.row)));
        (self.spans, self.times)
    }
}

/// What is true now.
fn facts(world: &World) -> BTreeMap<Row, String> {
    let mut facts = BTreeMap::new();
    processes(world, &mut facts);
    links(world, &mut facts);
    for migration in world.checker.migrations().values() {
        let text = |path: &str| migration.pointer(path).and_then(|v| v.as_str()).unwrap_or_default();
        if migration["status"]["finishedAt"].is_null() {
            let called_off = !migration["status"]["abort"].is_null();
            let state = if called_off { "called off" } else { text("/status/state") };
            let row = format!("move of {}", text("/spec/instance/name"));
            facts.insert(("moves".to_owned(), row), state.to_owned());
        }
    }
    for node in world.checker.closed() {
        facts.insert((node.clone(), "closed".to_owned()), "closed".to_owned());
    }
    facts
}

fn processes(world: &World, facts: &mut BTreeMap<Row, String>) {
    let time = world.time();
    for running in world.processes.values() {
        let hangs = running.hangs_until.is_some_and(|until| until > time);
        let lane = running.place.to_string();
        let (row, what) = match &running.role {
            Role::User => continue,
            Role::Launcher(uid) => launcher(world, &running.place, uid),
            role => (role.to_string(), "lives"),
        };
        facts.insert((lane, row), if hangs { "hangs" } else { what }.to_owned());
    }
    for node in world.nodes.values().filter(|node| !node.alive) {
        facts.insert((node.name.to_string(), "power".to_owned()), "off".to_owned());
    }
}

/// A launcher is shown as what its machine does.
fn launcher(world: &World, place: &Place, uid: &str) -> (String, &'static str) {
    let vm = world.vm_of_pod.get(uid).and_then(|key| key.split_once('/')).map_or("", |(_, vm)| vm);
    let run_dir = world.nodes.get(place).map(|node| start::run_dir(&node.pods_dir, uid));
    let state = run_dir.and_then(|run_dir| world.machines.state(&run_dir));
    let what = match state {
        Some(RunState::Running) => "runs",
        Some(RunState::Incoming) => "incoming",
        Some(RunState::Switching) => "switching",
        Some(RunState::Moved) => "moved away",
        Some(_) => "paused",
        None => "no machine",
    };
    (format!("{vm} {}", uid.get(..4).unwrap_or(uid)), what)
}

fn links(world: &World, facts: &mut BTreeMap<Row, String>) {
    let places = world.places();
    for (n, a) in places.iter().enumerate() {
        for b in &places[n + 1..] {
            let what = match (world.net().is_cut(a, b), world.net().is_cut(b, a)) {
                (true, true) => "cut".to_owned(),
                (true, false) => format!("cut to {b}"),
                (false, true) => format!("cut to {a}"),
                (false, false) => continue,
            };
            facts.insert(("links".to_owned(), format!("{a} - {b}")), what);
        }
    }
}
