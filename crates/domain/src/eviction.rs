//! The answer to an eviction of a pod (migration-and-maintenance.md §6.3). Pure: the caller reads
//! the pod and the Instance from the store, writes the mark, and answers.

use holdfast_api::engine::{EvictionRule, Instance, InstanceState, InstanceStatus};
use holdfast_api::names::label;
use k8s_openapi::api::core::v1::{Node, Pod};

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
    /// Write the mark into the status, then answer 429 with this text. If the mark cannot be written, answer
    /// 500. On a dry run answer without writing.
    MarkAndRefuse {
        /// What to write.
        mark: Mark,
        /// The text of the answer.
        text: String,
    },
}

/// A mark for an evacuation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// `status.evacuationNodeName`: the node to leave.
    pub node: String,
    /// `status.evacuationSource`.
    pub source: String,
    /// `status.evacuationNodeVersion`: the version of the node that was closed. It says which cordon the mark
    /// belongs to: whoever sees a later version open knows that the cordon was undone, even without having seen
    /// it. The rebalancer's marks belong to none.
    pub node_version: Option<i64>,
}

/// Who asks for an eviction, and of what.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked<'a> {
    /// Value of [`REQUESTED_BY`].
    pub by: Option<&'a str>,
    /// The pod's node.
    pub node: Option<&'a Node>,
}

impl Asked<'_> {
    fn mark(&self, node: &str) -> Mark {
        let source = source(self.by);
        let node_version = match source {
            SOURCE_REBALANCE => None,
            _ if holdfast_env::mutant!("mark-without-cordon") => None,
            _ => self.node.filter(|node| is_closed(node)).and_then(version),
        };
        Mark { node: node.to_owned(), source: source.to_owned(), node_version }
    }

    /// The mark that an eviction leaves where there is one already; none where that need not change. A drain is
    /// more urgent than a wish of the rebalancer, and a mark that was set on an open node belongs to the cordon
    /// that came later.
    fn renewed(&self, status: &InstanceStatus, node: &str) -> Option<Mark> {
        let new = self.mark(node);
        let more_urgent =
            status.evacuation_source.as_deref() == Some(SOURCE_REBALANCE) && new.source != SOURCE_REBALANCE;
        let cordoned_since = status.evacuation_node_version.is_none() && new.node_version.is_some();
        (more_urgent || cordoned_since).then_some(new)
    }
}

/// Whether no new pods come to a node: it is cordoned.
#[must_use]
pub fn is_closed(node: &Node) -> bool {
    node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true)
}

/// The version of a node, comparable with others of the same node. None where the API server's versions are no
/// numbers.
#[must_use]
pub fn version(node: &Node) -> Option<i64> {
    node.metadata.resource_version.as_ref()?.parse().ok()
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
pub fn decide(pod: &Pod, instance: Option<&Instance>, asked: Asked<'_>) -> Decision {
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
        let renewed = asked.renewed(&status, pod_node);
        let failures = status.evacuation_failures.unwrap_or_default();
        let so_far = match (failures.count, failures.message) {
            (1.., Some(why)) => format!(". {} of its moves failed, the last one so: {why}", failures.count),
            _ => String::new(),
        };
        let text =
            format!("Evacuation in progress: Eviction triggered evacuation of VMI \"{full_name}\"{so_far}");
        return match renewed {
            Some(mark) => Decision::MarkAndRefuse { mark, text },
            None => Decision::Refuse(text),
        };
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
        mark: asked.mark(pod_node),
        text: format!("Eviction triggered evacuation of VMI \"{full_name}\""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(pod: &Pod, instance: Option<&Instance>) -> Decision {
        super::decide(pod, instance, Asked::default())
    }
    use holdfast_api::engine::{Claim, Disk};
    use k8s_openapi::api::core::v1::{NodeSpec, PodSpec, PodStatus};
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
                mark: Mark { node: "n1".into(), source: SOURCE_EVICTION.into(), node_version: None },
                text: "Eviction triggered evacuation of VMI \"shop/web\"".into(),
            }
        );
    }

    #[test]
    fn a_target_that_became_the_active_pod_is_marked_like_any_other() {
        let mut pod = launcher("p1", "n2");
        pod.metadata.labels.as_mut().unwrap().insert(label::MIGRATION_UID.into(), "m".into());
        let decision = decide(&pod, Some(&instance(true, None)));
        assert!(matches!(decision, Decision::MarkAndRefuse { mark, .. } if mark.node == "n2"));
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

    #[test]
    fn a_mark_names_the_cordon_it_belongs_to_and_its_most_urgent_cause() {
        let node = |closed: bool, version: &str| {
            let spec = NodeSpec { unschedulable: closed.then_some(true), ..NodeSpec::default() };
            let mut node = Node { spec: Some(spec), ..Node::default() };
            node.metadata.resource_version = Some(version.into());
            node
        };
        const DRAIN: Option<&str> = None;
        const REBALANCER: Option<&str> = Some(DESCHEDULER);
        let (open, closed, odd) = (node(false, "7"), node(true, "7"), node(true, "x7"));
        let (e, r) = (SOURCE_EVICTION, SOURCE_REBALANCE);
        // The mark that is there, who asks, the node as it is; the mark that is written.
        let table = [
            (None, DRAIN, &closed, Some((e, Some(7)))),
            (None, DRAIN, &open, Some((e, None))),
            (None, DRAIN, &odd, Some((e, None))),
            (None, REBALANCER, &closed, Some((r, None))),
            (Some((e, Some(5))), DRAIN, &closed, None),
            (Some((e, Some(5))), DRAIN, &open, None),
            (Some((e, Some(5))), REBALANCER, &closed, None),
            (Some((e, None)), DRAIN, &closed, Some((e, Some(7)))),
            (Some((e, None)), DRAIN, &open, None),
            (Some((e, None)), REBALANCER, &closed, None),
            (Some((r, None)), DRAIN, &closed, Some((e, Some(7)))),
            (Some((r, None)), DRAIN, &open, Some((e, None))),
            (Some((r, None)), REBALANCER, &closed, None),
        ];
        for (known, by, node, wanted) in table {
            let mut instance = instance(true, known.map(|_| "n1"));
            let status = instance.status.as_mut().unwrap();
            status.evacuation_source = known.map(|(source, _)| source.into());
            status.evacuation_node_version = known.and_then(|(_, version)| version);
            let asked = Asked { by, node: Some(node) };
            let decision = super::decide(&launcher("p1", "n1"), Some(&instance), asked);
            let written = match &decision {
                Decision::MarkAndRefuse { mark, .. } => Some((mark.source.as_str(), mark.node_version)),
                _ => None,
            };
            assert_eq!(written, wanted, "{known:?} {by:?} {node:?}");
            let (Decision::MarkAndRefuse { text, .. } | Decision::Refuse(text)) = decision else {
                panic!("{known:?} {by:?}: not refused")
            };
            assert_eq!(text.starts_with("Evacuation in progress"), known.is_some(), "{text}");
        }
    }
}
