//! The embedded platform's "kubelet": registers a node and runs Holdfast's own pods as processes
//! (kubernetes-surface.md §17, first-slice.md §3 and §5).
//!
//! | Module | Part |
//! |---|---|
//! | [`init`] | PID 1 of the node: parent of every container, keeper of daemons |
//! | [`podexec`] | a process becoming a container |
//! | [`plan`], [`status`] | pure: the next step of a pod, its status |
//! | `worker` | one task a pod: look, plan, step, write |
//! | [`node`] | Node object and Lease |
//! | [`record`], [`paths`], [`launch`] | what lies on disk |
//!
//! This process may be killed at any instant: containers belong to init, and records on disk say
//! what was begun. Only images of [`image::Image`] are served; any other pod stays Pending with an
//! event that says why.

pub mod environment;
pub mod events;
pub mod image;
pub mod init;
pub mod launch;
pub mod node;
pub mod paths;
pub mod plan;
pub mod podexec;
pub mod record;
pub mod status;
pub mod time;
pub mod volumes;
mod worker;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use futures::StreamExt as _;
use holdfast_sys::cgroup::Hierarchies;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher;
use kube::{Api, Client};
use tokio::sync::watch;

use crate::events::Events;
use crate::init::InitClient;
use crate::node::{NodeInfo, Timers};
use crate::paths::NodeDir;
use crate::worker::{Shared, View};

/// What the node runtime is told at its start.
#[derive(Debug, Clone)]
pub struct Config {
    /// Directory of the node.
    pub node_dir: PathBuf,
    /// The node as it registers.
    pub node: NodeInfo,
    /// Heartbeats.
    pub timers: Timers,
    /// Directory with `holdfast-launcher` and `holdfast-importer`.
    pub programs: PathBuf,
    /// Directory with other builds of the launcher, `<builds>/<tag>`.
    pub builds: PathBuf,
    /// Control group of the node's pods, relative to each hierarchy's root
    /// (`holdfast-<id>/<node>`); a pod's is `<cgroup>/<pod uid>/<container>`.
    pub cgroup: String,
}

/// Serves the node until the process ends. API outages are waited out.
///
/// # Errors
/// When the node's directories cannot be used.
pub async fn run(config: Config, client: Client) -> anyhow::Result<()> {
    let dir = NodeDir::new(&config.node_dir);
    for path in [dir.runtime(), dir.exits(), dir.pods()] {
        std::fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
    }
    let events = Events::start(client.clone(), &config.node.name);
    tokio::spawn(node::keep_alive(client.clone(), config.node.clone(), config.timers, events.clone()));
    let node_name = config.node.name.clone();
    let shared = Arc::new(Shared {
        init: InitClient::new(&dir),
        client: client.clone(),
        events,
        dir,
        cgroups: Hierarchies::detect(),
        config,
    });
    let mut pods = Pods { shared, views: BTreeMap::new(), listing: None };
    let api: Api<Pod> = Api::all(client);
    let selector = watcher::Config::default().fields(&format!("spec.nodeName={node_name}"));
    let mut stream =
        std::pin::pin!(kube::runtime::WatchStreamExt::backoff(watcher(api, selector), Backoff::default()));
    let mut failing = false;
    while let Some(event) = stream.next().await {
        match event {
            Ok(event) => {
                failing = false;
                pods.on(event);
            }
            Err(error) => {
                if !failing {
                    tracing::warn!(%error, "pod watch");
                }
                failing = true;
            }
        }
    }
    anyhow::bail!("the pod watch ended")
}

/// Short pauses: the control plane of the embedded platform restarts within a second.
#[derive(Debug, Clone, Default)]
struct Backoff {
    failures: u32,
}

impl Iterator for Backoff {
    type Item = std::time::Duration;
    fn next(&mut self) -> Option<Self::Item> {
        let millis = (100_u64 << self.failures.min(5)).min(2_000);
        self.failures += 1;
        Some(std::time::Duration::from_millis(millis))
    }
}

impl kube::runtime::utils::Backoff for Backoff {
    fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Distributes what the watch says to one worker per pod uid.
struct Pods {
    shared: Arc<Shared>,
    views: BTreeMap<String, watch::Sender<View>>,
    /// Pods seen so far in a list that is being received.
    listing: Option<Vec<String>>,
}

impl Pods {
    fn on(&mut self, event: watcher::Event<Pod>) {
        match event {
            watcher::Event::Apply(pod) => self.show(pod),
            watcher::Event::Delete(pod) => {
                if let Some(uid) = &pod.metadata.uid {
                    self.gone(uid);
                }
            }
            watcher::Event::Init => self.listing = Some(Vec::new()),
            watcher::Event::InitApply(pod) => {
                if let (Some(listing), Some(uid)) = (&mut self.listing, &pod.metadata.uid) {
                    listing.push(uid.clone());
                }
                self.show(pod);
            }
            watcher::Event::InitDone => {
                let listed = self.listing.take().unwrap_or_default();
                self.adopt_records();
                let missing: Vec<String> =
                    self.views.keys().filter(|uid| !listed.contains(uid)).cloned().collect();
                for uid in missing {
                    self.gone(&uid);
                }
            }
        }
    }

    fn show(&mut self, pod: Pod) {
        let Some(uid) = pod.metadata.uid.clone() else { return };
        let view = Some(Arc::new(pod));
        // A finished worker dropped its receiver; a new one starts then.
        if self.views.get(&uid).is_some_and(|sender| sender.send(view.clone()).is_ok()) {
            return;
        }
        self.start(uid, view);
    }

    fn gone(&mut self, uid: &str) {
        if let Some(sender) = self.views.remove(uid) {
            let _ = sender.send(None);
        }
    }

    fn start(&mut self, uid: String, view: View) {
        let (sender, receiver) = watch::channel(view);
        tokio::spawn(worker::run(Arc::clone(&self.shared), uid.clone(), receiver));
        self.views.insert(uid, sender);
    }

    /// Records without a pod in a complete list: deleted while this process was away.
    fn adopt_records(&mut self) {
        let entries = std::fs::read_dir(self.shared.dir.runtime());
        for entry in entries.into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(uid) = name.to_str().and_then(|name| name.strip_suffix(".json")) else { continue };
            if !uid.starts_with('.') && !self.views.contains_key(uid) {
                self.start(uid.to_owned(), None);
            }
        }
    }
}
