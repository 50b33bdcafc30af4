//! Disks and images.

use std::collections::BTreeMap;

use holdfast_api::vd::VdPhase;
use holdfast_api::vi::ImagePhase;
use holdfast_api::{ClusterVirtualImage, VirtualDisk, VirtualImage, condition};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};
use sha2::Digest as _;

use crate::server::{Files, qcow2, raw_disk};
use crate::world::{NS, World, create, until};

fn http(url: &str, sha256: Option<&str>) -> Value {
    json!({"dataSource": {"type": "HTTP", "http": {"url": url, "checksum": {"sha256": sha256}}}})
}

fn from(kind: &str, name: &str, size: Option<&str>) -> Value {
    let source = json!({"type": "ObjectRef", "objectRef": {"kind": kind, "name": name}});
    json!({"dataSource": source, "persistentVolumeClaim": size.map(|size| json!({"size": size}))})
}

async fn disk_is(api: &Api<VirtualDisk>, name: &str, phase: VdPhase) -> VirtualDisk {
    let is = |disk: Option<&VirtualDisk>| disk.and_then(|d| d.status.as_ref()?.phase) == Some(phase);
    until(api, name, phase.as_str(), is).await.unwrap()
}

fn message(disk: &VirtualDisk, kind: &str) -> String {
    let status = disk.status.clone().unwrap();
    condition::find(&status.conditions, kind).map(|c| c.message.clone()).unwrap_or_default()
}

// VL-D1, VL-D3, VL-D6, VL-D16
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_from_the_net_and_disks_from_them() {
    let world = World::start().await;
    let image = qcow2(&raw_disk());
    let sum: String = sha2::Sha256::digest(&image).iter().map(|byte| format!("{byte:02x}")).collect();
    let files = Files::serve(BTreeMap::from([("debian.qcow2", image)]));
    let url = files.url("debian.qcow2");

    let images: Api<ClusterVirtualImage> = world.cluster();
    create(&images, "debian", http(&url, Some(&sum))).await;
    create(&images, "wrong", http(&url, Some(&"0".repeat(64)))).await;
    let is = |phase| {
        move |i: Option<&ClusterVirtualImage>| i.and_then(|i| i.status.as_ref()?.phase) == Some(phase)
    };
    let ready = until(&images, "debian", "Ready", is(ImagePhase::Ready)).await.unwrap().status.unwrap();
    assert_eq!((ready.format.as_deref(), ready.cdrom), (Some("qcow2"), Some(false)));
    let size = ready.size.unwrap();
    assert_eq!(size.unpacked_bytes.as_deref(), Some("8388608"));
    assert!(size.stored_bytes.is_some());
    let wrong = until(&images, "wrong", "Failed", is(ImagePhase::Failed)).await.unwrap().status.unwrap();
    let why = condition::find(&wrong.conditions, "Ready").unwrap();
    assert!(why.message.contains("checksum"), "{}", why.message);

    let disks: Api<VirtualDisk> = world.api(NS);
    create(&disks, "same", from("ClusterVirtualImage", "debian", None)).await;
    create(&disks, "small", from("ClusterVirtualImage", "debian", Some("4Mi"))).await;
    create(&disks, "large", from("ClusterVirtualImage", "debian", Some("10Mi"))).await;
    create(&disks, "blank", json!({"persistentVolumeClaim": {"size": "100Mi"}})).await;
    for (name, capacity) in [("same", "8Mi"), ("large", "10Mi"), ("blank", "100Mi")] {
        let disk = disk_is(&disks, name, VdPhase::Ready).await;
        let status = disk.status.clone().unwrap();
        assert_eq!(status.capacity.as_deref(), Some(capacity), "{name}");
        assert_eq!(status.progress.as_deref(), Some("100%"));
        let claim = status.target.unwrap().persistent_volume_claim_name.unwrap();
        let content = std::fs::read(world.folder(NS, &claim).await.unwrap().join("disk.img")).unwrap();
        let bytes = holdfast_api::Quantity::from(capacity).value().unwrap();
        assert_eq!(content.len() as i64, bytes);
        let expected = if name == "blank" { vec![0; 8 << 20] } else { raw_disk() };
        assert!(content[..8 << 20] == expected[..], "{name}");
    }
    let small = disk_is(&disks, "small", VdPhase::Failed).await;
    assert_eq!(message(&small, "Ready"), "The specified pvc size is insufficient: 4Mi < 8Mi.");

    // The claim disappears: final.
    let claims: Api<PersistentVolumeClaim> = world.api(NS);
    let claim = format!("d8v-vd-blank-{}", disks.get("blank").await.unwrap().uid().unwrap());
    claims.delete(&claim, &DeleteParams::default()).await.unwrap();
    disk_is(&disks, "blank", VdPhase::PVCLost).await;

    // Everything goes, data included.
    for name in ["same", "small", "large", "blank"] {
        disks.delete(name, &DeleteParams::default()).await.unwrap();
        until(&disks, name, "gone", |disk| disk.is_none()).await;
    }
    for name in ["debian", "wrong"] {
        images.delete(name, &DeleteParams::default()).await.unwrap();
        until(&images, name, "gone", |image| image.is_none()).await;
    }
    let shared = world.home.path().join("storage/shared");
    let end = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    while std::fs::read_dir(&shared).unwrap().next().is_some() {
        assert!(tokio::time::Instant::now() < end, "volumes are left in {}", shared.display());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

// VL-D14
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_address_starts_again_and_a_default_class_is_needed() {
    let world = World::start().await;
    let files = Files::serve(BTreeMap::from([("good.img", raw_disk())]));
    let images: Api<VirtualImage> = world.api(NS);
    create(&images, "img", http(&files.url("missing.img"), None)).await;
    let is = |phase| move |i: Option<&VirtualImage>| i.and_then(|i| i.status.as_ref()?.phase) == Some(phase);
    let failed = until(&images, "img", "Failed", is(ImagePhase::Failed)).await.unwrap().status.unwrap();
    assert!(condition::find(&failed.conditions, "Ready").unwrap().message.contains("404"));
    let patch = json!({"spec": http(&files.url("good.img"), None)});
    images.patch("img", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    let ready = until(&images, "img", "Ready", is(ImagePhase::Ready)).await.unwrap().status.unwrap();
    assert_eq!(ready.format.as_deref(), Some("raw"));

    let classes: Api<StorageClass> = world.cluster();
    let unmark =
        json!({"metadata": {"annotations": {"storageclass.kubernetes.io/is-default-class": "false"}}});
    classes.patch("shared", &PatchParams::default(), &Patch::Merge(unmark)).await.unwrap();
    let disks: Api<VirtualDisk> = world.api(NS);
    let told = |disk: Option<&VirtualDisk>| {
        disk.and_then(|d| d.status.as_ref()).is_some_and(|status| {
            let class = condition::find(&status.conditions, "StorageClassReady");
            status.phase == Some(VdPhase::Pending) && class.is_some_and(|c| c.status == "False")
        })
    };
    // The controller's view of the class follows within a moment; a disk made too early goes ahead.
    let is_unmarked = |class: Option<&StorageClass>| {
        class.is_some_and(|c| c.annotations().values().any(|value| value == "false"))
    };
    until(&classes, "shared", "unmarked", is_unmarked).await;
    create(&disks, "waits", json!({"persistentVolumeClaim": {"size": "1Mi"}})).await;
    let waits = until(&disks, "waits", "waiting for a class", told).await.unwrap();
    assert!(message(&waits, "StorageClassReady").starts_with("The default StorageClass was not found"));
    let mark = json!({"metadata": {"annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}});
    classes.patch("shared", &PatchParams::default(), &Patch::Merge(mark)).await.unwrap();
    disk_is(&disks, "waits", VdPhase::Ready).await;
}
