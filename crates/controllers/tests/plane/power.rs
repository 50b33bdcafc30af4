//! Starting, ending, deleting.

use holdfast_api::VirtualMachine;
use holdfast_api::engine::{ExitCause, Instance, InstanceState, Power, ReportState};
use holdfast_api::vm::{RunPolicy, VmPhase};
use kube::ResourceExt as _;

use crate::world::{World, conditions};

#[tokio::test]
async fn a_vm_starts_survives_a_controller_crash_ends_and_is_deleted() {
    let mut world = World::start().await;
    world.disk("root", true).await;
    world.vm("web", "root", |_| ()).await;
    world.phase("web", VmPhase::Starting).await;
    let vm = world.run("web", 1, "n1").await;
    let status = vm.status.clone().unwrap();
    assert_eq!(status.node_name.as_deref(), Some("n1"));
    assert!(status.ip_address.as_deref().is_some_and(|ip| ip.starts_with("10.66.10.")));
    assert_eq!(conditions(&vm)["Running"], "True/Running");
    assert_eq!(conditions(&vm)["Migratable"], "True/VirtualMachineMigratable");
    world.restart_controllers().await;
    world.report("web", ReportState::Ended, Some(ExitCause::GuestReset)).await;
    world.state("web", 2, InstanceState::Placing).await;
    world.phase("web", VmPhase::Starting).await;
    world.run("web", 2, "n2").await;

    world.delete::<VirtualMachine>("web").await;
    world.phase("web", VmPhase::Terminating).await;
    let off = |i: Option<&Instance>| i.is_some_and(|i| i.spec.power == Power::Off);
    world.until::<Instance>("web", "power Off", off).await;
    world.report("web", ReportState::Ended, Some(ExitCause::GuestShutdown)).await;
    world.reap("web").await;
    world.until::<Instance>("web", "Instance gone", |i| i.is_none()).await;
    world.until::<VirtualMachine>("web", "VM gone", |vm| vm.is_none()).await;
}

// INV-3
#[tokio::test]
async fn a_guest_that_powers_off_stays_off_under_the_default_policy() {
    let world = World::start().await;
    world.disk("root", true).await;
    world.vm("web", "root", |_| ()).await;
    world.run("web", 1, "n1").await;
    world.report("web", ReportState::Ended, Some(ExitCause::GuestShutdown)).await;
    let vm = world.phase("web", VmPhase::Stopped).await;
    assert_eq!(vm.status.as_ref().unwrap().node_name, None);
    world.reap("web").await;
    assert_eq!(vm.name_any(), "web");
}

#[tokio::test]
async fn a_manual_vm_is_stopped_and_a_second_vm_waits_for_the_disk_of_the_first() {
    let world = World::start().await;
    world.disk("root", false).await;
    world.vm("idle", "root", |spec| spec.run_policy = RunPolicy::Manual).await;
    world.phase("idle", VmPhase::Stopped).await;
    world.vm("web", "root", |_| ()).await;
    let vm = world.run("web", 1, "n1").await;
    assert_eq!(conditions(&vm)["Migratable"], "False/VirtualMachineDisksNotMigratable");
    world.vm("second", "root", |_| ()).await;
    let waits = |vm: Option<&VirtualMachine>| {
        vm.is_some_and(|vm| {
            conditions(vm).get("BlockDevicesReady").is_some_and(|c| c == "False/BlockDevicesNotReady")
        })
    };
    world.until("second", "waits for the disk", waits).await;
    world.report("web", ReportState::Ended, Some(ExitCause::GuestShutdown)).await;
    world.phase("web", VmPhase::Stopped).await;
    world.phase("second", VmPhase::Starting).await;
}
