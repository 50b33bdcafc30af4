//! Addresses: each takes one lease, and says which VM uses it (vm-lifecycle.md §9.2, §9.3).
//! The lease object is the lock: creating `ip-a-b-c-d` succeeds for one only (INV-4).
//! Start at `plan.rs`; leases themselves are looked after in `vmipl`.

mod plan;

use std::collections::BTreeSet;
use std::sync::Arc;

use holdfast_api::names::label;
use holdfast_api::settings::{ModuleConfig, VirtualizationSettings};
use holdfast_api::vmipl::{VmiplPhase, lease_address};
use holdfast_api::{VirtualMachine, VirtualMachineIPAddress, VirtualMachineIPAddressLease};
use holdfast_reconcile::{Cache, Caches, Controller, Error, Index, Key, Pass, Plan, Watches, controller_of};
use kube::ResourceExt as _;

use crate::indexes;

pub use plan::{Observed, VmUse};

/// The address controller; key = namespace and name of an address.
#[derive(Debug)]
pub struct VmipController {
    addresses: Arc<Cache<VirtualMachineIPAddress>>,
    leases: Arc<Cache<VirtualMachineIPAddressLease>>,
    vms: Arc<Cache<VirtualMachine>>,
    settings: Arc<Cache<ModuleConfig>>,
    held: Index<VirtualMachineIPAddressLease>,
    vms_by_address: Index<VirtualMachine>,
}

/// How many addresses that wait for any lease a freed one wakes.
const WOKEN: usize = 8;

/// Somebody else may have the lease, or will soon.
fn is_freed(lease: &VirtualMachineIPAddressLease) -> bool {
    let bound = lease.status.as_ref().is_none_or(|status| status.phase == Some(VmiplPhase::Bound));
    lease.metadata.deletion_timestamp.is_some() || !bound
}

impl VmipController {
    /// Opens the caches it reads.
    #[must_use]
    pub fn new(caches: &Caches) -> Self {
        let (leases, vms) = (caches.cache(), caches.cache());
        Self {
            addresses: caches.cache(),
            held: indexes::leases_of(&leases),
            leases,
            vms_by_address: indexes::vms_by_address(&vms),
            vms,
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
        let pending = indexes::pending(&self.addresses);
        let waiting = pending.clone();
        let (owned, used) = (indexes::owned(&self.addresses), indexes::addresses_by_vm(&self.addresses));
        on.own(&self.addresses)
            .map(&self.leases, move |lease| {
                let holder = lease.spec.virtual_machine_ip_address_ref.as_ref();
                let mut keys: Vec<Key> =
                    holder.map(|holder| Key::new(&holder.namespace, &holder.name)).into_iter().collect();
                if is_freed(lease) {
                    // It serves one; the others look again by themselves.
                    let waiting = waiting.get(&Key::cluster(indexes::PENDING)).into_iter();
                    let wants = |vmip: &Arc<VirtualMachineIPAddress>| {
                        wanted_lease(vmip).is_none_or(|wanted| wanted == lease.name_any())
                    };
                    keys.extend(waiting.filter(wants).take(WOKEN).map(|vmip| Key::of(&*vmip)));
                }
                keys
            })
            .map(&self.settings, move |_| pending.keys(&Key::cluster(indexes::PENDING)))
            .map(&self.vms, move |vm| {
                let namespace = vm.namespace().unwrap_or_default();
                let reported = vm.status.as_ref().and_then(|s| s.virtual_machine_ip_address_name.as_ref());
                let named = vm.spec.virtual_machine_ip_address_name.as_ref();
                let mut keys: Vec<Key> =
                    reported.into_iter().chain(named).map(|name| Key::new(&namespace, name)).collect();
                keys.extend(owned.of_uid(vm.metadata.uid.as_deref()).iter().map(|vmip| Key::of(&**vmip)));
                keys.extend(used.keys(&Key::of(vm)));
                keys
            });
    }

    async fn observe(&self, key: &Key, pass: Pass) -> Result<Option<Observed>, Error> {
        let Some(vmip) = self.addresses.get(key) else { return Ok(None) };
        let settings = VirtualizationSettings::find(self.settings.all().iter().map(|config| &**config));
        let wanted = wanted_lease(&vmip);
        let uid = vmip.uid().unwrap_or_default();
        let ours = |lease: &Arc<VirtualMachineIPAddressLease>| {
            lease.labels().get(label::IP_ADDRESS_UID) == Some(&uid)
        };
        let lease = match &wanted {
            Some(name) => self.leases.get(&Key::cluster(name)),
            None => self.held.get(key).into_iter().find(ours),
        };
        // All leases are looked at only where one must be chosen among those that are free.
        let taken = match wanted.is_none() && lease.is_none() {
            true => self.leases.all().iter().filter_map(|lease| lease_address(&lease.name_any())).collect(),
            false => BTreeSet::new(),
        };
        Ok(Some(Observed {
            now: pass.now,
            users: self.users(&vmip),
            lease: lease.map(|lease| (*lease).clone()),
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

impl VmipController {
    /// VMs that use the address: relation and name. A VM being deleted without pods does not count.
    fn users(&self, vmip: &VirtualMachineIPAddress) -> Vec<(VmUse, String)> {
        let namespace = vmip.namespace().unwrap_or_default();
        let alive = |vm: &VirtualMachine| {
            vm.metadata.deletion_timestamp.is_none()
                || vm.status.as_ref().is_some_and(|status| !status.virtual_machine_pods.is_empty())
        };
        let owner = controller_of(vmip).and_then(|owner| self.vms.named(&namespace, &owner.name));
        let mut users: Vec<_> = self
            .vms_by_address
            .get(&Key::of(vmip))
            .iter()
            .chain(&owner)
            .filter(|vm| alive(vm))
            .filter_map(|vm| Some((relation(vm, vmip)?, vm.name_any())))
            .collect();
        users.sort();
        users.dedup();
        users
    }
}
