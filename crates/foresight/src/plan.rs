//! The plan of a drain. Pure.

use std::collections::BTreeMap;

use holdfast_api::VirtualMachine;
use holdfast_api::drain_plan::{Blocked, DrainPlan, Limits, NodeRefusal, PlannedMove, PlannedStop};
use holdfast_api::engine::{
    EvictionRule, Instance, InstanceState, Migration, MigrationReason, MigrationState,
};
use holdfast_api::names::{label, object};
use holdfast_controllers::engine::migration::target_pod;
use holdfast_controllers::engine::slots;
use holdfast_domain::eviction::{self, Asked, Decision};
use holdfast_domain::migration as rules;
use holdfast_kubelith_loops::forecast::{Forecast, Landing};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use crate::cures;
use crate::observe::Observed;

/// What a move takes besides the copy: the target's start, the switch, the bookkeeping; seconds.
pub const OVERHEAD_S: f64 = 0.5;
/// A guest without slowing-down that dirties more than this share of the link is not expected to arrive.
const CONVERGES_BELOW: f64 = 0.9;
/// How many passes over the remaining VMs are looked at: one that waits for another's move comes later.
const ROUNDS: usize = 3;

/// What a drain of the node would do.
#[must_use]
pub fn plan(o: &Observed) -> DrainPlan {
    let mut draft = Draft::new(o);
    draft.moves_under_way();
    let mut waiting = draft.candidates();
    for round in 1..=ROUNDS {
        let before = waiting.len();
        waiting = waiting.into_iter().filter_map(|vm| draft.place(vm, round)).collect();
        if waiting.is_empty() || waiting.len() == before {
            break;
        }
    }
    for vm in waiting {
        draft.blocked_without_node(&vm);
    }
    draft.finish()
}

/// A VM that has to leave, and the pod that would receive it.
struct Candidate<'a> {
    instance: &'a Instance,
    source_uid: String,
    target: Pod,
}

struct Draft<'a> {
    o: &'a Observed,
    forecast: Forecast,
    vms: BTreeMap<(String, String), &'a VirtualMachine>,
    /// When the node's outbound slot is free again, seconds from the begin.
    free_at: f64,
    /// Nothing has been heard of the node.
    is_silent: bool,
    plan: DrainPlan,
}

fn key(object: &impl kube::Resource) -> (String, String) {
    let meta = object.meta();
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

fn state(migration: &Migration) -> MigrationState {
    migration.status.as_ref().and_then(|status| status.state).unwrap_or_default()
}

/// It has its slot.
fn is_active(migration: &Migration) -> bool {
    state(migration) >= MigrationState::Placing && !state(migration).is_final()
}

fn source_node(migration: &Migration) -> Option<&str> {
    Some(migration.status.as_ref()?.source.as_ref()?.node.as_str())
}

impl<'a> Draft<'a> {
    fn new(o: &'a Observed) -> Self {
        let mut forecast = Forecast::new(&o.objects);
        forecast.cordon(&o.node);
        let able = o.objects.nodes.iter().filter(|node| slots::is_able(node)).count();
        let taken = o.migrations.iter().filter(|m| is_active(m) && source_node(m) != Some(&o.node)).count();
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let node = o.objects.nodes.iter().find(|node| node.metadata.name.as_ref() == Some(&o.node));
        let cordoned = node.and_then(|node| node.spec.as_ref()?.unschedulable).unwrap_or(false);
        let conditions =
            node.and_then(|node| node.status.as_ref()?.conditions.as_deref()).unwrap_or_default();
        let is_silent = conditions.iter().any(|c| c.type_ == "Ready" && c.status == "Unknown");
        let plan = DrainPlan {
            kind: "DrainPlan".to_owned(),
            node: o.node.clone(),
            cordoned,
            limits: Limits {
                cluster: count(able),
                taken: count(taken),
                outbound: 1,
                bandwidth: rules::BANDWIDTH_BYTES_S,
            },
            ..DrainPlan::default()
        };
        let vms = o.vms.iter().map(|vm| (key(vm), vm)).collect();
        Self { o, forecast, vms, free_at: 0.0, is_silent, plan }
    }

    fn active_move(&self, instance: &Instance) -> Option<&'a Migration> {
        let uid = instance.metadata.uid.as_deref();
        self.o.migrations.iter().find(|m| is_active(m) && Some(m.spec.instance.uid.as_str()) == uid)
    }

    /// VMs that leave the node already: they end as they are, and hold the node's slot until then.
    fn moves_under_way(&mut self) {
        let leaving = |m: &&Migration| is_active(m) && source_node(m) == Some(self.o.node.as_str());
        for migration in self.o.migrations.iter().filter(leaving) {
            let wanted = &migration.spec.instance;
            let Some(instance) =
                self.o.instances.iter().find(|i| i.metadata.uid.as_ref() == Some(&wanted.uid))
            else {
                continue;
            };
            let status = migration.status.clone().unwrap_or_default();
            let target = status.target.map(|target| target.node).unwrap_or_default();
            let left = status.progress.map(|progress| progress.remaining_bytes);
            let mut planned = self.estimate(instance, left, migration.spec.force);
            planned.under_way = true;
            planned.target = target;
            self.push(planned);
        }
    }

    /// Launchers on the node that a drain would have to empty, sorted by namespace and name of the VM;
    /// what the eviction answers otherwise is noted at once.
    fn candidates(&mut self) -> Vec<Candidate<'a>> {
        let o = self.o;
        let mut found = Vec::new();
        let here = |pod: &&Pod| eviction::is_launcher(pod) && Forecast::node_of(pod) == Some(o.node.as_str());
        for pod in o.objects.pods.iter().filter(here) {
            let namespace = pod.namespace().unwrap_or_default();
            let instance = eviction::instance_name(pod).and_then(|name| {
                o.instances.iter().find(|i| key(*i) == (namespace.clone(), name.to_owned()))
            });
            let Some(instance) = instance else { continue };
            let source_uid = pod.metadata.uid.clone().unwrap_or_default();
            let moving = self.active_move(instance);
            let leaving = moving.is_some_and(|m| source_node(m) == Some(o.node.as_str()));
            let arriving = moving.is_some_and(|m| {
                m.metadata.uid.as_deref() == pod.labels().get(label::MIGRATION_UID).map(String::as_str)
            });
            if leaving {
                continue;
            }
            // What arrives is asked as it will be: the launcher with the claim.
            let mut settled = instance.clone();
            if arriving && let Some(status) = &mut settled.status {
                if let Some(claim) = &mut status.claim {
                    claim.pod_uid.clone_from(&source_uid);
                }
                status.state = Some(InstanceState::Running);
            }
            if self.may_leave(pod, instance, &settled) {
                let target = self.target_pod(instance);
                found.push(Candidate { instance, source_uid, target });
            }
        }
        found.sort_by_key(|vm| key(vm.instance));
        found
    }

    /// The answer to the eviction, and what the evacuation would then wait for.
    fn may_leave(&mut self, pod: &Pod, instance: &Instance, settled: &Instance) -> bool {
        let (namespace, name) = key(instance);
        let marked = instance.status.as_ref().and_then(|s| s.evacuation_node_name.as_deref());
        match eviction::decide(pod, Some(settled), Asked::default()) {
            Decision::Allow => {
                let status = instance.status.as_ref();
                let over = status.is_none_or(|status| status.state == Some(InstanceState::Ended));
                if !over {
                    let message = "Its eviction strategy lets the drain shut it down.".to_owned();
                    self.plan.stops.push(PlannedStop { namespace, name, message });
                }
                return false;
            }
            Decision::Refuse(_) if marked == Some(self.o.node.as_str()) => {}
            Decision::Refuse(text) | Decision::RefuseAndNote { text, .. } => {
                let why = eviction::migratable(instance).err().unwrap_or(text);
                let cures = vec![
                    format!("stop it: d8 v stop {name} -n {namespace}"),
                    "put its disks on shared storage (a class with ReadWriteMany)".to_owned(),
                ];
                self.block(instance, "NotMigratable", why, cures);
                return false;
            }
            Decision::MarkAndRefuse { .. } => {}
        }
        if instance.spec.eviction_rule == EvictionRule::BlockAndMark {
            let text = "Its eviction strategy leaves the move to somebody else.".to_owned();
            self.block(instance, "External", text, vec!["have that one move it, or stop it".to_owned()]);
            return false;
        }
        let state = settled.status.as_ref().and_then(|status| status.state);
        if state == Some(InstanceState::Paused) {
            let cures = vec!["resume it".to_owned(), format!("stop it: d8 v stop {name} -n {namespace}")];
            self.block(instance, "NotRunning", "A paused VM is not evacuated.".to_owned(), cures);
            return false;
        }
        if self.is_silent {
            let text = "Its node does not answer: nothing can be moved from there.".to_owned();
            self.block(instance, "NodeUnresponsive", text, vec!["bring the node back".to_owned()]);
            return false;
        }
        true
    }

    /// The pod that the engine would make for the move.
    fn target_pod(&self, instance: &Instance) -> Pod {
        let mut migration = Migration::default();
        migration.spec.reason = MigrationReason::Drain;
        migration.metadata.uid =
            Some(format!("drain-{}", instance.metadata.uid.as_deref().unwrap_or_default()));
        let mut pod = target_pod::build(instance, &migration, &self.o.node, object::LAUNCHER_IMAGE);
        pod.metadata.uid.clone_from(&migration.metadata.uid);
        pod
    }

    /// Plans the move; gives the VM back if no node takes it now.
    fn place(&mut self, vm: Candidate<'a>, round: usize) -> Option<Candidate<'a>> {
        let Landing::Nodes(mut nodes) = self.forecast.land(&vm.target) else { return Some(vm) };
        let mut planned = self.estimate(vm.instance, None, None);
        if !self.converges(&planned) {
            let text = format!(
                "Its guest dirties {} MB a second, nearly what the link carries ({} MB), and may not be slowed down.",
                planned.dirty_bytes_per_second.unwrap_or_default() / 1_000_000,
                rules::BANDWIDTH_BYTES_S / 1_000_000
            );
            let (namespace, name) = key(vm.instance);
            let cures = vec![
                format!("move it with permission to slow it down: d8 v evict {name} -n {namespace} --force"),
                "set its liveMigrationPolicy to PreferForced".to_owned(),
                "let the guest write less".to_owned(),
            ];
            self.block(vm.instance, "NotConverging", text, cures);
            return None;
        }
        let target = nodes.remove(0);
        if round > 1 {
            planned.notes.push("No node takes it before another VM has moved.".to_owned());
            // Its target pod waits with the slot in its hand.
            planned.starts_after_seconds += real(rules::UNSCHEDULABLE_S);
        }
        self.forecast.remove(&vm.source_uid);
        self.forecast.put(&target, vm.target);
        planned.target = target;
        planned.alternatives = nodes;
        self.push(planned);
        None
    }

    fn converges(&self, planned: &PlannedMove) -> bool {
        let link = real(rules::BANDWIDTH_BYTES_S);
        let dirty = real(planned.dirty_bytes_per_second.unwrap_or_default());
        planned.may_slow_down || dirty < link * CONVERGES_BELOW
    }

    fn blocked_without_node(&mut self, vm: &Candidate<'_>) {
        let Landing::Nowhere { text, refusals } = self.forecast.land(&vm.target) else { return };
        let mut cures = cures::of_refusals(&refusals, &self.o.node);
        let (namespace, name) = key(vm.instance);
        cures.push(format!("stop it: d8 v stop {name} -n {namespace}"));
        self.block(vm.instance, "NoNode", text, cures);
        if let Some(blocked) = self.plan.blocked.last_mut() {
            let nodes = refusals.into_iter().map(|r| NodeRefusal { node: r.node, reasons: r.reasons });
            blocked.nodes = nodes.collect();
        }
    }

    fn block(&mut self, instance: &Instance, reason: &str, message: String, cures: Vec<String>) {
        let (namespace, name) = key(instance);
        let reason = reason.to_owned();
        self.plan.blocked.push(Blocked { namespace, name, reason, message, nodes: Vec::new(), cures });
    }

    /// A move with its time: the copy of what is left over a link of which the guest takes a part back.
    fn estimate(&self, instance: &Instance, left: Option<i64>, force: Option<bool>) -> PlannedMove {
        let memory = instance.spec.hardware.memory_bytes;
        let uid = instance.metadata.uid.as_deref().unwrap_or_default();
        let dirty = self.o.dirty.get(uid).copied();
        let link = real(rules::BANDWIDTH_BYTES_S);
        let mut share = real(dirty.unwrap_or_default()) / link;
        let may_slow_down = rules::auto_converge(instance.spec.migration_policy, force).unwrap_or(false);
        if share >= CONVERGES_BELOW {
            // Slowed down until half the link is enough for what it writes.
            share = 0.5;
        }
        let (namespace, name) = key(instance);
        let notes = self.notes(&namespace, &name);
        PlannedMove {
            namespace,
            name,
            memory_bytes: memory,
            dirty_bytes_per_second: dirty,
            may_slow_down,
            seconds: real(left.unwrap_or(memory)) / link / (1.0 - share) + OVERHEAD_S,
            notes,
            ..PlannedMove::default()
        }
    }

    fn notes(&self, namespace: &str, name: &str) -> Vec<String> {
        let vm = self.vms.get(&(namespace.to_owned(), name.to_owned()));
        let changes = vm.and_then(|vm| vm.status.as_ref()).map_or(0, |s| s.restart_awaiting_changes.len());
        if changes == 0 {
            return Vec::new();
        }
        vec!["Changes wait for a restart; the move does not apply them, a restart would.".to_owned()]
    }

    /// One move at a time leaves the node.
    fn push(&mut self, mut planned: PlannedMove) {
        planned.starts_after_seconds += self.free_at;
        self.free_at = planned.starts_after_seconds + planned.seconds;
        self.plan.moves.push(planned);
    }

    fn finish(mut self) -> DrainPlan {
        self.plan.goes_through = self.plan.blocked.is_empty();
        self.plan.total_seconds = self.free_at;
        self.plan.blocked.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        self.plan
    }
}

#[expect(clippy::cast_precision_loss, reason = "bytes and seconds are far below 2^52")]
fn real(number: i64) -> f64 {
    number as f64
}
