//! Required rules of a placement about other VMs and pods, as the scheduler reads them
//! (migration-and-maintenance.md §10 #3). Preferred rules never count.

use std::collections::BTreeMap;

use holdfast_api::engine::Placement;
use holdfast_apimachinery::labels::{Labels, selects};
use k8s_openapi::api::core::v1::PodAffinityTerm;

/// A pod that is not ours and has a node.
#[derive(Clone, Copy, Debug)]
pub struct Neighbour<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its labels.
    pub labels: &'a Labels,
    /// Labels of its node.
    pub node: &'a Labels,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'a> {
    /// Namespace of the VM.
    pub namespace: &'a str,
    /// Labels of the VM.
    pub labels: &'a Labels,
    /// Labels of the node in question.
    pub node: &'a Labels,
}

fn attracting(placement: &Placement) -> &[PodAffinityTerm] {
    let rules = placement.affinity.as_ref().and_then(|affinity| affinity.pod_affinity.as_ref());
    rules.and_then(|r| r.required_during_scheduling_ignored_during_execution.as_deref()).unwrap_or_default()
}

fn repelling(placement: &Placement) -> &[PodAffinityTerm] {
    let rules = placement.affinity.as_ref().and_then(|affinity| affinity.pod_anti_affinity.as_ref());
    rules.and_then(|r| r.required_during_scheduling_ignored_during_execution.as_deref()).unwrap_or_default()
}

/// Whether a placement has required rules about other VMs and pods.
#[must_use]
pub fn has_rules(placement: &Placement) -> bool {
    !attracting(placement).is_empty() || !repelling(placement).is_empty()
}

/// Whether a VM may be on its node, given all other pods that have not finished. `namespaces`: the
/// labels of each namespace.
#[must_use]
pub fn allow(
    placement: &Placement,
    asker: Asker<'_>,
    others: &[Neighbour<'_>],
    namespaces: &BTreeMap<String, Labels>,
) -> bool {
    let matches = |term: &PodAffinityTerm, namespace: &str, labels: &Labels| {
        in_namespaces(term, asker.namespace, namespace, namespaces)
            && selects(term.label_selector.as_ref(), Some(labels))
    };
    let here = |term: &PodAffinityTerm, other: &Neighbour<'_>| {
        let domain = asker.node.get(&term.topology_key);
        domain.is_some() && domain == other.node.get(&term.topology_key)
    };
    let kept_away =
        |term| others.iter().any(|other| here(term, other) && matches(term, other.namespace, other.labels));
    if repelling(placement).iter().any(kept_away) {
        return false;
    }
    attracting(placement).iter().all(|term| {
        let like = || others.iter().filter(|other| matches(term, other.namespace, other.labels));
        // The first of a group that attracts itself may be anywhere.
        let first = like().next().is_none() && matches(term, asker.namespace, asker.labels);
        first && asker.node.contains_key(&term.topology_key) || like().any(|other| here(term, other))
    })
}

fn in_namespaces(
    term: &PodAffinityTerm,
    own: &str,
    namespace: &str,
    namespaces: &BTreeMap<String, Labels>,
) -> bool {
    let named = term.namespaces.as_deref().unwrap_or_default();
    match &term.namespace_selector {
        None if named.is_empty() => namespace == own,
        None => named.iter().any(|name| name == namespace),
        selector @ Some(_) => {
            named.iter().any(|name| name == namespace)
                || selects(selector.as_ref(), namespaces.get(namespace))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{Affinity, PodAffinity, PodAntiAffinity};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn term(topology_key: &str, app: &str) -> PodAffinityTerm {
        PodAffinityTerm {
            topology_key: topology_key.into(),
            label_selector: Some(LabelSelector {
                match_labels: Some(labels(&[("app", app)])),
                ..LabelSelector::default()
            }),
            ..PodAffinityTerm::default()
        }
    }

    fn placement(join: Vec<PodAffinityTerm>, avoid: Vec<PodAffinityTerm>) -> Placement {
        let join = PodAffinity {
            required_during_scheduling_ignored_during_execution: Some(join),
            ..PodAffinity::default()
        };
        let avoid = PodAntiAffinity {
            required_during_scheduling_ignored_during_execution: Some(avoid),
            ..PodAntiAffinity::default()
        };
        let affinity =
            Affinity { pod_affinity: Some(join), pod_anti_affinity: Some(avoid), ..Affinity::default() };
        Placement { affinity: Some(affinity), ..Placement::default() }
    }

    /// May VM `app=web` be on n1 in zone a, when `app=db` runs at `db` = (node, zone)?
    fn may(placement: &Placement, db: Option<(&str, &str)>) -> bool {
        let here = labels(&[("kubernetes.io/hostname", "n1"), ("zone", "a")]);
        let there = db.map(|(node, zone)| labels(&[("kubernetes.io/hostname", node), ("zone", zone)]));
        let (web, app) = (labels(&[("app", "web")]), labels(&[("app", "db")]));
        let others: Vec<Neighbour<'_>> =
            there.iter().map(|node| Neighbour { namespace: "shop", labels: &app, node }).collect();
        let asker = Asker { namespace: "shop", labels: &web, node: &here };
        allow(placement, asker, &others, &BTreeMap::new())
    }

    #[test]
    fn required_rules_are_read_by_domain() {
        let host = "kubernetes.io/hostname";
        let avoid = |key: &str| placement(vec![], vec![term(key, "db")]);
        let join = |key: &str, app: &str| placement(vec![term(key, app)], vec![]);
        for (what, placement, db, want) in [
            ("no rule", placement(vec![], vec![]), Some(("n1", "a")), true),
            ("avoids its node", avoid(host), Some(("n1", "a")), false),
            ("another node", avoid(host), Some(("n2", "a")), true),
            ("avoids its zone", avoid("zone"), Some(("n2", "a")), false),
            ("another zone", avoid("zone"), Some(("n2", "b")), true),
            ("the node has no such label", avoid("rack"), Some(("n1", "a")), true),
            ("joins its node", join(host, "db"), Some(("n1", "a")), true),
            ("it is elsewhere", join(host, "db"), Some(("n2", "a")), false),
            ("joins its zone", join("zone", "db"), Some(("n2", "a")), true),
            ("nobody to join", join(host, "db"), None, false),
            ("the first of its own group", join(host, "web"), None, true),
        ] {
            assert_eq!(may(&placement, db), want, "{what}");
        }
        assert!(!has_rules(&Placement::default()));
        assert!(has_rules(&avoid(host)) && has_rules(&join(host, "db")));
    }

    #[test]
    fn namespaces_are_named_or_selected() {
        let others = |term: &PodAffinityTerm, namespace: &str| {
            let all = BTreeMap::from([("prod".to_owned(), labels(&[("stage", "prod")]))]);
            in_namespaces(term, "shop", namespace, &all)
        };
        let own = term("zone", "db");
        assert!(others(&own, "shop") && !others(&own, "prod"));
        let named = PodAffinityTerm { namespaces: Some(vec!["prod".into()]), ..term("zone", "db") };
        assert!(!others(&named, "shop") && others(&named, "prod"));
        let all =
            PodAffinityTerm { namespace_selector: Some(LabelSelector::default()), ..term("zone", "db") };
        assert!(others(&all, "shop") && others(&all, "prod"));
        let selector =
            LabelSelector { match_labels: Some(labels(&[("stage", "prod")])), ..LabelSelector::default() };
        let selected = PodAffinityTerm { namespace_selector: Some(selector), ..term("zone", "db") };
        assert!(!others(&selected, "shop") && others(&selected, "prod"));
    }
}
