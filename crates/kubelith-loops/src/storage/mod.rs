//! Volumes: claims are bound to fitting volumes, the built-in provisioner makes volumes for its classes,
//! released ones are reclaimed, and protection finalizers go when nobody uses an object any more
//! (kubernetes-surface.md §16.7). `plan` decides, `provision` touches directories.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::cache::Caches;
use crate::drive::{Pass, drive};
use crate::events::{Recorder, Severity};
use crate::{Storage, fault, pods};

mod plan;
pub(crate) mod provision;

use plan::{Act, World};

/// Annotation with which the scheduler tells a claim the node it is needed on.
pub(crate) const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
const PROVISIONER_BETA: &str = "volume.beta.kubernetes.io/storage-provisioner";
const CLAIM_PROTECTION: &str = "kubernetes.io/pvc-protection";
const VOLUME_PROTECTION: &str = "kubernetes.io/pv-protection";
const COMPONENT: &str = "persistentvolume-controller";
const IDLE: Duration = Duration::from_secs(60);

/// Whether the claim has its volume and both sides know it.
pub(crate) fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    let named = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).is_some_and(|v| !v.is_empty());
    let phase = claim.status.as_ref().and_then(|s| s.phase.as_deref());
    named && (phase == Some("Bound") || claim.annotations().contains_key(BIND_COMPLETED))
}

/// Whether volumes of the class are made only when a pod needs them.
pub(crate) fn waits_for_consumer(class: &StorageClass) -> bool {
    class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
}

struct Binder {
    client: Client,
    caches: Arc<Caches>,
    recorder: Recorder,
    storage: Option<Storage>,
    classes_ensured: bool,
    /// What was last told about a waiting claim, by uid.
    explained: BTreeMap<String, (&'static str, String)>,
}

/// Runs the volume loop for ever.
pub(crate) async fn run(client: Client, caches: Arc<Caches>, recorder: Recorder, storage: Option<Storage>) {
    let wake = Arc::new(Notify::new());
    caches.claims.wakes(&wake);
    caches.volumes.wakes(&wake);
    caches.classes.wakes(&wake);
    caches.pods.wakes(&wake);
    caches.nodes.wakes(&wake);
    let binder =
        Binder { client, caches, recorder, storage, classes_ensured: false, explained: BTreeMap::new() };
    drive("persistentvolume-binder", wake, Duration::ZERO, binder).await;
}

impl Pass for Binder {
    async fn pass(&mut self) -> anyhow::Result<Duration> {
        let caches = &self.caches;
        caches.claims.ready().await?;
        caches.volumes.ready().await?;
        caches.classes.ready().await?;
        caches.pods.ready().await?;
        caches.nodes.ready().await?;
        if !self.classes_ensured {
            self.ensure_classes().await?;
            self.classes_ensured = true;
        }
        let world = World {
            claims: self.caches.claims.all(),
            volumes: self.caches.volumes.all(),
            classes: self.caches.classes.all(),
            pods: self.caches.pods.all(),
            nodes: self.caches.nodes.all(),
            provisions: self.storage.is_some(),
        };
        self.explained.retain(|uid, _| world.claims.iter().any(|c| c.uid().as_ref() == Some(uid)));
        let mut failed = None;
        for act in world.plan() {
            // One broken volume must not hold up the others.
            if let Err(error) = self.apply(&act).await {
                tracing::warn!("{act}: {error:#}");
                failed = Some(error);
            }
        }
        match failed {
            Some(error) => Err(error.context("some volumes could not be served")),
            None => Ok(IDLE),
        }
    }
}

impl Binder {
    /// Creates the two built-in classes if they are not there. Users may delete or change them later.
    async fn ensure_classes(&self) -> anyhow::Result<()> {
        if self.storage.is_none() {
            return Ok(());
        }
        let api: Api<StorageClass> = Api::all(self.client.clone());
        for class in provision::classes() {
            match api.create(&PostParams::default(), &class).await {
                Ok(_) => {}
                Err(error) if fault::is_conflict(&error) => {}
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("creating storage class {}", class.name_any()));
                }
            }
        }
        Ok(())
    }

    async fn apply(&mut self, act: &Act) -> anyhow::Result<()> {
        match act {
            Act::BindVolume { volume, claim } => self.bind_volume(volume, claim).await?,
            Act::VolumePhase { volume, phase } => {
                if *phase == "Released" && !self.is_abandoned(volume).await? {
                    return Ok(());
                }
                self.patch_volume(volume, json!({"status": {"phase": phase}}), true).await?;
            }
            Act::BindClaim { claim, volume } => {
                let annotations = json!({BIND_COMPLETED: "yes", BOUND_BY_CONTROLLER: "yes"});
                let patch = json!({"metadata": {"annotations": annotations}, "spec": {"volumeName": volume.name_any()}});
                self.patch_claim(claim, patch, false).await?;
            }
            Act::ClaimStatus { claim, status } => {
                self.patch_claim(claim, json!({"status": status}), true).await?
            }
            Act::Annotate { claim, provisioner } => {
                let annotations = json!({PROVISIONER: provisioner, PROVISIONER_BETA: provisioner});
                self.patch_claim(claim, json!({"metadata": {"annotations": annotations}}), false).await?;
                let text = format!(
                    "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the system administrator."
                );
                self.tell(claim, Severity::Normal, "ExternalProvisioning", text);
            }
            Act::ForgetNode { claim } => {
                let annotations = json!({SELECTED_NODE: Value::Null});
                self.patch_claim(claim, json!({"metadata": {"annotations": annotations}}), false).await?;
            }
            Act::Provision { claim, class, node } => self.provision(claim, class, node.as_deref()).await?,
            Act::Reclaim { volume } => self.reclaim(volume).await?,
            Act::UnprotectClaim { claim } => {
                let left: Vec<&String> =
                    claim.finalizers().iter().filter(|f| *f != CLAIM_PROTECTION).collect();
                self.patch_claim(claim, json!({"metadata": {"finalizers": left}}), false).await?;
            }
            Act::UnprotectVolume { volume } => {
                self.unprotect_volume(volume).await?;
            }
            Act::Explain { claim, reason, message } => {
                let said = (*reason, message.clone());
                let uid = claim.uid().unwrap_or_default();
                if self.explained.get(&uid) != Some(&said) {
                    self.tell(claim, Severity::Normal, reason, message.clone());
                    self.explained.insert(uid, said);
                }
            }
        }
        Ok(())
    }

    fn tell(&self, claim: &PersistentVolumeClaim, severity: Severity, reason: &'static str, message: String) {
        self.recorder.publish(COMPONENT, claim, severity, reason, message);
    }

    async fn bind_volume(
        &self,
        volume: &PersistentVolume,
        claim: &PersistentVolumeClaim,
    ) -> anyhow::Result<()> {
        let reference = json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "namespace": claim.namespace(), "name": claim.name_any(), "uid": claim.uid(),
        });
        let patch = json!({"metadata": {"annotations": {BOUND_BY_CONTROLLER: "yes"}}, "spec": {"claimRef": reference}});
        self.patch_volume(volume, patch, false).await
    }

    async fn provision(
        &self,
        claim: &PersistentVolumeClaim,
        class: &StorageClass,
        node: Option<&str>,
    ) -> anyhow::Result<()> {
        let Some(storage) = &self.storage else { return Ok(()) };
        let volume = match provision::make(storage, claim, class, node).await {
            Ok(volume) => volume,
            Err(error) => {
                self.tell(claim, Severity::Warning, "ProvisioningFailed", format!("{error:#}"));
                return Err(error);
            }
        };
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        match api.create(&PostParams::default(), &volume).await {
            Ok(_) => {
                let text = format!("Successfully provisioned volume {}", volume.name_any());
                self.tell(claim, Severity::Normal, "ProvisioningSucceeded", text);
                Ok(())
            }
            // Made in an earlier pass; the cache is behind.
            Err(error) if fault::is_conflict(&error) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes a released volume's data, then the volume.
    async fn reclaim(&self, volume: &PersistentVolume) -> anyhow::Result<()> {
        let Some(storage) = &self.storage else { return Ok(()) };
        if !self.is_abandoned(volume).await? {
            return Ok(());
        }
        provision::remove(storage, volume).await?;
        if volume.metadata.deletion_timestamp.is_some() {
            return self.unprotect_volume(volume).await;
        }
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid: volume.uid(), resource_version: None }),
            ..DeleteParams::default()
        };
        fault::unless_stale(api.delete(&volume.name_any(), &params).await)?;
        Ok(())
    }

    /// Asks the API itself whether the claim that a volume belongs to is gone: data is never removed on
    /// the word of a cache.
    async fn is_abandoned(&self, volume: &PersistentVolume) -> anyhow::Result<bool> {
        let Some(holder) = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()) else {
            return Ok(false);
        };
        let namespace = holder.namespace.as_deref().unwrap_or_default();
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
        let found = api.get_opt(holder.name.as_deref().unwrap_or_default()).await?;
        Ok(found.is_none_or(|claim| claim.uid() != holder.uid))
    }

    async fn unprotect_volume(&self, volume: &PersistentVolume) -> anyhow::Result<()> {
        let left: Vec<&String> = volume.finalizers().iter().filter(|f| *f != VOLUME_PROTECTION).collect();
        self.patch_volume(volume, json!({"metadata": {"finalizers": left}}), false).await
    }

    async fn patch_volume(
        &self,
        volume: &PersistentVolume,
        mut patch: Value,
        status: bool,
    ) -> anyhow::Result<()> {
        guard(&mut patch, volume.uid(), volume.resource_version());
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        let name = volume.name_any();
        let result = if status {
            api.patch_status(&name, &params(), &Patch::Merge(patch)).await
        } else {
            api.patch(&name, &params(), &Patch::Merge(patch)).await
        };
        fault::unless_stale(result)?;
        Ok(())
    }

    async fn patch_claim(
        &self,
        claim: &PersistentVolumeClaim,
        mut patch: Value,
        status: bool,
    ) -> anyhow::Result<()> {
        guard(&mut patch, claim.uid(), claim.resource_version());
        let api: Api<PersistentVolumeClaim> =
            Api::namespaced(self.client.clone(), &claim.namespace().unwrap_or_default());
        let name = claim.name_any();
        let result = if status {
            api.patch_status(&name, &params(), &Patch::Merge(patch)).await
        } else {
            api.patch(&name, &params(), &Patch::Merge(patch)).await
        };
        fault::unless_stale(result)?;
        Ok(())
    }
}

/// The write is refused if anybody wrote since the object was read.
fn guard(patch: &mut Value, uid: Option<String>, version: Option<String>) {
    patch["metadata"]["uid"] = json!(uid);
    patch["metadata"]["resourceVersion"] = json!(version);
}

fn params() -> PatchParams {
    PatchParams { field_manager: Some(pods::MANAGER.to_owned()), ..PatchParams::default() }
}
