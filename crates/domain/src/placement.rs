//! Where a VM may run: its own rules and its class merged (vm-lifecycle.md §5.3, §5.5), and whether
//! a node satisfies the required part.

use std::collections::BTreeMap;

use holdfast_api::engine::Placement;
use holdfast_api::names::label;
use holdfast_api::vm::VirtualMachineSpec;
use holdfast_api::vmclass::{CpuType, VirtualMachineClassSpec};
use holdfast_apimachinery::labels::admits;
use k8s_openapi::api::core::v1::{Affinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};

/// The placement of a VM of a class.
#[must_use]
pub fn merge(vm: &VirtualMachineSpec, class: &VirtualMachineClassSpec) -> Placement {
    let mut node_selector = vm.node_selector.clone().unwrap_or_default();
    let selector = class.node_selector.clone().unwrap_or_default();
    node_selector.extend(selector.match_labels.unwrap_or_default());
    if let (CpuType::Model, Some(model)) = (class.cpu.type_, &class.cpu.model) {
        node_selector.insert(format!("{}{model}", label::CPU_MODEL_PREFIX), "true".to_owned());
    }
    let mut affinity = vm.affinity.as_ref().map(holdfast_api::vm::VmAffinity::to_pod);
    if let Some(expressions) = selector.match_expressions.filter(|all| !all.is_empty()) {
        affinity = Some(require(affinity.unwrap_or_default(), &expressions));
    }
    let mut tolerations = vm.tolerations.clone().unwrap_or_default();
    tolerations.extend(class.tolerations.clone().unwrap_or_default());
    let spread = vm.topology_spread_constraints.iter().flatten();
    Placement {
        node_selector,
        affinity,
        tolerations,
        topology_spread_constraints: spread
            .map(holdfast_api::vm::VmTopologySpreadConstraint::to_pod)
            .collect(),
        priority_class_name: vm.priority_class_name.clone(),
    }
}

/// The affinity with `expressions` appended to every required node term (a new one if none).
#[must_use]
pub fn require(mut affinity: Affinity, expressions: &[NodeSelectorRequirement]) -> Affinity {
    let node = affinity.node_affinity.get_or_insert_default();
    let required = node
        .required_during_scheduling_ignored_during_execution
        .get_or_insert_with(|| NodeSelector { node_selector_terms: Vec::new() });
    if required.node_selector_terms.is_empty() {
        required.node_selector_terms.push(NodeSelectorTerm::default());
    }
    for term in &mut required.node_selector_terms {
        term.match_expressions.get_or_insert_default().extend_from_slice(expressions);
    }
    affinity
}

/// Whether a node's labels and name satisfy the **required** node rules of a placement. Pod
/// affinity is not looked at.
#[must_use]
pub fn node_satisfies(placement: &Placement, name: &str, labels: &BTreeMap<String, String>) -> bool {
    let selector = placement.node_selector.iter().all(|(key, value)| labels.get(key) == Some(value));
    let required = placement
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|node| node.required_during_scheduling_ignored_during_execution.as_ref());
    selector && required.is_none_or(|required| admits(required, name, Some(labels)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_api::vm::VmAffinity;
    use holdfast_api::vmclass::ClassNodeSelector;
    use k8s_openapi::api::core::v1::{NodeAffinity, Toleration};

    fn rule(key: &str, operator: &str, values: &[&str]) -> NodeSelectorRequirement {
        NodeSelectorRequirement {
            key: key.into(),
            operator: operator.into(),
            values: (!values.is_empty()).then(|| values.iter().map(|&v| v.to_owned()).collect()),
        }
    }

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn toleration(key: &str) -> Toleration {
        Toleration { key: Some(key.into()), ..Toleration::default() }
    }

    #[test]
    fn the_class_wins_on_equal_keys_and_its_expressions_join_every_term() {
        let terms = vec![
            NodeSelectorTerm {
                match_expressions: Some(vec![rule("a", "Exists", &[])]),
                ..Default::default()
            },
            NodeSelectorTerm {
                match_expressions: Some(vec![rule("b", "Exists", &[])]),
                ..Default::default()
            },
        ];
        let vm = VirtualMachineSpec {
            node_selector: Some(labels(&[("zone", "vm"), ("own", "1")])),
            affinity: Some(VmAffinity {
                node_affinity: Some(NodeAffinity {
                    required_during_scheduling_ignored_during_execution: Some(NodeSelector {
                        node_selector_terms: terms,
                    }),
                    ..NodeAffinity::default()
                }),
                ..VmAffinity::default()
            }),
            tolerations: Some(vec![toleration("vm")]),
            ..VirtualMachineSpec::default()
        };
        let class = VirtualMachineClassSpec {
            node_selector: Some(ClassNodeSelector {
                match_labels: Some(labels(&[("zone", "class")])),
                match_expressions: Some(vec![rule("c", "Exists", &[])]),
            }),
            tolerations: Some(vec![toleration("class")]),
            ..VirtualMachineClassSpec::default()
        };
        let merged = merge(&vm, &class);
        assert_eq!(merged.node_selector, labels(&[("zone", "class"), ("own", "1")]));
        let keys: Vec<_> = merged.tolerations.iter().filter_map(|t| t.key.as_deref()).collect();
        assert_eq!(keys, ["vm", "class"]);
        let terms = merged
            .affinity
            .unwrap()
            .node_affinity
            .unwrap()
            .required_during_scheduling_ignored_during_execution
            .unwrap()
            .node_selector_terms;
        let keys: Vec<Vec<_>> = terms
            .iter()
            .map(|t| t.match_expressions.iter().flatten().map(|r| r.key.as_str()).collect())
            .collect();
        assert_eq!(keys, [["a", "c"], ["b", "c"]]);
    }

    #[test]
    fn a_model_class_asks_for_nodes_with_the_model() {
        let mut class = VirtualMachineClassSpec::default();
        class.cpu.type_ = CpuType::Model;
        class.cpu.model = Some("Nehalem".into());
        let merged = merge(&VirtualMachineSpec::default(), &class);
        let key = "cpu-model.node.virtualization.deckhouse.io/Nehalem";
        assert_eq!(merged.node_selector.get(key).map(String::as_str), Some("true"));
    }

    #[test]
    fn required_rules_are_matched_against_a_node() {
        let with = |rules: Vec<NodeSelectorRequirement>| Placement {
            affinity: Some(require(Affinity::default(), &rules)),
            ..Placement::default()
        };
        let node = labels(&[("zone", "a"), ("disks", "4")]);
        for (rule, want) in [
            (rule("zone", "In", &["a", "b"]), true),
            (rule("zone", "NotIn", &["a"]), false),
            (rule("none", "NotIn", &["a"]), true),
            (rule("zone", "Exists", &[]), true),
            (rule("none", "DoesNotExist", &[]), true),
            (rule("disks", "Gt", &["3"]), true),
            (rule("disks", "Lt", &["3"]), false),
            (rule("zone", "Nonsense", &[]), false),
        ] {
            assert_eq!(node_satisfies(&with(vec![rule.clone()]), "n", &node), want, "{rule:?}");
        }
        let selector = Placement { node_selector: labels(&[("zone", "b")]), ..Placement::default() };
        assert!(!node_satisfies(&selector, "n", &node));
        assert!(node_satisfies(&Placement::default(), "n", &node));
    }
}
