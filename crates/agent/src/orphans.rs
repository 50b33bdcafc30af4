//! Claims of this node whose launcher pod vanished without a trace, for example because it was removed
//! by force while the agent was down: nobody else can say that nothing runs, so the VM would wait for
//! ever. The end is reported when pod, directory and processes are gone (first-slice.md §4.5).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_api::engine::{Instance, ReportState};
use holdfast_api::names::label;
use holdfast_wire::Id;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams};
use tokio::time::Instant;

use crate::launcher::reporter;
use crate::node_agent::NodeAgent;
use crate::peers::chain;
use crate::report::{End, Facts};

/// How long a claim must be without a trace of its pod.
const SETTLE: Duration = Duration::from_secs(10);
/// Pause between two looks.
const LOOK: Duration = Duration::from_secs(5);

/// Looks for orphaned claims for ever.
pub async fn follow(agent: Arc<NodeAgent>) {
    agent.cluster.ready().await;
    let mut since: BTreeMap<Id, Instant> = BTreeMap::new();
    loop {
        let orphans: Vec<Id> =
            agent.cluster.instances.all().iter().filter_map(|i| orphan(&agent, i)).collect();
        since.retain(|id, _| orphans.contains(id));
        for id in orphans {
            let at = *since.entry(id.clone()).or_insert_with(Instant::now);
            if at.elapsed() < SETTLE {
                continue;
            }
            if let Err(error) = report(&agent, &id).await {
                tracing::warn!(%id, error = %chain(&error), "the end of a vanished launcher is not reported yet");
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The power-on this node claims for an Instance, if nothing of its launcher is here.
fn orphan(agent: &NodeAgent, instance: &Instance) -> Option<Id> {
    let here = agent.here();
    let id = claimed(instance, &here.node, &here.boot_id)?;
    let trace = agent.cluster.pods.get(&id.pod_uid).is_some() || agent.pods.exists(&id.pod_uid);
    (!trace).then_some(id)
}

/// The power-on that a node claims in one boot and whose end is not reported.
fn claimed(instance: &Instance, node: &str, boot_id: &str) -> Option<Id> {
    let status = instance.status.as_ref()?;
    let claim = status.claim.as_ref()?;
    let ours = claim.node == node && claim.boot_id == boot_id && claim.epoch == instance.spec.epoch;
    let ended = status.report.as_ref().is_some_and(|report| {
        report.epoch == claim.epoch && report.pod_uid == claim.pod_uid && report.state == ReportState::Ended
    });
    (ours && !ended).then(|| Id {
        instance_uid: instance.metadata.uid.clone().unwrap_or_default(),
        epoch: claim.epoch,
        pod_uid: claim.pod_uid.clone(),
    })
}

/// Asks the store once more and reports. A start after this is impossible: its authorisation would
/// see the end.
async fn report(agent: &NodeAgent, id: &Id) -> kube::Result<()> {
    let pods: Api<Pod> = Api::all(agent.cluster.client.clone());
    let selector = format!("{}={}", label::CREATED_BY, id.instance_uid);
    let listed = pods.list(&ListParams::default().labels(&selector)).await?;
    let exists = listed.items.iter().any(|pod| pod.uid().as_deref() == Some(&id.pod_uid));
    if exists || !agent.pods.is_gone(&id.pod_uid) {
        return Ok(());
    }
    tracing::warn!(%id, "the launcher pod vanished; reporting its end");
    let facts = Facts {
        id: id.clone(),
        node: agent.config.node.clone(),
        boot_id: agent.config.boot_id.clone(),
        end: Some(End::removed()),
        ..Facts::default()
    };
    reporter::report_end(agent, &facts).await
}

#[cfg(test)]
mod tests {
    use holdfast_api::engine::{Claim, InstanceStatus, Report};

    use super::*;

    #[test]
    fn only_claims_of_this_boot_without_a_reported_end_count() {
        let mut instance = crate::definition::tests::instance();
        let claim = Claim { node: "n1".into(), boot_id: "b1".into(), pod_uid: "p".into(), epoch: 1 };
        instance.status = Some(InstanceStatus { claim: Some(claim), ..InstanceStatus::default() });
        let is = |instance: &Instance, boot: &str| claimed(instance, "n1", boot).is_some();
        assert!(is(&instance, "b1"));
        assert!(!is(&instance, "b2"), "an earlier boot's claim is proved otherwise (P3)");
        let ended = Report { epoch: 1, pod_uid: "p".into(), state: ReportState::Ended, ..Report::default() };
        instance.status.as_mut().unwrap().report = Some(ended);
        assert!(!is(&instance, "b1"));
        instance.spec.epoch = 2;
        assert!(!is(&instance, "b1"), "the claim of an earlier epoch");
    }
}
