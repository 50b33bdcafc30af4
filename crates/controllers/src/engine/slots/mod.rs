//! Who may move when: the only place that grants slots and hands moves over to the agents
//! (migration-and-maintenance.md §4).
//!
//! One key, so one pass at a time decides with everything in view (§4.2, single decider). Limits are
//! recounted from the objects in every pass; nothing is remembered, so a restart forgets nothing.
//! Start at `plan.rs`.

mod plan;

use std::sync::Arc;

use holdfast_api::engine::{Instance, Migration, MigrationState};
use holdfast_api::names::label;
use holdfast_api::settings::{LiveMigrationSettings, ModuleConfig, VirtualizationSettings};
use holdfast_env::Timestamp;
use holdfast_reconcile::{Cache, Caches, Controller, Error, Index, Key, Pass, Plan, Watches};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt as _;

use super::migration::migration_uid;
use crate::indexes;

pub use plan::plan;

/// One unfinished move with what belongs to it.
#[derive(Clone, Debug)]
pub struct Move {
    /// The move.
    pub migration: Arc<Migration>,
    /// Its Instance.
    pub instance: Option<Arc<Instance>>,
    /// Its target pod.
    pub target: Option<Arc<Pod>>,
    /// A pod made for it is there although it waits for a slot.
    pub leftover: bool,
    /// Name of the Instance's claimed pod.
    pub source_pod: Option<String>,
}

/// Everything the decider looks at.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The instant.
    pub now: Timestamp,
    /// Unfinished moves, sorted by namespace and name.
    pub moves: Vec<Move>,
    /// Nodes able to run VMs: with a live agent and Ready; a cordon does not count.
    pub able_nodes: usize,
    /// Time limits of moves that are handed over now.
    pub limits: LiveMigrationSettings,
}

/// The decider.
#[derive(Debug)]
pub struct SlotsController {
    migrations: Arc<Cache<Migration>>,
    unfinished: Index<Migration>,
    instances: Arc<Cache<Instance>>,
    pods: Arc<Cache<Pod>>,
    launchers: Index<Pod>,
    targets: Index<Pod>,
    nodes: Arc<Cache<Node>>,
    settings: Arc<Cache<ModuleConfig>>,
}

impl SlotsController {
    /// Opens the caches it needs.
    #[must_use]
    pub fn new(caches: &Caches) -> Self {
        let (migrations, pods) = (caches.cache::<Migration>(), caches.cache::<Pod>());
        Self {
            unfinished: indexes::unfinished(&migrations),
            migrations,
            instances: caches.cache(),
            launchers: indexes::launchers(&pods),
            targets: indexes::targets(&pods),
            pods,
            nodes: caches.cache(),
            settings: caches.cache(),
        }
    }
}

/// The one key.
fn all() -> Vec<Key> {
    vec![Key::cluster("slots")]
}

/// Counts for the cluster limit: Ready, with a live agent; a cordon does not matter.
#[must_use]
pub fn is_able(node: &Node) -> bool {
    let labelled = node.labels().get(label::SCHEDULABLE).is_some_and(|value| value == "true");
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    labelled && conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn state_of(migration: &Migration) -> MigrationState {
    migration.status.as_ref().and_then(|status| status.state).unwrap_or_default()
}

impl Controller for SlotsController {
    type Observed = Observed;

    fn name(&self) -> &'static str {
        "slots"
    }

    fn watches(&self, on: &mut Watches) {
        on.map(&self.migrations, |_| all());
        on.map(&self.pods, |pod| if migration_uid(pod).is_some() { all() } else { Vec::new() });
        on.map(&self.nodes, |_| all());
    }

    async fn observe(&self, _: &Key, pass: Pass) -> Result<Option<Observed>, Error> {
        let unfinished = self.unfinished.get(&Key::cluster(indexes::UNFINISHED));
        let moves = unfinished.into_iter().map(|migration| {
            let wanted = &migration.spec.instance;
            let namespace = migration.namespace().unwrap_or_default();
            let instance = self
                .instances
                .named(&namespace, &wanted.name)
                .filter(|instance| instance.metadata.uid.as_ref() == Some(&wanted.uid));
            let claim = instance.as_ref().and_then(|i| i.status.as_ref()?.claim.clone());
            let source_pod = claim.and_then(|claim| {
                let pods = self.launchers.of_uid(Some(&wanted.uid));
                pods.iter()
                    .find(|pod| pod.metadata.uid.as_ref() == Some(&claim.pod_uid))
                    .map(|pod| pod.name_any())
            });
            let made = self.targets.of_uid(migration.metadata.uid.as_deref());
            let leftover = state_of(&migration) == MigrationState::Queued && !made.is_empty();
            let target = made.into_iter().rfind(|pod| pod.metadata.deletion_timestamp.is_none());
            Move { migration, instance, target, leftover, source_pod }
        });
        let settings = VirtualizationSettings::find(self.settings.all().iter().map(|config| &**config));
        Ok(Some(Observed {
            now: pass.now,
            moves: moves.collect(),
            able_nodes: self.nodes.filtered(is_able).len(),
            limits: settings.live_migration.unwrap_or_default(),
        }))
    }

    fn plan(observed: &Observed) -> Plan {
        plan::plan(observed)
    }
}
