use std::sync::Arc;

use holdfast_api::engine::{
    Claim, Instance, InstanceRef, InstanceSpec, InstanceState, InstanceStatus, Migration, MigrationSpec,
};
use holdfast_api::settings::LiveMigrationSettings;
use holdfast_env::Timestamp;
use holdfast_reconcile::Effect;
use k8s_openapi::api::core::v1::{PodCondition, PodSpec, PodStatus};
use proptest::prelude::*;

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn move_of(name: &str, node: &str, class: i32, created: i64) -> Move {
    let uid = format!("uid-{name}");
    let spec = MigrationSpec {
        instance: InstanceRef { name: name.into(), uid: format!("i-{name}"), epoch: 1 },
        class,
        ..MigrationSpec::default()
    };
    let mut migration = Migration::new(name, spec);
    migration.metadata.namespace = Some("shop".into());
    migration.metadata.uid = Some(uid);
    migration.metadata.resource_version = Some("1".into());
    migration.metadata.creation_timestamp = Some(Time(at(created)));
    migration.status =
        Some(MigrationStatus { state: Some(MigrationState::Queued), ..MigrationStatus::default() });
    let mut instance = Instance::new(name, InstanceSpec { epoch: 1, ..InstanceSpec::default() });
    instance.metadata.namespace = Some("shop".into());
    instance.metadata.uid = Some(format!("i-{name}"));
    let claim = Claim { node: node.into(), pod_uid: format!("p-{name}"), ..Claim::default() };
    instance.status = Some(InstanceStatus {
        state: Some(InstanceState::Running),
        claim: Some(claim),
        ..InstanceStatus::default()
    });
    Move {
        migration: Arc::new(migration),
        instance: Some(Arc::new(instance)),
        target: None,
        leftover: false,
        source_pod: Some("s".into()),
    }
}

fn observed(moves: Vec<Move>, able_nodes: usize) -> Observed {
    Observed { now: at(0), moves, able_nodes, limits: LiveMigrationSettings::default() }
}

fn merge(into: &mut serde_json::Value, patch: &serde_json::Value) {
    match (into.as_object_mut(), patch.as_object()) {
        (Some(map), Some(patch)) => {
            for (key, value) in patch {
                if value.is_null() {
                    map.remove(key);
                } else {
                    merge(map.entry(key.clone()).or_insert(serde_json::json!({})), value);
                }
            }
        }
        _ => *into = patch.clone(),
    }
}

fn settle(o: &mut Observed) {
    let plan = plan(o);
    for effect in &plan.effects {
        let Effect::Patch(patch) = effect else { panic!("{effect:?}") };
        for m in &mut o.moves {
            if patch.target.api.kind == "Migration"
                && m.migration.metadata.name.as_deref() == Some(&patch.target.name)
            {
                let mut json = serde_json::to_value(&*m.migration).unwrap();
                merge(&mut json, &patch.body);
                m.migration = Arc::new(serde_json::from_value(json).unwrap());
            }
        }
    }
}

fn ready_on(m: &mut Move, node: &str) {
    let condition =
        PodCondition { type_: "ContainersReady".into(), status: "True".into(), ..PodCondition::default() };
    let mut pod = Pod::default();
    pod.metadata.name = Some("t".into());
    pod.metadata.uid = Some(format!("t-{}", name(m)));
    pod.spec = Some(PodSpec { node_name: Some(node.into()), ..PodSpec::default() });
    pod.status = Some(PodStatus {
        phase: Some("Running".into()),
        conditions: Some(vec![condition]),
        ..PodStatus::default()
    });
    m.target = Some(Arc::new(pod));
}

fn states(o: &Observed) -> Vec<MigrationState> {
    o.moves.iter().map(state).collect()
}

use MigrationState::{Placing, Preparing, Queued};

#[test]
fn one_leaves_a_node_at_a_time_and_a_busy_node_blocks_nobody_else() {
    let moves = vec![move_of("a", "n1", 2, 0), move_of("b", "n1", 2, 1), move_of("c", "n2", 2, 2)];
    let mut o = observed(moves, 3);
    settle(&mut o);
    assert_eq!(states(&o), [Placing, Queued, Placing]);
    let text = status(&o.moves[1]).message.unwrap();
    assert!(text.contains("outbound slot on source node \"n1\""), "{text}");
    let rest = plan(&o);
    assert!(rest.is_empty(), "{rest:?}");
}

#[test]
fn the_cluster_limit_is_the_number_of_able_nodes() {
    let moves = (0..4).map(|n| move_of(&format!("m{n}"), &format!("n{n}"), 2, n)).collect();
    let mut o = observed(moves, 2);
    settle(&mut o);
    assert_eq!(states(&o), [Placing, Placing, Queued, Queued]);
    let text = status(&o.moves[3]).message.unwrap();
    assert!(text.contains("the cluster limit of 2 is reached"), "{text}");
}

#[test]
fn drains_go_first_then_users_then_age() {
    let moves =
        vec![move_of("old-user", "n1", 2, 0), move_of("drain", "n2", 1, 5), move_of("user", "n3", 2, 3)];
    let mut o = observed(moves, 2);
    settle(&mut o);
    assert_eq!(states(&o), [Placing, Placing, Queued]);
}

#[test]
fn one_enters_a_node_at_a_time() {
    let mut o = observed(vec![move_of("a", "n1", 2, 0), move_of("b", "n2", 2, 1)], 3);
    settle(&mut o);
    ready_on(&mut o.moves[0], "n3");
    ready_on(&mut o.moves[1], "n3");
    settle(&mut o);
    assert_eq!(states(&o), [Preparing, Placing]);
    assert_eq!(status(&o.moves[1]).reason.as_deref(), Some("WaitingForSyncSlot"));
    let handed = status(&o.moves[0]);
    assert_eq!(handed.target.unwrap().node, "n3");
    assert_eq!(handed.source.unwrap().pod_uid, "p-a");
    assert_eq!(handed.config.unwrap().bandwidth, 625_000_000);
    o.moves.remove(0);
    settle(&mut o);
    assert_eq!(states(&o), [Preparing]);
}

#[test]
fn a_move_whose_target_node_stays_busy_is_queued_again() {
    let mut o = observed(vec![move_of("a", "n1", 2, 0), move_of("b", "n2", 2, 1)], 3);
    settle(&mut o);
    ready_on(&mut o.moves[0], "n3");
    ready_on(&mut o.moves[1], "n3");
    settle(&mut o);
    assert_eq!(states(&o), [Preparing, Placing]);
    let limit = at(rules::PREPARE_S);
    assert_eq!(plan(&o).wake, Some(limit));
    o.now = limit;
    settle(&mut o);
    assert_eq!(states(&o), [Preparing, Queued]);
    let waits = status(&o.moves[1]);
    assert_eq!(
        waits.message.unwrap(),
        "Queued again: the inbound slot on target node \"n3\" stayed busy for 900 s."
    );
    assert!(waits.slot_at.is_none() && waits.source.is_none());
    o.moves[1].leftover = true;
    assert!(plan(&o).is_empty(), "its old target pod goes first");
    o.moves[1].leftover = false;
    o.moves[1].target = None;
    settle(&mut o);
    assert_eq!(states(&o), [Preparing, Placing]);
}

#[test]
fn a_move_that_waits_for_nothing_but_its_lost_source_holds_no_slot() {
    let mut o = observed(vec![move_of("a", "n1", 2, 0), move_of("b", "n1", 2, 1)], 1);
    settle(&mut o);
    ready_on(&mut o.moves[0], "n3");
    settle(&mut o);
    assert_eq!(states(&o), [Preparing, Queued]);
    let mut migration = (*o.moves[0].migration).clone();
    let status = migration.status.as_mut().unwrap();
    status.abort = Some(holdfast_api::engine::Abort { reason: "Failed".into(), at: Some(Time(at(0))) });
    status.target.as_mut().unwrap().ended_at = Some(Time(at(0)));
    o.moves[0].migration = Arc::new(migration);
    settle(&mut o);
    assert_eq!(states(&o), [Preparing, Queued], "its source may answer yet");
    o.now = at(rules::ABORT_S);
    settle(&mut o);
    assert_eq!(states(&o), [Preparing, Placing]);
}

#[test]
fn a_move_that_is_called_off_gets_no_slot() {
    let mut o = observed(vec![move_of("a", "n1", 2, 0)], 3);
    let mut migration = (*o.moves[0].migration).clone();
    migration.metadata.deletion_timestamp = Some(Time(at(1)));
    o.moves[0].migration = Arc::new(migration);
    assert!(plan(&o).is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    // INV-5
    #[test]
    fn limits_hold_after_every_grant(
        nodes in prop::collection::vec(0..4_usize, 1..12),
        targets in prop::collection::vec(prop::option::of(0..4_usize), 12),
        done in prop::collection::vec(any::<bool>(), 12),
        able in 1..4_usize,
    ) {
        let moves = nodes.iter().enumerate().map(|(index, node)| {
            move_of(&format!("m{index:02}"), &format!("n{node}"), 1 + i32::try_from(index % 5).unwrap(), index as i64)
        });
        let mut o = observed(moves.collect(), able);
        for round in 0..6 {
            for index in 0..o.moves.len() {
                if state(&o.moves[index]) == Placing
                    && let Some(node) = targets[(index + round) % 12]
                {
                    ready_on(&mut o.moves[index], &format!("n{node}"));
                }
            }
            settle(&mut o);
            let holding: Vec<&Move> = o.moves.iter().filter(|m| holds_slot(&o, m)).collect();
            prop_assert!(holding.len() <= able);
            let leaving: Vec<_> = holding.iter().filter_map(|m| source_node(m)).collect();
            prop_assert_eq!(leaving.iter().collect::<BTreeSet<_>>().len(), leaving.len());
            let entering: Vec<_> = holding.iter().filter_map(|m| target_node(m)).collect();
            prop_assert_eq!(entering.iter().collect::<BTreeSet<_>>().len(), entering.len());
            let mut index = 0;
            o.moves.retain(|m| {
                index += 1;
                state(m) != Preparing || !done[(index + round) % 12]
            });
        }
    }
}
