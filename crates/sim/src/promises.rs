//! What the platform must do within a time, as long as nothing goes wrong: a call-off that came in time
//! wins, a node that is opened again keeps its VMs. A promise's time begins anew while anything is amiss.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use crate::check::Checker;
use crate::net::PLANE;
use crate::world::{Role, World};

/// Something promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// A move that was called off before its switch-over does not happen.
    CalledOff,
    /// A VM that was to leave a node stays once the node is open again.
    Stays,
}

/// Promises that are open: what about, and since when nothing was amiss.
#[derive(Debug, Default)]
pub struct Promises {
    open: BTreeMap<(Kind, String), Duration>,
    /// What was found out on a write.
    broken: Vec<(&'static str, String)>,
    /// Nodes that are closed now.
    closed: BTreeMap<String, bool>,
    /// Instances that were marked while their node was closed, and that node.
    drained: BTreeMap<String, String>,
}

/// So long a move that was called off in time may go on.
const CALL_OFF: Duration = Duration::from_secs(45);
/// So late it may still complete.
const RACE: Duration = Duration::from_secs(10);
/// So long a mark may stay on a node that is open again.
const UNMARK: Duration = Duration::from_secs(30);

fn text<'v>(value: &'v Value, path: &str) -> &'v str {
    value.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

impl Promises {
    /// A Migration was written.
    pub fn note_migration(&mut self, key: &str, migration: &Value, time: Duration) {
        let id = (Kind::CalledOff, key.to_owned());
        let status = &migration["status"];
        let called_off = !status["abort"].is_null() || !migration["metadata"]["deletionTimestamp"].is_null();
        let state = text(migration, "/status/state");
        match self.open.get(&id) {
            None => {
                let early = matches!(state, "Queued" | "Placing" | "Preparing" | "Copying");
                if called_off && early && status["source"]["suspendedAt"].is_null() {
                    self.open.insert(id, time);
                }
            }
            Some(since) if state == "Done" => {
                if time > *since + RACE {
                    let late = (time - *since).as_secs();
                    let what = format!("{key} was called off in time and completed {late} s later");
                    self.broken.push(("a call-off in time wins", what));
                }
                self.open.remove(&id);
            }
            Some(_) if matches!(state, "Failed" | "Aborted") => {
                self.open.remove(&id);
            }
            Some(_) => {}
        }
    }

    /// An object is gone.
    pub fn note_gone(&mut self, key: &str) {
        self.open.retain(|(_, about), _| about != key);
        self.drained.remove(key);
    }

    /// A node was written.
    pub fn note_node(
        &mut self,
        name: &str,
        closed: bool,
        instances: &BTreeMap<String, Value>,
        time: Duration,
    ) {
        let before = self.closed.insert(name.to_owned(), closed);
        if before == Some(closed) {
            return;
        }
        for (key, instance) in instances {
            if text(instance, "/status/evacuationNodeName") == name {
                self.note_instance(key, instance, time);
            }
        }
    }

    /// An Instance was written.
    pub fn note_instance(&mut self, key: &str, instance: &Value, time: Duration) {
        let id = (Kind::Stays, key.to_owned());
        let mark = text(instance, "/status/evacuationNodeName");
        let open = self.closed.get(mark) == Some(&false);
        // Whether or not the platform has noticed. A mark on a node that never was closed is no drain.
        if self.closed.get(mark) == Some(&true) {
            self.drained.insert(key.to_owned(), mark.to_owned());
        } else if self.drained.get(key).is_some_and(|node| node != mark) {
            self.drained.remove(key);
        }
        let ended = text(instance, "/status/state") == "Ended";
        if self.drained.contains_key(key)
            && open
            && !ended
            && instance["metadata"]["deletionTimestamp"].is_null()
        {
            self.open.entry(id).or_insert(time);
        } else {
            self.open.remove(&id);
        }
    }
}

impl World {
    /// Looks at what is promised.
    pub(crate) fn judge_promises(&mut self) {
        let promises = &mut self.checker.promises;
        let broken = std::mem::take(&mut promises.broken);
        let any = !promises.open.is_empty();
        for (rule, what) in broken {
            self.checker.violate(rule, what);
        }
        if !any {
            return;
        }
        let time = self.time();
        if self.is_amiss() {
            self.checker.promises.open.values_mut().for_each(|since| *since = time);
            return;
        }
        let late = |((kind, _), since): &(&(Kind, String), &Duration)| {
            time > **since + if *kind == Kind::CalledOff { CALL_OFF } else { UNMARK }
        };
        let late = self.checker.promises.open.iter().find(late).map(|(id, _)| id.clone());
        if let Some((kind, key)) = late {
            self.checker.broken(kind, &key);
        }
    }

    /// Whether anything is wrong with the world just now: then nobody can be expected to be quick.
    fn is_amiss(&self) -> bool {
        let time = self.time();
        let weather = &self.weather;
        let plane = PLANE.into();
        self.api_failures > 0
            || weather.lost > 0
            || weather.lag > 0
            || self.surroundings.lethal() > 0
            || self.net().any_cut()
            || self.plane_app().is_none()
            || self.find(&plane, &Role::Controller).is_none()
            || self.processes.values().any(|p| p.hangs_until.is_some_and(|until| until > time))
            || self.nodes.values().any(|node| {
                !node.alive
                    || self.find(&node.name, &Role::Agent).is_none()
                    || self.find(&node.name, &Role::Kubelet).is_none()
            })
    }
}

impl Checker {
    fn broken(&mut self, kind: Kind, key: &str) {
        match kind {
            Kind::CalledOff => {
                let what = format!("{key} was called off {} s ago and goes on", CALL_OFF.as_secs());
                self.violate("a call-off in time wins", what);
            }
            Kind::Stays => {
                let what = format!("{key} is still to leave its node, open again for {} s", UNMARK.as_secs());
                self.violate("an uncordon ends evacuations", what);
            }
        }
    }
}
