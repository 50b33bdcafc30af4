//! The machine of an image. Pure.

use holdfast_api::VirtualDisk;
use holdfast_api::condition;
use holdfast_api::names::claim_name;
use holdfast_api::source::{DataSourceType, ObjectRefKind};
use holdfast_api::vd::VdPhase;
use holdfast_api::vi::{DatasourceReady, ImagePhase, Ready, StorageClassReady, VirtualImageStatus};
use holdfast_api::vm::BlockDeviceKind;
use holdfast_domain::refusal::is_quota;
use holdfast_env::Timestamp;
use holdfast_reconcile::{Effect, NoteKind, Patch, Plan, Ref, owner_reference};
use jiff::SignedDuration;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt as _;

use super::kinds::Image;
use super::status::{self, State};
use super::views::Views;
use crate::import::storage_class::{self, Choice};
use crate::import::{From, Helpers, Job, Outcome, remove, remove_pods};
use crate::vd::Use;

/// What an image depends on.
#[derive(Clone, Debug)]
pub struct Observed<I> {
    /// Instant of the pass.
    pub now: Timestamp,
    /// The image.
    pub image: I,
    /// What its `objectRef` names, if that exists.
    pub origin: Option<Origin>,
    /// VMs that list it: namespace and use.
    pub uses: Vec<(String, Use)>,
    /// How it is shown in other namespaces.
    pub views: Views,
    /// All storage classes.
    pub classes: Vec<StorageClass>,
    /// Claim and importer pods.
    pub helpers: Helpers,
    /// Tag of the importer's image.
    pub version: String,
}

/// The object that an image is made from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Origin {
    /// Its uid.
    pub uid: String,
    /// Ready and not being deleted.
    pub ready: bool,
    /// A VM has it (disks only).
    pub in_use_by: Option<String>,
    /// It knows that an image is made from it (disks only; images always do).
    pub reserved: bool,
    /// Namespace of its claim.
    pub namespace: String,
    /// The claim.
    pub claim: String,
    /// Size that the guest sees.
    pub bytes: Option<i64>,
    /// Format, where known.
    pub format: Option<String>,
}

impl Origin {
    /// An image as a source; `namespace` is where its claim lies.
    pub fn image<I: Image>(image: &I, namespace: &str) -> Self {
        let status = image.view().unwrap_or_default();
        let uid = image.uid().unwrap_or_default();
        Self {
            ready: status.phase == Some(ImagePhase::Ready) && image.meta().deletion_timestamp.is_none(),
            in_use_by: None,
            reserved: true,
            namespace: namespace.to_owned(),
            claim: claim_name(I::SHORT, &image.name_any(), &uid),
            bytes: status.size.and_then(|size| size.unpacked_bytes?.parse().ok()),
            format: status.format,
            uid,
        }
    }

    /// A disk as a source.
    #[must_use]
    pub fn disk(disk: &VirtualDisk, namespace: &str) -> Self {
        use holdfast_api::Quantity;
        use holdfast_api::vd::InUse;
        let status = disk.status.clone().unwrap_or_default();
        let uid = disk.uid().unwrap_or_default();
        Self {
            ready: status.phase == Some(VdPhase::Ready) && disk.metadata.deletion_timestamp.is_none(),
            in_use_by: status.attached_to_virtual_machines.iter().find(|a| a.mounted).map(|a| a.name.clone()),
            reserved: condition::get::<InUse>(&status.conditions) == Some(InUse::UsedForImageCreation),
            namespace: namespace.to_owned(),
            claim: claim_name("vd", &disk.name_any(), &uid),
            bytes: status.capacity.and_then(|capacity| Quantity(capacity).value().ok()),
            format: Some("raw".to_owned()),
            uid,
        }
    }
}

/// Decides.
pub fn plan<I: Image>(o: &Observed<I>) -> Plan {
    if o.image.meta().deletion_timestamp.is_some() {
        return deletion(o);
    }
    let mut plan = Plan::default();
    let old = o.image.view().unwrap_or_default();
    let (state, effects, wake_s) = advance(o, &old);
    let new = status::of(o, &old, &state);
    finalizers(&mut plan, o);
    events(&mut plan, o, &old, &state);
    plan.status = o.image.patch(&new);
    plan.because(format!("{}: {}", state.phase, state.message));
    if let Some(seconds) = wake_s {
        plan.wake_at(o.now.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(o.now));
    }
    plan.effects.extend(effects);
    plan.effects.extend(o.views.effects(&o.image, state.phase == ImagePhase::Ready, true));
    plan
}

fn finalizers<I: Image>(plan: &mut Plan, o: &Observed<I>) {
    let before = o.image.meta().finalizers.clone().unwrap_or_default();
    let mut all = before.clone();
    if !all.iter().any(|known| known == I::CLEANUP) {
        all.push(I::CLEANUP.to_owned());
    }
    let has = all.iter().any(|known| known == I::PROTECTION);
    let wanted = !o.uses.is_empty();
    if has && !wanted {
        all.retain(|known| known != I::PROTECTION);
    } else if wanted && !has {
        all.push(I::PROTECTION.to_owned());
    }
    if all != before {
        let body = serde_json::json!({"metadata": {"finalizers": all}});
        plan.then(Patch { target: Ref::exact(&o.image), status: false, body });
    }
}

/// Deletion: waits for VMs, then removes views, helpers and data, then lets go.
fn deletion<I: Image>(o: &Observed<I>) -> Plan {
    let mut plan = Plan::default();
    let old = o.image.view().unwrap_or_default();
    plan.status = o.image.patch(&status::terminating(o, &old));
    if !o.uses.is_empty() {
        plan.because("deletion waits for the users of the image");
        plan.effects.extend(o.views.effects(&o.image, true, true));
        return plan;
    }
    if let Some(patch) = Patch::remove_finalizer(&o.image, I::PROTECTION) {
        plan.because("nobody uses the image any more");
        plan.then(patch);
        return plan;
    }
    plan.effects.extend(o.views.effects(&o.image, false, false));
    if !o.views.is_gone() {
        plan.because("views are being removed");
        return plan;
    }
    plan.effects.extend(remove(&o.helpers));
    if o.helpers.pods.is_empty() && o.helpers.claim.is_none() {
        plan.because("data and helpers are gone");
        if let Some(patch) = Patch::remove_finalizer(&o.image, I::CLEANUP) {
            plan.then(patch);
        }
    }
    plan
}

fn advance<I: Image>(o: &Observed<I>, old: &VirtualImageStatus) -> (State, Vec<Effect>, Option<i64>) {
    let existing = o.helpers.claim.as_ref().and_then(|claim| claim.spec.as_ref()?.storage_class_name.clone());
    let wanted = existing.or_else(|| o.image.wanted_class());
    let storage = storage_class::choose(&o.classes, wanted.as_deref());
    let (datasource, source) = datasource(o);
    let mut state = State::new(datasource, storage_condition(o, &storage));
    if matches!(old.phase, Some(ImagePhase::Ready | ImagePhase::PVCLost | ImagePhase::ImageLost)) {
        return (provisioned(o, old, state), remove_pods(&o.helpers), None);
    }
    if old.phase == Some(ImagePhase::Failed) && old.observed_generation == o.image.meta().generation {
        let text = condition::find(&old.conditions, "Ready").map(|c| c.message.clone());
        state.fail(text.unwrap_or_default());
        return (state, remove(&o.helpers), None);
    }
    let source = match source {
        Ok(source) => source,
        Err((ready, text)) => {
            state.wait(ready, text);
            return (state, Vec::new(), None);
        }
    };
    match storage {
        Ok(storage) => run(o, state, source, storage),
        Err(text) => {
            state.wait(Ready::StorageClassNotReady, text);
            (state, Vec::new(), None)
        }
    }
}

fn run<I: Image>(
    o: &Observed<I>,
    mut state: State,
    source: From,
    storage: Choice,
) -> (State, Vec<Effect>, Option<i64>) {
    let job = Job {
        kind: I::SHORT,
        name: o.image.name_any(),
        uid: o.image.uid().unwrap_or_default(),
        generation: o.image.meta().generation.unwrap_or_default(),
        owner: owner_reference(&o.image),
        namespace: o.image.helper_namespace(),
        source,
        size: None,
        storage,
        version: o.version.clone(),
    };
    let (outcome, effects) = job.step(&o.helpers);
    state.class = Some(job.storage.class.clone());
    match outcome {
        Outcome::Clearing => {
            state.wait(
                Ready::ProvisioningNotStarted,
                "Remains of an earlier import are being removed.".into(),
            );
            (state, effects, None)
        }
        Outcome::Working { progress, message } => {
            let running =
                o.helpers.pods.iter().any(|pod| {
                    pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running")
                });
            state.provision(message);
            state.progress = progress;
            (state, effects, running.then_some(1))
        }
        Outcome::Refused(why) => {
            // Images of the cluster have no quota of their own to speak of (api.md A6).
            let quota = is_quota(&why) && I::DEVICE != BlockDeviceKind::ClusterVirtualImage;
            state.wait(if quota { Ready::QuotaExceeded } else { Ready::ProvisioningNotStarted }, why);
            (state, effects, None)
        }
        Outcome::Done(mut facts) => {
            // A copy keeps what is known about its origin: an ISO stays one.
            if let Some(format) = o.origin.as_ref().and_then(|origin| origin.format.clone()) {
                facts.format = format;
            }
            state.ready();
            state.facts = Some(facts);
            (state, Vec::new(), None)
        }
        Outcome::Failed(text) => {
            state.fail(text);
            (state, effects, None)
        }
    }
}

fn provisioned<I: Image>(o: &Observed<I>, old: &VirtualImageStatus, mut state: State) -> State {
    state.class = old.storage_class_name.clone();
    let phase = o.helpers.claim.as_ref().and_then(|claim| claim.status.as_ref()?.phase.clone());
    let is_there = o.helpers.claim.is_some() && phase.as_deref() != Some("Lost");
    if is_there && old.phase == Some(ImagePhase::Ready) {
        state.ready();
    } else if I::SHORT == "vi" {
        state.lost(ImagePhase::PVCLost, Ready::PVCLost);
    } else {
        state.lost(ImagePhase::ImageLost, Ready::ImageLost);
    }
    state
}

fn storage_condition<I: Image>(
    o: &Observed<I>,
    storage: &Result<Choice, String>,
) -> (StorageClassReady, String) {
    match storage {
        Err(text) => (StorageClassReady::NotFound, text.clone()),
        Ok(_) if o.image.is_on_claim() => (StorageClassReady::Ready, String::new()),
        Ok(choice) => {
            let text =
                format!("The platform keeps the image as a claim of the StorageClass {:?}.", choice.class);
            (StorageClassReady::DvcrTypeUsed, text)
        }
    }
}

type NotYet = (Ready, String);

fn datasource<I: Image>(o: &Observed<I>) -> ((DatasourceReady, String), Result<From, NotYet>) {
    let source = o.image.source();
    let fine = (DatasourceReady::Ready, String::new());
    match source.type_ {
        DataSourceType::HTTP => match &source.http {
            Some(http) => (fine, Ok(From::Http(http.clone()))),
            None => (fine, Err((Ready::DatasourceNotReady, "The data source has no URL.".to_owned()))),
        },
        DataSourceType::ContainerImage | DataSourceType::Upload => {
            let text = format!(
                "Data sources of type {} are not available yet: use HTTP or ObjectRef.",
                source.type_
            );
            (fine, Err((Ready::ProvisioningNotStarted, text)))
        }
        DataSourceType::ObjectRef => from_object(o),
    }
}

fn from_object<I: Image>(o: &Observed<I>) -> ((DatasourceReady, String), Result<From, NotYet>) {
    let reference = o.image.source().object_ref.clone().unwrap_or_default();
    let (kind, name) = (reference.kind, reference.name);
    let not = |reason: DatasourceReady, text: String| {
        ((reason, text.clone()), Err((Ready::DatasourceNotReady, text)))
    };
    let not_ready = match kind {
        ObjectRefKind::VirtualImage => DatasourceReady::ImageNotReady,
        ObjectRefKind::ClusterVirtualImage => DatasourceReady::ClusterImageNotReady,
        ObjectRefKind::VirtualDisk => DatasourceReady::VirtualDiskNotReady,
        ObjectRefKind::VirtualDiskSnapshot => {
            let text = "Data sources of kind VirtualDiskSnapshot are not available yet.".to_owned();
            return not(DatasourceReady::VirtualDiskSnapshotNotReady, text);
        }
    };
    let Some(origin) = &o.origin else { return not(not_ready, format!("{kind} {name:?} was not found.")) };
    if let Some(vm) = &origin.in_use_by {
        let text = format!("{kind} {name:?} is attached to VirtualMachine {vm:?}: stop it first.");
        return not(DatasourceReady::VirtualDiskAttachedToVirtualMachine, text);
    }
    if !origin.ready {
        return not(not_ready, format!("{kind} {name:?} is not ready."));
    }
    if !origin.reserved {
        let text = format!("{kind} {name:?} is being reserved for the image.");
        return not(DatasourceReady::VirtualDiskNotReadyForUse, text);
    }
    let reachable = origin.namespace == o.image.helper_namespace()
        || (kind == ObjectRefKind::ClusterVirtualImage && o.image.namespace().is_some());
    if !reachable {
        let text = format!("Copying {kind} {name:?} across namespaces is not available yet.");
        return not(not_ready, text);
    }
    let source = From::Claim { claim: origin.claim.clone(), bytes: origin.bytes.unwrap_or_default() };
    ((DatasourceReady::Ready, String::new()), Ok(source))
}

fn events<I: Image>(plan: &mut Plan, o: &Observed<I>, old: &VirtualImageStatus, state: &State) {
    let changed = old.observed_generation.is_some() && old.observed_generation != o.image.meta().generation;
    if changed && matches!(old.phase, Some(ImagePhase::Provisioning | ImagePhase::Failed)) {
        let reason = format!("{}SpecHasBeenChanged", I::kind(&()));
        let message = "The spec has been changed: the import starts from zero.";
        plan.then(Effect::event(&o.image, NoteKind::Normal, reason, message));
    }
    if state.phase == ImagePhase::Failed && old.phase != Some(ImagePhase::Failed) {
        plan.then(Effect::event(&o.image, NoteKind::Warning, "ProvisioningFailed", state.message.clone()));
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
