//! Writes what one launcher's driver finds out into the API. Apart from the driver, so that a move
//! goes on while the API is away: what could not be written is written when it is back.

use std::sync::Arc;
use std::time::Duration;

use holdfast_api::engine::{Instance, Migration, MigrationState};
use holdfast_env::watch;
use holdfast_env::{Timestamp, fault};
use kube::ResourceExt as _;
use serde_json::Value;
use tokio::time::Instant;

use crate::cluster::{is_conflict, is_not_found};
use crate::node_agent::NodeAgent;
use crate::peers::chain;
use crate::report::{self, Facts};

/// Least time between two writes that only tell progress.
const PROGRESS: Duration = Duration::from_secs(10);
/// Longest pause between two tries of a write.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// How often is looked whether the pod of a launcher that has ended is still there.
const GONE_LOOK: Duration = Duration::from_secs(1);
/// A write that was answered by a conflict is tried this often on what a fresh read shows.
const TRIES: u32 = 5;

/// Reports until the launcher's pod is gone. Its end may have to be told long after it: the claim that
/// makes it matter may be written, or seen here, later.
pub async fn report(agent: Arc<NodeAgent>, mut facts: watch::Receiver<Facts>) {
    // Before everything was listed once, "no such Instance" means nothing.
    agent.cluster.ready().await;
    let mut changes = agent.cluster.changes();
    let mut last_progress: Option<Instant> = None;
    let mut pause = Duration::from_millis(100);
    let mut driven = true;
    loop {
        changes.mark_unchanged();
        let known = facts.borrow_and_update().clone();
        let due = last_progress.is_none_or(|at| at.elapsed() >= PROGRESS);
        let result = write(&agent, &known, due).await;
        let wake = match &result {
            Ok(wrote_progress) => {
                pause = Duration::from_millis(100);
                if *wrote_progress {
                    last_progress = Some(Instant::now());
                }
                if !driven && (known.end.is_none() || !agent.pods.exists(&known.id.pod_uid)) {
                    return;
                }
                if driven { PROGRESS } else { GONE_LOOK }
            }
            Err(error) => {
                tracing::warn!(id = %known.id, error = %chain(error), "not reported yet");
                pause = (pause * 2).min(PAUSE_MAX);
                pause
            }
        };
        tokio::select! {
            biased;
            // The driver has finished; what it found out last is still to be written.
            changed = facts.changed(), if driven => driven = changed.is_ok(),
            _ = changes.changed() => {}
            () = tokio::time::sleep(wake) => {}
        }
    }
}

/// Reports one certain end.
///
/// # Errors
/// The API cannot be reached or refuses; to be repeated.
pub async fn report_end(agent: &NodeAgent, facts: &Facts) -> kube::Result<()> {
    write(agent, facts, false).await.map(drop)
}

/// Writes everything that differs; true when figures of a copy were among it.
async fn write(agent: &NodeAgent, facts: &Facts, progress_due: bool) -> kube::Result<bool> {
    let now = holdfast_env::now();
    let Some(instance) = agent.instance(&facts.id) else { return Ok(false) };
    write_instance(agent, &instance, facts, now).await?;
    let Some(migration) = agent.named_migration(&instance) else { return Ok(false) };
    write_migration(agent, &migration, facts, now, progress_due).await
}

/// The Instance's share: flip, report, and the marks of a move's source, in this order of urgency.
async fn write_instance(
    agent: &NodeAgent,
    cached: &Instance,
    facts: &Facts,
    now: Timestamp,
) -> kube::Result<()> {
    let mut instance = cached.clone();
    for attempt in 1.. {
        let flip = report::flip(facts, &instance, now);
        let is_flip = flip.is_some();
        let patch = flip
            .or_else(|| report::instance_status(facts, &instance, now))
            .or_else(|| report::source_in_instance(facts, &instance, now));
        let Some(patch) = patch else { return Ok(()) };
        match agent.cluster.write_instance_status(&instance, patch).await {
            Ok(written)
                if written.metadata.resource_version == instance.metadata.resource_version
                    && !holdfast_env::mutant!("gone-fields-stay") =>
            {
                changes_nothing(facts);
                return Ok(());
            }
            // One function's fields are written; the next may have some, too.
            Ok(written) => {
                instance = written;
                if is_flip {
                    tracing::info!(id = %facts.id, "flipped: the VM belongs to this node");
                    fault::point("flipped").await;
                }
            }
            Err(error) if is_conflict(&error) && attempt < TRIES => {
                let namespace = instance.namespace().unwrap_or_default();
                match agent.cluster.read_instance(&namespace, &instance.name_any()).await? {
                    Some(fresh) if fresh.metadata.uid == cached.metadata.uid => instance = fresh,
                    _ => return Ok(()),
                }
            }
            Err(error) if is_not_found(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A patch without effect would be made again for ever, and nothing later would be reported.
fn changes_nothing(facts: &Facts) {
    tracing::error!(id = %facts.id, "a report changes nothing although something differs: please report this bug");
}

async fn write_migration(
    agent: &NodeAgent,
    cached: &Migration,
    facts: &Facts,
    now: Timestamp,
    progress_due: bool,
) -> kube::Result<bool> {
    let address = agent.config.node_address.to_string();
    let mut migration = cached.clone();
    let mut progress = false;
    for attempt in 1.. {
        // What has finished never changes again (INV-7).
        if migration.status.as_ref().and_then(|status| status.state).is_some_and(MigrationState::is_final) {
            return Ok(progress);
        }
        let patch = report::source_in_migration(facts, &migration, now, progress_due && !progress)
            .or_else(|| report::target_in_migration(facts, &migration, &address, agent.port(), now));
        let Some(patch) = patch else { return Ok(progress) };
        let has_progress = patch.get("progress").is_some_and(Value::is_object);
        match agent.cluster.write_migration_status(&migration, patch).await {
            Ok(written) if written.metadata.resource_version == migration.metadata.resource_version => {
                changes_nothing(facts);
                return Ok(progress);
            }
            Ok(written) => {
                progress |= has_progress;
                migration = written;
            }
            Err(error) if is_conflict(&error) && attempt < TRIES => {
                let namespace = migration.namespace().unwrap_or_default();
                match agent.cluster.read_migration(&namespace, &migration.name_any()).await? {
                    Some(fresh) if fresh.metadata.uid == cached.metadata.uid => migration = fresh,
                    _ => return Ok(progress),
                }
            }
            Err(error) if is_not_found(&error) => return Ok(progress),
            Err(error) => return Err(error),
        }
    }
    Ok(progress)
}
