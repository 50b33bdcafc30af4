//! Watched copies of the objects the loops look at, shared by all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context as _;
use futures::StreamExt as _;
use holdfast_env::watch;
use holdfast_reconcile::Reconnect;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, ServiceAccount,
};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use parking_lot::{Mutex, RwLock};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// What has changed in a cache since somebody looked last.
pub(crate) struct Changes<K> {
    cache: Cache<K>,
    keys: Arc<Mutex<BTreeSet<Key>>>,
}

impl<K> Changes<K> {
    /// Takes the changes: each object as it is now, or that it is gone.
    pub(crate) fn take(&self) -> Vec<(Key, Option<Arc<K>>)> {
        let keys = std::mem::take(&mut *self.keys.lock());
        let objects = self.cache.objects.read();
        keys.into_iter()
            .map(|key| {
                let now = objects.get(&key).cloned();
                (key, now)
            })
            .collect()
    }
}

/// State of a cache that its watch task writes and its readers look at.
#[derive(Debug, Default)]
struct Link {
    version: AtomicU64,
    breaks: AtomicU64,
    ready: watch::Sender<bool>,
    subscribers: Mutex<Vec<Arc<Notify>>>,
    /// Keys of what has changed, for each of those that follow.
    followers: Mutex<Vec<Arc<Mutex<BTreeSet<Key>>>>>,
}

impl Link {
    fn changed<'k>(&self, keys: impl Iterator<Item = &'k Key> + Clone) {
        for follower in self.followers.lock().iter() {
            follower.lock().extend(keys.clone().cloned());
        }
        self.version.fetch_add(1, Ordering::Release);
        for subscriber in self.subscribers.lock().iter() {
            subscriber.notify_one();
        }
    }
}

/// Namespace (empty for cluster-scoped objects) and name.
pub(crate) type Key = (String, String);

/// A watched set of objects of one kind.
pub(crate) struct Cache<K> {
    objects: Arc<RwLock<BTreeMap<Key, Arc<K>>>>,
    link: Arc<Link>,
}

impl<K> Clone for Cache<K> {
    fn clone(&self) -> Self {
        Self { objects: self.objects.clone(), link: self.link.clone() }
    }
}

impl<K> Default for Cache<K> {
    fn default() -> Self {
        Self { objects: Arc::default(), link: Arc::default() }
    }
}

pub(crate) fn key<K: Resource>(object: &K) -> Key {
    let meta = object.meta();
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

impl<K> Cache<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    K::DynamicType: Hash + Eq + Clone + Debug + Unpin + Send + Sync,
{
    /// Starts watching in a task of `tasks`. `slim` removes what no loop reads, to save memory.
    pub(crate) fn start(
        api: Api<K>,
        config: watcher::Config,
        tasks: &mut JoinSet<()>,
        slim: fn(&mut K),
    ) -> (Self, tokio::task::AbortHandle) {
        let cache = Self::default();
        let task = tasks.spawn(cache.clone().follow(api, config, slim));
        (cache, task)
    }

    async fn follow(self, api: Api<K>, config: watcher::Config, slim: fn(&mut K)) {
        let link = &self.link;
        let mut events = watcher(api, config).backoff(Reconnect::local()).boxed();
        let mut listed = BTreeMap::new();
        let small = |mut object: K| {
            object.meta_mut().managed_fields = None;
            slim(&mut object);
            (key(&object), Arc::new(object))
        };
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init) => listed.clear(),
                Ok(watcher::Event::InitApply(object)) => listed.extend([small(object)]),
                Ok(watcher::Event::InitDone) => {
                    let new = std::mem::take(&mut listed);
                    let keys: BTreeSet<Key> = new.keys().cloned().collect();
                    let old = std::mem::replace(&mut *self.objects.write(), new);
                    link.breaks.fetch_add(1, Ordering::Release);
                    link.ready.send_replace(true);
                    link.changed(old.keys().chain(&keys));
                }
                Ok(watcher::Event::Apply(object)) => {
                    let (key, object) = small(object);
                    self.set(key, Some(object));
                }
                Ok(watcher::Event::Delete(object)) => self.set(key(&object), None),
                Err(error) => {
                    link.breaks.fetch_add(1, Ordering::Release);
                    tracing::debug!("watch broken, will reconnect: {error}");
                }
            }
        }
    }

    /// What there is of this name now.
    pub(crate) fn set(&self, key: Key, object: Option<Arc<K>>) {
        match object {
            Some(object) => self.objects.write().insert(key.clone(), object),
            None => self.objects.write().remove(&key),
        };
        self.link.changed(std::iter::once(&key));
    }

    /// Wakes `notify` on every change.
    pub(crate) fn wakes(&self, notify: &Arc<Notify>) {
        self.link.subscribers.lock().push(notify.clone());
    }

    /// Follows the changes, beginning with all objects there are.
    pub(crate) fn changes(&self) -> Changes<K> {
        let keys = Arc::new(Mutex::new(BTreeSet::new()));
        self.link.followers.lock().push(keys.clone());
        keys.lock().extend(self.objects.read().keys().cloned());
        Changes { cache: self.clone(), keys }
    }

    /// Waits until the first list has arrived. (The store's own wait wakes only one of several waiters.)
    pub(crate) async fn ready(&self) -> anyhow::Result<()> {
        let mut ready = self.link.ready.subscribe();
        ready.wait_for(|ready| *ready).await.context("the watch's task has ended")?;
        Ok(())
    }

    /// Grows with every change.
    pub(crate) fn version(&self) -> u64 {
        self.link.version.load(Ordering::Acquire)
    }

    /// Grows whenever changes may have been missed for a while: with every failed attempt to watch, so
    /// that it stands still again only once the server answers, and with every repeated list.
    pub(crate) fn breaks(&self) -> u64 {
        self.link.breaks.load(Ordering::Acquire)
    }

    /// All objects, by namespace and name.
    pub(crate) fn all(&self) -> Vec<Arc<K>> {
        self.objects.read().values().cloned().collect()
    }
}

/// The metadata in a cache, whatever its kind.
pub(crate) trait Metadata: Send + Sync {
    /// Shows every object's metadata.
    fn each(&self, show: &mut dyn FnMut(&ObjectMeta));
    /// Whether the first list has arrived.
    fn is_complete(&self) -> bool;
    /// Wakes `notify` on every change.
    fn subscribe(&self, notify: &Arc<Notify>);
}

impl<K> Metadata for Cache<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    K::DynamicType: Hash + Eq + Clone + Debug + Unpin + Send + Sync,
{
    fn each(&self, show: &mut dyn FnMut(&ObjectMeta)) {
        self.objects.read().values().for_each(|object| show(object.meta()));
    }

    fn is_complete(&self) -> bool {
        *self.link.ready.borrow()
    }

    fn subscribe(&self, notify: &Arc<Notify>) {
        self.wakes(notify);
    }
}

impl<K> Cache<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    /// The object of that name; cluster-scoped kinds have no namespace.
    pub(crate) fn get(&self, namespace: Option<&str>, name: &str) -> Option<Arc<K>> {
        self.objects.read().get(&(namespace.unwrap_or_default().to_owned(), name.to_owned())).cloned()
    }

    fn of(client: &Client, tasks: &mut JoinSet<()>, slim: fn(&mut K)) -> Self {
        Self::start(Api::all(client.clone()), watcher::Config::default(), tasks, slim).0
    }
}

/// The caches used by more than one loop, or by one that looks at whole objects.
#[derive(Default)]
pub(crate) struct Caches {
    pub(crate) pods: Cache<Pod>,
    pub(crate) nodes: Cache<Node>,
    pub(crate) node_leases: Cache<Lease>,
    pub(crate) namespaces: Cache<Namespace>,
    pub(crate) claims: Cache<PersistentVolumeClaim>,
    pub(crate) volumes: Cache<PersistentVolume>,
    pub(crate) classes: Cache<StorageClass>,
    pub(crate) budgets: Cache<PodDisruptionBudget>,
    pub(crate) accounts: Cache<ServiceAccount>,
}

impl Caches {
    /// Starts all watches.
    pub(crate) fn start(client: &Client, tasks: &mut JoinSet<()>) -> Self {
        Self {
            pods: Cache::of(client, tasks, slim_pod),
            nodes: Cache::of(client, tasks, slim_node),
            node_leases: Cache::start(
                Api::namespaced(client.clone(), "kube-node-lease"),
                watcher::Config::default(),
                tasks,
                |_| {},
            )
            .0,
            namespaces: Cache::of(client, tasks, |_| {}),
            claims: Cache::of(client, tasks, |_| {}),
            volumes: Cache::of(client, tasks, |_| {}),
            classes: Cache::of(client, tasks, |_| {}),
            budgets: Cache::of(client, tasks, |_| {}),
            accounts: Cache::of(client, tasks, |_| {}),
        }
    }
}

impl Caches {
    /// The caches that hold all objects of their kind, by `group/plural`.
    pub(crate) fn by_kind(&self) -> Vec<(String, Arc<dyn Metadata>)> {
        fn entry<K>(cache: &Cache<K>) -> (String, Arc<dyn Metadata>)
        where
            K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
        {
            (format!("{}/{}", K::group(&()), K::plural(&())), Arc::new(cache.clone()))
        }
        vec![
            entry(&self.pods),
            entry(&self.nodes),
            entry(&self.namespaces),
            entry(&self.claims),
            entry(&self.volumes),
            entry(&self.classes),
            entry(&self.budgets),
            entry(&self.accounts),
        ]
    }
}

/// Keeps of a pod what scheduling, eviction and budgets read.
fn slim_pod(pod: &mut Pod) {
    if let Some(spec) = &mut pod.spec {
        let slim = |container: &mut k8s_openapi::api::core::v1::Container| {
            container.env = None;
            container.command = None;
            container.args = None;
            container.volume_mounts = None;
        };
        spec.containers.iter_mut().for_each(slim);
        spec.init_containers.iter_mut().flatten().for_each(slim);
    }
    if let Some(status) = &mut pod.status {
        status.container_statuses = None;
        status.init_container_statuses = None;
    }
}

/// Images of a node are of no interest here.
fn slim_node(node: &mut Node) {
    if let Some(status) = &mut node.status {
        status.images = None;
    }
}
