//! What users are told of a move (migration-and-maintenance.md §11.2). They see neither Migration nor
//! Instance, so it is told about the owners of these: the operation, and the VM. Each is told in the pass
//! that writes the change of state it belongs to, hence once.

use holdfast_api::engine::{Migration, MigrationState, MigrationStatus};
use holdfast_reconcile::{Effect, Note, NoteKind, Plan, Ref};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use super::observe::Observed;

/// The object that stands for the move towards users: its owner, or itself.
pub(super) fn operation(migration: &Migration) -> Ref {
    Ref::owner_of(migration).unwrap_or_else(|| Ref::identity(migration))
}

fn tell(plan: &mut Plan, about: Option<Ref>, kind: NoteKind, reason: &str, message: String) {
    if let Some(about) = about {
        plan.then(Effect::Event(Note { about, kind, reason: reason.to_owned(), message }));
    }
}

/// The target pod is being created.
pub(super) fn created(plan: &mut Plan, o: &Observed, pod: &str) {
    let about = Some(operation(&o.migration));
    tell(plan, about, NoteKind::Normal, "SuccessfulCreate", format!("Created the target pod {pod}."));
}

/// The target pod is being deleted.
pub(super) fn deleted(plan: &mut Plan, o: &Observed, pod: &Pod) {
    let about = Some(operation(&o.migration));
    let text = format!("Deleted the target pod {}.", pod.name_any());
    tell(plan, about, NoteKind::Normal, "SuccessfulDelete", text);
}

/// Everything that a change of the status tells.
pub(super) fn changed(plan: &mut Plan, o: &Observed, old: &MigrationStatus, new: &MigrationStatus) {
    let was = old.state.unwrap_or_default();
    let is = new.state.unwrap_or_default();
    let vm = || {
        o.instance
            .as_ref()
            .map(|instance| Ref::owner_of(&**instance).unwrap_or_else(|| Ref::identity(&**instance)))
    };
    let operation = || Some(operation(&o.migration));
    let unschedulable = |status: &MigrationStatus| status.reason.as_deref() == Some("Unschedulable");
    if unschedulable(new) && !unschedulable(old) {
        let text = new.message.clone().unwrap_or_default();
        tell(plan, operation(), NoteKind::Warning, "migrationTargetPodUnschedulable", text);
    }
    if was < MigrationState::Copying && is >= MigrationState::Copying {
        begun(plan, vm(), new);
    }
    if is.is_final() && !was.is_final() {
        ended(plan, vm(), operation(), o, new);
    }
}

fn begun(plan: &mut Plan, vm: Option<Ref>, new: &MigrationStatus) {
    let Some(target) = &new.target else { return };
    if target.listening {
        let address = target.address.as_deref().unwrap_or_default();
        let port = target.ports.as_ref().map_or(0, |ports| ports.memory);
        let text = format!("The target on node {} listens at {address}:{port}.", target.node);
        tell(plan, vm.clone(), NoteKind::Normal, "PreparingTarget", text);
    }
    if let Some(source) = new.source.as_ref().filter(|source| source.started_at.is_some()) {
        let text = format!("The transfer from node {} to node {} has begun.", source.node, target.node);
        tell(plan, vm, NoteKind::Normal, "Migrating", text);
    }
}

fn ended(plan: &mut Plan, vm: Option<Ref>, operation: Option<Ref>, o: &Observed, new: &MigrationStatus) {
    let (source, target) = (new.source.clone().unwrap_or_default(), new.target.clone().unwrap_or_default());
    let called_off = new.abort.is_some() || o.migration.metadata.deletion_timestamp.is_some();
    let why = new.failure.as_ref().map(|failure| failure.text.clone()).unwrap_or_default();
    match new.state.unwrap_or_default() {
        MigrationState::Done => {
            let text = format!("The target on node {} has taken over.", target.node);
            tell(plan, vm.clone(), NoteKind::Normal, "SuccessfulHandOver", text);
            let text = format!("The VM migrated to node {}.", target.node);
            tell(plan, vm, NoteKind::Normal, "Migrated", text.clone());
            if called_off {
                let late = "It was called off too late: the target had taken over.".to_owned();
                tell(plan, operation.clone(), NoteKind::Warning, "FailedAbortMigration", late);
            }
            tell(plan, operation, NoteKind::Normal, "SuccessfulMigration", text);
        }
        MigrationState::Aborted => {
            tell(plan, operation, NoteKind::Normal, "SuccessfulAbortMigration", why);
        }
        MigrationState::Failed => {
            if source.suspended_at.is_some() {
                let text = format!("The target on node {} did not take over: {why}", target.node);
                tell(plan, vm, NoteKind::Warning, "FailedHandOver", text);
            }
            tell(plan, operation, NoteKind::Warning, "FailedMigration", why);
        }
        MigrationState::Queued
        | MigrationState::Placing
        | MigrationState::Preparing
        | MigrationState::Copying
        | MigrationState::Switching => {}
    }
}
