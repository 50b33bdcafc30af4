//! The one interpreter of plans: turns effects into guarded, idempotent requests.

use std::collections::BTreeMap;

use holdfast_env::Clock;
use kube::api::{DeleteParams, DynamicObject, Patch as KubePatch, PatchParams, PostParams, Preconditions};
use kube::core::ApiResource;
use kube::{Api, Client};
use serde_json::{Value, json};
use tracing::debug;

use crate::event::Recorder;
use crate::plan::{Create, Effect, Note, NoteKind, Object, Patch, Plan, Ref};
use crate::{Answer, Caches, Error, Metrics, metrics};

/// What the interpreter needs; shared by all controllers.
#[derive(Clone, Copy)]
pub(crate) struct Tools<'a> {
    pub client: &'a Client,
    pub caches: &'a Caches,
    pub clock: &'a Clock,
    pub metrics: &'a Metrics,
    pub recorder: &'a Recorder,
    pub controller: &'static str,
}

/// Version of an object before and after a write of this pass.
type Moved = BTreeMap<String, (String, String)>;

impl Tools<'_> {
    fn manager(&self) -> String {
        format!("holdfast-{}", self.controller)
    }

    fn api(&self, resource: &ApiResource, namespace: &str) -> Api<DynamicObject> {
        if namespace.is_empty() {
            Api::all_with(self.client.clone(), resource)
        } else {
            Api::namespaced_with(self.client.clone(), namespace, resource)
        }
    }

    /// Executes the plan: status first, then the effects in order, stopping at the first failure.
    pub(crate) async fn apply(&self, plan: &Plan) -> Result<(), Error> {
        let mut moved = Moved::new();
        if let Some(status) = &plan.status {
            self.patch(status, &mut moved).await?;
        }
        for effect in &plan.effects {
            match effect {
                Effect::Create(create) => {
                    let created = self.create(create).await;
                    self.remember(create, &created);
                    if let Err(error) = &created {
                        self.tell_refusal(create, error);
                    }
                    created?;
                }
                Effect::Patch(patch) => self.patch(patch, &mut moved).await?,
                Effect::Delete { target, grace_s } => self.delete(target, *grace_s).await?,
                Effect::Evict(target) => self.evict(target).await?,
                Effect::Event(note) => {
                    self.recorder.record(self.controller, note.clone(), self.clock.now());
                }
            }
        }
        Ok(())
    }

    /// Several writes of one pass may concern one object: a later one is guarded by the version
    /// that the earlier one made, which is the seen state plus our own change.
    async fn patch(&self, patch: &Patch, moved: &mut Moved) -> Result<(), Error> {
        let target = &patch.target;
        let mut body = patch.body.clone();
        let mut guard = target.resource_version.clone();
        if let (Some(uid), Some(seen)) = (&target.uid, &guard)
            && let Some((before, after)) = moved.get(uid)
            && before == seen
        {
            guard = Some(after.clone());
        }
        let metadata = &mut body["metadata"];
        if let Some(version) = &guard {
            metadata["resourceVersion"] = json!(version);
        }
        if let Some(uid) = &target.uid {
            metadata["uid"] = json!(uid);
        }
        if metadata.is_null() {
            body.as_object_mut().map(|map| map.remove("metadata"));
        }
        let api = self.api(&target.api, &target.namespace);
        let params = PatchParams { field_manager: Some(self.manager()), ..PatchParams::default() };
        let merge = KubePatch::Merge(&body);
        debug!(%target, status = patch.status, %body, "patch");
        let reply = if patch.status {
            api.patch_status(&target.name, &params, &merge).await
        } else {
            api.patch(&target.name, &params, &merge).await
        };
        let step = if patch.status { "write status of" } else { "change" };
        let reply = reply.map_err(|source| Error::api(step, target, source))?;
        metrics::write(self.metrics, self.controller, if patch.status { "patch_status" } else { "patch" });
        if let (Some(uid), Some(seen), Some(after)) =
            (&target.uid, &target.resource_version, &reply.metadata.resource_version)
        {
            moved.insert(uid.clone(), (seen.clone(), after.clone()));
        }
        self.learn(&target.api, &reply);
        Ok(())
    }

    /// An event for those who wait for an object that the API does not let us create.
    fn tell_refusal(&self, create: &Create, error: &Error) {
        if let Some((about, reason)) = &create.refusal
            && let Some(why) = refused(error)
        {
            let note = Note {
                about: about.clone(),
                kind: NoteKind::Warning,
                reason: (*reason).to_owned(),
                message: format!("{} was not created: {why}", create.object),
            };
            self.recorder.record(self.controller, note, self.clock.now());
        }
    }

    /// A refusal, until an answer of another kind comes.
    fn remember(&self, create: &Create, created: &Result<(), Error>) {
        let Some(uid) = &create.remembered else { return };
        let creations = self.caches.creations();
        let refused = created.as_ref().err().and_then(refused).map(str::to_owned);
        if refused.is_some() || (created.is_ok() && creations.of(uid).is_some()) {
            creations.record(uid, Answer { at: self.clock.now(), refused });
        }
    }

    async fn create(&self, create: &Create) -> Result<(), Error> {
        let mut object = create.object.clone();
        let mut names = create.alternatives.iter();
        loop {
            match self.create_one(create, &object).await? {
                true => return Ok(()),
                false => match names.next() {
                    Some(name) => object.value["metadata"]["name"] = json!(name),
                    None => return Err(Error::NamesTaken { what: create.object.to_string() }),
                },
            }
        }
    }

    /// Whether the object is there now and ours; `false` if the name belongs to another.
    async fn create_one(&self, create: &Create, object: &Object) -> Result<bool, Error> {
        let api = self.api(&object.api, object.metadata("namespace"));
        let parsed: DynamicObject = serde_json::from_value(object.value.clone())
            .map_err(|error| Error::Bug(format!("object to create does not parse: {object}: {error}")))?;
        let params = PostParams { field_manager: Some(self.manager()), ..PostParams::default() };
        debug!(%object, "create");
        match api.create(&params, &parsed).await {
            Ok(reply) => {
                metrics::write(self.metrics, self.controller, "create");
                self.learn(&object.api, &reply);
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.code == 409 && status.reason == "AlreadyExists" => {
                let name = object.metadata("name");
                let known =
                    api.get_opt(name).await.map_err(|source| Error::api("read existing", object, source))?;
                let Some(known) = known else {
                    return Err(Error::Transient(format!(
                        "{object} was there a moment ago and is gone, try again"
                    )));
                };
                let ours = is_ours(create, &known);
                if ours {
                    self.learn(&object.api, &known);
                }
                Ok(ours)
            }
            Err(source) => Err(Error::api("create", object, source)),
        }
    }

    async fn delete(&self, target: &Ref, grace_s: Option<u32>) -> Result<(), Error> {
        let api = self.api(&target.api, &target.namespace);
        let params = DeleteParams {
            grace_period_seconds: grace_s,
            preconditions: Some(Preconditions {
                uid: target.uid.clone(),
                resource_version: target.resource_version.clone(),
            }),
            ..DeleteParams::background()
        };
        debug!(%target, "delete");
        match api.delete(&target.name, &params).await {
            Ok(reply) => {
                metrics::write(self.metrics, self.controller, "delete");
                // Held by a finalizer: the reply shows the deletion mark.
                if let Some(object) = reply.left()
                    && object.metadata.deletion_timestamp.is_some()
                    && object.metadata.finalizers.as_ref().is_some_and(|held| !held.is_empty())
                {
                    self.learn(&target.api, &object);
                }
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(source) => Err(Error::api("delete", target, source)),
        }
    }

    /// Asks once. Only an API server that does not answer fails the pass.
    async fn evict(&self, target: &Ref) -> Result<(), Error> {
        let uid = target.uid.as_deref().unwrap_or_default();
        let eviction = json!({
            "apiVersion": "policy/v1", "kind": "Eviction",
            "metadata": { "name": target.name, "namespace": target.namespace },
            "deleteOptions": { "preconditions": { "uid": uid } },
        });
        debug!(%target, "evict");
        let api = self.api(&target.api, &target.namespace);
        // Not `Api::evict`, which sends the options under a name that only some servers know.
        let reply = api
            .create_subresource::<Value, Value>("eviction", &target.name, &PostParams::default(), &eviction)
            .await;
        let refused = match reply {
            Ok(_) => {
                metrics::write(self.metrics, self.controller, "evict");
                None
            }
            // It is gone, or another of its name has come.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => None,
            Err(kube::Error::Api(status)) => Some(status.message),
            Err(source) => return Err(Error::api("evict", target, source)),
        };
        self.caches.evictions().record(uid, Answer { at: self.clock.now(), refused });
        Ok(())
    }

    fn learn(&self, api: &ApiResource, reply: &DynamicObject) {
        if let Ok(value) = serde_json::to_value(reply) {
            self.caches.learn(api, &value);
        }
    }
}

/// The API's reason not to let us do something.
fn refused(error: &Error) -> Option<&str> {
    match error {
        Error::Api { source: kube::Error::Api(status), .. } if matches!(status.code, 400 | 403 | 422) => {
            Some(&status.message)
        }
        _ => None,
    }
}

/// Whether an object found under our name is the one an earlier, interrupted pass created.
fn is_ours(create: &Create, known: &DynamicObject) -> bool {
    let controller_uid = |owners: Option<&Value>| {
        owners.and_then(Value::as_array)?.iter().find(|owner| owner["controller"] == true)?["uid"]
            .as_str()
            .map(str::to_owned)
    };
    let wanted = &create.object.value["metadata"];
    let found = serde_json::to_value(&known.metadata).unwrap_or_default();
    if known.metadata.deletion_timestamp.is_some()
        || controller_uid(wanted.get("ownerReferences")) != controller_uid(found.get("ownerReferences"))
    {
        return false;
    }
    create.identity_labels.iter().all(|label| wanted["labels"][label] == found["labels"][label])
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    #[test]
    fn an_existing_object_is_ours_only_with_the_same_owner_and_identity_labels() {
        let with = |owner: &str, epoch: &str, gone: bool| {
            let mut metadata = json!({
                "namespace": "ns", "name": "x", "labels": {"epoch": epoch},
                "ownerReferences": [{"apiVersion": "v1", "kind": "A", "name": "a", "uid": owner, "controller": true}],
            });
            if gone {
                metadata["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
            json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata })
        };
        let map: ConfigMap = serde_json::from_value(with("u", "1", false)).unwrap();
        let create = Create::of(&map).identified_by(&["epoch"]);
        for (owner, epoch, gone, want) in [
            ("u", "1", false, true),
            ("v", "1", false, false),
            ("u", "2", false, false),
            ("u", "1", true, false),
        ] {
            let known: DynamicObject = serde_json::from_value(with(owner, epoch, gone)).unwrap();
            assert_eq!(is_ours(&create, &known), want, "{owner} {epoch} {gone}");
        }
    }
}
