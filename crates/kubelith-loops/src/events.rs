//! Events the loops write: one object per (about, reason, message), counted up when repeated.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource, ResourceExt as _};
use parking_lot::Mutex;
use serde_json::json;

use crate::fault;

/// Remembered events; beyond this all are forgotten and repeats begin a new object.
const REMEMBERED: usize = 512;

type Key = (String, &'static str, String);

/// Writes events in the background. Losing one is never an error for the caller.
#[derive(Clone)]
pub(crate) struct Recorder {
    client: Client,
    seen: Arc<Mutex<BTreeMap<Key, (String, i32)>>>,
}

/// Severity of an event.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Severity {
    /// Something expected happened.
    Normal,
    /// Somebody should look.
    Warning,
}

impl Recorder {
    pub(crate) fn new(client: Client) -> Self {
        Self { client, seen: Arc::default() }
    }

    /// Writes an event about `object`, reported by `component`.
    pub(crate) fn publish<K: Resource<DynamicType = ()>>(
        &self,
        component: &'static str,
        object: &K,
        severity: Severity,
        reason: &'static str,
        message: String,
    ) {
        self.publish_about(component, object.object_ref(&()), severity, reason, message);
    }

    /// Writes an event about what `about` names.
    pub(crate) fn publish_about(
        &self,
        component: &'static str,
        mut about: ObjectReference,
        severity: Severity,
        reason: &'static str,
        message: String,
    ) {
        if about.kind.as_deref() == Some("Node") {
            // `describe node` looks events up by the node's name, not by its uid.
            about.uid = about.name.clone();
        }
        let recorder = self.clone();
        tokio::spawn(async move {
            if let Err(error) = recorder.write(component, about, severity, reason, message).await {
                tracing::debug!("event {reason} not written: {error}");
            }
        });
    }

    async fn write(
        &self,
        component: &str,
        about: ObjectReference,
        severity: Severity,
        reason: &'static str,
        message: String,
    ) -> kube::Result<()> {
        let namespace = about.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        let key = (about.uid.clone().unwrap_or_default(), reason, message.clone());
        let now = Time(holdfast_env::now());
        let earlier = self.seen.lock().get(&key).cloned();
        if let Some((name, count)) = earlier {
            let patch = json!({"count": count + 1, "lastTimestamp": now});
            match api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Ok(_) => {
                    self.seen.lock().insert(key, (name, count + 1));
                    return Ok(());
                }
                Err(error) if fault::is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        let name =
            format!("{}.{:016x}", about.name.as_deref().unwrap_or("object"), holdfast_env::random_u64());
        let event = Event {
            metadata: ObjectMeta { name: Some(name), namespace: Some(namespace), ..ObjectMeta::default() },
            involved_object: about,
            reason: Some(reason.to_owned()),
            message: Some(message),
            type_: Some(
                match severity {
                    Severity::Normal => "Normal",
                    Severity::Warning => "Warning",
                }
                .to_owned(),
            ),
            source: Some(EventSource { component: Some(component.to_owned()), host: None }),
            reporting_component: Some(component.to_owned()),
            reporting_instance: Some(String::new()),
            first_timestamp: Some(now.clone()),
            last_timestamp: Some(now),
            count: Some(1),
            ..Event::default()
        };
        let written = api.create(&PostParams::default(), &event).await?;
        let mut seen = self.seen.lock();
        if seen.len() >= REMEMBERED {
            seen.clear();
        }
        seen.insert(key, (written.name_any(), 1));
        Ok(())
    }
}
