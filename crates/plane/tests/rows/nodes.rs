//! Node runtimes and agents, played: what they would write into the API, and nothing else.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use holdfast_api::engine::{Instance, Migration, MigrationState, Power, StopMode};
use holdfast_api::import::{Facts, Outcome, Request, Source};
use holdfast_api::names::{PLATFORM_NAMESPACE, label};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::world::NS;

/// The nodes.
pub const NAMES: [&str; 3] = ["n1", "n2", "n3"];
/// Pause between two looks after a change, and the longest one.
const LOOK: Duration = Duration::from_millis(50);
const LOOK_MAX: Duration = Duration::from_millis(800);
/// Longest time without a look, and the pause between heartbeats.
const BEAT: Duration = Duration::from_secs(5);

/// How far moves go by themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moves {
    /// Handed over, nothing begun.
    Held,
    /// Memory is being copied.
    Copying,
    /// To the end.
    #[default]
    Through,
}

/// What the test has told the nodes.
#[derive(Debug, Default)]
pub struct Wishes {
    /// How far moves go.
    pub moves: Moves,
    /// Guests that ignore the power button.
    pub stubborn: BTreeSet<String>,
    /// VMs whose QEMU ends before the guest runs.
    pub failing: BTreeSet<String>,
    /// Nodes that are dead or cut off.
    pub silent: BTreeSet<String>,
    /// Nodes that cannot mount any disk.
    pub unmountable: BTreeSet<String>,
    /// Guests that write memory faster than it is copied.
    pub busy: BTreeSet<String>,
}

/// The nodes.
pub struct Nodes {
    client: Client,
    pub wishes: RefCell<Wishes>,
}

impl Nodes {
    /// Registers the nodes.
    pub async fn start(client: Client) -> Rc<Self> {
        let nodes: Api<Node> = Api::all(client.clone());
        for name in NAMES {
            let amount = json!({"cpu": "32", "memory": "16Gi", "pods": "110", "ephemeral-storage": "100Gi"});
            let ready = json!({"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "",
                "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z"});
            let body = json!({
                "metadata": {"name": name, "labels": {
                    "kubernetes.io/hostname": name, label::SCHEDULABLE: "true",
                    "cpu-model.node.virtualization.deckhouse.io/Nehalem": "true"}},
                "status": {"capacity": amount, "allocatable": amount, "conditions": [ready]},
            });
            let params = PostParams::default();
            nodes.create(&params, &serde_json::from_value(body.clone()).unwrap()).await.unwrap();
            let status = Patch::Merge(json!({"status": body["status"]}));
            nodes.patch_status(name, &PatchParams::default(), &status).await.unwrap();
            let taints = Patch::Merge(json!({"spec": {"taints": null}}));
            nodes.patch(name, &PatchParams::default(), &taints).await.unwrap();
        }
        let nodes = Rc::new(Self { client, wishes: RefCell::default() });
        for name in NAMES {
            nodes.boot(name, "boot-a").await;
        }
        nodes.heartbeat().await;
        nodes
    }

    /// The agent takes the fence Lease of its node under a boot id.
    pub async fn boot(&self, node: &str, boot: &str) {
        let spec = json!({
            "holderIdentity": format!("node/{node}/{boot}"),
            "acquireTime": format!("{}.000000Z", &holdfast_env::now().to_string()[..19]),
        });
        self.lease(PLATFORM_NAMESPACE, &format!("fence-{node}"), spec).await;
    }

    async fn lease(&self, namespace: &str, name: &str, spec: Value) {
        let api: Api<Lease> = Api::namespaced(self.client.clone(), namespace);
        let body = json!({"metadata": {"name": name}, "spec": spec});
        if api.get_opt(name).await.unwrap().is_some() {
            let patch = Patch::Merge(json!({"spec": spec}));
            api.patch(name, &PatchParams::default(), &patch).await.unwrap();
        } else {
            api.create(&PostParams::default(), &serde_json::from_value(body).unwrap()).await.unwrap();
        }
    }

    async fn heartbeat(&self) {
        let now = format!("{}.000000Z", &holdfast_env::now().to_string()[..19]);
        for name in NAMES {
            if !self.wishes.borrow().silent.contains(name) {
                let spec = json!({"holderIdentity": name, "renewTime": now, "leaseDurationSeconds": 40});
                self.lease("kube-node-lease", name, spec).await;
                self.ready(name).await;
            }
        }
    }

    /// The runtime says that its node is Ready, when somebody has doubted it.
    async fn ready(&self, name: &str) {
        let api: Api<Node> = Api::all(self.client.clone());
        let node = api.get(name).await.unwrap();
        let mut conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
        let doubted = conditions.iter_mut().find(|c| c.type_ == "Ready" && c.status != "True");
        if let Some(condition) = doubted {
            "True".clone_into(&mut condition.status);
            let patch = Patch::Merge(json!({"status": { "conditions": conditions }}));
            api.patch_status(name, &PatchParams::default(), &patch).await.unwrap();
        }
    }

    /// Changes with every write of pods, Instances and Migrations.
    async fn revision(&self) -> String {
        let one = ListParams::default().limit(1);
        let pods = Api::<Pod>::all(self.client.clone()).list_metadata(&one).await.unwrap();
        pods.metadata.resource_version.unwrap_or_default()
    }

    fn hears(&self, node: Option<&str>) -> bool {
        node.is_some_and(|node| !self.wishes.borrow().silent.contains(node))
    }

    async fn pod_status(&self, pod: &Pod, status: Value) {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap());
        let patch = Patch::Merge(json!({ "status": status }));
        // A pod may vanish meanwhile.
        let _ = api.patch_status(&pod.name_any(), &PatchParams::default(), &patch).await;
    }

    async fn instance_status(&self, name: &str, status: Value) {
        let api: Api<Instance> = Api::namespaced(self.client.clone(), NS);
        let patch = Patch::Merge(json!({ "status": status }));
        let _ = api.patch_status(name, &PatchParams::default(), &patch).await;
    }

    async fn migration_status(&self, name: &str, status: Value) {
        let api: Api<Migration> = Api::namespaced(self.client.clone(), NS);
        let patch = Patch::Merge(json!({ "status": status }));
        let _ = api.patch_status(name, &PatchParams::default(), &patch).await;
    }

    /// The guest of a VM ends for this cause.
    pub async fn end(&self, vm: &str, cause: &str) {
        let api: Api<Instance> = Api::namespaced(self.client.clone(), NS);
        let instance = api.get(vm).await.unwrap();
        let claim = instance.status.as_ref().and_then(|status| status.claim.clone()).expect("claimed");
        let report = json!({
            "epoch": claim.epoch, "podUID": claim.pod_uid, "state": "Ended", "cause": cause,
            "cgroupEmpty": true, "detail": "",
        });
        self.instance_status(vm, json!({"report": report, "guest": null})).await;
        self.finish_pod(&claim.pod_uid).await;
    }

    async fn finish_pod(&self, uid: &str) {
        let pods = Api::<Pod>::namespaced(self.client.clone(), NS).list(&Default::default()).await.unwrap();
        if let Some(pod) = pods.iter().find(|pod| pod.metadata.uid.as_deref() == Some(uid)) {
            self.pod_status(pod, json!({"phase": "Succeeded"})).await;
        }
    }

    async fn pods(&self) {
        let pods = Api::<Pod>::all(self.client.clone()).list(&Default::default()).await.unwrap();
        for pod in &pods {
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
            if !self.hears(node) {
                continue;
            }
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending");
            let launcher = pod.labels().contains_key(label::CREATED_BY);
            let over = matches!(phase, "Succeeded" | "Failed");
            if pod.metadata.deletion_timestamp.is_some() {
                self.end_pod(pod, launcher, over).await;
            } else if phase == "Pending"
                && launcher
                && node.is_some_and(|n| self.wishes.borrow().unmountable.contains(n))
            {
                let waiting = json!({"reason": "FailedMount", "message": "the claim cannot be attached"});
                let container = json!({"name": "compute", "image": "i", "imageID": "", "ready": false,
                    "restartCount": 0, "state": {"waiting": waiting}});
                self.pod_status(pod, json!({"phase": "Pending", "containerStatuses": [container]})).await;
            } else if phase == "Pending" && launcher {
                let ready = json!({"type": "ContainersReady", "status": "True"});
                let placed = json!({"type": "PodScheduled", "status": "True"});
                self.pod_status(pod, json!({"phase": "Running", "conditions": [ready, placed]})).await;
            } else if phase == "Pending" {
                self.import(pod).await;
            }
        }
    }

    /// A pod that is being deleted: its container ends, then the runtime lets go.
    async fn end_pod(&self, pod: &Pod, launcher: bool, over: bool) {
        if launcher && !over {
            let api: Api<Instance> = Api::namespaced(self.client.clone(), NS);
            let owner = pod.owner_references().first().map(|owner| owner.name.clone()).unwrap_or_default();
            let instance = api.get_opt(&owner).await.unwrap();
            let claim = instance.and_then(|i| i.status?.claim);
            if claim.is_some_and(|claim| Some(&claim.pod_uid) == pod.metadata.uid.as_ref()) {
                if !self.wishes.borrow().stubborn.contains(&owner) {
                    self.end(&owner, "GuestShutdown").await;
                }
            } else {
                self.pod_status(pod, json!({"phase": "Succeeded"})).await;
            }
            return;
        }
        if pod.metadata.finalizers.as_ref().is_none_or(Vec::is_empty) {
            let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
            let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap());
            let _ = api.delete(&pod.name_any(), &now).await;
        }
    }

    /// An importer: everything succeeds, nothing is copied.
    async fn import(&self, pod: &Pod) {
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let words = container.args.iter().chain(&container.command).flatten();
        let Some(request) = words.filter_map(|word| serde_json::from_str::<Request>(word).ok()).next() else {
            return;
        };
        let format = match &request.source {
            Source::Http { url, .. } if url.ends_with(".iso") => "iso",
            Source::Http { .. } => "qcow2",
            Source::Blank | Source::File { .. } => "raw",
        };
        let bytes = u64::try_from(request.size_bytes.unwrap_or(64 << 20)).unwrap();
        let done =
            Outcome::Done(Facts { format: format.into(), virtual_size_bytes: bytes, stored_bytes: 1 << 20 });
        let message = serde_json::to_string(&done).unwrap();
        let ended = json!({"terminated": {"exitCode": 0, "message": message}});
        let container = json!({"name": container.name, "image": "i", "imageID": "i", "ready": false,
            "restartCount": 0, "state": ended});
        self.pod_status(pod, json!({"phase": "Succeeded", "containerStatuses": [container]})).await;
    }

    async fn guests(&self) {
        let api: Api<Instance> = Api::namespaced(self.client.clone(), NS);
        let pods = Api::<Pod>::namespaced(self.client.clone(), NS).list(&Default::default()).await.unwrap();
        for instance in api.list(&Default::default()).await.unwrap() {
            let name = instance.name_any();
            let Some(status) = &instance.status else { continue };
            let Some(claim) = status.claim.clone().filter(|claim| claim.epoch == instance.spec.epoch) else {
                continue;
            };
            let pod = pods.iter().find(|pod| pod.metadata.uid.as_ref() == Some(&claim.pod_uid));
            let report = status.report.as_ref().filter(|r| r.pod_uid == claim.pod_uid);
            let runs =
                report.is_some_and(|report| report.state == holdfast_api::engine::ReportState::Running);
            let ended = report.is_some_and(|report| report.state == holdfast_api::engine::ReportState::Ended);
            if !self.hears(Some(&claim.node)) || ended {
                continue;
            }
            let off = instance.spec.power == Power::Off || instance.metadata.deletion_timestamp.is_some();
            if off {
                self.stop(&instance, runs).await;
            } else if !runs && self.wishes.borrow().failing.contains(&name) {
                self.end(&name, "StartFailed").await;
            } else if !runs && let Some(pod) = pod {
                let report = json!({"epoch": claim.epoch, "podUID": claim.pod_uid, "state": "Running"});
                self.instance_status(
                    &name,
                    json!({
                        "report": report, "node": claim.node,
                        "activePod": {"name": pod.name_any(), "uid": claim.pod_uid},
                        "runtime": {"startedAt": holdfast_env::now().to_string(), "qemuVersion": "10.0.2"},
                    }),
                )
                .await;
            }
        }
    }

    async fn stop(&self, instance: &Instance, runs: bool) {
        let name = instance.name_any();
        let stop = instance.spec.stop.clone().unwrap_or_default();
        let force = stop.mode == StopMode::Force;
        let asked = stop.at.map_or(holdfast_env::now(), |at| at.0);
        let waited = holdfast_env::now().duration_since(asked).as_secs();
        if !runs || !self.wishes.borrow().stubborn.contains(&name) {
            self.end(&name, "GuestShutdown").await;
        } else if force {
            self.end(&name, "PlatformStop").await;
        } else if waited >= instance.spec.grace_period_seconds {
            self.end(&name, "GraceExpired").await;
        }
    }

    async fn moves(&self) {
        let api: Api<Migration> = Api::namespaced(self.client.clone(), NS);
        for migration in api.list(&Default::default()).await.unwrap() {
            let status = migration.status.clone().unwrap_or_default();
            let state = status.state.unwrap_or_default();
            let handed = state >= MigrationState::Preparing && !state.is_final();
            let (Some(source), Some(target), true) = (status.source, status.target, handed) else { continue };
            if !self.hears(Some(&source.node)) || source.aborted_at.is_some() {
                continue;
            }
            let name = migration.name_any();
            let now = holdfast_env::now().to_string();
            let vm = &migration.spec.instance.name;
            let wish = self.wishes.borrow().moves;
            if status.abort.is_some() {
                self.finish_pod(&target.pod_uid).await;
                self.migration_status(
                    &name,
                    json!({"target": {"endedAt": now}, "source": {"abortedAt": now}}),
                )
                .await;
            } else if wish >= Moves::Copying && source.started_at.is_none() {
                let listening =
                    json!({"listening": true, "address": "10.0.0.2", "ports": {"control": 1, "memory": 1}});
                self.migration_status(&name, json!({"source": {"startedAt": now}, "target": listening}))
                    .await;
                self.instance_status(vm, json!({"migration": {"start": now}})).await;
            } else if self.wishes.borrow().busy.contains(vm) {
                let stuck = json!({"percent": 90, "iteration": 9, "totalBytes": 100, "remainingBytes": 10,
                    "processedBytes": 900, "dirtyBytesPerSecond": 9, "throttlePct": 0, "notConverging": true});
                if status.progress.is_none() {
                    self.migration_status(&name, json!({ "progress": stuck })).await;
                }
            } else if wish == Moves::Through && source.started_at.is_some() && source.ack_at.is_none() {
                let epoch = migration.spec.instance.epoch;
                let uid = &target.pod_uid;
                let claim = json!({"node": target.node, "bootID": "boot-a", "podUID": uid, "epoch": epoch});
                self.instance_status(
                    vm,
                    json!({
                        "node": target.node, "claim": claim, "evacuationNodeName": null,
                        "evacuationSource": null, "activePod": {"name": target.pod_name, "uid": uid},
                        "report": {"epoch": epoch, "podUID": uid, "state": "Running"},
                        "migration": {"end": now, "result": "Succeeded"},
                    }),
                )
                .await;
                self.migration_status(&name, json!({"source": {"ackAt": now}})).await;
                self.finish_pod(&source.pod_uid).await;
            }
        }
    }
}

/// Plays for ever: soon after something has changed, and every few seconds.
pub async fn play(nodes: Rc<Nodes>) {
    let mut seen = String::new();
    let mut pause = LOOK;
    let mut beat = Instant::now();
    loop {
        if beat.elapsed() >= BEAT {
            beat = Instant::now();
            nodes.heartbeat().await;
            seen.clear();
        }
        let now = nodes.revision().await;
        if now == seen {
            pause = LOOK_MAX.min(pause * 2);
        } else {
            pause = LOOK;
            nodes.pods().await;
            nodes.guests().await;
            nodes.moves().await;
            seen = now;
        }
        tokio::time::sleep(pause).await;
    }
}
