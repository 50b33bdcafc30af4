//! A server with running loops, objects to put in, and waiting with a deadline.

use std::fmt::Debug;
use std::future::Future;
use std::time::{Duration, Instant};

use holdfast_kubelith::Hooks;
use holdfast_kubelith::testing::Server;
use holdfast_kubelith_loops::{Config, NodeTimers, PodGcTimers, Storage};
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Longest time any condition may take; generous, because test machines are slow and shared.
pub const LIMIT: Duration = Duration::from_secs(20);

pub struct World {
    pub client: Client,
    pub home: tempfile::TempDir,
    server: Option<Server>,
    loops: tokio::task::JoinHandle<()>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.loops.abort();
    }
}

impl World {
    /// Server and loops; nodes that report once count as alive for the whole test.
    pub async fn new() -> Self {
        Self::with_grace(Duration::from_secs(600)).await
    }

    /// Nodes silent for `grace` are given up.
    pub async fn with_grace(grace: Duration) -> Self {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        // Only the first test of the process can set it.
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        let server = Server::start().await.expect("the API server starts");
        let kubeconfig = Kubeconfig::read_from(server.kubeconfig()).expect("the kubeconfig is readable");
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .expect("the kubeconfig is usable");
        let client = Client::try_from(config).expect("a client");
        let home = tempfile::tempdir().expect("a directory");
        let config = Config {
            storage: Some(Storage::in_home(home.path())),
            nodes: NodeTimers {
                period: Duration::from_millis(50),
                grace,
                startup_grace: 2 * grace,
                eviction_interval: Duration::ZERO,
            },
            pod_gc: PodGcTimers {
                period: Duration::from_millis(50),
                quarantine: Duration::from_millis(200),
                finished_kept: 100,
            },
            root_ca_pem: Some("the CA".to_owned()),
            ..Config::default()
        };
        let run = holdfast_kubelith_loops::run(client.clone(), config);
        let loops = tokio::spawn(async move { run.await.expect("the loops run") });
        let world = Self { client, home, server: Some(server), loops };
        // Pods need the service account that the loops make.
        world
            .until("the default service account", || async {
                let api: Api<k8s_openapi::api::core::v1::ServiceAccount> =
                    Api::namespaced(world.client.clone(), "default");
                api.get_opt("default").await.unwrap()
            })
            .await;
        world
    }

    /// Stops the API server and starts it again on the same data and port.
    pub async fn restart_server(&mut self) {
        let server = self.server.take().expect("the server runs");
        self.server = Some(server.restart(Hooks::default()).await.expect("the API server starts again"));
    }

    /// Asks until there is an answer.
    pub async fn until<T, F: Future<Output = Option<T>>>(&self, what: &str, mut ask: impl FnMut() -> F) -> T {
        let start = Instant::now();
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            assert!(start.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub fn all<K: Resource<DynamicType = ()>>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }

    pub fn of<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// A node that is ready and has 4 cores, 8 GiB and room for 20 pods.
    pub async fn node(&self, name: &str) {
        self.node_with(name, json!({})).await;
    }

    pub async fn node_with(&self, name: &str, labels: Value) {
        let mut all = json!({"kubernetes.io/hostname": name});
        for (key, value) in labels.as_object().into_iter().flatten() {
            all[key] = value.clone();
        }
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": all}});
        create(&self.all::<Node>(), node).await;
        self.beat(name).await;
        self.until("the not-ready taint goes", || async {
            let node = self.all::<Node>().get(name).await.unwrap();
            node.spec.and_then(|s| s.taints).is_none_or(|t| t.is_empty()).then_some(())
        })
        .await;
    }

    /// What a node runtime reports.
    pub async fn beat(&self, name: &str) {
        let now = k8s_openapi::jiff::Timestamp::now();
        let amounts = json!({"cpu": "4", "memory": "8Gi", "pods": "20"});
        let status = json!({"status": {
            "capacity": amounts, "allocatable": amounts,
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "",
                            "lastHeartbeatTime": now.to_string(), "lastTransitionTime": now.to_string()}],
        }});
        let patch = Patch::Strategic(status);
        self.all::<Node>()
            .patch_status(name, &PatchParams::default(), &patch)
            .await
            .expect("the node reports");
    }

    pub async fn pod(&self, name: &str, extra: Value) -> Pod {
        create(&self.of::<Pod>("default"), pod(name, extra)).await
    }

    /// Node of a pod, once it has one.
    pub async fn placed(&self, name: &str) -> String {
        self.until(&format!("pod {name} is bound"), || async {
            self.of::<Pod>("default").get(name).await.unwrap().spec.and_then(|s| s.node_name)
        })
        .await
    }

    /// Message of an event with that reason about that object.
    pub async fn event(&self, reason: &str, about: &str) -> String {
        self.until(&format!("event {reason} about {about}"), || async {
            let events = self.all::<Event>().list(&ListParams::default()).await.unwrap();
            let found = events.items.into_iter().find(|e| {
                e.reason.as_deref() == Some(reason) && e.involved_object.name.as_deref() == Some(about)
            });
            found.and_then(|e| e.message)
        })
        .await
    }
}

pub fn pod(name: &str, extra: Value) -> Value {
    let mut value = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"automountServiceAccountToken": false, "containers": [
            {"name": "c", "image": "holdfast/test:1", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}}]},
    });
    merge(&mut value, extra);
    value
}

pub fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

/// Creates an object from JSON.
pub async fn create<K>(api: &Api<K>, value: Value) -> K
where
    K: Clone + DeserializeOwned + Serialize + Debug,
{
    let object = serde_json::from_value(value.clone()).expect("valid JSON of the kind");
    match api.create(&PostParams::default(), &object).await {
        Ok(created) => created,
        Err(error) => panic!("creating {value}: {error}"),
    }
}
