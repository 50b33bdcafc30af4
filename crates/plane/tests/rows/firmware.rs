//! Roll-outs of another launcher image: migration-and-maintenance.md §12.9.

use std::collections::BTreeSet;

use holdfast_api::settings::ModuleConfig;
use holdfast_api::vm::VmPhase;
use holdfast_api::{VirtualMachine, VirtualMachineOperation};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{EvictParams, Patch, PatchParams};
use serde_json::json;

use crate::nodes::Moves;
use crate::world::{World, condition, on_a_platform};

impl World {
    async fn roll_out(&self, image: &str) {
        let settings = json!({"spec": {"settings": {"launcherImage": image}}});
        let api = self.cluster::<ModuleConfig>();
        api.patch("virtualization", &PatchParams::default(), &Patch::Merge(settings)).await.unwrap();
    }

    async fn evict_launchers(&self, vms: &[&str]) {
        for vm in vms {
            for pod in self.launchers(vm).await {
                // Refused by design: it marks the VM.
                let _ = self.api::<Pod>().evict(&pod.name_any(), &EvictParams::default()).await;
            }
        }
    }

    async fn unfinished(&self, prefix: &str) -> BTreeSet<String> {
        let all = self.operations(prefix).await.into_iter();
        let unfinished = all.filter(|op| !op.status.as_ref().is_some_and(|status| status.phase.is_final()));
        unfinished.map(|op| op.spec.virtual_machine_name).collect()
    }
}

// MM-W4
#[test]
fn a_failed_update_is_not_repeated_at_once() {
    on_a_platform(async |world| {
        world.running("web", Some("n1"), json!({})).await;
        world.cordon_all(true).await;
        world.roll_out("holdfast/launcher:next").await;
        world.condition("web", "FirmwareUpToDate", "False/FirmwareOutOfDate").await;
        let failed = async || {
            let all = world.operations("firmware-update-").await.into_iter();
            let failed = all.filter(|op| op.status.as_ref().is_some_and(|s| s.phase.to_string() == "Failed"));
            failed.count()
        };
        let end = tokio::time::Instant::now() + std::time::Duration::from_secs(600);
        while failed().await == 0 {
            assert!(tokio::time::Instant::now() < end, "the first one finds no node");
            world.pass(5).await;
        }
        world.pass(900).await;
        assert_eq!(world.operations("firmware-update-").await.len(), 1, "one try in an hour");
    });
}

// MM-W5
#[test]
fn evacuations_overtake_queued_updates() {
    on_a_platform(async |world| {
        let vms = ["a", "b", "c"];
        for vm in vms {
            world.running(vm, Some("n1"), json!({})).await;
        }
        world.nodes.wishes.borrow_mut().moves = Moves::Held;
        world.roll_out("holdfast/launcher:next").await;
        let end = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
        let begun = loop {
            let all = world.operations("firmware-update-").await;
            let begun =
                all.iter().find(|op| op.status.as_ref().is_some_and(|s| s.phase.to_string() == "InProgress"));
            if let (3, Some(begun)) = (all.len(), begun) {
                break begun.spec.virtual_machine_name.clone();
            }
            assert!(tokio::time::Instant::now() < end, "one update is under way, two are queued");
            world.pass(1).await;
        };
        world.cordon("n1", true).await;
        world.evict_launchers(&vms).await;
        let queued: BTreeSet<String> =
            vms.iter().map(|vm| (*vm).to_owned()).filter(|vm| *vm != begun).collect();
        let end = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
        while world.unfinished("evacuation-").await != queued {
            assert!(tokio::time::Instant::now() < end, "the queued ones are evacuations now");
            world.pass(1).await;
        }
        assert_eq!(world.unfinished("firmware-update-").await, BTreeSet::from([begun]));
        world.nodes.wishes.borrow_mut().moves = Moves::Through;
        for vm in vms {
            let is = |vm: Option<&VirtualMachine>| {
                vm.is_some_and(|vm| {
                    condition(vm, "FirmwareUpToDate").is_empty()
                        && vm.status.as_ref().is_some_and(|s| {
                            s.phase == Some(VmPhase::Running) && s.node_name.as_deref() != Some("n1")
                        })
                })
            };
            world.until(vm, "moved, with the new image", is).await;
        }
        world.pass(120).await;
        assert!(world.unfinished("").await.is_empty());
        let updates: Vec<VirtualMachineOperation> = world.operations("firmware-update-").await;
        assert_eq!(updates.len(), 1, "moved by an evacuation, no update is needed: {updates:#?}");
    });
}
