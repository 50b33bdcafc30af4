//! The Lease of a node: who works on it (migration-and-maintenance.md §8.3 row 5). Pure.

use holdfast_api::maintenance::{LEASE_HOLDER, LEASE_PREFIX};
use holdfast_domain::backoff;
use holdfast_env::Timestamp;
use holdfast_reconcile::{Create, Effect, Patch};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{Namespace, Node};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};

use super::observe::Observed;
use super::plan::owner_reference;

/// Seconds for which the Lease holds without renewal.
const DURATION_S: i32 = 3600;
/// Seconds after which it is renewed.
const RENEW_S: i64 = 900;

/// What is to be done about the Lease.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// It is ours until well after this instant, when it is renewed.
    Held(Timestamp),
    /// It is ours and to be renewed.
    Renew(Box<Patch>),
    /// To be written first: nothing else happens before it is ours.
    Take(Box<Effect>),
    /// Somebody else has it, until this instant unless they renew it.
    Theirs(String, Timestamp),
}

fn holder(lease: &Lease) -> &str {
    lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default()
}

/// Whether a maintenance holds it.
pub(super) fn is_ours(lease: &Lease) -> bool {
    holder(lease) == LEASE_HOLDER
}

/// End of the time that the holder has asked for.
fn expires(spec: &LeaseSpec) -> Option<Timestamp> {
    let renewed = spec.renew_time.as_ref()?.0;
    Some(backoff::after(renewed, i64::from(spec.lease_duration_seconds?)))
}

pub(super) fn step(o: &Observed, node: &Node) -> Step {
    if !o.lease_namespace_exists {
        let mut namespace = Namespace::default();
        namespace.metadata.name = Some(o.lease_namespace.clone());
        return Step::Take(Box::new(Create::of(&namespace).into()));
    }
    let mut mine = LeaseSpec {
        holder_identity: Some(LEASE_HOLDER.to_owned()),
        lease_duration_seconds: Some(DURATION_S),
        acquire_time: Some(MicroTime(o.now)),
        renew_time: Some(MicroTime(o.now)),
        lease_transitions: Some(0),
        ..LeaseSpec::default()
    };
    let Some(lease) = &o.lease else {
        let name = format!("{LEASE_PREFIX}{}", o.object.spec.node_name);
        let metadata = ObjectMeta {
            name: Some(name),
            namespace: Some(o.lease_namespace.clone()),
            owner_references: Some(vec![owner_reference(node)]),
            ..ObjectMeta::default()
        };
        // Should another's be there meanwhile, the next pass sees whose it is.
        return Step::Take(Box::new(Create::of(&Lease { metadata, spec: Some(mine) }).into()));
    };
    let known = lease.spec.clone().unwrap_or_default();
    if is_ours(lease) {
        let due = known.renew_time.as_ref().map(|at| backoff::after(at.0, RENEW_S));
        if let Some(due) = due.filter(|due| o.now < *due) {
            return Step::Held(due);
        }
        mine.acquire_time = known.acquire_time.clone().or(mine.acquire_time);
        mine.lease_transitions = known.lease_transitions;
        return match Patch::field(&**lease, "spec", lease.spec.as_ref(), &mine) {
            Some(patch) => Step::Renew(Box::new(patch)),
            None => Step::Held(backoff::after(o.now, RENEW_S)),
        };
    }
    let theirs = expires(&known).filter(|end| !holder(lease).is_empty() && o.now < *end);
    if let Some(end) = theirs {
        return Step::Theirs(holder(lease).to_owned(), end);
    }
    mine.lease_transitions = Some(known.lease_transitions.unwrap_or_default() + 1);
    match Patch::field(&**lease, "spec", lease.spec.as_ref(), &mine) {
        Some(patch) => Step::Take(Box::new(patch.into())),
        None => Step::Held(backoff::after(o.now, RENEW_S)),
    }
}
