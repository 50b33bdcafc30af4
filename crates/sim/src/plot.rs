//! Plots: deeds that wait for their moment. Most mistakes hide in windows that random steps hardly ever
//! meet, such as the moment between the source's last word and the target's first instruction; a plot
//! makes a VM move and strikes exactly then.
//!
//! A plot is a list of scenes; each waits for its cue on the truth of the world, then its deeds are done.
//! The plots themselves are in [`crate::plots`].

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::deed::{self, Cast, Deed};
use crate::net::{Place, ProcessId};
use crate::plots;
use crate::random::Dice;
use crate::start;
use crate::user::NAMESPACE;
use crate::world::{Role, World};

/// Deeds and the moments at which they are done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plot {
    /// Which one of the catalogue.
    pub name: String,
    /// The VM it is about.
    pub vm: String,
    /// One after the other.
    pub scenes: Vec<Scene>,
}

/// A moment and what is done then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Scene {
    /// The moment.
    pub when: Cue,
    /// What is done.
    #[serde(rename = "do")]
    pub deeds: Vec<Deed>,
}

/// A moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Cue {
    /// At once.
    Now,
    /// Milliseconds after the scene before.
    After(u64),
    /// A launcher of the VM, or an agent of its move, passes this fault point.
    Passed(String),
    /// The VM's Migration is in this state.
    State(String),
    /// The guest executes on the target.
    TargetRuns,
    /// The guest executes somewhere.
    Runs,
    /// The VM is to leave its node.
    Marked,
    /// The VM has a launcher pod.
    HasPod,
    /// A launcher of the VM lives.
    Lives,
    /// The VM is gone, with its address.
    Gone,
    /// A client was told of a write that was made after the scene before.
    Answered,
}

/// A plot under way.
#[derive(Debug)]
pub struct Playing {
    plot: Plot,
    cast: Cast,
    next: usize,
    /// When the scene before was played, and the newest write at that time.
    since: Duration,
    written: u64,
}

/// So long a plot waits for a cue.
const PATIENCE: Duration = Duration::from_secs(150);

/// Draws one of these plots.
pub fn draw(world: &mut World, names: &[&'static str]) -> Option<Plot> {
    let name = *world.dice.pick(names)?;
    plots::make(world, name)
}

/// Begins a plot.
pub fn begin(world: &mut World, plot: Plot) {
    let since = world.time();
    world.trace.tell(since, "plot", &format!("{} around {}", plot.name, plot.vm));
    world.surroundings.hear(true);
    let written = world.journal_rev();
    world.plots.push(Playing { plot, cast: Cast::default(), next: 0, since, written });
}

/// Whether one of these plots is under way.
#[must_use]
pub fn is_played(world: &World, names: &[&str]) -> bool {
    world.plots.iter().any(|playing| names.contains(&&*playing.plot.name))
}

/// Plays every scene whose moment has come.
pub fn look(world: &mut World) {
    if world.plots.is_empty() {
        return;
    }
    let heard = world.surroundings.take_heard();
    let mut left = Vec::new();
    for mut playing in std::mem::take(&mut world.plots) {
        if !play(world, &mut playing, &heard) {
            left.push(playing);
        }
    }
    world.plots.extend(left);
    if world.plots.is_empty() {
        world.surroundings.hear(false);
    }
}

/// Plays what is due of one plot; true when it is over.
fn play(world: &mut World, playing: &mut Playing, heard: &[(ProcessId, String)]) -> bool {
    cast(world, playing);
    while let Some(scene) = playing.plot.scenes.get(playing.next).cloned() {
        if !has_come(world, playing, &scene.when, heard) {
            return world.time() > playing.since + PATIENCE;
        }
        playing.next += 1;
        playing.since = world.time();
        playing.written = world.journal_rev();
        // Dice of its own: a plot that is left out moves nothing else.
        let own = Dice::new(world.seed, &format!("plot at {}", world.trace.step));
        let others = std::mem::replace(&mut world.dice, own);
        for deed in &scene.deeds {
            deed::carry_out(world, deed, &playing.cast);
        }
        world.dice = others;
        world.settle();
    }
    true
}

/// Who is source and who is target, as far as the move has come.
fn cast(world: &World, playing: &mut Playing) {
    if playing.cast.target.is_some() {
        return;
    }
    let vm = &playing.plot.vm;
    if let Some(place) = runs_on(world, vm).or_else(|| lives_on(world, vm)) {
        playing.cast.source = Some(place);
    }
    let target = migration(world, vm).and_then(|m| m.pointer("/status/target/node")?.as_str());
    playing.cast.target = target.filter(|node| !node.is_empty()).map(Into::into);
}

/// The move of a VM that is not over.
fn migration<'w>(world: &'w World, vm: &str) -> Option<&'w serde_json::Value> {
    let of_vm = |m: &&serde_json::Value| {
        m.pointer("/spec/instance/name").and_then(|name| name.as_str()) == Some(vm)
            && m["status"]["finishedAt"].is_null()
    };
    world.checker.migrations().values().find(of_vm)
}

/// The node on which the guest of a VM executes.
fn runs_on(world: &World, vm: &str) -> Option<Place> {
    let key = format!("{NAMESPACE}/{vm}");
    let run_dir = world.guests.iter().find(|dir| world.vm_of_pod.get(start::pod_of(dir)) == Some(&key))?;
    world.nodes.values().find(|node| run_dir.starts_with(&node.pods_dir)).map(|node| node.name.clone())
}

fn lives_on(world: &World, vm: &str) -> Option<Place> {
    let key = format!("{NAMESPACE}/{vm}");
    let lives = |running: &&crate::world::Running| matches!(&running.role, Role::Launcher(uid) if world.vm_of_pod.get(uid) == Some(&key));
    world.processes.values().find(lives).map(|running| running.place.clone())
}

fn has_come(world: &World, playing: &Playing, cue: &Cue, heard: &[(ProcessId, String)]) -> bool {
    let vm = &playing.plot.vm;
    let key = format!("{NAMESPACE}/{vm}");
    match cue {
        Cue::Now => true,
        Cue::After(ms) => world.time() >= playing.since + Duration::from_millis(*ms),
        Cue::Passed(point) => heard.iter().any(|(id, passed)| {
            // Whoever died there is gone already.
            passed == point && world.processes.get(id).is_none_or(|p| takes_part(world, playing, p))
        }),
        Cue::State(state) => migration(world, vm).is_some_and(|m| m["status"]["state"] == **state),
        Cue::TargetRuns => playing.cast.target.is_some() && runs_on(world, vm) == playing.cast.target,
        Cue::Runs => runs_on(world, vm).is_some(),
        Cue::Marked => {
            let mark = world
                .checker
                .instances()
                .get(&key)
                .and_then(|i| i.pointer("/status/evacuationNodeName").and_then(|mark| mark.as_str()));
            mark.is_some_and(|mark| !mark.is_empty())
        }
        Cue::HasPod => world.checker.has_pod(vm),
        Cue::Lives => lives_on(world, vm).is_some(),
        Cue::Gone => !world.checker.instances().contains_key(&key),
        Cue::Answered => world.checker.acknowledged > playing.written,
    }
}

/// Whether a process is a launcher of the plot's VM, or the agent of a node of its move.
fn takes_part(world: &World, playing: &Playing, running: &crate::world::Running) -> bool {
    match &running.role {
        Role::Launcher(uid) => {
            let vm = world.vm_of_pod.get(uid).and_then(|key| key.split_once('/'));
            vm.is_some_and(|(_, name)| name == playing.plot.vm)
        }
        Role::Agent => {
            let parts = [&playing.cast.source, &playing.cast.target];
            parts.into_iter().flatten().any(|place| *place == running.place)
        }
        _ => false,
    }
}
