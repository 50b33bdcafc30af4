//! The answer to an eviction of a pod (migration-and-maintenance.md §6.3). Pure: the caller reads
//! the pod and the Instance from the store, writes the mark, and answers.

use holdfast_api::engine::{EvictionRule, Instance, InstanceState};
use holdfast_api::names::label;
use k8s_openapi::api::core::v1::Pod;

/// What the eviction handler does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Delete the pod as usual.
    Allow,
    /// Answer 429 with this text.
    Refuse(String),
    /// The VM cannot leave. Note `status.evacuationBlockedNode` = node, so that its users are told, and
    /// answer 429 with this text. On a dry run answer without writing.
    RefuseAndNote {
        /// The node that it blocks.
        node: String,
        /// The text of the answer.
        text: String,
    },
    /// Write the mark `status.evacuationNodeName` = node, then answer 429 with this text. If the
    /// mark cannot be written, answer 500. On a dry run answer without writing.
    MarkAndRefuse {
        /// The node to leave.
        node: String,
        /// The text of the answer.
        text: String,
    },
}

/// Value of `status.evacuationSource` for marks of the eviction handler.
pub const SOURCE_EVICTION: &str = "Eviction";
/// Value of `status.evacuationSource` for marks of the rebalancer: an uncordon leaves them, and the move has
/// the lowest class.
pub const SOURCE_REBALANCE: &str = "Rebalance";
/// Annotation on an Eviction: who asks.
pub const REQUESTED_BY: &str = "requested-by";
/// Value of [`REQUESTED_BY`] that the rebalancer writes.
const DESCHEDULER: &str = "sigs.k8s.io/descheduler";

/// The source of a mark, by the value of [`REQUESTED_BY`].
#[must_use]
pub fn source(requested_by: Option<&str>) -> &'static str {
    if requested_by == Some(DESCHEDULER) { SOURCE_REBALANCE } else { SOURCE_EVICTION }
}

/// Whether a pod is a launcher.
#[must_use]
pub fn is_launcher(pod: &Pod) -> bool {
    pod.metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(label::ROLE))
        .is_some_and(|role| role == label::LAUNCHER)
}

/// Name of the Instance a launcher pod belongs to: its controller owner.
#[must_use]
pub fn instance_name(pod: &Pod) -> Option<&str> {
    let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
    owners
        .iter()
        .find(|owner| owner.controller == Some(true) && owner.kind == "Instance")
        .map(|owner| owner.name.as_str())
}

/// Whether an Instance could move live, by its configuration (also before it runs).
///
/// # Errors
/// Why not: a sentence for people.
pub fn migratable(instance: &Instance) -> Result<(), String> {
    if let Some(disk) = instance.spec.hardware.disks.iter().find(|disk| !disk.shared) {
        return Err(format!(
            "Live migration requires that all claims are shared (ReadWriteMany): the claim {} of {} {} is not.",
            disk.claim, disk.kind, disk.name
        ));
    }
    if let Some(nvram) = instance.spec.hardware.nvram.as_ref().filter(|nvram| !nvram.shared) {
        return Err(format!(
            "Live migration requires that all claims are shared (ReadWriteMany): the claim {} of the UEFI \
             variables is not.",
            nvram.claim
        ));
    }
    Ok(())
}

/// Decides; first match wins. `instance` is the Instance that [`instance_name`] names, if its uid
/// is the pod's owner.
#[must_use]
pub fn decide(pod: &Pod, instance: Option<&Instance>) -> Decision {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
    if !is_launcher(pod) || matches!(phase, "Succeeded" | "Failed") {
        return Decision::Allow;
    }
    let Some(instance) = instance else { return Decision::Allow };
    let status = instance.status.clone().unwrap_or_default();
    if status.state == Some(InstanceState::Ended) {
        return Decision::Allow;
    }
    let full_name = format!(
        "{}/{}",
        instance.metadata.namespace.as_deref().unwrap_or_default(),
        instance.metadata.name.as_deref().unwrap_or_default()
    );
    let pod_node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
    match (instance.spec.eviction_rule, migratable(instance)) {
        (EvictionRule::Stop, _) | (EvictionRule::MoveOrStop, Err(_)) => return Decision::Allow,
        (EvictionRule::MoveOrBlock, Err(why)) => {
            let text = format!(
                "VMI {full_name} is configured with an eviction strategy but is not live-migratable: stop it. {why}"
            );
            return Decision::RefuseAndNote { node: pod_node.to_owned(), text };
        }
        (EvictionRule::MoveOrBlock | EvictionRule::MoveOrStop, Ok(())) | (EvictionRule::BlockAndMark, _) => {}
    }
    let is_target = pod.metadata.uid.as_deref().is_some_and(|uid| {
        let active = status.claim.as_ref().is_some_and(|claim| claim.pod_uid == uid);
        let labels = pod.metadata.labels.as_ref();
        !active && labels.is_some_and(|labels| labels.contains_key(label::MIGRATION_UID))
    });
    let marked = status.evacuation_node_name.as_deref().is_some_and(|node| !node.is_empty());
    if marked && status.evacuation_node_name.as_deref() == Some(pod_node) && !is_target {
        let failures = status.evacuation_failures.unwrap_or_default();
        let so_far = match (failures.count, failures.message) {
            (1.., Some(why)) => format!(". {} of its moves failed, the last one so: {why}", failures.count),
            _ => String::new(),
        };
        return Decision::Refuse(format!(
            "Evacuation in progress: Eviction triggered evacuation of VMI \"{full_name}\"{so_far}"
        ));
    }
    if is_target {
        return Decision::Refuse("Eviction request for target Pod".to_owned());
    }
    if pod_node.is_empty() {
        // Not placed yet: nothing to evacuate, and the scheduler will not choose a cordoned node.
        return Decision::Allow;
    }
    if holdfast_env::mutant!("eviction-allowed") {
        return Decision::Allow;
    }
    Decision::MarkAndRefuse {
        node: pod_node.to_owned(),
        text: format!("Eviction triggered evacuation of VMI \"{full_name}\""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_api::engine::{Claim, Disk, InstanceStatus};
    use k8s_openapi::api::core::v1::{PodSpec, PodStatus};
    use std::collections::BTreeMap;

    fn launcher(uid: &str, node: &str) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.uid = Some(uid.into());
        pod.metadata.labels = Some(BTreeMap::from([(label::ROLE.to_owned(), label::LAUNCHER.to_owned())]));
        pod.spec = Some(PodSpec { node_name: Some(node.into()), ..PodSpec::default() });
        pod.status = Some(PodStatus { phase: Some("Running".into()), ..PodStatus::default() });
        pod
    }

    fn instance(shared: bool, mark: Option<&str>) -> Instance {
        let mut instance = Instance::default();
        instance.metadata.namespace = Some("shop".into());
        instance.metadata.name = Some("web".into());
        instance.spec.hardware.disks = vec![Disk { shared, claim: "c".into(), ..Disk::default() }];
        instance.status = Some(InstanceStatus {
            state: Some(InstanceState::Running),
            claim: Some(Claim { node: "n1".into(), pod_uid: "p1".into(), ..Claim::default() }),
            evacuation_node_name: mark.map(str::to_owned),
            ..InstanceStatus::default()
        });
        instance
    }

    #[test]
    fn the_table_of_the_spec() {
        let mut other = launcher("x", "n1");
        other.metadata.labels = None;
        assert_eq!(decide(&other, None), Decision::Allow);
        let mut done = launcher("p1", "n1");
        done.status.as_mut().unwrap().phase = Some("Succeeded".into());
        assert_eq!(decide(&done, Some(&instance(true, None))), Decision::Allow);
        assert_eq!(decide(&launcher("p1", "n1"), None), Decision::Allow);
        let refuse = |text: &str| Decision::Refuse(text.to_owned());
        let Decision::RefuseAndNote { node, text } =
            decide(&launcher("p1", "n1"), Some(&instance(false, None)))
        else {
            panic!("a VM that cannot move is not evicted")
        };
        let strategy = "VMI shop/web is configured with an eviction strategy but is not live-migratable";
        assert!(node == "n1" && text.starts_with(strategy) && text.contains("the claim c of"), "{text}");
        assert_eq!(
            decide(&launcher("p1", "n1"), Some(&instance(true, Some("n1")))),
            refuse("Evacuation in progress: Eviction triggered evacuation of VMI \"shop/web\"")
        );
        let mut failed = instance(true, Some("n1"));
        failed.status.as_mut().unwrap().evacuation_failures =
            Some(holdfast_api::engine::EvacuationFailures {
                count: 2,
                message: Some("no room".into()),
                ..Default::default()
            });
        assert_eq!(
            decide(&launcher("p1", "n1"), Some(&failed)),
            refuse(
                "Evacuation in progress: Eviction triggered evacuation of VMI \"shop/web\". 2 of its moves \
                 failed, the last one so: no room"
            )
        );
        let mut target = launcher("p2", "n2");
        target.metadata.labels.as_mut().unwrap().insert(label::MIGRATION_UID.into(), "m".into());
        assert_eq!(
            decide(&target, Some(&instance(true, Some("n1")))),
            refuse("Eviction request for target Pod")
        );
        assert_eq!(
            decide(&launcher("p1", "n1"), Some(&instance(true, None))),
            Decision::MarkAndRefuse {
                node: "n1".into(),
                text: "Eviction triggered evacuation of VMI \"shop/web\"".into(),
            }
        );
    }

    #[test]
    fn a_target_that_became_the_active_pod_is_marked_like_any_other() {
        let mut pod = launcher("p1", "n2");
        pod.metadata.labels.as_mut().unwrap().insert(label::MIGRATION_UID.into(), "m".into());
        let decision = decide(&pod, Some(&instance(true, None)));
        assert!(matches!(decision, Decision::MarkAndRefuse { node, .. } if node == "n2"));
    }

    #[test]
    fn eviction_rules_of_the_other_front() {
        let with = |rule, shared| {
            let mut instance = instance(shared, None);
            instance.spec.eviction_rule = rule;
            decide(&launcher("p1", "n1"), Some(&instance))
        };
        assert_eq!(with(EvictionRule::Stop, true), Decision::Allow);
        assert_eq!(with(EvictionRule::MoveOrStop, false), Decision::Allow);
        assert!(matches!(with(EvictionRule::MoveOrStop, true), Decision::MarkAndRefuse { .. }));
        assert!(matches!(with(EvictionRule::BlockAndMark, false), Decision::MarkAndRefuse { .. }));
    }
}
