//! Disks: a claim, filled from a source or blank; who uses it; its end (vm-lifecycle.md §8.1–8.6,
//! api.md A7). Filling itself is in `import`. Start at `plan.rs`.

mod plan;
mod status;

use std::sync::Arc;

use holdfast_api::import::Progress;
use holdfast_api::names::claim_name;
use holdfast_api::source::ObjectRefKind;
use holdfast_api::vi::ImagePhase;
use holdfast_api::vm::BlockDeviceKind;
use holdfast_api::{ClusterVirtualImage, VirtualDisk, VirtualImage, VirtualMachine};
use holdfast_reconcile::{Answers, Cache, Caches, Controller, Error, Index, Key, Pass, Plan, Watches};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt as _;
use kube::api::{Api, LogParams};

use crate::import::Helpers;
use crate::{Config, indexes, unready};

pub use plan::{Observed, SourceImage, Use};

/// The disk controller; key = namespace and name of a disk.
#[derive(Debug)]
pub struct VdController {
    disks: Arc<Cache<VirtualDisk>>,
    images: Arc<Cache<VirtualImage>>,
    cluster_images: Arc<Cache<ClusterVirtualImage>>,
    vms: Arc<Cache<VirtualMachine>>,
    claims: Arc<Cache<PersistentVolumeClaim>>,
    pods: Arc<Cache<Pod>>,
    classes: Arc<Cache<StorageClass>>,
    creations: Arc<Answers>,
    vms_by_device: Index<VirtualMachine>,
    importers: Index<Pod>,
    version: String,
}

impl VdController {
    /// Opens the caches it reads.
    #[must_use]
    pub fn new(caches: &Caches, config: &Config) -> Self {
        let (vms, pods) = (caches.cache(), caches.cache());
        Self {
            vms_by_device: indexes::vms_by_device(&vms),
            importers: indexes::importers(&pods),
            disks: caches.cache(),
            images: caches.cache(),
            cluster_images: caches.cache(),
            vms,
            claims: caches.cache(),
            pods,
            classes: caches.cache(),
            creations: caches.creations(),
            version: config.version.clone(),
        }
    }

    /// Keys of disks filled from an image.
    fn filled_from(disks: &Index<VirtualDisk>, kind: ObjectRefKind, name: &str, namespace: &str) -> Vec<Key> {
        let mut found = disks.keys(&indexes::source(kind, name));
        found.retain(|disk| namespace.is_empty() || disk.namespace == namespace);
        found
    }

    fn source_image(&self, disk: &VirtualDisk) -> Option<SourceImage> {
        let source = disk.spec.data_source.as_ref()?.object_ref.as_ref()?;
        let namespace = disk.namespace().unwrap_or_default();
        match source.kind {
            ObjectRefKind::VirtualImage => {
                let image = self.images.named(&namespace, &source.name)?;
                let status = image.status.clone().unwrap_or_default();
                Some(SourceImage {
                    uid: image.uid().unwrap_or_default(),
                    ready: status.phase == Some(ImagePhase::Ready)
                        && image.metadata.deletion_timestamp.is_none(),
                    why: unready::why(
                        status.phase,
                        &status.conditions,
                        image.metadata.deletion_timestamp.as_ref(),
                    ),
                    cdrom: status.cdrom == Some(true),
                    claim: claim_name("vi", &source.name, &image.uid().unwrap_or_default()),
                    bytes: status.size.and_then(|size| size.unpacked_bytes?.parse().ok()),
                })
            }
            ObjectRefKind::ClusterVirtualImage => {
                let image = self.cluster_images.get(&Key::cluster(&source.name))?;
                let status = image.status.clone().unwrap_or_default();
                Some(SourceImage {
                    uid: image.uid().unwrap_or_default(),
                    ready: status.phase == Some(ImagePhase::Ready)
                        && image.metadata.deletion_timestamp.is_none(),
                    why: unready::why(
                        status.phase,
                        &status.conditions,
                        image.metadata.deletion_timestamp.as_ref(),
                    ),
                    cdrom: status.cdrom == Some(true),
                    claim: claim_name("cvi", &source.name, &image.uid().unwrap_or_default()),
                    bytes: status.size.and_then(|size| size.unpacked_bytes?.parse().ok()),
                })
            }
            ObjectRefKind::VirtualDisk | ObjectRefKind::VirtualDiskSnapshot => None,
        }
    }

    /// VMs of the namespace whose spec or status lists the disk.
    fn uses(&self, disk: &VirtualDisk) -> Vec<Use> {
        let name = disk.name_any();
        let namespace = disk.namespace().unwrap_or_default();
        let vms = self.vms_by_device.get(&indexes::device(
            BlockDeviceKind::VirtualDisk.as_str(),
            &namespace,
            &name,
        ));
        vms.iter().filter_map(|vm| Use::of(vm, BlockDeviceKind::VirtualDisk, &name)).collect()
    }

    /// Images being made from the disk, as `kind/name`.
    fn feeds(&self, disk: &VirtualDisk) -> Vec<String> {
        let (name, namespace) = (disk.name_any(), disk.namespace().unwrap_or_default());
        let unfinished = |phase: Option<ImagePhase>| {
            !matches!(
                phase,
                Some(
                    ImagePhase::Ready
                        | ImagePhase::Failed
                        | ImagePhase::PVCLost
                        | ImagePhase::ImageLost
                        | ImagePhase::Terminating
                )
            )
        };
        let from_us = |source: &holdfast_api::source::DataSource, own: &str| {
            source.object_ref.as_ref().is_some_and(|r| {
                r.kind == ObjectRefKind::VirtualDisk
                    && r.name == name
                    && r.namespace.as_deref().unwrap_or(own) == namespace
            })
        };
        let local = self.images.in_namespace(&namespace);
        let local = local.iter().filter(|image| {
            from_us(&image.spec.data_source, &namespace)
                && unfinished(image.status.as_ref().and_then(|status| status.phase))
        });
        let global = self.cluster_images.all();
        let global = global.iter().filter(|image| {
            from_us(&image.spec.data_source, "")
                && unfinished(image.status.as_ref().and_then(|status| status.phase))
        });
        local
            .map(|image| format!("VirtualImage/{}", image.name_any()))
            .chain(global.map(|image| format!("ClusterVirtualImage/{}", image.name_any())))
            .collect()
    }
}

impl Controller for VdController {
    type Observed = Observed;

    fn name(&self) -> &'static str {
        "vd"
    }

    fn watches(&self, on: &mut Watches) {
        let by_class = self.disks.clone();
        let (by_vi, by_cvi) = (indexes::disks_by_source(&self.disks), indexes::disks_by_source(&self.disks));
        let by_vm = indexes::disks_by_vm(&self.disks);
        on.own(&self.disks)
            .owned_by::<VirtualDisk, _>(&self.claims)
            .owned_by::<VirtualDisk, _>(&self.pods)
            .map(&self.images, move |image| {
                let namespace = image.namespace().unwrap_or_default();
                let mut keys =
                    Self::filled_from(&by_vi, ObjectRefKind::VirtualImage, &image.name_any(), &namespace);
                keys.extend(source_disk(&image.spec.data_source, &namespace));
                keys
            })
            .map(&self.cluster_images, move |image| {
                let mut keys =
                    Self::filled_from(&by_cvi, ObjectRefKind::ClusterVirtualImage, &image.name_any(), "");
                keys.extend(source_disk(&image.spec.data_source, ""));
                keys
            })
            .map(&self.classes, move |_| by_class.all().iter().map(|disk| Key::of(&**disk)).collect())
            .map(&self.vms, move |vm| {
                let namespace = vm.namespace().unwrap_or_default();
                let status = vm.status.iter().flat_map(|status| &status.block_device_refs);
                let listed = status.map(|device| (device.kind, &device.name));
                let wanted = vm.spec.block_device_refs.iter().map(|device| (device.kind, &device.name));
                let mut keys: Vec<Key> = listed
                    .chain(wanted)
                    .filter(|(kind, _)| *kind == BlockDeviceKind::VirtualDisk)
                    .map(|(_, name)| Key::new(&namespace, name))
                    .collect();
                keys.extend(by_vm.keys(&Key::of(vm)));
                keys
            });
    }

    async fn observe(&self, key: &Key, pass: Pass) -> Result<Option<Observed>, Error> {
        let Some(disk) = self.disks.get(key) else { return Ok(None) };
        let uid = disk.uid().unwrap_or_default();
        let claim = self.claims.named(&key.namespace, &claim_name("vd", &key.name, &uid));
        let helpers =
            helpers((&self.importers, &self.creations), &key.namespace, &uid, claim, &pass.client).await;
        Ok(Some(Observed {
            now: pass.now,
            source_image: self.source_image(&disk),
            uses: self.uses(&disk),
            feeds: self.feeds(&disk),
            classes: self.classes.all().iter().map(|class| (**class).clone()).collect(),
            helpers,
            version: self.version.clone(),
            disk: (*disk).clone(),
        }))
    }

    fn plan(observed: &Observed) -> Plan {
        plan::plan(observed)
    }
}

/// The disk that an image is made from.
fn source_disk(source: &holdfast_api::source::DataSource, namespace: &str) -> Option<Key> {
    let reference = source.object_ref.as_ref().filter(|r| r.kind == ObjectRefKind::VirtualDisk)?;
    Some(Key::new(reference.namespace.as_deref().unwrap_or(namespace), &reference.name))
}

/// Helper objects of an owner, with the running importer's last progress line.
pub(crate) async fn helpers(
    (importers, creations): (&Index<Pod>, &Answers),
    namespace: &str,
    uid: &str,
    claim: Option<Arc<PersistentVolumeClaim>>,
    client: &kube::Client,
) -> Helpers {
    let pods = importers.of_uid(Some(uid));
    let here = pods.iter().filter(|pod| pod.metadata.namespace.as_deref() == Some(namespace));
    let pods: Vec<Pod> = here.map(|pod| (**pod).clone()).collect();
    let running =
        pods.iter().find(|pod| pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running"));
    let progress = match running {
        Some(pod) => last_progress(client, namespace, &pod.name_any()).await,
        None => None,
    };
    let refused = creations.of(uid).and_then(|answer| answer.refused);
    Helpers { claim: claim.map(|claim| (*claim).clone()), pods, progress, refused }
}

/// The last progress line a pod printed; unreadable logs are no progress, not an error.
async fn last_progress(client: &kube::Client, namespace: &str, pod: &str) -> Option<Progress> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let params = LogParams { tail_lines: Some(1), ..LogParams::default() };
    let text = api.logs(pod, &params).await.ok()?;
    serde_json::from_str(text.lines().last()?).ok()
}
