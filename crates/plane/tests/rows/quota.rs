//! A namespace's quota: vm-lifecycle.md L8, migration-and-maintenance.md O12.

use holdfast_api::vd::VdPhase;
use holdfast_api::vm::VmPhase;
use holdfast_api::{VirtualDisk, VirtualMachineOperation};
use k8s_openapi::api::core::v1::ResourceQuota;
use kube::api::PostParams;
use serde_json::json;

use crate::world::{World, completed, condition, message, on_a_platform};

impl World {
    async fn quota(&self, hard: serde_json::Value) {
        let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": hard}});
        let quota = serde_json::from_value(quota).unwrap();
        self.api::<ResourceQuota>().create(&PostParams::default(), &quota).await.unwrap();
    }

    async fn raise(&self, hard: serde_json::Value) {
        self.patch::<ResourceQuota>("q", json!({"spec": {"hard": hard}})).await.unwrap();
    }
}

// VL-L8
#[test]
fn a_vm_starts_when_its_quota_has_room() {
    on_a_platform(async |world| {
        world.disk("web", true).await;
        let ready = |disk: Option<&VirtualDisk>| {
            disk.and_then(|disk| disk.status.as_ref()?.phase) == Some(VdPhase::Ready)
        };
        world.until("web", "disk Ready", ready).await;
        world.quota(json!({"pods": "0"})).await;
        world.vm("web", json!({})).await;
        let vm = world.condition("web", "Running", "False/PodNotStarted").await;
        let said = |vm: &holdfast_api::VirtualMachine| message(vm, "Running");
        let vm = match said(&vm).contains("quota") {
            true => vm,
            false => {
                let is = |vm: Option<&holdfast_api::VirtualMachine>| {
                    vm.is_some_and(|vm| said(vm).contains("quota"))
                };
                world.until("web", "the quota is spoken of", is).await.unwrap()
            }
        };
        assert!(said(&vm).contains("exceeded quota: q, requested: pods=1, used: pods=0, limited: pods=0"));
        assert_eq!(vm.status.and_then(|status| status.phase), Some(VmPhase::Starting));
        let told = world.events("web").await;
        assert!(
            told.iter().any(|e| e.starts_with("Warning FailedCreate") && e.contains("quota")),
            "{told:#?}"
        );
        world.raise(json!({"pods": "1"})).await;
        let vm = world.phase("web", VmPhase::Running).await;
        assert!(condition(&vm, "Running").starts_with("True"));
    });
}

// MM-O12, MM X4: the quota's row of §11.2.
#[test]
fn a_move_waits_for_room_in_the_quota() {
    on_a_platform(async |world| {
        world.running("web", Some("n1"), json!({})).await;
        world.running("other", Some("n1"), json!({})).await;
        world.quota(json!({"pods": "2"})).await;
        world.operate("go", "Evict", "web").await.unwrap();
        let is = |op: Option<&VirtualMachineOperation>| {
            op.is_some_and(|op| completed(op) == "False/QuotaExceeded")
        };
        let go = world.until("go", "the quota is spoken of", is).await.unwrap();
        assert_eq!(go.status.unwrap().phase.to_string(), "Pending");
        world.pass(45).await;
        let told = world.events("go").await;
        let count = |kind: &str| told.iter().filter(|e| e.starts_with(kind)).count();
        assert_eq!(count("Warning VirtualMachineOperationPending"), 1, "{told:#?}");
        assert_eq!(count("Warning FailedCreate"), 1, "the same text is one event: {told:#?}");
        assert!(world.launchers("web").await.len() == 1, "no target pod");
        // It waits without a slot: others of its node go first, once there is room for one.
        world.raise(json!({"pods": "3"})).await;
        world.operation("go", "Completed").await;
        assert_ne!(world.instance("web").await.status.unwrap().claim.unwrap().node, "n1");
    });
}

// AP A3: QuotaExceeded of a disk.
#[test]
fn a_disk_waits_for_room_in_the_quota() {
    on_a_platform(async |world| {
        world.quota(json!({"requests.storage": "32Mi"})).await;
        world.disk("web", true).await;
        let waits = |disk: Option<&VirtualDisk>| {
            let all = disk.iter().flat_map(|disk| &disk.status).flat_map(|status| &status.conditions);
            { all }.any(|c| c.type_ == "Ready" && c.reason == "QuotaExceeded" && c.message.contains("32Mi"))
        };
        let disk = world.until("web", "the quota is spoken of", waits).await.unwrap();
        assert_eq!(disk.status.and_then(|status| status.phase), Some(VdPhase::Pending));
        world.raise(json!({"requests.storage": "64Mi"})).await;
        let ready = |disk: Option<&VirtualDisk>| {
            disk.and_then(|disk| disk.status.as_ref()?.phase) == Some(VdPhase::Ready)
        };
        world.until("web", "disk Ready", ready).await;
    });
}
