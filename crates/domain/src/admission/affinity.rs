//! Structural rules of placement (api.md A1.2a, A1.2b), with the path of the field at fault.

use std::collections::BTreeSet;

use holdfast_api::vm::{VirtualMachineSpec, VmPodAffinity};
use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, PodAffinityTerm};

use super::operation::{check_label, is_name_part};

/// The first fault of a VM's placement.
pub(super) fn check(spec: &VirtualMachineSpec) -> Result<(), String> {
    for (key, value) in spec.node_selector.iter().flatten() {
        check_label(key, value).map_err(|text| format!("spec.nodeSelector: {text}"))?;
    }
    if let Some(affinity) = &spec.affinity {
        let path = "spec.affinity";
        if let Some(node) = &affinity.node_affinity {
            let field = format!(
                "{path}.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms"
            );
            if let Some(required) = &node.required_during_scheduling_ignored_during_execution {
                if required.node_selector_terms.is_empty() {
                    return Err(format!("{field}: must have at least one node selector term"));
                }
                for (n, term) in required.node_selector_terms.iter().enumerate() {
                    node_term(term, &format!("{field}[{n}]"))?;
                }
            }
            let preferred = node.preferred_during_scheduling_ignored_during_execution.iter().flatten();
            for (n, preferred) in preferred.enumerate() {
                let field =
                    format!("{path}.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[{n}]");
                weight(preferred.weight, &field)?;
                node_term(&preferred.preference, &format!("{field}.preference"))?;
            }
        }
        for (rules, name) in [
            (&affinity.virtual_machine_and_pod_affinity, "virtualMachineAndPodAffinity"),
            (&affinity.virtual_machine_and_pod_anti_affinity, "virtualMachineAndPodAntiAffinity"),
        ] {
            if let Some(rules) = rules {
                neighbours(rules, &format!("{path}.{name}"))?;
            }
        }
    }
    spread(spec)
}

fn weight(weight: i32, field: &str) -> Result<(), String> {
    if (1..=100).contains(&weight) {
        Ok(())
    } else {
        Err(format!("{field}.weight: must be in the range 1-100"))
    }
}

fn node_term(term: &NodeSelectorTerm, field: &str) -> Result<(), String> {
    for (n, rule) in term.match_expressions.iter().flatten().enumerate() {
        let field = format!("{field}.matchExpressions[{n}]");
        check_label(&rule.key, "").map_err(|text| format!("{field}.key: {text}"))?;
        requirement(rule, &field)?;
    }
    for (n, rule) in term.match_fields.iter().flatten().enumerate() {
        let field = format!("{field}.matchFields[{n}]");
        if rule.key != "metadata.name" {
            return Err(format!("{field}.key: only metadata.name is supported, not {:?}", rule.key));
        }
        if !matches!(rule.operator.as_str(), "In" | "NotIn") {
            return Err(format!(
                "{field}.operator: only In and NotIn are supported, not {:?}",
                rule.operator
            ));
        }
        if rule.values.as_ref().is_none_or(|values| values.len() != 1) {
            return Err(format!("{field}.values: must have exactly one element"));
        }
    }
    Ok(())
}

fn requirement(rule: &NodeSelectorRequirement, field: &str) -> Result<(), String> {
    let values = rule.values.as_deref().unwrap_or_default();
    match rule.operator.as_str() {
        "In" | "NotIn" if values.is_empty() => {
            Err(format!("{field}.values: must be specified for {}", rule.operator))
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            Err(format!("{field}.values: may not be specified for {}", rule.operator))
        }
        "Gt" | "Lt" if values.len() != 1 || values[0].parse::<i64>().is_err() => {
            Err(format!("{field}.values: {} needs exactly one integer", rule.operator))
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => Ok(()),
        other => Err(format!("{field}.operator: {other:?} is not a valid selector operator")),
    }
}

fn neighbours(rules: &VmPodAffinity, field: &str) -> Result<(), String> {
    let required = rules.required_during_scheduling_ignored_during_execution.iter().flatten();
    for (n, term) in required.enumerate() {
        neighbour_term(term, &format!("{field}.requiredDuringSchedulingIgnoredDuringExecution[{n}]"))?;
    }
    let preferred = rules.preferred_during_scheduling_ignored_during_execution.iter().flatten();
    for (n, preferred) in preferred.enumerate() {
        let field = format!("{field}.preferredDuringSchedulingIgnoredDuringExecution[{n}]");
        weight(preferred.weight, &field)?;
        let field = format!("{field}.virtualMachineAndPodAffinityTerm");
        neighbour_term(&preferred.virtual_machine_and_pod_affinity_term, &field)?;
    }
    Ok(())
}

fn neighbour_term(term: &PodAffinityTerm, field: &str) -> Result<(), String> {
    if term.topology_key.is_empty() {
        return Err(format!("{field}.topologyKey: can not be empty"));
    }
    check_label(&term.topology_key, "").map_err(|text| format!("{field}.topologyKey: {text}"))?;
    for namespace in term.namespaces.iter().flatten() {
        if !is_name_part(namespace) {
            return Err(format!("{field}.namespaces: {namespace:?} is not a valid namespace name"));
        }
    }
    for (selector, name) in
        [(&term.label_selector, "labelSelector"), (&term.namespace_selector, "namespaceSelector")]
    {
        let rules = selector.iter().flat_map(|selector| selector.match_expressions.iter().flatten());
        for (n, rule) in rules.enumerate() {
            let values = rule.values.as_ref().is_some_and(|values| !values.is_empty());
            let fine = match rule.operator.as_str() {
                "In" | "NotIn" => values,
                "Exists" | "DoesNotExist" => !values,
                _ => false,
            };
            if !fine {
                return Err(format!(
                    "{field}.{name}.matchExpressions[{n}]: operator {:?} and values do not go together",
                    rule.operator
                ));
            }
        }
    }
    Ok(())
}

fn spread(spec: &VirtualMachineSpec) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for (n, constraint) in spec.topology_spread_constraints.iter().flatten().enumerate() {
        let field = format!("spec.topologySpreadConstraints[{n}]");
        check_label(&constraint.topology_key, "").map_err(|text| format!("{field}.topologyKey: {text}"))?;
        if !seen.insert((&constraint.topology_key, constraint.when_unsatisfiable)) {
            return Err(format!("{field}: the pair {{topologyKey, whenUnsatisfiable}} is given twice"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn check_json(spec: Value) -> String {
        let mut full = json!({"virtualMachineClassName": "c", "cpu": {"cores": 1}, "memory": {"size": "1Gi"}, "blockDeviceRefs": []});
        full.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        check(&serde_json::from_value(full).unwrap()).err().unwrap_or_default()
    }

    fn required(rule: Value) -> Value {
        json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [rule]}]}}}})
    }

    fn anti(term: Value) -> Value {
        json!({"affinity": {"virtualMachineAndPodAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}})
    }

    #[test]
    fn faults_are_named_with_their_path() {
        let spread =
            |key: &str| json!({"maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": "DoNotSchedule"});
        for (spec, expected) in [
            (required(json!({"key": "a", "operator": "In", "values": ["1"]})), ""),
            (
                required(json!({"key": "a", "operator": "In"})),
                "matchExpressions[0].values: must be specified for In",
            ),
            (
                required(json!({"key": "a", "operator": "Exists", "values": ["1"]})),
                "may not be specified for Exists",
            ),
            (required(json!({"key": "a", "operator": "Gt", "values": ["x"]})), "exactly one integer"),
            (required(json!({"key": "a", "operator": "Like"})), "not a valid selector operator"),
            (required(json!({"key": "a b", "operator": "Exists"})), "not a valid label key"),
            (anti(json!({"topologyKey": "kubernetes.io/hostname"})), ""),
            (
                anti(json!({"topologyKey": ""})),
                "spec.affinity.virtualMachineAndPodAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey: can not be empty",
            ),
            (anti(json!({"topologyKey": "z", "namespaces": ["A"]})), "not a valid namespace name"),
            (json!({"topologySpreadConstraints": [spread("zone"), spread("host")]}), ""),
            (json!({"topologySpreadConstraints": [spread("zone"), spread("zone")]}), "given twice"),
            (json!({"nodeSelector": {"a": "b c"}}), "spec.nodeSelector: \"b c\" is not a valid label value"),
            (
                json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}}}),
                "at least one",
            ),
        ] {
            let found = check_json(spec);
            assert!(
                if expected.is_empty() { found.is_empty() } else { found.contains(expected) },
                "{found:?} {expected:?}"
            );
        }
    }
}
