//! Leases of addresses: bound while their address holds them, kept for the retention time after
//! release, then deleted (vm-lifecycle.md §9.4, api.md A6). Start at `plan.rs`.

mod plan;

use std::sync::Arc;

use holdfast_api::settings::{ModuleConfig, VirtualizationSettings};
use holdfast_api::{VirtualMachineIPAddress, VirtualMachineIPAddressLease};
use holdfast_reconcile::{Cache, Caches, Controller, Error, Key, Pass, Plan, Watches};
use kube::ResourceExt as _;

use crate::indexes;

pub use plan::{Holder, Observed};

/// The lease controller; key = name of a lease.
#[derive(Debug)]
pub struct VmiplController {
    leases: Arc<Cache<VirtualMachineIPAddressLease>>,
    addresses: Arc<Cache<VirtualMachineIPAddress>>,
    settings: Arc<Cache<ModuleConfig>>,
}

impl VmiplController {
    /// Opens the caches it reads.
    #[must_use]
    pub fn new(caches: &Caches) -> Self {
        Self { leases: caches.cache(), addresses: caches.cache(), settings: caches.cache() }
    }
}

impl Controller for VmiplController {
    type Observed = Observed;

    fn name(&self) -> &'static str {
        "vmipl"
    }

    fn watches(&self, on: &mut Watches) {
        let leases = indexes::leases_of(&self.leases);
        on.own(&self.leases).map(&self.addresses, move |vmip| leases.keys(&Key::of(vmip)));
    }

    async fn observe(&self, key: &Key, pass: Pass) -> Result<Option<Observed>, Error> {
        let Some(lease) = self.leases.get(key) else { return Ok(None) };
        let holder = lease.spec.virtual_machine_ip_address_ref.as_ref();
        let vmip = holder.and_then(|holder| self.addresses.named(&holder.namespace, &holder.name));
        let settings = VirtualizationSettings::find(self.settings.all().iter().map(|config| &**config));
        Ok(Some(Observed {
            now: pass.now,
            holder: vmip.map(|vmip| Holder {
                uid: vmip.uid().unwrap_or_default(),
                address: vmip.status.as_ref().and_then(|status| status.address.clone()),
            }),
            retention_s: settings.lease_retention_s(),
            lease: (*lease).clone(),
        }))
    }

    fn plan(observed: &Observed) -> Plan {
        plan::plan(observed)
    }
}
