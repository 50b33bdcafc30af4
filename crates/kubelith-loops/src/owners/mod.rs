//! Owner garbage collection over every kind but events (kubernetes-surface.md §10.3).
//!
//! `kinds` follows what the server serves and keeps the metadata of all objects; `plan` decides; this
//! file asks the API about owners no cache shows and applies the plan.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::core::{DynamicObject, PartialObjectMeta};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::Notify;

use crate::drive::{Pass, drive};
use crate::events::{Recorder, Severity};
use crate::{fault, pods};

mod kinds;
mod plan;

pub(crate) use kinds::{Kind, Kinds, discover};
use plan::{Act, Fact, Graph, Item, OwnerKey};

const COMPONENT: &str = "garbage-collector-controller";
const IDLE: Duration = Duration::from_secs(30);
/// Pause before asking again about an owner that exists but is not in the caches yet.
const ASK_AGAIN: Duration = Duration::from_millis(200);

struct Collector {
    client: Client,
    kinds: Arc<Kinds>,
    recorder: Recorder,
    /// Owners known to be gone; a uid never comes back.
    absent: BTreeMap<OwnerKey, Fact>,
}

/// Runs owner garbage collection for ever.
pub(crate) async fn run(client: Client, kinds: Arc<Kinds>, recorder: Recorder) {
    let wake = Arc::new(Notify::new());
    kinds.wakes(&wake);
    let collector = Collector { client, kinds, recorder, absent: BTreeMap::new() };
    drive(COMPONENT, wake, Duration::from_millis(20), collector).await;
}

impl Pass for Collector {
    async fn pass(&mut self) -> anyhow::Result<Duration> {
        let kinds = self.kinds.all();
        let Some(graph) = graph(&kinds) else {
            return Ok(IDLE);
        };
        let questions = graph.questions();
        self.absent.retain(|key, _| questions.contains(key));
        let mut facts = BTreeMap::new();
        let mut again = false;
        for question in questions {
            let fact = match self.absent.get(&question) {
                Some(fact) => *fact,
                None => self.ask(&kinds, &question).await?,
            };
            match fact {
                Fact::Absent => {
                    self.absent.insert(question.clone(), fact);
                }
                Fact::Present | Fact::UnknownKind => again = true,
            }
            facts.insert(question, fact);
        }
        for act in graph.plan(&facts) {
            self.apply(&kinds, &graph, act).await?;
        }
        Ok(if again { ASK_AGAIN.max(Duration::from_millis(50)) } else { IDLE })
    }
}

/// All objects, or `None` while some kind has not been listed yet.
fn graph(kinds: &[Kind]) -> Option<Graph> {
    let mut items = Vec::new();
    for (index, kind) in kinds.iter().enumerate() {
        let Some(cache) = &kind.cache else { continue };
        if !cache.is_complete() {
            return None;
        }
        cache.each(&mut |meta| {
            items.push(Item {
                kind: index,
                namespace: meta.namespace.clone(),
                name: meta.name.clone().unwrap_or_default(),
                uid: meta.uid.clone().unwrap_or_default(),
                version: meta.resource_version.clone().unwrap_or_default(),
                deleting: meta.deletion_timestamp.is_some(),
                finalizers: meta.finalizers.clone().unwrap_or_default(),
                owners: meta.owner_references.clone().unwrap_or_default(),
            });
        });
    }
    Some(Graph::new(items))
}

impl Collector {
    fn api(&self, kind: &Kind, namespace: Option<&str>) -> Api<Meta> {
        match namespace {
            Some(namespace) if kind.namespaced => {
                Api::namespaced_with(self.client.clone(), namespace, &kind.resource)
            }
            _ => Api::all_with(self.client.clone(), &kind.resource),
        }
    }

    /// Asks the API whether an owner that no cache shows exists.
    async fn ask(&self, kinds: &[Kind], question: &OwnerKey) -> anyhow::Result<Fact> {
        let group = question.api_version.split_once('/').map_or("", |(group, _)| group);
        let kind = kinds.iter().find(|k| k.resource.group == group && k.resource.kind == question.kind);
        let Some(kind) = kind else { return Ok(Fact::UnknownKind) };
        if kind.namespaced && question.namespace.is_none() {
            return Ok(Fact::UnknownKind);
        }
        let api = self.api(kind, question.namespace.as_deref());
        let found = api.get_opt(&question.name).await?;
        Ok(match found {
            Some(found) if found.metadata.uid.as_deref() == Some(&question.uid) => Fact::Present,
            _ => Fact::Absent,
        })
    }

    async fn apply(&self, kinds: &[Kind], graph: &Graph, act: Act) -> anyhow::Result<()> {
        let item = graph.item(act.item());
        let kind = &kinds[item.kind];
        let api = self.api(kind, item.namespace.as_deref());
        tracing::debug!(kind = kind.resource.kind, name = item.name, ?act, "garbage collection");
        match act {
            Act::Delete { policy, .. } => {
                tracing::info!(
                    kind = kind.resource.kind,
                    namespace = item.namespace.as_deref().unwrap_or_default(),
                    name = item.name,
                    "deleting: its owners are gone"
                );
                delete(&api, item, policy).await?;
            }
            Act::Strip { owners, .. } => {
                let left: Vec<_> = item.owners.iter().filter(|o| !owners.contains(&o.uid)).collect();
                patch(&api, item, json!({"ownerReferences": left})).await?;
            }
            Act::DropFinalizer { finalizer, .. } => {
                let left: Vec<_> = item.finalizers.iter().filter(|f| *f != finalizer).collect();
                patch(&api, item, json!({"finalizers": left})).await?;
            }
            Act::WarnNamespace { owner, .. } => {
                let about = ObjectReference {
                    api_version: Some(kind.resource.api_version.clone()),
                    kind: Some(kind.resource.kind.clone()),
                    namespace: item.namespace.clone(),
                    name: Some(item.name.clone()),
                    uid: Some(item.uid.clone()),
                    ..ObjectReference::default()
                };
                let text = format!(
                    "ownerRef {owner} does not exist in namespace {:?}",
                    item.namespace.as_deref().unwrap_or_default()
                );
                self.recorder.publish_about(
                    COMPONENT,
                    about,
                    Severity::Warning,
                    "OwnerRefInvalidNamespace",
                    text,
                );
            }
        }
        Ok(())
    }
}

async fn delete(api: &Api<Meta>, item: &Item, policy: PropagationPolicy) -> kube::Result<()> {
    let params = DeleteParams {
        propagation_policy: Some(policy),
        preconditions: Some(Preconditions { uid: Some(item.uid.clone()), resource_version: None }),
        ..DeleteParams::default()
    };
    fault::unless_stale(api.delete(&item.name, &params).await).map(|_| ())
}

async fn patch(api: &Api<Meta>, item: &Item, mut metadata: serde_json::Value) -> kube::Result<()> {
    metadata["uid"] = json!(item.uid);
    metadata["resourceVersion"] = json!(item.version);
    let params = PatchParams { field_manager: Some(pods::MANAGER.to_owned()), ..PatchParams::default() };
    let result = api.patch(&item.name, &params, &Patch::Merge(json!({"metadata": metadata}))).await;
    fault::unless_stale(result).map(|_| ())
}

/// Metadata of an object of any kind.
pub(crate) type Meta = PartialObjectMeta<DynamicObject>;
