//! What users do: the verbs of the seeds, through the API, each as one task.

use std::time::Duration;

use holdfast_api::NodeMaintenance;
use holdfast_api::maintenance::NodeMaintenanceSpec;
use holdfast_plane::Identity;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DeleteParams, DynamicObject, EvictParams, ListParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Client, ResourceExt as _};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::net::{Kind, Place, USERS};
use crate::world::{Role, World};

/// Namespace of all VMs.
pub const NAMESPACE: &str = "default";

/// Something a user does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Action {
    /// A disk and a VM.
    Create {
        /// Name.
        vm: String,
        /// Run policy.
        policy: String,
        /// Policy of live migration.
        migration: String,
    },
    /// Deletes a VM.
    Delete {
        /// Name.
        vm: String,
    },
    /// An operation.
    Operate {
        /// Name of the VM.
        vm: String,
        /// `Start`, `Stop`, `Restart`, `Evict`.
        kind: String,
        /// `force`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        force: Option<bool>,
        /// Name of the operation.
        name: String,
    },
    /// Deletes every unfinished operation of a VM.
    Cancel {
        /// Name of the VM.
        vm: String,
    },
    /// `kubectl drain`, again until it succeeds or is called off.
    Drain {
        /// Node.
        node: String,
    },
    /// Ctrl+C of every drain of the node; the cordon stays.
    CallOff {
        /// Node.
        node: String,
    },
    /// `kubectl uncordon`.
    Uncordon {
        /// Node.
        node: String,
    },
    /// Creates a NodeMaintenance.
    Maintain {
        /// Node.
        node: String,
    },
    /// Deletes it.
    EndMaintenance {
        /// Node.
        node: String,
    },
    /// Edits the number of cores.
    Cores {
        /// Name of the VM.
        vm: String,
        /// How many.
        cores: u8,
    },
    /// Pins a VM to a node, or lets it go.
    Pin {
        /// Name of the VM.
        vm: String,
        /// Node.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        node: Option<String>,
    },
    /// `kubectl cordon`.
    Cordon {
        /// Node.
        node: String,
    },
    /// `kubectl delete pod --force --grace-period=0`, and its finalizers are taken away: the API forgets the pod,
    /// whatever its node does.
    ForceDelete {
        /// Name of the VM whose launcher pods it is about.
        vm: String,
        /// On this node only.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        node: Option<String>,
    },
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Create { vm, policy, migration } => write!(f, "creates {vm} ({policy}, {migration})"),
            Self::Delete { vm } => write!(f, "deletes {vm}"),
            Self::Operate { vm, kind, force, name } => write!(f, "{kind} {vm} as {name}, force {force:?}"),
            Self::Cancel { vm } => write!(f, "cancels operations of {vm}"),
            Self::Drain { node } => write!(f, "drains {node}"),
            Self::CallOff { node } => write!(f, "Ctrl+C on the drain of {node}"),
            Self::Uncordon { node } => write!(f, "uncordons {node}"),
            Self::Maintain { node } => write!(f, "puts {node} into maintenance"),
            Self::EndMaintenance { node } => write!(f, "ends the maintenance of {node}"),
            Self::Cores { vm, cores } => write!(f, "gives {vm} {cores} cores"),
            Self::Pin { vm, node } => write!(f, "pins {vm} to {node:?}"),
            Self::Cordon { node } => write!(f, "cordons {node}"),
            Self::ForceDelete { vm, node: None } => write!(f, "removes the pods of {vm} by force"),
            Self::ForceDelete { vm, node: Some(node) } => {
                write!(f, "removes the pods of {vm} on {node} by force")
            }
        }
    }
}

/// Lets a user do it; returns at once.
pub fn act(world: &mut World, action: Action) {
    let place: Place = USERS.into();
    let time = world.time();
    world.trace.tell(time, "user", &action.to_string());
    match &action {
        Action::Delete { vm } | Action::ForceDelete { vm, .. } => {
            world.checker.may_end.insert(format!("{NAMESPACE}/{vm}"));
        }
        Action::Operate { vm, kind, .. } if matches!(kind.as_str(), "Stop" | "Restart") => {
            world.checker.may_end.insert(format!("{NAMESPACE}/{vm}"));
        }
        // The end of a maintenance opens the node as well; a drain that went on would chase VMs back and forth.
        Action::CallOff { node } | Action::Uncordon { node } | Action::EndMaintenance { node } => {
            call_off(world, node);
        }
        _ => {}
    }
    world.checker.forced |= matches!(action, Action::ForceDelete { .. });
    let drain = match &action {
        Action::Drain { node } => Some(node.clone()),
        Action::CallOff { .. } => return,
        _ => None,
    };
    let id = world.start(Role::User, &place, |me, world| {
        let client = world.client(me, Identity::Admin);
        let (net, me) = (world.net().clone(), me.clone());
        async move {
            carry_out(client, action).await;
            let place = me.place.clone();
            net.post(Kind::Local, &place, &me.clone(), "is done".to_owned(), move |world| {
                world.drains.remove(&me.process);
                world.process_ended(me.process, (0, String::new()));
            });
        }
    });
    if let Some(node) = drain {
        world.drains.insert(id, node);
    }
}

fn call_off(world: &mut World, node: &str) {
    let of_node: Vec<_> = world.drains.iter().filter(|(_, n)| *n == node).map(|(id, _)| *id).collect();
    for id in of_node {
        world.drains.remove(&id);
        world.kill(id);
    }
}

fn api(client: &Client, kind: &str) -> Api<DynamicObject> {
    let gvk = GroupVersionKind::gvk("virtualization.deckhouse.io", "v1alpha2", kind);
    Api::namespaced_with(client.clone(), NAMESPACE, &ApiResource::from_gvk(&gvk))
}

/// Named after their nodes.
fn maintenances(client: &Client) -> Api<NodeMaintenance> {
    Api::all(client.clone())
}

async fn create(client: &Client, kind: &str, name: &str, spec: Value) -> kube::Result<()> {
    let value = json!({
        "apiVersion": "virtualization.deckhouse.io/v1alpha2", "kind": kind,
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": name}}, "spec": spec,
    });
    let object: DynamicObject = serde_json::from_value(value).map_err(kube::Error::SerdeError)?;
    api(client, kind).create(&PostParams::default(), &object).await.map(drop)
}

/// What a user does when the API fails: tries again a few times, as people do.
async fn carry_out(client: Client, action: Action) {
    for _ in 0..5 {
        match once(&client, &action).await {
            Ok(()) => return,
            Err(kube::Error::Api(status)) if matches!(status.code, 400 | 403 | 404 | 422) => return,
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => return,
            Err(_) => tokio::time::sleep(Duration::from_secs(2)).await,
        }
    }
}

pub(crate) async fn once(client: &Client, action: &Action) -> kube::Result<()> {
    match action {
        Action::Create { vm, policy, migration } => create_vm(client, vm, policy, migration).await,
        Action::Delete { vm } => {
            api(client, "VirtualMachine").delete(vm, &DeleteParams::default()).await.map(drop)
        }
        Action::Operate { vm, kind, force, name } => {
            let mut spec = json!({"type": kind, "virtualMachineName": vm});
            if let Some(force) = force {
                spec["force"] = json!(force);
            }
            create(client, "VirtualMachineOperation", name, spec).await
        }
        Action::Cancel { vm } => cancel(client, vm).await,
        Action::Drain { node } => {
            // Whoever wants the node empty says it again until kubectl says that it is.
            while drain(client, node).await.is_err() {
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
            Ok(())
        }
        Action::CallOff { .. } => Ok(()),
        Action::Uncordon { node } => cordon(client, node, false).await,
        Action::Cordon { node } => cordon(client, node, true).await,
        Action::ForceDelete { vm, node } => force_delete(client, vm, node.as_deref()).await,
        Action::Maintain { node } => {
            let spec = NodeMaintenanceSpec { node_name: node.clone(), reason: None };
            let object = NodeMaintenance::new(node, spec);
            maintenances(client).create(&PostParams::default(), &object).await.map(drop)
        }
        Action::EndMaintenance { node } => {
            maintenances(client).delete(node, &DeleteParams::default()).await.map(drop)
        }
        Action::Cores { vm, cores } => edit(client, vm, json!({"cpu": {"cores": cores}})).await,
        Action::Pin { vm, node } => {
            let selector = match node {
                Some(node) => json!({"kubernetes.io/hostname": node}),
                None => Value::Null,
            };
            edit(client, vm, json!({"nodeSelector": selector})).await
        }
    }
}

async fn edit(client: &Client, vm: &str, spec: Value) -> kube::Result<()> {
    let patch = Patch::Merge(json!({"spec": spec}));
    api(client, "VirtualMachine").patch(vm, &PatchParams::default(), &patch).await.map(drop)
}

async fn create_vm(client: &Client, vm: &str, policy: &str, migration: &str) -> kube::Result<()> {
    let disk = format!("{vm}-root");
    let made = create(client, "VirtualDisk", &disk, json!({"persistentVolumeClaim": {"size": "1Gi"}})).await;
    match made {
        Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {}
        other => other?,
    }
    let spec = json!({
        "virtualMachineClassName": "host",
        "runPolicy": policy,
        "liveMigrationPolicy": migration,
        "cpu": {"cores": 1, "coreFraction": "10%"},
        "memory": {"size": "512Mi"},
        "blockDeviceRefs": [{"kind": "VirtualDisk", "name": disk}],
    });
    create(client, "VirtualMachine", vm, spec).await
}

async fn cancel(client: &Client, vm: &str) -> kube::Result<()> {
    let operations = api(client, "VirtualMachineOperation");
    for operation in operations.list(&ListParams::default()).await? {
        let of_vm = operation.data["spec"]["virtualMachineName"] == *vm;
        let over =
            matches!(operation.data["status"]["phase"].as_str(), Some("Completed" | "Failed" | "Superseded"));
        if of_vm && !over {
            operations.delete(&operation.name_any(), &DeleteParams::default()).await?;
        }
    }
    Ok(())
}

/// Fine if it is gone.
fn gone_or(result: kube::Result<()>) -> kube::Result<()> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other,
    }
}

async fn force_delete(client: &Client, vm: &str, node: Option<&str>) -> kube::Result<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let label = holdfast_api::names::label::VM_NAME;
    for pod in pods.list(&ListParams::default().labels(&format!("{label}={vm}"))).await? {
        let there = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        if node.is_none() || node == there {
            let params = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
            gone_or(pods.delete(&pod.name_any(), &params).await.map(drop))?;
            // What protects it goes as well: the API forgets it now.
            let bare = Patch::Merge(json!({"metadata": {"finalizers": null}}));
            gone_or(pods.patch(&pod.name_any(), &PatchParams::default(), &bare).await.map(drop))?;
        }
    }
    Ok(())
}

async fn cordon(client: &Client, node: &str, on: bool) -> kube::Result<()> {
    let patch =
        Patch::Merge(json!({"spec": {"unschedulable": if on { Value::Bool(true) } else { Value::Null }}}));
    Api::<Node>::all(client.clone()).patch(node, &PatchParams::default(), &patch).await.map(drop)
}

/// `kubectl drain` of the launchers: cordons, looks once which there are, evicts each of them until that is
/// allowed, and waits until it is gone. What comes to the node later is not its business.
pub(crate) async fn drain(client: &Client, node: &str) -> kube::Result<()> {
    cordon(client, node, true).await?;
    let of_node = ListParams::default()
        .fields(&format!("spec.nodeName={node}"))
        .labels("vm.kubevirt.internal.virtualization.deckhouse.io/name");
    let found = Api::<Pod>::all(client.clone()).list(&of_node).await?;
    let evictions = found.into_iter().map(|pod| evict(client, pod));
    // One that cannot be evicted fails the drain when the others have come to their end.
    futures::future::join_all(evictions).await.into_iter().collect()
}

async fn evict(client: &Client, pod: Pod) -> kube::Result<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let name = pod.name_any();
    let is_gone = async || {
        let now = pods.get_opt(&name).await;
        now.map(|now| now.is_none_or(|now| now.metadata.uid != pod.metadata.uid))
    };
    loop {
        match pods.evict(&name, &EvictParams::default()).await {
            Ok(_) => break,
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            // Until the VM has moved away.
            Err(kube::Error::Api(status)) if status.code == 429 => {
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
            Err(error) => return Err(error),
        }
        if is_gone().await? {
            return Ok(());
        }
    }
    while !is_gone().await? {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Ok(())
}
