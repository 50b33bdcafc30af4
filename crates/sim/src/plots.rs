//! The catalogue of plots. Each knows its moment; which VM it is about, how long things last and what of
//! several deeds is done is drawn.

use crate::deed::{Deed, Spot, Who};
use crate::plot::{self, Cue, Plot, Scene};
use crate::start;
use crate::user::Action;
use crate::world::World;

/// Names of all plots.
pub const PLOTS: [&str; 22] = [
    "hand-over",
    "late-answer",
    "source-dies",
    "target-dies",
    "late-commit",
    "late-flip",
    "removed-by-force",
    "second-pod",
    "severed",
    "severed-peers",
    "called-off",
    "opened-again",
    "opened-unseen",
    "two-drains",
    "closed",
    "address-back",
    "plane-dies",
    "dies-loading",
    "lingers",
    "dies-at",
    "maintenance",
    "meanwhile",
];

/// Fault points of a move, in the order in which they are passed.
const POINTS: [&str; 11] = [
    "listening",
    "copying",
    "suspended",
    "routes_moved",
    "completed",
    "gave_up",
    "commit_sent",
    "continuing",
    "acked",
    "flipped",
    "start_recorded",
];

/// Makes a plot of this name; none where nothing is there to plot against.
pub fn make(world: &mut World, name: &str) -> Option<Plot> {
    if name == "second-pod" {
        return Some(second_pod(world));
    }
    let vm = running(world)?;
    let mut make = Make { world, vm };
    let scenes = match name {
        "hand-over" => make.hand_over(),
        "late-answer" => make.late_answer(),
        "source-dies" => make.source_dies(),
        "target-dies" => make.target_dies(),
        "late-commit" => make.late_commit(),
        "late-flip" => make.late_flip(),
        "removed-by-force" => make.removed_by_force()?,
        "severed" => make.severed(),
        "severed-peers" => make.severed_peers(),
        "called-off" => make.called_off(),
        "opened-again" => make.opened_again()?,
        "opened-unseen" => make.opened_unseen()?,
        "two-drains" => make.two_drains()?,
        "closed" => make.closed()?,
        "address-back" => make.address_back(),
        "plane-dies" => make.plane_dies(),
        "dies-loading" => make.dies_loading(),
        "lingers" => make.lingers(),
        "dies-at" => make.dies_at(),
        "maintenance" => make.maintenance()?,
        "meanwhile" => make.meanwhile(),
        _ => return None,
    };
    Some(Plot { name: name.to_owned(), vm: make.vm, scenes })
}

/// A VM whose guest executes.
fn running(world: &mut World) -> Option<String> {
    let executing = world.machines.executing();
    let vms: Vec<String> = executing
        .iter()
        .filter_map(|(dir, _)| world.vm_of_pod.get(start::pod_of(dir))?.split_once('/'))
        .map(|(_, vm)| vm.to_owned())
        .collect();
    world.dice.pick(&vms).cloned()
}

fn scene(when: Cue, deeds: impl Into<Vec<Deed>>) -> Scene {
    Scene { when, deeds: deeds.into() }
}

fn passed(point: &str) -> Cue {
    Cue::Passed(point.to_owned())
}

fn state(state: &str) -> Cue {
    Cue::State(state.to_owned())
}

fn agent(spot: &str) -> Who {
    Who::Agent(spot.to_owned())
}

fn cut(from: &str, to: &str, both: bool, ms: u64) -> Deed {
    Deed::Cut { from: from.to_owned(), to: to.to_owned(), both, ms, resets: false }
}

/// A new VM, which does not exist yet.
fn new_vm(world: &mut World, migration: &str) -> (String, Deed) {
    let vm = format!("plot-vm-{}", world.count_start("plot vm"));
    let policy = "AlwaysOnUnlessStoppedManually".to_owned();
    (vm.clone(), Deed::User(Action::Create { vm, policy, migration: migration.to_owned() }))
}

/// A pod goes before its launcher was claimed, and its node does not hear of it: two pods for one start.
fn second_pod(world: &mut World) -> Plot {
    let (vm, create) = new_vm(world, "PreferSafe");
    let ms = 5_000 + world.dice.draw() % 10_000;
    let quiet = 20_000 + world.dice.draw() % 20_000;
    let scenes = vec![
        scene(Cue::Now, [create]),
        scene(Cue::HasPod, [Deed::Hang { who: Who::Controller, ms }]),
        scene(
            Cue::Lives,
            [
                Deed::Hang { who: Who::Kubelet("source".to_owned()), ms: quiet },
                Deed::User(Action::ForceDelete { vm: vm.clone(), node: None }),
            ],
        ),
    ];
    Plot { name: "second-pod".to_owned(), vm, scenes }
}

struct Make<'w> {
    world: &'w mut World,
    vm: String,
}

impl Make<'_> {
    fn below(&mut self, end: usize) -> usize {
        self.world.dice.below(end)
    }

    fn ms(&mut self, from_s: u64, to_s: u64) -> u64 {
        from_s * 1000 + self.world.dice.draw() % ((to_s - from_s) * 1000)
    }

    fn operate(&mut self, kind: &str) -> Deed {
        let name = format!("plot-op-{}", self.world.count_start("plot operation"));
        Deed::User(Action::Operate { vm: self.vm.clone(), kind: kind.to_owned(), force: None, name })
    }

    fn evict(&mut self) -> Scene {
        let deed = self.operate("Evict");
        scene(Cue::Now, [deed])
    }

    fn launcher(&self, on: &str) -> Who {
        Who::Launcher { vm: self.vm.clone(), on: on.to_owned() }
    }

    fn node(&mut self) -> Option<Spot> {
        let all: Vec<Spot> = self.world.nodes.keys().map(ToString::to_string).collect();
        self.world.dice.pick(&all).cloned()
    }

    /// The node on which the plot's VM runs.
    fn here(&self) -> Option<Spot> {
        let key = format!("{}/{}", crate::user::NAMESPACE, self.vm);
        let claim = self.world.checker.instances().get(&key)?.pointer("/status/claim/node")?;
        claim.as_str().map(str::to_owned)
    }

    fn side(&mut self) -> &'static str {
        if self.below(2) == 0 { "source" } else { "target" }
    }

    /// Any one to three things at any moment of a move.
    fn hand_over(&mut self) -> Vec<Scene> {
        let cue = match self.below(4) {
            0 => Cue::TargetRuns,
            _ => passed(POINTS[self.below(POINTS.len())]),
        };
        let count = 1 + self.below(3);
        let deeds: Vec<Deed> = (0..count).map(|_| self.blow()).collect();
        vec![self.evict(), scene(cue, deeds)]
    }

    /// Something that goes wrong at one of the two nodes of a move.
    fn blow(&mut self) -> Deed {
        let side = self.side();
        let other = if side == "source" { "target" } else { "source" };
        let (short, long) = (self.ms(1, 15), self.ms(5, 80));
        let on = side.to_owned();
        match self.below(14) {
            0 => Deed::Kill(self.launcher(side)),
            1 => Deed::Kill(agent(side)),
            2 => Deed::Power { node: on, back_ms: short },
            3 => Deed::Freeze { node: on, ms: short },
            4 => Deed::Hang { who: self.launcher(side), ms: short },
            5 => Deed::Hang { who: agent(side), ms: short },
            6 => cut(side, other, false, short),
            7 => cut(side, other, true, long),
            8 => cut(side, "plane", true, long),
            9 => cut("plane", side, false, long),
            10 => Deed::Sever { a: agent(side), b: self.launcher(side), named: String::new() },
            11 => Deed::Sever { a: agent("source"), b: agent("target"), named: String::new() },
            12 => Deed::User(Action::ForceDelete { vm: self.vm.clone(), node: None }),
            _ => Deed::KillQemu { vm: self.vm.clone(), on },
        }
    }

    /// The answer to COMMIT comes late.
    fn late_answer(&mut self) -> Vec<Scene> {
        let ms = self.ms(3, 25);
        vec![self.evict(), scene(passed("commit_sent"), [cut("target", "source", false, ms)])]
    }

    /// The source dies after it has said COMMIT, and nobody hears yet that the target runs.
    fn source_dies(&mut self) -> Vec<Scene> {
        let ms = self.ms(30, 60);
        let deeds = [cut("target", "source", false, ms), cut("target", "plane", true, ms)];
        let dies = Deed::Kill(self.launcher("source"));
        vec![self.evict(), scene(passed("commit_sent"), deeds), scene(Cue::TargetRuns, [dies])]
    }

    /// The target dies when it has just begun to run, and its answer does not arrive.
    fn target_dies(&mut self) -> Vec<Scene> {
        let ms = self.ms(4, 12);
        let dies = match self.below(2) {
            0 => Deed::Kill(self.launcher("target")),
            _ => Deed::Power { node: "target".to_owned(), back_ms: self.ms(1, 5) },
        };
        let answer_lost = Deed::Sever { a: agent("source"), b: agent("target"), named: String::new() };
        vec![
            self.evict(),
            scene(passed("commit_sent"), [cut("target", "source", false, ms)]),
            scene(Cue::TargetRuns, [dies, answer_lost]),
        ]
    }

    /// The target hears COMMIT late.
    fn late_commit(&mut self) -> Vec<Scene> {
        let ms = self.ms(4, 15);
        let deed = Deed::Hang { who: self.launcher("target"), ms };
        vec![self.evict(), scene(passed("commit_sent"), [deed])]
    }

    /// The API hears late that the guest runs on the target.
    fn late_flip(&mut self) -> Vec<Scene> {
        let ms = self.ms(40, 90);
        let back_ms = self.ms(2, 8);
        let then = match self.below(3) {
            0 => Vec::new(),
            1 => vec![Deed::Power { node: "source".to_owned(), back_ms }],
            _ => vec![Deed::Kill(agent("source")), Deed::Kill(Who::Kubelet("source".to_owned()))],
        };
        vec![
            self.evict(),
            scene(passed("commit_sent"), [cut("target", "plane", true, ms)]),
            scene(Cue::TargetRuns, then),
        ]
    }

    /// The API forgets the pod of a guest that runs on.
    fn removed_by_force(&mut self) -> Option<Vec<Scene>> {
        let here = self.here()?;
        let ms = self.ms(30, 80);
        let silence = match self.below(2) {
            0 => cut(&here, "plane", true, ms),
            _ => Deed::Hang { who: Who::Kubelet(here), ms },
        };
        let remove = Deed::User(Action::ForceDelete { vm: self.vm.clone(), node: None });
        Some(vec![scene(Cue::Now, [silence]), scene(Cue::After(500), [remove])])
    }

    /// An agent and a launcher lose their connection while both live.
    fn severed(&mut self) -> Vec<Scene> {
        let mut scenes = Vec::new();
        for n in 0..3 {
            let when = if n == 0 { Cue::Now } else { Cue::After(self.ms(1, 10)) };
            let named = holdfast_wire::launcher::SOCKET.to_owned();
            scenes.push(scene(when, [Deed::Sever { a: agent("source"), b: self.launcher("source"), named }]));
        }
        scenes
    }

    /// Two agents lose their connections in the middle of a move.
    fn severed_peers(&mut self) -> Vec<Scene> {
        let points = ["copying", "suspended", "completed", "gave_up", "commit_sent", "continuing"];
        let when = passed(points[self.below(points.len())]);
        let deed = Deed::Sever { a: agent("source"), b: agent("target"), named: String::new() };
        vec![self.evict(), scene(when, [deed])]
    }

    fn slow(&mut self) -> Deed {
        Deed::Link { bytes_s: (1 + self.world.dice.draw() % 3) << 20, stage_ms: 50 }
    }

    fn fast() -> Deed {
        Deed::Link { bytes_s: 625_000_000, stage_ms: 20 }
    }

    /// A move is called off while its memory is copied, which lasts.
    fn called_off(&mut self) -> Vec<Scene> {
        let mut begin = self.evict();
        begin.deeds.insert(0, self.slow());
        let cancel = Deed::User(Action::Cancel { vm: self.vm.clone() });
        let states = ["Placing", "Preparing", "Copying", "Copying"];
        let when = state(states[self.below(states.len())]);
        vec![begin, scene(when, [cancel]), scene(Cue::After(80_000), [Self::fast()])]
    }

    /// A drained node is opened again before its VM has left. One at a time: the next one would close the node
    /// before anybody could be blamed for what he still does.
    fn opened_again(&mut self) -> Option<Vec<Scene>> {
        if plot::is_played(self.world, &["opened-again", "opened-unseen"]) {
            return None;
        }
        let node = self.here()?;
        let slow = Deed::Link { bytes_s: 256 << 10, stage_ms: 50 };
        let begin = [slow, Deed::User(Action::Drain { node: node.clone() })];
        let opened = Deed::User(Action::Uncordon { node });
        let wait = Cue::After(self.ms(0, 4));
        Some(vec![
            scene(Cue::Now, begin),
            scene(Cue::Marked, Vec::new()),
            scene(wait, [opened]),
            scene(Cue::After(80_000), [Self::fast()]),
        ])
    }

    /// The same, and the controllers never see the node closed: they stand still meanwhile, and those that come
    /// after them see it open.
    fn opened_unseen(&mut self) -> Option<Vec<Scene>> {
        let mut scenes = self.opened_again()?;
        scenes[0].deeds.insert(0, Deed::Hang { who: Who::Controller, ms: self.ms(8, 15) });
        scenes.insert(3, scene(Cue::After(1_000), [Deed::Kill(Who::Controller)]));
        Some(scenes)
    }

    /// Two nodes are drained at once: all VMs want to the third one.
    fn two_drains(&mut self) -> Option<Vec<Scene>> {
        let one = self.here()?;
        let others: Vec<Spot> =
            self.world.nodes.keys().map(ToString::to_string).filter(|node| *node != one).collect();
        let two = self.world.dice.pick(&others).cloned()?;
        let both = [&one, &two].map(|node| Deed::User(Action::Drain { node: node.clone() }));
        let open = [one, two].map(|node| Deed::User(Action::Uncordon { node }));
        let after = self.ms(20, 60);
        let stage_ms = 100 + self.world.dice.draw() % 2_000;
        let link = Deed::Link { bytes_s: 300 << 20, stage_ms };
        let begin: Vec<Deed> = std::iter::once(link).chain(both).collect();
        let end: Vec<Deed> = std::iter::once(Self::fast()).chain(open).collect();
        Some(vec![scene(Cue::Now, begin), scene(Cue::After(after), end)])
    }

    /// VMs start while a node is closed.
    fn closed(&mut self) -> Option<Vec<Scene>> {
        let node = self.node()?;
        let starts: Vec<Deed> = (0..3).map(|_| new_vm(self.world, "PreferSafe").1).collect();
        let restart = self.operate("Restart");
        Some(vec![
            scene(Cue::Now, [Deed::User(Action::Cordon { node: node.clone() })]),
            scene(Cue::After(32_000), starts),
            scene(Cue::After(2_000), [restart]),
            scene(Cue::After(20_000), [Deed::User(Action::Uncordon { node })]),
        ])
    }

    /// A VM goes and another one comes at once, while addresses are few.
    fn address_back(&mut self) -> Vec<Scene> {
        let delete = Deed::User(Action::Delete { vm: self.vm.clone() });
        let (_, create) = new_vm(self.world, "PreferSafe");
        vec![scene(Cue::Now, [delete]), scene(Cue::Gone, Vec::new()), scene(Cue::After(2_000), [create])]
    }

    /// The API server dies right after it has answered.
    fn plane_dies(&mut self) -> Vec<Scene> {
        let mut scenes = Vec::new();
        for _ in 0..4 {
            let cores = 1 + u8::try_from(self.below(4)).unwrap_or(0);
            let edit = Deed::User(Action::Cores { vm: self.vm.clone(), cores });
            let torn = self.below(2) == 0;
            let pause = self.ms(0, 8);
            scenes.push(scene(Cue::After(pause), [edit]));
            scenes.push(scene(Cue::Answered, [Deed::KillPlane { torn }]));
        }
        scenes
    }

    /// The target ends or stands still while it loads the guest's last state.
    fn dies_loading(&mut self) -> Vec<Scene> {
        let mut begin = self.evict();
        begin.deeds.insert(0, Deed::Link { bytes_s: 300 << 20, stage_ms: self.ms(1, 3) });
        let on = "target".to_owned();
        let blow = match self.below(4) {
            0 => Deed::KillQemu { vm: self.vm.clone(), on },
            1 => Deed::Kill(self.launcher("target")),
            2 => Deed::Freeze { node: on, ms: self.ms(2, 20) },
            _ => Deed::Sever { a: agent("source"), b: agent("target"), named: String::new() },
        };
        let when = Cue::After(self.world.dice.draw() % 1_500);
        vec![begin, scene(passed("routes_moved"), Vec::new()), scene(when, [blow, Self::fast()])]
    }

    /// Somebody stays at a point of the hand-over for a while, as on a machine that is busy.
    fn lingers(&mut self) -> Vec<Scene> {
        let mut begin = self.evict();
        for _ in 0..2 {
            let point = POINTS[self.below(POINTS.len())].to_owned();
            begin.deeds.push(Deed::WaitAt { point, ms: self.ms(0, 12) });
        }
        vec![begin]
    }

    /// Somebody dies at a point of the hand-over, and what would tell of it is late.
    fn dies_at(&mut self) -> Vec<Scene> {
        let mut begin = self.evict();
        let point = POINTS[self.below(POINTS.len())].to_owned();
        begin.deeds.push(Deed::DieAt(point.clone()));
        let (side, ms) = (self.side(), self.ms(5, 60));
        vec![begin, scene(passed(&point), [cut(side, "plane", true, ms)])]
    }

    /// A node goes into maintenance, the controllers die meanwhile, it comes back early or late.
    fn maintenance(&mut self) -> Option<Vec<Scene>> {
        let node = self.here()?;
        let pause = self.ms(0, 40);
        let begin = Deed::User(Action::Maintain { node: node.clone() });
        let dies = if self.below(2) == 0 { vec![Deed::Kill(Who::Controller)] } else { Vec::new() };
        let end = Deed::User(Action::EndMaintenance { node });
        Some(vec![scene(Cue::Now, [begin]), scene(Cue::Marked, dies), scene(Cue::After(pause), [end])])
    }

    /// A user does something else with a VM in the middle of its move.
    fn meanwhile(&mut self) -> Vec<Scene> {
        let vm = self.vm.clone();
        let deed = match self.below(7) {
            0 => Deed::User(Action::Delete { vm }),
            1 => self.operate("Stop"),
            2 => self.operate("Restart"),
            3 => Deed::User(Action::Cancel { vm }),
            4 => Deed::User(Action::ForceDelete { vm, node: None }),
            5 => Deed::Guest { vm, reboots: false },
            _ => Deed::Guest { vm, reboots: true },
        };
        let when = match self.below(3) {
            0 => state(["Placing", "Preparing", "Copying", "Switching"][self.below(4)]),
            _ => passed(POINTS[self.below(POINTS.len())]),
        };
        vec![self.evict(), scene(when, [deed])]
    }
}
