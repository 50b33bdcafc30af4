//! The machine of a disk. Pure.

use holdfast_api::VirtualDisk;
use holdfast_api::condition;
use holdfast_api::names::finalizer;
use holdfast_api::source::{DataSource, DataSourceType, ObjectRefKind};
use holdfast_api::vd::{DatasourceReady, Ready, StorageClassReady, VdPhase, VirtualDiskStatus};
use holdfast_api::vm::{BlockDeviceKind, VirtualMachine, VmPhase};
use holdfast_env::Timestamp;
use holdfast_reconcile::{Effect, NoteKind, Patch, Plan, owner_reference};
use jiff::SignedDuration;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt as _;

use super::status::{self, State};
use crate::import::storage_class::{self, Choice};
use crate::import::{
    CLEARING, From, Helpers, Job, Outcome, insufficient, not_available, remove, remove_pods,
};

/// What a disk depends on.
#[derive(Clone, Debug)]
pub struct Observed {
    /// Instant of the pass.
    pub now: Timestamp,
    /// The disk.
    pub disk: VirtualDisk,
    /// The image it is filled from, if that exists.
    pub source_image: Option<SourceImage>,
    /// VMs whose spec or status lists it, sorted by name.
    pub uses: Vec<Use>,
    /// Images being made from it, as `kind/name`.
    pub feeds: Vec<String>,
    /// All storage classes.
    pub classes: Vec<StorageClass>,
    /// Claim and importer pods.
    pub helpers: Helpers,
    /// Tag of the importer's image.
    pub version: String,
}

/// An image that a disk or image is filled from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SourceImage {
    /// Its uid.
    pub uid: String,
    /// Ready and not being deleted.
    pub ready: bool,
    /// If it is not ready: why, see [`crate::unready::why`].
    pub why: String,
    /// An ISO image.
    pub cdrom: bool,
    /// The claim that shows it in the consumer's namespace.
    pub claim: String,
    /// Size that the guest sees.
    pub bytes: Option<i64>,
}

/// A VM that lists a block device.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Use {
    /// Name of the VM.
    pub vm: String,
    /// Its instance has the device, or may have it at any moment (api.md A7.3).
    pub mounts: bool,
    /// Its instance reports the device.
    pub attached: bool,
}

impl Use {
    /// How a VM uses a device; `None` if neither its spec nor its status lists it.
    #[must_use]
    pub fn of(vm: &VirtualMachine, kind: BlockDeviceKind, name: &str) -> Option<Self> {
        let status = vm.status.clone().unwrap_or_default();
        let listed = status.block_device_refs.iter().find(|d| d.kind == kind && d.name == name);
        let wanted = vm.spec.block_device_refs.iter().any(|d| d.kind == kind && d.name == name);
        if listed.is_none() && !wanted {
            return None;
        }
        let runs = match status.phase {
            Some(VmPhase::Stopped) => {
                !status.virtual_machine_pods.is_empty() || !status.restart_awaiting_changes.is_empty()
            }
            None => false,
            Some(_) => true,
        };
        Some(Self {
            vm: vm.name_any(),
            mounts: listed.is_some() && runs,
            attached: listed.is_some_and(|device| device.attached),
        })
    }
}

/// Decides.
#[must_use]
pub fn plan(o: &Observed) -> Plan {
    if o.disk.metadata.deletion_timestamp.is_some() {
        return deletion(o);
    }
    let mut plan = Plan::default();
    let old = o.disk.status.clone().unwrap_or_default();
    let (state, effects, wake_s) = advance(o, &old);
    let new = status::of(o, &old, &state);
    let protected = !new.attached_to_virtual_machines.is_empty();
    if let Some(patch) = Patch::protect(&o.disk, finalizer::VD_CLEANUP, finalizer::VD_PROTECTION, protected) {
        plan.then(patch);
    }
    events(&mut plan, o, &old, &state);
    plan.set_status(&o.disk, o.disk.status.as_ref(), &new);
    plan.because(format!("{}: {}", new.phase.unwrap_or_default(), state.message));
    if let Some(seconds) = wake_s {
        plan.wake_at(o.now.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(o.now));
    }
    plan.effects.extend(effects);
    plan
}

/// Deletion: waits for users, then removes helpers and data, then lets go.
fn deletion(o: &Observed) -> Plan {
    let mut plan = Plan::default();
    let old = o.disk.status.clone().unwrap_or_default();
    let in_use = !o.uses.is_empty() || !o.feeds.is_empty();
    let new = status::terminating(o, &old);
    plan.set_status(&o.disk, o.disk.status.as_ref(), &new);
    if in_use {
        plan.because("deletion waits for the users of the disk");
        return plan;
    }
    if let Some(patch) = Patch::remove_finalizer(&o.disk, finalizer::VD_PROTECTION) {
        plan.because("nobody uses the disk any more");
        plan.then(patch);
        return plan;
    }
    plan.effects.extend(remove(&o.helpers));
    if o.helpers.is_gone() {
        plan.because("data and helpers are gone");
        if let Some(patch) = Patch::remove_finalizer(&o.disk, finalizer::VD_CLEANUP) {
            plan.then(patch);
        }
    } else {
        plan.because("data and helpers are being removed");
    }
    plan
}

/// State of a disk that lives, with what to do and when to look again (seconds).
fn advance(o: &Observed, old: &VirtualDiskStatus) -> (State, Vec<Effect>, Option<i64>) {
    let (datasource, source) = datasource(o);
    let storage = storage_class::choose(&o.classes, class_name(o).as_deref());
    let mut state =
        State::new(VdPhase::Pending, Ready::ProvisioningNotStarted, datasource, storage_condition(&storage));
    if was_provisioned(old) {
        return (provisioned(o, old, state), remove_pods(&o.helpers), None);
    }
    if old.phase == Some(VdPhase::Failed) && is_of_generation(o, old) {
        let text = condition::find(&old.conditions, "Ready").map(|c| c.message.clone());
        state.be(VdPhase::Failed, Ready::ProvisioningFailed, text.unwrap_or_default());
        return (state, remove(&o.helpers), None);
    }
    let source = match source {
        Ok(source) => source,
        Err((ready, text)) => {
            state.be(VdPhase::Pending, ready, text);
            return (state, Vec::new(), None);
        }
    };
    let storage = match storage {
        Ok(storage) => storage,
        Err(text) => {
            state.be(VdPhase::Pending, Ready::StorageClassIsNotReady, text);
            return (state, Vec::new(), None);
        }
    };
    if let Some(text) = unusable(o) {
        state.be(VdPhase::Failed, Ready::ProvisioningFailed, text);
        return (state, remove(&o.helpers), None);
    }
    run(o, state, source, storage)
}

fn run(o: &Observed, mut state: State, source: From, storage: Choice) -> (State, Vec<Effect>, Option<i64>) {
    let job = job(o, source, storage);
    let (outcome, effects) = job.step(&o.helpers);
    state.class = Some(job.storage.class.clone());
    match outcome {
        Outcome::Clearing => {
            state.be(VdPhase::Pending, Ready::ProvisioningNotStarted, CLEARING);
            (state, effects, None)
        }
        Outcome::Working { progress, message } => {
            state.be(VdPhase::Provisioning, Ready::Provisioning, message);
            state.progress = progress;
            (state, effects, o.helpers.look_again_s())
        }
        Outcome::Refused(why) => {
            let quota = holdfast_domain::refusal::is_quota(&why);
            let reason = if quota { Ready::QuotaExceeded } else { Ready::ProvisioningNotStarted };
            state.be(VdPhase::Pending, reason, why);
            (state, effects, None)
        }
        Outcome::Done(_) => {
            state.be(VdPhase::Ready, Ready::Ready, "");
            (state, Vec::new(), None)
        }
        Outcome::Failed(text) => {
            state.be(VdPhase::Failed, Ready::ProvisioningFailed, text);
            (state, effects, None)
        }
    }
}

fn job(o: &Observed, source: From, storage: Choice) -> Job {
    let size = o.disk.spec.persistent_volume_claim.as_ref().and_then(|claim| claim.size.as_ref());
    Job {
        kind: "vd",
        name: o.disk.name_any(),
        uid: o.disk.uid().unwrap_or_default(),
        generation: o.disk.metadata.generation.unwrap_or_default(),
        owner: owner_reference(&o.disk),
        namespace: o.disk.namespace().unwrap_or_default(),
        source,
        size: size.and_then(|size| size.value().ok()),
        storage,
        version: o.version.clone(),
    }
}

/// Class of the claim that exists, else the wanted one (vm-lifecycle.md §8.5).
fn class_name(o: &Observed) -> Option<String> {
    let wanted = || o.disk.spec.persistent_volume_claim.as_ref()?.storage_class_name.clone();
    o.helpers.class().or_else(wanted)
}

fn storage_condition(storage: &Result<Choice, String>) -> (StorageClassReady, String) {
    match storage {
        Ok(_) => (StorageClassReady::Ready, String::new()),
        Err(text) => (StorageClassReady::NotReady, text.clone()),
    }
}

fn was_provisioned(old: &VirtualDiskStatus) -> bool {
    matches!(old.phase, Some(VdPhase::Ready | VdPhase::Resizing | VdPhase::PVCLost))
}

fn is_of_generation(o: &Observed, old: &VirtualDiskStatus) -> bool {
    old.observed_generation == o.disk.metadata.generation
}

/// The data was complete before: is it still there?
fn provisioned(o: &Observed, old: &VirtualDiskStatus, mut state: State) -> State {
    state.class = old.storage_class_name.clone();
    if o.helpers.has_data() && old.phase != Some(VdPhase::PVCLost) {
        state.be(VdPhase::Ready, Ready::Ready, "");
    } else {
        let text = "The PersistentVolumeClaim of the disk or its volume is missing.";
        state.be(VdPhase::PVCLost, Ready::PVCLost, text);
    }
    state
}

type NotYet = (Ready, String);

/// `DatasourceReady`, and the source once it can be used.
fn datasource(o: &Observed) -> ((DatasourceReady, String), Result<From, NotYet>) {
    let fine = (DatasourceReady::Ready, String::new());
    let Some(source) = &o.disk.spec.data_source else { return (fine, Ok(From::Blank)) };
    match source.type_ {
        DataSourceType::HTTP => match &source.http {
            Some(http) => (fine, Ok(From::Http(http.clone()))),
            None => (fine, Err((Ready::DatasourceIsNotReady, "The data source has no URL.".to_owned()))),
        },
        DataSourceType::ContainerImage | DataSourceType::Upload => {
            (fine, Err((Ready::ProvisioningNotStarted, not_available(source.type_))))
        }
        DataSourceType::ObjectRef => from_object(o, source),
    }
}

fn from_object(o: &Observed, source: &DataSource) -> ((DatasourceReady, String), Result<From, NotYet>) {
    let reference = source.object_ref.clone().unwrap_or_default();
    let (missing, not_ready) = match reference.kind {
        ObjectRefKind::VirtualImage => (DatasourceReady::ImageNotFound, DatasourceReady::ImageNotReady),
        ObjectRefKind::ClusterVirtualImage => {
            (DatasourceReady::ClusterImageNotFound, DatasourceReady::ClusterImageNotReady)
        }
        ObjectRefKind::VirtualDisk | ObjectRefKind::VirtualDiskSnapshot => {
            let text = format!("Data sources of kind {} are not available yet.", reference.kind);
            let condition = (DatasourceReady::VirtualDiskSnapshot, text.clone());
            return (condition, Err((Ready::DatasourceIsNotReady, text)));
        }
    };
    let (kind, name) = (reference.kind, reference.name);
    match &o.source_image {
        None => {
            let text = format!("{kind} {name:?} was not found.");
            ((missing, text.clone()), Err((Ready::DatasourceIsNotFound, text)))
        }
        Some(image) if !image.ready => {
            let text = format!("{kind} {name:?} is not ready: it {}.", image.why);
            ((not_ready, text.clone()), Err((Ready::DatasourceIsNotReady, text)))
        }
        Some(image) => {
            let source = From::Claim { claim: image.claim.clone(), bytes: image.bytes.unwrap_or_default() };
            ((DatasourceReady::Ready, String::new()), Ok(source))
        }
    }
}

/// What makes a disk impossible although source and storage are there.
fn unusable(o: &Observed) -> Option<String> {
    let image = o.source_image.as_ref()?;
    if image.cdrom {
        return Some(
            "Creating a virtual disk from an ISO image is not supported: attach the image itself.".to_owned(),
        );
    }
    let size = o.disk.spec.persistent_volume_claim.as_ref()?.size.as_ref()?.value().ok()?;
    let needed = image.bytes?;
    (size < needed).then(|| insufficient(size, needed))
}

fn events(plan: &mut Plan, o: &Observed, old: &VirtualDiskStatus, state: &State) {
    let restarted = !was_provisioned(old)
        && old.observed_generation.is_some()
        && !is_of_generation(o, old)
        && matches!(old.phase, Some(VdPhase::Provisioning | VdPhase::Failed | VdPhase::WaitForFirstConsumer));
    if restarted {
        plan.then(Effect::event(
            &o.disk,
            NoteKind::Normal,
            "VirtualDiskSpecHasBeenChanged",
            "The spec has been changed: the import starts from zero.",
        ));
    }
    if state.phase == VdPhase::Failed && old.phase != Some(VdPhase::Failed) {
        plan.then(Effect::event(&o.disk, NoteKind::Warning, "ProvisioningFailed", state.message.clone()));
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
