//! Label selectors and node selector terms.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// Labels of an object; a missing map is an empty one.
pub(crate) type Labels = BTreeMap<String, String>;

/// Whether `selector` selects `labels`. `None` selects nothing, an empty selector everything.
pub(crate) fn selects(selector: Option<&LabelSelector>, labels: Option<&Labels>) -> bool {
    let Some(selector) = selector else { return false };
    let value = |key: &str| labels.and_then(|labels| labels.get(key));
    let equal = selector.match_labels.iter().flatten().all(|(key, want)| value(key) == Some(want));
    equal
        && selector.match_expressions.iter().flatten().all(|expression| {
            let found = value(&expression.key);
            let listed = found.is_some_and(|v| expression.values.iter().flatten().any(|w| w == v));
            match expression.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => found.is_some(),
                "DoesNotExist" => found.is_none(),
                _ => false,
            }
        })
}

/// Whether a required node selector admits the node: one term suffices, an empty term admits nothing.
pub(crate) fn admits_node(selector: &NodeSelector, node: &Node) -> bool {
    selector.node_selector_terms.iter().any(|term| term_admits(term, node))
}

/// Whether every requirement of the term holds on the node.
pub(crate) fn term_admits(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let labels = node.metadata.labels.as_ref();
    expressions.iter().all(|requirement| holds(requirement, labels.and_then(|l| l.get(&requirement.key))))
        && fields.iter().all(|requirement| {
            requirement.key == "metadata.name" && holds(requirement, node.metadata.name.as_ref())
        })
}

fn holds(requirement: &NodeSelectorRequirement, found: Option<&String>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = found.is_some_and(|v| values.contains(v));
    let numbers = || {
        let found: i64 = found?.parse().ok()?;
        let limit: i64 = values.first()?.parse().ok()?;
        Some((found, limit))
    };
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => found.is_some(),
        "DoesNotExist" => found.is_none(),
        "Gt" => numbers().is_some_and(|(found, limit)| found > limit),
        "Lt" => numbers().is_some_and(|(found, limit)| found < limit),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn label_selectors() {
        let have = labels(&[("app", "web"), ("tier", "2")]);
        let check = |selector: Value, want: bool| {
            let parsed: LabelSelector = serde_json::from_value(selector.clone()).unwrap();
            assert_eq!(selects(Some(&parsed), Some(&have)), want, "{selector}");
        };
        check(json!({}), true);
        check(json!({"matchLabels": {"app": "web"}}), true);
        check(json!({"matchLabels": {"app": "db"}}), false);
        check(json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["db"]}]}), true);
        check(json!({"matchExpressions": [{"key": "none", "operator": "NotIn", "values": ["db"]}]}), true);
        check(json!({"matchExpressions": [{"key": "none", "operator": "Exists"}]}), false);
        check(json!({"matchExpressions": [{"key": "none", "operator": "DoesNotExist"}]}), true);
        assert!(!selects(None, Some(&have)));
        assert!(selects(Some(&LabelSelector::default()), None));
    }

    #[test]
    fn node_selector_terms() {
        let node: Node = serde_json::from_value(
            json!({"metadata": {"name": "n1", "labels": {"cores": "8", "zone": "a"}}}),
        )
        .unwrap();
        let check = |term: Value, want: bool| {
            let parsed: NodeSelectorTerm = serde_json::from_value(term.clone()).unwrap();
            assert_eq!(term_admits(&parsed, &node), want, "{term}");
        };
        check(json!({}), false);
        check(json!({"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a", "b"]}]}), true);
        check(json!({"matchExpressions": [{"key": "cores", "operator": "Gt", "values": ["4"]}]}), true);
        check(json!({"matchExpressions": [{"key": "cores", "operator": "Lt", "values": ["8"]}]}), false);
        check(json!({"matchExpressions": [{"key": "zone", "operator": "Gt", "values": ["8"]}]}), false);
        check(json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}), true);
        check(
            json!({"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["n1"]}]}),
            false,
        );
    }
}
