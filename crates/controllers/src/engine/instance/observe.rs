//! What the Instance controller looks at.

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_api::engine::{Instance, InstanceState, Migration};
use holdfast_api::names::PLATFORM_NAMESPACE;
use holdfast_env::Timestamp;
use holdfast_reconcile::{Answers, Cache, Caches, Controller, Error, Index, Key, Pass, Plan, Watches};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Pod, ResourceQuota};
use kube::ResourceExt as _;

use crate::firmware::Launchers;
use crate::{Config, indexes};

/// Prefix of the names of fence Leases (failure-and-rebalancing.md §2.4).
const FENCE_LEASE_PREFIX: &str = "fence-";

/// Everything the plan for one Instance depends on.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The instant.
    pub now: Timestamp,
    /// 0..=1000, for the start back-off.
    pub jitter: u64,
    /// The Instance.
    pub instance: Arc<Instance>,
    /// Its launcher pods of any epoch, sorted by name.
    pub pods: Vec<Arc<Pod>>,
    /// The move that its status names.
    pub migration: Option<Arc<Migration>>,
    /// Boot id of each node whose agent holds the node's fence Lease.
    pub boots: BTreeMap<String, String>,
    /// Image of a launcher made now.
    pub image: String,
    /// Why the API last refused to create its launcher pod.
    pub refused: Option<String>,
}

/// The controller of Instances.
#[derive(Debug)]
pub struct InstanceController {
    instances: Arc<Cache<Instance>>,
    pods: Arc<Cache<Pod>>,
    launcher_pods: Index<Pod>,
    leases: Arc<Cache<Lease>>,
    migrations: Arc<Cache<Migration>>,
    quotas: Arc<Cache<ResourceQuota>>,
    creations: Arc<Answers>,
    launchers: Launchers,
}

impl InstanceController {
    /// Opens the caches it needs.
    #[must_use]
    pub fn new(caches: &Caches, config: &Config) -> Self {
        let pods = caches.cache::<Pod>();
        Self {
            instances: caches.cache(),
            launcher_pods: indexes::launchers(&pods),
            pods,
            leases: caches.cache(),
            migrations: caches.cache(),
            quotas: caches.cache(),
            creations: caches.creations(),
            launchers: Launchers::new(caches, config),
        }
    }
}

/// The launcher pods of an Instance, sorted by name.
#[must_use]
pub fn launcher_pods(launchers: &Index<Pod>, instance: &Instance) -> Vec<Arc<Pod>> {
    let namespace = instance.metadata.namespace.as_deref();
    let mut pods = launchers.of_uid(instance.metadata.uid.as_deref());
    pods.retain(|pod| pod.metadata.namespace.as_deref() == namespace);
    pods
}

/// When the agent of the Instance's claimed node took the node's fence Lease under another boot id:
/// what ran there under the claim is gone since.
#[must_use]
pub fn node_lost_since(leases: &Cache<Lease>, instance: &Instance) -> Option<Timestamp> {
    let claim = instance.status.as_ref()?.claim.as_ref()?;
    let lease = leases.named(PLATFORM_NAMESPACE, &format!("{FENCE_LEASE_PREFIX}{}", claim.node))?;
    let (_, boot) = fence_holder(&lease)?;
    if boot == claim.boot_id {
        return None;
    }
    let since = lease.spec.as_ref().and_then(|spec| spec.acquire_time.as_ref());
    Some(since.map_or(Timestamp::UNIX_EPOCH, |at| at.0))
}

/// Node and boot id a fence Lease speaks of: `node/<name>/<boot id>`; `None` while a fencer holds it.
#[must_use]
pub fn fence_holder(lease: &Lease) -> Option<(String, String)> {
    let name = lease.metadata.name.as_deref()?;
    let node = name.strip_prefix(FENCE_LEASE_PREFIX)?;
    if lease.metadata.namespace.as_deref() != Some(PLATFORM_NAMESPACE) {
        return None;
    }
    let holder = lease.spec.as_ref()?.holder_identity.as_deref()?;
    let boot = holder.strip_prefix("node/")?.strip_prefix(node)?.strip_prefix('/')?;
    (!boot.is_empty()).then(|| (node.to_owned(), boot.to_owned()))
}

impl Controller for InstanceController {
    type Observed = Observed;

    fn name(&self) -> &'static str {
        "instance"
    }

    fn watches(&self, on: &mut Watches) {
        on.own(&*self.instances);
        on.owned_by::<Instance, Pod>(&self.pods);
        // A move matters to it once nothing of its target is left.
        on.map(&*self.migrations, |migration| {
            let target = migration.status.as_ref().and_then(|status| status.target.as_ref());
            match target.is_some_and(|target| target.ended_at.is_some()) {
                true => {
                    vec![Key::new(migration.namespace().unwrap_or_default(), &migration.spec.instance.name)]
                }
                false => Vec::new(),
            }
        });
        // A quota that was raised, or has room again, lets those start that it refused.
        let (instances, creations) = (self.instances.clone(), self.creations.clone());
        on.map(&*self.quotas, move |quota| {
            let all = instances.in_namespace(&quota.namespace().unwrap_or_default());
            let refused = |instance: &Instance| {
                let answer = creations.of(instance.metadata.uid.as_deref()?)?;
                answer.refused
            };
            all.iter().filter(|instance| refused(instance).is_some()).map(|i| Key::of(&**i)).collect()
        });
        // Leases are renewed every few seconds: only Instances that a change concerns are woken.
        let instances = indexes::instances_at(&self.instances);
        on.map(&*self.leases, move |lease| {
            let Some((node, boot)) = fence_holder(lease) else { return Vec::new() };
            let mut concerned = instances.get(&Key::cluster(&node));
            concerned.retain(|instance| {
                let Some(status) = &instance.status else { return false };
                match &status.claim {
                    Some(claim) => {
                        claim.node == node
                            && claim.boot_id != boot
                            && status.state != Some(InstanceState::Ended)
                    }
                    None => status.pods.iter().any(|pod| pod.node.as_deref() == Some(node.as_str())),
                }
            });
            concerned.iter().map(|instance| Key::of(&**instance)).collect()
        });
    }

    async fn observe(&self, key: &Key, mut pass: Pass) -> Result<Option<Observed>, Error> {
        let Some(instance) = self.instances.get(key) else { return Ok(None) };
        let pods = launcher_pods(&self.launcher_pods, &instance);
        let boots = self
            .leases
            .in_namespace(PLATFORM_NAMESPACE)
            .iter()
            .filter_map(|lease| fence_holder(lease))
            .collect();
        let named = instance.status.as_ref().and_then(|status| status.migration.as_ref());
        let migration = named.and_then(|named| self.migrations.named(&key.namespace, &named.name));
        let uid = instance.metadata.uid.clone().unwrap_or_default();
        let refused = self.creations.of(&uid).and_then(|answer| answer.refused);
        Ok(Some(Observed {
            now: pass.now,
            jitter: pass.entropy.below(1001),
            instance,
            pods,
            migration,
            boots,
            image: self.launchers.image(),
            refused,
        }))
    }

    fn plan(observed: &Observed) -> Plan {
        super::plan::plan(observed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::coordination::v1::LeaseSpec;

    fn lease(name: &str, holder: &str) -> Lease {
        let mut lease = Lease::default();
        lease.metadata.name = Some(name.into());
        lease.metadata.namespace = Some(PLATFORM_NAMESPACE.into());
        lease.spec = Some(LeaseSpec { holder_identity: Some(holder.into()), ..LeaseSpec::default() });
        lease
    }

    #[test]
    fn only_a_lease_held_by_its_own_node_names_a_boot() {
        let holder = |name: &str, holder: &str| fence_holder(&lease(name, holder)).map(|(_, boot)| boot);
        assert_eq!(holder("fence-n1", "node/n1/boot-a").as_deref(), Some("boot-a"));
        assert_eq!(holder("fence-n1", "node/n2/boot-a"), None);
        assert_eq!(holder("fence-n1", "fencer/controller"), None);
        assert_eq!(holder("fence-n1", "node/n1/"), None);
        assert_eq!(holder("controller", "node/n1/boot-a"), None);
    }
}
