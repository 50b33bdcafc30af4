//! Tables of the disk machine.

use super::*;
use holdfast_api::names::annotation;
use holdfast_api::source::{HttpSource, ObjectRefSource};
use holdfast_api::vd::{DiskClaim, VirtualDiskSpec};
use holdfast_api::vm::{BlockDeviceRef, BlockDeviceStatus, VirtualMachineSpec, VirtualMachineStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn disk(source: Option<DataSource>, size: Option<&str>) -> VirtualDisk {
    let claim = DiskClaim { size: size.map(Into::into), storage_class_name: None };
    let spec = VirtualDiskSpec { data_source: source, persistent_volume_claim: Some(claim) };
    let mut disk = VirtualDisk::new("root", spec);
    disk.metadata.namespace = Some("shop".into());
    disk.metadata.uid = Some("u1".into());
    disk.metadata.generation = Some(1);
    disk.metadata.resource_version = Some("1".into());
    disk.metadata.creation_timestamp = Some(Time(at(90)));
    disk.metadata.finalizers = Some(vec![finalizer::VD_CLEANUP.into()]);
    disk
}

fn shared() -> StorageClass {
    serde_json::from_value(json!({
        "metadata": {"name": "shared", "annotations": {annotation::DEFAULT_STORAGE_CLASS: "true"}},
        "provisioner": "holdfast.local/shared",
    }))
    .unwrap()
}

fn observed(disk: VirtualDisk) -> Observed {
    Observed {
        now: at(100),
        disk,
        source_image: None,
        uses: Vec::new(),
        feeds: Vec::new(),
        classes: vec![shared()],
        helpers: Helpers::default(),
        version: "1".into(),
    }
}

fn http() -> Option<DataSource> {
    let http = HttpSource { url: "https://h/d".into(), ..HttpSource::default() };
    Some(DataSource { type_: DataSourceType::HTTP, http: Some(http), ..DataSource::default() })
}

fn from_image(kind: ObjectRefKind) -> Option<DataSource> {
    let object_ref = Some(ObjectRefSource { kind, name: "debian".into(), namespace: None });
    Some(DataSource { type_: DataSourceType::ObjectRef, object_ref, ..DataSource::default() })
}

fn image(ready: bool, cdrom: bool, bytes: i64) -> Option<SourceImage> {
    Some(SourceImage {
        uid: "i".into(),
        ready,
        why: "is Failed: too new".into(),
        cdrom,
        claim: "c".into(),
        bytes: Some(bytes),
    })
}

fn status_after(o: &Observed) -> VirtualDiskStatus {
    let old = o.disk.status.clone().unwrap_or_default();
    status::of(o, &old, &advance(o, &old).0)
}

fn reason(status: &VirtualDiskStatus, kind: &str) -> String {
    condition::find(&status.conditions, kind).map(|c| c.reason.clone()).unwrap_or_default()
}

fn bound_claim() -> k8s_openapi::api::core::v1::PersistentVolumeClaim {
    serde_json::from_value(json!({
        "metadata": {"name": "d8v-vd-root-u1", "uid": "claim"},
        "spec": {"storageClassName": "shared"},
        "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}},
    }))
    .unwrap()
}

fn ready_disk() -> Observed {
    let mut o = observed(disk(None, Some("1Gi")));
    o.helpers.claim = Some(bound_claim());
    o.disk.status = Some(VirtualDiskStatus { phase: Some(VdPhase::Ready), ..Default::default() });
    o.disk.status = Some(status_after(&o));
    o
}

#[test]
fn what_a_disk_waits_for() {
    use VdPhase::{Failed, Pending, Provisioning};
    let cluster = || from_image(ObjectRefKind::ClusterVirtualImage);
    let local = || from_image(ObjectRefKind::VirtualImage);
    let other = |type_| Some(DataSource { type_, ..DataSource::default() });
    let rows = [
        ("blank", None, None, Provisioning, "DatasourceReady", "Provisioning"),
        ("download", http(), None, Provisioning, "DatasourceReady", "Provisioning"),
        ("no image", local(), None, Pending, "ImageNotFound", "DatasourceIsNotFound"),
        ("no cluster image", cluster(), None, Pending, "ClusterImageNotFound", "DatasourceIsNotFound"),
        (
            "image not ready",
            local(),
            image(false, false, 1),
            Pending,
            "ImageNotReady",
            "DatasourceIsNotReady",
        ),
        (
            "cluster image not ready",
            cluster(),
            image(false, false, 1),
            Pending,
            "ClusterImageNotReady",
            "DatasourceIsNotReady",
        ),
        ("image ready", local(), image(true, false, 1), Provisioning, "DatasourceReady", "Provisioning"),
        // VL D7 (decision)
        ("iso", local(), image(true, true, 1), Failed, "DatasourceReady", "ProvisioningFailed"),
        ("too small", local(), image(true, false, 2 << 30), Failed, "DatasourceReady", "ProvisioningFailed"),
        (
            "snapshot",
            from_image(ObjectRefKind::VirtualDiskSnapshot),
            None,
            Pending,
            "VirtualDiskSnapshot",
            "DatasourceIsNotReady",
        ),
        ("upload", other(DataSourceType::Upload), None, Pending, "DatasourceReady", "ProvisioningNotStarted"),
        (
            "container image",
            other(DataSourceType::ContainerImage),
            None,
            Pending,
            "DatasourceReady",
            "ProvisioningNotStarted",
        ),
    ];
    for (what, source, image, phase, datasource, ready) in rows {
        let mut o = observed(disk(source, Some("1Gi")));
        o.source_image = image;
        let status = status_after(&o);
        assert_eq!(status.phase, Some(phase), "{what}");
        assert_eq!(reason(&status, "DatasourceReady"), datasource, "{what}");
        assert_eq!(reason(&status, "Ready"), ready, "{what}");
        assert_eq!(status.observed_generation, Some(1));
    }
}

#[test]
fn without_a_default_class_it_waits_and_says_so() {
    let mut o = observed(disk(None, Some("1Gi")));
    o.classes.clear();
    let status = status_after(&o);
    assert_eq!(status.phase, Some(VdPhase::Pending));
    let class = condition::find(&status.conditions, "StorageClassReady").unwrap();
    assert_eq!((class.status.as_str(), class.reason.as_str()), ("False", "StorageClassNotReady"));
    assert!(class.message.starts_with("The default StorageClass was not found"));
}

#[test]
fn a_ready_disk_is_settled() {
    let o = ready_disk();
    let status = o.disk.status.clone().unwrap();
    assert_eq!(status.capacity.as_deref(), Some("1Gi"));
    assert_eq!(status.progress.as_deref(), Some("100%"));
    assert_eq!(status.target.unwrap().persistent_volume_claim_name.as_deref(), Some("d8v-vd-root-u1"));
    assert_eq!(status.stats.unwrap().creation_duration.unwrap().total_provisioning.as_deref(), Some("10s"));
    assert!(plan(&o).is_empty());
}

// VL D16 (decision): a claim deleted out of band is final.
#[test]
fn a_lost_claim_is_final() {
    let mut o = ready_disk();
    o.helpers.claim = None;
    let lost = status_after(&o);
    assert_eq!((lost.phase, reason(&lost, "Ready").as_str()), (Some(VdPhase::PVCLost), "PVCLost"));
    o.disk.status = Some(lost);
    o.helpers.claim = Some(bound_claim());
    assert_eq!(status_after(&o).phase, Some(VdPhase::PVCLost));
}

#[test]
fn failed_stays_failed_until_the_spec_changes() {
    let mut o = observed(disk(from_image(ObjectRefKind::VirtualImage), Some("1Gi")));
    o.source_image = image(true, true, 1);
    o.disk.status = Some(status_after(&o));
    o.source_image = image(true, false, 1);
    assert_eq!(status_after(&o).phase, Some(VdPhase::Failed));
    o.disk.metadata.generation = Some(2);
    assert_eq!(status_after(&o).phase, Some(VdPhase::Provisioning));
    let reasons: Vec<_> = plan(&o)
        .effects
        .iter()
        .filter_map(|e| if let Effect::Event(note) = e { Some(note.reason.clone()) } else { None })
        .collect();
    assert_eq!(reasons, ["VirtualDiskSpecHasBeenChanged"]);
}

fn vm(name: &str, phase: VmPhase, attached: Option<bool>) -> VirtualMachine {
    let kind = BlockDeviceKind::VirtualDisk;
    let spec = VirtualMachineSpec {
        block_device_refs: vec![BlockDeviceRef { kind, name: "root".into() }],
        ..VirtualMachineSpec::default()
    };
    let mut vm = VirtualMachine::new(name, spec);
    let device = attached.map(|attached| BlockDeviceStatus {
        kind,
        name: "root".into(),
        attached,
        ..Default::default()
    });
    vm.status = Some(VirtualMachineStatus {
        phase: Some(phase),
        block_device_refs: device.into_iter().collect(),
        ..VirtualMachineStatus::default()
    });
    vm
}

#[test]
fn one_vm_mounts_the_disk_and_all_that_name_it_are_listed() {
    let uses = |vms: &[VirtualMachine]| -> Vec<Use> {
        vms.iter().filter_map(|vm| Use::of(vm, BlockDeviceKind::VirtualDisk, "root")).collect()
    };
    for (what, vms, expected) in [
        ("stopped", vec![vm("a", VmPhase::Stopped, Some(false))], "a NotInUse"),
        ("pending, not listed yet", vec![vm("a", VmPhase::Pending, None)], "a NotInUse"),
        ("running", vec![vm("a", VmPhase::Running, Some(true))], "a! AttachedToVirtualMachine"),
        (
            "two want it, the second has it",
            vec![vm("a", VmPhase::Pending, Some(false)), vm("b", VmPhase::Running, Some(true))],
            "a b! AttachedToVirtualMachine",
        ),
    ] {
        let mut o = ready_disk();
        o.uses = uses(&vms);
        let status = status_after(&o);
        let mut text: Vec<String> = status
            .attached_to_virtual_machines
            .iter()
            .map(|a| format!("{}{}", a.name, if a.mounted { "!" } else { "" }))
            .collect();
        text.push(reason(&status, "InUse"));
        assert_eq!(text.join(" "), expected, "{what}");
        let all = plan(&o).effects.into_iter().find_map(|e| match e {
            Effect::Patch(patch) => Some(patch.body["metadata"]["finalizers"].clone()),
            _ => None,
        });
        assert_eq!(all, Some(json!([finalizer::VD_CLEANUP, finalizer::VD_PROTECTION])), "{what}");
    }
}

#[test]
fn deletion_waits_for_users_then_removes_the_data_then_lets_go() {
    let mut o = ready_disk();
    o.disk.metadata.deletion_timestamp = Some(Time(at(99)));
    o.disk.metadata.finalizers.as_mut().unwrap().push(finalizer::VD_PROTECTION.into());
    o.uses = vec![Use { vm: "a".into(), mounts: true, attached: true }];
    let waits = plan(&o);
    assert!(waits.effects.is_empty());
    assert_eq!(waits.status.unwrap().body["status"]["phase"], "Terminating");
    o.uses.clear();
    let kinds = |o: &Observed| -> Vec<String> {
        plan(o)
            .effects
            .iter()
            .map(|e| match e {
                Effect::Patch(patch) => patch.body["metadata"]["finalizers"].to_string(),
                Effect::Delete { target, .. } => format!("delete {}", target.api.kind),
                other => format!("{other:?}"),
            })
            .collect()
    };
    assert_eq!(kinds(&o), [format!("[\"{}\"]", finalizer::VD_CLEANUP)]);
    o.disk.metadata.finalizers = Some(vec![finalizer::VD_CLEANUP.into()]);
    assert_eq!(kinds(&o), ["delete PersistentVolumeClaim"]);
    o.helpers.claim = None;
    assert_eq!(kinds(&o), ["[]"]);
}

#[test]
fn growing_is_refused_by_a_condition_and_the_disk_stays_ready() {
    let mut o = ready_disk();
    o.disk.spec.persistent_volume_claim.as_mut().unwrap().size = Some("2Gi".into());
    let status = status_after(&o);
    assert_eq!(status.phase, Some(VdPhase::Ready));
    assert_eq!(reason(&status, "Resizing"), "NotAvailable");
}
