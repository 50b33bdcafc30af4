//! The Node object and its Lease: registration, heartbeats, and registering again when somebody
//! deletes the Node while the machine lives (within 3 s, so before pod GC takes its pods; FR B12).

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::events::Events;
use crate::status::is_satisfied;
use crate::time;

/// What the node says about itself.
#[derive(Debug, Clone)]
pub struct NodeInfo {
    /// Name.
    pub name: String,
    /// Address on the underlay.
    pub ip: String,
    /// Identity of this boot.
    pub boot_id: String,
    /// Labels beyond hostname, os and arch.
    pub labels: BTreeMap<String, String>,
    /// CPUs offered, milli-CPUs.
    pub cpu_milli: u64,
    /// Memory of this node, bytes.
    pub memory_bytes: u64,
    /// Memory pods may request, bytes.
    pub allocatable_memory_bytes: u64,
    /// Disk space for logs and emptyDirs, bytes.
    pub ephemeral_storage_bytes: u64,
    /// Most pods.
    pub pods: u32,
    /// Version of the runtime.
    pub version: String,
}

/// Heartbeat timers (kubernetes-surface.md §16.2, embedded column).
#[derive(Debug, Clone, Copy)]
pub struct Timers {
    /// Lease renewal and the look whether the Node still exists.
    pub renew: Duration,
    /// Lease duration written, seconds.
    pub lease_duration_s: i32,
    /// Heartbeat time in the conditions.
    pub report: Duration,
}

impl Default for Timers {
    fn default() -> Self {
        Self { renew: Duration::from_secs(2), lease_duration_s: 8, report: Duration::from_secs(60) }
    }
}

/// Keeps the Node registered and alive. Never returns.
pub async fn keep_alive(client: Client, info: NodeInfo, timers: Timers, events: Events) {
    let mut keeper = Keeper { client, info, timers, events, reported: None, first: true };
    let mut tick = tokio::time::interval(keeper.timers.renew);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut failing = false;
    loop {
        tick.tick().await;
        let limit = keeper.timers.renew * 2;
        let result = match tokio::time::timeout(limit, keeper.beat()).await {
            Ok(result) => result,
            Err(_) => Err("the API server does not answer".to_owned()),
        };
        // One line per outage, not one per beat.
        match (&result, failing) {
            (Err(error), false) => tracing::warn!(%error, "heartbeat"),
            (Ok(()), true) => tracing::info!("heartbeats are accepted again"),
            _ => {}
        }
        failing = result.is_err();
    }
}

struct Keeper {
    client: Client,
    info: NodeInfo,
    timers: Timers,
    events: Events,
    reported: Option<tokio::time::Instant>,
    first: bool,
}

impl Keeper {
    async fn beat(&mut self) -> Result<(), String> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let step = |what: &'static str| move |error: kube::Error| format!("{what}: {error}");
        let node = match nodes.get_opt(&self.info.name).await.map_err(step("read Node"))? {
            Some(node) => node,
            None => {
                let node = serde_json::from_value(object(&self.info)).map_err(|e| e.to_string())?;
                self.reported = None;
                nodes.create(&PostParams::default(), &node).await.map_err(step("register Node"))?
            }
        };
        let uid = node.metadata.uid.clone().unwrap_or_default();
        let (node, reported) = self.labels_and_status(&nodes, node).await?;
        drop(node);
        if reported {
            self.reported = Some(tokio::time::Instant::now());
        }
        self.renew(&uid).await.map_err(step("renew Lease"))?;
        if std::mem::take(&mut self.first) {
            self.events.node(&uid, "Normal", "Starting", "Starting the node runtime.");
        }
        Ok(())
    }

    /// Writes labels that are missing, and the status when it is due or was changed by others.
    async fn labels_and_status(&self, nodes: &Api<Node>, mut node: Node) -> Result<(Node, bool), String> {
        let params = PatchParams::default();
        let want = object(&self.info);
        let have = serde_json::to_value(&node).map_err(|e| e.to_string())?;
        if !is_satisfied(&have["metadata"]["labels"], &want["metadata"]["labels"]) {
            let patch = json!({"metadata": {"labels": want["metadata"]["labels"]}});
            node = nodes
                .patch(&self.info.name, &params, &Patch::Merge(patch))
                .await
                .map_err(|e| format!("label Node: {e}"))?;
        }
        let status = status(&self.info, &have, &time::now());
        let due = self.reported.is_none_or(|at| at.elapsed() >= self.timers.report);
        let mut compared = status.clone();
        forget_heartbeats(&mut compared);
        if !due && is_satisfied(&have["status"], &compared) {
            return Ok((node, false));
        }
        let patch = Patch::Strategic(json!({"status": status}));
        let node = nodes
            .patch_status(&self.info.name, &params, &patch)
            .await
            .map_err(|e| format!("write Node status: {e}"))?;
        Ok((node, true))
    }

    async fn renew(&self, node_uid: &str) -> kube::Result<()> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), "kube-node-lease");
        let name = &self.info.name;
        let lease = json!({
            "metadata": {"name": name, "ownerReferences": [
                {"apiVersion": "v1", "kind": "Node", "name": name, "uid": node_uid}]},
            "spec": {"holderIdentity": name, "renewTime": time::now_micro(),
                     "leaseDurationSeconds": self.timers.lease_duration_s},
        });
        let params = PatchParams::default();
        match leases.patch(name, &params, &Patch::Merge(&lease)).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {
                let lease = serde_json::from_value(lease).map_err(kube::Error::SerdeError)?;
                leases.create(&PostParams::default(), &lease).await.map(|_| ())
            }
            result => result.map(|_| ()),
        }
    }
}

fn forget_heartbeats(status: &mut Value) {
    for condition in status["conditions"].as_array_mut().into_iter().flatten() {
        if let Some(condition) = condition.as_object_mut() {
            condition.remove("lastHeartbeatTime");
        }
    }
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The Node as it is registered.
fn object(info: &NodeInfo) -> Value {
    let mut labels = BTreeMap::from([
        ("kubernetes.io/hostname".to_owned(), info.name.clone()),
        ("kubernetes.io/os".to_owned(), "linux".to_owned()),
        ("kubernetes.io/arch".to_owned(), architecture().to_owned()),
        ("node-role.kubernetes.io/worker".to_owned(), String::new()),
    ]);
    labels.extend(info.labels.clone());
    json!({"metadata": {"name": info.name, "labels": labels},
           "spec": {"providerID": format!("holdfast://{}", info.name)}})
}

fn status(info: &NodeInfo, node: &Value, now: &str) -> Value {
    let capacity = |memory: u64, disk: u64| {
        json!({"cpu": quantity(info.cpu_milli), "memory": format!("{}Ki", memory / 1024),
               "ephemeral-storage": format!("{}Ki", disk / 1024), "pods": info.pods.to_string()})
    };
    let disk = info.ephemeral_storage_bytes;
    let condition = |name: &str, status: &str, reason: &str, message: &str| {
        let old = node["status"]["conditions"]
            .as_array()
            .and_then(|list| list.iter().find(|c| c["type"] == name && c["status"] == status));
        let since = old.map_or(json!(now), |old| old["lastTransitionTime"].clone());
        json!({"type": name, "status": status, "reason": reason, "message": message,
               "lastHeartbeatTime": now, "lastTransitionTime": since})
    };
    json!({
        "capacity": capacity(info.memory_bytes, disk),
        "allocatable": capacity(info.allocatable_memory_bytes, disk / 10 * 9),
        "conditions": [
            condition("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
            condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            condition("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
            condition("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
        ],
        "addresses": [{"type": "InternalIP", "address": info.ip},
                      {"type": "Hostname", "address": info.name}],
        "nodeInfo": {
            "machineID": machine_id(), "systemUUID": machine_id(), "bootID": info.boot_id,
            "kernelVersion": read_line("/proc/sys/kernel/osrelease"),
            "osImage": os_image(), "operatingSystem": "linux", "architecture": architecture(),
            "containerRuntimeVersion": format!("holdfast://{}", info.version),
            "kubeletVersion": format!("v{}", info.version), "kubeProxyVersion": "",
        },
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 0}},
    })
}

fn quantity(milli: u64) -> String {
    if milli.is_multiple_of(1000) { (milli / 1000).to_string() } else { format!("{milli}m") }
}

fn read_line(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn machine_id() -> String {
    read_line("/etc/machine-id")
}

fn os_image() -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    line.unwrap_or("Linux").trim_matches('"').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> NodeInfo {
        NodeInfo {
            name: "n1".to_owned(),
            ip: "10.0.0.2".to_owned(),
            boot_id: "b".to_owned(),
            labels: BTreeMap::from([("a".to_owned(), "b".to_owned())]),
            cpu_milli: 2000,
            memory_bytes: 4 << 30,
            allocatable_memory_bytes: 3 << 30,
            ephemeral_storage_bytes: 10 << 30,
            pods: 110,
            version: "0.1.0".to_owned(),
        }
    }

    #[test]
    fn node_says_what_the_scheduler_must_know() {
        let node = object(&info());
        assert_eq!(node["metadata"]["labels"]["kubernetes.io/hostname"], "n1");
        assert_eq!(node["metadata"]["labels"]["a"], "b");
        let status = status(&info(), &json!({}), "t");
        assert_eq!(status["capacity"]["cpu"], "2");
        assert_eq!(status["allocatable"]["memory"], "3145728Ki");
        let _: Node = serde_json::from_value(json!({"metadata": {}, "status": status_with_time()})).unwrap();
    }

    fn status_with_time() -> Value {
        status(&info(), &json!({}), "2026-01-01T00:00:00Z")
    }

    #[test]
    fn a_node_set_unknown_by_others_is_written_again_and_a_quiet_one_is_not() {
        let mut have = status_with_time();
        let mut want = status(&info(), &json!({"status": have}), "2026-01-01T00:00:05Z");
        assert_eq!(want["conditions"][3]["lastTransitionTime"], "2026-01-01T00:00:00Z");
        forget_heartbeats(&mut want);
        assert!(is_satisfied(&have, &want));
        have["conditions"][3]["status"] = json!("Unknown");
        assert!(!is_satisfied(&have, &want));
    }
}
