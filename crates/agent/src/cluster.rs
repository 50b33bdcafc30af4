//! What the agent knows of the API: caches fed by watches, and the consistent reads and guarded
//! writes that decisions need.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::net::Ipv4Addr;
use std::sync::Arc;

use futures::StreamExt as _;
use holdfast_api::ModuleConfig;
use holdfast_api::engine::{Instance, Migration};
use holdfast_api::names::{MODULE_CONFIG, label};
use holdfast_api::settings::VirtualizationSettings;
use holdfast_env::watch;
use holdfast_reconcile::Reconnect;
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use kube::{Client, Resource, ResourceExt as _};
use parking_lot::RwLock;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Field manager of everything the agent writes.
pub const FIELD_MANAGER: &str = "holdfast-agent";

/// Objects of one kind by uid, as the watch last showed them.
#[derive(Debug)]
pub struct Cache<K> {
    objects: RwLock<BTreeMap<String, Arc<K>>>,
    complete: watch::Sender<bool>,
}

impl<K> Default for Cache<K> {
    fn default() -> Self {
        Self { objects: RwLock::default(), complete: watch::Sender::new(false) }
    }
}

impl<K> Cache<K> {
    /// The object with this uid.
    pub fn get(&self, uid: &str) -> Option<Arc<K>> {
        self.objects.read().get(uid).cloned()
    }

    /// All objects, in order of their uids.
    pub fn all(&self) -> Vec<Arc<K>> {
        self.objects.read().values().cloned().collect()
    }

    /// Whether a complete list has been seen.
    pub fn is_complete(&self) -> bool {
        *self.complete.borrow()
    }

    /// Returns once a complete list has been seen.
    pub async fn completed(&self) {
        // The sender lives in `self`, so the wait cannot fail while we hold it.
        let _ = self.complete.subscribe().wait_for(|complete| *complete).await;
    }
}

/// The agent's view of the cluster. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    /// The API.
    pub client: Client,
    /// All Instances.
    pub instances: Arc<Cache<Instance>>,
    /// All Migrations.
    pub migrations: Arc<Cache<Migration>>,
    /// All nodes.
    pub nodes: Arc<Cache<Node>>,
    /// The launcher pods of this node.
    pub pods: Arc<Cache<Pod>>,
    /// The platform's settings. Nothing waits for them: there may be none.
    pub settings: Arc<Cache<ModuleConfig>>,
    changed: watch::Sender<u64>,
    of_node: bool,
}

impl Cluster {
    /// Starts to watch. `node` limits the pods; without it no pods are watched.
    pub fn watch(client: Client, node: Option<&str>) -> Self {
        let cluster = Self {
            client: client.clone(),
            instances: Arc::default(),
            migrations: Arc::default(),
            nodes: Arc::default(),
            pods: Arc::default(),
            settings: Arc::default(),
            changed: watch::Sender::new(0),
            of_node: node.is_some(),
        };
        let all = watcher::Config::default();
        cluster.follow(Api::all(client.clone()), all.clone(), cluster.instances.clone());
        cluster.follow(Api::all(client.clone()), all.clone(), cluster.nodes.clone());
        if let Some(node) = node {
            cluster.follow(Api::all(client.clone()), all.clone(), cluster.migrations.clone());
            let ours = all.clone().fields(&format!("spec.nodeName={node}")).labels(&format!(
                "{}={}",
                label::ROLE,
                label::LAUNCHER
            ));
            cluster.follow(Api::all(client.clone()), ours, cluster.pods.clone());
            let settings = all.fields(&format!("metadata.name={MODULE_CONFIG}"));
            cluster.follow(Api::all(client), settings, cluster.settings.clone());
        }
        cluster
    }

    fn follow<K>(&self, api: Api<K>, config: watcher::Config, cache: Arc<Cache<K>>)
    where
        K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
        K::DynamicType: Default,
    {
        let changed = self.changed.clone();
        tokio::spawn(async move {
            let mut events = watcher::watcher(api, config).backoff(Reconnect::remote()).boxed();
            let mut fresh = BTreeMap::new();
            let mut failing = false;
            while let Some(event) = events.next().await {
                match event {
                    Ok(event) => {
                        failing &= matches!(event, Event::Init);
                        if take_in(&cache, &mut fresh, event) {
                            changed.send_modify(|count| *count += 1);
                        }
                    }
                    // Said once: an API that is away is away for seconds.
                    Err(error) if !std::mem::replace(&mut failing, true) => {
                        tracing::warn!(kind = %K::kind(&K::DynamicType::default()), %error, "the watch broke; trying again");
                    }
                    Err(_) => {}
                }
            }
        });
    }

    /// A receiver that is marked changed with every change of any cache.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Returns once everything has been listed.
    pub async fn ready(&self) {
        self.instances.completed().await;
        self.nodes.completed().await;
        if self.of_node {
            self.migrations.completed().await;
            self.pods.completed().await;
        }
    }

    /// Reads an Instance from the store, not from any cache: what an authorisation is decided on.
    ///
    /// # Errors
    /// The API cannot be reached or refuses.
    pub async fn read_instance(&self, namespace: &str, name: &str) -> kube::Result<Option<Instance>> {
        Api::namespaced(self.client.clone(), namespace).get_opt(name).await
    }

    /// Reads a Migration from the store, not from any cache.
    ///
    /// # Errors
    /// The API cannot be reached or refuses.
    pub async fn read_migration(&self, namespace: &str, name: &str) -> kube::Result<Option<Migration>> {
        Api::namespaced(self.client.clone(), namespace).get_opt(name).await
    }

    /// Merges `status` into the object's status, provided that nobody wrote the object since it was
    /// read, and takes the answer into the cache.
    ///
    /// # Errors
    /// [`is_conflict`] when somebody did; otherwise what the API says.
    pub async fn write_instance_status(&self, read: &Instance, status: Value) -> kube::Result<Instance> {
        let api: Api<Instance> = Api::namespaced(self.client.clone(), &read.namespace().unwrap_or_default());
        let written = guarded_status(&api, read, status).await?;
        self.remember(&self.instances, &written);
        Ok(written)
    }

    /// As [`Self::write_instance_status`], for a Migration.
    ///
    /// # Errors
    /// As there.
    pub async fn write_migration_status(&self, read: &Migration, status: Value) -> kube::Result<Migration> {
        let api: Api<Migration> = Api::namespaced(self.client.clone(), &read.namespace().unwrap_or_default());
        let written = guarded_status(&api, read, status).await?;
        self.remember(&self.migrations, &written);
        Ok(written)
    }

    /// Puts an answer of the API into a cache unless the watch was faster with something newer.
    fn remember<K: Resource + Clone>(&self, cache: &Cache<K>, written: &K) {
        let Some(uid) = written.meta().uid.clone() else { return };
        let mut objects = cache.objects.write();
        let is_newer = |present: &Arc<K>| version(present.meta()) < version(written.meta());
        if objects.get(&uid).is_some_and(is_newer) {
            objects.insert(uid, Arc::new(written.clone()));
            drop(objects);
            self.changed.send_modify(|count| *count += 1);
        }
    }

    /// The pools of VM addresses as the settings name them; none where there are no settings (yet).
    pub fn pools(&self) -> Option<BTreeSet<Ipv4Net>> {
        let configs = self.settings.all();
        if configs.is_empty() {
            return None;
        }
        let settings = VirtualizationSettings::find(configs.iter().map(|config| &**config));
        let pools = settings.virtual_machine_cidrs.iter().filter_map(|text| text.parse::<Ipv4Net>().ok());
        Some(pools.map(|pool| pool.trunc()).collect())
    }

    /// Addresses of the nodes by name.
    pub fn node_addresses(&self) -> BTreeMap<String, Ipv4Addr> {
        self.nodes.all().iter().filter_map(|node| Some((node.name_any(), internal_address(node)?))).collect()
    }
}

/// Resource versions are numbers on the embedded plane and on etcd; where they are not, the watch
/// alone updates the cache.
fn version(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> u64 {
    meta.resource_version.as_deref().and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn internal_address(node: &Node) -> Option<Ipv4Addr> {
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    addresses.iter().find(|a| a.type_ == "InternalIP").and_then(|a| a.address.parse().ok())
}

/// Takes one event into a cache; false when nothing visible changed.
fn take_in<K: Resource>(cache: &Cache<K>, fresh: &mut BTreeMap<String, Arc<K>>, event: Event<K>) -> bool {
    let uid = |object: &K| object.meta().uid.clone().unwrap_or_default();
    match event {
        Event::Init => {
            fresh.clear();
            return false;
        }
        Event::InitApply(object) => {
            fresh.insert(uid(&object), Arc::new(object));
            return false;
        }
        Event::InitDone => {
            *cache.objects.write() = std::mem::take(fresh);
            cache.complete.send_replace(true);
        }
        Event::Apply(object) => {
            let mut objects = cache.objects.write();
            let present = objects.get(&uid(&object));
            // An answer of our own write may have been taken in before the watch showed older states.
            if present.is_some_and(|present| version(present.meta()) > version(object.meta())) {
                return false;
            }
            objects.insert(uid(&object), Arc::new(object));
        }
        Event::Delete(object) => {
            cache.objects.write().remove(&uid(&object));
        }
    }
    true
}

async fn guarded_status<K>(api: &Api<K>, read: &K, status: Value) -> kube::Result<K>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let patch = json!({
        "metadata": { "uid": read.meta().uid, "resourceVersion": read.meta().resource_version },
        "status": status,
    });
    let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
    api.patch_status(&read.name_any(), &parameters, &Patch::Merge(patch)).await
}

/// Whether a write was refused because somebody else wrote in between.
pub fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

/// Whether the object does not exist.
pub fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}
