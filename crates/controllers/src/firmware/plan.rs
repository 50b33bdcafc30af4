//! Which VMs are moved to the present launcher image next. Pure.

use holdfast_api::engine::{Instance, InstanceState, Power};
use holdfast_api::names::{annotation, object};
use holdfast_api::vm::VmPhase;
use holdfast_domain::{backoff, eviction};
use holdfast_env::{Timestamp, suffix};
use holdfast_reconcile::{Patch, Plan, Ref};
use serde_json::json;

use super::{Observed, is_outdated, is_update};
use crate::operations::{self, Machine, Operation};

/// Annotation on an Instance: the image it was to be moved to, how often that was tried, and when
/// last: `<sum>/<tries>/<unix s>`.
const TRIED: &str = "internal.virtualization.deckhouse.io/firmware-tried";
/// Seconds between two tries for one VM.
const AGAIN_S: i64 = 3600;
/// Tries for one image: one, and five more.
const TRIES: u32 = 6;
/// Unfinished operations, as a multiple of the moves that the cluster does at once: enough to keep
/// every slot busy, few enough to keep the queue readable.
const AHEAD: usize = 2;

/// The next step; a cluster whose VMs are up to date yields an empty plan.
#[must_use]
pub fn plan(o: &Observed) -> Plan {
    let mut plan = Plan::default();
    let mut unfinished = 0;
    for machine in &o.machines {
        let updates: Vec<Operation> =
            machine.operations.iter().filter(|op| is_update(&op.object) && !op.is_final()).cloned().collect();
        if updates.is_empty() {
            continue;
        }
        // Moved by something else meanwhile, or not wanted any more.
        if !o.enabled || !is_outdated(&machine.instance, &o.image) {
            operations::call_off(&mut plan, &updates, annotation::WORKLOAD_UPDATE);
        }
        unfinished += updates.len();
    }
    if !o.enabled {
        plan.because("firmware updates are off");
        return plan;
    }
    let sum = sum(&o.image);
    let mut candidates: Vec<&Machine> =
        o.machines.iter().filter(|machine| is_candidate(machine, o)).collect();
    // In an order of its own for each image, so that the same VMs are not always first.
    candidates.sort_by_key(|m| suffix(m.instance.metadata.uid.as_deref().unwrap_or_default(), &sum, 0));
    let mut free = (AHEAD * o.limit).saturating_sub(unfinished);
    for machine in candidates {
        let tried = tried(&machine.instance).filter(|(of, ..)| *of == sum);
        let tries = tried.map_or(0, |(_, tries, _)| tries);
        let again = tried.map(|(.., at)| backoff::after(at, AGAIN_S));
        if tries >= TRIES {
            continue;
        }
        if let Some(again) = again.filter(|again| o.now < *again) {
            plan.wake_at(again);
            continue;
        }
        if free == 0 {
            break;
        }
        free -= usize::from(update(&mut plan, machine, o, &sum, tries + 1));
    }
    plan.because(format!("{unfinished} updates to {} under way", o.image));
    plan
}

/// It runs, is outdated, and nothing else is being done with it.
fn is_candidate(machine: &Machine, o: &Observed) -> bool {
    let (instance, Some(vm)) = (&*machine.instance, &machine.vm) else { return false };
    let running = instance.status.as_ref().and_then(|status| status.state) == Some(InstanceState::Running);
    let phase = vm.status.as_ref().and_then(|status| status.phase);
    let dying = vm.metadata.deletion_timestamp.is_some() || instance.metadata.deletion_timestamp.is_some();
    running
        && !dying
        && instance.spec.power == Power::On
        && phase == Some(VmPhase::Running)
        && is_outdated(instance, &o.image)
        && machine.operations.iter().all(Operation::is_final)
        && eviction::migratable(instance).is_ok()
}

fn update(plan: &mut Plan, machine: &Machine, o: &Observed, sum: &str, tries: u32) -> bool {
    let Some(vm) = &machine.vm else { return false };
    let marks = [(annotation::WORKLOAD_UPDATE, "true")];
    let purpose = format!("{sum}-{tries}");
    let known = &machine.operations;
    let Some(create) = operations::evict(vm, known, object::FIRMWARE_UPDATE_PREFIX, &purpose, &marks, &[])
    else {
        return false;
    };
    plan.then(create);
    let note = format!("{sum}/{tries}/{}", o.now.as_second());
    let body = json!({ "metadata": { "annotations": { TRIED: note } } });
    plan.then(Patch { target: Ref::exact(&*machine.instance), status: false, body });
    true
}

fn tried(instance: &Instance) -> Option<(&str, u32, Timestamp)> {
    let mut parts = instance.metadata.annotations.as_ref()?.get(TRIED)?.splitn(3, '/');
    let (sum, tries, at) = (parts.next()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    Some((sum, tries, Timestamp::from_second(at).ok()?))
}

/// Tells one image from another.
fn sum(image: &str) -> String {
    format!("{}{}", suffix(image, "a", 0), suffix(image, "b", 0))
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
