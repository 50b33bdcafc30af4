//! What a history does to the platform, one deed at a time: in words that can be written down, left out
//! and done again. Dice decide which deeds there are (`run`, `fault`, `plot`); a deed itself draws nothing.

use std::time::Duration;

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

use crate::fault::{self, freeze};
use crate::net::{Kind, PLANE, Place, ProcessId};
use crate::plot::{self, Plot};
use crate::start;
use crate::user::{self, Action, NAMESPACE};
use crate::world::{Role, World};

/// A machine: a node's name, `plane`, or - in a plot - `source` and `target` of its move.
pub type Spot = String;

/// A process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Who {
    /// The API server.
    Plane,
    /// The controllers.
    Controller,
    /// The kubelet of a node.
    Kubelet(Spot),
    /// The agent of a node.
    Agent(Spot),
    /// The launcher of a VM on a node.
    Launcher {
        /// Name of the VM.
        vm: String,
        /// Node.
        on: Spot,
    },
}

/// One deed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Deed {
    /// A user does something.
    User(Action),
    /// A guest reboots or powers off by itself.
    Guest {
        /// Name of the VM.
        vm: String,
        /// Else it powers off.
        reboots: bool,
    },
    /// `kill -9`. A launcher takes QEMU with it.
    Kill(Who),
    /// `kill -9` of the API server; its unanswered writes may be torn.
    KillPlane {
        /// They are.
        torn: bool,
    },
    /// `kill -9` of QEMU.
    KillQemu {
        /// Name of the VM.
        vm: String,
        /// Node.
        on: Spot,
    },
    /// The next process that passes this fault point dies there.
    DieAt(String),
    /// The next process that passes this fault point stays there for a while.
    WaitAt {
        /// Point.
        point: String,
        /// Milliseconds.
        ms: u64,
    },
    /// Of a thousand passed fault points so many kill.
    Points(u64),
    /// A node loses power and comes back.
    Power {
        /// Node.
        node: Spot,
        /// Milliseconds until it comes back.
        back_ms: u64,
    },
    /// A node stands still and goes on.
    Freeze {
        /// Node.
        node: Spot,
        /// Milliseconds.
        ms: u64,
    },
    /// A process stands still and goes on.
    Hang {
        /// Process.
        who: Who,
        /// Milliseconds.
        ms: u64,
    },
    /// Nothing gets from one machine to another.
    Cut {
        /// Whence.
        from: Spot,
        /// Whither.
        to: Spot,
        /// Nor back.
        both: bool,
        /// Milliseconds.
        ms: u64,
        /// What waited for the link is lost at the end.
        resets: bool,
    },
    /// Connections between two processes break, and what is on its way on them is lost.
    Sever {
        /// One.
        a: Who,
        /// The other.
        b: Who,
        /// Only those whose name begins so.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        named: String,
    },
    /// Of a thousand writes so many are answered with a failure by the API server.
    ApiFailures(u64),
    /// Of a thousand API messages so many get lost.
    LostMessages(u64),
    /// Of a hundred watch pieces that could arrive so many are put off.
    StaleCaches(u64),
    /// What memory travels over.
    Link {
        /// Bytes a second.
        bytes_s: u64,
        /// Milliseconds that the device stage takes.
        stage_ms: u64,
    },
    /// All guests dirty memory at this rate.
    Dirty(u64),
    /// The wall clock of a machine jumps.
    Clock {
        /// Machine.
        spot: Spot,
        /// Milliseconds beside the true time.
        skew_ms: i64,
    },
    /// Of a thousand importers so many fail.
    Importers(u64),
    /// Deeds that wait for their moment.
    Plot(Plot),
}

/// Who is who in a plot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cast {
    /// Where the guest is to leave.
    pub source: Option<Place>,
    /// Where it is to go.
    pub target: Option<Place>,
}

impl Cast {
    /// The machine meant; none when nobody plays that part.
    #[must_use]
    pub fn place(&self, spot: &str) -> Option<Place> {
        match spot {
            "source" => self.source.clone(),
            "target" => self.target.clone(),
            name => Some(name.into()),
        }
    }
}

/// Does it. What does not exist (any more) is left alone.
pub fn carry_out(world: &mut World, deed: &Deed, cast: &Cast) {
    let time = world.time();
    let tell = |world: &mut World, text: String| world.trace.tell(time, "fault", &text);
    match deed {
        Deed::User(action) => user::act(world, action.clone()),
        Deed::Guest { vm, reboots } => guest_acts(world, vm, *reboots),
        Deed::Kill(who) => {
            if let Some(id) = process(world, who, cast) {
                world.note(id, "is killed");
                world.kill(id);
            }
        }
        Deed::KillPlane { torn } => kill_plane(world, *torn),
        Deed::KillQemu { vm, on } => kill_qemu(world, vm, on, cast),
        Deed::DieAt(point) => {
            tell(world, format!("whoever passes {point} next dies"));
            world.surroundings.ambush(point, None);
        }
        Deed::WaitAt { point, ms } => {
            tell(world, format!("whoever passes {point} next stays there for {ms} ms"));
            world.surroundings.ambush(point, Some(Duration::from_millis(*ms)));
        }
        Deed::Points(rate) => {
            world.surroundings.set_lethal(*rate);
            tell(world, format!("of 1000 fault points {rate} kill"));
        }
        Deed::Power { node, back_ms } => power(world, node, *back_ms, cast),
        Deed::Freeze { node, ms } => stand_still(world, node, *ms, cast),
        Deed::Hang { who, ms } => {
            if let Some(id) = process(world, who, cast) {
                world.note(id, &format!("hangs for {ms} ms"));
                world.hang(id, time + Duration::from_millis(*ms));
            }
        }
        Deed::Cut { from, to, both, ms, resets } => {
            if let (Some(from), Some(to)) = (cast.place(from), cast.place(to)) {
                cut(world, (from, to), *both, *ms, *resets);
            }
        }
        Deed::Sever { a, b, named } => sever(world, a, b, named, cast),
        Deed::ApiFailures(rate) => {
            world.api_failures = *rate;
            tell(world, format!("{rate} of 1000 writes fail at the server"));
        }
        Deed::LostMessages(rate) => {
            world.weather.lost = *rate;
            tell(world, format!("{rate} of 1000 API messages get lost"));
        }
        Deed::StaleCaches(rate) => {
            world.weather.lag = *rate;
            tell(world, format!("watches lag: {rate} of 100"));
        }
        Deed::Link { bytes_s, stage_ms } => {
            world.machines.set_link(*bytes_s, Duration::from_millis(*stage_ms));
            tell(world, format!("links carry {bytes_s} B/s"));
        }
        Deed::Dirty(rate) => {
            for (run_dir, _) in world.machines.executing() {
                world.machines.guest_dirties(&run_dir, *rate);
            }
            tell(world, format!("guests dirty {rate} B/s"));
        }
        Deed::Clock { spot, skew_ms } => {
            if let Some(place) = cast.place(spot) {
                world.surroundings.skew(&place, SignedDuration::from_millis(*skew_ms));
                tell(world, format!("the clock of {place} is off by {skew_ms} ms"));
            }
        }
        Deed::Importers(rate) => {
            world.weather.bad_importers = *rate;
            tell(world, format!("{rate} of 1000 importers fail"));
        }
        Deed::Plot(plot) => plot::begin(world, plot.clone()),
    }
}

/// The process meant, if it lives.
fn process(world: &World, who: &Who, cast: &Cast) -> Option<ProcessId> {
    match who {
        Who::Plane => world.find(&PLANE.into(), &Role::Plane),
        Who::Controller => world.find(&PLANE.into(), &Role::Controller),
        Who::Kubelet(spot) => world.find(&cast.place(spot)?, &Role::Kubelet),
        Who::Agent(spot) => world.find(&cast.place(spot)?, &Role::Agent),
        Who::Launcher { vm, on } => {
            let node = world.nodes.get(&cast.place(on)?)?;
            let key = format!("{NAMESPACE}/{vm}");
            // The newest, where one is still ending.
            let of_vm = node.launchers.iter().filter(|(uid, _)| world.vm_of_pod.get(*uid) == Some(&key));
            of_vm.map(|(_, id)| *id).max()
        }
    }
}

/// How somebody would call a process of the world; none for users.
#[must_use]
pub fn called(world: &World, id: ProcessId) -> Option<Who> {
    let running = world.processes.get(&id)?;
    let spot = running.place.to_string();
    Some(match &running.role {
        Role::Plane => Who::Plane,
        Role::Controller => Who::Controller,
        Role::Kubelet => Who::Kubelet(spot),
        Role::Agent => Who::Agent(spot),
        Role::Launcher(uid) => {
            let vm = world.vm_of_pod.get(uid)?.split_once('/')?.1.to_owned();
            Who::Launcher { vm, on: spot }
        }
        Role::User => return None,
    })
}

fn guest_acts(world: &mut World, vm: &str, reboots: bool) {
    let key = format!("{NAMESPACE}/{vm}");
    let executing = world.machines.executing();
    let run_dir = executing.into_iter().map(|(dir, _)| dir).find(|dir| vm_of(world, dir) == Some(&key));
    let Some(run_dir) = run_dir else { return };
    let what = if reboots { "reboots" } else { "powers off" };
    let time = world.time();
    world.trace.tell(time, "guest", &format!("of {key} {what}"));
    if reboots {
        world.machines.guest_reboots(&run_dir);
    } else {
        world.machines.guest_powers_off(&run_dir);
    }
    world.stir_all();
}

fn vm_of<'w>(world: &'w World, run_dir: &std::path::Path) -> Option<&'w String> {
    world.vm_of_pod.get(start::pod_of(run_dir))
}

fn kill_plane(world: &mut World, torn: bool) {
    let torn = if torn { world.unanswered() } else { 0 };
    let Some(id) = world.find(&PLANE.into(), &Role::Plane) else { return };
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

fn kill_qemu(world: &mut World, vm: &str, on: &str, cast: &Cast) {
    let who = Who::Launcher { vm: vm.to_owned(), on: on.to_owned() };
    let Some(id) = process(world, &who, cast) else { return };
    let Some(Role::Launcher(uid)) = world.processes.get(&id).map(|p| p.role.clone()) else { return };
    let Some(node) = cast.place(on).and_then(|place| world.nodes.get(&place)) else { return };
    let run_dir = start::run_dir(&node.pods_dir, &uid);
    if world.machines.state(&run_dir).is_none() {
        return;
    }
    world.note(id, "loses its QEMU");
    world.excuse(&run_dir);
    world.machines.kill(&run_dir);
    world.stir_all();
}

fn power(world: &mut World, node: &str, back_ms: u64, cast: &Cast) {
    let Some(name) = cast.place(node) else { return };
    if !world.nodes.get(&name).is_some_and(|node| node.alive) {
        return;
    }
    let time = world.time();
    world.trace.tell(time, "fault", &format!("{name} loses power for {back_ms} ms"));
    start::power_off(world, &name);
    world.at(time + Duration::from_millis(back_ms), move |world| {
        let now = world.time();
        world.trace.tell(now, "repair", &format!("{name} is switched on"));
        start::power_on(world, &name);
    });
}

fn stand_still(world: &mut World, node: &str, ms: u64, cast: &Cast) {
    let Some(name) = cast.place(node) else { return };
    if !world.nodes.get(&name).is_some_and(|node| node.alive) {
        return;
    }
    let time = world.time();
    let until = time + Duration::from_millis(ms);
    world.trace.tell(time, "fault", &format!("{name} stands still for {ms} ms"));
    freeze(world, &name, true);
    let here: Vec<ProcessId> =
        world.processes.iter().filter(|(_, p)| p.place == name).map(|(id, _)| *id).collect();
    for id in here {
        world.hang(id, until);
    }
    world.at(until, move |world| freeze(world, &name, false));
}

fn cut(world: &mut World, (a, b): (Place, Place), both: bool, ms: u64, resets: bool) {
    if a == b {
        return;
    }
    let time = world.time();
    let arrow = if both { "and" } else { "to" };
    world.trace.tell(time, "fault", &format!("nothing gets between {a} {arrow} {b} for {ms} ms"));
    world.net().set_cut(&a, &b, true);
    if both {
        world.net().set_cut(&b, &a, true);
    }
    world.at(time + Duration::from_millis(ms), move |world| {
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

fn sever(world: &mut World, a: &Who, b: &Who, named: &str, cast: &Cast) {
    let (Some(one), Some(other)) = (process(world, a, cast), process(world, b, cast)) else { return };
    let count = world.net().sever(|link| link.joins(one, other) && link.name.starts_with(named));
    if count > 0 {
        world.note(one, &format!("loses {count} connections {named} to {}", fault::short(world, other)));
        world.stir_all();
    }
}
