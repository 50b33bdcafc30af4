//! Faults: which deed each kind draws, and how all of it ends.

use std::time::Duration;

use jiff::SignedDuration;

use crate::deed::{Deed, called};
use crate::net::{Kind, PLANE, Place, ProcessId, USERS};
use crate::swarm::{Fault, Swarm};
use crate::world::{Role, World};
use crate::{plot, start};

/// What is switched on for a while or for good.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Weather {
    /// Of a thousand messages of these kinds, how many get lost.
    pub lost: u64,
    /// Of a hundred watch pieces that could arrive, how many are put off.
    pub lag: u64,
    /// Of a thousand importers, how many fail.
    pub bad_importers: u64,
}

fn millis(world: &mut World, most_s: u64) -> u64 {
    100 + world.dice.draw() % (most_s * 1000)
}

/// Draws a deed of this kind; none where there is nothing to strike.
pub fn draw(world: &mut World, swarm: &Swarm, fault: Fault) -> Option<Deed> {
    let kill = |world: &mut World, is: &dyn Fn(&Role) -> bool| {
        let id = pick(world, is)?;
        Some(Deed::Kill(called(world, id)?))
    };
    match fault {
        Fault::PlaneCrash => Some(Deed::KillPlane { torn: world.dice.happens(500) }),
        Fault::ControllerCrash => kill(world, &|role| *role == Role::Controller),
        Fault::AgentCrash => kill(world, &|role| *role == Role::Agent),
        Fault::KubeletCrash => kill(world, &|role| *role == Role::Kubelet),
        Fault::LauncherCrash => kill(world, &|role| matches!(role, Role::Launcher(_))),
        Fault::QemuCrash => qemu_crash(world),
        Fault::Points => Some(Deed::Points([0, 0, 20, 100, 300][world.dice.below(5)])),
        Fault::NodePower => {
            let node = pick_node(world)?.to_string();
            Some(Deed::Power { node, back_ms: millis(world, 120) })
        }
        Fault::NodeHang => {
            let node = pick_node(world)?.to_string();
            Some(Deed::Freeze { node, ms: millis(world, 60) })
        }
        Fault::ProcessHang => {
            let ms = millis(world, 20);
            let id = pick(world, &|role| *role != Role::User)?;
            Some(Deed::Hang { who: called(world, id)?, ms })
        }
        Fault::CutPlane => cut(world, true, true),
        Fault::CutPeers => cut(world, false, true),
        Fault::CutOneWay => {
            let plane = world.dice.happens(500);
            cut(world, plane, false)
        }
        Fault::ApiFailures => Some(Deed::ApiFailures([0, 0, 50, 200, 600][world.dice.below(5)])),
        Fault::LostMessages => Some(Deed::LostMessages([0, 0, 2, 10, 50][world.dice.below(5)])),
        Fault::StaleCaches => Some(Deed::StaleCaches([0, 0, 50, 90, 98][world.dice.below(5)])),
        Fault::SlowLink => {
            let bytes_s = [1 << 20, 10 << 20, 50 << 20, 625_000_000][world.dice.below(4)];
            Some(Deed::Link { bytes_s, stage_ms: 20 + world.dice.draw() % 500 })
        }
        Fault::BusyGuests => Some(Deed::Dirty([0, 20 << 20, 200 << 20, 2 << 30][world.dice.below(4)])),
        Fault::Clocks => {
            let places = world.places();
            let spot = world.dice.pick(&places)?.to_string();
            let skew_ms = i64::try_from(world.dice.draw() % 1_200_000).unwrap_or(0) - 600_000;
            Some(Deed::Clock { spot, skew_ms })
        }
        Fault::Severed => severed(world),
        Fault::Importers => Some(Deed::Importers([0, 200, 500, 900][world.dice.below(4)])),
        Fault::Plots => plot::draw(world, &swarm.plots).map(Deed::Plot),
    }
}

fn pick(world: &mut World, is: &dyn Fn(&Role) -> bool) -> Option<ProcessId> {
    let all: Vec<ProcessId> =
        world.processes.iter().filter(|(_, process)| is(&process.role)).map(|(id, _)| *id).collect();
    world.dice.pick(&all).copied()
}

fn qemu_crash(world: &mut World) -> Option<Deed> {
    let all = world.machines.executing();
    let run_dir = &world.dice.pick(&all)?.0;
    let vm = world.vm_of_pod.get(start::pod_of(run_dir))?.split_once('/')?.1.to_owned();
    let node = world.nodes.values().find(|node| run_dir.starts_with(&node.pods_dir))?;
    Some(Deed::KillQemu { vm, on: node.name.to_string() })
}

/// Any connection of which both ends live: it breaks, and nobody dies.
fn severed(world: &mut World) -> Option<Deed> {
    let links = world.net().links();
    let both_live = |(a, b): &(ProcessId, ProcessId)| {
        called(world, *a).is_some() && called(world, *b).is_some() && a != b
    };
    let alive: Vec<(ProcessId, ProcessId)> = links.into_iter().filter(both_live).collect();
    let (a, b) = world.dice.pick(&alive).copied()?;
    Some(Deed::Sever { a: called(world, a)?, b: called(world, b)?, named: String::new() })
}

/// A process in a line about another one.
pub(crate) fn short(world: &World, id: ProcessId) -> String {
    world.processes.get(&id).map_or_else(|| "nobody".to_owned(), |p| format!("{}/{}", p.place, p.role))
}

fn pick_node(world: &mut World) -> Option<Place> {
    let all: Vec<Place> =
        world.nodes.values().filter(|node| node.alive).map(|node| node.name.clone()).collect();
    world.dice.pick(&all).cloned()
}

pub(crate) fn freeze(world: &mut World, name: &Place, frozen: bool) {
    let Some(node) = world.nodes.get(name) else { return };
    let launchers: Vec<String> = node.launchers.keys().cloned().collect();
    for uid in launchers {
        let run_dir = start::run_dir(&world.nodes[name].pods_dir, &uid);
        world.machines.freeze(&run_dir, frozen);
    }
}

fn cut(world: &mut World, plane: bool, both: bool) -> Option<Deed> {
    let a = pick_node(world)?;
    let b: Place = if plane { PLANE.into() } else { pick_node(world)? };
    if a == b {
        return None;
    }
    let (a, b) = if !both && world.dice.happens(500) { (b, a) } else { (a, b) };
    let ms = millis(world, 90);
    let resets = world.dice.happens(500);
    Some(Deed::Cut { from: a.to_string(), to: b.to_string(), both, ms, resets })
}

/// Everything heals: links, clocks, power, loss. Crashed processes are started as always.
pub fn heal(world: &mut World) {
    world.plots.clear();
    world.api_failures = 0;
    world.weather = Weather::default();
    world.surroundings.set_lethal(0);
    world.surroundings.no_ambushes();
    world.surroundings.hear(false);
    world.machines.set_link(625_000_000, Duration::from_millis(20));
    let places = world.places();
    for a in &places {
        world.surroundings.skew(a, SignedDuration::ZERO);
        for b in &places {
            world.net().set_cut(a, b, false);
        }
    }
    let nodes: Vec<Place> = world.nodes.keys().cloned().collect();
    for name in &nodes {
        freeze(world, name, false);
    }
    // Guests of nodes that stood still among them.
    for (run_dir, _) in world.machines.executing() {
        world.machines.guest_dirties(&run_dir, 0);
    }
    world.wake_all();
    for name in &nodes {
        start::power_on(world, name);
    }
}

/// Whether a message is lost on its way.
pub fn is_lost(world: &mut World, kind: Kind) -> bool {
    let at_risk = matches!(kind, Kind::Request | Kind::Reply | Kind::Watch);
    at_risk && world.weather.lost > 0 && world.dice.happens(world.weather.lost)
}

impl World {
    /// Places that are machines.
    #[must_use]
    pub fn places(&self) -> Vec<Place> {
        let mut places: Vec<Place> = self.nodes.keys().cloned().collect();
        places.push(PLANE.into());
        places.push(USERS.into());
        places
    }
}
