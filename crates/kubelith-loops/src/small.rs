//! The small loops of kubernetes-surface.md §16.8: the `default` service account and the root CA of every
//! namespace, and the age limit of events.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::cache::{Cache, Caches};
use crate::drive::{Pass, drive};
use crate::fault;

const IDLE: Duration = Duration::from_secs(60);
const ROOT_CA: &str = "kube-root-ca.crt";

/// Active namespaces; in a terminating one nothing may be created.
fn active(caches: &Caches) -> Vec<Arc<Namespace>> {
    let mut all = caches.namespaces.all();
    all.retain(|n| n.metadata.deletion_timestamp.is_none());
    all
}

/// Whether a create failed only because somebody was faster or the namespace is going away.
fn is_moot(error: &kube::Error) -> bool {
    fault::is_conflict(error)
        || fault::is_gone(error)
        || matches!(error, kube::Error::Api(status) if status.code == 403)
}

struct Accounts {
    client: Client,
    caches: Arc<Caches>,
}

/// Keeps a `default` service account in every active namespace, for ever.
pub(crate) async fn run_accounts(client: Client, caches: Arc<Caches>) {
    let wake = Arc::new(Notify::new());
    caches.namespaces.wakes(&wake);
    caches.accounts.wakes(&wake);
    drive("serviceaccount", wake, Duration::ZERO, Accounts { client, caches }).await;
}

impl Pass for Accounts {
    async fn pass(&mut self) -> anyhow::Result<Duration> {
        self.caches.namespaces.ready().await?;
        self.caches.accounts.ready().await?;
        for namespace in active(&self.caches) {
            let name = namespace.name_any();
            if self.caches.accounts.get(Some(&name), "default").is_some() {
                continue;
            }
            let account = ServiceAccount {
                metadata: ObjectMeta {
                    name: Some("default".to_owned()),
                    namespace: Some(name.clone()),
                    ..ObjectMeta::default()
                },
                ..ServiceAccount::default()
            };
            let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &name);
            match api.create(&PostParams::default(), &account).await {
                Err(error) if !is_moot(&error) => return Err(error.into()),
                _ => {}
            }
        }
        Ok(IDLE)
    }
}

struct RootCa {
    client: Client,
    caches: Arc<Caches>,
    published: Cache<ConfigMap>,
    pem: String,
}

/// Keeps ConfigMap `kube-root-ca.crt` in every active namespace, for ever.
pub(crate) async fn run_root_ca(client: Client, caches: Arc<Caches>, pem: String) {
    let wake = Arc::new(Notify::new());
    let mut tasks = JoinSet::new();
    let config = watcher::Config::default().fields(&format!("metadata.name={ROOT_CA}"));
    let (published, _) = Cache::start(Api::<ConfigMap>::all(client.clone()), config, &mut tasks, |_| {});
    published.wakes(&wake);
    caches.namespaces.wakes(&wake);
    let publisher = RootCa { client, caches, published, pem };
    drive("root-ca-cert-publisher", wake, Duration::ZERO, publisher).await;
}

impl Pass for RootCa {
    async fn pass(&mut self) -> anyhow::Result<Duration> {
        self.caches.namespaces.ready().await?;
        self.published.ready().await?;
        for namespace in active(&self.caches) {
            let name = namespace.name_any();
            let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &name);
            let data = json!({"ca.crt": self.pem});
            let result = match self.published.get(Some(&name), ROOT_CA) {
                Some(map) if map.data.as_ref().and_then(|d| d.get("ca.crt")) == Some(&self.pem) => continue,
                Some(_) => {
                    let patch = Patch::Merge(json!({"data": data}));
                    api.patch(ROOT_CA, &PatchParams::default(), &patch).await
                }
                None => {
                    let map: ConfigMap = serde_json::from_value(
                        json!({"metadata": {"name": ROOT_CA, "namespace": name}, "data": data}),
                    )?;
                    api.create(&PostParams::default(), &map).await
                }
            };
            match result {
                Err(error) if !is_moot(&error) => return Err(error.into()),
                _ => {}
            }
        }
        Ok(IDLE)
    }
}

struct EventTtl {
    client: Client,
    ttl: Duration,
}

/// Removes events older than `ttl`, for ever.
pub(crate) async fn run_event_ttl(client: Client, ttl: Duration) {
    drive("event-ttl", Arc::new(Notify::new()), Duration::ZERO, EventTtl { client, ttl }).await;
}

/// Last time anything about the event changed.
fn last_seen(event: &Event) -> Option<Timestamp> {
    let series = event.series.as_ref().and_then(|s| s.last_observed_time.as_ref()).map(|t| t.0);
    let last = event.last_timestamp.as_ref().map(|t| t.0);
    let time = event.event_time.as_ref().map(|t| t.0);
    let created = event.metadata.creation_timestamp.as_ref().map(|t| t.0);
    [series, last, time, created].into_iter().flatten().max()
}

impl Pass for EventTtl {
    async fn pass(&mut self) -> anyhow::Result<Duration> {
        let all: Api<Event> = Api::all(self.client.clone());
        let ttl = SignedDuration::try_from(self.ttl)?;
        let now = holdfast_env::now();
        let mut page = ListParams::default().limit(500);
        loop {
            let events = all.list(&page).await?;
            for event in &events.items {
                if last_seen(event).is_some_and(|at| now.duration_since(at) > ttl) {
                    let api: Api<Event> =
                        Api::namespaced(self.client.clone(), &event.namespace().unwrap_or_default());
                    fault::unless_stale(api.delete(&event.name_any(), &DeleteParams::default()).await)?;
                }
            }
            match events.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => return Ok(IDLE.min(self.ttl)),
            }
        }
    }
}
