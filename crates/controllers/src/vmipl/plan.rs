//! The machine of a lease: Bound, Released, gone. Pure.

use holdfast_api::names::{finalizer, label};
use holdfast_api::vmipl::{
    Bound, VirtualMachineIPAddressLease, VirtualMachineIPAddressLeaseStatus, VmiplPhase, lease_address,
};
use holdfast_env::Timestamp;
use holdfast_reconcile::{Conditions, Effect, NoteKind, Patch, Plan, Ref, condition};
use jiff::SignedDuration;
use serde_json::json;

/// What a lease depends on.
#[derive(Clone, Debug)]
pub struct Observed {
    /// Instant of the pass.
    pub now: Timestamp,
    /// The lease.
    pub lease: VirtualMachineIPAddressLease,
    /// The address object it names, if that exists.
    pub holder: Option<Holder>,
    /// Seconds a released lease is kept.
    pub retention_s: i64,
}

/// The address object that a lease names.
#[derive(Clone, Debug, Default)]
pub struct Holder {
    /// Its uid.
    pub uid: String,
    /// The address it reports.
    pub address: Option<String>,
}

/// Decides.
#[must_use]
pub fn plan(o: &Observed) -> Plan {
    let mut plan = Plan::default();
    let held = is_held(o);
    let old = o.lease.status.clone().unwrap_or_default();
    let mut conditions = Conditions::carry(&old.conditions, o.lease.metadata.generation, o.now);
    if held {
        conditions.is(Bound::Bound, "");
    } else {
        conditions.is(Bound::Released, "No VirtualMachineIPAddress holds the lease.");
    }
    let conditions = conditions.finish();
    let since = condition(&conditions, "Bound").map_or(o.now, |bound| bound.last_transition_time.0);
    let new = VirtualMachineIPAddressLeaseStatus {
        phase: Some(if held { VmiplPhase::Bound } else { VmiplPhase::Released }),
        conditions,
        observed_generation: o.lease.metadata.generation,
    };
    if old.phase != new.phase {
        let (reason, message) = if held {
            ("Bound", "The lease is bound.")
        } else {
            ("Released", "The lease is released; it is kept for its retention time.")
        };
        plan.then(Effect::event(&o.lease, NoteKind::Normal, reason, message));
    }
    plan.set_status(&o.lease, o.lease.status.as_ref(), &new);
    if held {
        hold(&mut plan, o);
    } else {
        release(&mut plan, o, since);
    }
    plan
}

/// The address object exists, is the one that took the lease, and reports no other address.
fn is_held(o: &Observed) -> bool {
    let Some(holder) = &o.holder else { return false };
    let labels = o.lease.metadata.labels.as_ref();
    let taken_by = labels.and_then(|labels| labels.get(label::IP_ADDRESS_UID)).map_or("", String::as_str);
    let mine = lease_address(o.lease.metadata.name.as_deref().unwrap_or_default());
    let reported = holder.address.as_deref().and_then(|text| text.parse().ok());
    (taken_by.is_empty() || taken_by == holder.uid)
        && mine.is_some()
        && (holder.address.is_none() || reported == mine)
}

fn hold(plan: &mut Plan, o: &Observed) {
    plan.because("held");
    if o.lease.metadata.deletion_timestamp.is_none()
        && let Some(patch) = Patch::add_finalizer(&o.lease, finalizer::VMIPL_CLEANUP)
    {
        plan.then(patch);
    }
    let uid = o.holder.as_ref().map(|holder| holder.uid.clone()).unwrap_or_default();
    let labels = o.lease.metadata.labels.as_ref();
    if labels.and_then(|labels| labels.get(label::IP_ADDRESS_UID)) != Some(&uid) {
        let body = json!({"metadata": {"labels": {label::IP_ADDRESS_UID: uid}}});
        plan.then(Patch { target: Ref::exact(&o.lease), status: false, body });
    }
}

fn release(plan: &mut Plan, o: &Observed, since: Timestamp) {
    if o.lease.metadata.deletion_timestamp.is_some() {
        plan.because("released and deleted");
        if let Some(patch) = Patch::remove_finalizer(&o.lease, finalizer::VMIPL_CLEANUP) {
            plan.then(patch);
        }
        return;
    }
    let holder = o.lease.spec.virtual_machine_ip_address_ref.clone().unwrap_or_default();
    if !holder.name.is_empty() {
        plan.because("released: the name goes, the namespace stays");
        let body = json!({
            "metadata": {"labels": {label::IP_ADDRESS_UID: ""}},
            "spec": {"virtualMachineIPAddressRef": {"name": "", "namespace": holder.namespace}},
        });
        plan.then(Patch { target: Ref::exact(&o.lease), status: false, body });
    }
    let until = since.saturating_add(SignedDuration::from_secs(o.retention_s)).unwrap_or(o.now);
    if o.now < until && !holdfast_env::mutant!("lease-kept-too-short") {
        plan.because(format!("kept until {until}"));
        plan.wake_at(until);
    } else {
        plan.because("retention time is over");
        // Exact: an address that takes the lease at this moment wins.
        plan.then(Effect::Delete { target: Ref::exact(&o.lease), grace_s: None });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_api::vmipl::{IpAddressRef, VirtualMachineIPAddressLeaseSpec};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn lease(holder: &str, uid: &str) -> VirtualMachineIPAddressLease {
        let holder = IpAddressRef { name: holder.into(), namespace: "shop".into() };
        let spec = VirtualMachineIPAddressLeaseSpec { virtual_machine_ip_address_ref: Some(holder) };
        let mut lease = VirtualMachineIPAddressLease::new("ip-10-66-10-14", spec);
        lease.metadata.labels = Some([(label::IP_ADDRESS_UID.to_owned(), uid.to_owned())].into());
        lease.metadata.finalizers = Some(vec![finalizer::VMIPL_CLEANUP.to_owned()]);
        lease.metadata.resource_version = Some("7".into());
        lease.metadata.uid = Some("lease".into());
        lease
    }

    fn holder(uid: &str, address: Option<&str>) -> Option<Holder> {
        Some(Holder { uid: uid.into(), address: address.map(str::to_owned) })
    }

    fn observed(lease: VirtualMachineIPAddressLease, holder: Option<Holder>, now: i64) -> Observed {
        Observed { now: at(now), lease, holder, retention_s: 600 }
    }

    /// The observed world after the plan's status was written.
    fn settled(mut o: Observed) -> Observed {
        let patch = plan(&o).status.expect("a status was written").body;
        o.lease.status = serde_json::from_value(patch["status"].clone()).unwrap();
        o
    }

    #[test]
    fn held_by_its_address_object_only() {
        for (what, holder, held) in [
            ("reports the address", holder("u", Some("10.66.10.14")), true),
            ("reports nothing yet", holder("u", None), true),
            ("reports another address", holder("u", Some("10.66.10.15")), false),
            ("another object of the same name", holder("v", Some("10.66.10.14")), false),
            ("gone", None, false),
        ] {
            let o = observed(lease("web", "u"), holder, 100);
            let phase = if held { "Bound" } else { "Released" };
            assert_eq!(plan(&o).status.unwrap().body["status"]["phase"], phase, "{what}");
        }
    }

    #[test]
    fn a_settled_bound_lease_needs_nothing() {
        let o = settled(observed(lease("web", "u"), holder("u", Some("10.66.10.14")), 100));
        assert!(plan(&o).is_empty());
    }

    // VL-N9 (clock): kept 10 minutes from the release, then deleted.
    #[test]
    fn a_released_lease_keeps_its_namespace_for_ten_minutes() {
        let o = observed(lease("web", "u"), None, 100);
        let first = plan(&o);
        let spec = first.effects.iter().find_map(|e| match e {
            Effect::Patch(p) => Some(p.body["spec"]["virtualMachineIPAddressRef"].clone()),
            _ => None,
        });
        assert_eq!(spec.unwrap(), json!({"name": "", "namespace": "shop"}));
        assert_eq!(first.wake, Some(at(700)));
        let mut o = settled(o);
        o.lease.spec.virtual_machine_ip_address_ref.as_mut().unwrap().name.clear();
        o.lease.metadata.labels = Some([(label::IP_ADDRESS_UID.to_owned(), String::new())].into());
        o.now = at(699);
        assert!(plan(&o).is_empty());
        o.now = at(700);
        let over = plan(&o);
        let [Effect::Delete { target, .. }] = &over.effects[..] else { panic!("{over:?}") };
        assert_eq!(target.resource_version.as_deref(), Some("7"));
        o.lease.metadata.deletion_timestamp = Some(Time(at(700)));
        assert!(matches!(&plan(&o).effects[..], [Effect::Patch(_)]), "the finalizer goes");
    }

    #[test]
    fn a_deleted_lease_that_is_held_stays() {
        let mut o = settled(observed(lease("web", "u"), holder("u", Some("10.66.10.14")), 100));
        o.lease.metadata.deletion_timestamp = Some(Time(at(101)));
        assert!(plan(&o).is_empty());
    }
}
