//! Namespace deletion: everything in a terminating namespace is deleted, then the namespace is released
//! (kubernetes-surface.md §16.4).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::cache::Caches;
use crate::drive::{Pass, drive};
use crate::owners::{Kind, Kinds, Meta, discover};
use crate::{fault, pods};

const IDLE: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_millis(250);

struct Terminator {
    client: Client,
    caches: Arc<Caches>,
}

/// Runs namespace deletion for ever.
pub(crate) async fn run(client: Client, caches: Arc<Caches>, kinds: Arc<Kinds>) {
    let wake = Arc::new(Notify::new());
    caches.namespaces.wakes(&wake);
    // Any object may be the last one a namespace waits for.
    kinds.wakes(&wake);
    drive("namespace", wake, Duration::from_millis(20), Terminator { client, caches }).await;
}

impl Pass for Terminator {
    async fn pass(&mut self) -> anyhow::Result<Duration> {
        self.caches.namespaces.ready().await?;
        let terminating: Vec<_> = self
            .caches
            .namespaces
            .all()
            .into_iter()
            .filter(|n| n.metadata.deletion_timestamp.is_some() && holds(n))
            .collect();
        if terminating.is_empty() {
            return Ok(IDLE);
        }
        let kinds = discover(&self.client).await;
        for namespace in &terminating {
            let outcome = match &kinds {
                Ok(kinds) => self.empty(&namespace.name_any(), kinds).await,
                Err(error) => Outcome { discovery_error: Some(error.to_string()), ..Outcome::default() },
            };
            if outcome.is_empty() {
                self.release(namespace).await?;
            } else {
                self.report(namespace, &outcome).await?;
            }
        }
        Ok(AGAIN)
    }
}

fn holds(namespace: &Namespace) -> bool {
    let finalizers = namespace.spec.as_ref().and_then(|s| s.finalizers.as_deref()).unwrap_or_default();
    finalizers.iter().any(|f| f == "kubernetes")
}

/// What is still in a namespace.
#[derive(Debug, Default)]
struct Outcome {
    discovery_error: Option<String>,
    errors: Vec<String>,
    /// `resource.group` → number of objects.
    remaining: BTreeMap<String, usize>,
    /// Finalizer → number of objects.
    finalizers: BTreeMap<String, usize>,
}

impl Outcome {
    fn is_empty(&self) -> bool {
        self.discovery_error.is_none() && self.errors.is_empty() && self.remaining.is_empty()
    }
}

impl Terminator {
    /// Deletes what is in the namespace and says what is left.
    async fn empty(&self, namespace: &str, kinds: &[Kind]) -> Outcome {
        let mut outcome = Outcome::default();
        for kind in kinds.iter().filter(|k| k.namespaced) {
            if let Err(error) = self.empty_kind(namespace, kind, &mut outcome).await
                && !fault::is_gone(&error)
            {
                outcome.errors.push(format!("{}: {error}", resource_name(kind)));
            }
        }
        outcome
    }

    async fn empty_kind(&self, namespace: &str, kind: &Kind, outcome: &mut Outcome) -> kube::Result<()> {
        let api: Api<Meta> = Api::namespaced_with(self.client.clone(), namespace, &kind.resource);
        let found = api.list(&ListParams::default()).await?.items;
        if found.is_empty() {
            return Ok(());
        }
        let params = DeleteParams::background();
        if found.iter().any(|o| o.metadata.deletion_timestamp.is_none()) {
            if kind.has_delete_collection {
                api.delete_collection(&params, &ListParams::default()).await?;
            } else {
                for object in found.iter().filter(|o| o.metadata.deletion_timestamp.is_none()) {
                    fault::unless_stale(api.delete(&object.name_any(), &params).await)?;
                }
            }
        }
        let left = api.list(&ListParams::default()).await?.items;
        if !left.is_empty() {
            outcome.remaining.insert(resource_name(kind), left.len());
        }
        for object in &left {
            for finalizer in object.metadata.finalizers.iter().flatten() {
                *outcome.finalizers.entry(finalizer.clone()).or_default() += 1;
            }
        }
        Ok(())
    }

    /// Lets the namespace go.
    async fn release(&self, namespace: &Namespace) -> anyhow::Result<()> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let mut released = namespace.clone();
        if let Some(finalizers) = released.spec.as_mut().and_then(|s| s.finalizers.as_mut()) {
            finalizers.retain(|f| f != "kubernetes");
        }
        let result = api
            .replace_subresource("finalize", &namespace.name_any(), &PostParams::default(), &released)
            .await;
        fault::unless_stale(result)?;
        Ok(())
    }

    async fn report(&self, namespace: &Namespace, outcome: &Outcome) -> anyhow::Result<()> {
        let Some(conditions) = conditions(namespace, outcome) else { return Ok(()) };
        let api: Api<Namespace> = Api::all(self.client.clone());
        let patch = json!({"metadata": {"uid": namespace.metadata.uid}, "status": {"phase": "Terminating", "conditions": conditions}});
        let params = PatchParams { field_manager: Some(pods::MANAGER.to_owned()), ..PatchParams::default() };
        let result = api.patch_status(&namespace.name_any(), &params, &Patch::Strategic(patch)).await;
        fault::unless_stale(result)?;
        Ok(())
    }
}

fn resource_name(kind: &Kind) -> String {
    if kind.resource.group.is_empty() {
        format!("{}.", kind.resource.plural)
    } else {
        format!("{}.{}", kind.resource.plural, kind.resource.group)
    }
}

/// The namespace's conditions as they should be; `None` when they are so already.
fn conditions(namespace: &Namespace, outcome: &Outcome) -> Option<Vec<Value>> {
    let list = |counts: &BTreeMap<String, usize>, what: &str| -> Option<String> {
        let parts: Vec<String> =
            counts.iter().map(|(name, count)| format!("{name} {what} {count} resource instances")).collect();
        (!parts.is_empty()).then(|| parts.join(", "))
    };
    let remaining = list(&outcome.remaining, "has").map(|t| format!("Some resources are remaining: {t}"));
    let finalizers = list(&outcome.finalizers, "in")
        .map(|t| format!("Some content in the namespace has finalizers remaining: {t}"));
    let failure = (!outcome.errors.is_empty()).then(|| {
        format!(
            "Failed to delete all resource types, {} remaining: {}",
            outcome.errors.len(),
            outcome.errors.join(", ")
        )
    });
    let discovery =
        outcome.discovery_error.as_ref().map(|e| format!("Discovery failed for some groups, 1 failing: {e}"));
    let wanted = [
        (
            "NamespaceDeletionDiscoveryFailure",
            discovery,
            "DiscoveryFailed",
            "ResourcesDiscovered",
            "All resources successfully discovered",
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            None,
            "GroupVersionParsingFailed",
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed",
        ),
        (
            "NamespaceDeletionContentFailure",
            failure,
            "ContentDeletionFailed",
            "ContentDeleted",
            "All content successfully deleted, may be waiting on finalization",
        ),
        (
            "NamespaceContentRemaining",
            remaining,
            "SomeResourcesRemain",
            "ContentRemoved",
            "All content successfully removed",
        ),
        (
            "NamespaceFinalizersRemaining",
            finalizers,
            "SomeFinalizersRemain",
            "ContentHasNoFinalizers",
            "All content-preserving finalizers finished",
        ),
    ];
    let have = namespace.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let mut changed = false;
    let now = Time(holdfast_env::now());
    let conditions = wanted
        .into_iter()
        .map(|(kind, problem, bad, good, fine)| {
            let status = if problem.is_some() { "True" } else { "False" };
            let reason = if problem.is_some() { bad } else { good };
            let message = problem.unwrap_or_else(|| fine.to_owned());
            let old = have.iter().find(|c| c.type_ == kind);
            changed |= old.is_none_or(|o| o.status != status || o.message.as_deref() != Some(&message));
            let since = old.filter(|o| o.status == status).and_then(|o| o.last_transition_time.clone());
            json!({"type": kind, "status": status, "reason": reason, "message": message,
                   "lastTransitionTime": since.unwrap_or_else(|| now.clone())})
        })
        .collect();
    changed.then_some(conditions)
}

#[cfg(test)]
mod tests {
    use super::*;

    // KS-A51: conditions of a namespace that still holds something.
    #[test]
    fn conditions_name_what_is_left() {
        let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": "shop"}})).unwrap();
        let outcome = Outcome {
            remaining: BTreeMap::from([("pods.".to_owned(), 2)]),
            finalizers: BTreeMap::from([("x/hold".to_owned(), 1)]),
            ..Outcome::default()
        };
        let shown = conditions(&namespace, &outcome).unwrap();
        let brief: Vec<String> = shown
            .iter()
            .map(|c| {
                format!(
                    "{}={}/{}",
                    c["type"].as_str().unwrap(),
                    c["status"].as_str().unwrap(),
                    c["reason"].as_str().unwrap()
                )
            })
            .collect();
        assert_eq!(
            brief,
            [
                "NamespaceDeletionDiscoveryFailure=False/ResourcesDiscovered",
                "NamespaceDeletionGroupVersionParsingFailure=False/ParsedGroupVersions",
                "NamespaceDeletionContentFailure=False/ContentDeleted",
                "NamespaceContentRemaining=True/SomeResourcesRemain",
                "NamespaceFinalizersRemaining=True/SomeFinalizersRemain",
            ]
        );
        assert_eq!(shown[3]["message"], "Some resources are remaining: pods. has 2 resource instances");
        let mut settled = namespace;
        settled.status = Some(serde_json::from_value(json!({"conditions": shown})).unwrap());
        assert!(conditions(&settled, &outcome).is_none());
    }
}
