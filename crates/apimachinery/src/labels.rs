//! Selectors as typed objects carry them: label selectors and node selector terms. The API server's own, on
//! requests and on objects as JSON, are in [`crate::selector`].

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// Labels of an object; a missing map is an empty one.
pub type Labels = BTreeMap<String, String>;

/// Whether `selector` selects `labels`. `None` selects nothing, an empty selector everything.
#[must_use]
pub fn selects(selector: Option<&LabelSelector>, labels: Option<&Labels>) -> bool {
    let Some(selector) = selector else { return false };
    let value = |key: &str| labels?.get(key).map(String::as_str);
    selector.match_labels.iter().flatten().all(|(key, wanted)| value(key) == Some(wanted))
        && selector.match_expressions.iter().flatten().all(|rule| {
            let operator = rule.operator.as_str();
            // Numbers are compared in node selectors only.
            !matches!(operator, "Gt" | "Lt")
                && holds(operator, rule.values.as_deref().unwrap_or_default(), value(&rule.key))
        })
}

/// Whether a required node selector admits a node: one term suffices.
#[must_use]
pub fn admits(selector: &NodeSelector, name: &str, labels: Option<&Labels>) -> bool {
    selector.node_selector_terms.iter().any(|term| term_admits(term, name, labels))
}

/// Whether every requirement of a term holds on a node; an empty term admits none.
#[must_use]
pub fn term_admits(term: &NodeSelectorTerm, name: &str, labels: Option<&Labels>) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let holds = |rule: &NodeSelectorRequirement, found| {
        holds(&rule.operator, rule.values.as_deref().unwrap_or_default(), found)
    };
    let label = |key: &str| labels?.get(key).map(String::as_str);
    expressions.iter().all(|rule| holds(rule, label(&rule.key)))
        && fields.iter().all(|rule| rule.key == "metadata.name" && holds(rule, Some(name)))
}

fn holds(operator: &str, values: &[String], found: Option<&str>) -> bool {
    let listed = found.is_some_and(|found| values.iter().any(|value| value == found));
    let numbers = || {
        let found: i64 = found?.parse().ok()?;
        let limit: i64 = values.first()?.parse().ok()?;
        Some((found, limit))
    };
    match operator {
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
        check(json!({"matchExpressions": [{"key": "app", "operator": "Nonsense"}]}), false);
        check(json!({"matchExpressions": [{"key": "tier", "operator": "Gt", "values": ["1"]}]}), false);
        assert!(!selects(None, Some(&have)));
        assert!(selects(Some(&LabelSelector::default()), None));
    }

    #[test]
    fn node_selector_terms() {
        let have = labels(&[("cores", "8"), ("zone", "a")]);
        let check = |term: Value, want: bool| {
            let parsed: NodeSelectorTerm = serde_json::from_value(term.clone()).unwrap();
            assert_eq!(term_admits(&parsed, "n1", Some(&have)), want, "{term}");
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
        check(json!({"matchFields": [{"key": "spec.podCIDR", "operator": "DoesNotExist"}]}), false);
    }
}
