//! The judge: invariants, looked at after every step, on the truth of the world and on every write of
//! the API server (architecture.md §5).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use holdfast_api::names::label::VM_NAME;
use holdfast_kubelith::UserInfo;
use holdfast_kubelith::store::Record;
use serde_json::Value;

use crate::net::Place;
use crate::promises::Promises;

/// Something that must never happen, and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which rule.
    pub rule: &'static str,
    /// What happened.
    pub what: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.rule, self.what)
    }
}

/// An address in use, or given back.
#[derive(Debug)]
struct Address {
    vm_uid: String,
    /// When its user was deleted; none while it has one.
    released: Option<Duration>,
}

/// The judge of one history.
#[derive(Debug, Default)]
pub struct Checker {
    violations: Vec<Violation>,
    migrations: BTreeMap<String, Value>,
    operations: BTreeMap<String, Value>,
    instances: BTreeMap<String, Value>,
    addresses: BTreeMap<String, Address>,
    /// Nodes, for the limit of all moves together.
    nodes: BTreeSet<String>,
    /// Cordoned nodes, and since when (seconds since 1970).
    cordoned: BTreeMap<String, i64>,
    /// Pods that were seen with a node.
    placed: BTreeSet<String>,
    /// Somebody has removed pods by force: the API knows less than is true.
    pub forced: bool,
    /// Nodes whose maintenance has succeeded.
    succeeded: BTreeSet<String>,
    /// Launcher pods by VM.
    pods: BTreeMap<String, BTreeSet<String>>,
    /// VMs (namespace/name) whose guest somebody has asked to end or restart.
    pub may_end: BTreeSet<String>,
    /// Highest revision that a client was told of.
    pub acknowledged: u64,
    /// Writes by kind, for the figures.
    pub writes: BTreeMap<String, u64>,
    /// Moves that were completed.
    pub moves: u64,
    /// What each client wrote last to each path, and how often in a row.
    last_writes: BTreeMap<String, (Bytes, u32)>,
    /// What must happen within a time.
    pub(crate) promises: Promises,
    /// How often each rule was looked at with something to look at.
    pub looked: BTreeMap<&'static str, u64>,
}

/// How long an address stays with its last VM (api.md, retention of leases: ten minutes, in whole seconds).
const RETENTION: Duration = Duration::from_secs(598);

/// The same write so often in a row is a circle, not a repetition after lost answers.
const REPEATS_MAX: u32 = 100;

const INTERNAL: &str = "internal.virtualization.deckhouse.io";
const PUBLIC: &str = "virtualization.deckhouse.io";

impl Checker {
    /// What must never have happened.
    #[must_use]
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// Notes a violation.
    pub fn violate(&mut self, rule: &'static str, what: impl Into<String>) {
        let violation = Violation { rule, what: what.into() };
        if !self.violations.contains(&violation) {
            self.violations.push(violation);
        }
    }

    fn look(&mut self, rule: &'static str) {
        *self.looked.entry(rule).or_default() += 1;
    }

    /// INV-8: who may write what, seen at the request.
    pub fn note_call(&mut self, head: &http::request::Parts, body: &Bytes, user: &UserInfo) {
        if head.method == http::Method::GET {
            return;
        }
        let path = head.uri.path();
        self.note_repeat(path, body, user);
        let Some((kind, rest)) = user_kind(path) else { return };
        let platform = user.name.starts_with("system:");
        let status = rest.ends_with("/status");
        self.look("INV-8");
        if status && user.name != "system:holdfast:controller" {
            let what = format!("{} wrote the status of {kind} at {path}", user.name);
            return self.violate("INV-8 status has one writer", what);
        }
        // Leases of addresses are the platform's own objects.
        let platforms_own = kind == "virtualmachineipaddressleases";
        if platform
            && !platforms_own
            && !status
            && matches!(head.method, http::Method::PATCH | http::Method::PUT)
        {
            let value: Value = serde_json::from_slice(body).unwrap_or_default();
            let foreign = foreign_field(&value);
            if let Some(field) = foreign {
                let what = format!("{} changed {field} of {kind} at {path}", user.name);
                self.violate("INV-8 users' objects are theirs", what);
            }
        }
    }

    /// No part of the platform sends the very same write again and again: it changes nothing, and its sender
    /// does nothing else.
    fn note_repeat(&mut self, path: &str, body: &Bytes, user: &UserInfo) {
        // An eviction asks whether a pod may go, every five seconds until it may: for ever where no node is open.
        if !user.name.starts_with("system:") || path.ends_with("/eviction") {
            return;
        }
        let last = self.last_writes.entry(format!("{} {path}", user.name)).or_default();
        if last.0 != *body {
            *last = (body.clone(), 0);
        }
        last.1 += 1;
        if last.1 == REPEATS_MAX {
            let what = format!("{} wrote the same to {path} {REPEATS_MAX} times", user.name);
            self.violate("no process goes in a circle", what);
        }
    }

    /// A write of the API server.
    pub fn note_write(&mut self, record: &Record, time: Duration) {
        let Some((plural, group)) = record.storage.split_once('.') else {
            return self.note_core(record, time);
        };
        if !group.ends_with(PUBLIC) {
            return;
        }
        *self.writes.entry(plural.to_owned()).or_default() += 1;
        let interesting = matches!(
            (plural, group),
            ("migrations" | "instances", INTERNAL) | ("virtualmachineoperations", PUBLIC)
        );
        if !interesting {
            return;
        }
        let Ok(value) = serde_json::from_slice::<Value>(&record.json) else { return };
        let key = format!("{}/{}", record.namespace, record.name);
        match plural {
            "migrations" => self.note_migration(key, value, record.deleted, time),
            "instances" => self.note_instance(key, value, record.deleted, time),
            _ => self.note_operation(key, value, record.deleted),
        }
    }

    /// Nodes and pods: no launcher is placed on a node that was cordoned a while ago.
    fn note_core(&mut self, record: &Record, time: Duration) {
        let name = record.name.to_string();
        match &*record.storage {
            "nodes" if record.deleted => {
                self.nodes.remove(&name);
            }
            "nodes" => {
                self.nodes.insert(name.clone());
                let Ok(node) = serde_json::from_slice::<Value>(&record.json) else { return };
                let closed = node["spec"]["unschedulable"] == Value::Bool(true);
                self.promises.note_node(&name, closed, &self.instances, time);
                if closed {
                    self.cordoned.entry(name).or_insert(record.at);
                } else {
                    self.cordoned.remove(&name);
                }
            }
            // A pod with a node keeps it, and its VM.
            "pods" if record.deleted || !self.placed.contains(&*record.uid) => {
                let Ok(pod) = serde_json::from_slice::<Value>(&record.json) else { return };
                self.note_launcher(&name, &pod, record.deleted);
                if record.deleted {
                    return;
                }
                let Some(node) = pod["spec"]["nodeName"].as_str() else { return };
                self.placed.insert(record.uid.to_string());
                self.look("cordon");
                // The scheduler may have decided before it saw the cordon.
                let cordoned = self.cordoned.get(node).copied();
                if let Some(at) = cordoned.filter(|at| record.at > at + 30) {
                    let what =
                        format!("pod {name} was placed on {node}, cordoned {} s before", record.at - at);
                    self.violate("a cordoned node gets no VM", what);
                }
            }
            _ => {}
        }
    }

    fn note_launcher(&mut self, name: &str, pod: &Value, deleted: bool) {
        let Some(vm) = pod["metadata"]["labels"][VM_NAME].as_str() else { return };
        let of_vm = self.pods.entry(vm.to_owned()).or_default();
        if deleted {
            of_vm.remove(name);
        } else {
            of_vm.insert(name.to_owned());
        }
    }

    /// Nodes that are cordoned.
    pub fn closed(&self) -> impl Iterator<Item = &String> {
        self.cordoned.keys()
    }

    /// Whether a VM has a launcher pod.
    #[must_use]
    pub fn has_pod(&self, vm: &str) -> bool {
        self.pods.get(vm).is_some_and(|pods| !pods.is_empty())
    }

    fn note_operation(&mut self, key: String, value: Value, deleted: bool) {
        if deleted {
            self.operations.remove(&key);
            return;
        }
        let old = self.operations.insert(key.clone(), value.clone());
        let was_over = |old: &Value| {
            matches!(old["status"]["phase"].as_str(), Some("Completed" | "Failed" | "Superseded"))
        };
        self.check_completed(&key, old.as_ref(), &value);
        self.check_finished("vmop", &key, old.filter(was_over), &value);
    }

    fn note_migration(&mut self, key: String, value: Value, deleted: bool, time: Duration) {
        if deleted {
            self.promises.note_gone(&key);
            self.migrations.remove(&key);
            return;
        }
        self.promises.note_migration(&key, &value, time);
        let old = self.migrations.insert(key.clone(), value.clone());
        let was_over = |old: &Value| !old["status"]["finishedAt"].is_null();
        let done = |value: &Value| value["status"]["state"] == "Done";
        if done(&value) && !old.as_ref().is_some_and(done) {
            self.moves += 1;
        }
        self.check_finished("Migration", &key, old.filter(was_over), &value);
        self.check_limits();
    }

    /// An operation that moves a VM is completed when its move is done, and not before.
    fn check_completed(&mut self, key: &str, old: Option<&Value>, new: &Value) {
        let completed = |value: &Value| value["status"]["phase"] == "Completed";
        if !completed(new) || old.is_some_and(completed) {
            return;
        }
        let uid = &new["metadata"]["uid"];
        let owned = |migration: &&Value| {
            let owners = migration["metadata"]["ownerReferences"].as_array();
            owners.into_iter().flatten().any(|owner| owner["uid"] == *uid)
        };
        let Some(migration) = self.migrations.values().find(owned) else { return };
        let state = migration["status"]["state"].clone();
        self.look("completed");
        if state != "Done" {
            let what = format!("{key} is Completed while its move is {state}");
            self.violate("operations complete when they are done", what);
        }
    }

    /// A maintenance has succeeded when no guest is left on its node; `guests`: nodes where guests execute.
    pub(crate) fn check_maintenance(&mut self, record: &Record, guests: &BTreeSet<Place>) {
        if &*record.storage != "nodemaintenances.nodemaintenance.medik8s.io" || record.deleted {
            return;
        }
        let Ok(value) = serde_json::from_slice::<Value>(&record.json) else { return };
        let node = value["spec"]["nodeName"].as_str().unwrap_or_default();
        let succeeded = value["status"]["phase"] == "Succeeded";
        if !succeeded {
            self.succeeded.remove(node);
        } else if self.succeeded.insert(node.to_owned()) {
            self.look("maintenance");
            if guests.contains(node) && !self.forced {
                let what = format!("the maintenance of {node} has succeeded, and a guest runs there");
                self.violate("a maintained node is empty", what);
            }
        }
    }

    /// INV-7: what has finished never changes again.
    fn check_finished(&mut self, kind: &str, key: &str, old: Option<Value>, new: &Value) {
        let Some(old) = old.filter(|old| old["metadata"]["uid"] == new["metadata"]["uid"]) else { return };
        self.look("INV-7");
        if old["status"] != new["status"] {
            let what = format!("{kind} {key}: {} became {}", old["status"], new["status"]);
            self.violate("INV-7 finished operations stay", what);
        }
    }

    /// INV-5 on what the API says: one move out of a node, one into a node, in all no more than nodes.
    fn check_limits(&mut self) {
        let mut leaving: BTreeMap<String, u32> = BTreeMap::new();
        let mut entering: BTreeMap<String, u32> = BTreeMap::new();
        let mut all = 0;
        for migration in self.migrations.values() {
            let status = &migration["status"];
            let state = status["state"].as_str().unwrap_or_default();
            if !matches!(state, "Placing" | "Preparing" | "Copying" | "Switching") {
                continue;
            }
            // Called off, and nothing of its target is left: it waits for a source that is not heard of.
            if !status["abort"].is_null() && !status["target"]["endedAt"].is_null() {
                continue;
            }
            all += 1;
            if let Some(node) = status["source"]["node"].as_str() {
                *leaving.entry(node.to_owned()).or_default() += 1;
            }
            if let Some(node) = status["target"]["node"].as_str().filter(|_| state != "Placing") {
                *entering.entry(node.to_owned()).or_default() += 1;
            }
        }
        if all == 0 {
            return;
        }
        self.look("INV-5");
        let too_many = |map: BTreeMap<String, u32>| map.into_iter().find(|(_, count)| *count > 1);
        if let Some((node, count)) = too_many(leaving) {
            self.violate("INV-5 migration limits", format!("{count} moves leave {node}"));
        }
        if let Some((node, count)) = too_many(entering) {
            self.violate("INV-5 migration limits", format!("{count} moves enter {node}"));
        }
        if all > self.nodes.len().max(1) {
            self.violate("INV-5 migration limits", format!("{all} moves on {} nodes", self.nodes.len()));
        }
    }

    fn note_instance(&mut self, key: String, value: Value, deleted: bool, time: Duration) {
        self.check_address(&value, deleted, time);
        if deleted {
            self.instances.remove(&key);
            self.promises.note_gone(&key);
            return;
        }
        self.promises.note_instance(&key, &value, time);
        self.check_exit(&key, &value);
        self.instances.insert(key, value);
    }

    /// INV-4: an address and a MAC belong to one VM, and stay with it for a while after its end.
    fn check_address(&mut self, value: &Value, deleted: bool, time: Duration) {
        let nic = &value["spec"]["hardware"]["nic"];
        let uid = value["spec"]["owner"]["uid"].as_str().unwrap_or_default();
        for what in ["address", "mac"] {
            let Some(address) = nic[what].as_str().filter(|text| !text.is_empty()) else { continue };
            self.look("INV-4");
            let known = self.addresses.get(address).filter(|known| known.vm_uid != uid);
            let clash = known.and_then(|known| match known.released {
                None => Some(format!("{address} belongs to {} and to {uid}", known.vm_uid)),
                Some(at) if what == "address" && time < at + RETENTION => {
                    let age = (time - at).as_secs();
                    Some(format!("{address} was given to {uid} {age} s after {} was deleted", known.vm_uid))
                }
                Some(_) => None,
            });
            if let Some(clash) = clash.filter(|_| !deleted) {
                self.violate("INV-4 one VM an address", clash);
            }
            let mine = self.addresses.get(address).is_none_or(|known| known.vm_uid == uid);
            if mine || !deleted {
                let released = deleted.then_some(time);
                self.addresses.insert(address.to_owned(), Address { vm_uid: uid.to_owned(), released });
            }
        }
    }

    /// INV-6: the platform ends no guest that nobody asked to end.
    fn check_exit(&mut self, key: &str, value: &Value) {
        let exit = &value["status"]["exit"];
        let old = self.instances.get(key).map(|old| &old["status"]["exit"]);
        if exit.is_null() || old == Some(exit) {
            return;
        }
        self.look("INV-6");
        let cause = exit["cause"].as_str().unwrap_or_default();
        // A start that is still tried again and again gives way to one of an edited VM: it has no guest.
        let had_guest = exit["proof"]["kind"] != *"NeverStarted";
        if had_guest
            && matches!(cause, "PlatformStop" | "Evicted" | "GraceExpired")
            && !self.may_end.contains(key)
        {
            self.violate("INV-6 no guest is stopped unasked", format!("{key} ended with {exit}"));
        }
    }

    /// Instances as the API has them.
    #[must_use]
    pub fn instances(&self) -> &BTreeMap<String, Value> {
        &self.instances
    }

    /// Moves as the API has them.
    #[must_use]
    pub fn migrations(&self) -> &BTreeMap<String, Value> {
        &self.migrations
    }

    /// Operations as the API has them.
    #[must_use]
    pub fn operations(&self) -> &BTreeMap<String, Value> {
        &self.operations
    }
}

/// Kind and rest of a path to an object of users' kinds.
fn user_kind(path: &str) -> Option<(&str, &str)> {
    let rest = path.strip_prefix("/apis/virtualization.deckhouse.io/v1alpha2/")?;
    let rest =
        rest.strip_prefix("namespaces/").and_then(|rest| rest.split_once('/')).map_or(rest, |(_, rest)| rest);
    Some(rest.split_once('/').unwrap_or((rest, "")))
}

/// Whether the platform may write this field of a user's object: its own bookkeeping, and labels of its
/// own domain (api.md §1.4).
fn is_platforms(field: &str, value: &Value) -> bool {
    match field {
        "finalizers" | "ownerReferences" | "resourceVersion" | "uid" | "name" | "namespace" => true,
        "labels" | "annotations" => {
            value.as_object().is_none_or(|keys| keys.keys().all(|key| key.contains("deckhouse.io/")))
        }
        _ => false,
    }
}

/// A field of a patch that is the user's.
fn foreign_field(patch: &Value) -> Option<String> {
    let top = patch.as_object()?;
    for (key, value) in top {
        match key.as_str() {
            "apiVersion" | "kind" | "status" => {}
            "metadata" => {
                let found = value.as_object()?.iter().find(|(key, value)| !is_platforms(key, value));
                if let Some((field, _)) = found {
                    return Some(format!("metadata.{field}"));
                }
            }
            other => return Some(other.to_owned()),
        }
    }
    None
}
