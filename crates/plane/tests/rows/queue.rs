//! Who goes first, who waits, and why a move does not come to its end: migration-and-maintenance.md §12.3 to
//! §12.6, as far as the control plane decides it.

use std::collections::BTreeSet;

use holdfast_api::engine::{Migration, MigrationReason};
use holdfast_api::vm::VmPhase;
use holdfast_api::{ModuleConfig, VirtualMachine, VirtualMachineOperation};
use holdfast_env::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt as _;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::nodes::Moves;
use crate::world::{NS, World, completed, condition, message, on_a_platform};

impl World {
    /// Changes settings of the platform.
    async fn set(&self, settings: Value) {
        let patch = Patch::Merge(json!({"spec": {"settings": settings}}));
        let api = self.cluster::<ModuleConfig>();
        api.patch("virtualization", &PatchParams::default(), &patch).await.unwrap();
    }

    /// An eviction as the rebalancer sends it; the text of its refusal.
    async fn rebalance(&self, pod: &str) -> String {
        let body = json!({
            "apiVersion": "policy/v1", "kind": "Eviction",
            "metadata": {"name": pod, "namespace": NS, "annotations": {"requested-by": "sigs.k8s.io/descheduler"}},
        });
        let (pods, usual) = (self.api::<Pod>(), PostParams::default());
        let sent = pods.create_subresource::<Value, Value>("eviction", pod, &usual, &body).await;
        sent.unwrap_err().to_string()
    }

    async fn launcher(&self, vm: &str) -> String {
        self.instance(vm).await.status.and_then(|status| status.active_pod).expect("it runs").name
    }

    /// Names of VMs by the time at which their moves left the queue.
    async fn order(&self) -> Vec<String> {
        let mut all: Vec<(Timestamp, String)> = Vec::new();
        for migration in self.migrations().await {
            if let Some(at) = migration.status.as_ref().and_then(|status| status.slot_at.clone()) {
                all.push((at.0, migration.spec.instance.name.clone()));
            }
        }
        all.sort_unstable();
        all.into_iter().map(|(_, vm)| vm).collect()
    }

    /// The migrations of a VM.
    async fn moves_of(&self, vm: &str) -> Vec<Migration> {
        let all = self.migrations().await;
        all.into_iter().filter(|migration| migration.spec.instance.name == vm).collect()
    }

    /// The first migration of a VM, once there is one.
    async fn first_move(&self, vm: &str) -> Migration {
        for _ in 0..300 {
            if let Some(migration) = self.moves_of(vm).await.pop() {
                return migration;
            }
            self.pass(1).await;
        }
        panic!("{vm} does not move: {:#?}", self.instance(vm).await.status);
    }

    /// Waits for the reason of an operation's condition `Completed`.
    async fn reason(&self, operation: &str, wanted: &str) -> VirtualMachineOperation {
        let is = |op: Option<&VirtualMachineOperation>| op.is_some_and(|op| completed(op) == wanted);
        self.until(operation, wanted, is).await.unwrap()
    }
}

fn text(operation: &VirtualMachineOperation) -> String {
    let all = operation.status.iter().flat_map(|status| &status.conditions);
    { all }.find(|c| c.type_ == "Completed").map(|c| c.message.clone()).unwrap_or_default()
}

// MM-L6, MM-D23
#[test]
fn a_free_slot_goes_to_drains_then_users_then_firmware_then_rebalancing() {
    on_a_platform(async |world| {
        for vm in ["holder", "rebalanced", "user", "firmware"] {
            world.running(vm, Some("n1"), json!({})).await;
        }
        world.nodes.wishes.borrow_mut().moves = Moves::Held;
        world.operate("holder", "Evict", "holder").await.unwrap();
        world.operation("holder", "InProgress").await;

        // The worst first. The rebalancer's eviction is like any other, but for its class.
        let refused = world.rebalance(&world.launcher("rebalanced").await).await;
        assert!(refused.contains("Eviction triggered evacuation of VMI"), "{refused}");
        let of_rebalancing = world.first_move("rebalanced").await;
        assert!(of_rebalancing.name_any().starts_with("vmop-evacuation-"), "{}", of_rebalancing.name_any());
        assert_eq!((of_rebalancing.spec.reason, of_rebalancing.spec.class), (MigrationReason::Rebalance, 5));
        let node = world.cluster::<Node>().get("n1").await.unwrap();
        assert_ne!(node.spec.and_then(|spec| spec.unschedulable), Some(true), "nothing is cordoned");
        world.operate("user", "Evict", "user").await.unwrap();
        world.pass(5).await;
        world.set(json!({"launcherImage": "holdfast/launcher:other"})).await;
        let of_firmware = world.first_move("firmware").await;
        assert!(of_firmware.name_any().starts_with("vmop-firmware-update-"), "{}", of_firmware.name_any());
        // This one starts with the new image.
        world.running("drained", Some("n1"), json!({})).await;
        world.pass(5).await;
        let _ = world.evict(&world.launcher("drained").await, false).await;
        world.first_move("drained").await;
        world.pass(5).await;
        assert_eq!(world.order().await, ["holder"], "they all wait for the slot of n1");

        world.nodes.wishes.borrow_mut().moves = Moves::Through;
        // One at a time leaves n1: seen in the order in which they go.
        let mut order: Vec<String> = Vec::new();
        let end = tokio::time::Instant::now() + std::time::Duration::from_secs(600);
        while order.len() < 5 {
            assert!(tokio::time::Instant::now() < end, "{order:?}");
            for vm in world.order().await {
                if !order.contains(&vm) {
                    order.push(vm);
                }
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        assert_eq!(order, ["holder", "drained", "user", "firmware", "rebalanced"]);
    });
}

// MM-D24
#[test]
fn an_eviction_at_the_end_of_a_move_starts_no_second_one() {
    on_a_platform(async |world| {
        world.running("web", Some("n1"), json!({})).await;
        assert!(!world.drain("n1", 5).await);
        // As if every retry of a drain fell into the last moments.
        loop {
            for pod in world.launchers_on("n1").await {
                let _ = world.evict(&pod, false).await;
            }
            let there = world.node_of("web").await;
            if there.as_deref() != Some("n1") && world.launchers_on("n1").await.is_empty() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(7)).await;
        }
        world.pass(300).await;
        assert_eq!(world.moves_of("web").await.len(), 1);
        assert_eq!(world.operations("").await.len(), 1);
        assert_eq!(world.instance("web").await.status.unwrap().evacuation_node_name, None);
    });
}

// MM-F17
#[test]
fn a_controller_that_dies_with_a_new_target_pod_makes_no_second_one() {
    on_a_platform(async |mut world| {
        world.running("web", Some("n1"), json!({})).await;
        for round in 0..3 {
            let name = format!("go-{round}");
            let before: BTreeSet<String> =
                world.launchers("web").await.iter().map(|pod| pod.name_any()).collect();
            let mut seen = BTreeSet::new();
            world.operate(&name, "Evict", "web").await.unwrap();
            // Until the moment in which the API has the pod; no time passes.
            while world.launchers("web").await.len() == before.len() {
                tokio::task::yield_now().await;
                tokio::time::sleep(std::time::Duration::from_micros(50)).await;
            }
            for _ in 0..=round {
                world.restart_controllers().await;
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            let over = |op: &VirtualMachineOperation| {
                op.status.as_ref().is_some_and(|status| status.phase.to_string() == "Completed")
            };
            while !world.get::<VirtualMachineOperation>(&name).await.is_some_and(|op| over(&op)) {
                seen.extend(world.launchers("web").await.iter().map(|pod| pod.name_any()));
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
            let targets: Vec<&String> = seen.iter().filter(|pod| !before.contains(*pod)).collect();
            assert_eq!(targets.len(), 1, "round {round}: {targets:?}");
            world.phase("web", VmPhase::Running).await;
            while world.launchers("web").await.len() > 1 {
                world.pass(1).await;
            }
        }
    });
}

// MM-F24
#[test]
fn a_target_without_its_disk_is_given_up() {
    on_a_platform(async |world| {
        world.running("web", Some("n1"), json!({})).await;
        world.nodes.wishes.borrow_mut().unmountable.extend(["n2".to_owned(), "n3".to_owned()]);
        let began = holdfast_env::now();
        world.operate("go", "Evict", "web").await.unwrap();
        let shown = world.reason("go", "False/TargetDiskError").await;
        assert_eq!(shown.status.as_ref().unwrap().phase.to_string(), "InProgress");
        assert!(text(&shown).contains("FailedMount: the claim cannot be attached"), "{}", text(&shown));
        let failed = world.operation("go", "Failed").await;
        assert_eq!(completed(&failed), "False/TargetDiskError");
        assert!(text(&failed).contains("the claim cannot be attached"), "{}", text(&failed));
        let waited = holdfast_env::now().duration_since(began).as_secs();
        assert!((890..=910).contains(&waited), "{waited} s");
        let vm = world.phase("web", VmPhase::Running).await;
        assert_eq!(vm.status.unwrap().node_name.as_deref(), Some("n1"));
        while world.launchers("web").await.len() > 1 {
            world.pass(1).await;
        }
    });
}

// Parts of MM rows P13 and L11: what users see, with the time limits set.
#[test]
fn a_move_that_does_not_converge_says_so_and_ends_in_time() {
    on_a_platform(async |world| {
        world.set(json!({"liveMigration": {"completionTimeoutPerGiB": 20}})).await;
        world.running("web", Some("n1"), json!({"memory": {"size": "1Gi"}})).await;
        world.nodes.wishes.borrow_mut().busy.insert("web".to_owned());
        world.operate("go", "Evict", "web").await.unwrap();
        world.phase("web", VmPhase::Migrating).await;
        let began = holdfast_env::now();
        let shown = world.reason("go", "False/NotConverging").await;
        assert_eq!(shown.status.as_ref().unwrap().phase.to_string(), "InProgress");
        assert!(text(&shown).contains("create one with force: true"), "{}", text(&shown));
        assert!(text(&shown).contains("given up 20 s after"), "{}", text(&shown));
        let failed = world.operation("go", "Failed").await;
        assert_eq!(completed(&failed), "False/NotConverging");
        let waited = holdfast_env::now().duration_since(began).as_secs();
        assert!((18..=22).contains(&waited), "{waited} s");
        let vm = world.phase("web", VmPhase::Running).await;
        assert_eq!(vm.status.unwrap().node_name.as_deref(), Some("n1"));
    });
}

#[test]
fn a_blocked_drain_says_why_where_people_look() {
    on_a_platform(async |world| {
        // No room: at the client, on the VM, and as an event.
        world.running("web", Some("n1"), json!({"nodeSelector": {"kubernetes.io/hostname": "n1"}})).await;
        while world.operations("evacuation-").await.len() < 2 {
            assert!(!world.drain("n1", 10).await);
        }
        let refused = world.evict(&world.launcher("web").await, false).await.unwrap_err();
        let why = "No available nodes were found to place the target VM";
        assert!(refused.0 == 429 && refused.1.contains(why), "{refused:?}");
        assert!(
            refused.1.starts_with("Evacuation in progress: Eviction triggered evacuation"),
            "{refused:?}"
        );
        let vm = world.get::<VirtualMachine>("web").await.unwrap();
        assert_eq!(condition(&vm, "EvictionRequired"), "True/EvictionRequired");
        assert!(message(&vm, "EvictionRequired").contains(why), "{}", message(&vm, "EvictionRequired"));
        let events = world.events("web").await;
        assert!(
            events.iter().any(|e| e.starts_with("Warning MigrationBackoff: ") && e.contains(why)),
            "{events:?}"
        );
        world.cordon("n1", false).await;

        // It cannot move at all.
        world.disk("local", false).await;
        world.vm("local", json!({})).await;
        let vm = world.phase("local", VmPhase::Running).await;
        let node = vm.status.unwrap().node_name.unwrap();
        assert!(!world.drain(&node, 10).await);
        let vm = world.condition("local", "EvictionRequired", "True/EvictionRequired").await;
        let text = message(&vm, "EvictionRequired");
        assert!(
            text.contains("cannot be moved: stop it") && text.contains("of VirtualDisk local is not"),
            "{text}"
        );
        let refused = world.evict(&world.launcher("local").await, false).await.unwrap_err();
        assert!(
            refused.1.contains("not live-migratable: stop it.") && refused.1.contains("the claim"),
            "{refused:?}"
        );
        world.pass(2).await;
        let events = world.events("local").await;
        assert!(
            events.iter().any(|e| e.contains("EvictionRequired: The VM should leave node")),
            "{events:?}"
        );
        // Over when the node is open again.
        world.cordon(&node, false).await;
        world.condition("local", "EvictionRequired", "").await;
    });
}
