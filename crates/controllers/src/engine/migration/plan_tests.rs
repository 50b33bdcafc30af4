use holdfast_api::engine::Migration;
use holdfast_api::engine::{
    Claim, InstanceRef, InstanceSpec, MigrationSource, MigrationSpec, MigrationTarget,
};
use k8s_openapi::api::core::v1::{PodCondition, PodSpec, PodStatus};
use serde_json::json;

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn observed() -> Observed {
    let spec = MigrationSpec {
        instance: InstanceRef { name: "web".into(), uid: "uid-i".into(), epoch: 1 },
        class: 2,
        ..MigrationSpec::default()
    };
    let mut migration = Migration::new("vmop-op", spec);
    migration.metadata.namespace = Some("shop".into());
    migration.metadata.uid = Some("uid-m".into());
    migration.metadata.resource_version = Some("1".into());
    migration.metadata.finalizers = Some(vec![finalizer::MIGRATION_CLEANUP.into()]);
    let mut instance =
        Instance::new("web", InstanceSpec { epoch: 1, power: Power::On, ..InstanceSpec::default() });
    instance.metadata.namespace = Some("shop".into());
    instance.metadata.uid = Some("uid-i".into());
    instance.metadata.resource_version = Some("1".into());
    let claim = Claim { node: "n1".into(), pod_uid: "p1".into(), epoch: 1, ..Claim::default() };
    instance.status = Some(InstanceStatus {
        state: Some(InstanceState::Running),
        observed_epoch: 1,
        claim: Some(claim),
        ..InstanceStatus::default()
    });
    Observed {
        now: at(0),
        migration: Arc::new(migration),
        instance: Some(Arc::new(instance)),
        pods: vec![pod("source", "p1", Some("n1"), None)],
        source_lost: None,
        image: "holdfast/launcher:1.0".into(),
        refused: None,
    }
}

fn pod(name: &str, uid: &str, node: Option<&str>, of: Option<&str>) -> Arc<Pod> {
    let mut pod = Pod::default();
    pod.metadata.name = Some(name.into());
    pod.metadata.uid = Some(uid.into());
    pod.metadata.labels = of.map(|of| [(label::MIGRATION_UID.to_owned(), of.to_owned())].into());
    pod.spec = Some(PodSpec { node_name: node.map(str::to_owned), ..PodSpec::default() });
    pod.status = Some(PodStatus { phase: Some("Running".into()), ..PodStatus::default() });
    Arc::new(pod)
}

fn merge(into: &mut serde_json::Value, patch: &serde_json::Value) {
    match (into.as_object_mut(), patch.as_object()) {
        (Some(map), Some(patch)) => {
            for (key, value) in patch {
                if value.is_null() {
                    map.remove(key);
                } else {
                    merge(map.entry(key.clone()).or_insert(json!({})), value);
                }
            }
        }
        _ => *into = patch.clone(),
    }
}

fn settle(o: &mut Observed) -> Plan {
    let plan = plan(o);
    let mut migration = serde_json::to_value(&*o.migration).unwrap();
    if let Some(status) = &plan.status {
        merge(&mut migration, &status.body);
    }
    for effect in &plan.effects {
        match effect {
            Effect::Create(create) => {
                let mut pod: Pod = serde_json::from_value(create.object.value.clone()).unwrap();
                pod.metadata.uid = Some("p2".into());
                pod.status = Some(PodStatus { phase: Some("Pending".into()), ..PodStatus::default() });
                o.pods.push(Arc::new(pod));
            }
            Effect::Patch(patch) if patch.target.api.kind == "Migration" => {
                merge(&mut migration, &patch.body)
            }
            Effect::Patch(patch) => {
                let mut json = serde_json::to_value(&**o.instance.as_ref().unwrap()).unwrap();
                merge(&mut json, &patch.body);
                o.instance = Some(Arc::new(serde_json::from_value(json).unwrap()));
            }
            Effect::Delete { target, .. } => {
                o.pods.retain(|pod| pod.metadata.name.as_deref() != Some(&target.name));
            }
            Effect::Evict(_) | Effect::Event(_) => {}
        }
    }
    o.migration = Arc::new(serde_json::from_value(migration).unwrap());
    plan
}

fn edit(o: &mut Observed, change: impl FnOnce(&mut MigrationStatus)) {
    let mut migration = (*o.migration).clone();
    change(migration.status.get_or_insert_default());
    o.migration = Arc::new(migration);
}

fn edit_instance(o: &mut Observed, change: impl FnOnce(&mut Instance)) {
    let mut instance = (**o.instance.as_ref().unwrap()).clone();
    change(&mut instance);
    o.instance = Some(Arc::new(instance));
}

fn state(o: &Observed) -> MigrationState {
    o.migration.status.as_ref().unwrap().state.unwrap()
}

fn delete(o: &mut Observed) {
    let mut migration = (*o.migration).clone();
    migration.metadata.deletion_timestamp = Some(Time(at(1)));
    o.migration = Arc::new(migration);
}

fn granted() -> Observed {
    let mut o = observed();
    settle(&mut o);
    assert_eq!(state(&o), MigrationState::Queued);
    edit(&mut o, |status| {
        status.state = Some(MigrationState::Placing);
        status.slot_at = Some(Time(at(0)));
        status.source = Some(MigrationSource { node: "n1".into(), ..MigrationSource::default() });
    });
    settle(&mut o);
    o
}

fn handed_over() -> Observed {
    let mut o = granted();
    o.pods[1] = pod("target", "p2", Some("n2"), Some("uid-m"));
    edit(&mut o, |status| {
        status.state = Some(MigrationState::Preparing);
        status.config = Some(rules::config(1 << 30, false, &Default::default()));
        status.source =
            Some(MigrationSource { node: "n1".into(), pod_uid: "p1".into(), ..MigrationSource::default() });
        status.target = Some(MigrationTarget {
            pod_name: "target".into(),
            pod_uid: "p2".into(),
            node: "n2".into(),
            ..MigrationTarget::default()
        });
    });
    settle(&mut o);
    let record = o.instance.as_ref().unwrap().status.as_ref().unwrap().migration.clone().unwrap();
    assert_eq!((record.uid.as_str(), record.target.node.as_str()), ("uid-m", "n2"));
    o
}

fn source(o: &mut Observed, change: impl FnOnce(&mut MigrationSource)) {
    edit(o, |status| change(status.source.as_mut().unwrap()));
}

fn record_of(o: &Observed) -> InstanceMigration {
    o.instance.as_ref().unwrap().status.as_ref().unwrap().migration.clone().unwrap()
}

#[test]
fn the_target_pod_is_made_once_and_never_for_the_source_node() {
    let mut o = granted();
    assert_eq!(o.pods.len(), 2);
    let target = o.pods[1].clone();
    assert_eq!(target.metadata.labels.as_ref().unwrap()[label::MIGRATION_UID], "uid-m");
    let affinity = target.spec.as_ref().unwrap().affinity.clone().unwrap();
    let required =
        affinity.node_affinity.unwrap().required_during_scheduling_ignored_during_execution.unwrap();
    let field = &required.node_selector_terms[0].match_fields.as_ref().unwrap()[0];
    assert_eq!((field.operator.as_str(), field.values.as_deref()), ("NotIn", Some(&["n1".to_owned()][..])));
    assert!(affinity.pod_anti_affinity.is_some());
    settle(&mut o);
    assert!(plan(&o).is_empty());
}

#[test]
fn a_successful_move_ends_with_the_flip_only() {
    let mut o = handed_over();
    assert!(plan(&o).is_empty());
    source(&mut o, |source| source.started_at = Some(Time(at(1))));
    settle(&mut o);
    assert_eq!(state(&o), MigrationState::Copying);
    source(&mut o, |source| source.suspended_at = Some(Time(at(2))));
    settle(&mut o);
    assert_eq!(state(&o), MigrationState::Switching);
    source(&mut o, |source| source.ack_at = Some(Time(at(3))));
    settle(&mut o);
    assert_eq!(state(&o), MigrationState::Switching, "an acknowledgement alone is not the flip");
    edit_instance(&mut o, |instance| {
        let status = instance.status.as_mut().unwrap();
        let record = status.migration.as_mut().unwrap();
        record.end = Some(Time(at(3)));
        record.result = Some(MigrationResult::Succeeded);
        status.claim.as_mut().unwrap().pod_uid = "p2".into();
    });
    settle(&mut o);
    assert_eq!(state(&o), MigrationState::Done);
    assert_eq!(o.pods.len(), 2, "the engine looks after the pods");
    assert!(plan(&o).is_empty());
}

#[test]
fn only_words_and_the_moment_of_the_hand_over_wait_for_more() {
    let waits = |plan: Plan| !plan.patience.is_zero();
    let mut o = granted();
    o.pods[1] = pod("target", "p2", Some("n2"), Some("uid-m"));
    assert!(waits(settle(&mut o)), "the target is being prepared: a message");
    let mut o = handed_over();
    source(&mut o, |source| source.started_at = Some(Time(at(1))));
    assert!(!waits(plan(&o)), "memory is being copied");
    settle(&mut o);
    source(&mut o, |source| source.suspended_at = Some(Time(at(2))));
    assert!(waits(plan(&o)), "the guest changes hands");
    let mut lost = o.clone();
    lost.pods.pop();
    assert!(!waits(plan(&lost)), "it is called off");
    finished(&mut o);
    assert!(!waits(plan(&o)), "it is over");
}

#[test]
fn before_the_hand_off_a_move_ends_by_one_write() {
    for (what, change, want) in [
        ("deleted", (|o| delete(o)) as fn(&mut Observed), MigrationState::Aborted),
        ("VM switched off", |o| edit_instance(o, |i| i.spec.power = Power::Off), MigrationState::Failed),
        ("VM restarted", |o| edit_instance(o, |i| i.spec.epoch = 2), MigrationState::Failed),
        ("VM gone", |o| o.instance = None, MigrationState::Failed),
        (
            "target lost",
            |o| Arc::make_mut(&mut o.pods[1]).status.as_mut().unwrap().phase = Some("Failed".into()),
            MigrationState::Failed,
        ),
        (
            "unschedulable too long",
            |o| {
                o.now = at(rules::UNSCHEDULABLE_S);
                let condition = PodCondition {
                    type_: "PodScheduled".into(),
                    status: "False".into(),
                    ..PodCondition::default()
                };
                Arc::make_mut(&mut o.pods[1]).status.as_mut().unwrap().conditions = Some(vec![condition]);
            },
            MigrationState::Failed,
        ),
        ("never ready", |o| o.now = at(rules::PREPARE_S), MigrationState::Failed),
    ] {
        let mut o = granted();
        change(&mut o);
        settle(&mut o);
        assert_eq!(state(&o), want, "{what}");
        assert!(o.targets().next().is_none(), "{what}: the target pod goes");
        settle(&mut o);
        let rest = plan(&o);
        assert!(rest.is_empty(), "{what}: {rest:?}");
    }
}

// INV-1
#[test]
fn after_the_hand_off_only_the_sources_word_ends_it() {
    type Change = fn(&mut Observed);
    for (what, change, reason, want) in [
        ("deleted", (|o| delete(o)) as Change, "Deleted", MigrationState::Aborted),
        (
            "a side failed",
            |o| edit(o, |s| s.failure = Some(Failure { class: "X".into(), text: "x".into() })),
            "Failed",
            MigrationState::Failed,
        ),
        (
            "target pod gone",
            |o| {
                o.pods.pop();
            },
            "TargetLost",
            MigrationState::Failed,
        ),
        ("takes too long", |o| o.now = at(rules::PREPARE_S), "PreparationTimeout", MigrationState::Failed),
        (
            "VM switched off",
            |o| edit_instance(o, |i| i.spec.power = Power::Off),
            "InstanceGone",
            MigrationState::Failed,
        ),
    ] {
        let mut o = handed_over();
        change(&mut o);
        settle(&mut o);
        assert_eq!(o.migration.status.as_ref().unwrap().abort.as_ref().unwrap().reason, reason, "{what}");
        settle(&mut o);
        assert!(!state(&o).is_final(), "{what}: not settled yet");
        assert!(plan(&o).is_empty(), "{what}: waits");
        assert!(record_of(&o).end.is_none());
        source(&mut o, |source| source.aborted_at = Some(Time(at(5))));
        settle(&mut o);
        assert_eq!(state(&o), want, "{what}");
        assert!(record_of(&o).end.is_some(), "{what}");
        assert!(o.targets().next().is_none(), "{what}");
        settle(&mut o);
        let rest = plan(&o);
        assert!(rest.is_empty(), "{what}: {rest:?}");
    }
}

#[test]
fn once_the_right_was_given_up_nothing_calls_it_off() {
    let mut o = handed_over();
    source(&mut o, |source| {
        source.started_at = Some(Time(at(1)));
        source.suspended_at = Some(Time(at(2)));
        source.gave_up_at = Some(Time(at(2)));
    });
    delete(&mut o);
    o.now = at(100_000);
    settle(&mut o);
    assert_eq!(state(&o), MigrationState::Switching);
    assert!(o.migration.status.as_ref().unwrap().abort.is_none());
    // The target has ended without the guest; the source took its right back and says so.
    edit(&mut o, |status| {
        let text = "the target ended without having run the guest".to_owned();
        status.failure = Some(Failure { class: "TargetEnded".to_owned(), text });
    });
    settle(&mut o);
    assert_eq!(state(&o), MigrationState::Switching, "a failure may be the target's word");
    source(&mut o, |source| source.aborted_at = Some(Time(at(100_001))));
    settle(&mut o);
    assert_eq!(state(&o), MigrationState::Failed);
    assert!(record_of(&o).end.is_some());
}

// INV-1
#[test]
fn a_lost_source_ends_the_move_when_nothing_of_the_target_is_left() {
    let mut o = handed_over();
    source(&mut o, |source| {
        source.started_at = Some(Time(at(1)));
        source.suspended_at = Some(Time(at(2)));
        source.gave_up_at = Some(Time(at(2)));
    });
    o.source_lost = Some(at(10));
    o.now = at(10);
    let waiting = settle(&mut o);
    assert!(o.migration.status.as_ref().unwrap().abort.is_none(), "its record may still be delivered");
    assert_eq!(waiting.wake, Some(at(10 + rules::ABORT_S)));
    o.now = at(10 + rules::ABORT_S);
    settle(&mut o);
    assert_eq!(o.migration.status.as_ref().unwrap().abort.as_ref().unwrap().reason, "SourceLost");
    settle(&mut o);
    assert!(!state(&o).is_final(), "the target's launcher alone knows whether COMMIT came first");
    edit(&mut o, |status| status.target.as_mut().unwrap().ended_at = Some(Time(at(50))));
    settle(&mut o);
    assert_eq!(state(&o), MigrationState::Failed);
    assert!(record_of(&o).end.is_some());
    assert!(o.targets().next().is_none());
}

#[test]
fn a_call_off_that_the_source_does_not_answer_is_told_to_the_target_in_time() {
    let mut o = handed_over();
    source(&mut o, |source| source.started_at = Some(Time(at(0))));
    delete(&mut o);
    o.now = at(5);
    settle(&mut o);
    let abort = |o: &Observed| {
        let abort = o.migration.status.as_ref().unwrap().abort.clone().unwrap();
        (abort.reason, abort.at.unwrap().0)
    };
    assert_eq!(abort(&o), ("Deleted".to_owned(), at(5)));
    o.now = at(34);
    assert_eq!(settle(&mut o).wake, Some(at(35)));
    assert_eq!(abort(&o).0, "Deleted", "the target waits for the source's word");
    o.now = at(35);
    settle(&mut o);
    assert_eq!(abort(&o), ("SourceLost".to_owned(), at(5)));
    // It may still answer.
    source(&mut o, |source| source.aborted_at = Some(Time(at(40))));
    settle(&mut o);
    assert!(state(&o).is_final());
}

#[test]
fn a_target_that_continued_after_its_source_was_lost_is_the_vm() {
    let mut o = handed_over();
    o.source_lost = Some(at(10));
    o.now = at(100);
    settle(&mut o);
    assert!(o.migration.status.as_ref().unwrap().abort.is_some());
    edit_instance(&mut o, |instance| {
        let status = instance.status.as_mut().unwrap();
        let record = status.migration.as_mut().unwrap();
        record.end = Some(Time(at(101)));
        record.result = Some(MigrationResult::Succeeded);
        status.claim.as_mut().unwrap().pod_uid = "p2".into();
    });
    o.source_lost = None;
    settle(&mut o);
    assert_eq!(state(&o), MigrationState::Done);
    assert_eq!(o.targets().count(), 1);
}

#[test]
fn a_move_that_is_queued_again_lets_go_of_its_target() {
    let mut o = granted();
    o.pods[1] = pod("target", "p2", Some("n2"), Some("uid-m"));
    edit(&mut o, |status| status.reason = Some("WaitingForSyncSlot".into()));
    o.now = at(rules::PREPARE_S + 5);
    settle(&mut o);
    assert_eq!(state(&o), MigrationState::Placing, "the decider watches this time");
    edit(&mut o, |status| {
        status.state = Some(MigrationState::Queued);
        status.slot_at = None;
    });
    settle(&mut o);
    assert_eq!(state(&o), MigrationState::Queued);
    assert!(o.targets().next().is_none());
    assert!(plan(&o).is_empty());
}

#[test]
fn an_end_of_the_guest_ends_the_move() {
    let mut o = handed_over();
    edit_instance(&mut o, |instance| instance.status.as_mut().unwrap().state = Some(InstanceState::Ended));
    settle(&mut o);
    assert_eq!(state(&o), MigrationState::Failed);
    assert!(o.targets().next().is_none());
}

// INV-7
#[test]
fn a_finished_move_never_changes_and_lets_go_when_deleted() {
    let mut o = granted();
    delete(&mut o);
    settle(&mut o);
    let finished = o.migration.status.clone();
    edit_instance(&mut o, |instance| instance.spec.power = Power::Off);
    settle(&mut o);
    settle(&mut o);
    assert_eq!(o.migration.status, finished);
    assert!(o.migration.metadata.finalizers.as_ref().is_none_or(Vec::is_empty));
}

// MM X4 of a move: each event once, about the operation or the VM, in the pass of its change.
#[test]
fn every_stage_is_told_once_to_the_owners() {
    type Change = fn(&mut Observed);
    let told = |change: Change| {
        let mut o = observed();
        let owned = |kind: &str, name: &str| {
            Some(vec![
                serde_json::from_value(json!({
                    "apiVersion": "virtualization.deckhouse.io/v1alpha2", "kind": kind, "name": name,
                    "uid": format!("uid-{name}"), "controller": true,
                }))
                .unwrap(),
            ])
        };
        let mut migration = (*o.migration).clone();
        migration.metadata.owner_references = owned("VirtualMachineOperation", "op");
        o.migration = Arc::new(migration);
        edit_instance(&mut o, |i| i.metadata.owner_references = owned("VirtualMachine", "web"));
        let mut events: Vec<String> = Vec::new();
        let mut step = |o: &mut Observed| {
            for _ in 0..3 {
                for effect in settle(o).effects {
                    if let Effect::Event(note) = effect {
                        events.push(format!("{} {}", note.about.name, note.reason));
                    }
                }
            }
        };
        step(&mut o);
        edit(&mut o, |status| {
            status.state = Some(MigrationState::Placing);
            status.slot_at = Some(Time(at(0)));
            status.source = Some(MigrationSource { node: "n1".into(), ..MigrationSource::default() });
        });
        step(&mut o);
        let unplaced = o.pods[1].clone();
        o.pods[1] = pod("target", "p2", None, Some("uid-m"));
        Arc::make_mut(&mut o.pods[1]).status = Some(
            serde_json::from_value(json!({
                "phase": "Pending",
                "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes"}],
            }))
            .unwrap(),
        );
        step(&mut o);
        o.pods[1] = unplaced;
        change(&mut o);
        step(&mut o);
        events
    };
    let common = ["op SuccessfulCreate", "op migrationTargetPodUnschedulable"];
    let cases: [(&str, Change, &[&str]); 5] = [
        (
            "done",
            |o| {
                through(o);
                finished(o);
            },
            &[
                "web PreparingTarget",
                "web Migrating",
                "web SuccessfulHandOver",
                "web Migrated",
                "op SuccessfulMigration",
            ],
        ),
        (
            "done though called off",
            |o| {
                through(o);
                delete(o);
                finished(o);
            },
            &[
                "web PreparingTarget",
                "web Migrating",
                "web SuccessfulHandOver",
                "web Migrated",
                "op FailedAbortMigration",
                "op SuccessfulMigration",
            ],
        ),
        ("called off early", |o| delete(o), &["op SuccessfulAbortMigration", "op SuccessfulDelete"]),
        (
            "switch failed",
            |o| {
                through(o);
                source(o, |source| {
                    source.suspended_at = Some(Time(at(2)));
                    source.aborted_at = Some(Time(at(3)));
                });
                edit(o, |s| {
                    s.failure = Some(Failure { class: "X".into(), text: "x".into() });
                    s.abort = Some(Abort { reason: "Failed".into(), at: Some(Time(at(3))) });
                });
            },
            &[
                "web PreparingTarget",
                "web Migrating",
                "web FailedHandOver",
                "op FailedMigration",
                "op SuccessfulDelete",
            ],
        ),
        (
            "never placed",
            |o| {
                o.now = at(rules::PREPARE_S);
            },
            &["op FailedMigration", "op SuccessfulDelete"],
        ),
    ];
    for (what, change, want) in cases {
        let want: Vec<&str> = common.iter().chain(want).copied().collect();
        assert_eq!(told(change), want, "{what}");
    }
}

/// Handed over, and the copy has begun.
fn through(o: &mut Observed) {
    o.pods[1] = pod("target", "p2", Some("n2"), Some("uid-m"));
    edit(o, |status| {
        status.state = Some(MigrationState::Preparing);
        status.reason = None;
        let source = MigrationSource { node: "n1".into(), pod_uid: "p1".into(), ..Default::default() };
        status.source = Some(source);
        let target = MigrationTarget {
            pod_uid: "p2".into(),
            node: "n2".into(),
            listening: true,
            ..MigrationTarget::default()
        };
        status.target = Some(target);
    });
    settle(o);
    source(o, |source| source.started_at = Some(Time(at(1))));
}

fn finished(o: &mut Observed) {
    edit_instance(o, |instance| {
        let record = instance.status.as_mut().unwrap().migration.as_mut().unwrap();
        record.end = Some(Time(at(3)));
        record.result = Some(MigrationResult::Succeeded);
    });
}
