//! The machine of an address. Pure.
//!
//! ```text
//! no address -- lease of ours found --> address --> lease Bound --> Bound <--> Attached
//!     |                                    |
//!     +-- choose (random or static), create the lease      lease gone: LeaseLost, created again
//! ```

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use holdfast_api::names::{finalizer, label};
use holdfast_api::settings::Subnet;
use holdfast_api::vmip::{
    Attached, Bound, IpAddressType, VirtualMachineIPAddress, VirtualMachineIPAddressStatus, VmipPhase,
};
use holdfast_api::vmipl::{
    IpAddressRef, VirtualMachineIPAddressLease, VirtualMachineIPAddressLeaseSpec, VmiplPhase, lease_address,
    lease_name,
};
use holdfast_env::{Stream, Timestamp};
use holdfast_reconcile::{Conditions, Create, Effect, NoteKind, Patch, Plan, Ref};
use jiff::SignedDuration;
use serde_json::json;

/// How long to wait before looking at another namespace's released lease or a full pool again.
const LOOK_AGAIN_S: i64 = 30;
/// Further free addresses to try when the first choice was taken a moment ago.
const SPARE_CHOICES: usize = 3;
/// Random draws before the pool is walked for what is left.
const DRAWS: usize = 32;

/// What an address depends on.
#[derive(Clone, Debug)]
pub struct Observed {
    /// Instant of the pass.
    pub now: Timestamp,
    /// The address.
    pub vmip: VirtualMachineIPAddress,
    /// The lease of the assigned or demanded address; without one, a lease already made for us.
    pub lease: Option<VirtualMachineIPAddressLease>,
    /// Configured subnets.
    pub pool: Vec<Subnet>,
    /// Addresses that have a lease, in any phase.
    pub taken: BTreeSet<Ipv4Addr>,
    /// VMs that use or name the address.
    pub users: Vec<(VmUse, String)>,
    /// Randomness for the choice.
    pub entropy: Stream,
}

/// How a VM is bound to an address, strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum VmUse {
    /// Its status names the address.
    Reported,
    /// Its spec names it.
    Named,
    /// It owns it.
    Owner,
}

/// Outcome of looking at the lease.
struct Outcome {
    bound: Bound,
    message: String,
    address: Option<Ipv4Addr>,
    effects: Vec<Effect>,
    wake_s: Option<i64>,
}

impl Outcome {
    fn pending(bound: Bound, message: impl Into<String>) -> Self {
        Self { bound, message: message.into(), address: None, effects: Vec::new(), wake_s: None }
    }

    fn doing(mut self, effect: impl Into<Effect>) -> Self {
        self.effects.push(effect.into());
        self
    }

    fn again_in(mut self, seconds: i64) -> Self {
        self.wake_s = Some(seconds);
        self
    }

    fn with(mut self, address: Ipv4Addr) -> Self {
        self.address = Some(address);
        self
    }
}

/// Decides.
#[must_use]
pub fn plan(o: &Observed) -> Plan {
    let deleting = o.vmip.metadata.deletion_timestamp.is_some();
    if deleting && o.users.is_empty() {
        let mut plan = Plan::quiet("no VM uses the address, it goes");
        if let Some(patch) = Patch::remove_finalizer(&o.vmip, finalizer::VMIP_CLEANUP) {
            plan.then(patch);
        }
        return plan;
    }
    let mut plan = Plan::default();
    if !deleting && let Some(patch) = Patch::add_finalizer(&o.vmip, finalizer::VMIP_CLEANUP) {
        // Before a lease exists: else a deletion in between would leave it behind unreleased.
        plan.then(patch);
    }
    let outcome = lease_outcome(o);
    let old = o.vmip.status.clone().unwrap_or_default();
    let new = status(o, &old, &outcome);
    events(&mut plan, &o.vmip, &old, &new, &outcome);
    plan.set_status(&o.vmip, o.vmip.status.as_ref(), &new);
    plan.because(format!("{}: {}", new.phase.unwrap_or_default(), outcome.message));
    if let Some(seconds) = outcome.wake_s {
        plan.wake_at(o.now.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(o.now));
    }
    plan.effects.extend(outcome.effects);
    plan
}

fn status(
    o: &Observed,
    old: &VirtualMachineIPAddressStatus,
    outcome: &Outcome,
) -> VirtualMachineIPAddressStatus {
    let is_bound = outcome.bound == Bound::Bound;
    let user = is_bound.then(|| user(o, old)).flatten();
    let mut conditions = Conditions::carry(&old.conditions, o.vmip.metadata.generation, o.now);
    conditions.is(outcome.bound, outcome.message.clone());
    match &user {
        Some(name) => conditions.is(Attached::Attached, format!("Used by VirtualMachine {name:?}.")),
        None => conditions.is(Attached::VirtualMachineNotFound, "No VirtualMachine uses the address."),
    };
    VirtualMachineIPAddressStatus {
        address: old.address.clone().or(outcome.address.map(|address| address.to_string())),
        phase: Some(match (is_bound, &user) {
            (false, _) => VmipPhase::Pending,
            (true, None) => VmipPhase::Bound,
            (true, Some(_)) => VmipPhase::Attached,
        }),
        virtual_machine_name: user,
        conditions: conditions.finish(),
        observed_generation: o.vmip.metadata.generation,
    }
}

/// The VM recorded in status while it still uses the address, else the strongest claim.
fn user(o: &Observed, old: &VirtualMachineIPAddressStatus) -> Option<String> {
    let recorded = old.virtual_machine_name.as_ref();
    let kept = o.users.iter().find(|(_, name)| Some(name) == recorded);
    kept.or(o.users.first()).map(|(_, name)| name.clone())
}

fn lease_outcome(o: &Observed) -> Outcome {
    let assigned = o.vmip.status.as_ref().and_then(|status| status.address.as_deref());
    let known = assigned.or(o.vmip.spec.static_ip.as_deref());
    let Some(known) = known else { return automatic(o) };
    let Ok(address) = known.parse::<Ipv4Addr>() else {
        return Outcome::pending(Bound::OutOfRange, format!("{known:?} is not an IPv4 address."));
    };
    if let Some(lease) = &o.lease {
        return existing(o, lease, address);
    }
    if !in_pool(&o.pool, address) {
        let message = format!("The address {address} is not in any of the configured subnets.");
        return Outcome::pending(Bound::OutOfRange, message);
    }
    let create = Create::of(&lease(&o.vmip, address)).identified_by(&[label::IP_ADDRESS_UID]);
    if assigned.is_some() {
        let message = format!("The lease of {address} has disappeared, it is being created again.");
        return Outcome::pending(Bound::LeaseLost, message).doing(create);
    }
    Outcome::pending(Bound::LeaseNotReady, format!("The lease of {address} is being created."))
        .doing(create)
        .again_in(LOOK_AGAIN_S)
}

/// A lease object for the address exists.
fn existing(o: &Observed, lease: &VirtualMachineIPAddressLease, address: Ipv4Addr) -> Outcome {
    let me = IpAddressRef {
        name: o.vmip.metadata.name.clone().unwrap_or_default(),
        namespace: o.vmip.metadata.namespace.clone().unwrap_or_default(),
    };
    let holder = lease.spec.virtual_machine_ip_address_ref.clone().unwrap_or_default();
    let uid = o.vmip.metadata.uid.clone().unwrap_or_default();
    let labels = lease.metadata.labels.as_ref();
    let holder_uid = labels.and_then(|labels| labels.get(label::IP_ADDRESS_UID)).cloned().unwrap_or_default();
    let phase = lease.status.as_ref().and_then(|status| status.phase);
    if holder == me && holder_uid == uid {
        return match phase {
            Some(VmiplPhase::Bound) => Outcome::pending(Bound::Bound, "").with(address),
            Some(VmiplPhase::Released) | None => {
                let message = format!("The lease of {address} is not bound yet.");
                Outcome::pending(Bound::LeaseNotReady, message).with(address)
            }
        };
    }
    if !holder.name.is_empty() && phase != Some(VmiplPhase::Released) {
        let message = format!(
            "The address {address} has already been allocated by VirtualMachineIPAddress/{} in ns/{}.",
            holder.name, holder.namespace
        );
        return Outcome::pending(Bound::LeaseAlreadyExists, message).again_in(LOOK_AGAIN_S);
    }
    if holder.namespace != me.namespace {
        let message = format!("The lease of {address} belongs to a different namespace.");
        return Outcome::pending(Bound::LeaseNotReady, message).again_in(LOOK_AGAIN_S);
    }
    let take = Patch {
        target: Ref::exact(lease),
        status: false,
        body: json!({
            "metadata": {"labels": {label::IP_ADDRESS_UID: uid}},
            "spec": {"virtualMachineIPAddressRef": me},
        }),
    };
    Outcome::pending(Bound::LeaseNotReady, format!("The released lease of {address} is being taken."))
        .doing(take)
        .again_in(LOOK_AGAIN_S)
}

/// No address yet and none demanded: adopt the lease an earlier pass made, or choose.
fn automatic(o: &Observed) -> Outcome {
    if let Some(lease) = &o.lease
        && let Some(address) = lease_address(lease.metadata.name.as_deref().unwrap_or_default())
    {
        return existing(o, lease, address);
    }
    if o.vmip.spec.type_ == IpAddressType::Static {
        return Outcome::pending(Bound::OutOfRange, "The type is Static but no address is given.");
    }
    let mut choices = choose(o).into_iter();
    let Some(first) = choices.next() else {
        let message = if o.pool.is_empty() {
            "No subnets for virtual machines are configured: set spec.settings.virtualMachineCIDRs of \
             ModuleConfig virtualization."
        } else {
            "No remaining ips: every address of the configured subnets is taken."
        };
        return Outcome::pending(Bound::LeaseNotReady, message).again_in(LOOK_AGAIN_S);
    };
    let create = Create::of(&lease(&o.vmip, first))
        .or_named(choices.map(lease_name))
        .identified_by(&[label::IP_ADDRESS_UID]);
    Outcome::pending(Bound::LeaseNotReady, "A lease is being created.").doing(create).again_in(LOOK_AGAIN_S)
}

/// Random free addresses, without repetition; empty if the pool is exhausted (seed 004: random).
fn choose(o: &Observed) -> Vec<Ipv4Addr> {
    let mut entropy = o.entropy.clone();
    let total: u64 = o.pool.iter().map(|net| net.usable()).sum();
    let nth = |mut n: u64| {
        o.pool.iter().find_map(|net| {
            if n < net.usable() {
                return net.nth_usable(n);
            }
            n -= net.usable();
            None
        })
    };
    let is_free = |address: &Ipv4Addr| !o.taken.contains(address);
    let mut found: Vec<Ipv4Addr> = Vec::new();
    for _ in 0..DRAWS {
        let drawn = nth(entropy.below(total)).filter(is_free);
        if let Some(address) = drawn.filter(|address| !found.contains(address)) {
            found.push(address);
        }
        if found.len() > SPARE_CHOICES {
            return found;
        }
    }
    if found.is_empty() && total > 0 {
        // Nearly full: walk the whole pool from a random place.
        let start = entropy.below(total);
        found.extend((0..total).filter_map(|n| nth((start + n) % total)).find(is_free));
    }
    found
}

fn in_pool(pool: &[Subnet], address: Ipv4Addr) -> bool {
    pool.iter().any(|net| net.is_usable(address))
}

fn lease(vmip: &VirtualMachineIPAddress, address: Ipv4Addr) -> VirtualMachineIPAddressLease {
    let holder = IpAddressRef {
        name: vmip.metadata.name.clone().unwrap_or_default(),
        namespace: vmip.metadata.namespace.clone().unwrap_or_default(),
    };
    let spec = VirtualMachineIPAddressLeaseSpec { virtual_machine_ip_address_ref: Some(holder) };
    let mut lease = VirtualMachineIPAddressLease::new(&lease_name(address), spec);
    let uid = vmip.metadata.uid.clone().unwrap_or_default();
    lease.metadata.labels = Some([(label::IP_ADDRESS_UID.to_owned(), uid)].into());
    lease.metadata.finalizers = Some(vec![finalizer::VMIPL_CLEANUP.to_owned()]);
    lease
}

fn events(
    plan: &mut Plan,
    vmip: &VirtualMachineIPAddress,
    old: &VirtualMachineIPAddressStatus,
    new: &VirtualMachineIPAddressStatus,
    outcome: &Outcome,
) {
    let old_bound = holdfast_api::condition::get::<Bound>(&old.conditions);
    let mut say = |kind, reason: &str, message: String| {
        plan.then(Effect::event(vmip, kind, reason, message));
    };
    if old_bound != Some(outcome.bound) {
        match outcome.bound {
            Bound::Bound => {
                let address = new.address.clone().unwrap_or_default();
                say(NoteKind::Normal, "Bound", format!("The address {address} is bound."));
            }
            Bound::OutOfRange => say(NoteKind::Warning, "Failed", outcome.message.clone()),
            Bound::LeaseAlreadyExists => say(NoteKind::Warning, "Bound", outcome.message.clone()),
            Bound::LeaseNotReady if outcome.message.contains("different namespace") => {
                let reason = "VirtualMachineIPAddressLeaseAlreadyExists";
                say(NoteKind::Warning, reason, outcome.message.clone());
            }
            Bound::LeaseNotReady | Bound::LeaseLost | Bound::LeaseNotFound | Bound::NotYetKnown => (),
        }
    }
    match (&old.virtual_machine_name, &new.virtual_machine_name) {
        (before, Some(after)) if before.as_ref() != Some(after) => {
            say(NoteKind::Normal, "Attached", format!("VirtualMachine {after:?} uses the address."));
        }
        (Some(before), None) => {
            let message = format!("VirtualMachine {before:?} does not use the address any more.");
            say(NoteKind::Warning, "NotAttached", message);
        }
        _ => (),
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
