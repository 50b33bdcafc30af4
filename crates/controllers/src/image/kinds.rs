//! What the two kinds of image differ in.

use holdfast_api::cvi::ClusterVirtualImageStatus;
use holdfast_api::names::{PLATFORM_NAMESPACE, finalizer};
use holdfast_api::source::{DataSource, ObjectRefKind};
use holdfast_api::vi::VirtualImageStatus;
use holdfast_api::vm::BlockDeviceKind;
use holdfast_api::{ClusterVirtualImage, VirtualImage, VirtualMachine};
use holdfast_reconcile::{Key, Patch};
use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// An image of either kind. Its status is worked on in the form of a VirtualImage's.
pub trait Image:
    Resource<DynamicType = ()>
    + ResourceExt
    + Clone
    + std::fmt::Debug
    + DeserializeOwned
    + Serialize
    + Send
    + Sync
    + 'static
{
    /// `vi` or `cvi`: part of names, and the controller's name.
    const SHORT: &'static str;
    /// Kind of block device it is.
    const DEVICE: BlockDeviceKind;
    /// Finalizer kept until the data is removed.
    const CLEANUP: &'static str;
    /// Finalizer kept while a VM lists it.
    const PROTECTION: &'static str;

    /// Its source.
    fn source(&self) -> &DataSource;
    /// The storage class wanted.
    fn wanted_class(&self) -> Option<String>;
    /// Whether the user asked for a claim (else for the platform's store).
    fn is_on_claim(&self) -> bool;
    /// Its status.
    fn view(&self) -> Option<VirtualImageStatus>;
    /// Change of its status to `new`.
    fn patch(&self, new: &VirtualImageStatus) -> Option<Patch>;
    /// Namespace of its claim and importer pods.
    fn helper_namespace(&self) -> String;
    /// Keys of the images that a VM lists.
    fn named_by_vm(vm: &VirtualMachine) -> Vec<Key>;
    /// Key of the image that a source in `namespace` names.
    fn named_by_source(source: &DataSource, namespace: Option<String>) -> Option<Key>;
}

/// Names of devices of a kind that a VM's spec or status lists.
fn listed(vm: &VirtualMachine, kind: BlockDeviceKind) -> Vec<String> {
    let spec = vm.spec.block_device_refs.iter().map(|device| (device.kind, device.name.clone()));
    let status = vm.status.iter().flat_map(|status| &status.block_device_refs);
    let status = status.map(|device| (device.kind, device.name.clone()));
    spec.chain(status).filter(|(known, _)| *known == kind).map(|(_, name)| name).collect()
}

impl Image for VirtualImage {
    const SHORT: &'static str = "vi";
    const DEVICE: BlockDeviceKind = BlockDeviceKind::VirtualImage;
    const CLEANUP: &'static str = finalizer::VI_CLEANUP;
    const PROTECTION: &'static str = finalizer::VI_PROTECTION;

    fn source(&self) -> &DataSource {
        &self.spec.data_source
    }

    fn wanted_class(&self) -> Option<String> {
        self.spec.persistent_volume_claim.as_ref().filter(|_| self.is_on_claim())?.storage_class_name.clone()
    }

    fn is_on_claim(&self) -> bool {
        use holdfast_api::vi::ImageStorage;
        match self.spec.storage {
            ImageStorage::PersistentVolumeClaim | ImageStorage::Kubernetes => true,
            ImageStorage::ContainerRegistry => false,
        }
    }

    fn view(&self) -> Option<VirtualImageStatus> {
        self.status.clone()
    }

    fn patch(&self, new: &VirtualImageStatus) -> Option<Patch> {
        Patch::status(self, self.status.as_ref(), new)
    }

    fn helper_namespace(&self) -> String {
        self.namespace().unwrap_or_default()
    }

    fn named_by_vm(vm: &VirtualMachine) -> Vec<Key> {
        let namespace = vm.namespace().unwrap_or_default();
        listed(vm, Self::DEVICE).into_iter().map(|name| Key::new(&namespace, name)).collect()
    }

    fn named_by_source(source: &DataSource, namespace: Option<String>) -> Option<Key> {
        let reference = source.object_ref.as_ref().filter(|r| r.kind == ObjectRefKind::VirtualImage)?;
        Some(Key::new(reference.namespace.clone().or(namespace)?, &reference.name))
    }
}

impl Image for ClusterVirtualImage {
    const SHORT: &'static str = "cvi";
    const DEVICE: BlockDeviceKind = BlockDeviceKind::ClusterVirtualImage;
    const CLEANUP: &'static str = finalizer::CVI_CLEANUP;
    const PROTECTION: &'static str = finalizer::CVI_PROTECTION;

    fn source(&self) -> &DataSource {
        &self.spec.data_source
    }

    fn wanted_class(&self) -> Option<String> {
        None
    }

    fn is_on_claim(&self) -> bool {
        false
    }

    fn view(&self) -> Option<VirtualImageStatus> {
        let status = self.status.clone()?;
        Some(VirtualImageStatus {
            phase: status.phase,
            format: status.format,
            cdrom: status.cdrom,
            size: status.size,
            progress: status.progress,
            download_speed: status.download_speed,
            image_upload_urls: status.image_upload_urls,
            upload_command: status.upload_command,
            target: status.target,
            storage_class_name: None,
            source_uid: status.source_uid,
            conditions: status.conditions,
            observed_generation: status.observed_generation,
        })
    }

    fn patch(&self, new: &VirtualImageStatus) -> Option<Patch> {
        let new = new.clone();
        let new = ClusterVirtualImageStatus {
            phase: new.phase,
            format: new.format,
            cdrom: new.cdrom,
            size: new.size,
            progress: new.progress,
            download_speed: new.download_speed,
            image_upload_urls: new.image_upload_urls,
            upload_command: new.upload_command,
            target: new.target,
            source_uid: new.source_uid,
            conditions: new.conditions,
            observed_generation: new.observed_generation,
        };
        Patch::status(self, self.status.as_ref(), &new)
    }

    fn helper_namespace(&self) -> String {
        PLATFORM_NAMESPACE.to_owned()
    }

    fn named_by_vm(vm: &VirtualMachine) -> Vec<Key> {
        listed(vm, Self::DEVICE).into_iter().map(Key::cluster).collect()
    }

    fn named_by_source(source: &DataSource, _: Option<String>) -> Option<Key> {
        let reference =
            source.object_ref.as_ref().filter(|r| r.kind == ObjectRefKind::ClusterVirtualImage)?;
        Some(Key::cluster(&reference.name))
    }
}
