//! Block devices of a VM: what each reference resolves to, and whether all may be used
//! (vm-lifecycle.md §7.5, §7.6).

use holdfast_api::condition::is_current_true;
use holdfast_api::engine::{Disk, Instance, InstanceState};
use holdfast_api::vd::VdPhase;
use holdfast_api::vi::ImagePhase;
use holdfast_api::vm::conditions::BlockDevicesReady;
use holdfast_api::vm::{BlockDeviceKind, BlockDeviceRef};
use holdfast_api::{ClusterVirtualImage, VirtualDisk, VirtualImage};
use holdfast_domain::identity;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;

use crate::unready;

/// Most devices of a VM.
pub const DEVICES_MAX: usize = 16;

/// What a reference resolves to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Device {
    /// The reference.
    pub reference: BlockDeviceRef,
    /// Uid of the object; empty if it is not there.
    pub uid: String,
    /// Its data can be used.
    pub ready: bool,
    /// If it is not ready: why, see [`crate::unready::why`].
    pub why: String,
    /// It only waits for a VM to be placed.
    pub waits_for_consumer: bool,
    /// The claim that holds it.
    pub claim: Option<String>,
    /// Class of the claim.
    pub storage_class: Option<String>,
    /// The claim can be mounted on two nodes.
    pub shared: bool,
    /// An ISO image.
    pub cdrom: bool,
    /// Size for the status; empty if unknown.
    pub size: String,
    /// Who or what keeps it from this VM: the end of a sentence.
    pub taken_by: Option<String>,
}

impl Device {
    fn absent(reference: &BlockDeviceRef) -> Self {
        Self { reference: reference.clone(), why: "is not there".to_owned(), ..Self::default() }
    }

    /// A disk of the namespace.
    #[must_use]
    pub fn of_disk(reference: &BlockDeviceRef, disk: Option<&VirtualDisk>, vm: &str) -> Self {
        let mut device = Self::absent(reference);
        let Some(disk) = disk else { return device };
        let status = disk.status.clone().unwrap_or_default();
        device.why =
            unready::why(status.phase, &status.conditions, disk.metadata.deletion_timestamp.as_ref());
        device.uid = disk.metadata.uid.clone().unwrap_or_default();
        device.claim = status.target.and_then(|target| target.persistent_volume_claim_name);
        device.waits_for_consumer = status.phase == Some(VdPhase::WaitForFirstConsumer);
        let generation = disk.metadata.generation.unwrap_or_default();
        let ready =
            is_current_true(&status.conditions, "Ready", generation) || status.phase == Some(VdPhase::Ready);
        device.ready = ready && device.claim.is_some();
        device.size = status.capacity.unwrap_or_default();
        let other = status.attached_to_virtual_machines.iter().find(|by| by.mounted && by.name != vm);
        device.taken_by = other.map(|other| in_use_by(&other.name));
        let in_use = holdfast_api::condition::find(&status.conditions, "InUse");
        if in_use.is_some_and(|c| c.status == "True" && c.reason == "UsedForImageCreation") {
            device.taken_by = Some("in use for image creation".to_owned());
        }
        device
    }

    /// An image of the namespace.
    #[must_use]
    pub fn of_image(reference: &BlockDeviceRef, image: Option<&VirtualImage>) -> Self {
        let mut device = Self::absent(reference);
        let Some(image) = image else { return device };
        let status = image.status.clone().unwrap_or_default();
        device.why =
            unready::why(status.phase, &status.conditions, image.metadata.deletion_timestamp.as_ref());
        device.uid = image.metadata.uid.clone().unwrap_or_default();
        device.claim = status.target.and_then(|target| target.persistent_volume_claim_name);
        device.ready = status.phase == Some(ImagePhase::Ready) && device.claim.is_some();
        device.cdrom = status.cdrom.unwrap_or_default();
        device.size = status.size.and_then(|size| size.unpacked).unwrap_or_default();
        device
    }

    /// An image of the cluster. Pods mount claims of their own namespace only: the image's controller
    /// shows it there under a claim of the same name as its own ([`Self::with_claim`] waits for it).
    #[must_use]
    pub fn of_cluster_image(reference: &BlockDeviceRef, image: Option<&ClusterVirtualImage>) -> Self {
        let mut device = Self::absent(reference);
        let Some(image) = image else { return device };
        let status = image.status.clone().unwrap_or_default();
        device.why =
            unready::why(status.phase, &status.conditions, image.metadata.deletion_timestamp.as_ref());
        device.uid = image.metadata.uid.clone().unwrap_or_default();
        device.claim = status.target.and_then(|target| target.persistent_volume_claim_name);
        device.ready = status.phase == Some(ImagePhase::Ready) && device.claim.is_some();
        device.cdrom = status.cdrom.unwrap_or_default();
        device.size = status.size.and_then(|size| size.unpacked).unwrap_or_default();
        device
    }

    /// Takes over what the claim says.
    #[must_use]
    pub fn with_claim(mut self, claim: Option<&PersistentVolumeClaim>) -> Self {
        self.storage_class = claim.and_then(storage_class);
        self.shared = claim.is_some_and(|claim| is_shared(claim, self.is_read_only()));
        if self.reference.kind == BlockDeviceKind::ClusterVirtualImage && claim.is_none() {
            self.ready = false;
        }
        self
    }

    /// Takes over whether another VM's Instance holds the disk (INV-2).
    #[must_use]
    pub fn with_rivals<'i>(mut self, vm: &str, instances: impl IntoIterator<Item = &'i Instance>) -> Self {
        if self.is_read_only() {
            return self;
        }
        let held =
            instances.into_iter().find(|instance| {
                instance.metadata.name.as_deref() != Some(vm)
                    && !has_ended(instance)
                    && instance.spec.hardware.disks.iter().any(|disk| {
                        disk.kind == self.reference.kind.as_str() && disk.name == self.reference.name
                    })
            });
        if let Some(rival) = held {
            self.taken_by = Some(in_use_by(rival.metadata.name.as_deref().unwrap_or_default()));
        }
        self
    }

    fn is_read_only(&self) -> bool {
        self.reference.kind != BlockDeviceKind::VirtualDisk
    }

    fn usable(&self) -> bool {
        self.ready && self.taken_by.is_none()
    }

    /// Name of the device inside Instance, pod and QEMU.
    #[must_use]
    pub fn id(&self) -> String {
        let prefix = match self.reference.kind {
            BlockDeviceKind::VirtualDisk => "vd",
            BlockDeviceKind::VirtualImage => "vi",
            BlockDeviceKind::ClusterVirtualImage => "cvi",
        };
        format!("{prefix}-{}", self.reference.name)
    }

    /// The device as the Instance has it; `index` is its place in the VM's list.
    #[must_use]
    pub fn to_disk(&self, index: usize) -> Disk {
        let index = i32::try_from(index).unwrap_or(i32::MAX);
        Disk {
            id: self.id(),
            kind: self.reference.kind.as_str().to_owned(),
            name: self.reference.name.clone(),
            claim: self.claim.clone().unwrap_or_default(),
            claim_namespace: None,
            serial: identity::disk_serial(&self.uid),
            scsi_id: index,
            boot_index: index + 1,
            read_only: self.is_read_only(),
            cdrom: self.cdrom,
            shared: self.shared,
        }
    }
}

fn in_use_by(vm: &str) -> String {
    format!("in use by another VM ({vm})")
}

/// Class of a claim.
#[must_use]
pub fn storage_class(claim: &PersistentVolumeClaim) -> Option<String> {
    claim.spec.as_ref()?.storage_class_name.clone()
}

/// Whether a claim can be mounted on two nodes.
#[must_use]
pub fn is_shared(claim: &PersistentVolumeClaim, read_only: bool) -> bool {
    let modes = claim.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default();
    modes.iter().any(|mode| mode == "ReadWriteMany" || (read_only && mode == "ReadOnlyMany"))
}

/// The Instance is over for its present epoch.
#[must_use]
pub fn has_ended(instance: &Instance) -> bool {
    instance.status.as_ref().is_some_and(|status| {
        status.state == Some(InstanceState::Ended) && status.observed_epoch == instance.spec.epoch
    })
}

/// The condition `BlockDevicesReady` and its message; first hit wins.
#[must_use]
pub fn readiness(devices: &[Device]) -> (BlockDevicesReady, String) {
    let all = devices.len();
    if all > DEVICES_MAX {
        let text = format!("Cannot attach {all} block devices ({DEVICES_MAX} is maximum) to the VM.");
        return (BlockDevicesReady::LimitExceeded, text);
    }
    let waiting: Vec<&Device> = devices.iter().filter(|device| !device.ready).collect();
    if !waiting.is_empty() {
        let ready = all - waiting.len();
        let text = match waiting.as_slice() {
            [one] if all == 1 => {
                let BlockDeviceRef { kind, name } = &one.reference;
                format!("Waiting for block device {name:?} to be ready: the {kind} {}.", one.why)
            }
            _ => {
                let names: Vec<_> =
                    waiting.iter().map(|one| format!("{:?} {}", one.reference.name, one.why)).collect();
                format!("Waiting for block devices to be ready: {ready}/{all} ({}).", names.join(", "))
            }
        };
        let first_consumer = waiting.iter().all(|device| device.waits_for_consumer && device.claim.is_some());
        return match first_consumer {
            true => (
                BlockDevicesReady::WaitingForFirstConsumer,
                format!("{text} They are provisioned once the VM is placed."),
            ),
            false => (BlockDevicesReady::NotReady, text),
        };
    }
    let taken: Vec<&Device> = devices.iter().filter(|device| !device.usable()).collect();
    if taken.is_empty() {
        return (BlockDevicesReady::Ready, String::new());
    }
    let reasons: Vec<String> = taken
        .iter()
        .map(|device| {
            let by = device.taken_by.as_deref().unwrap_or("not usable");
            format!("Virtual disk {:?} is {by}", device.reference.name)
        })
        .collect();
    let reasons = reasons.join("; ");
    let text = match all {
        1 => format!("{reasons}."),
        _ => format!("Waiting for block devices to be ready to use: {}/{all}; {reasons}.", all - taken.len()),
    };
    (BlockDevicesReady::NotReady, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_api::vd::{AttachedVm, DiskTarget, VirtualDiskStatus};

    fn reference(name: &str) -> BlockDeviceRef {
        BlockDeviceRef { kind: BlockDeviceKind::VirtualDisk, name: name.into() }
    }

    fn disk(phase: VdPhase, claim: bool) -> VirtualDisk {
        let mut disk = VirtualDisk::default();
        disk.metadata.uid = Some("u".into());
        disk.status = Some(VirtualDiskStatus {
            phase: Some(phase),
            target: claim.then(|| DiskTarget { persistent_volume_claim_name: Some("c".into()) }),
            ..VirtualDiskStatus::default()
        });
        disk
    }

    fn of(name: &str, disk: Option<&VirtualDisk>) -> Device {
        Device::of_disk(&reference(name), disk, "web")
    }

    #[test]
    fn the_table_of_the_spec() {
        let (ready, pending) = (disk(VdPhase::Ready, true), disk(VdPhase::Provisioning, true));
        let first = disk(VdPhase::WaitForFirstConsumer, true);
        let mut mounted = disk(VdPhase::Ready, true);
        mounted.status.as_mut().unwrap().attached_to_virtual_machines =
            vec![AttachedVm { name: "other".into(), mounted: true }];
        for (devices, want, text) in [
            (vec![of("a", Some(&ready))], BlockDevicesReady::Ready, ""),
            (
                vec![of("a", None)],
                BlockDevicesReady::NotReady,
                "Waiting for block device \"a\" to be ready: the VirtualDisk is not there.",
            ),
            (
                vec![of("a", Some(&ready)), of("b", Some(&pending))],
                BlockDevicesReady::NotReady,
                "Waiting for block devices to be ready: 1/2 (\"b\" is Provisioning).",
            ),
            (
                vec![of("a", Some(&first))],
                BlockDevicesReady::WaitingForFirstConsumer,
                "once the VM is placed",
            ),
            (
                vec![of("a", Some(&mounted))],
                BlockDevicesReady::NotReady,
                "Virtual disk \"a\" is in use by another VM (other).",
            ),
            (vec![of("a", Some(&ready)); 17], BlockDevicesReady::LimitExceeded, "16 is maximum"),
        ] {
            let (condition, message) = readiness(&devices);
            assert_eq!(condition, want, "{message}");
            assert!(message.contains(text), "{message}");
        }
    }

    // INV-2
    #[test]
    fn a_disk_held_by_another_instance_is_taken_until_that_has_ended() {
        let ready = disk(VdPhase::Ready, true);
        let mut other = Instance::default();
        other.metadata.name = Some("other".into());
        other.spec.epoch = 2;
        other.spec.hardware.disks = vec![of("a", Some(&ready)).to_disk(0)];
        assert!(of("a", Some(&ready)).with_rivals("web", [&other]).taken_by.is_some());
        assert!(of("b", Some(&ready)).with_rivals("web", [&other]).taken_by.is_none());
        let status = other.status.get_or_insert_default();
        status.state = Some(InstanceState::Ended);
        status.observed_epoch = 1;
        assert!(of("a", Some(&ready)).with_rivals("web", [&other]).taken_by.is_some(), "another epoch ended");
        other.status.as_mut().unwrap().observed_epoch = 2;
        assert!(of("a", Some(&ready)).with_rivals("web", [&other]).taken_by.is_none());
    }

    #[test]
    fn the_instance_gets_serial_boot_order_and_claim() {
        let disk = of("root", Some(&disk(VdPhase::Ready, true))).to_disk(1);
        assert_eq!((disk.id.as_str(), disk.claim.as_str(), disk.boot_index), ("vd-root", "c", 2));
        assert_eq!(disk.serial.len(), 32);
    }
}
