//! From the state of a disk to its status. Pure.

use holdfast_api::Quantity;
use holdfast_api::names::claim_name;
use holdfast_api::vd::{
    AttachedVm, CreationDuration, DatasourceReady, DiskStats, DiskTarget, InUse, Ready, Resizing,
    StorageClassReady, VdPhase, VirtualDiskStatus,
};
use holdfast_reconcile::Conditions;
use kube::ResourceExt as _;

use super::plan::Observed;
use crate::import::Standing;
use crate::import::progress::{duration, percent, speed};

/// Where a disk stands.
pub type State = Standing<VdPhase, Ready, DatasourceReady, StorageClassReady>;

/// The status of a disk that lives.
pub(super) fn of(o: &Observed, old: &VirtualDiskStatus, state: &State) -> VirtualDiskStatus {
    let attached = attached(o, old);
    let mut conditions = Conditions::carry(&old.conditions, o.disk.metadata.generation, o.now);
    conditions.is(state.datasource.0, state.datasource.1.clone());
    conditions.is(state.storage.0, state.storage.1.clone());
    conditions.is(state.ready, state.message.clone());
    in_use(&mut conditions, o, &attached);
    let has_volume = !matches!(state.phase, VdPhase::Pending | VdPhase::Failed);
    let capacity = capacity(o).or_else(|| old.capacity.clone()).filter(|_| has_volume);
    if let Some(text) = growth_refused(o, state) {
        conditions.is(Resizing::NotAvailable, text);
    }
    let settled = matches!(state.phase, VdPhase::Ready | VdPhase::PVCLost);
    VirtualDiskStatus {
        phase: Some(state.phase),
        capacity,
        progress: match state.phase {
            VdPhase::Provisioning if shows_progress(o) => Some(percent(state.progress.as_ref())),
            VdPhase::Ready | VdPhase::PVCLost => Some("100%".to_owned()),
            _ => None,
        },
        download_speed: state.progress.as_ref().filter(|p| p.transferred_bytes > 0).map(speed),
        target: (settled || o.helpers.claim.is_some()).then(|| DiskTarget {
            persistent_volume_claim_name: Some(claim_name(
                "vd",
                &o.disk.name_any(),
                &o.disk.uid().unwrap_or_default(),
            )),
        }),
        storage_class_name: state.class.clone().or_else(|| old.storage_class_name.clone()),
        source_uid: old
            .source_uid
            .clone()
            .filter(|_| settled)
            .or_else(|| o.source_image.as_ref().map(|i| i.uid.clone())),
        attached_to_virtual_machines: attached,
        stats: stats(o, old, state),
        conditions: conditions.finish(),
        observed_generation: o.disk.metadata.generation,
        ..VirtualDiskStatus::default()
    }
}

/// The status of a disk being deleted: everything stays, the phase and the users are true.
pub(super) fn terminating(o: &Observed, old: &VirtualDiskStatus) -> VirtualDiskStatus {
    let attached = attached(o, old);
    let mut conditions = Conditions::carry(&old.conditions, o.disk.metadata.generation, o.now);
    conditions.keep("DatasourceReady").keep("StorageClassReady").keep("Ready");
    in_use(&mut conditions, o, &attached);
    VirtualDiskStatus {
        phase: Some(VdPhase::Terminating),
        attached_to_virtual_machines: attached,
        conditions: conditions.finish(),
        observed_generation: o.disk.metadata.generation,
        ..old.clone()
    }
}

/// A blank disk has no import to watch.
fn shows_progress(o: &Observed) -> bool {
    o.disk.spec.data_source.is_some()
}

/// Capacity of the bound claim.
fn capacity(o: &Observed) -> Option<String> {
    let capacity = o.helpers.claim.as_ref()?.status.as_ref()?.capacity.as_ref()?;
    capacity.get("storage").map(|quantity| quantity.0.clone())
}

/// VMs that list the disk; at most one mounts it: the one that has it, else the one that had it,
/// else the first.
fn attached(o: &Observed, old: &VirtualDiskStatus) -> Vec<AttachedVm> {
    let holder = |vm: &str| old.attached_to_virtual_machines.iter().any(|a| a.name == vm && a.mounted);
    let mounts = || o.uses.iter().filter(|use_| use_.mounts);
    let mounter = mounts()
        .find(|use_| use_.attached)
        .or_else(|| mounts().find(|use_| holder(&use_.vm)))
        .or_else(|| mounts().next())
        .map(|use_| use_.vm.clone());
    o.uses
        .iter()
        .map(|use_| AttachedVm { name: use_.vm.clone(), mounted: Some(&use_.vm) == mounter.as_ref() })
        .collect()
}

fn in_use(conditions: &mut Conditions<'_>, o: &Observed, attached: &[AttachedVm]) {
    if let Some(vm) = attached.iter().find(|vm| vm.mounted) {
        conditions.is(InUse::AttachedToVirtualMachine, format!("VirtualMachine {:?} has the disk.", vm.name));
    } else if let Some(image) = o.feeds.first() {
        conditions.is(InUse::UsedForImageCreation, format!("{image} is being made from the disk."));
    } else {
        conditions.is(InUse::NotInUse, "");
    }
}

/// Text if the spec asks for more than the disk has.
fn growth_refused(o: &Observed, state: &State) -> Option<String> {
    if state.phase != VdPhase::Ready {
        return None;
    }
    let wanted = o.disk.spec.persistent_volume_claim.as_ref()?.size.as_ref()?;
    let has = Quantity(capacity(o)?);
    (wanted.value().ok()? > has.value().ok()?)
        .then(|| format!("Growing a disk is not available yet: {wanted} is wanted, the disk has {has}."))
}

fn stats(o: &Observed, old: &VirtualDiskStatus, state: &State) -> Option<DiskStats> {
    let born = o.disk.metadata.creation_timestamp.as_ref()?.0;
    let mut known = old.stats.clone().and_then(|stats| stats.creation_duration).unwrap_or_default();
    match state.phase {
        VdPhase::Provisioning if known.waiting_for_dependencies.is_none() => {
            known.waiting_for_dependencies = Some(duration(born, o.now));
        }
        VdPhase::Ready if known.total_provisioning.is_none() => {
            known.total_provisioning = Some(duration(born, o.now));
        }
        _ => (),
    }
    (known != CreationDuration::default()).then_some(DiskStats { creation_duration: Some(known) })
}
