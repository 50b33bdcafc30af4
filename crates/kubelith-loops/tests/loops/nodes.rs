//! Nodes that fall silent or go away.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::support::World;

// KS-A70: Unknown, both taints, pods not ready, eviction at tolerationSeconds; those that tolerate stay;
// the node's return takes it all back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_node_is_tainted_and_emptied() {
    let world = World::with_grace(Duration::from_millis(1500)).await;
    world.node("n1").await;
    world.node("n2").await;
    let api = world.of::<Pod>("default");
    let pinned = |tolerations: serde_json::Value| json!({"spec": {"nodeSelector": {"kubernetes.io/hostname": "n1"}, "tolerations": tolerations}});
    let key = "node.kubernetes.io/unreachable";
    world
        .pod(
            "short",
            pinned(
                json!([{"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1}]),
            ),
        )
        .await;
    world.pod("stays", pinned(json!([{"key": key, "operator": "Exists"}]))).await;
    for name in ["short", "stays"] {
        world.placed(name).await;
        let ready =
            json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
        api.patch_status(name, &PatchParams::default(), &Patch::Strategic(ready)).await.unwrap();
    }
    let nodes = world.all::<Node>();
    world
        .until("n1 is Unknown and tainted twice", || async {
            world.beat("n2").await;
            let node = nodes.get("n1").await.unwrap();
            let unknown =
                node.status?.conditions?.into_iter().any(|c| c.type_ == "Ready" && c.status == "Unknown");
            let taints = node.spec?.taints?;
            let has = |effect: &str| taints.iter().any(|t| t.key == key && t.effect == effect);
            (unknown && has("NoSchedule") && has("NoExecute")).then_some(())
        })
        .await;
    world
        .until("the pod that tolerates a second is being deleted, marked", || async {
            world.beat("n2").await;
            let pod = api.get("short").await.unwrap();
            let marked = pod
                .status?
                .conditions?
                .into_iter()
                .any(|c| c.reason.as_deref() == Some("DeletionByTaintManager"));
            (pod.metadata.deletion_timestamp.is_some() && marked).then_some(())
        })
        .await;
    let stays = api.get("stays").await.unwrap();
    assert!(stays.metadata.deletion_timestamp.is_none());
    let ready = stays.status.unwrap().conditions.unwrap().into_iter().find(|c| c.type_ == "Ready").unwrap();
    assert_eq!(ready.status, "False");
    let other = nodes.get("n2").await.unwrap();
    assert!(other.spec.unwrap().taints.unwrap_or_default().is_empty());

    world
        .until("n1's return takes the taints away", || async {
            world.beat("n1").await;
            nodes
                .get("n1")
                .await
                .unwrap()
                .spec
                .and_then(|s| s.taints)
                .is_none_or(|t| t.is_empty())
                .then_some(())
        })
        .await;
}

// KS-A71: pods of a deleted node, and the out-of-service path.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_of_a_lost_node_are_removed() {
    let world = World::with_grace(Duration::from_millis(1500)).await;
    world.node("n1").await;
    world.node("n2").await;
    let api = world.of::<Pod>("default");
    world.pod("orphan", json!({"spec": {"nodeSelector": {"kubernetes.io/hostname": "n1"}}})).await;
    world.pod("fenced", json!({"spec": {"nodeSelector": {"kubernetes.io/hostname": "n2"}}})).await;
    world.placed("orphan").await;
    world.placed("fenced").await;
    let nodes = world.all::<Node>();
    nodes.delete("n1", &Default::default()).await.unwrap();
    world
        .until("the orphan is gone", || async {
            api.get_opt("orphan").await.unwrap().is_none().then_some(())
        })
        .await;

    api.delete("fenced", &Default::default()).await.unwrap();
    assert!(api.get("fenced").await.unwrap().metadata.deletion_timestamp.is_some());
    world
        .until("n2 is Unknown", || async {
            let node = nodes.get("n2").await.unwrap();
            node.status?.conditions?.into_iter().find(|c| c.type_ == "Ready" && c.status == "Unknown")
        })
        .await;
    assert!(api.get_opt("fenced").await.unwrap().is_some(), "a silent node is no proof of anything");
    let mut node = nodes.get("n2").await.unwrap();
    let out =
        json!({"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute", "value": "nodeshutdown"});
    let taints = node.spec.get_or_insert_default().taints.get_or_insert_default();
    taints.push(serde_json::from_value(out).unwrap());
    let patch = json!({"spec": {"taints": taints}});
    nodes.patch("n2", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    world
        .until("the fenced node's pod is gone", || async {
            api.get_opt("fenced").await.unwrap().is_none().then_some(())
        })
        .await;
}

// The loops outlive their server: no node is given up because heartbeats could not be seen, and what was
// asked meanwhile is done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_the_server_blames_no_node() {
    let mut world = World::with_grace(Duration::from_secs(3)).await;
    world.node("n1").await;
    world.restart_server().await;
    let nodes = world.all::<Node>();
    let api = world.of::<Pod>("default");
    for n in 0..3 {
        let name = format!("p{n}");
        world
            .until("the server takes the pod", || async {
                let pod = serde_json::from_value(crate::support::pod(&name, json!({}))).unwrap();
                api.create(&Default::default(), &pod).await.ok()
            })
            .await;
        assert_eq!(world.placed(&name).await, "n1");
        world.beat("n1").await;
    }
    let ready = nodes.get("n1").await.unwrap().status.unwrap().conditions.unwrap();
    assert!(ready.iter().any(|c| c.type_ == "Ready" && c.status == "True"), "{ready:?}");
    // And a node that really is silent is still found out.
    world
        .until("n1 is Unknown", || async {
            let node = nodes.get("n1").await.unwrap();
            node.status?.conditions?.into_iter().find(|c| c.type_ == "Ready" && c.status == "Unknown")
        })
        .await;
}
