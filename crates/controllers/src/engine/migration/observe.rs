//! What the migration controller looks at.

use std::sync::Arc;

use holdfast_api::engine::{Instance, Migration};
use holdfast_api::names::label;
use holdfast_env::Timestamp;
use holdfast_reconcile::{Answers, Cache, Caches, Controller, Error, Index, Key, Pass, Plan, Watches};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use crate::engine::instance::{fence_holder, launcher_pods, node_lost_since};
use crate::firmware::Launchers;
use crate::{Config, indexes};

/// Everything the plan for one move depends on.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The instant.
    pub now: Timestamp,
    /// The move.
    pub migration: Arc<Migration>,
    /// The Instance it moves, if it is still the one that was meant.
    pub instance: Option<Arc<Instance>>,
    /// All launcher pods of the Instance, sorted by name.
    pub pods: Vec<Arc<Pod>>,
    /// The source's node is back under another boot id since: its guest is gone.
    pub source_lost: Option<Timestamp>,
    /// Image of a launcher made now.
    pub image: String,
    /// Why the API refused to create the target pod, since the move has its slot.
    pub refused: Option<String>,
}

impl Observed {
    /// Pods made for this move.
    pub fn targets(&self) -> impl Iterator<Item = &Arc<Pod>> {
        let uid = self.migration.metadata.uid.as_deref();
        self.pods.iter().filter(move |pod| uid.is_some() && migration_uid(pod) == uid)
    }
}

/// Uid of the move a launcher pod was made for.
#[must_use]
pub fn migration_uid(pod: &Pod) -> Option<&str> {
    pod.metadata.labels.as_ref()?.get(label::MIGRATION_UID).map(String::as_str)
}

/// The controller of moves.
#[derive(Debug)]
pub struct MigrationController {
    migrations: Arc<Cache<Migration>>,
    instances: Arc<Cache<Instance>>,
    pods: Arc<Cache<Pod>>,
    launcher_pods: Index<Pod>,
    leases: Arc<Cache<Lease>>,
    creations: Arc<Answers>,
    launchers: Launchers,
}

impl MigrationController {
    /// Opens the caches it needs.
    #[must_use]
    pub fn new(caches: &Caches, config: &Config) -> Self {
        let pods = caches.cache::<Pod>();
        Self {
            migrations: caches.cache(),
            instances: caches.cache(),
            launcher_pods: indexes::launchers(&pods),
            pods,
            leases: caches.cache(),
            creations: caches.creations(),
            launchers: Launchers::new(caches, config),
        }
    }
}

impl MigrationController {
    fn refused(&self, migration: &Migration) -> Option<String> {
        let answer = self.creations.of(migration.metadata.uid.as_deref()?)?;
        let slot_at = migration.status.as_ref()?.slot_at.as_ref()?.0;
        answer.refused.filter(|_| answer.at >= slot_at)
    }
}

impl Controller for MigrationController {
    type Observed = Observed;

    fn name(&self) -> &'static str {
        "migration"
    }

    fn watches(&self, on: &mut Watches) {
        on.own(&self.migrations);
        // Every launcher of the Instance: a new move waits until those of earlier ones are gone.
        let moves = indexes::moves(&self.migrations);
        on.map(&self.pods, move |pod| {
            pod.labels().get(label::CREATED_BY).map(|uid| moves.keys(&Key::cluster(uid))).unwrap_or_default()
        });
        let moves = indexes::moves(&self.migrations);
        on.map(&self.instances, move |instance| {
            let uid = instance.metadata.uid.as_ref();
            uid.map(|uid| moves.keys(&Key::cluster(uid))).unwrap_or_default()
        });
        // Only a change of boot matters, not a renewal.
        let (unfinished, instances) = (indexes::unfinished(&self.migrations), self.instances.clone());
        on.map(&self.leases, move |lease| {
            let Some((node, boot)) = fence_holder(lease) else { return Vec::new() };
            let mut lost = unfinished.get(&Key::cluster(indexes::UNFINISHED));
            lost.retain(|m| {
                let namespace = m.namespace().unwrap_or_default();
                let instance = instances.named(&namespace, &m.spec.instance.name);
                let claim = instance.and_then(|i| i.status.as_ref()?.claim.clone());
                claim.is_some_and(|claim| claim.node == node && claim.boot_id != boot)
            });
            lost.iter().map(|m| Key::of(&**m)).collect()
        });
    }

    async fn observe(&self, key: &Key, pass: Pass) -> Result<Option<Observed>, Error> {
        let Some(migration) = self.migrations.get(key) else { return Ok(None) };
        let wanted = &migration.spec.instance;
        let instance = self
            .instances
            .named(&key.namespace, &wanted.name)
            .filter(|instance| instance.metadata.uid.as_ref() == Some(&wanted.uid));
        let pods = instance
            .as_ref()
            .map(|instance| launcher_pods(&self.launcher_pods, instance))
            .unwrap_or_default();
        let source_lost = instance.as_ref().and_then(|instance| node_lost_since(&self.leases, instance));
        let image = self.launchers.image();
        let refused = self.refused(&migration);
        Ok(Some(Observed { now: pass.now, migration, instance, pods, source_lost, image, refused }))
    }

    fn plan(observed: &Observed) -> Plan {
        super::plan::plan(observed)
    }
}
