//! The machine of an image. Pure.

use holdfast_api::VirtualDisk;
use holdfast_api::condition;
use holdfast_api::import::Facts;
use holdfast_api::names::claim_name;
use holdfast_api::source::{DataSourceType, ObjectRefKind};
use holdfast_api::vd::VdPhase;
use holdfast_api::vi::{DatasourceReady, ImagePhase, Ready, StorageClassReady, VirtualImageStatus};
use holdfast_api::vm::BlockDeviceKind;
use holdfast_domain::refusal::is_quota;
use holdfast_env::Timestamp;
use holdfast_reconcile::{Effect, NoteKind, Patch, Plan, owner_reference};
use jiff::SignedDuration;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt as _;

use super::kinds::Image;
use super::status::{self, State};
use super::views::Views;
use crate::import::storage_class::{self, Choice};
use crate::import::{CLEARING, From, Helpers, Job, Outcome, not_available, remove, remove_pods};
use crate::unready;
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
    /// If it is not ready: why, see [`crate::unready::why`].
    pub why: String,
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
            why: unready::why(status.phase, &status.conditions, image.meta().deletion_timestamp.as_ref()),
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
            why: unready::why(status.phase, &status.conditions, disk.metadata.deletion_timestamp.as_ref()),
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
    let Step { state, facts, effects, wake_s } = advance(o, &old);
    let new = status::of(o, &old, &state, facts.as_ref());
    if let Some(patch) = Patch::protect(&o.image, I::CLEANUP, I::PROTECTION, !o.uses.is_empty()) {
        plan.then(patch);
    }
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
    if o.helpers.is_gone() {
        plan.because("data and helpers are gone");
        if let Some(patch) = Patch::remove_finalizer(&o.image, I::CLEANUP) {
            plan.then(patch);
        }
    }
    plan
}

/// State of an image that lives, what is known about its data, what to do, and when to look again.
struct Step {
    state: State,
    facts: Option<Facts>,
    effects: Vec<Effect>,
    wake_s: Option<i64>,
}

impl Step {
    fn then(state: State, effects: Vec<Effect>) -> Self {
        Self { state, facts: None, effects, wake_s: None }
    }
}

fn advance<I: Image>(o: &Observed<I>, old: &VirtualImageStatus) -> Step {
    let wanted = o.helpers.class().or_else(|| o.image.wanted_class());
    let storage = storage_class::choose(&o.classes, wanted.as_deref());
    let (datasource, source) = datasource(o);
    let mut state = State::new(
        ImagePhase::Pending,
        Ready::ProvisioningNotStarted,
        datasource,
        storage_condition(o, &storage),
    );
    if matches!(old.phase, Some(ImagePhase::Ready | ImagePhase::PVCLost | ImagePhase::ImageLost)) {
        return Step::then(provisioned(o, old, state), remove_pods(&o.helpers));
    }
    if old.phase == Some(ImagePhase::Failed) && old.observed_generation == o.image.meta().generation {
        let text = condition::find(&old.conditions, "Ready").map(|c| c.message.clone());
        state.be(ImagePhase::Failed, Ready::ProvisioningFailed, text.unwrap_or_default());
        return Step::then(state, remove(&o.helpers));
    }
    let source = match source {
        Ok(source) => source,
        Err((ready, text)) => {
            state.be(ImagePhase::Pending, ready, text);
            return Step::then(state, Vec::new());
        }
    };
    match storage {
        Ok(storage) => run(o, state, source, storage),
        Err(text) => {
            state.be(ImagePhase::Pending, Ready::StorageClassNotReady, text);
            Step::then(state, Vec::new())
        }
    }
}

fn run<I: Image>(o: &Observed<I>, mut state: State, source: From, storage: Choice) -> Step {
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
            state.be(ImagePhase::Pending, Ready::ProvisioningNotStarted, CLEARING);
            Step::then(state, effects)
        }
        Outcome::Working { progress, message } => {
            state.be(ImagePhase::Provisioning, Ready::Provisioning, message);
            state.progress = progress;
            Step { wake_s: o.helpers.look_again_s(), ..Step::then(state, effects) }
        }
        Outcome::Refused(why) => {
            // Images of the cluster have no quota of their own to speak of (api.md A6).
            let quota = is_quota(&why) && I::DEVICE != BlockDeviceKind::ClusterVirtualImage;
            let reason = if quota { Ready::QuotaExceeded } else { Ready::ProvisioningNotStarted };
            state.be(ImagePhase::Pending, reason, why);
            Step::then(state, effects)
        }
        Outcome::Done(mut facts) => {
            // A copy keeps what is known about its origin: an ISO stays one.
            if let Some(format) = o.origin.as_ref().and_then(|origin| origin.format.clone()) {
                facts.format = format;
            }
            state.be(ImagePhase::Ready, Ready::Ready, "");
            Step { facts: Some(facts), ..Step::then(state, Vec::new()) }
        }
        Outcome::Failed(text) => {
            state.be(ImagePhase::Failed, Ready::ProvisioningFailed, text);
            Step::then(state, effects)
        }
    }
}

fn provisioned<I: Image>(o: &Observed<I>, old: &VirtualImageStatus, mut state: State) -> State {
    state.class = old.storage_class_name.clone();
    let (phase, ready) = match I::SHORT {
        _ if o.helpers.has_data() && old.phase == Some(ImagePhase::Ready) => {
            state.be(ImagePhase::Ready, Ready::Ready, "");
            return state;
        }
        "vi" => (ImagePhase::PVCLost, Ready::PVCLost),
        _ => (ImagePhase::ImageLost, Ready::ImageLost),
    };
    state.be(phase, ready, "The volume that holds the image is missing.");
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
            (fine, Err((Ready::ProvisioningNotStarted, not_available(source.type_))))
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
        return not(not_ready, format!("{kind} {name:?} is not ready: it {}.", origin.why));
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
