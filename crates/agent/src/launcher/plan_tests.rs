use holdfast_api::engine::{
    Abort, Claim, InstanceMigration, InstanceStatus, MigrationResult, MigrationSource, MigrationStatus,
    MigrationTarget, Stop,
};
use holdfast_wire::launcher::MigrationEvent;

use super::*;

/// One row's world: the launcher "p" of epoch 3 holds the claim and runs, unless edited.
struct World {
    state: State,
    instance: Instance,
    migration: Option<Migration>,
    asked: Asked,
}

impl World {
    fn new() -> Self {
        let mut instance = Instance::default();
        instance.spec.epoch = 3;
        instance.spec.power = Power::On;
        instance.spec.grace_period_seconds = 60;
        let claim = Claim { pod_uid: "p".into(), epoch: 3, ..Claim::default() };
        instance.status = Some(InstanceStatus { claim: Some(claim), ..InstanceStatus::default() });
        let state = State { vm: VmState::Running, ..State::default() };
        Self { state, instance, migration: None, asked: Asked::default() }
    }

    fn vm(mut self, vm: VmState) -> Self {
        self.state.vm = vm;
        self
    }

    fn stage(mut self, stage: MoveStage) -> Self {
        self.state.migration = Some(MigrationEvent::new("m", stage));
        self
    }

    fn moving(mut self, from: &str, to: &str, listening: bool) -> Self {
        let named = InstanceMigration { uid: "m".into(), ..InstanceMigration::default() };
        self.status().migration = Some(named);
        let mut migration = Migration::default();
        migration.metadata.uid = Some("m".into());
        migration.status = Some(MigrationStatus {
            source: Some(MigrationSource { pod_uid: from.into(), ..MigrationSource::default() }),
            target: Some(MigrationTarget {
                pod_uid: to.into(),
                listening,
                address: listening.then(|| "10.0.0.2".into()),
                ..MigrationTarget::default()
            }),
            ..MigrationStatus::default()
        });
        self.migration = Some(migration);
        self
    }

    fn claimed_by(mut self, pod: &str) -> Self {
        self.status().claim.as_mut().unwrap().pod_uid = pod.into();
        self
    }

    fn status(&mut self) -> &mut InstanceStatus {
        self.instance.status.as_mut().unwrap()
    }

    fn off(mut self, mode: StopMode) -> Self {
        self.instance.spec.power = Power::Off;
        self.instance.spec.stop = Some(Stop { mode, ..Stop::default() });
        self
    }

    fn aborted(mut self) -> Self {
        self.migration.as_mut().unwrap().status.as_mut().unwrap().abort = Some(Abort::default());
        self
    }

    fn edit(mut self, edit: impl FnOnce(&mut Self)) -> Self {
        edit(&mut self);
        self
    }

    fn asked(mut self, edit: impl FnOnce(&mut Asked)) -> Self {
        edit(&mut self.asked);
        self
    }

    fn plan(&self) -> Step {
        let id = Id { instance_uid: "vm".into(), epoch: 3, pod_uid: "p".into() };
        plan(&Observed {
            id: &id,
            state: &self.state,
            instance: Some(&self.instance),
            migration: self.migration.as_ref(),
            asked: &self.asked,
        })
    }
}

fn check(what: &str, world: &World, expected: &Step) {
    match (world.plan(), expected) {
        (Step::Wait(why), Step::Wait(part)) => assert!(why.contains(part), "{what}: {why}"),
        (step, expected) => assert_eq!(&step, expected, "{what}"),
    }
}

fn m() -> String {
    "m".into()
}

fn world() -> World {
    World::new()
}

#[test]
fn power_on_table() {
    let w = world;
    let set_ended = |w: &mut World| {
        w.status().state = Some(InstanceState::Ended);
        w.status().observed_epoch = 3;
    };
    check("fresh launcher", &w().vm(VmState::Empty), &Step::Prepare);
    check("QEMU starting", &w().vm(VmState::Preparing), &Step::Wait("starting"));
    check("QEMU ready", &w().vm(VmState::Prepared), &Step::Run);
    check("running", &w(), &Step::Wait("runs"));
    check("claimed by another", &w().vm(VmState::Empty).claimed_by("q"), &Step::Wait("neither"));
    check("no claim", &w().vm(VmState::Empty).edit(|w| w.status().claim = None), &Step::Wait("neither"));
    check(
        "claim of an earlier epoch",
        &w().vm(VmState::Empty).edit(|w| w.status().claim.as_mut().unwrap().epoch = 2),
        &Step::Wait("neither"),
    );
    check("epoch over", &w().vm(VmState::Empty).edit(set_ended), &Step::Wait("has ended"));
    check("outdated launcher", &w().edit(|w| w.instance.spec.epoch = 4), &Step::Kill(StopWhy::Power));
    check("cache behind", &w().edit(|w| w.instance.spec.epoch = 2), &Step::Wait("behind"));
    check("ended", &w().vm(VmState::Ended), &Step::Wait("ended"));
}

#[test]
fn power_off_table() {
    let w = world;
    let stop = Step::Stop { grace_s: 60, why: StopWhy::Power };
    let kill = Step::Kill(StopWhy::Power);
    check("graceful", &w().off(StopMode::Graceful), &stop);
    check("graceful, once", &w().off(StopMode::Graceful).asked(|a| a.stop = true), &Step::Wait("stop"));
    check("force", &w().off(StopMode::Force), &kill);
    check("force after graceful", &w().off(StopMode::Force).asked(|a| a.stop = true), &kill);
    check("force, once", &w().off(StopMode::Force).asked(|a| a.kill = true), &Step::Wait("kill"));
    check("no guest yet", &w().vm(VmState::Prepared).off(StopMode::Graceful), &kill);
    check("nothing started yet", &w().vm(VmState::Empty).off(StopMode::Graceful), &kill);
    let deleted = |w: &mut World| {
        w.instance.metadata.deletion_timestamp =
            Some(holdfast_api::Time(holdfast_env::Timestamp::UNIX_EPOCH));
    };
    check("deleted", &w().edit(deleted), &stop);
    check(
        "hand-over undecided",
        &w().vm(VmState::GaveUp).stage(MoveStage::GaveUp).off(StopMode::Force),
        &Step::Settle(m()),
    );
}

#[test]
fn source_table() {
    let w = world;
    check("target not ready", &w().moving("p", "t", false), &Step::Wait("prepared"));
    check("target ready", &w().moving("p", "t", true), &Step::MigrateOut(m()));
    check("another pod is the source", &w().moving("q", "t", true), &Step::Wait("runs"));
    check("called off before it began", &w().moving("p", "t", true).aborted(), &Step::Wait("over"));
    check(
        "closed in the Instance",
        &w().moving("p", "t", true).edit(|w| {
            let named = w.status().migration.as_mut().unwrap();
            named.end = Some(holdfast_api::Time(holdfast_env::Timestamp::UNIX_EPOCH));
            named.result = Some(MigrationResult::Failed);
        }),
        &Step::Wait("over"),
    );
    check(
        "asked once",
        &w().moving("p", "t", true).asked(|a| a.migrate_out = Some(m())),
        &Step::Wait("under way"),
    );
    let copying = || w().moving("p", "t", true).stage(MoveStage::Copying);
    check("copying", &copying(), &Step::Wait("copied"));
    check("copying, called off", &copying().aborted(), &Step::Cancel(m(), "the move was called off"));
    check(
        "calling off was asked",
        &copying().aborted().asked(|a| a.cancel = Some(m())),
        &Step::Wait("copied"),
    );
    let suspended = || w().moving("p", "t", true).stage(MoveStage::Suspended);
    check("suspended", &suspended(), &Step::Switch(m()));
    check("suspended, paused in QEMU", &suspended().vm(VmState::Paused), &Step::Switch(m()));
    check("switched", &suspended().asked(|a| a.switch = Some(m())), &Step::Wait("copied"));
    check("suspended, called off", &suspended().aborted(), &Step::Cancel(m(), "the move was called off"));
    check("suspended, cache lost", &suspended().edit(|w| w.migration = None), &Step::Switch(m()));
    let failed = || w().moving("p", "t", true).stage(MoveStage::Failed);
    check("failed", &failed(), &Step::RoutesBack(m()));
    check(
        "failed, routes taken back, not tried again",
        &failed().asked(|a| a.routes_back = Some(m())),
        &Step::Wait("tried"),
    );
    check(
        "a new move after a failed one",
        &failed().asked(|a| a.routes_back = Some(m())).edit(|w| {
            w.status().migration.as_mut().unwrap().uid = "m2".into();
            w.migration.as_mut().unwrap().metadata.uid = Some("m2".into());
        }),
        &Step::MigrateOut("m2".into()),
    );
    check("gave up", &w().vm(VmState::GaveUp).stage(MoveStage::GaveUp), &Step::Settle(m()));
}

#[test]
fn target_table() {
    let target = |vm| world().claimed_by("s").moving("s", "p", false).vm(vm);
    let over = Step::Cancel(m(), "the move is over");
    check("fresh target", &target(VmState::Empty), &Step::PrepareIncoming(m()));
    check("waiting for memory", &target(VmState::Incoming), &Step::MigrateIn(m()));
    check(
        "accepting",
        &target(VmState::Incoming).asked(|a| a.migrate_in = Some(m())),
        &Step::Wait("takes memory"),
    );
    check("never Run a target", &target(VmState::Prepared), &Step::Wait("takes memory"));
    check("called off, nothing started", &target(VmState::Empty).aborted(), &Step::Kill(StopWhy::MoveOver));
    check("called off, taking memory", &target(VmState::Incoming).aborted(), &over);
    // The copy has begun: the source may have given up its right before it hears of the call-off.
    let copying = |edit: fn(&mut MigrationStatus)| {
        target(VmState::Incoming).aborted().asked(|a| a.migrate_in = Some(m())).edit(|w| {
            let status = w.migration.as_mut().unwrap().status.as_mut().unwrap();
            let source = status.source.get_or_insert_default();
            source.started_at = Some(holdfast_api::Time(holdfast_env::Timestamp::UNIX_EPOCH));
            edit(status);
        })
    };
    check("called off, not settled at the source", &copying(|_| ()), &Step::Wait("takes memory"));
    let settled = |s: &mut MigrationStatus| {
        s.source.as_mut().unwrap().aborted_at = Some(holdfast_api::Time(holdfast_env::Timestamp::UNIX_EPOCH));
    };
    check("called off, the guest stays there", &copying(settled), &over);
    check("called off and over", &copying(|s| s.state = Some(MigrationState::Failed)), &over);
    let lost = |s: &mut MigrationStatus| s.abort.as_mut().unwrap().reason = ABORT_SOURCE_LOST.into();
    check("the source is lost", &copying(lost), &over);
    check(
        "resumed, flip not written",
        &target(VmState::Running).stage(MoveStage::Resumed).aborted(),
        &Step::Wait("flip"),
    );
    check(
        "left behind by a new move",
        &target(VmState::Incoming).stage(MoveStage::Listening).edit(|w| {
            w.status().migration.as_mut().unwrap().uid = "m2".into();
        }),
        &over,
    );
    check(
        "not handed over yet",
        &target(VmState::Empty).edit(|w| w.migration = None),
        &Step::Wait("neither"),
    );
}
