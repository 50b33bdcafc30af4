//! Images of a namespace (vi) and of the cluster (cvi): one machine for both, since they differ in
//! where their claim lives only (vm-lifecycle.md §8.7, api.md A8, A9). Start at `plan.rs`.
//!
//! There is no registry: an image is a claim holding `disk.img`; that of a cluster image lies in the
//! platform namespace and is shown in every namespace that uses it (`views.rs`).

mod kinds;
mod plan;
mod status;
mod views;

use std::sync::Arc;

use holdfast_api::names::{PLATFORM_NAMESPACE, claim_name};
use holdfast_api::source::{DataSource, ObjectRefKind};
use holdfast_api::vm::BlockDeviceKind;
use holdfast_api::{ClusterVirtualImage, VirtualDisk, VirtualImage, VirtualMachine};
use holdfast_reconcile::{
    Answers, Cache, Caches, Controller, Error, Index, Key, Pass, Plan, Watches, controller_of,
};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt as _;

use crate::vd::{Use, helpers};
use crate::{Config, indexes};

pub use kinds::Image;
pub use plan::{Observed, Origin};

/// The controller of one kind of image; key = namespace (empty for cvi) and name.
#[derive(Debug)]
pub struct ImageController<I: Image> {
    own: Arc<Cache<I>>,
    images: Arc<Cache<VirtualImage>>,
    cluster_images: Arc<Cache<ClusterVirtualImage>>,
    disks: Arc<Cache<VirtualDisk>>,
    vms: Arc<Cache<VirtualMachine>>,
    claims: Arc<Cache<PersistentVolumeClaim>>,
    volumes: Arc<Cache<PersistentVolume>>,
    pods: Arc<Cache<Pod>>,
    classes: Arc<Cache<StorageClass>>,
    creations: Arc<Answers>,
    vms_by_device: Index<VirtualMachine>,
    disks_by_source: Index<VirtualDisk>,
    owned_volumes: Index<PersistentVolume>,
    owned_claims: Index<PersistentVolumeClaim>,
    importers: Index<Pod>,
    version: String,
}

impl<I: Image> ImageController<I> {
    /// Opens the caches it reads.
    #[must_use]
    pub fn new(caches: &Caches, config: &Config) -> Self {
        let (disks, vms, pods) = (caches.cache(), caches.cache(), caches.cache());
        let (claims, volumes) = (caches.cache(), caches.cache());
        Self {
            vms_by_device: indexes::vms_by_device(&vms),
            disks_by_source: indexes::disks_by_source(&disks),
            owned_volumes: indexes::owned(&volumes),
            owned_claims: indexes::owned(&claims),
            importers: indexes::importers(&pods),
            own: caches.cache(),
            images: caches.cache(),
            cluster_images: caches.cache(),
            disks,
            vms,
            claims,
            volumes,
            pods,
            classes: caches.cache(),
            creations: caches.creations(),
            version: config.version.clone(),
        }
    }

    /// What an `objectRef` names, as it is now.
    fn origin(&self, image: &I) -> Option<Origin> {
        let reference = image.source().object_ref.clone()?;
        let namespace = reference.namespace.or_else(|| image.namespace()).unwrap_or_default();
        match reference.kind {
            ObjectRefKind::VirtualImage => {
                let found = self.images.named(&namespace, &reference.name)?;
                Some(Origin::image(&*found, &namespace))
            }
            ObjectRefKind::ClusterVirtualImage => {
                let found = self.cluster_images.get(&Key::cluster(&reference.name))?;
                Some(Origin::image(&*found, PLATFORM_NAMESPACE))
            }
            ObjectRefKind::VirtualDisk => {
                let found = self.disks.named(&namespace, &reference.name)?;
                Some(Origin::disk(&found, &namespace))
            }
            ObjectRefKind::VirtualDiskSnapshot => None,
        }
    }

    /// VMs that list the image, as (namespace, use).
    fn uses(&self, image: &I) -> Vec<(String, Use)> {
        let name = image.name_any();
        let namespace = image.namespace().unwrap_or_default();
        let vms = self.vms_by_device.get(&indexes::device(I::DEVICE.as_str(), &namespace, &name));
        vms.iter()
            .filter_map(|vm| Some((vm.namespace().unwrap_or_default(), Use::of(vm, I::DEVICE, &name)?)))
            .collect()
    }

    /// Namespaces with a VM or a disk that needs the cluster image.
    fn needed_in(&self, image: &I, uses: &[(String, Use)]) -> Vec<String> {
        if I::DEVICE != BlockDeviceKind::ClusterVirtualImage {
            return Vec::new();
        }
        let name = image.name_any();
        let from_us = |source: &DataSource| {
            source
                .object_ref
                .as_ref()
                .is_some_and(|r| r.kind == ObjectRefKind::ClusterVirtualImage && r.name == name)
        };
        let disks = self.disks_by_source.get(&indexes::source(ObjectRefKind::ClusterVirtualImage, &name));
        let images = self.images.filtered(|image| from_us(&image.spec.data_source));
        let mut namespaces: Vec<String> = uses.iter().map(|(namespace, _)| namespace.clone()).collect();
        namespaces.extend(disks.iter().filter_map(|disk| disk.namespace()));
        namespaces.extend(images.iter().filter_map(|image| image.namespace()));
        namespaces.sort();
        namespaces.dedup();
        namespaces
    }
}

impl<I: Image> Controller for ImageController<I> {
    type Observed = Observed<I>;

    fn name(&self) -> &'static str {
        I::SHORT
    }

    fn watches(&self, on: &mut Watches) {
        let owned = |object: &dyn Fn() -> Option<Key>| object().into_iter().collect::<Vec<_>>();
        let (by_class, by_disk, by_vi, by_cvi) =
            (self.own.clone(), self.own.clone(), self.own.clone(), self.own.clone());
        on.own(&self.own)
            .map(&self.claims, move |claim| owned(&|| owner_key::<I, _>(claim)))
            .map(&self.volumes, move |volume| owned(&|| owner_key::<I, _>(volume)))
            .map(&self.pods, move |pod| owned(&|| owner_key::<I, _>(pod)))
            .map(&self.classes, move |_| all_keys(&by_class))
            .map(&self.vms, |vm| I::named_by_vm(vm))
            .map(&self.disks, move |disk| {
                let mut keys = made_from(&by_disk, ObjectRefKind::VirtualDisk, &disk.name_any());
                keys.extend(
                    disk.spec
                        .data_source
                        .as_ref()
                        .and_then(|source| I::named_by_source(source, disk.namespace())),
                );
                keys
            })
            .map(&self.images, move |image| {
                let mut keys = made_from(&by_vi, ObjectRefKind::VirtualImage, &image.name_any());
                keys.extend(I::named_by_source(&image.spec.data_source, image.namespace()));
                keys
            })
            .map(&self.cluster_images, move |image| {
                made_from(&by_cvi, ObjectRefKind::ClusterVirtualImage, &image.name_any())
            });
    }

    async fn observe(&self, key: &Key, pass: Pass) -> Result<Option<Observed<I>>, Error> {
        let Some(image) = self.own.get(key) else { return Ok(None) };
        let uid = image.uid().unwrap_or_default();
        let namespace = image.helper_namespace();
        let claim_name = claim_name(I::SHORT, &key.name, &uid);
        let claim = self.claims.named(&namespace, &claim_name);
        let uses = self.uses(&image);
        let needed_in = self.needed_in(&image, &uses);
        let volume_of = |claim: &PersistentVolumeClaim| {
            let name = claim.spec.as_ref()?.volume_name.clone()?;
            self.volumes.get(&Key::cluster(name)).map(|volume| (*volume).clone())
        };
        let volume = claim.as_deref().and_then(volume_of);
        let views = views::Views {
            needed_in,
            volume,
            volumes: self.owned_volumes.of_uid(Some(&uid)).iter().map(|v| (**v).clone()).collect(),
            claims: self
                .owned_claims
                .of_uid(Some(&uid))
                .iter()
                .filter(|c| c.name_any() == claim_name && c.namespace().as_ref() != Some(&namespace))
                .map(|c| (**c).clone())
                .collect(),
        };
        let helpers =
            helpers((&self.importers, &self.creations), &namespace, &uid, claim, &pass.client).await;
        Ok(Some(Observed {
            now: pass.now,
            origin: self.origin(&image),
            uses,
            views,
            classes: self.classes.all().iter().map(|class| (**class).clone()).collect(),
            helpers,
            version: self.version.clone(),
            image: (*image).clone(),
        }))
    }

    fn plan(observed: &Observed<I>) -> Plan {
        plan::plan(observed)
    }
}

/// Key of the image that controls an object; a cluster image's key has no namespace.
fn owner_key<I: Image, K: kube::Resource>(object: &K) -> Option<Key> {
    let owner = controller_of(object).filter(|owner| owner.kind == I::kind(&()))?;
    let namespace = match I::DEVICE {
        BlockDeviceKind::ClusterVirtualImage => String::new(),
        BlockDeviceKind::VirtualImage | BlockDeviceKind::VirtualDisk => object.meta().namespace.clone()?,
    };
    Some(Key::new(namespace, &owner.name))
}

fn all_keys<I: Image>(images: &Cache<I>) -> Vec<Key> {
    images.all().iter().map(|image| Key::of(&**image)).collect()
}

/// Keys of images made from an object of this kind and name (in whatever namespace).
fn made_from<I: Image>(images: &Cache<I>, kind: ObjectRefKind, name: &str) -> Vec<Key> {
    let from =
        |image: &I| image.source().object_ref.as_ref().is_some_and(|r| r.kind == kind && r.name == name);
    images.filtered(from).iter().map(|image| Key::of(&**image)).collect()
}
