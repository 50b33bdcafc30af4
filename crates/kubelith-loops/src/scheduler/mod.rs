//! Scheduler: gives each waiting pod a node (kubernetes-surface.md §16.1).
//!
//! `snapshot` is the picture, `place` the decision (`filters`, `affinity`, `spread`, `volumes` refuse,
//! `scores` compares), this file the loop: it takes waiting pods by priority, assumes its own bindings
//! until the cache shows them, and binds without holding up the next pod.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::response::Status;
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use crate::cache::Caches;
use crate::drive::{Pass, drive};
use crate::events::{Recorder, Severity};
use crate::storage::SELECTED_NODE;
use crate::{fault, pods};

mod affinity;
pub(crate) mod filters;
mod picture;
pub(crate) mod place;
mod scores;
pub(crate) mod snapshot;
mod spread;
#[cfg(test)]
mod tests;
mod volumes;

use picture::Picture;
use place::{Verdict, place};

const COMPONENT: &str = "default-scheduler";
/// Least time between two tries of a pod that found no node: 5 ms, doubling with each try to this. The
/// decision costs microseconds and writes nothing while its answer stays the same.
const RETRY: Duration = Duration::from_millis(250);
/// A reason is told once it has stood for this long: a pod made together with its claim waits for the
/// volume for some milliseconds only.
const HESITATION: Duration = Duration::from_millis(150);
/// Longest time a pod waits although nothing changed.
const RETRY_LATEST: Duration = Duration::from_secs(300);
/// An assumed binding that the cache never showed is forgotten after this.
const ASSUMED_MAX: Duration = Duration::from_secs(30);

struct Assumed {
    pod: Arc<Pod>,
    node: String,
    since: Instant,
    /// The server has confirmed the binding.
    bound: bool,
}

/// Pod uid, and whether its binding was written.
type Outcome = (String, bool);

/// A pod that found no node, and why.
struct Tried {
    at: Instant,
    tries: u32,
    world: u64,
    message: String,
    /// When this message was first the answer.
    since: Instant,
    told: Option<Instant>,
}

impl Tried {
    /// How long until the pod is worth another try; `world` is the present state.
    fn pause(&self, world: u64) -> Duration {
        let unchanged = match self.told {
            None => HESITATION.saturating_sub(self.since.elapsed()),
            Some(told) => RETRY_LATEST.saturating_sub(told.elapsed()),
        };
        if world == self.world {
            return unchanged;
        }
        let least = (Duration::from_millis(5) * 2u32.pow(self.tries.min(8))).min(RETRY);
        unchanged.min(least.saturating_sub(self.at.elapsed()))
    }

    fn is_to_be_told(&self) -> bool {
        self.since.elapsed() >= HESITATION && self.told.is_none_or(|told| told.elapsed() >= RETRY_LATEST)
    }
}

struct Scheduler {
    client: Client,
    caches: Arc<Caches>,
    recorder: Recorder,
    wake: Arc<Notify>,
    picture: Picture,
    assumed: BTreeMap<String, Assumed>,
    tried: BTreeMap<String, Tried>,
    /// Where bindings in flight report.
    report: mpsc::UnboundedSender<Outcome>,
    outcomes: mpsc::UnboundedReceiver<Outcome>,
}

/// Runs the scheduler for ever.
pub(crate) async fn run(client: Client, caches: Arc<Caches>, recorder: Recorder) {
    let wake = Arc::new(Notify::new());
    caches.pods.wakes(&wake);
    caches.nodes.wakes(&wake);
    caches.claims.wakes(&wake);
    caches.volumes.wakes(&wake);
    caches.classes.wakes(&wake);
    caches.namespaces.wakes(&wake);
    let (report, outcomes) = mpsc::unbounded_channel();
    let scheduler = Scheduler {
        client,
        picture: Picture::new(caches.clone()),
        caches,
        recorder,
        wake: wake.clone(),
        assumed: BTreeMap::new(),
        tried: BTreeMap::new(),
        report,
        outcomes,
    };
    drive(COMPONENT, wake, Duration::ZERO, scheduler).await;
}

/// Whether the scheduler has to find a node for the pod.
fn is_waiting(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    spec.scheduler_name.as_deref().unwrap_or(COMPONENT) == COMPONENT
        && pods::node_name(pod).is_none()
        && !pods::is_terminating(pod)
        && !pods::is_finished(pod)
        && spec.scheduling_gates.as_ref().is_none_or(Vec::is_empty)
}

fn uid(pod: &Pod) -> String {
    pod.metadata.uid.clone().unwrap_or_default()
}

impl Pass for Scheduler {
    async fn pass(&mut self) -> anyhow::Result<Duration> {
        self.ready().await?;
        let world = self.world();
        self.picture.refresh();
        self.settle_assumed();
        let mut waiting: Vec<Arc<Pod>> = self.picture.waiting.values().cloned().collect();
        let uids: BTreeSet<&str> = waiting.iter().filter_map(|pod| pod.metadata.uid.as_deref()).collect();
        self.tried.retain(|uid, _| uids.contains(uid.as_str()));
        waiting.retain(|pod| !self.assumed.contains_key(&uid(pod)));
        if waiting.is_empty() {
            return Ok(RETRY_LATEST);
        }
        waiting.sort_by_key(|pod| {
            let priority = pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0);
            (-i64::from(priority), pod.metadata.creation_timestamp.clone(), pod.name_any())
        });
        let mut next = RETRY_LATEST;
        for pod in waiting {
            if let Some(pause) = self.pause(&pod, world) {
                next = next.min(pause);
                continue;
            }
            next = next.min(self.try_place(&pod, world).await?);
        }
        Ok(next)
    }
}

impl Scheduler {
    async fn ready(&self) -> anyhow::Result<()> {
        let caches = &self.caches;
        caches.pods.ready().await?;
        caches.nodes.ready().await?;
        caches.namespaces.ready().await?;
        caches.claims.ready().await?;
        caches.volumes.ready().await?;
        caches.classes.ready().await
    }

    /// A number that changes with everything a placement depends on.
    fn world(&self) -> u64 {
        let caches = &self.caches;
        caches.pods.version()
            + caches.nodes.version()
            + caches.namespaces.version()
            + caches.claims.version()
            + caches.volumes.version()
            + caches.classes.version()
    }

    /// Forgets assumptions that came true or failed.
    fn settle_assumed(&mut self) {
        while let Ok((uid, bound)) = self.outcomes.try_recv() {
            if bound {
                if let Some(assumed) = self.assumed.get_mut(&uid) {
                    assumed.bound = true;
                }
            } else {
                self.forget(&uid);
            }
        }
        let now = Instant::now();
        let pods = &self.caches.pods;
        let shown = |uid: &String, pod: &Pod| {
            let found = pods.get(pod.metadata.namespace.as_deref(), &pod.name_any());
            found.filter(|found| found.metadata.uid.as_ref() == Some(uid))
        };
        let over = |(uid, assumed): (&String, &Assumed)| {
            let stands = match shown(uid, &assumed.pod) {
                Some(pod) => pods::node_name(&pod).is_none(),
                None => !assumed.bound,
            };
            (!stands || now - assumed.since >= ASSUMED_MAX).then(|| uid.clone())
        };
        for uid in self.assumed.iter().filter_map(over).collect::<Vec<_>>() {
            self.forget(&uid);
        }
        for (uid, assumed) in &self.assumed {
            if !self.picture.cluster.has(uid) {
                self.picture.cluster.put(&assumed.node, assumed.pod.clone());
            }
        }
    }

    fn forget(&mut self, uid: &str) {
        if let Some(assumed) = self.assumed.remove(uid) {
            self.picture.forget(&assumed.pod);
        }
    }

    /// How long a pod that found no node still has to wait; `None` = try now.
    fn pause(&self, pod: &Pod, world: u64) -> Option<Duration> {
        Some(self.tried.get(&uid(pod))?.pause(world)).filter(|left| !left.is_zero())
    }

    async fn try_place(&mut self, pod: &Arc<Pod>, world: u64) -> anyhow::Result<Duration> {
        match place(pod, &self.picture.cluster, holdfast_env::random_u64()) {
            Verdict::Node { name, claims } if claims.is_empty() => {
                self.tried.remove(&uid(pod));
                self.picture.cluster.put(&name, pod.clone());
                self.bind(pod.clone(), name);
                Ok(ASSUMED_MAX)
            }
            Verdict::Node { name, claims } => {
                for claim in claims {
                    select_node(&self.client, pod, &claim, &name).await?;
                }
                Ok(RETRY)
            }
            Verdict::AwaitVolumes => Ok(RETRY_LATEST),
            Verdict::Nowhere(message) => self.note(pod, message, world).await,
        }
    }

    /// Remembers why a pod has no node and tells it when it is time; returns when to look again.
    async fn note(&mut self, pod: &Pod, message: String, world: u64) -> anyhow::Result<Duration> {
        let now = Instant::now();
        let fresh = Tried { at: now, tries: 0, world, message: String::new(), since: now, told: None };
        let tried = self.tried.entry(uid(pod)).or_insert(fresh);
        if tried.message != message {
            tried.since = now;
            tried.told = None;
            tried.message.clone_from(&message);
        }
        tried.at = now;
        tried.tries = tried.tries.saturating_add(1);
        tried.world = world;
        let (is_due, pause) = (tried.is_to_be_told(), tried.pause(world));
        if !is_due {
            return Ok(pause);
        }
        self.refuse(pod, &message).await?;
        if let Some(tried) = self.tried.get_mut(&uid(pod)) {
            tried.told = Some(now);
        }
        Ok(RETRY_LATEST)
    }

    /// Assumes the binding and writes it in the background.
    fn bind(&mut self, pod: Arc<Pod>, node: String) {
        let uid = uid(&pod);
        self.assumed.insert(
            uid.clone(),
            Assumed { pod: pod.clone(), node: node.clone(), since: Instant::now(), bound: false },
        );
        let client = self.client.clone();
        let recorder = self.recorder.clone();
        let outcome = self.report.clone();
        let wake = self.wake.clone();
        tokio::spawn(async move {
            let result = bind(&client, &pod, &node).await;
            let bound = result.is_ok();
            match result {
                Ok(()) => {
                    let text = format!(
                        "Successfully assigned {}/{} to {node}",
                        pod.namespace().unwrap_or_default(),
                        pod.name_any()
                    );
                    recorder.publish(COMPONENT, pod.as_ref(), Severity::Normal, "Scheduled", text);
                }
                Err(error) if fault::is_gone(&error) || fault::is_conflict(&error) => {
                    tracing::debug!(pod = pod.name_any(), "binding not needed any more: {error}");
                }
                Err(error) => {
                    tracing::warn!(
                        pod = pod.name_any(),
                        node,
                        "binding failed, will be tried again: {error}"
                    );
                    tokio::time::sleep(RETRY).await;
                }
            }
            // A closed channel means that the scheduler has ended; nobody needs the outcome then.
            let _ = outcome.send((uid, bound));
            wake.notify_one();
        });
    }

    /// Tells users why a pod has no node.
    async fn refuse(&self, pod: &Pod, message: &str) -> anyhow::Result<()> {
        let shown = pods::condition(pod, "PodScheduled");
        let is_shown = shown.is_some_and(|c| c.status == "False" && c.message.as_deref() == Some(message));
        if !is_shown {
            let condition =
                pods::condition_patch(pod, "PodScheduled", "False", Some("Unschedulable"), Some(message));
            pods::patch_status(&self.client, pod, json!({"conditions": [condition]})).await?;
        }
        self.recorder.publish(COMPONENT, pod, Severity::Warning, "FailedScheduling", message.to_owned());
        Ok(())
    }
}

async fn bind(client: &Client, pod: &Pod, node: &str) -> kube::Result<()> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let binding = json!({
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": pod.name_any(), "namespace": pod.namespace(), "uid": pod.metadata.uid},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    });
    let _: Status =
        api.create_subresource("binding", &pod.name_any(), &PostParams::default(), &binding).await?;
    Ok(())
}

/// Tells a claim on which node its volume is needed; the volume loop makes it there.
async fn select_node(client: &Client, pod: &Pod, claim: &str, node: &str) -> kube::Result<()> {
    let api: Api<PersistentVolumeClaim> =
        Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let patch = json!({"metadata": {"annotations": {SELECTED_NODE: node}}});
    let result = api.patch(claim, &PatchParams::default(), &Patch::Merge(patch)).await;
    fault::unless_stale(result).map(|_| ())
}
