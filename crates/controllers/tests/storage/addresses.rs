//! Addresses, leases, default classes.

use std::collections::BTreeSet;

use holdfast_api::vmclass::VmClassPhase;
use holdfast_api::vmip::VmipPhase;
use holdfast_api::vmipl::{VmiplPhase, lease_name};
use holdfast_api::{VirtualMachineClass, VirtualMachineIPAddress, VirtualMachineIPAddressLease, condition};
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams};
use serde_json::json;

use crate::world::{NS, World, create, until};

type Vmip = VirtualMachineIPAddress;
type Lease = VirtualMachineIPAddressLease;

async fn bound(api: &Api<Vmip>, name: &str) -> String {
    let is = |vmip: Option<&Vmip>| vmip.and_then(|v| v.status.as_ref()?.phase) == Some(VmipPhase::Bound);
    until(api, name, "Bound", is).await.unwrap().status.unwrap().address.unwrap()
}

fn fixed(address: &str) -> serde_json::Value {
    json!({"type": "Static", "staticIP": address})
}

fn reason(vmip: &Vmip) -> String {
    let status = vmip.status.clone().unwrap_or_default();
    condition::find(&status.conditions, "Bound").map(|c| c.reason.clone()).unwrap_or_default()
}

// VL-N7, VL-N8, VL-N9, VL-N17, AP 17 (without node: generic is Pending)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_are_leased_kept_and_given_back() {
    let world = World::start().await;
    let retention = json!({"virtualMachineCIDRs": ["10.66.10.0/24"], "addressRetentionSeconds": 6});
    world.settings(retention).await;
    let vmips: Api<Vmip> = world.api(NS);
    let leases: Api<Lease> = world.cluster();

    let mut seen = BTreeSet::new();
    for n in 0..8 {
        let name = format!("auto-{n}");
        create(&vmips, &name, json!({"type": "Auto"})).await;
        let address = bound(&vmips, &name).await;
        assert!(address.starts_with("10.66.10."), "{address}");
        assert!(seen.insert(address), "distinct");
    }
    let lowest: BTreeSet<String> = (1..=8).map(|n| format!("10.66.10.{n}")).collect();
    assert_ne!(seen, lowest, "chosen at random");

    // Released with the address object, kept for the namespace, taken again in it.
    let address = seen.first().unwrap().clone();
    let lease = lease_name(address.parse().unwrap());
    let holder = leases.get(&lease).await.unwrap().spec.virtual_machine_ip_address_ref.unwrap();
    vmips.delete(&holder.name, &DeleteParams::default()).await.unwrap();
    let released =
        |lease: Option<&Lease>| lease.and_then(|l| l.status.as_ref()?.phase) == Some(VmiplPhase::Released);
    until(&leases, &lease, "Released", released).await;
    let foreign: Api<Vmip> = world.api("mall");
    create(&foreign, "thief", fixed(&address)).await;
    let refused =
        |vmip: Option<&Vmip>| vmip.is_some_and(|v| reason(v) == "VirtualMachineIPAddressLeaseNotReady");
    until(&foreign, "thief", "refused", refused).await;
    create(&vmips, "again", fixed(&address)).await;
    assert_eq!(bound(&vmips, "again").await, address);

    // Given up for good after the retention time; then anybody may have it.
    vmips.delete("again", &DeleteParams::default()).await.unwrap();
    assert_eq!(bound(&foreign, "thief").await, address);
    let lease = leases.get(&lease).await.unwrap();
    assert_eq!(lease.spec.virtual_machine_ip_address_ref.unwrap().namespace, "mall");

    let classes: Api<VirtualMachineClass> = world.cluster();
    for (name, phase) in [("host", VmClassPhase::Ready), ("generic", VmClassPhase::Pending)] {
        create_node_once(&world).await;
        let is = |class: Option<&VirtualMachineClass>| {
            class.is_some_and(|class| {
                class.status.as_ref().map(|s| s.phase) == Some(phase) && !class.finalizers().is_empty()
            })
        };
        let class = until(&classes, name, phase.as_str(), is).await.unwrap();
        assert!(class.spec.sizing_policies.is_none());
    }
}

/// Default classes appear with the first node.
async fn create_node_once(world: &World) {
    let api: Api<k8s_openapi::api::core::v1::Node> = world.cluster();
    if api.get_opt("n1").await.unwrap().is_none() {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}});
        api.create(&Default::default(), &serde_json::from_value(node).unwrap()).await.unwrap();
    }
}
