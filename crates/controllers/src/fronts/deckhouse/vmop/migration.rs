//! Evict and Migrate: one Migration object each.

use std::collections::BTreeMap;

use holdfast_api::engine::{
    InstanceRef, Migration, MigrationReason, MigrationResult, MigrationSpec, MigrationState, MigrationStatus,
};
use holdfast_api::names::{annotation, finalizer, object};
use holdfast_api::vm::conditions::Migratable;
use holdfast_api::vmop::{Completed, VmopPhase};
use holdfast_domain::migration as rules;
use holdfast_reconcile::{Create, Effect, NoteKind, Plan, owner_reference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::observe::Observed;
use super::plan::{Outcome, refusal, signal_sent};

/// Name of the Migration of an operation.
#[must_use]
pub fn migration_name(operation: &str) -> String {
    format!("{}{operation}", object::VMOP_MIGRATION_PREFIX)
}

/// What the operation has come to; creates the Migration when every check holds.
#[must_use]
pub fn advance(plan: &mut Plan, o: &Observed, phase: VmopPhase) -> Option<Outcome> {
    if let Some(migration) = &o.migration {
        return Some(follow(o, migration, phase));
    }
    if signal_sent(o) {
        return Some(Outcome::failed(
            Completed::Aborted,
            "Migration aborted: its Migration object was removed.",
        ));
    }
    if let Some(refused) = refusal(o).or_else(|| not_movable(o)) {
        return Some(refused);
    }
    let migration = build(o)?;
    plan.because("checks passed, the migration is created");
    plan.then(Create::of(&migration));
    if let Some(vm) = &o.vm {
        let name = o.operation.metadata.name.as_deref().unwrap_or_default();
        let text = format!("Migration initiated with VirtualMachineOperation {name}.");
        let reason = match o.operation.spec.type_ {
            holdfast_api::vmop::VmopType::Migrate => "Migrated",
            _ => "Evicted",
        };
        plan.then(Effect::event(&**vm, NoteKind::Normal, reason, text));
    }
    None
}

/// The checks that only migrations have.
fn not_movable(o: &Observed) -> Option<Outcome> {
    let Some(instance) = &o.instance else {
        return Some(Outcome::failed(Completed::OperationFailed, "The VM is not running."));
    };
    if let Err(text) = rules::auto_converge(instance.spec.migration_policy, o.operation.spec.force) {
        return Some(Outcome::failed(Completed::NotApplicableForLiveMigrationPolicy, text));
    }
    let conditions =
        o.vm.as_ref().and_then(|vm| vm.status.as_ref()).map(|status| status.conditions.as_slice());
    let migratable = holdfast_api::condition::find(
        conditions.unwrap_or_default(),
        <Migratable as holdfast_api::condition::ConditionKind>::TYPE,
    );
    match migratable {
        Some(condition) if condition.status == "True" => None,
        other => {
            let why = other.map(|condition| condition.message.clone()).unwrap_or_default();
            Some(Outcome::failed(Completed::OperationFailed, format!("The VM is not migratable. {why}")))
        }
    }
}

fn has(o: &Observed, key: &str) -> bool {
    annotations(o).get(key).is_some_and(|value| value == "true")
}

fn annotations(o: &Observed) -> BTreeMap<String, String> {
    o.operation.metadata.annotations.clone().unwrap_or_default()
}

/// Why the operation was created: by its marks.
fn reason(o: &Observed) -> MigrationReason {
    let name = o.operation.metadata.name.as_deref().unwrap_or_default();
    if has(o, annotation::EVACUATION) {
        return match annotations(o).get(annotation::EVACUATION_CAUSE).map(String::as_str) {
            Some("rebalance") => MigrationReason::Rebalance,
            Some(_) | None => MigrationReason::Drain,
        };
    }
    if has(o, annotation::WORKLOAD_UPDATE) {
        return match name.starts_with(object::NODE_PLACEMENT_PREFIX) {
            true => MigrationReason::Placement,
            false => MigrationReason::Firmware,
        };
    }
    MigrationReason::User
}

fn build(o: &Observed) -> Option<Migration> {
    let instance = o.instance.as_ref()?;
    let reason = reason(o);
    let spec = MigrationSpec {
        instance: InstanceRef {
            name: instance.metadata.name.clone().unwrap_or_default(),
            uid: instance.metadata.uid.clone().unwrap_or_default(),
            epoch: instance.spec.epoch,
        },
        reason,
        class: rules::class(reason),
        force: o.operation.spec.force,
        node_selector: o
            .operation
            .spec
            .migrate
            .as_ref()
            .and_then(|m| m.node_selector.clone())
            .unwrap_or_default(),
        preferred_node: annotations(o).get(annotation::EVACUATION_TARGET).cloned(),
    };
    let name = migration_name(o.operation.metadata.name.as_deref().unwrap_or_default());
    let mut migration = Migration::new(&name, spec);
    let copied: BTreeMap<_, _> =
        annotations(o).into_iter().filter(|(key, _)| !key.starts_with("kubectl.kubernetes.io/")).collect();
    migration.metadata = ObjectMeta {
        namespace: o.operation.metadata.namespace.clone(),
        annotations: (!copied.is_empty()).then_some(copied),
        owner_references: Some(vec![owner_reference(&*o.operation)]),
        finalizers: Some(vec![finalizer::MIGRATION_CLEANUP.to_owned()]),
        ..migration.metadata
    };
    Some(migration)
}

/// The stage of the Migration in the words of the operation (migration-and-maintenance.md §1.2).
fn follow(o: &Observed, migration: &Migration, phase: VmopPhase) -> Outcome {
    let status = migration.status.clone().unwrap_or_default();
    let said = status.message.clone().unwrap_or_default();
    let begun = |completed, message: String, progress| Outcome {
        progress: Some(progress),
        ..Outcome::stage(VmopPhase::InProgress, completed, message)
    };
    match status.state.unwrap_or_default() {
        MigrationState::Queued => queued(&status, said, phase),
        MigrationState::Placing => match status.reason.as_deref() {
            Some(rules::CREATING_TARGET) => queued(&status, said, phase),
            Some("Unschedulable") => begun(Completed::TargetUnschedulable, said, 2),
            Some("WaitingForSyncSlot") => begun(Completed::WaitingForSyncSlot, said, 4),
            Some("TargetDiskError") => begun(Completed::TargetDiskError, said, 3),
            Some(_) | None => begun(Completed::TargetScheduling, said, 2),
        },
        MigrationState::Preparing => begun(Completed::TargetPreparing, said, 3),
        MigrationState::Copying => {
            let progress = status.progress.clone().unwrap_or_default();
            if progress.not_converging {
                // The percentage is frozen: what is left says nothing any more.
                return Outcome::stage(
                    VmopPhase::InProgress,
                    Completed::NotConverging,
                    format!("{} {}", not_converging(o, &status), details(o, &status)),
                );
            }
            let percent = if status.progress.is_some() { progress.percent } else { 10 };
            begun(Completed::Syncing, details(o, &status), percent.clamp(10, 90))
        }
        MigrationState::Switching if holdfast_env::mutant!("completed-at-switch") => {
            Outcome::stage(VmopPhase::Completed, Completed::Completed, "")
        }
        MigrationState::Switching => {
            let resumed = status.target.as_ref().is_some_and(|target| target.resumed_at.is_some());
            match resumed {
                true => begun(Completed::TargetResumed, said, 92),
                false => begun(Completed::SourceSuspended, said, 91),
            }
        }
        MigrationState::Done => {
            let outcome = Outcome::stage(VmopPhase::Completed, Completed::Completed, "");
            Outcome { progress: Some(100), ..outcome }
        }
        MigrationState::Failed | MigrationState::Aborted => failed(&status),
    }
}

/// There is no target pod yet.
fn queued(status: &MigrationStatus, said: String, phase: VmopPhase) -> Outcome {
    let text = match said.is_empty() {
        true => "The operation has been queued; waiting for the queue to be processed.".to_owned(),
        false => said,
    };
    let refused = status.reason.as_deref() == Some(rules::TARGET_REFUSED);
    let completed = match refused && holdfast_domain::refusal::is_quota(&text) {
        true => Completed::QuotaExceeded,
        false => Completed::MigrationPending,
    };
    // A phase never goes back.
    let phase = if phase == VmopPhase::InProgress { phase } else { VmopPhase::Pending };
    // Nor does a percentage: a move that is queued again keeps it.
    let begun = phase == VmopPhase::InProgress;
    Outcome { progress: (!begun).then_some(0), ..Outcome::stage(phase, completed, text) }
}

fn failed(status: &MigrationStatus) -> Outcome {
    let aborted =
        status.state == Some(MigrationState::Aborted) || status.result == Some(MigrationResult::Aborted);
    let (completed, beginning) = rules::failure_reason(status.failure.as_ref(), aborted);
    let text = status.failure.as_ref().map(|failure| failure.text.clone()).unwrap_or_default();
    let message = if text.is_empty() { format!("{beginning}.") } else { format!("{beginning}: {text}") };
    let outcome = Outcome::failed(completed, message);
    Outcome { signal: Some(holdfast_api::vmop::SignalSent::SignalSentSuccess), ..outcome }
}

/// What a person can do about a guest that writes faster than is copied (§3, §5.5).
fn not_converging(o: &Observed, status: &MigrationStatus) -> String {
    let config = status.config.clone().unwrap_or_default();
    let policy = o.instance.as_ref().map(|instance| instance.spec.migration_policy).unwrap_or_default();
    let cure = if config.auto_converge {
        "The guest is slowed down as far as possible."
    } else if rules::auto_converge(policy, Some(true)).is_ok() {
        "To have the guest slowed down, delete this operation and create one with force: true."
    } else {
        "The VM's liveMigrationPolicy does not allow to slow it down."
    };
    format!(
        "The guest writes memory faster than it is copied. {cure} Without a change the move is given up {} s \
         after its beginning, and the VM stays where it is.",
        config.completion_timeout_s
    )
}

/// `TimeElapsed:20s DataProcessed:512MiB …` (§1.6).
fn details(o: &Observed, status: &MigrationStatus) -> String {
    let Some(progress) = &status.progress else { return "Memory is being transferred.".to_owned() };
    // The instant of the figures is not recorded; the source writes them every 10 s.
    let started = status.source.as_ref().and_then(|source| source.started_at.as_ref());
    let elapsed = started.map_or(0, |started| o.now.duration_since(started.0).as_secs().max(0) / 10 * 10);
    let mib = |bytes: i64| bytes >> 20;
    format!(
        "TimeElapsed:{elapsed}s DataProcessed:{}MiB DataRemaining:{}MiB DataTotal:{}MiB Iteration:{} \
         AutoConvergeThrottleSet:{} AutoConvergeThrottle:{}",
        mib(progress.processed_bytes),
        mib(progress.remaining_bytes),
        mib(progress.total_bytes),
        progress.iteration,
        progress.throttle_pct > 0,
        progress.throttle_pct,
    )
}
