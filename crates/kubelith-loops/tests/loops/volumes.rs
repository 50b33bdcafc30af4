//! Claims and volumes of the built-in classes.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use crate::support::{World, create};

fn claim(name: &str, class: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
           "spec": {"storageClassName": class, "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}})
}

async fn bound(world: &World, name: &str) -> PersistentVolume {
    let claims = world.of::<PersistentVolumeClaim>("default");
    let volume = world
        .until(&format!("claim {name} is bound"), || async {
            let claim = claims.get(name).await.unwrap();
            let is_bound = claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
            claim.spec.and_then(|s| s.volume_name).filter(|_| is_bound)
        })
        .await;
    world
        .until(&format!("volume {volume} is bound"), || async {
            let found = world.all::<PersistentVolume>().get(&volume).await.unwrap();
            let is_bound = found.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
            is_bound.then_some(found)
        })
        .await
}

// KS-A74: default class, dynamic volume, protection while a pod uses it, reclaim with its data.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shared_volume_lives_and_goes_with_its_claim() {
    let world = World::new().await;
    world.node("n1").await;
    world
        .until("the classes exist", || async {
            let shared = world.all::<StorageClass>().get_opt("shared").await.unwrap()?;
            let default = shared.annotations().get("storageclass.kubernetes.io/is-default-class")?;
            let local = world.all::<StorageClass>().get_opt("local").await.unwrap();
            (default == "true" && local.is_some()).then_some(())
        })
        .await;
    let claims = world.of::<PersistentVolumeClaim>("default");
    create(&claims, claim("data", Value::Null)).await;
    let volume = bound(&world, "data").await;
    let path = world.home.path().join("storage/shared").join(volume.name_any());
    assert!(path.is_dir());
    assert_eq!(volume.spec.unwrap().host_path.unwrap().path, path.to_str().unwrap());

    let uses = json!({"spec": {"volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "data"}}]}});
    world.pod("user", uses).await;
    assert_eq!(world.placed("user").await, "n1");
    claims.delete("data", &Default::default()).await.unwrap();
    world.pod("marker", json!({})).await;
    world.placed("marker").await;
    assert!(claims.get_opt("data").await.unwrap().is_some(), "a claim in use stays");
    assert!(path.is_dir());

    let pods = world.of::<k8s_openapi::api::core::v1::Pod>("default");
    let now = kube::api::DeleteParams::default().grace_period(0);
    pods.delete("user", &now).await.unwrap();
    world.until("the data is removed", || async { (!path.exists()).then_some(()) }).await;
    world
        .until("claim and volume are gone", || async {
            let claim = claims.get_opt("data").await.unwrap();
            let volumes = world.all::<PersistentVolume>().list(&Default::default()).await.unwrap();
            (claim.is_none() && volumes.items.is_empty()).then_some(())
        })
        .await;
}

// KS-A74: node-bound volumes, at once and for the first consumer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_volumes_hold_their_pods() {
    let world = World::new().await;
    world.node("n1").await;
    world.node("n2").await;
    let claims = world.of::<PersistentVolumeClaim>("default");
    create(&claims, claim("near", json!("local"))).await;
    let volume = bound(&world, "near").await;
    let path = volume.spec.clone().unwrap().local.unwrap().path;
    let uses = |name: &str| json!({"spec": {"volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": name}}]}});
    world.pod("p1", uses("near")).await;
    let node = world.placed("p1").await;
    assert_eq!(
        path,
        world
            .home
            .path()
            .join("nodes")
            .join(&node)
            .join("storage/local")
            .join(volume.name_any())
            .to_str()
            .unwrap()
    );

    let lazy = json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "lazy"},
                      "provisioner": holdfast_kubelith_loops::LOCAL_PROVISIONER, "volumeBindingMode": "WaitForFirstConsumer"});
    create(&world.all::<StorageClass>(), lazy).await;
    create(&claims, claim("later", json!("lazy"))).await;
    let text = world.event("WaitForFirstConsumer", "later").await;
    assert!(text.contains("waiting for first consumer"), "{text}");
    let mut pod = uses("later");
    pod["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": "n2"});
    world.pod("p2", pod).await;
    assert_eq!(world.placed("p2").await, "n2");
    let volume = bound(&world, "later").await;
    assert!(world.home.path().join("nodes/n2/storage/local").join(volume.name_any()).is_dir());
}

// KS-A74: an administrator's volume is taken before a new one is made, and stays under Retain.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_made_by_hand_is_bound_and_retained() {
    let world = World::new().await;
    let volumes = world.all::<PersistentVolume>();
    let by_hand = |name: &str, size: &str| {
        json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
               "spec": {"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"], "storageClassName": "manual",
                        "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": "/var/empty"}}})
    };
    create(&volumes, by_hand("large", "9Gi")).await;
    create(&volumes, by_hand("small", "2Gi")).await;
    let claims = world.of::<PersistentVolumeClaim>("default");
    create(&claims, claim("data", json!("manual"))).await;
    assert_eq!(bound(&world, "data").await.name_any(), "small");
    claims.delete("data", &Default::default()).await.unwrap();
    world
        .until("the volume is released", || async {
            let volume = volumes.get("small").await.unwrap();
            (volume.status?.phase? == "Released").then_some(())
        })
        .await;
}
