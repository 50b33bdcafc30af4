//! Claims of this node of whose launcher nothing is here: its pod was removed by force while the agent was
//! down, or became final before the node had begun with it (deleted while the node's kubelet was down, refused
//! by the kubelet). No driver follows such a pod, and nobody else can say that nothing runs, so the VM would
//! wait for ever. The end is reported when directory and processes are gone (first-slice.md §4.5).

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

use crate::launcher::driver::is_final;
use crate::launcher::reporter;
use crate::node_agent::NodeAgent;
use crate::peers::chain;
use crate::report::{End, Facts};

/// How long a claim must be without a trace of its launcher.
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
    let pod = agent.cluster.pods.get(&id.pod_uid);
    let over = match &pod {
        None => !agent.pods.exists(&id.pod_uid),
        Some(pod) => is_final(pod) && !agent.pods.has(&id.pod_uid) && !has_begun(instance, &id),
    };
    over.then_some(id)
}

/// Something was reported of this launcher: then its records are or were here, and a move may have begun.
fn has_begun(instance: &Instance, id: &Id) -> bool {
    let report = instance.status.as_ref().and_then(|status| status.report.as_ref());
    report.is_some_and(|report| report.epoch == id.epoch && report.pod_uid == id.pod_uid)
}

/// What ended a launcher of which nothing is here.
fn end(pod: Option<&Pod>) -> End {
    match pod {
        None => End::removed(),
        Some(pod) if pod.metadata.deletion_timestamp.is_some() => End::deleted(),
        Some(_) => End::unrecorded(false),
    }
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
    let pod = listed.items.iter().find(|pod| pod.uid().as_deref() == Some(&id.pod_uid));
    if pod.is_some_and(|pod| !is_final(pod)) || !agent.pods.is_gone(&id.pod_uid) {
        return Ok(());
    }
    let end = end(pod);
    tracing::warn!(%id, ?end, "nothing of the launcher is left; reporting its end");
    let facts = Facts {
        id: id.clone(),
        node: agent.config.node.clone(),
        boot_id: agent.config.boot_id.clone(),
        pod_name: pod.map(|pod| pod.name_any()).unwrap_or_default(),
        end: Some(end),
        ..Facts::default()
    };
    reporter::report_end(agent, &facts).await
}

#[cfg(test)]
mod tests {
    use holdfast_api::engine::{Claim, ExitCause, InstanceStatus, Report};

    use super::*;

    #[test]
    fn a_launcher_that_was_never_begun_says_why() {
        let mut pod = Pod::default();
        let cause = |pod: Option<&Pod>| end(pod).cause.unwrap();
        assert_eq!(cause(None), ExitCause::Evicted);
        assert_eq!(cause(Some(&pod)), ExitCause::StartFailed, "the node refused it");
        pod.metadata.deletion_timestamp = Some(holdfast_api::Time(holdfast_env::Timestamp::UNIX_EPOCH));
        assert_eq!(cause(Some(&pod)), ExitCause::Evicted, "no failure: somebody deleted it");
    }

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
