//! Watched kinds, shared by all controllers of the process: one list and watch a kind.
//!
//! A cache is sorted, so iteration order never depends on chance, and sees the writes of this
//! process at once ([`Caches::learn`]), so that a controller rarely plans from a state it has
//! itself just changed. The watch stays the authority: what it delivers replaces what was learnt.

use std::any::{Any, TypeId};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::StreamExt as _;
use holdfast_env::watch;
use kube::core::ApiResource;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource};
use parking_lot::{Mutex, RwLock};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tracing::{debug, warn};

use crate::index::{Index, Terms};
use crate::{Answers, Reconnect};

/// Namespace and name; the namespace is empty for cluster-scoped objects.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Empty for cluster-scoped objects.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Key {
    /// A key of a namespaced object.
    #[must_use]
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// A key of a cluster-scoped object.
    #[must_use]
    pub fn cluster(name: impl Into<String>) -> Self {
        Self::new("", name)
    }

    /// The key of an object.
    #[must_use]
    pub fn of<K: Resource>(object: &K) -> Self {
        let meta = object.meta();
        Self::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// What a cacheable kind needs; every API type has it.
pub trait Kind:
    Resource<DynamicType = ()> + Clone + fmt::Debug + DeserializeOwned + Send + Sync + 'static
{
}
impl<K> Kind for K where
    K: Resource<DynamicType = ()> + Clone + fmt::Debug + DeserializeOwned + Send + Sync + 'static
{
}

type Listener<K> = Box<dyn Fn(&K) + Send + Sync>;

struct Held<K: Kind> {
    objects: BTreeMap<Key, Arc<K>>,
    indexes: Vec<Index<K>>,
    /// Highest version the watch has delivered: anything learnt at or below it is old news.
    seen: u64,
}

impl<K: Kind> Held<K> {
    fn put(&mut self, key: Key, object: Arc<K>) -> Option<Arc<K>> {
        let old = self.objects.insert(key.clone(), object.clone());
        self.indexes.iter().for_each(|index| index.change(&key, old.as_deref(), Some(&object)));
        old
    }

    fn take(&mut self, key: &Key) -> Option<Arc<K>> {
        let old = self.objects.remove(key);
        self.indexes.iter().for_each(|index| index.change(key, old.as_deref(), None));
        old
    }

    fn replace(&mut self, objects: BTreeMap<Key, Arc<K>>) -> BTreeMap<Key, Arc<K>> {
        for index in &self.indexes {
            index.clear();
            objects.iter().for_each(|(key, object)| index.change(key, None, Some(object)));
        }
        std::mem::replace(&mut self.objects, objects)
    }
}

/// All objects of one kind.
pub struct Cache<K: Kind> {
    held: RwLock<Held<K>>,
    listeners: RwLock<Vec<Listener<K>>>,
    trim: RwLock<Option<fn(&mut K)>>,
    ready: watch::Sender<bool>,
}

impl<K: Kind> fmt::Debug for Cache<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cache<{}>({})", K::kind(&()), self.held.read().objects.len())
    }
}

/// Versions are numbers on every API server we run against; where one is not, nothing is learnt.
fn version<K: Resource>(object: &K) -> Option<u64> {
    object.meta().resource_version.as_deref()?.parse().ok()
}

impl<K: Kind> Cache<K> {
    fn new() -> Self {
        Self {
            held: RwLock::new(Held { objects: BTreeMap::new(), indexes: Vec::new(), seen: 0 }),
            listeners: RwLock::default(),
            trim: RwLock::default(),
            ready: watch::Sender::new(false),
        }
    }

    /// A cache filled by hand, for tests of `observe`.
    #[must_use]
    pub fn preset(objects: impl IntoIterator<Item = K>) -> Arc<Self> {
        let cache = Self::new();
        cache.replace(objects.into_iter().collect());
        Arc::new(cache)
    }

    /// Sets a function that drops fields nobody reads, to save memory. Managed fields are always
    /// dropped.
    pub fn trim(&self, with: fn(&mut K)) -> &Self {
        *self.trim.write() = Some(with);
        self
    }

    /// The object of this key.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.held.read().objects.get(key).cloned()
    }

    /// The object of this namespace and name.
    #[must_use]
    pub fn named(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.get(&Key::new(namespace, name))
    }

    /// All objects, sorted by key.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<K>> {
        self.held.read().objects.values().cloned().collect()
    }

    /// All objects of a namespace, sorted by name.
    #[must_use]
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let held = self.held.read();
        let from = Key::new(namespace, "");
        held.objects
            .range(from..)
            .take_while(|(key, _)| key.namespace == namespace)
            .map(|(_, object)| object.clone())
            .collect()
    }

    /// All objects for which `is` holds, sorted by key.
    #[must_use]
    pub fn filtered(&self, is: impl Fn(&K) -> bool) -> Vec<Arc<K>> {
        self.held.read().objects.values().filter(|object| is(object)).cloned().collect()
    }

    /// An index over this cache; asking twice for a name gives the same index.
    #[must_use]
    pub fn index(&self, name: &'static str, terms: Terms<K>) -> Index<K> {
        let mut held = self.held.write();
        if let Some(known) = held.indexes.iter().find(|index| index.name() == name) {
            return known.clone();
        }
        let index = Index::new(name, terms);
        for (key, object) in &held.objects {
            index.change(key, None, Some(object));
        }
        held.indexes.push(index.clone());
        index
    }

    /// Calls `listener` with the old and the new state of every object that changes.
    pub(crate) fn listen(&self, listener: Listener<K>) {
        self.listeners.write().push(listener);
    }

    fn tell(&self, states: &[&K]) {
        for listener in &*self.listeners.read() {
            for state in states {
                listener(state);
            }
        }
    }

    fn shrink(&self, object: &mut K) {
        object.meta_mut().managed_fields = None;
        if let Some(trim) = *self.trim.read() {
            trim(object);
        }
    }

    pub(crate) fn insert(&self, mut object: K, learnt: bool) {
        self.shrink(&mut object);
        let (key, new_version) = (Key::of(&object), version(&object));
        let object = Arc::new(object);
        let old = {
            let mut held = self.held.write();
            if learnt && new_version.is_none_or(|new| new <= held.seen) {
                return;
            }
            let known = held.objects.get(&key).and_then(|old| version(&**old));
            let stale = matches!((known, new_version), (Some(known), Some(new)) if new <= known);
            if !learnt {
                held.seen = held.seen.max(new_version.unwrap_or_default());
            }
            if stale {
                return;
            }
            held.put(key, object.clone())
        };
        match old {
            Some(old) => self.tell(&[&old, &object]),
            None => self.tell(&[&object]),
        }
    }

    pub(crate) fn remove(&self, object: &K) {
        let key = Key::of(object);
        let old = {
            let mut held = self.held.write();
            let gone = version(object).unwrap_or_default();
            held.seen = held.seen.max(gone);
            let newer =
                held.objects.get(&key).and_then(|known| version(&**known)).is_some_and(|known| known > gone);
            if newer { None } else { held.take(&key) }
        };
        if let Some(old) = old {
            self.tell(&[&old]);
        }
    }

    pub(crate) fn replace(&self, objects: Vec<K>) {
        let mut new = BTreeMap::new();
        let mut seen = 0;
        for mut object in objects {
            self.shrink(&mut object);
            seen = seen.max(version(&object).unwrap_or_default());
            new.insert(Key::of(&object), Arc::new(object));
        }
        let old = {
            let mut held = self.held.write();
            held.seen = held.seen.max(seen);
            held.replace(new.clone())
        };
        for object in old.values().chain(new.values()) {
            self.tell(&[object]);
        }
        self.ready.send_replace(true);
    }

    async fn follow(self: Arc<Self>, client: Client) {
        let api: Api<K> = Api::all(client);
        let config = watcher::Config::default().any_semantic();
        let mut events = watcher(api, config).backoff(Reconnect::remote()).boxed();
        let mut listed = Vec::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init) => listed.clear(),
                Ok(watcher::Event::InitApply(object)) => listed.push(object),
                Ok(watcher::Event::InitDone) => {
                    debug!(kind = %K::kind(&()), count = listed.len(), "listed");
                    self.replace(std::mem::take(&mut listed));
                }
                Ok(watcher::Event::Apply(object)) => self.insert(object, false),
                Ok(watcher::Event::Delete(object)) => self.remove(&object),
                Err(error) => warn!(kind = %K::kind(&()), %error, "watch interrupted, it will be resumed"),
            }
        }
    }
}

trait AnyCache: Send + Sync {
    fn learn(&self, value: &Value);
    fn is_of(&self, api: &ApiResource) -> bool;
    fn ready(&self) -> watch::Receiver<bool>;
    fn name(&self) -> String;
    fn start(self: Arc<Self>, client: Client) -> tokio::task::JoinHandle<()>;
}

impl<K: Kind> AnyCache for Cache<K> {
    fn learn(&self, value: &Value) {
        match K::deserialize(value) {
            Ok(object) => self.insert(object, true),
            Err(error) => warn!(kind = %K::kind(&()), %error, "reply to a write does not parse"),
        }
    }

    fn is_of(&self, api: &ApiResource) -> bool {
        api.kind == K::kind(&()) && api.group == K::group(&())
    }

    fn ready(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    fn name(&self) -> String {
        K::kind(&()).into_owned()
    }

    fn start(self: Arc<Self>, client: Client) -> tokio::task::JoinHandle<()> {
        tokio::spawn(self.follow(client))
    }
}

#[derive(Default)]
struct Registry {
    typed: BTreeMap<TypeId, Arc<dyn Any + Send + Sync>>,
    any: Vec<Arc<dyn AnyCache>>,
}

/// The caches of the process: asking twice for a kind gives the same cache.
#[derive(Default)]
pub struct Caches {
    registry: Mutex<Registry>,
    started: AtomicBool,
    evictions: Arc<Answers>,
    creations: Arc<Answers>,
}

impl fmt::Debug for Caches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.registry.lock().any.iter().map(|cache| cache.name())).finish()
    }
}

impl Caches {
    /// The cache of a kind; all kinds must be asked for before the runtime starts.
    ///
    /// # Panics
    /// If a kind is asked for the first time after the start: it would never be filled.
    #[must_use]
    pub fn cache<K: Kind>(&self) -> Arc<Cache<K>> {
        let mut registry = self.registry.lock();
        if let Some(known) = registry.typed.get(&TypeId::of::<K>()) {
            return known.clone().downcast().expect("invariant: a cache is stored under its own type");
        }
        assert!(!self.started.load(Ordering::SeqCst), "kind {} asked for after the start", K::kind(&()));
        let cache = Arc::new(Cache::<K>::new());
        registry.typed.insert(TypeId::of::<K>(), cache.clone());
        registry.any.push(cache.clone());
        cache
    }

    /// The answers to evictions that this process asked for.
    #[must_use]
    pub fn evictions(&self) -> Arc<Answers> {
        self.evictions.clone()
    }

    /// The answers to creations on behalf of an object ([`crate::Create::remembered_for`]).
    #[must_use]
    pub fn creations(&self) -> Arc<Answers> {
        self.creations.clone()
    }

    /// Takes over the reply to a write, if the kind is cached and the reply is news.
    pub(crate) fn learn(&self, api: &ApiResource, value: &Value) {
        let cache = self.registry.lock().any.iter().find(|cache| cache.is_of(api)).cloned();
        if let Some(cache) = cache {
            cache.learn(value);
        }
    }

    /// Starts every watch.
    pub(crate) fn start(&self, client: &Client) -> Vec<tokio::task::JoinHandle<()>> {
        self.started.store(true, Ordering::SeqCst);
        self.registry.lock().any.iter().map(|cache| cache.clone().start(client.clone())).collect()
    }

    /// Waits until every kind was listed once; logs the kinds that keep us waiting.
    pub(crate) async fn ready(&self) {
        let all: Vec<_> =
            self.registry.lock().any.iter().map(|cache| (cache.name(), cache.ready())).collect();
        for (name, mut ready) in all {
            loop {
                let wait = tokio::time::timeout(std::time::Duration::from_secs(10), ready.wait_for(|is| *is));
                if wait.await.is_ok() {
                    break;
                }
                warn!(kind = %name, "still waiting for the first list of this kind");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    fn map(name: &str, version: &str) -> ConfigMap {
        let mut map = ConfigMap::default();
        map.metadata.namespace = Some("ns".into());
        map.metadata.name = Some(name.into());
        map.metadata.resource_version = Some(version.into());
        map
    }

    fn version_of(cache: &Cache<ConfigMap>, name: &str) -> Option<String> {
        cache.named("ns", name)?.metadata.resource_version.clone()
    }

    #[test]
    fn own_writes_are_seen_and_older_news_change_nothing() {
        let cache = Cache::<ConfigMap>::new();
        cache.insert(map("a", "5"), false);
        cache.insert(map("a", "7"), true);
        assert_eq!(version_of(&cache, "a").as_deref(), Some("7"));
        cache.insert(map("a", "6"), false);
        assert_eq!(version_of(&cache, "a").as_deref(), Some("7"), "the watch lags behind our write");
        cache.insert(map("b", "6"), true);
        assert_eq!(version_of(&cache, "b"), None, "the watch has passed this version already");
    }

    #[test]
    fn a_reply_that_arrives_after_the_deletion_does_not_revive_the_object() {
        let cache = Cache::<ConfigMap>::new();
        cache.insert(map("a", "5"), false);
        cache.remove(&map("a", "8"));
        cache.insert(map("a", "7"), true);
        assert_eq!(version_of(&cache, "a"), None);
        cache.insert(map("a", "9"), true);
        cache.remove(&map("a", "8"));
        assert_eq!(version_of(&cache, "a").as_deref(), Some("9"), "an old deletion spares the next object");
    }

    #[test]
    fn listeners_hear_of_the_old_and_the_new_state_and_of_losses_in_a_relist() {
        let cache = Cache::<ConfigMap>::new();
        let heard = Arc::new(Mutex::new(Vec::new()));
        cache.listen(Box::new({
            let heard = heard.clone();
            move |object| {
                heard.lock().push((Key::of(object).name, object.metadata.resource_version.clone().unwrap()));
            }
        }));
        cache.insert(map("a", "1"), false);
        cache.insert(map("a", "2"), false);
        cache.replace(vec![map("b", "3")]);
        let heard: Vec<_> = heard.lock().iter().map(|(name, version)| format!("{name}{version}")).collect();
        assert_eq!(heard, ["a1", "a1", "a2", "a2", "b3"]);
        assert_eq!(cache.in_namespace("ns").len(), 1);
        assert!(cache.in_namespace("n").is_empty());
    }
}
