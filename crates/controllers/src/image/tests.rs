//! Tables of the image machine.

use super::*;
use holdfast_api::cvi::ClusterVirtualImageSpec;
use holdfast_api::names::annotation;
use holdfast_api::source::{DataSource, ObjectRefSource};
use holdfast_api::vi::VirtualImageSpec;
use holdfast_api::{ClusterVirtualImage, VirtualImage};
use k8s_openapi::api::core::v1::PersistentVolume;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn from(kind: ObjectRefKind) -> DataSource {
    let object_ref = Some(ObjectRefSource { kind, name: "origin".into(), namespace: None });
    DataSource { type_: DataSourceType::ObjectRef, object_ref, ..DataSource::default() }
}

fn observed<I: Image>(mut image: I) -> Observed<I> {
    let meta = image.meta_mut();
    meta.uid = Some("u1".into());
    meta.generation = Some(1);
    meta.finalizers = Some(vec![I::CLEANUP.into()]);
    let class = json!({
        "metadata": {"name": "shared", "annotations": {annotation::DEFAULT_STORAGE_CLASS: "true"}},
        "provisioner": "holdfast.local/shared",
    });
    Observed {
        now: at(100),
        image,
        origin: None,
        uses: Vec::new(),
        views: Views::default(),
        classes: vec![serde_json::from_value(class).unwrap()],
        helpers: Helpers::default(),
        version: "1".into(),
    }
}

fn vi(source: DataSource) -> Observed<VirtualImage> {
    let mut image = VirtualImage::new("img", VirtualImageSpec { data_source: source, ..Default::default() });
    image.metadata.namespace = Some("shop".into());
    observed(image)
}

fn cvi() -> Observed<ClusterVirtualImage> {
    let http = holdfast_api::source::HttpSource { url: "https://h/i".into(), ..Default::default() };
    let source = DataSource { type_: DataSourceType::HTTP, http: Some(http), ..DataSource::default() };
    observed(ClusterVirtualImage::new("img", ClusterVirtualImageSpec { data_source: source }))
}

fn status_after<I: Image>(o: &Observed<I>) -> VirtualImageStatus {
    let old = o.image.view().unwrap_or_default();
    let Step { state, facts, .. } = advance(o, &old);
    status::of(o, &old, &state, facts.as_ref())
}

fn reason(status: &VirtualImageStatus, kind: &str) -> String {
    condition::find(&status.conditions, kind).map(|c| c.reason.clone()).unwrap_or_default()
}

fn origin(namespace: &str) -> Origin {
    Origin {
        uid: "o".into(),
        ready: true,
        reserved: true,
        namespace: namespace.into(),
        claim: "c".into(),
        bytes: Some(1 << 20),
        ..Origin::default()
    }
}

#[test]
fn a_disk_as_source_must_be_free_and_reserved() {
    let disk = ObjectRefKind::VirtualDisk;
    for (what, kind, origin, datasource) in [
        ("missing", disk, None, "VirtualDiskNotReady"),
        ("not ready", disk, Some(Origin { ready: false, ..origin("shop") }), "VirtualDiskNotReady"),
        (
            "attached",
            disk,
            Some(Origin { in_use_by: Some("web".into()), ..origin("shop") }),
            "VirtualDiskAttachedToVirtualMachine",
        ),
        (
            "not reserved",
            disk,
            Some(Origin { reserved: false, ..origin("shop") }),
            "VirtualDiskNotReadyForUse",
        ),
        ("free", disk, Some(origin("shop")), "DatasourceReady"),
        ("image missing", ObjectRefKind::VirtualImage, None, "ImageNotReady"),
        ("cluster image missing", ObjectRefKind::ClusterVirtualImage, None, "ClusterImageNotReady"),
        (
            "cluster image",
            ObjectRefKind::ClusterVirtualImage,
            Some(origin("holdfast-system")),
            "DatasourceReady",
        ),
        ("snapshot", ObjectRefKind::VirtualDiskSnapshot, None, "VirtualDiskSnapshotNotReady"),
    ] {
        let mut o = vi(from(kind));
        o.origin = origin;
        let status = status_after(&o);
        assert_eq!(reason(&status, "DatasourceReady"), datasource, "{what}");
        let phase =
            if datasource == "DatasourceReady" { ImagePhase::Provisioning } else { ImagePhase::Pending };
        assert_eq!(status.phase, Some(phase), "{what}");
    }
}

fn volume() -> PersistentVolume {
    serde_json::from_value(json!({
        "metadata": {"name": "pvc-1"},
        "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany"], "storageClassName": "shared",
            "hostPath": {"path": "/v"}, "persistentVolumeReclaimPolicy": "Delete",
            "claimRef": {"namespace": "holdfast-system", "name": "x", "uid": "y"},
        },
    }))
    .unwrap()
}

fn ready_cvi() -> Observed<ClusterVirtualImage> {
    let mut o = cvi();
    o.helpers.claim = serde_json::from_value(json!({
        "metadata": {"name": "d8v-cvi-img-u1"}, "spec": {"storageClassName": "shared"}, "status": {"phase": "Bound"},
    }))
    .ok();
    o.views.volume = Some(volume());
    let ready = VirtualImageStatus { phase: Some(ImagePhase::Ready), ..Default::default() };
    o.image.status = serde_json::from_value(serde_json::to_value(ready).unwrap()).unwrap();
    o.image.status = serde_json::from_value(serde_json::to_value(status_after(&o)).unwrap()).unwrap();
    o
}

#[test]
fn a_ready_cluster_image_is_settled_and_shown_where_it_is_used() {
    let mut o = ready_cvi();
    assert!(plan(&o).is_empty(), "{:?}", plan(&o));
    o.views.needed_in = vec!["shop".into()];
    let plan = plan(&o);
    let [Effect::Create(volume), Effect::Create(claim)] = &plan.effects[..] else { panic!("{plan:?}") };
    let spec = &volume.object.value["spec"];
    assert_eq!(spec["hostPath"]["path"], "/v");
    assert_eq!(spec["persistentVolumeReclaimPolicy"], "Retain", "the view's end must not remove the data");
    assert_eq!(spec["claimRef"]["namespace"], "shop");
    assert!(spec["claimRef"].get("uid").is_none());
    assert_eq!(claim.object.value["metadata"]["name"], "d8v-cvi-img-u1");
    assert_eq!(claim.object.value["spec"]["volumeName"], volume.object.value["metadata"]["name"]);
}

#[test]
fn views_nobody_needs_go_claim_first() {
    let mut o = ready_cvi();
    o.views.needed_in = vec!["shop".into()];
    let created = plan(&o).effects;
    let [Effect::Create(volume), Effect::Create(claim)] = &created[..] else { panic!() };
    o.views.volumes = vec![serde_json::from_value(volume.object.value.clone()).unwrap()];
    o.views.claims = vec![serde_json::from_value(claim.object.value.clone()).unwrap()];
    assert!(plan(&o).effects.is_empty());
    o.views.needed_in.clear();
    let deleted = |o: &Observed<ClusterVirtualImage>| -> Vec<String> {
        plan(o)
            .effects
            .iter()
            .map(|e| {
                if let Effect::Delete { target, .. } = e { target.api.kind.clone() } else { format!("{e:?}") }
            })
            .collect()
    };
    assert_eq!(deleted(&o), ["PersistentVolumeClaim"]);
    o.views.claims.clear();
    assert_eq!(deleted(&o), ["PersistentVolume"]);
}

#[test]
fn deletion_waits_for_vms_then_views_then_data() {
    let mut o = ready_cvi();
    o.image.metadata.deletion_timestamp = Some(Time(at(99)));
    o.uses = vec![("shop".into(), Use { vm: "web".into(), mounts: true, attached: true })];
    assert!(plan(&o).effects.is_empty());
    o.uses.clear();
    let end = plan(&o).effects;
    assert!(
        matches!(&end[..], [Effect::Delete { target, .. }] if target.api.kind == "PersistentVolumeClaim")
    );
    o.helpers.claim = None;
    assert!(matches!(&plan(&o).effects[..], [Effect::Patch(_)]));
}

#[test]
fn a_namespaced_image_names_its_storage_and_a_cluster_image_does_not() {
    let mut o = vi(from(ObjectRefKind::VirtualDisk));
    o.origin = Some(origin("shop"));
    assert_eq!(reason(&status_after(&o), "StorageClassReady"), "DVCRTypeUsed");
    o.image.spec.storage = holdfast_api::vi::ImageStorage::PersistentVolumeClaim;
    assert_eq!(reason(&status_after(&o), "StorageClassReady"), "StorageClassReady");
    o.classes.clear();
    assert_eq!(reason(&status_after(&o), "StorageClassReady"), "StorageClassNotFound");
    assert_eq!(reason(&status_after(&cvi()), "StorageClassReady"), "");
}
