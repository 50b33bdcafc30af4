//! Start authorisation: may this node let this launcher start QEMU, or let its guest run?
//!
//! The only gate in front of `Prepare` and `Run` (failure-and-rebalancing.md §3.6, INV-1, INV-3).
//! Decided on an Instance read from the store at this moment, never on a cached one.

use holdfast_api::engine::{Instance, InstanceState, Migration, Power, Report, ReportState};
use holdfast_wire::Id;

/// This node, now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Here {
    /// Name.
    pub node: String,
    /// Identity of this boot.
    pub boot_id: String,
    /// The fence lease is held by this node under this boot id (rule (a): the gate is open).
    pub gate_open: bool,
}

/// Why a start is not authorised: a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub String);

fn refuse<T>(why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal(why.into()))
}

/// Whether the launcher `id` may start QEMU for a cold start, and run its guest.
///
/// # Errors
/// The first rule that forbids it.
pub fn cold_start(here: &Here, id: &Id, instance: &Instance) -> Result<(), Refusal> {
    same_power_on(here, id, instance)?;
    let status = instance.status.as_ref();
    let Some(claim) = status.and_then(|s| s.claim.as_ref()) else {
        return refuse("nobody has the claim to start this VM yet");
    };
    if holdfast_env::mutant!("epoch-unchecked") {
        return Ok(());
    }
    if claim.epoch != id.epoch {
        return refuse(format!("the claim is for epoch {}, the launcher is for {}", claim.epoch, id.epoch));
    }
    if claim.node != here.node || claim.boot_id != here.boot_id {
        return refuse(format!(
            "the claim names node {} in boot {}, this is node {} in boot {}",
            claim.node, claim.boot_id, here.node, here.boot_id
        ));
    }
    if claim.pod_uid != id.pod_uid {
        return refuse(format!("the claim names pod {}, the launcher is pod {}", claim.pod_uid, id.pod_uid));
    }
    // The engine may be about to act on it.
    if status.and_then(|s| s.report.as_ref()).is_some_and(|report| is_end_of(id, report)) {
        return refuse("the end of this launcher was reported");
    }
    // The engine lists every pod of the Instance whose end is not proved. One of an earlier epoch is
    // covered by the proof without which there would be no new epoch.
    let rival =
        status.iter().flat_map(|s| &s.pods).find(|pod| pod.uid != id.pod_uid && pod.epoch >= id.epoch);
    if let Some(rival) = rival {
        return refuse(format!("the end of pod {} of the same VM is not proved", rival.name));
    }
    Ok(())
}

fn is_end_of(id: &Id, report: &Report) -> bool {
    report.epoch == id.epoch && report.pod_uid == id.pod_uid && report.state == ReportState::Ended
}

/// Whether the launcher `id` may start QEMU as the target of `migration`. It never authorises `Run`.
///
/// # Errors
/// The first rule that forbids it.
pub fn incoming(here: &Here, id: &Id, instance: &Instance, migration: &Migration) -> Result<(), Refusal> {
    same_power_on(here, id, instance)?;
    let uid = migration.metadata.uid.as_deref().unwrap_or_default();
    if migration.metadata.deletion_timestamp.is_some() {
        return refuse("the migration is being called off");
    }
    let named = instance.status.as_ref().and_then(|s| s.migration.as_ref());
    if named.is_none_or(|m| m.uid != uid || m.end.is_some()) {
        return refuse(format!("the Instance does not name migration {uid} as the one in progress"));
    }
    let Some(status) = &migration.status else { return refuse("the migration was not handed over yet") };
    if status.state.is_some_and(holdfast_api::engine::MigrationState::is_final) || status.abort.is_some() {
        return refuse("the migration is over or is being called off");
    }
    if migration.spec.instance.uid != id.instance_uid || migration.spec.instance.epoch != id.epoch {
        return refuse("the migration is about another power-on");
    }
    match &status.target {
        Some(target) if target.pod_uid == id.pod_uid && target.node == here.node => Ok(()),
        Some(target) => {
            refuse(format!("the migration's target is pod {} on {}", target.pod_name, target.node))
        }
        None => refuse("the migration has no target yet"),
    }
}

fn same_power_on(here: &Here, id: &Id, instance: &Instance) -> Result<(), Refusal> {
    if !here.gate_open {
        return refuse("this node does not hold its fence lease");
    }
    let uid = instance.metadata.uid.as_deref().unwrap_or_default();
    if uid != id.instance_uid {
        return refuse(format!(
            "the Instance of this name is {uid}, the launcher is for {}",
            id.instance_uid
        ));
    }
    if instance.metadata.deletion_timestamp.is_some() {
        return refuse("the VM is being deleted");
    }
    if instance.spec.epoch != id.epoch {
        return refuse(format!(
            "the VM is at epoch {}, the launcher is for {}",
            instance.spec.epoch, id.epoch
        ));
    }
    if instance.spec.power != Power::On {
        return refuse("the VM shall be off");
    }
    let status = instance.status.as_ref();
    let observed = status.is_some_and(|s| s.observed_epoch == id.epoch);
    if observed && status.and_then(|s| s.state) == Some(InstanceState::Ended) {
        return refuse(format!("epoch {} has ended", id.epoch));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use holdfast_api::engine::{
        Claim, InstanceMigration, InstanceRef, InstanceStatus, LauncherPod, MigrationState, MigrationStatus,
        MigrationTarget, PodRole,
    };

    use super::*;

    fn here() -> Here {
        Here { node: "n1".into(), boot_id: "b1".into(), gate_open: true }
    }

    fn id() -> Id {
        Id { instance_uid: "vm".into(), epoch: 3, pod_uid: "p".into() }
    }

    fn pod(uid: &str, epoch: i64) -> LauncherPod {
        LauncherPod { name: uid.into(), uid: uid.into(), node: None, role: PodRole::Active, epoch }
    }

    fn ended(pod_uid: &str) -> Report {
        Report { epoch: 3, pod_uid: pod_uid.into(), state: ReportState::Ended, ..Report::default() }
    }

    fn instance() -> Instance {
        let mut instance = Instance::default();
        instance.metadata.uid = Some("vm".into());
        instance.spec.epoch = 3;
        instance.spec.power = Power::On;
        let claim = Claim { node: "n1".into(), boot_id: "b1".into(), pod_uid: "p".into(), epoch: 3 };
        instance.status = Some(InstanceStatus {
            state: Some(InstanceState::Booting),
            observed_epoch: 3,
            claim: Some(claim),
            pods: vec![pod("p", 3)],
            ..InstanceStatus::default()
        });
        instance
    }

    fn status(i: &mut Instance) -> &mut InstanceStatus {
        i.status.as_mut().unwrap()
    }

    // INV-3 (failure-and-rebalancing.md §3.6, rules a to c)
    #[test]
    fn cold_start_table() {
        type Edit = fn(&mut Instance, &mut Here);
        let rows: &[(&str, Edit, &str)] = &[
            ("as it should be", |_, _| (), "ok"),
            ("gate closed", |_, h| h.gate_open = false, "fence lease"),
            ("no claim", |i, _| status(i).claim = None, "nobody has the claim"),
            (
                "another VM of the name",
                |i, _| i.metadata.uid = Some("new".into()),
                "the Instance of this name",
            ),
            (
                "being deleted",
                |i, _| {
                    i.metadata.deletion_timestamp =
                        Some(holdfast_api::Time(holdfast_env::Timestamp::UNIX_EPOCH));
                },
                "being deleted",
            ),
            ("newer epoch", |i, _| i.spec.epoch = 4, "at epoch 4"),
            ("power off", |i, _| i.spec.power = Power::Off, "shall be off"),
            ("epoch has ended", |i, _| status(i).state = Some(InstanceState::Ended), "epoch 3 has ended"),
            (
                "the last epoch's end is still shown",
                |i, _| {
                    status(i).state = Some(InstanceState::Ended);
                    status(i).observed_epoch = 2;
                },
                "ok",
            ),
            (
                "claim of the last epoch",
                |i, _| status(i).claim.as_mut().unwrap().epoch = 2,
                "claim is for epoch 2",
            ),
            (
                "claim of another node",
                |i, _| status(i).claim.as_mut().unwrap().node = "n2".into(),
                "names node n2",
            ),
            ("claim of another boot", |_, h| h.boot_id = "b2".into(), "this is node n1 in boot b2"),
            (
                "claim of another pod",
                |i, _| status(i).claim.as_mut().unwrap().pod_uid = "q".into(),
                "names pod q",
            ),
            ("its end was reported", |i, _| status(i).report = Some(ended("p")), "was reported"),
            ("another pod's end was reported", |i, _| status(i).report = Some(ended("q")), "ok"),
            ("a rival pod", |i, _| status(i).pods.push(pod("q", 3)), "pod q"),
            ("a proved pod of an earlier epoch", |i, _| status(i).pods.push(pod("q", 2)), "ok"),
        ];
        for (what, edit, expected) in rows {
            let (mut instance, mut here) = (instance(), here());
            edit(&mut instance, &mut here);
            match cold_start(&here, &id(), &instance) {
                Ok(()) => assert_eq!(*expected, "ok", "{what}"),
                Err(Refusal(why)) => assert!(why.contains(expected), "{what}: {why}"),
            }
        }
    }

    #[test]
    fn incoming_table() {
        type Edit = fn(&mut Instance, &mut Migration);
        let rows: &[(&str, Edit, &str)] = &[
            ("as it should be", |_, _| (), "ok"),
            ("not named by the Instance", |i, _| status(i).migration = None, "does not name"),
            (
                "another move in progress",
                |i, _| {
                    status(i).migration.as_mut().unwrap().uid = "m2".into();
                },
                "does not name",
            ),
            ("over", |_, m| m.status.as_mut().unwrap().state = Some(MigrationState::Failed), "is over"),
            ("called off", |_, m| m.status.as_mut().unwrap().abort = Some(Default::default()), "called off"),
            (
                "another target",
                |_, m| {
                    m.status.as_mut().unwrap().target.as_mut().unwrap().pod_uid = "q".into();
                },
                "target is pod",
            ),
            ("another epoch", |_, m| m.spec.instance.epoch = 2, "another power-on"),
            ("not handed over", |_, m| m.status = None, "not handed over"),
        ];
        for (what, edit, expected) in rows {
            let mut instance = instance();
            status(&mut instance).claim.as_mut().unwrap().node = "n0".into();
            status(&mut instance).claim.as_mut().unwrap().pod_uid = "source".into();
            status(&mut instance).migration =
                Some(InstanceMigration { uid: "m".into(), ..InstanceMigration::default() });
            let mut migration = Migration::default();
            migration.metadata.uid = Some("m".into());
            migration.spec.instance = InstanceRef { name: "vm".into(), uid: "vm".into(), epoch: 3 };
            let target =
                MigrationTarget { pod_uid: "p".into(), node: "n1".into(), ..MigrationTarget::default() };
            migration.status = Some(MigrationStatus { target: Some(target), ..MigrationStatus::default() });
            edit(&mut instance, &mut migration);
            match incoming(&here(), &id(), &instance, &migration) {
                Ok(()) => assert_eq!(*expected, "ok", "{what}"),
                Err(Refusal(why)) => assert!(why.contains(expected), "{what}: {why}"),
            }
        }
    }
}
