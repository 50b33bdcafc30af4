//! The kinds the server serves, followed by discovery, and a metadata cache for each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::core::PartialObjectMeta;
use kube::discovery::{ApiResource, Discovery, Scope, verbs};
use kube::runtime::watcher;
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};

use super::Meta;
use crate::cache::{Cache, Caches, Metadata};

/// Discovery is repeated at least this often.
const REDISCOVER: Duration = Duration::from_secs(30);

/// A kind that can be listed and deleted.
#[derive(Clone)]
pub(crate) struct Kind {
    pub(crate) resource: ApiResource,
    pub(crate) namespaced: bool,
    pub(crate) has_delete_collection: bool,
    /// Metadata of its objects; `None` for kinds without owners (events).
    pub(crate) cache: Option<Arc<dyn Metadata>>,
}

impl Kind {
    fn key(&self) -> String {
        format!("{}/{}", self.resource.api_version, self.resource.plural)
    }
}

/// All kinds, kept current.
pub(crate) struct Kinds {
    client: Client,
    /// Caches that exist anyway, by `group/plural`.
    shared: BTreeMap<String, Arc<dyn Metadata>>,
    known: Mutex<BTreeMap<String, (Kind, Option<AbortHandle>)>>,
    subscribers: Mutex<Vec<Arc<Notify>>>,
}

impl Kinds {
    /// Starts following discovery. What `caches` hold is not watched a second time.
    pub(crate) fn start(client: &Client, caches: &Caches, tasks: &mut JoinSet<()>) -> Arc<Self> {
        let kinds = Arc::new(Self {
            client: client.clone(),
            shared: caches.by_kind().into_iter().collect(),
            known: Mutex::default(),
            subscribers: Mutex::default(),
        });
        let wake = Arc::new(Notify::new());
        let definitions: Api<PartialObjectMeta<CustomResourceDefinition>> = Api::all(client.clone());
        let (definitions, _) = Cache::start(definitions, watcher::Config::default(), tasks, |meta| {
            meta.metadata.annotations = None;
        });
        definitions.wakes(&wake);
        let follower = kinds.clone();
        tasks.spawn(async move { follower.follow(&wake).await });
        kinds
    }

    /// The kinds known now.
    pub(crate) fn all(&self) -> Vec<Kind> {
        self.known.lock().values().map(|(kind, _)| kind.clone()).collect()
    }

    /// Wakes `notify` whenever any object of any kind changes.
    pub(crate) fn wakes(&self, notify: &Arc<Notify>) {
        self.subscribers.lock().push(notify.clone());
        for (kind, _) in self.known.lock().values() {
            if let Some(cache) = &kind.cache {
                cache.subscribe(notify);
            }
        }
    }

    async fn follow(&self, wake: &Notify) {
        // The caches' tasks end with this future.
        let mut watches = JoinSet::new();
        loop {
            let pause = match self.refresh(&mut watches).await {
                Ok(()) => REDISCOVER,
                Err(error) => {
                    tracing::debug!("discovery failed, again soon: {error}");
                    Duration::from_millis(500)
                }
            };
            tokio::select! {
                biased;
                () = wake.notified() => tokio::time::sleep(Duration::from_millis(100)).await,
                () = tokio::time::sleep(pause) => {}
            }
            while watches.try_join_next().is_some() {}
        }
    }

    /// Brings the caches in line with what the server serves.
    async fn refresh(&self, watches: &mut JoinSet<()>) -> kube::Result<()> {
        let served = discover(&self.client).await?;
        let mut known = self.known.lock();
        let keys: BTreeSet<String> = served.iter().map(Kind::key).collect();
        known.retain(|key, (_, task)| {
            let keep = keys.contains(key);
            if !keep && let Some(task) = task {
                task.abort();
            }
            keep
        });
        let subscribers = self.subscribers.lock().clone();
        for mut kind in served {
            if known.contains_key(&kind.key()) {
                continue;
            }
            let mut task = None;
            let name = format!("{}/{}", kind.resource.group, kind.resource.plural);
            if let Some(shared) = self.shared.get(&name) {
                kind.cache = Some(shared.clone());
            } else if !is_event(&kind.resource) {
                let api: Api<Meta> = Api::all_with(self.client.clone(), &kind.resource);
                let config = watcher::Config::default();
                let (cache, handle) = Cache::start(api, config, watches, slim);
                kind.cache = Some(Arc::new(cache));
                task = Some(handle);
            }
            if let Some(cache) = &kind.cache {
                subscribers.iter().for_each(|s| cache.subscribe(s));
            }
            known.insert(kind.key(), (kind, task));
        }
        Ok(())
    }
}

/// Only identity, version, owners and finalizers are of interest.
fn slim(meta: &mut Meta) {
    meta.types = None;
    meta.metadata.labels = None;
    meta.metadata.annotations = None;
}

fn is_event(resource: &ApiResource) -> bool {
    resource.kind == "Event" && (resource.group.is_empty() || resource.group == "events.k8s.io")
}

/// Asks the server which kinds it serves, each in its preferred version.
pub(crate) async fn discover(client: &Client) -> kube::Result<Vec<Kind>> {
    let discovery = match Discovery::new(client.clone()).run_aggregated().await {
        Ok(discovery) => discovery,
        Err(_) => Discovery::new(client.clone()).run().await?,
    };
    let mut kinds = Vec::new();
    for group in discovery.groups_alphabetical() {
        for (resource, capabilities) in group.recommended_resources() {
            let can = |verb: &str| capabilities.supports_operation(verb);
            if !(can(verbs::LIST) && can(verbs::WATCH) && can(verbs::DELETE)) {
                continue;
            }
            // events.k8s.io shows the objects of the core group again.
            if resource.group == "events.k8s.io" {
                continue;
            }
            kinds.push(Kind {
                namespaced: capabilities.scope == Scope::Namespaced,
                has_delete_collection: can(verbs::DELETE_COLLECTION),
                resource,
                cache: None,
            });
        }
    }
    // The order must not depend on the hash maps of discovery: watches start and namespaces empty in it.
    kinds.sort_by_key(Kind::key);
    Ok(kinds)
}
