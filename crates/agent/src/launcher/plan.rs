//! What to ask of a launcher next. Pure: everything comes in as values (INV-9).

use holdfast_api::engine::{
    ABORT_SOURCE_LOST, Instance, InstanceState, Migration, MigrationState, Power, StopMode,
};
use holdfast_wire::Id;
use holdfast_wire::launcher::{MoveStage, State, StopWhy, VmState};

/// Everything the decision needs.
#[derive(Debug, Clone)]
pub struct Observed<'a> {
    /// The launcher.
    pub id: &'a Id,
    /// What it says about itself.
    pub state: &'a State,
    /// Its Instance as cached; none when there is none (yet).
    pub instance: Option<&'a Instance>,
    /// The Migration that the Instance names, as cached.
    pub migration: Option<&'a Migration>,
    /// What was asked on this connection already.
    pub asked: &'a Asked,
}

/// What was asked of a launcher on the present connection. Forgotten with the connection: every
/// request may be repeated.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// Stop with this grace.
    pub stop: bool,
    /// Kill.
    pub kill: bool,
    /// MigrateIn for this Migration.
    pub migrate_in: Option<String>,
    /// MigrateOut for this Migration.
    pub migrate_out: Option<String>,
    /// Switch for this Migration.
    pub switch: Option<String>,
    /// Cancel for this Migration.
    pub cancel: Option<String>,
    /// The routes were taken back after a failure of this Migration.
    pub routes_back: Option<String>,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing, for this reason.
    Wait(&'static str),
    /// Start QEMU for a cold start, if the store authorises it.
    Prepare,
    /// Let the guest run, if the store still authorises it.
    Run,
    /// Start QEMU as the target of this Migration, if the store authorises it.
    PrepareIncoming(String),
    /// Let the target launcher accept the control stream.
    MigrateIn(String),
    /// Start the move from here.
    MigrateOut(String),
    /// The guest is stopped for the switch-over: move the routes, then let the source go on.
    Switch(String),
    /// The move failed or was called off: the routes belong to this node.
    RoutesBack(String),
    /// Call the move off, for this reason.
    Cancel(String, &'static str),
    /// The source waits for the target's word: find out what is certain.
    Settle(String),
    /// Stop the guest.
    Stop {
        /// Seconds the guest has.
        grace_s: u64,
        /// By whose wish.
        why: StopWhy,
    },
    /// Kill QEMU, or end a launcher that has none.
    Kill(StopWhy),
}

/// Decides the next step for one launcher.
pub fn plan(o: &Observed<'_>) -> Step {
    if o.state.vm == VmState::Ended {
        return Step::Wait("it has ended");
    }
    let Some(instance) = o.instance else { return Step::Wait("its Instance is not known") };
    if instance.spec.epoch > o.id.epoch {
        // The store accepted a newer epoch only after this one's end was proved; whatever lives here
        // is no longer the VM.
        return kill(o, StopWhy::Power, "kill of an outdated launcher was asked");
    }
    if instance.spec.epoch < o.id.epoch {
        return Step::Wait("the cache is behind the launcher's epoch");
    }
    if o.state.vm == VmState::GaveUp {
        return o
            .state
            .migration
            .as_ref()
            .map_or(Step::Wait("gave up without a move"), |m| Step::Settle(m.migration_uid.clone()));
    }
    let claim = instance.status.as_ref().and_then(|s| s.claim.as_ref());
    match claim {
        Some(claim) if claim.epoch == o.id.epoch && claim.pod_uid == o.id.pod_uid => holder(o, instance),
        Some(_)
            if holdfast_env::mutant!("epoch-unchecked")
                && o.state.migration.is_none()
                && named(o, instance).is_none() =>
        {
            holder(o, instance)
        }
        _ => other(o, instance),
    }
}

fn kill(o: &Observed<'_>, why: StopWhy, waiting: &'static str) -> Step {
    if o.asked.kill { Step::Wait(waiting) } else { Step::Kill(why) }
}

/// The launcher whose pod has the claim.
fn holder(o: &Observed<'_>, instance: &Instance) -> Step {
    if instance.spec.power == Power::Off || instance.metadata.deletion_timestamp.is_some() {
        return stop(o, instance);
    }
    match o.state.vm {
        VmState::Empty if has_ended(instance) => Step::Wait("the epoch has ended"),
        VmState::Empty => Step::Prepare,
        VmState::Prepared => Step::Run,
        VmState::Preparing => Step::Wait("QEMU is starting"),
        VmState::Stopping => Step::Wait("a stop is under way"),
        VmState::Running | VmState::Paused => source(o, instance),
        VmState::Incoming => Step::Wait("the move's last steps are under way"),
        VmState::GaveUp | VmState::Ended => Step::Wait("the launcher is past running"),
    }
}

/// The engine has a proof that the Instance's epoch is over.
pub fn has_ended(instance: &Instance) -> bool {
    instance
        .status
        .as_ref()
        .is_some_and(|s| s.state == Some(InstanceState::Ended) && s.observed_epoch == instance.spec.epoch)
}

fn stop(o: &Observed<'_>, instance: &Instance) -> Step {
    let stop = instance.spec.stop.as_ref();
    let force = stop.is_some_and(|stop| stop.mode == StopMode::Force);
    let guest_is_there = matches!(o.state.vm, VmState::Running | VmState::Paused | VmState::Stopping);
    if force || !guest_is_there {
        return kill(o, StopWhy::Power, "kill was asked");
    }
    if o.asked.stop {
        return Step::Wait("stop was asked");
    }
    let grace_s = u64::try_from(instance.spec.grace_period_seconds).unwrap_or(0);
    Step::Stop { grace_s, why: StopWhy::Power }
}

/// The Migration that both objects name, and its uid.
fn named<'a>(o: &Observed<'a>, instance: &Instance) -> Option<(&'a Migration, String)> {
    let named = instance.status.as_ref()?.migration.as_ref()?;
    let migration = o.migration?;
    (migration.metadata.uid.as_ref() == Some(&named.uid)).then(|| (migration, named.uid.clone()))
}

fn is_called_off(migration: &Migration) -> bool {
    let status = migration.status.as_ref();
    status.is_some_and(|s| s.abort.is_some() || s.state.is_some_and(MigrationState::is_final))
}

/// A running guest: is a move from here to be begun, carried on or called off?
fn source(o: &Observed<'_>, instance: &Instance) -> Step {
    if let Some(step) = move_under_way(o, instance) {
        return step;
    }
    let Some((migration, uid)) = named(o, instance) else { return Step::Wait("the guest runs") };
    let over = instance.status.as_ref().and_then(|s| s.migration.as_ref()).is_some_and(|m| m.end.is_some());
    if over || is_called_off(migration) || migration.metadata.deletion_timestamp.is_some() {
        return Step::Wait("the guest runs; the named move is over");
    }
    let status = migration.status.as_ref();
    let from_here = status.and_then(|s| s.source.as_ref()).is_some_and(|s| s.pod_uid == o.id.pod_uid);
    let ready = status.and_then(|s| s.target.as_ref()).is_some_and(|t| t.listening && t.address.is_some());
    let known = o.state.migration.as_ref().is_some_and(|m| m.migration_uid == uid);
    match (from_here, ready) {
        (false, _) => Step::Wait("the guest runs"),
        (true, _) if known || o.asked.migrate_out.as_ref() == Some(&uid) => {
            Step::Wait("the move is under way or was tried")
        }
        (true, false) => Step::Wait("the target is being prepared"),
        (true, true) => Step::MigrateOut(uid),
    }
}

/// What the launcher's own move asks for.
fn move_under_way(o: &Observed<'_>, instance: &Instance) -> Option<Step> {
    let event = o.state.migration.as_ref()?;
    let uid = &event.migration_uid;
    // A Migration that the Instance does not name any more is over, too.
    let called_off = match named(o, instance) {
        Some((migration, named)) if named == *uid => is_called_off(migration),
        Some(_) => true,
        // The cache may be incomplete; only what is known counts.
        None => false,
    };
    let asked = |what: &Option<String>| what.as_ref() == Some(uid);
    match event.stage {
        MoveStage::Copying | MoveStage::Suspended if called_off && !asked(&o.asked.cancel) => {
            Some(Step::Cancel(uid.clone(), "the move was called off"))
        }
        MoveStage::Suspended if !called_off && !asked(&o.asked.switch) => Some(Step::Switch(uid.clone())),
        MoveStage::Copying | MoveStage::Suspended => Some(Step::Wait("memory is being copied")),
        // Only a source has anything to take back; whether routes had moved is not remembered
        // over a restart, and taking back what never left is harmless.
        MoveStage::Failed | MoveStage::Cancelled if !asked(&o.asked.routes_back) => {
            Some(Step::RoutesBack(uid.clone()))
        }
        MoveStage::Failed
        | MoveStage::Cancelled
        | MoveStage::Listening
        | MoveStage::GaveUp
        | MoveStage::Resumed
        | MoveStage::Acked => None,
    }
}

/// A launcher without the claim: the target of a move, or not (or no longer) anything.
fn other(o: &Observed<'_>, instance: &Instance) -> Step {
    let mine = named(o, instance).filter(|(migration, _)| {
        let target = migration.status.as_ref().and_then(|s| s.target.as_ref());
        target.is_some_and(|t| t.pod_uid == o.id.pod_uid)
    });
    let Some((migration, uid)) = mine else { return stranger(o, instance) };
    if o.state.migration.as_ref().is_some_and(|m| m.stage == MoveStage::Resumed) {
        return Step::Wait("the guest runs here; the flip is being written");
    }
    if is_called_off(migration) && !is_the_sources_to_say(migration) {
        return give_up(o, &uid);
    }
    match o.state.vm {
        VmState::Empty if migration.metadata.deletion_timestamp.is_some() => {
            kill(o, StopWhy::MoveOver, "over")
        }
        VmState::Empty => Step::PrepareIncoming(uid),
        VmState::Incoming if o.asked.migrate_in.as_ref() != Some(&uid) => Step::MigrateIn(uid),
        _ => Step::Wait("the target takes memory"),
    }
}

/// Memory is on its way, and the source has not said yet that the guest stays: it may have given up its
/// right already, and then the guest goes on here or stands still for nothing.
fn is_the_sources_to_say(migration: &Migration) -> bool {
    let Some(status) = &migration.status else { return false };
    let is_over = status.state.is_some_and(MigrationState::is_final);
    let is_lost = status.abort.as_ref().is_some_and(|abort| abort.reason == ABORT_SOURCE_LOST);
    let source = status.source.as_ref();
    !is_over
        && !is_lost
        && source.is_some_and(|source| source.started_at.is_some() && source.aborted_at.is_none())
}

fn give_up(o: &Observed<'_>, uid: &str) -> Step {
    match o.state.vm {
        VmState::Empty | VmState::Preparing => kill(o, StopWhy::MoveOver, "kill was asked"),
        // Not a kill: the launcher alone knows whether COMMIT came first.
        _ if o.asked.cancel.as_deref() != Some(uid) => Step::Cancel(uid.to_owned(), "the move is over"),
        _ => Step::Wait("giving up was asked"),
    }
}

/// Neither claim nor migration names this pod.
fn stranger(o: &Observed<'_>, instance: &Instance) -> Step {
    let event = o.state.migration.as_ref();
    let waits_for_memory = o.state.vm == VmState::Incoming;
    let named = instance.status.as_ref().and_then(|s| s.migration.as_ref());
    match (event, named) {
        // A target whose move the Instance has left behind.
        (Some(event), Some(named)) if waits_for_memory && named.uid != event.migration_uid => {
            give_up(o, &event.migration_uid)
        }
        _ => Step::Wait("neither the claim nor a migration names this pod"),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
