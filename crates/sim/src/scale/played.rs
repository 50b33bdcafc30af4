//! Nodes, played: what their runtimes and agents would write into the API, and nothing else. Heartbeats are
//! those of the real node runtime; no process runs on a node.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use futures::StreamExt as _;
use holdfast_api::engine::{Claim, Instance, Migration, MigrationState, Power, ReportState};
use holdfast_api::import::Request;
use holdfast_api::names::{PLATFORM_NAMESPACE, label};
use holdfast_noderuntime::events::Events;
use holdfast_noderuntime::node::{NodeInfo, Timers, keep_alive};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task::AbortHandle;

use crate::{start, user};

/// A played node.
struct Machine {
    /// Its heartbeats; none while it is lost.
    alive: Option<AbortHandle>,
    /// Counts power-ons.
    boot: u32,
    number: u32,
}

/// All played nodes.
pub struct Nodes {
    runtimes: Client,
    agents: Client,
    machines: RefCell<BTreeMap<String, Machine>>,
    /// Boot of its node in which a pod was started, by the pod's uid, where that is not the first.
    started: RefCell<BTreeMap<String, u32>>,
}

/// Name of a node.
#[must_use]
pub fn name(number: u32) -> String {
    format!("node-{number:05}")
}

fn boot_id(boot: u32) -> String {
    format!("boot-{boot}")
}

impl Nodes {
    /// Nodes that are switched off.
    #[must_use]
    pub fn new(runtimes: Client, agents: Client, count: u32) -> Rc<Self> {
        let machine = |number| (name(number), Machine { alive: None, boot: 0, number });
        let machines = RefCell::new((1..=count).map(machine).collect());
        Rc::new(Self { runtimes, agents, machines, started: RefCell::default() })
    }

    /// Switches a node on: heartbeats begin, and its agent takes the fence Lease under a new boot id.
    pub async fn power_on(&self, name: &str) {
        let (boot, number) = {
            let mut machines = self.machines.borrow_mut();
            let Some(machine) = machines.get_mut(name) else { return };
            machine.boot += 1;
            (machine.boot, machine.number)
        };
        let info = NodeInfo {
            name: name.to_owned(),
            ip: format!("10.{}.{}.{}", number >> 16, (number >> 8) & 255, number & 255),
            boot_id: boot_id(boot),
            labels: BTreeMap::new(),
            cpu_milli: 64_000,
            memory_bytes: 256 << 30,
            allocatable_memory_bytes: 240 << 30,
            ephemeral_storage_bytes: 1 << 40,
            pods: 250,
            version: "0.1.0".to_owned(),
        };
        // As on an ordinary cluster: the embedded profile beats every two seconds.
        let timers =
            Timers { renew: std::time::Duration::from_secs(10), lease_duration_s: 40, ..Timers::default() };
        let events = Events::start(self.runtimes.clone(), name);
        let beats = tokio::task::spawn_local(keep_alive(self.runtimes.clone(), info, timers, events));
        if let Some(machine) = self.machines.borrow_mut().get_mut(name) {
            machine.alive = Some(beats.abort_handle());
        }
        self.fence(name, boot).await;
    }

    /// Takes a node's power.
    pub fn power_off(&self, name: &str) {
        if let Some(machine) = self.machines.borrow_mut().get_mut(name)
            && let Some(beats) = machine.alive.take()
        {
            beats.abort();
        }
    }

    /// The agent's mark that its node takes VMs; the node must be registered.
    pub async fn mark_able(&self, name: &str) -> kube::Result<()> {
        let labels = json!({label::SCHEDULABLE: "true",
            "cpu-model.node.virtualization.deckhouse.io/Nehalem": "true"});
        let patch = Patch::Merge(json!({"metadata": {"labels": labels}}));
        let nodes: Api<Node> = Api::all(self.agents.clone());
        nodes.patch(name, &PatchParams::default(), &patch).await.map(drop)
    }

    async fn fence(&self, node: &str, boot: u32) {
        let name = format!("fence-{node}");
        let spec = json!({
            "holderIdentity": format!("node/{node}/{}", boot_id(boot)),
            "acquireTime": format!("{}.000000Z", &holdfast_env::now().to_string()[..19]),
        });
        let api: Api<Lease> = Api::namespaced(self.agents.clone(), PLATFORM_NAMESPACE);
        let patch = Patch::Merge(json!({"spec": spec}));
        let changed = api.patch(&name, &PatchParams::default(), &patch).await;
        if changed.is_err()
            && let Ok(lease) = serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec}))
        {
            let _ = api.create(&PostParams::default(), &lease).await;
        }
    }

    /// The present boot of a node that is on.
    fn boot_of(&self, node: Option<&str>) -> Option<u32> {
        let machines = self.machines.borrow();
        machines.get(node?).filter(|machine| machine.alive.is_some()).map(|machine| machine.boot)
    }

    fn api<K>(client: &Client, object: &impl Resource) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    {
        Api::namespaced(client.clone(), object.meta().namespace.as_deref().unwrap_or(user::NAMESPACE))
    }

    async fn pod_status(&self, pod: &Pod, status: Value) {
        let patch = Patch::Merge(json!({ "status": status }));
        // It may be gone.
        let api: Api<Pod> = Self::api(&self.runtimes, pod);
        let _ = api.patch_status(&pod.name_any(), &PatchParams::default(), &patch).await;
    }

    async fn status_of<K>(&self, name: &str, status: Value)
    where
        K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned,
    {
        let api: Api<K> = Api::namespaced(self.agents.clone(), user::NAMESPACE);
        let patch = Patch::Merge(json!({ "status": status }));
        let _ = api.patch_status(name, &PatchParams::default(), &patch).await;
    }

    async fn finish_pod(&self, name: &str) {
        let api: Api<Pod> = Api::namespaced(self.runtimes.clone(), user::NAMESPACE);
        let patch = Patch::Merge(json!({"status": {"phase": "Succeeded"}}));
        let _ = api.patch_status(name, &PatchParams::default(), &patch).await;
    }

    async fn pod(&self, pod: &Pod) {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        let Some(boot) = self.boot_of(node) else { return };
        let uid = pod.uid().unwrap_or_default();
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending");
        let launcher = pod.labels().contains_key(label::CREATED_BY);
        let over = matches!(phase, "Succeeded" | "Failed");
        let lost = phase == "Running" && self.started.borrow().get(&uid).copied().unwrap_or(1) != boot;
        if lost {
            self.pod_status(pod, json!({"phase": "Failed", "reason": "NodeRestarted"})).await;
        } else if pod.metadata.deletion_timestamp.is_some() {
            self.end_pod(pod, launcher, over).await;
        } else if phase == "Pending" && launcher {
            if boot != 1 {
                self.started.borrow_mut().insert(uid, boot);
            }
            let condition = |type_: &str| json!({"type": type_, "status": "True"});
            let all = ["PodScheduled", "Initialized", "ContainersReady", "Ready"].map(condition);
            self.pod_status(pod, json!({"phase": "Running", "conditions": all})).await;
        } else if phase == "Pending" {
            self.import(pod).await;
        }
    }

    /// A pod that is being deleted: its guest is shut down, then the runtime lets go.
    async fn end_pod(&self, pod: &Pod, launcher: bool, over: bool) {
        if launcher && !over {
            let api: Api<Instance> = Self::api(&self.agents, pod);
            let owner = pod.owner_references().first().map(|owner| owner.name.clone()).unwrap_or_default();
            let instance = api.get_opt(&owner).await.ok().flatten();
            let claim = instance.and_then(|instance| instance.status?.claim);
            match claim.filter(|claim| Some(&claim.pod_uid) == pod.metadata.uid.as_ref()) {
                Some(claim) => self.end(&owner, &claim, &pod.name_any()).await,
                None => self.finish_pod(&pod.name_any()).await,
            }
        } else if pod.metadata.finalizers.as_ref().is_none_or(Vec::is_empty) {
            let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
            let api: Api<Pod> = Self::api(&self.runtimes, pod);
            let _ = api.delete(&pod.name_any(), &now).await;
        }
    }

    /// The guest of a VM is shut down.
    async fn end(&self, vm: &str, claim: &Claim, pod: &str) {
        let report = json!({
            "epoch": claim.epoch, "podUID": claim.pod_uid, "state": "Ended", "cause": "GuestShutdown",
            "cgroupEmpty": true, "detail": "",
        });
        self.status_of::<Instance>(vm, json!({"report": report, "guest": null})).await;
        self.finish_pod(pod).await;
    }

    /// An importer is done at once.
    async fn import(&self, pod: &Pod) {
        let Some(container) = pod.spec.as_ref().and_then(|spec| spec.containers.first()) else { return };
        let words = container.args.iter().chain(&container.command).flatten();
        let Some(request) = words.filter_map(|word| serde_json::from_str::<Request>(word).ok()).next() else {
            return;
        };
        let ended = json!({"terminated": {"exitCode": 0, "message": start::result_of(&request)}});
        let container = json!({"name": container.name, "image": "i", "imageID": "i", "ready": false,
            "restartCount": 0, "state": ended});
        self.pod_status(pod, json!({"phase": "Succeeded", "containerStatuses": [container]})).await;
    }

    async fn instance(&self, instance: &Instance) {
        let Some(status) = &instance.status else { return };
        let Some(claim) = status.claim.as_ref().filter(|claim| claim.epoch == instance.spec.epoch) else {
            return;
        };
        let Some(boot) = self.boot_of(Some(&claim.node)) else { return };
        let report = status.report.as_ref().filter(|report| report.pod_uid == claim.pod_uid);
        let state = report.map(|report| report.state);
        if claim.boot_id != boot_id(boot) || state == Some(ReportState::Ended) {
            return;
        }
        let Some(pod) = status.pods.iter().find(|pod| pod.uid == claim.pod_uid) else { return };
        let off = instance.spec.power == Power::Off || instance.metadata.deletion_timestamp.is_some();
        if off {
            self.end(&instance.name_any(), claim, &pod.name).await;
        } else if state != Some(ReportState::Running) {
            let report = json!({"epoch": claim.epoch, "podUID": claim.pod_uid, "state": "Running"});
            let runtime = json!({"startedAt": holdfast_env::now().to_string(), "qemuVersion": "10.0.2"});
            let active = json!({"name": pod.name, "uid": claim.pod_uid});
            let status =
                json!({"report": report, "node": claim.node, "activePod": active, "runtime": runtime});
            self.status_of::<Instance>(&instance.name_any(), status).await;
        }
    }

    /// One step of a move: it begins to copy, or the target takes over.
    async fn migration(&self, migration: &Migration) {
        let status = migration.status.clone().unwrap_or_default();
        let state = status.state.unwrap_or_default();
        let handed = state >= MigrationState::Preparing && !state.is_final();
        let (Some(source), Some(target), true) = (status.source, status.target, handed) else { return };
        if self.boot_of(Some(&source.node)).is_none() || source.aborted_at.is_some() {
            return;
        }
        let (name, vm) = (migration.name_any(), &migration.spec.instance.name);
        let now = holdfast_env::now().to_string();
        if status.abort.is_some() {
            self.finish_pod(&target.pod_name).await;
            let ended = json!({"target": {"endedAt": now}, "source": {"abortedAt": now}});
            self.status_of::<Migration>(&name, ended).await;
        } else if source.started_at.is_none() {
            let ports = json!({"control": 1, "memory": 1});
            let listening = json!({"listening": true, "address": "10.0.0.2", "ports": ports});
            let begun = json!({"source": {"startedAt": now}, "target": listening});
            self.status_of::<Migration>(&name, begun).await;
            self.status_of::<Instance>(vm, json!({"migration": {"start": now}})).await;
        } else if source.ack_at.is_none() {
            let epoch = migration.spec.instance.epoch;
            let boot = boot_id(self.boot_of(Some(&target.node)).unwrap_or(1));
            let uid = &target.pod_uid;
            let taken = json!({
                "node": target.node, "evacuationNodeName": null, "evacuationSource": null,
                "evacuationNodeVersion": null,
                "claim": {"node": target.node, "bootID": boot, "podUID": uid, "epoch": epoch},
                "activePod": {"name": target.pod_name, "uid": uid},
                "report": {"epoch": epoch, "podUID": uid, "state": "Running"},
                "migration": {"end": now, "result": "Succeeded"},
            });
            self.status_of::<Instance>(vm, taken).await;
            self.status_of::<Migration>(&name, json!({"source": {"ackAt": now}})).await;
            self.finish_pod(&source.pod_name).await;
        }
    }

    /// Looks at everything on a node that has come back.
    pub async fn look_at(&self, node: &str) {
        let here = ListParams::default().fields(&format!("spec.nodeName={node}"));
        let pods = Api::<Pod>::all(self.runtimes.clone()).list(&here).await;
        for pod in pods.into_iter().flatten() {
            self.pod(&pod).await;
        }
    }
}

/// Calls back for every object of a kind, and for every change.
async fn follow<K, F: Future<Output = ()>>(client: Client, each: impl Fn(K) -> F)
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + 'static,
{
    let mut events = watcher(Api::<K>::all(client), watcher::Config::default()).default_backoff().boxed();
    while let Some(event) = events.next().await {
        if let Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) = event {
            each(object).await;
        }
    }
}

/// Plays for ever.
pub async fn play(nodes: Rc<Nodes>) {
    let (runtimes, agents) = (nodes.runtimes.clone(), nodes.agents.clone());
    let pods = follow(runtimes, |pod: Pod| {
        let nodes = nodes.clone();
        async move { nodes.pod(&pod).await }
    });
    let instances = follow(agents.clone(), |instance: Instance| {
        let nodes = nodes.clone();
        async move { nodes.instance(&instance).await }
    });
    let migrations = follow(agents, |migration: Migration| {
        let nodes = nodes.clone();
        async move { nodes.migration(&migration).await }
    });
    tokio::join!(pods, instances, migrations);
}
