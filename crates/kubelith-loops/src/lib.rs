//! The control loops of the embedded control plane: scheduler, node lifecycle and taint eviction,
//! pod garbage collection, owner garbage collection, namespace deletion, disruption budgets, volume
//! binding with the built-in provisioner, and the small loops (service accounts, root CA, event age).
//!
//! Every loop has the same shape: caches fed by watches wake it, it looks at the whole picture, a pure
//! function decides, and guarded writes follow. A pass on a settled world writes nothing; nothing is
//! remembered that a restart would miss. Spec: kubernetes-surface.md §10.3 and §16.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use tokio::task::JoinSet;

mod cache;
mod disruption;
mod drive;
mod events;
mod fault;
pub mod forecast;
mod namespaces;
mod nodes;
mod owners;
mod pod_gc;
mod pods;
mod scheduler;
mod small;
mod storage;
mod taints;

pub use nodes::Timers as NodeTimers;
pub use storage::provision::{LOCAL_PROVISIONER, SHARED_PROVISIONER};

/// Thousandths of a quantity, or 0 for what is none (the API server has validated it).
fn milli_or_zero(quantity: &Quantity) -> i128 {
    quantity.0.parse().map_or(0, holdfast_apimachinery::quantity::Quantity::exact_millis)
}

/// What the loops need to know. `Default` is the embedded profile without built-in storage.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the built-in provisioner keeps its directories; `None` switches it off.
    pub storage: Option<Storage>,
    /// Timers of node health (kubernetes-surface.md §16.2).
    pub nodes: NodeTimers,
    /// Timers of pod garbage collection (§16.3).
    pub pod_gc: PodGcTimers,
    /// Age at which events are removed.
    pub event_ttl: Duration,
    /// PEM of the cluster's CA, published as ConfigMap `kube-root-ca.crt` in every namespace.
    pub root_ca_pem: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            storage: None,
            nodes: NodeTimers::default(),
            pod_gc: PodGcTimers::default(),
            event_ttl: Duration::from_secs(3600),
            root_ca_pem: None,
        }
    }
}

/// Directories of the built-in storage classes, absolute and visible to this process.
#[derive(Clone, Debug)]
pub struct Storage {
    /// Volumes of class `shared` are `<shared>/<pv>`.
    pub shared: PathBuf,
    /// Volumes of class `local` are `<nodes>/<node>/storage/local/<pv>`.
    pub nodes: PathBuf,
}

impl Storage {
    /// The layout inside a Holdfast home: `storage/shared` and `nodes/<node>/storage/local`.
    #[must_use]
    pub fn in_home(home: &std::path::Path) -> Self {
        Self { shared: home.join("storage/shared"), nodes: home.join("nodes") }
    }
}

/// Timers of pod garbage collection.
#[derive(Clone, Copy, Debug)]
pub struct PodGcTimers {
    /// Time between two looks.
    pub period: Duration,
    /// How long a node must have been absent before its pods are removed.
    pub quarantine: Duration,
    /// Finished pods kept cluster-wide; the oldest above this number are removed.
    pub finished_kept: usize,
}

impl Default for PodGcTimers {
    fn default() -> Self {
        Self { period: Duration::from_secs(2), quarantine: Duration::from_secs(5), finished_kept: 500 }
    }
}

/// Runs all loops until one of them panics or the future is dropped; dropping it stops every loop.
///
/// `client` must hold the rights of `system:masters`. The API server may be absent or go away: caches
/// reconnect by themselves and no loop judges a node while its heartbeats cannot be seen.
///
/// # Errors
/// Only when a loop's task panicked, which is a bug.
pub async fn run(client: kube::Client, config: Config) -> anyhow::Result<()> {
    let mut tasks = JoinSet::new();
    let caches = Arc::new(cache::Caches::start(&client, &mut tasks));
    let kinds = owners::Kinds::start(&client, &caches, &mut tasks);
    let recorder = events::Recorder::new(client.clone());

    tasks.spawn(scheduler::run(client.clone(), caches.clone(), recorder.clone()));
    tasks.spawn(nodes::run(client.clone(), caches.clone(), recorder.clone(), config.nodes));
    tasks.spawn(taints::run(client.clone(), caches.clone(), recorder.clone()));
    tasks.spawn(pod_gc::run(client.clone(), caches.clone(), config.pod_gc));
    tasks.spawn(owners::run(client.clone(), kinds.clone(), recorder.clone()));
    tasks.spawn(namespaces::run(client.clone(), caches.clone(), kinds));
    tasks.spawn(disruption::run(client.clone(), caches.clone(), recorder.clone()));
    tasks.spawn(storage::run(client.clone(), caches.clone(), recorder, config.storage.clone()));
    tasks.spawn(small::run_accounts(client.clone(), caches.clone()));
    if let Some(pem) = config.root_ca_pem.clone() {
        tasks.spawn(small::run_root_ca(client.clone(), caches, pem));
    }
    tasks.spawn(small::run_event_ttl(client, config.event_ttl));

    while let Some(ended) = tasks.join_next().await {
        ended.context("a control loop's task panicked; the process must be restarted")?;
    }
    Ok(())
}
