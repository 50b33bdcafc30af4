//! Evictions and drains: migration-and-maintenance.md §12.6, vm-lifecycle.md §13.9. A drain is what
//! kubectl sends (§6.1): cordon, then one eviction a pod, again every 5 s until the pod is gone.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_api::engine::Migration;
use holdfast_api::vm::VmPhase;
use holdfast_api::{VirtualMachine, VirtualMachineOperation};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{EvictParams, PostParams};
use serde_json::json;

use crate::nodes::Moves;
use crate::world::{World, completed, on_a_platform};

impl World {
    /// One eviction; the code and text of a refusal.
    pub async fn evict(&self, pod: &str, dry_run: bool) -> Result<(), (u16, String)> {
        let params = EvictParams {
            post_options: PostParams { dry_run, ..PostParams::default() },
            ..Default::default()
        };
        match self.api::<Pod>().evict(pod, &params).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) => Err((status.code, status.message.clone())),
            Err(other) => panic!("{other}"),
        }
    }

    pub async fn launchers_on(&self, node: &str) -> Vec<String> {
        let pods = self.api::<Pod>().list(&Default::default()).await.unwrap();
        let here = |pod: &Pod| {
            pod.labels().contains_key(holdfast_api::names::label::VM_NAME)
                && pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(node)
        };
        pods.into_iter().filter(here).map(|pod| pod.name_any()).collect()
    }

    /// A drain for at most this long; true when it has ended.
    pub async fn drain(&self, node: &str, seconds: u64) -> bool {
        self.cordon(node, true).await;
        for _ in 0..seconds / 5 {
            let pods = self.launchers_on(node).await;
            if pods.is_empty() {
                return true;
            }
            for pod in pods {
                let _ = self.evict(&pod, false).await;
            }
            self.pass(5).await;
        }
        false
    }

    pub async fn node_of(&self, vm: &str) -> Option<String> {
        self.get::<VirtualMachine>(vm).await?.status?.node_name
    }

    async fn mark(&self, vm: &str) -> Option<String> {
        self.instance(vm).await.status?.evacuation_node_name
    }
}

// MM-D3, MM-D4, MM-D5, MM-D6, MM-D7
#[test]
fn evictions_of_launchers_are_answered_with_a_move() {
    on_a_platform(async |world| {
        world.nodes.wishes.borrow_mut().moves = Moves::Held;
        world.running("web", Some("n1"), json!({})).await;
        let pod = world.launchers("web").await.remove(0).name_any();
        let dry = world.evict(&pod, true).await.unwrap_err();
        assert!(dry.0 == 429 && dry.1.contains("Eviction triggered evacuation of VMI"), "{dry:?}");
        assert_eq!(world.mark("web").await, None);
        let first = world.evict(&pod, false).await.unwrap_err();
        assert!(first.0 == 429 && first.1.contains("Eviction triggered evacuation of VMI"), "{first:?}");
        assert_eq!(world.mark("web").await.as_deref(), Some("n1"));
        let again = world.evict(&pod, false).await.unwrap_err();
        let text = "Evacuation in progress: Eviction triggered evacuation of VMI";
        assert!(again.0 == 429 && again.1.contains(text), "{again:?}");
        assert!(world.get::<Pod>(&pod).await.unwrap().metadata.deletion_timestamp.is_none());
        let target = loop {
            let pods = world.launchers("web").await;
            if let Some(pod) = pods.iter().find(|p| p.name_any() != pod) {
                break pod.name_any();
            }
            world.pass(1).await;
        };
        let refused = world.evict(&target, false).await.unwrap_err();
        assert!(refused.0 == 429 && refused.1.contains("Eviction request for target Pod"), "{refused:?}");
        world.nodes.wishes.borrow_mut().moves = Moves::Through;
        let moved = |vm: Option<&VirtualMachine>| {
            vm.and_then(|vm| vm.status.as_ref()?.node_name.as_deref()).is_some_and(|node| node != "n1")
        };
        world.until::<VirtualMachine>("web", "moved", moved).await;
        // A finished launcher pod that somebody else still holds.
        let held = json!({"metadata": {"finalizers": ["example.org/hold"]}});
        let pod = world.launchers("web").await.remove(0).name_any();
        world.patch::<Pod>(&pod, held).await.unwrap();
        world.nodes.end("web", "GuestShutdown").await;
        world.phase("web", VmPhase::Stopped).await;
        assert_eq!(world.evict(&pod, false).await, Ok(()));
        world.patch::<Pod>(&pod, json!({"metadata": {"finalizers": null}})).await.ok();
    });
}

// VL-X3, MM-D8 (the alert's rule is in deploy/prometheus/alerts.yaml and tested by scripts/check-alerts: here
// what it looks at, for the hour that it takes)
#[test]
fn a_vm_that_cannot_move_keeps_its_pod() {
    on_a_platform(async |world| {
        world.disk("web", false).await;
        world.vm("web", json!({})).await;
        let vm = world.phase("web", VmPhase::Running).await;
        let node = vm.status.unwrap().node_name.unwrap();
        for pause in [0, 1800, 1800] {
            world.pass(pause).await;
            assert!(!world.drain(&node, 60).await);
            let closed = format!("holdfast_node_unschedulable{{node=\"{node}\"}} 1\n");
            let page = world.metrics.text();
            assert!(page.contains(&closed), "{page}");
            let runs = |line: &&str| {
                line.starts_with("d8_virtualization_virtualmachine_status_phase{")
                    && ["name=\"web\"", "phase=\"Running\"", &format!("node=\"{node}\"")]
                        .iter()
                        .all(|label| line.contains(*label))
            };
            assert!(page.lines().find(runs).is_some_and(|line| line.ends_with(" 1")), "{page}");
        }
        let pod = world.launchers("web").await.remove(0).name_any();
        let refused = world.evict(&pod, false).await.unwrap_err();
        assert!(refused.0 == 429 && refused.1.contains("not live-migratable"), "{refused:?}");
        world.phase("web", VmPhase::Running).await;
        assert!(world.operations("").await.is_empty());
    });
}

// MM-D10, MM-D11
#[test]
fn a_drain_without_room_tries_again_with_growing_delays() {
    on_a_platform(async |world| {
        world.running("web", Some("n1"), json!({})).await;
        world.cordon_all(true).await;
        let mut seen: BTreeMap<String, (i64, Option<i64>)> = BTreeMap::new();
        while seen.len() < 4 {
            assert!(!world.drain("n1", 5).await);
            for operation in world.operations("evacuation-").await {
                let made = operation.metadata.creation_timestamp.as_ref().unwrap().0.as_second();
                let name = format!("vmop-{}", operation.name_any());
                let end = world.get::<Migration>(&name).await.and_then(|m| m.status?.finished_at);
                let over = operation.status.as_ref().is_some_and(|s| s.phase.is_final());
                assert!(!over || completed(&operation) == "False/TargetUnschedulable");
                seen.insert(operation.name_any(), (made, end.map(|at| at.0.as_second())));
            }
        }
        let mut times: Vec<_> = seen.into_values().collect();
        times.sort_unstable();
        let gaps: Vec<i64> =
            times.windows(2).map(|pair| pair[1].0 - pair[0].1.expect("it had failed")).collect();
        for (n, gap) in gaps.iter().enumerate() {
            let least = 2_i64 << n;
            assert!((least..=least + 1).contains(gap), "{gaps:?}");
        }
        world.cordon("n2", false).await;
        assert!(world.drain("n1", 900).await);
        assert_eq!(world.node_of("web").await.as_deref(), Some("n2"));
    });
}

// MM-D13, MM-D14
#[test]
fn deleting_an_evacuation_keeps_the_vm_unless_the_drain_goes_on() {
    on_a_platform(async |world| {
        world.running("web", Some("n1"), json!({})).await;
        world.nodes.wishes.borrow_mut().moves = Moves::Copying;
        assert!(!world.drain("n1", 10).await);
        world.phase("web", VmPhase::Migrating).await;
        let first = world.operations("evacuation-").await.remove(0).name_any();
        world.delete::<VirtualMachineOperation>(&first).await;
        world.until::<VirtualMachineOperation>(&first, "gone", |op| op.is_none()).await;
        assert_eq!(world.mark("web").await, None);
        assert!(!world.drain("n1", 10).await, "it goes on");
        let second = world.operations("evacuation-").await.remove(0).name_any();
        // The drain has stopped.
        world.delete::<VirtualMachineOperation>(&second).await;
        world.until::<VirtualMachineOperation>(&second, "gone", |op| op.is_none()).await;
        world.pass(300).await;
        assert!(world.operations("evacuation-").await.is_empty());
        let vm = world.phase("web", VmPhase::Running).await;
        assert_eq!(vm.status.unwrap().node_name.as_deref(), Some("n1"));
    });
}

// MM-D15
#[test]
fn a_users_eviction_serves_the_drain() {
    on_a_platform(async |world| {
        world.running("web", Some("n1"), json!({})).await;
        world.nodes.wishes.borrow_mut().moves = Moves::Copying;
        world.operate("mine", "Evict", "web").await.unwrap();
        world.phase("web", VmPhase::Migrating).await;
        assert!(!world.drain("n1", 20).await);
        assert!(world.operations("evacuation-").await.is_empty());
        world.nodes.wishes.borrow_mut().moves = Moves::Through;
        assert!(world.drain("n1", 60).await);
        world.operation("mine", "Completed").await;
        assert!(world.operations("evacuation-").await.is_empty());
    });
}

// MM-D17, MM-D18
#[test]
fn two_nodes_at_once_and_a_vm_that_just_arrives() {
    on_a_platform(async |world| {
        for node in ["n1", "n2"] {
            for n in 0..3 {
                world.running(&format!("{node}-{n}"), Some(node), json!({})).await;
            }
        }
        let (a, b) = tokio::join!(world.drain("n1", 600), world.drain("n2", 600));
        assert!(a && b);
        for node in ["n1", "n2"] {
            for n in 0..3 {
                assert_eq!(world.node_of(&format!("{node}-{n}")).await.as_deref(), Some("n3"));
            }
        }
        assert_eq!(world.operations("").await.len(), 6, "each VM moved once");
        // On its way to n2 when the drain of n2 begins.
        world.cordon("n2", false).await;
        world.nodes.wishes.borrow_mut().moves = Moves::Copying;
        world.operate("arrive", "Evict", "n1-0").await.unwrap();
        world.phase("n1-0", VmPhase::Migrating).await;
        world.cordon("n1", false).await;
        assert!(!world.drain("n2", 20).await);
        world.nodes.wishes.borrow_mut().moves = Moves::Through;
        assert!(world.drain("n2", 300).await);
        world.operation("arrive", "Completed").await;
        assert_ne!(world.node_of("n1-0").await.as_deref(), Some("n2"));
    });
}

// MM-D25
#[test]
fn a_cordon_alone_moves_nothing() {
    on_a_platform(async |world| {
        for vm in ["stays", "restarts"] {
            world.running(vm, Some("n1"), json!({})).await;
        }
        world.running("moves", Some("n2"), json!({})).await;
        world.cordon("n1", true).await;
        world.running("new", None, json!({})).await;
        world.operate("restart", "Restart", "restarts").await.unwrap();
        world.operate("move", "Evict", "moves").await.unwrap();
        world.operation("restart", "Completed").await;
        world.operation("move", "Completed").await;
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert_eq!(world.node_of("stays").await.as_deref(), Some("n1"));
        for vm in ["new", "restarts", "moves"] {
            world.phase(vm, VmPhase::Running).await;
            assert_ne!(world.node_of(vm).await.as_deref(), Some("n1"), "{vm}");
        }
    });
}
