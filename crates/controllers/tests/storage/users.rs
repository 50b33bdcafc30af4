//! Disks and images in use by VMs. The test plays the VM's front: it writes what a VM reports.

use holdfast_api::names::finalizer;
use holdfast_api::vd::VdPhase;
use holdfast_api::vi::ImagePhase;
use holdfast_api::{ClusterVirtualImage, VirtualDisk, VirtualImage, VirtualMachine, condition};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::server::{Files, raw_disk};
use crate::world::{NS, World, create, until};

fn vm_spec(devices: &Value) -> Value {
    json!({
        "virtualMachineClassName": "host", "cpu": {"cores": 1}, "memory": {"size": "1Gi"},
        "blockDeviceRefs": devices,
    })
}

/// What the front reports about a VM and its devices.
async fn report(api: &Api<VirtualMachine>, name: &str, phase: &str, devices: &Value, attached: bool) {
    let devices: Vec<Value> = devices
        .as_array()
        .unwrap()
        .iter()
        .map(|device| json!({"kind": device["kind"], "name": device["name"], "size": "8Mi", "attached": attached}))
        .collect();
    let status = json!({"status": {"phase": phase, "blockDeviceRefs": devices}});
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
}

fn reason<'c>(conditions: &'c [holdfast_api::Condition], kind: &str) -> &'c str {
    condition::find(conditions, kind).map_or("", |c| c.reason.as_str())
}

fn disk_reason(disk: Option<&VirtualDisk>, kind: &str) -> String {
    disk.and_then(|d| d.status.as_ref()).map(|s| reason(&s.conditions, kind).to_owned()).unwrap_or_default()
}

fn image_reason(image: Option<&VirtualImage>, kind: &str) -> String {
    image.and_then(|i| i.status.as_ref()).map(|s| reason(&s.conditions, kind).to_owned()).unwrap_or_default()
}

// VL-D11 (no guest), VL-D12, VL-D13
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_vm_uses_stays_until_it_lets_go() {
    let world = World::start().await;
    let files = Files::serve([("cd.img", raw_disk())].into());
    let (disks, images, vms): (Api<VirtualDisk>, Api<VirtualImage>, Api<VirtualMachine>) =
        (world.api(NS), world.api(NS), world.api(NS));
    let globals: Api<ClusterVirtualImage> = world.cluster();
    let http = json!({"dataSource": {"type": "HTTP", "http": {"url": files.url("cd.img")}}});
    create(&globals, "tools", http).await;
    create(&disks, "root", json!({"persistentVolumeClaim": {"size": "8Mi"}})).await;
    let ready =
        |disk: Option<&VirtualDisk>| disk.and_then(|d| d.status.as_ref()?.phase) == Some(VdPhase::Ready);
    until(&disks, "root", "Ready", ready).await;
    let devices = json!([
        {"kind": "VirtualDisk", "name": "root"}, {"kind": "ClusterVirtualImage", "name": "tools"},
    ]);
    create(&vms, "web", vm_spec(&devices)).await;
    report(&vms, "web", "Running", &devices, true).await;

    // The disk is protected; an image cannot be made from it yet.
    let held = |disk: Option<&VirtualDisk>| {
        disk_reason(disk, "InUse") == "AttachedToVirtualMachine"
            && disk.is_some_and(|d| d.finalizers().iter().any(|f| f == finalizer::VD_PROTECTION))
    };
    until(&disks, "root", "protected", held).await;
    let from_disk = json!({"type": "ObjectRef", "objectRef": {"kind": "VirtualDisk", "name": "root"}});
    create(&images, "copy", json!({"dataSource": from_disk})).await;
    let refused = |i: Option<&VirtualImage>| {
        image_reason(i, "DatasourceReady") == "VirtualDiskAttachedToVirtualMachine"
    };
    until(&images, "copy", "refused", refused).await;

    // The cluster image is visible in the VM's namespace under its own claim's name.
    let claims: Api<PersistentVolumeClaim> = world.api(NS);
    let tools = globals.get("tools").await.unwrap();
    let view = format!("d8v-cvi-tools-{}", tools.uid().unwrap());
    let bound = |claim: Option<&PersistentVolumeClaim>| {
        claim.and_then(|c| c.status.as_ref()?.phase.as_deref()) == Some("Bound")
    };
    until(&claims, &view, "Bound", bound).await;
    let folder = world.folder(NS, &view).await.unwrap();
    assert!(std::fs::read(folder.join("disk.img")).unwrap() == raw_disk());

    // Stopped: the disk is reserved for the image, which is then made.
    let seen = tokio::spawn({
        let disks = disks.clone();
        async move {
            let reserved = |d: Option<&VirtualDisk>| disk_reason(d, "InUse") == "UsedForImageCreation";
            until(&disks, "root", "reserved for the image", reserved).await;
        }
    });
    report(&vms, "web", "Stopped", &devices, false).await;
    let made = |i: Option<&VirtualImage>| i.and_then(|i| i.status.as_ref()?.phase) == Some(ImagePhase::Ready);
    until(&images, "copy", "Ready", made).await;
    seen.await.unwrap();

    // Deleted while listed: Terminating, data intact, gone with the VM.
    report(&vms, "web", "Running", &devices, true).await;
    until(&disks, "root", "protected", held).await;
    disks.delete("root", &DeleteParams::default()).await.unwrap();
    globals.delete("tools", &DeleteParams::default()).await.unwrap();
    let ending =
        |d: Option<&VirtualDisk>| d.and_then(|d| d.status.as_ref()?.phase) == Some(VdPhase::Terminating);
    let disk = until(&disks, "root", "Terminating", ending).await.unwrap();
    let ending = |i: Option<&ClusterVirtualImage>| {
        i.and_then(|i| i.status.as_ref()?.phase) == Some(ImagePhase::Terminating)
    };
    until(&globals, "tools", "Terminating", ending).await;
    let claim = format!("d8v-vd-root-{}", disk.uid().unwrap());
    assert!(world.folder(NS, &claim).await.unwrap().join("disk.img").exists());
    assert!(folder.join("disk.img").exists());
    vms.delete("web", &DeleteParams::default()).await.unwrap();
    until(&disks, "root", "gone", |disk| disk.is_none()).await;
    until(&globals, "tools", "gone", |image| image.is_none()).await;
    until(&claims, &view, "gone", |claim| claim.is_none()).await;
}
