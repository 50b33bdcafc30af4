//! Events about pods and the node, written in the background: they must not delay a start.

use k8s_openapi::api::core::v1::{Event, Pod};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// Hands events to a background task. Events are best effort: when the API is away they are dropped.
#[derive(Debug, Clone)]
pub struct Events {
    queue: mpsc::Sender<(String, Value)>,
    node: String,
}

impl Events {
    /// Starts the background task.
    #[must_use]
    pub fn start(client: Client, node: &str) -> Self {
        let (queue, mut inbox) = mpsc::channel::<(String, Value)>(64);
        tokio::spawn(async move {
            while let Some((namespace, event)) = inbox.recv().await {
                let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
                let result = match serde_json::from_value(event) {
                    Ok(event) => api.create(&Default::default(), &event).await.map(|_| ()),
                    Err(error) => Err(kube::Error::SerdeError(error)),
                };
                if let Err(error) = result {
                    tracing::debug!(%error, "event not written");
                }
            }
        });
        Self { queue, node: node.to_owned() }
    }

    /// About a pod. `kind` is `Normal` or `Warning`.
    pub fn pod(&self, pod: &Pod, kind: &str, reason: &str, message: &str) {
        let metadata = &pod.metadata;
        let namespace = metadata.namespace.clone().unwrap_or_default();
        let object = json!({"apiVersion": "v1", "kind": "Pod", "namespace": namespace,
                            "name": metadata.name, "uid": metadata.uid});
        self.send(namespace, &object, kind, reason, message);
    }

    /// About the node itself.
    pub fn node(&self, uid: &str, kind: &str, reason: &str, message: &str) {
        let object = json!({"apiVersion": "v1", "kind": "Node", "name": self.node, "uid": uid});
        self.send("default".to_owned(), &object, kind, reason, message);
    }

    fn send(&self, namespace: String, object: &Value, kind: &str, reason: &str, message: &str) {
        let now = crate::time::now();
        let stamp = holdfast_env::now().as_nanosecond();
        let name = format!("{}.{stamp:x}", object["name"].as_str().unwrap_or_default());
        let event = json!({
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": object, "type": kind, "reason": reason, "message": message,
            "firstTimestamp": now, "lastTimestamp": now, "count": 1,
            "source": {"component": "kubelet", "host": self.node},
            "reportingComponent": "kubelet", "reportingInstance": self.node,
        });
        let _ = self.queue.try_send((namespace, event));
    }
}
