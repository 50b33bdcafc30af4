//! The launchers of this node: one driver each, from the moment the pod's directory appears until the
//! launcher has ended, and one reporter each, until the pod is gone.

pub mod adoption;
pub mod conversation;
pub mod driver;
pub mod plan;
pub mod reporter;
mod retry;
pub mod start;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::host::Look;
use crate::node_agent::NodeAgent;

/// How long after a change in the API a launcher may be about to appear.
const EXPECTING: Duration = Duration::from_secs(5);

/// Finds launchers for ever and gives each its driver and its reporter.
pub async fn follow_all(agent: Arc<NodeAgent>) {
    let driven: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    let mut changes = agent.cluster.changes();
    let mut changed_at = Instant::now();
    loop {
        match agent.pods.launchers() {
            Err(error) => tracing::error!(%error, "the pods of this node cannot be found"),
            Ok(pods) => {
                for pod_uid in pods {
                    if driven.lock().insert(pod_uid.clone()) {
                        tokio::spawn(follow(agent.clone(), pod_uid, driven.clone()));
                    }
                }
            }
        }
        let expecting = changed_at.elapsed() < EXPECTING;
        tokio::select! {
            biased;
            _ = changes.changed(), if !expecting => changed_at = Instant::now(),
            () = agent.outside.host.look_again(Look::Pods { expecting }) => {}
        }
    }
}

async fn follow(agent: Arc<NodeAgent>, pod_uid: String, driven: Arc<Mutex<BTreeSet<String>>>) {
    let (driver, facts) = driver::Driver::new(agent.clone(), pod_uid.clone());
    let reporter = tokio::spawn(reporter::report(agent.clone(), facts));
    driver.run().await;
    let _ = reporter.await;
    // The directory of a pod that is gone disappears with the pod; until then it needs no driver.
    while agent.pods.exists(&pod_uid) {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    driven.lock().remove(&pod_uid);
}
