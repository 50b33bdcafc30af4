//! Faults: how each kind strikes, and how all of it ends.

use std::time::Duration;

use jiff::SignedDuration;

use crate::net::{Kind, PLANE, Place, ProcessId};
use crate::start;
use crate::swarm::Fault;
use crate::world::{Role, World};

/// What is switched on for a while or for good.
#[derive(Clone, Debug, Default)]
pub struct Weather {
    /// Of a thousand messages of these kinds, how many get lost.
    pub lost: u64,
    /// Of a hundred watch pieces that could arrive, how many are put off.
    pub lag: u64,
}

fn seconds(world: &mut World, most: u64) -> Duration {
    Duration::from_millis(100 + world.dice.draw() % (most * 1000))
}

/// Lets a fault of this kind strike.
pub fn strike(world: &mut World, fault: Fault) {
    let time = world.time();
    match fault {
        Fault::PlaneCrash => plane_crash(world),
        Fault::ControllerCrash => crash(world, &|role| *role == Role::Controller),
        Fault::AgentCrash => crash(world, &|role| *role == Role::Agent),
        Fault::KubeletCrash => crash(world, &|role| *role == Role::Kubelet),
        Fault::LauncherCrash => crash(world, &|role| matches!(role, Role::Launcher(_))),
        Fault::QemuCrash => qemu_crash(world),
        Fault::Points => {
            let rate = [0, 0, 20, 100, 300][world.dice.below(5)];
            world.surroundings.set_lethal(rate);
            world.trace.tell(time, "fault", &format!("of 1000 fault points {rate} kill"));
        }
        Fault::NodePower => node_power(world),
        Fault::NodeHang => node_hang(world),
        Fault::ProcessHang => {
            let length = seconds(world, 20);
            if let Some(id) = pick(world, &|role| *role != Role::User) {
                world.note(id, &format!("hangs for {:.1} s", length.as_secs_f64()));
                world.hang(id, time + length);
            }
        }
        Fault::CutPlane => cut(world, true, true),
        Fault::CutPeers => cut(world, false, true),
        Fault::CutOneWay => {
            let plane = world.dice.happens(500);
            cut(world, plane, false);
        }
        Fault::ApiFailures => {
            world.api_failures = [0, 0, 50, 200, 600][world.dice.below(5)];
            let text = format!("{} of 1000 writes fail at the server", world.api_failures);
            world.trace.tell(time, "fault", &text);
        }
        Fault::LostMessages => {
            world.weather.lost = [0, 0, 2, 10, 50][world.dice.below(5)];
            let text = format!("{} of 1000 API messages get lost", world.weather.lost);
            world.trace.tell(time, "fault", &text);
        }
        Fault::StaleCaches => {
            world.weather.lag = [0, 0, 50, 90, 98][world.dice.below(5)];
            world.trace.tell(time, "fault", &format!("watches lag: {} of 100", world.weather.lag));
        }
        Fault::SlowLink => {
            let speed = [1 << 20, 10 << 20, 50 << 20, 625_000_000][world.dice.below(4)];
            world.machines.set_link(speed, Duration::from_millis(20 + world.dice.draw() % 500));
            world.trace.tell(time, "fault", &format!("links carry {speed} B/s"));
        }
        Fault::BusyGuests => {
            let speed = [0, 20 << 20, 200 << 20, 2 << 30][world.dice.below(4)];
            for (run_dir, _) in world.machines.executing() {
                world.machines.guest_dirties(&run_dir, speed);
            }
            world.trace.tell(time, "fault", &format!("guests dirty {speed} B/s"));
        }
        Fault::Clocks => {
            let places = world.places();
            if let Some(place) = world.dice.pick(&places).cloned() {
                let skew = i64::try_from(world.dice.draw() % 1_200_000).unwrap_or(0) - 600_000;
                world.surroundings.skew(&place, SignedDuration::from_millis(skew));
                world.trace.tell(time, "fault", &format!("the clock of {place} is off by {skew} ms"));
            }
        }
    }
}

fn pick(world: &mut World, is: &dyn Fn(&Role) -> bool) -> Option<ProcessId> {
    let all: Vec<ProcessId> =
        world.processes.iter().filter(|(_, process)| is(&process.role)).map(|(id, _)| *id).collect();
    world.dice.pick(&all).copied()
}

fn crash(world: &mut World, is: &dyn Fn(&Role) -> bool) {
    if let Some(id) = pick(world, is) {
        world.note(id, "is killed");
        world.kill(id);
    }
}

fn plane_crash(world: &mut World) {
    let torn = if world.dice.happens(500) { world.unanswered() } else { 0 };
    if let Some(id) = world.find(&PLANE.into(), &Role::Plane) {
        world.note(id, &format!("is killed, {torn} writes are torn"));
        world.kill(id);
        if torn > 0 {
            world.journal.drop_last(torn);
            // Nobody may have heard of what is lost.
            world
                .net()
                .lose(|message| &*message.from == PLANE && matches!(message.kind, Kind::Reply | Kind::Watch));
            world.stir_all();
        }
    }
}

fn qemu_crash(world: &mut World) {
    let all: Vec<_> = world.machines.executing().into_iter().map(|(run_dir, _)| run_dir).collect();
    if let Some(run_dir) = world.dice.pick(&all).cloned() {
        let time = world.time();
        world.trace.tell(time, "fault", &format!("QEMU of pod {} is killed", start::pod_of(&run_dir)));
        world.excuse(&run_dir);
        world.machines.kill(&run_dir);
        world.stir_all();
    }
}

fn pick_node(world: &mut World, alive: bool) -> Option<Place> {
    let all: Vec<Place> =
        world.nodes.values().filter(|node| node.alive == alive).map(|node| node.name.clone()).collect();
    world.dice.pick(&all).cloned()
}

fn node_power(world: &mut World) {
    let Some(name) = pick_node(world, true) else { return };
    let back = seconds(world, 120);
    let time = world.time();
    world.trace.tell(time, "fault", &format!("{name} loses power for {:.1} s", back.as_secs_f64()));
    start::power_off(world, &name);
    world.at(time + back, move |world| {
        let now = world.time();
        world.trace.tell(now, "repair", &format!("{name} is switched on"));
        start::power_on(world, &name);
    });
}

fn node_hang(world: &mut World) {
    let Some(name) = pick_node(world, true) else { return };
    let length = seconds(world, 60);
    let until = world.time() + length;
    let time = world.time();
    world.trace.tell(time, "fault", &format!("{name} stands still for {:.1} s", length.as_secs_f64()));
    freeze(world, &name, true);
    let here: Vec<ProcessId> =
        world.processes.iter().filter(|(_, p)| p.place == name).map(|(id, _)| *id).collect();
    for id in here {
        world.hang(id, until);
    }
    world.at(until, move |world| freeze(world, &name, false));
}

fn freeze(world: &mut World, name: &Place, frozen: bool) {
    let Some(node) = world.nodes.get(name) else { return };
    let launchers: Vec<String> = node.launchers.keys().cloned().collect();
    for uid in launchers {
        let run_dir = start::run_dir(&world.nodes[name].pods_dir, &uid);
        world.machines.freeze(&run_dir, frozen);
    }
}

fn cut(world: &mut World, plane: bool, both: bool) {
    let Some(a) = pick_node(world, true) else { return };
    let b: Place = if plane { PLANE.into() } else { pick_node(world, true).unwrap_or_else(|| a.clone()) };
    if a == b {
        return;
    }
    let (a, b) = if !both && world.dice.happens(500) { (b, a) } else { (a, b) };
    let length = seconds(world, 90);
    let time = world.time();
    let arrow = if both { "and" } else { "to" };
    let text = format!("nothing gets between {a} {arrow} {b} for {:.1} s", length.as_secs_f64());
    world.trace.tell(time, "fault", &text);
    world.net().set_cut(&a, &b, true);
    if both {
        world.net().set_cut(&b, &a, true);
    }
    let resets = world.dice.happens(500);
    world.at(time + length, move |world| {
        world.net().set_cut(&a, &b, false);
        world.net().set_cut(&b, &a, false);
        if resets {
            // What waited for the link is given up by TCP.
            world.net().lose(|message| message.from == a && message.to.place == b);
            world.net().lose(|message| message.from == b && message.to.place == a);
            world.stir_all();
        }
    });
}

/// Everything heals: links, clocks, power, loss. Crashed processes are started as always.
pub fn heal(world: &mut World) {
    world.api_failures = 0;
    world.weather = Weather::default();
    world.surroundings.set_lethal(0);
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
