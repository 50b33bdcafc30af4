//! What operators see: migration-and-maintenance.md §11 and §12.10.

use std::collections::BTreeMap;

use holdfast_api::vm::VmPhase;
use holdfast_api::{VirtualMachine, VirtualMachineOperation};
use k8s_openapi::api::core::v1::Event;
use kube::ResourceExt as _;
use serde_json::json;

use crate::nodes::Moves;
use crate::world::{World, on_a_platform};

impl World {
    /// Events about an object: `Type Reason` → how many objects, and how often in all.
    async fn told(&self, name: &str) -> BTreeMap<String, (usize, i32)> {
        // Events come a moment later.
        self.pass(1).await;
        let mut told = BTreeMap::new();
        for event in self.api::<Event>().list(&Default::default()).await.unwrap() {
            if event.involved_object.name.as_deref() == Some(name) {
                let key = format!("{} {}", event.type_.unwrap_or_default(), event.reason.unwrap_or_default());
                let entry: &mut (usize, i32) = told.entry(key).or_default();
                entry.0 += 1;
                entry.1 += event.count.unwrap_or_default();
            }
        }
        told
    }

    async fn assert_told_once(&self, name: &str, want: &[&str]) {
        let told = self.told(name).await;
        for key in want {
            assert_eq!(told.get(*key), Some(&(1, 1)), "{key} about {name}: {told:#?}");
        }
    }

    /// The value of a series whose line begins like this.
    fn metric(&self, beginning: &str) -> Option<f64> {
        let text = self.metrics.text();
        let line = text.lines().find(|line| line.starts_with(beginning))?;
        line.rsplit(' ').next()?.parse().ok()
    }
}

// MM X4: every row of §11.2 but the quota's and those of NodeMaintenance.
#[test]
fn the_events_of_a_move_are_told_once() {
    on_a_platform(async |world| {
        world.running("web", Some("n1"), json!({})).await;
        world.operate("go", "Evict", "web").await.unwrap();
        world.operation("go", "Completed").await;
        world
            .assert_told_once(
                "go",
                &[
                    "Normal VirtualMachineOperationStarted",
                    "Normal VirtualMachineOperationInProgress",
                    "Normal VirtualMachineOperationSucceeded",
                    "Normal SuccessfulCreate",
                    "Normal SuccessfulMigration",
                ],
            )
            .await;
        let of_vm = ["Evicted", "PreparingTarget", "Migrating", "SuccessfulHandOver", "Migrated"];
        let of_vm = of_vm.map(|reason| format!("Normal {reason}"));
        world.assert_told_once("web", &of_vm.each_ref().map(String::as_str)).await;

        world.cordon_all(true).await;
        world.operate("stuck", "Evict", "web").await.unwrap();
        world.operation("stuck", "Failed").await;
        world
            .assert_told_once(
                "stuck",
                &[
                    "Warning migrationTargetPodUnschedulable",
                    "Warning FailedMigration",
                    "Warning VirtualMachineOperationFailed",
                    "Normal SuccessfulDelete",
                ],
            )
            .await;

        world.cordon_all(false).await;
        world.nodes.wishes.borrow_mut().moves = Moves::Copying;
        world.operate("off", "Migrate", "web").await.unwrap();
        world.phase("web", VmPhase::Migrating).await;
        assert_eq!(world.told("web").await["Normal Migrated"].0, 2, "a second one says that it was begun");
        world.delete::<VirtualMachineOperation>("off").await;
        world.until::<VirtualMachineOperation>("off", "gone", |op| op.is_none()).await;
        world.assert_told_once("off", &["Normal SuccessfulAbortMigration"]).await;
    });
}

// MM X4: aggregated on repeat.
#[test]
fn a_repeated_event_is_counted_also_by_the_next_controller() {
    on_a_platform(async |mut world| {
        world.running("web", None, json!({"runPolicy": "AlwaysOnUnlessStoppedManually"})).await;
        // The same words twice: operations of the same names.
        let cycle = async |world: &World| {
            world.operate("stop", "Stop", "web").await.unwrap();
            world.phase("web", VmPhase::Stopped).await;
            world.operate("start", "Start", "web").await.unwrap();
            world.phase("web", VmPhase::Running).await;
            for name in ["stop", "start"] {
                world.operation(name, "Completed").await;
                world.delete::<VirtualMachineOperation>(name).await;
                world.until::<VirtualMachineOperation>(name, "gone", |op| op.is_none()).await;
            }
        };
        cycle(&world).await;
        world.pass(1).await;
        world.restart_controllers().await;
        cycle(&world).await;
        world.pass(1).await;
        let mut said: BTreeMap<(String, String), Vec<i32>> = BTreeMap::new();
        for event in world.api::<Event>().list(&Default::default()).await.unwrap() {
            if event.involved_object.name.as_deref() == Some("web") {
                let key = (event.reason.unwrap_or_default(), event.message.unwrap_or_default());
                said.entry(key).or_default().push(event.count.unwrap_or_default());
            }
        }
        assert!(said.values().all(|counts| counts.len() == 1), "the same is one object: {said:#?}");
        assert!(said.values().any(|counts| *counts == [2]), "what was said twice is counted: {said:#?}");
    });
}

// MM-X2
#[test]
fn metrics_of_operations_follow_them() {
    on_a_platform(async |world| {
        world.running("web", Some("n1"), json!({})).await;
        world.nodes.wishes.borrow_mut().moves = Moves::Copying;
        world.operate("go", "Evict", "web").await.unwrap();
        world.phase("web", VmPhase::Migrating).await;
        assert_eq!(world.metric("kubevirt_vmi_migrations_in_running_phase"), Some(1.0));
        world.nodes.wishes.borrow_mut().moves = Moves::Through;
        world.operation("go", "Completed").await;
        world.cordon_all(true).await;
        world.operate("stuck", "Evict", "web").await.unwrap();
        world.operation("stuck", "Failed").await;
        world.pass(1).await;
        let vm = world.get::<VirtualMachine>("web").await.unwrap();
        assert_eq!(world.metric("kubevirt_vmi_migrations_in_running_phase"), Some(0.0));
        for (name, phase) in [("go", "Completed"), ("stuck", "Failed")] {
            let uid = world.get::<VirtualMachineOperation>(name).await.unwrap().uid().unwrap();
            let labels = format!(
                "{{name=\"{name}\",namespace=\"default\",uid=\"{uid}\",type=\"Evict\",virtualmachine=\"{}\"",
                vm.name_any()
            );
            let metric = |part: &str| {
                let prefix = "d8_virtualization_virtualmachineoperation";
                world.metric(&format!("{prefix}_{part}"))
            };
            for other in ["Pending", "InProgress", "Completed", "Failed", "Terminating", "Superseded"] {
                let want = if other == phase { 1.0 } else { 0.0 };
                assert_eq!(
                    metric(&format!("status_phase{labels},phase=\"{other}\"}}")),
                    Some(want),
                    "{name} {other}"
                );
            }
            let time = |part: &str| metric(&format!("{part}_timestamp_seconds{labels}}}")).expect(part);
            assert!(time("created") <= time("started") && time("started") <= time("finished"), "{name}");
        }
        let moves =
            |what: &str| world.metrics.text().matches(&format!("kubevirt_vmi_migration_{what}{{")).count();
        assert_eq!((moves("succeeded"), moves("failed")), (1, 1));
    });
}
