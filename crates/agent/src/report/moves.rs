//! A move in the status of Instance and Migration: the flip, the source's share, the target's share.

use holdfast_api::Time;
use holdfast_api::engine::{
    Claim, Instance, InstanceMigration, Migration, MigrationResult, PodRef, Progress, Report, ReportState,
    Side,
};
use holdfast_env::Timestamp;
use holdfast_wire::launcher::{MoveProgress, MoveStage};
use serde_json::{Map, Value, json};

use super::{Facts, holds_claim, replace, whole};

/// The flip: the guest runs here now. One write moves node, pod and claim, closes the migration and
/// clears the mark that this move has satisfied (migration-and-maintenance.md §2.1 step 12). None
/// when it is not (or no longer) to be written.
pub fn flip(facts: &Facts, instance: &Instance, now: Timestamp) -> Option<Value> {
    if holdfast_env::mutant!("flip-forgotten") {
        return None;
    }
    let event = facts.state.migration.as_ref().filter(|m| m.stage == MoveStage::Resumed)?;
    let status = instance.status.as_ref()?;
    let named = status.migration.as_ref().filter(|m| m.uid == event.migration_uid)?;
    if instance.spec.epoch != facts.id.epoch || holds_claim(&facts.id, instance) {
        return None;
    }
    let claim = Claim {
        node: facts.node.clone(),
        boot_id: facts.boot_id.clone(),
        pod_uid: facts.id.pod_uid.clone(),
        epoch: facts.id.epoch,
    };
    // The guest is here, whatever the hand-off said: where it runs is a fact, not a wish.
    let name = if facts.pod_name.is_empty() { &named.target.pod } else { &facts.pod_name };
    let target = Side { node: facts.node.clone(), pod: name.clone(), pod_uid: facts.id.pod_uid.clone() };
    let migration = InstanceMigration {
        target: target.clone(),
        end: Some(Time(now)),
        result: Some(MigrationResult::Succeeded),
        failure: None,
        start: named.start.clone().or(Some(Time(now))),
        ..named.clone()
    };
    let mut migration = json!(migration);
    migration["failure"] = Value::Null;
    let report = Report {
        epoch: facts.id.epoch,
        pod_uid: facts.id.pod_uid.clone(),
        state: ReportState::Running,
        at: Some(Time(now)),
        ..Report::default()
    };
    let mut patch = json!({
        "node": facts.node,
        "activePod": PodRef { name: target.pod.clone(), uid: facts.id.pod_uid.clone() },
        "claim": claim,
        "report": whole(&report),
        "migration": migration,
    });
    if !facts.qemu_version.is_empty() {
        // The next move is judged by it.
        patch["runtime"] = json!({ "qemuVersion": facts.qemu_version });
    }
    // A mark for another node (set meanwhile) is somebody's present wish and stays.
    if status.evacuation_node_name.as_deref() == Some(named.source.node.as_str()) {
        patch["evacuationNodeName"] = Value::Null;
        patch["evacuationSource"] = Value::Null;
        patch["evacuationNodeVersion"] = Value::Null;
    }
    Some(patch)
}

/// What the source agent writes into the Instance: when the copy began and when the guest stopped.
pub fn source_in_instance(facts: &Facts, instance: &Instance, now: Timestamp) -> Option<Value> {
    let event = facts.state.migration.as_ref()?;
    let named = instance.status.as_ref()?.migration.as_ref()?;
    if named.uid != event.migration_uid || named.end.is_some() || !holds_claim(&facts.id, instance) {
        return None;
    }
    let started = matches!(event.stage, MoveStage::Copying | MoveStage::Suspended | MoveStage::GaveUp);
    let suspended = matches!(event.stage, MoveStage::Suspended | MoveStage::GaveUp);
    let mut patch = Map::new();
    if started && named.start.is_none() {
        patch.insert("start".into(), json!(Time(now)));
    }
    if suspended && named.suspended.is_none() {
        patch.insert("suspended".into(), json!(Time(now)));
    }
    (!patch.is_empty()).then(|| json!({ "migration": patch }))
}

/// What the source agent writes into the Migration. `write_progress`: the last figures are old
/// enough to be replaced (at most one write in ten seconds).
pub fn source_in_migration(
    facts: &Facts,
    migration: &Migration,
    now: Timestamp,
    write_progress: bool,
) -> Option<Value> {
    let status = migration.status.as_ref()?;
    let known = status.source.as_ref().filter(|s| s.pod_uid == facts.id.pod_uid)?;
    if status.state.is_some_and(holdfast_api::engine::MigrationState::is_final) {
        return None;
    }
    let uid = migration.metadata.uid.as_deref()?;
    let event = facts.state.migration.as_ref().filter(|m| m.migration_uid == uid);
    let mut source = Map::new();
    let mut patch = Map::new();
    let mut stamp = |known: &Option<Time>, is: bool, field: &str| {
        if is && known.is_none() {
            source.insert(field.into(), json!(Time(now)));
        }
    };
    let stage = event.map(|m| m.stage);
    let at_least = |least: MoveStage| stage.is_some_and(|stage| order(stage) >= order(least));
    stamp(&known.started_at, at_least(MoveStage::Copying), "startedAt");
    stamp(&known.suspended_at, at_least(MoveStage::Suspended), "suspendedAt");
    stamp(&known.gave_up_at, at_least(MoveStage::GaveUp), "gaveUpAt");
    stamp(&known.ack_at, at_least(MoveStage::Acked), "ackAt");
    // An abort is settled when the move failed or never began. Nobody calls off what was given up: there
    // this word alone tells that the guest came back.
    let never_began = event.is_none() && known.started_at.is_none();
    let stays = matches!(stage, Some(MoveStage::Failed | MoveStage::Cancelled));
    let called_off = status.abort.is_some();
    let settled = called_off && never_began || stays && (called_off || known.gave_up_at.is_some());
    stamp(&known.aborted_at, settled, "abortedAt");
    if let Some(ms) = event.and_then(|m| m.downtime_ms)
        && known.downtime_ms != Some(ms)
    {
        source.insert("downtimeMs".into(), json!(ms));
    }
    let failure = event.and_then(|m| m.failure.as_ref());
    if let Some(failure) = failure
        && status.failure.is_none()
    {
        let cause =
            facts.broken.as_ref().filter(|broken| broken.uid == uid && failure.class == "TransferFailed");
        let told = match cause {
            Some(broken) => json!({"class": "TargetUnreachable", "text": broken.why}),
            None if failure.class == "TransferFailed" => {
                let text = format!("The transfer of memory broke off: {}", failure.text);
                json!({"class": failure.class, "text": text})
            }
            None => json!({"class": failure.class, "text": failure.text}),
        };
        patch.insert("failure".into(), told);
    }
    let progress = event.map(|m| progress(&m.progress));
    let converges = |progress: Option<&Progress>| !progress.is_some_and(|progress| progress.not_converging);
    let turned = converges(progress.as_ref()) != converges(status.progress.as_ref());
    let new_state = !source.is_empty() || !patch.is_empty() || turned;
    if let Some(progress) = progress
        && (write_progress || new_state)
    {
        replace(&mut patch, "progress", status.progress.as_ref(), &progress);
    }
    if !source.is_empty() {
        patch.insert("source".into(), Value::Object(source));
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

/// How far a source has got; a failure says nothing about it.
fn order(stage: MoveStage) -> u8 {
    match stage {
        MoveStage::Listening | MoveStage::Failed | MoveStage::Cancelled => 0,
        MoveStage::Copying => 1,
        MoveStage::Suspended => 2,
        MoveStage::GaveUp => 3,
        MoveStage::Acked | MoveStage::Resumed => 4,
    }
}

fn progress(figures: &MoveProgress) -> Progress {
    let sent = (figures.total_bytes - figures.remaining_bytes).max(0);
    let percent = if figures.total_bytes > 0 { sent.saturating_mul(100) / figures.total_bytes } else { 0 };
    Progress {
        percent: i32::try_from(percent.clamp(0, 100)).unwrap_or(0),
        iteration: figures.iteration,
        total_bytes: figures.total_bytes,
        remaining_bytes: figures.remaining_bytes,
        processed_bytes: figures.transferred_bytes,
        dirty_bytes_per_second: figures.dirty_bytes_s,
        throttle_pct: figures.throttle_pct,
        not_converging: figures.not_converging,
    }
}

/// What the target agent writes into the Migration: where it takes memory, and that the guest runs.
pub fn target_in_migration(
    facts: &Facts,
    migration: &Migration,
    address: &str,
    port: u16,
    now: Timestamp,
) -> Option<Value> {
    let status = migration.status.as_ref()?;
    let known = status.target.as_ref().filter(|t| t.pod_uid == facts.id.pod_uid)?;
    let uid = migration.metadata.uid.as_deref()?;
    let event = facts.state.migration.as_ref().filter(|m| m.migration_uid == uid);
    let stage = event.map(|event| event.stage);
    let mut target = Map::new();
    if facts.end.is_some() && stage != Some(MoveStage::Resumed) && known.ended_at.is_none() {
        // The proof without which nobody may start the VM anew when its source is lost.
        target.insert("endedAt".into(), json!(Time(now)));
    }
    if stage == Some(MoveStage::Listening) && !known.listening {
        target.insert("address".into(), json!(address));
        target.insert("ports".into(), json!({ "control": port, "memory": port }));
        target.insert("listening".into(), json!(true));
    }
    if stage == Some(MoveStage::Resumed) && known.resumed_at.is_none() {
        target.insert("resumedAt".into(), json!(Time(now)));
    }
    let mut patch = Map::new();
    if !target.is_empty() {
        patch.insert("target".into(), Value::Object(target));
    }
    let failed = event.and_then(|event| event.failure.as_ref()).map(|f| (f.class.as_str(), &f.text));
    if let Some((class, text)) = failed.or(facts.hopeless.as_ref().map(|text| ("TargetFailed", text)))
        && status.failure.is_none()
        && !status.state.is_some_and(holdfast_api::engine::MigrationState::is_final)
    {
        patch.insert("failure".into(), json!({ "class": class, "text": text }));
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}
