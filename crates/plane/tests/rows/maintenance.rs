//! NodeMaintenance: migration-and-maintenance.md §12.8.

use std::time::Duration;

use holdfast_api::engine::Instance;
use holdfast_api::maintenance::{
    DRAIN_TAINT, EXCLUDE_LABEL, LEASE_HOLDER, LEASE_NAMESPACE, MaintenancePhase, NodeMaintenanceStatus,
    UNSCHEDULABLE_TAINT,
};
use holdfast_api::vm::VmPhase;
use holdfast_api::{NodeMaintenance, VirtualMachineOperation};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::nodes::Moves;
use crate::world::{World, on_a_platform};

const NM: &str = "nm";
/// Longest wait for a maintenance, on the paused clock.
const DEADLINE: Duration = Duration::from_secs(900);

impl World {
    async fn maintain(&self, name: &str, node: &str) -> Result<NodeMaintenance, String> {
        let object = json!({"metadata": {"name": name}, "spec": {"nodeName": node, "reason": "memory"},
            "apiVersion": "nodemaintenance.medik8s.io/v1beta1", "kind": "NodeMaintenance"});
        let object = serde_json::from_value(object).unwrap();
        let made = self.cluster::<NodeMaintenance>().create(&PostParams::default(), &object).await;
        made.map_err(|error| error.to_string())
    }

    async fn maintenance(&self) -> NodeMaintenanceStatus {
        let found = self.cluster::<NodeMaintenance>().get_opt(NM).await.unwrap();
        found.and_then(|object| object.status).unwrap_or_default()
    }

    async fn until_maintenance(
        &self,
        what: &str,
        is: impl Fn(&NodeMaintenanceStatus) -> bool,
    ) -> NodeMaintenanceStatus {
        let end = Instant::now() + DEADLINE;
        loop {
            let status = self.maintenance().await;
            if is(&status) {
                return status;
            }
            assert!(Instant::now() < end, "{what} did not happen: {status:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn succeeded(&self) -> NodeMaintenanceStatus {
        self.until_maintenance("Succeeded", |s| s.phase == Some(MaintenancePhase::Succeeded)).await
    }

    async fn end_maintenance(&self) {
        let api = self.cluster::<NodeMaintenance>();
        api.delete(NM, &DeleteParams::default()).await.unwrap();
        let end = Instant::now() + DEADLINE;
        while api.get_opt(NM).await.unwrap().is_some() {
            assert!(Instant::now() < end, "it is not deleted");
            self.pass(1).await;
        }
    }

    fn leases(&self) -> Api<Lease> {
        Api::namespaced(self.client.clone(), LEASE_NAMESPACE)
    }

    async fn holder(&self) -> Option<String> {
        self.leases().get_opt("node-n1").await.unwrap()?.spec?.holder_identity
    }

    async fn held_by(&self, holder: &str) {
        let now = format!("{}.000000Z", &holdfast_env::now().to_string()[..19]);
        let spec = json!({"holderIdentity": holder, "leaseDurationSeconds": 3600, "renewTime": now});
        if self.holder().await.is_some() {
            let patch = Patch::Merge(json!({ "spec": spec }));
            self.leases().patch("node-n1", &PatchParams::default(), &patch).await.unwrap();
        } else {
            let namespace: Namespace =
                serde_json::from_value(json!({"metadata": {"name": LEASE_NAMESPACE}})).unwrap();
            self.cluster::<Namespace>().create(&PostParams::default(), &namespace).await.unwrap();
            let lease = json!({"metadata": {"name": "node-n1"}, "spec": spec});
            let lease = serde_json::from_value(lease).unwrap();
            self.leases().create(&PostParams::default(), &lease).await.unwrap();
        }
    }

    /// Whether n1 is cordoned, which of the taints of a maintenance it has, whether it has the label.
    async fn closed(&self) -> (bool, usize, bool) {
        let node = self.cluster::<Node>().get("n1").await.unwrap();
        let label = node.labels().get(EXCLUDE_LABEL).is_some_and(|value| value == "true");
        let spec = node.spec.unwrap_or_default();
        let ours = |key: &str| key == DRAIN_TAINT || key == UNSCHEDULABLE_TAINT;
        let taints = spec.taints.unwrap_or_default();
        let taints = taints.iter().filter(|taint| ours(&taint.key) && taint.effect == "NoSchedule").count();
        (spec.unschedulable == Some(true), taints, label)
    }

    /// A VM on n1 that cannot move.
    async fn bound(&self, name: &str) -> String {
        self.only("n1").await;
        self.disk(name, false).await;
        self.vm(name, json!({})).await;
        self.phase(name, VmPhase::Running).await;
        self.cordon_all(false).await;
        self.launchers(name).await.remove(0).name_any()
    }

    /// A pod on n1 that is none of ours, running.
    async fn pod(&self, name: &str, meta: Value) {
        let mut object = json!({"metadata": {"name": name, "labels": {"app": name}},
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "none"}]}});
        crate::world::merge(&mut object["metadata"], &meta);
        let object = serde_json::from_value(object).unwrap();
        self.api::<Pod>().create(&PostParams::default(), &object).await.unwrap();
        let status = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
        let patch = Patch::Merge(json!({ "status": status }));
        self.api::<Pod>().patch_status(name, &PatchParams::default(), &patch).await.unwrap();
    }

    /// What would differ after a restart of the guest.
    async fn boot(&self, vm: &str) -> (i64, String) {
        let instance = self.instance(vm).await;
        let started = instance.status.unwrap().runtime.unwrap().started_at.unwrap().0;
        (instance.spec.epoch, started.to_string())
    }

    async fn at(&self, vm: &str) -> String {
        self.instance(vm).await.status.unwrap().node.unwrap_or_default()
    }
}

const OPEN: (bool, usize, bool) = (false, 0, false);
const CLOSED: (bool, usize, bool) = (true, 2, true);

// MM-M1, MM-M2, MM-M4, MM-M5, MM-M9
#[test]
fn a_node_is_emptied_and_comes_back() {
    on_a_platform(async |world| {
        for vm in ["a", "b"] {
            world.running(vm, Some("n1"), json!({})).await;
        }
        let boots = (world.boot("a").await, world.boot("b").await);
        world.nodes.wishes.borrow_mut().moves = Moves::Copying;
        world.maintain(NM, "n1").await.unwrap();
        let (mut progress, mut written) = (Vec::new(), Vec::new());
        let (begun, end) = (Instant::now(), Instant::now() + DEADLINE);
        loop {
            if begun.elapsed() > Duration::from_secs(70) {
                world.nodes.wishes.borrow_mut().moves = Moves::Through;
            }
            let status = world.maintenance().await;
            let pending = u32::try_from(status.pending_pods.len()).unwrap();
            assert!(
                status.total_pods >= status.eviction_pods && status.eviction_pods >= pending,
                "{status:?}"
            );
            assert_eq!(status.pending_pods.len(), status.pending_pods_refs.len());
            progress.push(status.drain_progress);
            written.extend(status.last_update.as_ref().map(|at| at.0));
            if status.phase == Some(MaintenancePhase::Succeeded) {
                break;
            }
            assert!(Instant::now() < end, "{status:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        progress.dedup();
        assert_eq!(progress, [0, 50, 100]);
        assert!(written.is_sorted() && written.first() < written.last(), "{written:?}");
        let status = world.maintenance().await;
        assert!(status.pending_pods.is_empty() && status.last_error.is_none());
        assert_eq!(world.closed().await, CLOSED);
        assert_eq!(world.holder().await.as_deref(), Some(LEASE_HOLDER));
        assert!(world.at("a").await != "n1" && world.at("b").await != "n1");
        assert_eq!((world.boot("a").await, world.boot("b").await), boots, "same guests");

        let text = "invalid nodeName, a NodeMaintenance for node n1 already exists";
        assert!(world.maintain("second", "n1").await.unwrap_err().contains(text));
        let other = Patch::Merge(json!({"spec": {"nodeName": "n2"}}));
        let changed = world.cluster::<NodeMaintenance>().patch(NM, &PatchParams::default(), &other).await;
        assert!(changed.unwrap_err().to_string().contains("updating spec.NodeName isn't allowed"));

        world.end_maintenance().await;
        assert_eq!((world.closed().await, world.holder().await), (OPEN, None));
        let told = [world.events(NM).await, world.events("n1").await].concat();
        for reason in ["BeginMaintenance", "SucceedMaintenance", "RemovedMaintenance", "UncordonNode"] {
            let count = told.iter().filter(|event| event.starts_with(&format!("Normal {reason}:"))).count();
            assert_eq!(count, 1, "{reason}: {told:?}");
        }
        world.disk("c", true).await;
        world.vm("c", json!({"nodeSelector": {"kubernetes.io/hostname": "n1"}})).await;
        world.phase("c", VmPhase::Running).await;
    });
}

// MM-M3
#[test]
fn an_unknown_node_is_refused() {
    on_a_platform(async |world| {
        let refused = world.maintain(NM, "n9").await.unwrap_err();
        assert!(refused.contains("invalid nodeName, no node with name n9 found"), "{refused}");
        // The embedded control plane is one process on the machine: no node is a part of it.
        world.label_node("n1", "node-role.kubernetes.io/control-plane", Some("")).await;
        world.maintain(NM, "n1").await.unwrap();
        world.succeeded().await;
    });
}

// MM-M7, MM-M8, OS-46, OS-67
#[test]
fn a_vm_that_cannot_move_holds_it_up_until_it_is_stopped() {
    on_a_platform(async |world| {
        let launcher = world.bound("web").await;
        let owner = json!({"metadata": {"name": "owner"}});
        let owner = serde_json::from_value::<ConfigMap>(owner).unwrap();
        let owner = world.api::<ConfigMap>().create(&PostParams::default(), &owner).await.unwrap();
        for (name, version, kind) in [("owned", "v1", "ConfigMap"), ("daemon", "apps/v1", "DaemonSet")] {
            let owner = json!({"apiVersion": version, "kind": kind, "name": "owner",
                "uid": owner.metadata.uid, "controller": true});
            world.pod(name, json!({"ownerReferences": [owner]})).await;
        }
        world.pod("bare", json!({})).await;
        world.maintain(NM, "n1").await.unwrap();
        let only = |status: &NodeMaintenanceStatus| status.pending_pods == [launcher.clone()];
        let status = world.until_maintenance("the others leave", only).await;
        assert_eq!((status.eviction_pods, status.total_pods), (3, 4));
        world.pass(300).await;
        let status = world.maintenance().await;
        assert!(only(&status) && status.phase == Some(MaintenancePhase::Running), "{status:?}");
        assert_eq!(status.drain_progress, 66);
        let error = status.last_error.unwrap();
        assert!(error.contains(&launcher) && error.contains("is not live-migratable"), "{error}");
        let pods = world.api::<Pod>().list(&Default::default()).await.unwrap();
        let mut names: Vec<String> = pods.into_iter().map(|pod| pod.name_any()).collect();
        names.sort();
        assert_eq!(names, ["daemon".to_owned(), launcher]);
        world.phase("web", VmPhase::Running).await;

        world.operate("stop", "Stop", "web").await.unwrap();
        let status = world.succeeded().await;
        assert_eq!((status.drain_progress, status.last_error), (100, None));
        assert!(world.get::<Pod>("daemon").await.is_some());
    });
}

// MM-M10
#[test]
fn deletion_on_the_way_calls_off_what_waits() {
    on_a_platform(async |world| {
        world.nodes.wishes.borrow_mut().moves = Moves::Held;
        for vm in ["a", "b"] {
            world.running(vm, Some("n1"), json!({})).await;
        }
        let launcher = world.bound("web").await;
        world.maintain(NM, "n1").await.unwrap();
        let end = Instant::now() + DEADLINE;
        while world.operations("evacuation-").await.len() < 2 {
            assert!(Instant::now() < end, "both are asked to leave");
            world.pass(1).await;
        }
        assert!(world.maintenance().await.pending_pods.contains(&launcher));
        world.end_maintenance().await;
        assert_eq!((world.closed().await, world.holder().await), (OPEN, None));
        for operation in world.operations("evacuation-").await {
            let name = operation.name_any();
            world.until::<VirtualMachineOperation>(&name, "called off", |op| op.is_none()).await;
        }
        world.nodes.wishes.borrow_mut().moves = Moves::Through;
        world.pass(120).await;
        for vm in ["a", "b", "web"] {
            world.phase(vm, VmPhase::Running).await;
            assert_eq!(world.at(vm).await, "n1");
            let unmarked = |instance: Option<&Instance>| {
                instance.is_some_and(|i| i.status.as_ref().is_some_and(|s| s.evacuation_node_name.is_none()))
            };
            world.until::<Instance>(vm, "the mark is cleared", unmarked).await;
        }
        assert!(world.operations("evacuation-").await.is_empty(), "the drain has stopped");
        assert!(world.events("n1").await.iter().any(|event| event.starts_with("Normal UncordonNode")));
    });
}

// MM-M11
#[test]
fn another_holder_of_the_lease_is_waited_for() {
    on_a_platform(async |world| {
        world.running("web", Some("n1"), json!({})).await;
        world.held_by("fencer").await;
        world.maintain(NM, "n1").await.unwrap();
        for _ in 0..30 {
            world.pass(10).await;
            let status = world.maintenance().await;
            assert_eq!(world.closed().await, OPEN);
            assert_eq!((status.phase, status.error_on_lease_count), (Some(MaintenancePhase::Running), 0));
        }
        assert_eq!(world.at("web").await, "n1");
        let free = Patch::Merge(json!({"spec": {"holderIdentity": null}}));
        world.leases().patch("node-n1", &PatchParams::default(), &free).await.unwrap();
        world.succeeded().await;
        assert_eq!(world.closed().await, CLOSED);
        assert_ne!(world.at("web").await, "n1");
    });
}

// MM-M12
#[test]
fn a_lease_that_is_taken_away_ends_it() {
    on_a_platform(async |world| {
        world.running("web", Some("n1"), json!({})).await;
        world.bound("stays").await;
        world.maintain(NM, "n1").await.unwrap();
        world.until_maintenance("half of it", |status| status.drain_progress == 50).await;
        world.held_by("fencer").await;
        let failed = |status: &NodeMaintenanceStatus| status.phase == Some(MaintenancePhase::Failed);
        let status = world.until_maintenance("Failed", failed).await;
        assert_eq!(status.error_on_lease_count, 4);
        let text = "maintenance failed: lease could not be extended after 4 attempts";
        assert!(status.last_error.is_some_and(|error| error.contains(text)));
        world.pass(2).await;
        assert_eq!(world.closed().await, OPEN);
        assert!(world.events(NM).await.iter().any(|event| event.starts_with("Warning FailedMaintenance")));
        world.end_maintenance().await;
        assert_eq!(world.holder().await.as_deref(), Some("fencer"), "it is not ours");
    });
}

// MM-M13
#[test]
fn a_node_that_is_deleted_ends_it() {
    on_a_platform(async |world| {
        world.bound("stays").await;
        world.maintain(NM, "n1").await.unwrap();
        world.until_maintenance("an error", |status| status.last_error.is_some()).await;
        world.nodes.wishes.borrow_mut().silent.insert("n1".to_owned());
        world.cluster::<Node>().delete("n1", &DeleteParams::default()).await.unwrap();
        let end = Instant::now() + DEADLINE;
        while world.cluster::<NodeMaintenance>().get_opt(NM).await.unwrap().is_some() {
            assert!(Instant::now() < end, "its owner is gone");
            world.pass(1).await;
        }
        world.pass(60).await;
        assert_eq!(world.holder().await, None);
        assert!(world.cluster::<Node>().get_opt("n1").await.unwrap().is_none());
    });
}

// MM-M14
#[test]
fn a_new_controller_goes_on() {
    on_a_platform(async |mut world| {
        world.bound("stays").await;
        world.nodes.wishes.borrow_mut().moves = Moves::Copying;
        world.running("web", Some("n1"), json!({})).await;
        world.maintain(NM, "n1").await.unwrap();
        let before = world.until_maintenance("an error", |status| status.last_error.is_some()).await;
        assert_eq!(before.pending_pods.len(), 2);
        world.restart_controllers().await;
        world.pass(60).await;
        let after = world.maintenance().await;
        assert_eq!((&after.pending_pods, after.phase), (&before.pending_pods, before.phase));
        assert!(after.last_update.unwrap().0 > before.last_update.unwrap().0);
        world.nodes.wishes.borrow_mut().moves = Moves::Through;
        world.until_maintenance("half of it", |status| status.drain_progress == 50).await;
        world.restart_controllers().await;
        world.operate("stop", "Stop", "stays").await.unwrap();
        world.succeeded().await;
    });
}

// MM-M15
#[test]
fn the_object_wins_over_an_uncordon() {
    on_a_platform(async |world| {
        world.nodes.wishes.borrow_mut().moves = Moves::Held;
        world.running("web", Some("n1"), json!({})).await;
        world.maintain(NM, "n1").await.unwrap();
        let end = Instant::now() + DEADLINE;
        while world.operations("evacuation-").await.is_empty() {
            assert!(Instant::now() < end, "it is asked to leave");
            world.pass(1).await;
        }
        let first = world.operations("evacuation-").await.remove(0).metadata.uid;
        for phase in [MaintenancePhase::Running, MaintenancePhase::Succeeded] {
            world.cordon("n1", false).await;
            world.pass(10).await;
            assert_eq!(world.closed().await, CLOSED);
            assert_eq!(world.maintenance().await.phase, Some(phase));
            let now = world.operations("evacuation-").await.remove(0).metadata.uid;
            assert_eq!(now, first, "what was under way is not called off");
            world.nodes.wishes.borrow_mut().moves = Moves::Through;
            world.succeeded().await;
        }
    });
}

// MM-M17. Row M16 as far as nobody fences yet: the node that is off stays in maintenance.
#[test]
fn a_node_that_is_off_or_comes_back_stays_closed() {
    on_a_platform(async |world| {
        world.running("web", Some("n1"), json!({})).await;
        world.maintain(NM, "n1").await.unwrap();
        world.succeeded().await;
        let boot = world.boot("web").await;
        world.nodes.wishes.borrow_mut().silent.insert("n1".to_owned());
        world.pass(1200).await;
        assert_eq!(world.closed().await, CLOSED);
        world.nodes.wishes.borrow_mut().silent.clear();
        world.nodes.boot("n1", "boot-b").await;
        world.pass(60).await;
        assert_eq!(world.closed().await, CLOSED);
        assert_eq!(world.maintenance().await.phase, Some(MaintenancePhase::Succeeded));
        assert_eq!(world.boot("web").await, boot);
    });
}

// MM-M18
#[test]
fn a_budget_that_allows_nothing_is_waited_for() {
    on_a_platform(async |world| {
        world.pod("db", json!({})).await;
        let budget = json!({"metadata": {"name": "db"},
            "spec": {"maxUnavailable": 0, "selector": {"matchLabels": {"app": "db"}}}});
        let budget = serde_json::from_value(budget).unwrap();
        world.api::<PodDisruptionBudget>().create(&PostParams::default(), &budget).await.unwrap();
        let counted = |budget: Option<&PodDisruptionBudget>| {
            budget.is_some_and(|b| b.status.as_ref().is_some_and(|s| s.observed_generation.is_some()))
        };
        world.until::<PodDisruptionBudget>("db", "counted", counted).await;
        world.maintain(NM, "n1").await.unwrap();
        world.pass(600).await;
        let status = world.maintenance().await;
        assert_eq!(
            (status.phase, status.pending_pods),
            (Some(MaintenancePhase::Running), vec!["db".to_owned()])
        );
        let error = status.last_error.unwrap();
        assert!(
            error.contains("Cannot evict pod as it would violate the pod's disruption budget."),
            "{error}"
        );
        world.delete::<PodDisruptionBudget>("db").await;
        world.succeeded().await;
        assert!(world.get::<Pod>("db").await.is_none());
    });
}
