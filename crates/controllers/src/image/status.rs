//! From the state of an image to its status. Pure.

use holdfast_api::import::Facts;
use holdfast_api::names::claim_name;
use holdfast_api::source::ImageSize;
use holdfast_api::vi::{
    DatasourceReady, ImagePhase, ImageTarget, InUse, Ready, StorageClassReady, VirtualImageStatus,
};
use holdfast_reconcile::Conditions;

use super::kinds::Image;
use super::plan::Observed;
use crate::import::Standing;
use crate::import::progress::{human, percent, speed};

/// Where an image stands (`StorageClassReady` is not shown on cluster images).
pub type State = Standing<ImagePhase, Ready, DatasourceReady, StorageClassReady>;

/// The status of an image that lives; `facts` about the data, once that is complete.
pub(super) fn of<I: Image>(
    o: &Observed<I>,
    old: &VirtualImageStatus,
    state: &State,
    facts: Option<&Facts>,
) -> VirtualImageStatus {
    let mut conditions = Conditions::carry(&old.conditions, o.image.meta().generation, o.now);
    conditions.is(state.datasource.0, state.datasource.1.clone());
    if I::SHORT == "vi" {
        conditions.is(state.storage.0, state.storage.1.clone());
    }
    conditions.is(state.ready, state.message.clone());
    in_use(&mut conditions, o);
    let settled = matches!(state.phase, ImagePhase::Ready | ImagePhase::PVCLost | ImagePhase::ImageLost);
    let known = settled.then_some(old);
    VirtualImageStatus {
        phase: Some(state.phase),
        format: facts.map(|f| f.format.clone()).or_else(|| known.and_then(|k| k.format.clone())),
        cdrom: Some(facts.map_or_else(|| known.and_then(|k| k.cdrom).unwrap_or_default(), Facts::is_cdrom)),
        size: facts.map(size).or_else(|| known.and_then(|k| k.size.clone())),
        progress: match state.phase {
            ImagePhase::Provisioning => Some(percent(state.progress.as_ref())),
            ImagePhase::Ready | ImagePhase::PVCLost | ImagePhase::ImageLost => Some("100%".to_owned()),
            ImagePhase::Pending
            | ImagePhase::WaitForUserUpload
            | ImagePhase::Failed
            | ImagePhase::Terminating => None,
        },
        download_speed: state.progress.as_ref().filter(|p| p.transferred_bytes > 0).map(speed),
        target: (settled || o.helpers.claim.is_some()).then(|| ImageTarget {
            registry_url: None,
            persistent_volume_claim_name: Some(claim_name(
                I::SHORT,
                &o.image.name_any(),
                &o.image.uid().unwrap_or_default(),
            )),
        }),
        storage_class_name: state.class.clone().or_else(|| known.and_then(|k| k.storage_class_name.clone())),
        source_uid: known
            .and_then(|k| k.source_uid.clone())
            .or_else(|| o.origin.as_ref().map(|origin| origin.uid.clone())),
        conditions: conditions.finish(),
        observed_generation: o.image.meta().generation,
        ..VirtualImageStatus::default()
    }
}

/// The status of an image being deleted: everything stays, the phase and the users are true.
pub(super) fn terminating<I: Image>(o: &Observed<I>, old: &VirtualImageStatus) -> VirtualImageStatus {
    let mut conditions = Conditions::carry(&old.conditions, o.image.meta().generation, o.now);
    conditions.keep("DatasourceReady").keep("StorageClassReady").keep("Ready");
    in_use(&mut conditions, o);
    VirtualImageStatus {
        phase: Some(ImagePhase::Terminating),
        conditions: conditions.finish(),
        observed_generation: o.image.meta().generation,
        ..old.clone()
    }
}

fn size(facts: &Facts) -> ImageSize {
    ImageSize {
        stored: Some(human(facts.stored_bytes)),
        stored_bytes: Some(facts.stored_bytes.to_string()),
        unpacked: Some(human(facts.virtual_size_bytes)),
        unpacked_bytes: Some(facts.virtual_size_bytes.to_string()),
    }
}

fn in_use<I: Image>(conditions: &mut Conditions<'_>, o: &Observed<I>) {
    let users: Vec<String> = o
        .uses
        .iter()
        .filter(|(_, use_)| use_.mounts)
        .map(|(namespace, use_)| format!("{namespace}/{}", use_.vm))
        .collect();
    if users.is_empty() {
        conditions.is(InUse::NotInUse, "");
    } else {
        conditions.is(InUse::AttachedToVirtualMachine, format!("Attached to {}.", users.join(", ")));
    }
}
