//! Placement, as users of the API see it.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::support::{World, create, pod};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_are_bound_quickly_and_spread() {
    let world = World::new().await;
    for name in ["n1", "n2", "n3"] {
        world.node(name).await;
    }
    let mut times = Vec::new();
    let mut nodes = Vec::new();
    for n in 0..6 {
        let name = format!("p{n}");
        let start = Instant::now();
        world.pod(&name, json!({})).await;
        nodes.push(world.placed(&name).await);
        times.push(start.elapsed());
    }
    nodes.sort();
    assert_eq!(nodes, ["n1", "n1", "n2", "n2", "n3", "n3"]);
    times.sort();
    println!("create to bound: median {:?}, slowest {:?}", times[times.len() / 2], times[times.len() - 1]);
    assert!(times[times.len() / 2] < Duration::from_millis(500), "{times:?}");
    let text = world.event("Scheduled", "p0").await;
    assert!(text.starts_with("Successfully assigned default/p0 to n"), "{text}");
}

// KS-A68: the text, and placement soon after a node becomes fit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_fits_nowhere_says_why_and_is_placed_later() {
    let world = World::new().await;
    world.node("n1").await;
    world.node("n2").await;
    let api = world.all::<Node>();
    let cordon = |on: bool| Patch::Strategic(json!({"spec": {"unschedulable": on}}));
    api.patch("n1", &PatchParams::default(), &cordon(true)).await.unwrap();
    world
        .until("the cordon's taint", || async {
            let taints = api.get("n1").await.unwrap().spec.unwrap().taints.unwrap_or_default();
            taints.iter().any(|t| t.key == "node.kubernetes.io/unschedulable").then_some(())
        })
        .await;
    let big = json!({"spec": {"nodeSelector": {"kubernetes.io/hostname": "n1"}}});
    world.pod("p", big).await;
    let text = "0/2 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, 1 node(s) were unschedulable.";
    assert_eq!(world.event("FailedScheduling", "p").await, text);
    let condition = world
        .until("the condition", || async {
            let status = world.of::<Pod>("default").get("p").await.unwrap().status?;
            status.conditions?.into_iter().find(|c| c.type_ == "PodScheduled")
        })
        .await;
    assert_eq!((condition.status.as_str(), condition.reason.as_deref()), ("False", Some("Unschedulable")));
    assert_eq!(condition.message.as_deref(), Some(text));

    api.patch("n1", &PatchParams::default(), &cordon(false)).await.unwrap();
    let start = Instant::now();
    assert_eq!(world.placed("p").await, "n1");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_never_overcommits() {
    let world = World::new().await;
    world.node("n1").await;
    world.node("n2").await;
    let api = world.of::<Pod>("default");
    let creates = (0..12).map(|n| create(&api, pod(&format!("p{n}"), json!({}))));
    futures::future::join_all(creates).await;
    world
        .until("8 pods are bound and 4 refused", || async {
            let all = api.list(&Default::default()).await.unwrap().items;
            let bound = all.iter().filter(|p| p.spec.as_ref().is_some_and(|s| s.node_name.is_some())).count();
            assert!(bound <= 8, "{bound} pods of one core on 8 cores");
            let refused = all.iter().filter(|p| {
                let conditions = p.status.as_ref().and_then(|s| s.conditions.as_ref());
                conditions.is_some_and(|c| c.iter().any(|c| c.reason.as_deref() == Some("Unschedulable")))
            });
            (bound == 8 && refused.count() == 4).then_some(())
        })
        .await;
}

// KS-A72: a user's budget on ready pods, kept current.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn budgets_follow_their_pods() {
    let world = World::new().await;
    world.node("n1").await;
    let budgets = world.of::<PodDisruptionBudget>("default");
    let spec = json!({"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}});
    create(&budgets, json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "b"}, "spec": spec})).await;
    let api = world.of::<Pod>("default");
    for name in ["a", "b"] {
        world.pod(name, json!({"metadata": {"labels": {"app": "web"}}})).await;
        world.placed(name).await;
        let ready =
            json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
        api.patch_status(name, &PatchParams::default(), &Patch::Strategic(ready)).await.unwrap();
    }
    world
        .until("one disruption is allowed", || async {
            let status = budgets.get("b").await.unwrap().status?;
            let numbers = [
                status.expected_pods,
                status.current_healthy,
                status.desired_healthy,
                status.disruptions_allowed,
            ];
            (numbers == [2, 2, 1, 1].map(Some)).then_some(())
        })
        .await;
    let gone = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
    api.patch_status("a", &PatchParams::default(), &Patch::Strategic(gone)).await.unwrap();
    world
        .until("no disruption is allowed", || async {
            let status = budgets.get("b").await.unwrap().status?;
            let condition = status.conditions?.into_iter().find(|c| c.type_ == "DisruptionAllowed")?;
            (status.disruptions_allowed == Some(0) && condition.reason == "InsufficientPods").then_some(())
        })
        .await;
}
