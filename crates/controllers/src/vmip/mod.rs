//! Addresses: each takes one lease, and says which VM uses it (vm-lifecycle.md §9.2, §9.3).
//! The lease object is the lock: creating `ip-a-b-c-d` succeeds for one only (INV-4).
//! Start at `plan.rs`; leases themselves are looked after in `vmipl`.

mod plan;

use std::collections::BTreeSet;
use std::sync::Arc;

use holdfast_api::names::label;
use holdfast_api::settings::{ModuleConfig, VirtualizationSettings};
use holdfast_api::vmip::VmipPhase;
use holdfast_api::vmipl::lease_address;
use holdfast_api::{VirtualMachine, VirtualMachineIPAddress, VirtualMachineIPAddressLease};
use holdfast_reconcile::{Cache, Caches, Controller, Error, Key, Pass, Plan, Watches, controller_of};
use kube::ResourceExt as _;

pub use plan::{Observed, VmUse};

/// The address controller; key = namespace and name of an address.
#[derive(Debug)]
pub struct VmipController {
    addresses: Arc<Cache<VirtualMachineIPAddress>>,
    leases: Arc<Cache<VirtualMachineIPAddressLease>>,
    vms: Arc<Cache<VirtualMachine>>,
    settings: Arc<Cache<ModuleConfig>>,
}

impl VmipController {
    /// Opens the caches it reads.
    #[must_use]
    pub fn new(caches: &Caches) -> Self {
        Self {
            addresses: caches.cache(),
            leases: caches.cache(),
            vms: caches.cache(),
            settings: caches.cache(),
        }
    }
}

impl Controller for VmipController {
    type Observed = Observed;

    fn name(&self) -> &'static str {
        "vmip"
    }

    fn watches(&self, on: &mut Watches) {
        let waiting = |addresses: &Cache<VirtualMachineIPAddress>| -> Vec<Key> {
            let pending = |vmip: &VirtualMachineIPAddress| {
                vmip.status.as_ref().and_then(|s| s.phase).unwrap_or_default() == VmipPhase::Pending
            };
            addresses.filtered(pending).iter().map(|vmip| Key::of(&**vmip)).collect()
        };
        let (by_lease, by_settings, by_vm) =
            (self.addresses.clone(), self.addresses.clone(), self.addresses.clone());
        on.own(&self.addresses)
            .map(&self.leases, move |lease| {
                let mut keys = waiting(&by_lease);
                if let Some(holder) = &lease.spec.virtual_machine_ip_address_ref {
                    keys.push(Key::new(&holder.namespace, &holder.name));
                }
                keys
            })
            .map(&self.settings, move |_| waiting(&by_settings))
            .map(&self.vms, move |vm| {
                let namespace = vm.namespace().unwrap_or_default();
                let concerns = |vmip: &VirtualMachineIPAddress| relation(vm, vmip).is_some();
                by_vm
                    .in_namespace(&namespace)
                    .iter()
                    .filter(|vmip| concerns(vmip) || used_by(vmip) == vm.metadata.name.as_deref())
                    .map(|vmip| Key::of(&**vmip))
                    .collect()
            });
    }

    async fn observe(&self, key: &Key, pass: Pass) -> Result<Option<Observed>, Error> {
        let Some(vmip) = self.addresses.get(key) else { return Ok(None) };
        let settings = VirtualizationSettings::find(self.settings.all().iter().map(|config| &**config));
        let leases = self.leases.all();
        let taken: BTreeSet<_> = leases.iter().filter_map(|lease| lease_address(&lease.name_any())).collect();
        let wanted = wanted_lease(&vmip);
        let uid = vmip.uid().unwrap_or_default();
        let ours = |lease: &&Arc<VirtualMachineIPAddressLease>| {
            lease.labels().get(label::IP_ADDRESS_UID) == Some(&uid)
                && lease
                    .spec
                    .virtual_machine_ip_address_ref
                    .as_ref()
                    .is_some_and(|holder| holder.name == key.name && holder.namespace == key.namespace)
        };
        let lease = match &wanted {
            Some(name) => leases.iter().find(|lease| lease.name_any() == *name),
            None => leases.iter().find(ours),
        };
        Ok(Some(Observed {
            now: pass.now,
            users: users(&self.vms, &vmip),
            lease: lease.map(|lease| (**lease).clone()),
            pool: settings.subnets(),
            taken,
            entropy: pass.entropy,
            vmip: (*vmip).clone(),
        }))
    }

    fn plan(observed: &Observed) -> Plan {
        plan::plan(observed)
    }
}

/// Name of the lease of the address that is assigned or demanded.
fn wanted_lease(vmip: &VirtualMachineIPAddress) -> Option<String> {
    let assigned = vmip.status.as_ref().and_then(|status| status.address.as_ref());
    let address = assigned.or(vmip.spec.static_ip.as_ref())?;
    Some(holdfast_api::vmipl::lease_name(address.parse().ok()?))
}

fn used_by(vmip: &VirtualMachineIPAddress) -> Option<&str> {
    vmip.status.as_ref()?.virtual_machine_name.as_deref()
}

/// How a VM is bound to an address, strongest first (api.md A5 `Attached`).
fn relation(vm: &VirtualMachine, vmip: &VirtualMachineIPAddress) -> Option<VmUse> {
    let name = vmip.metadata.name.as_deref();
    let reported = vm.status.as_ref().and_then(|s| s.virtual_machine_ip_address_name.as_deref());
    if reported.is_some() && reported == name {
        return Some(VmUse::Reported);
    }
    let named = vm.spec.virtual_machine_ip_address_name.as_deref();
    if named.is_some() && named == name {
        return Some(VmUse::Named);
    }
    let owner = controller_of(vmip).is_some_and(|owner| Some(&owner.uid) == vm.metadata.uid.as_ref());
    // An owner that names another address has moved on.
    (owner && named.is_none()).then_some(VmUse::Owner)
}

/// VMs that use the address: relation and name. A VM being deleted without pods does not count.
fn users(vms: &Cache<VirtualMachine>, vmip: &VirtualMachineIPAddress) -> Vec<(VmUse, String)> {
    let namespace = vmip.namespace().unwrap_or_default();
    let alive = |vm: &VirtualMachine| {
        vm.metadata.deletion_timestamp.is_none()
            || vm.status.as_ref().is_some_and(|status| !status.virtual_machine_pods.is_empty())
    };
    let mut users: Vec<_> = vms
        .in_namespace(&namespace)
        .iter()
        .filter(|vm| alive(vm))
        .filter_map(|vm| Some((relation(vm, vmip)?, vm.name_any())))
        .collect();
    users.sort();
    users
}
