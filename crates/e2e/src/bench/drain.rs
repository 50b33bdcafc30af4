//! One node full of guests is drained with the user's own kubectl: what was planned, what then happened,
//! and what it cost.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::Child;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::ping::{self, Ping};
use super::requests::{self, Requests};
use crate::{Guest, Home, manifests, s};

/// Pings of many guests share two processors: one in this time for each.
const PING_EVERY: Duration = Duration::from_millis(40);

/// States of a move in their order.
const STATES: [&str; 6] = ["Queued", "Placing", "Preparing", "Copying", "Switching", "Done"];

/// A drained node.
#[derive(Debug)]
pub struct Drained {
    /// Seconds that the drain plan gave for all.
    pub planned_s: f64,
    /// Seconds the plan gave for each move.
    pub planned_each_s: f64,
    /// From the drain command to its end.
    pub took: Duration,
    /// Moves that were done.
    pub moves: usize,
    /// From the end of a move to the next one's slot.
    pub idle: Vec<Duration>,
    /// Time spent in each state but the queue, over all moves.
    pub steps: BTreeMap<&'static str, Vec<Duration>>,
    /// Longest silence of each guest.
    pub silence: Vec<Duration>,
    /// Longest silence of a guest in as long a time without moves.
    pub quiet: Duration,
    /// Writes to the API that were neither kubectl's nor heartbeats.
    pub writes: Requests,
}

/// Names of the nodes.
pub fn nodes(home: &Home) -> Result<Vec<String>> {
    let all = home.k(&["get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"])?;
    Ok(all.split_whitespace().map(str::to_owned).collect())
}

/// Starts `count` guests on one node and waits until each answers. Returns the node and the guests.
pub fn fill(home: &Home, count: usize) -> Result<(String, Vec<Guest>)> {
    let nodes = nodes(home)?;
    let (full, others) = nodes.split_first().context("no node")?;
    for node in others {
        home.k(&["cordon", node])?;
    }
    home.apply(&manifests::demo_image())?;
    let names: Vec<String> = (1..=count).map(|n| format!("d{n}")).collect();
    let all = names.iter().map(|n| format!("{}{}", manifests::disk(&format!("{n}-root")), small_vm(n)));
    home.apply(&all.collect::<String>())?;
    let mut guests = Vec::new();
    for name in &names {
        home.wait_condition(&format!("vm {name}"), "AgentReady", "True", s(900))?;
        let guest = Guest { address: home.field(&format!("vm {name}"), "/status/ipAddress") };
        guest.wait_ssh(s(300))?;
        ping::serve(&guest)?;
        guests.push(guest);
    }
    for node in others {
        home.k(&["uncordon", node])?;
    }
    Ok((full.clone(), guests))
}

fn small_vm(name: &str) -> String {
    let vm = manifests::vm(name, "");
    vm.replace("coreFraction: 10%", "coreFraction: 5%").replace("size: 192Mi", "size: 128Mi")
}

/// Drains `node`.
pub fn drain(home: &Home, node: &str, guests: &[Guest]) -> Result<Drained> {
    let plan: Value = serde_json::from_str(&home.d8(&["v", "drain-plan", node, "-o", "json"])?)?;
    let moves = plan["moves"].as_array().context("the plan has no moves")?;
    ensure!(moves.len() == guests.len(), "the plan moves {} of {} VMs: {plan}", moves.len(), guests.len());
    let planned_each_s = moves.iter().filter_map(|m| m["seconds"].as_f64()).sum::<f64>() / moves.len() as f64;

    let quiet = longest(&silences(guests, || {
        std::thread::sleep(s(5));
        Ok(())
    })?);
    let states = States::start(home)?;
    let before = requests::all(home)?;
    let mut took = Duration::ZERO;
    let silence = silences(guests, || {
        let begun = Instant::now();
        home.k(&["drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=900s"])?;
        took = begun.elapsed();
        // What the platform writes when a move has ended is part of its price.
        std::thread::sleep(s(3));
        Ok(())
    })?;
    let writes = requests::writes(&before, &requests::all(home)?);
    let seen = states.end();
    Ok(Drained {
        planned_s: plan["totalSeconds"].as_f64().unwrap_or(f64::NAN),
        planned_each_s,
        took,
        moves: seen.iter().filter(|seen| seen.state == "Done").count(),
        idle: idle(&seen),
        steps: steps(&seen),
        silence,
        quiet,
        writes,
    })
}

/// Pings all guests while `work` goes on; the longest silence of each.
fn silences(guests: &[Guest], work: impl FnOnce() -> Result<()>) -> Result<Vec<Duration>> {
    let pings: Vec<Ping> =
        guests.iter().map(|guest| Ping::start(guest, PING_EVERY)).collect::<Result<_>>()?;
    let outcome = work();
    let silences = pings.into_iter().map(Ping::end).collect();
    outcome?;
    silences
}

/// The longest of them.
pub fn longest(times: &[Duration]) -> Duration {
    times.iter().max().copied().unwrap_or_default()
}

/// A move was seen in a state.
#[derive(Clone, Debug)]
struct Seen {
    at: Instant,
    name: String,
    state: String,
}

/// A watch of the moves' states.
struct States {
    child: Child,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl States {
    fn start(home: &Home) -> Result<Self> {
        let path = "jsonpath={.metadata.name} {.status.state}{\"\\n\"}";
        let kind = "migrations.internal.virtualization.deckhouse.io";
        let mut child = home.k_spawn(&["get", kind, "--watch-only", "-o", path])?;
        let out = child.stdout.take().context("no stdout")?;
        let seen = Arc::new(Mutex::new(Vec::<Seen>::new()));
        let written = seen.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let Some((name, state)) = line.split_once(' ') else { continue };
                let Ok(mut seen) = written.lock() else { return };
                let last = seen.iter().rev().find(|s| s.name == name).map(|s| s.state.as_str());
                if !state.is_empty() && last != Some(state) {
                    seen.push(Seen { at: Instant::now(), name: name.to_owned(), state: state.to_owned() });
                }
            }
        });
        // `--watch-only` prints nothing at first, so it is given a second to connect.
        std::thread::sleep(s(1));
        Ok(Self { child, seen })
    }

    fn end(mut self) -> Vec<Seen> {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.seen.lock().map(|seen| seen.clone()).unwrap_or_default()
    }
}

/// From each end of a move to the next slot that was granted.
fn idle(seen: &[Seen]) -> Vec<Duration> {
    let ends = seen.iter().filter(|seen| seen.state == "Done");
    let next =
        |end: &Seen| seen.iter().find(|seen| seen.state == "Placing" && seen.at > end.at).map(|s| s.at);
    ends.filter_map(|end| Some(next(end)? - end.at)).collect()
}

/// How long moves stayed in each state.
fn steps(seen: &[Seen]) -> BTreeMap<&'static str, Vec<Duration>> {
    let mut steps: BTreeMap<&'static str, Vec<Duration>> = BTreeMap::new();
    for (n, entered) in seen.iter().enumerate() {
        let Some(state) = STATES[1..STATES.len() - 1].iter().find(|state| **state == entered.state) else {
            continue;
        };
        let left = seen[n + 1..].iter().find(|later| later.name == entered.name);
        steps.entry(state).or_default().extend(left.map(|later| later.at - entered.at));
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_and_steps_are_read_from_what_was_seen() {
        let begun = Instant::now();
        let ms = Duration::from_millis;
        let seen = [(0, "a", "Queued"), (1, "b", "Queued"), (2, "a", "Placing"), (50, "a", "Done")]
            .into_iter()
            .chain([(57, "b", "Placing"), (90, "b", "Copying"), (120, "b", "Done")]);
        let seen: Vec<Seen> = seen
            .map(|(at, name, state)| Seen { at: begun + ms(at), name: name.into(), state: state.into() })
            .collect();
        assert_eq!(idle(&seen), [ms(7)]);
        let steps = steps(&seen);
        assert_eq!(steps["Placing"], [ms(48), ms(33)]);
        assert_eq!(steps["Copying"], [ms(30)]);
        assert_eq!(longest(&[ms(3), ms(9), ms(1)]), ms(9));
    }
}
