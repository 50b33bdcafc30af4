//! Views: how a cluster image, whose claim lies in the platform namespace, appears in a namespace
//! that uses it. A pod can mount claims of its own namespace only, so a second, read-only volume
//! object points to the same storage, and a claim of the same name as the original is bound to it.
//! Views keep no data of their own: their reclaim policy is Retain.

use holdfast_api::names::claim_name;
use holdfast_env::suffix;
use holdfast_reconcile::{Create, Effect, owner_reference};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::ResourceExt as _;
use serde_json::json;

use super::kinds::Image;

/// Views of one image, wanted and existing.
#[derive(Clone, Debug, Default)]
pub struct Views {
    /// Namespaces that use the image, sorted.
    pub needed_in: Vec<String>,
    /// The volume behind the image's own claim.
    pub volume: Option<PersistentVolume>,
    /// Volumes of views.
    pub volumes: Vec<PersistentVolume>,
    /// Claims of views.
    pub claims: Vec<PersistentVolumeClaim>,
}

impl Views {
    /// Creations of what is missing and deletions of what nobody needs. With `ready` false nothing
    /// is created; with `keep` false every view goes.
    pub fn effects<I: Image>(&self, image: &I, ready: bool, keep: bool) -> Vec<Effect> {
        let mut effects = Vec::new();
        let wanted =
            |namespace: Option<String>| keep && namespace.is_some_and(|ns| self.needed_in.contains(&ns));
        let dying = |meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| {
            meta.deletion_timestamp.is_some()
        };
        for claim in self.claims.iter().filter(|claim| !wanted(claim.namespace()) && !dying(&claim.metadata))
        {
            effects.push(Effect::delete(claim));
        }
        for volume in self.volumes.iter().filter(|volume| !dying(&volume.metadata)) {
            let namespace = shown_in(volume);
            let claimed = self.claims.iter().any(|claim| claim.namespace() == namespace);
            // The claim goes first: a claim without its volume would be Lost.
            let released = volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Released");
            if !claimed && (!wanted(namespace) || released) {
                effects.push(Effect::delete(volume));
            }
        }
        let Some(source) = self.volume.as_ref().filter(|_| ready && keep) else { return effects };
        for namespace in &self.needed_in {
            let is_here = |ns: Option<String>| ns.as_ref() == Some(namespace);
            if !self.volumes.iter().any(|volume| is_here(shown_in(volume))) {
                effects.extend(volume(image, source, namespace).map(|volume| Create::of(&volume).into()));
            }
            if !self.claims.iter().any(|claim| is_here(claim.namespace())) {
                effects.push(Create::of(&claim(image, source, namespace)).into());
            }
        }
        effects
    }

    /// Whether nothing of any view is left.
    pub fn is_gone(&self) -> bool {
        self.volumes.is_empty() && self.claims.is_empty()
    }
}

/// Namespace in which a view's volume is shown.
fn shown_in(volume: &PersistentVolume) -> Option<String> {
    volume.spec.as_ref()?.claim_ref.as_ref()?.namespace.clone()
}

fn volume_name<I: Image>(image: &I, namespace: &str) -> String {
    let uid = image.uid().unwrap_or_default();
    format!("d8v-view-{uid}-{}", suffix(&uid, &format!("view-{namespace}"), 0))
}

fn volume<I: Image>(image: &I, source: &PersistentVolume, namespace: &str) -> Option<PersistentVolume> {
    let uid = image.uid().unwrap_or_default();
    let mut volume = source.clone();
    let spec = volume.spec.as_mut()?;
    spec.access_modes = Some(vec!["ReadOnlyMany".to_owned()]);
    spec.persistent_volume_reclaim_policy = Some("Retain".to_owned());
    spec.storage_class_name = Some(String::new());
    spec.claim_ref = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "namespace": namespace, "name": claim_name(I::SHORT, &image.name_any(), &uid),
    }))
    .ok();
    volume.status = None;
    volume.metadata = serde_json::from_value(json!({
        "name": volume_name(image, namespace),
        "ownerReferences": [owner_reference(image)],
    }))
    .ok()?;
    Some(volume)
}

fn claim<I: Image>(image: &I, source: &PersistentVolume, namespace: &str) -> PersistentVolumeClaim {
    let capacity = source.spec.as_ref().and_then(|spec| spec.capacity.as_ref()?.get("storage").cloned());
    let value = json!({
        "metadata": {
            "name": claim_name(I::SHORT, &image.name_any(), &image.uid().unwrap_or_default()),
            "namespace": namespace,
            "ownerReferences": [owner_reference(image)],
        },
        "spec": {
            "accessModes": ["ReadOnlyMany"],
            "volumeMode": "Filesystem",
            "storageClassName": "",
            "volumeName": volume_name(image, namespace),
            "resources": {"requests": {"storage": capacity}},
        },
    });
    serde_json::from_value(value).expect("invariant: the claim has the form of a claim")
}
