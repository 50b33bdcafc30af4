//! Pod affinity and anti-affinity, in both directions: what the pod asks for and what placed pods ask.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_apimachinery::labels::{self, Labels};
use k8s_openapi::api::core::v1::{Pod, PodAffinityTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

use super::snapshot::{Cluster, NodeInfo};

const AFFINITY: &str = "node(s) didn't match pod affinity rules";
const ANTI_AFFINITY: &str = "node(s) didn't match pod anti-affinity rules";
const EXISTING: &str = "node(s) didn't satisfy existing pods anti-affinity rules";

/// A term with its selector completed for the pod that carries it.
#[derive(Clone, Debug)]
pub(crate) struct Term<'a> {
    term: &'a PodAffinityTerm,
    selector: Option<LabelSelector>,
    /// Namespace of the pod that carries the term.
    home: String,
}

impl<'a> Term<'a> {
    pub(crate) fn new(owner: &Pod, term: &'a PodAffinityTerm) -> Self {
        Self {
            selector: complete(owner, term),
            home: owner.metadata.namespace.clone().unwrap_or_default(),
            term,
        }
    }

    pub(crate) fn key(&self) -> &'a str {
        &self.term.topology_key
    }

    /// Whether the term speaks of `pod`.
    pub(crate) fn selects(&self, pod: &Pod, namespaces: &BTreeMap<String, Labels>) -> bool {
        let space = pod.metadata.namespace.as_deref().unwrap_or_default();
        let listed = self.term.namespaces.iter().flatten().any(|n| n == space);
        let unrestricted =
            self.term.namespaces.as_ref().is_none_or(Vec::is_empty) && self.term.namespace_selector.is_none();
        let in_scope = listed
            || (unrestricted && space == self.home)
            || self
                .term
                .namespace_selector
                .as_ref()
                .is_some_and(|s| labels::selects(Some(s), namespaces.get(space)));
        in_scope && labels::selects(self.selector.as_ref(), pod.metadata.labels.as_ref())
    }
}

/// The term's selector with `matchLabelKeys` and `mismatchLabelKeys` of its owner worked in.
fn complete(owner: &Pod, term: &PodAffinityTerm) -> Option<LabelSelector> {
    let mut selector = term.label_selector.clone()?;
    let labels = owner.metadata.labels.as_ref();
    let keyed = [(&term.match_label_keys, "In"), (&term.mismatch_label_keys, "NotIn")];
    for (keys, operator) in keyed {
        for key in keys.iter().flatten() {
            if let Some(value) = labels.and_then(|l| l.get(key)) {
                selector.match_expressions.get_or_insert_default().push(LabelSelectorRequirement {
                    key: key.clone(),
                    operator: operator.to_owned(),
                    values: Some(vec![value.clone()]),
                });
            }
        }
    }
    Some(selector)
}

/// Required affinity terms of a pod.
pub(crate) fn affinity_terms(pod: &Pod) -> &[PodAffinityTerm] {
    pod.spec
        .as_ref()
        .and_then(|s| {
            s.affinity
                .as_ref()?
                .pod_affinity
                .as_ref()?
                .required_during_scheduling_ignored_during_execution
                .as_deref()
        })
        .unwrap_or_default()
}

fn anti_affinity_terms(pod: &Pod) -> &[PodAffinityTerm] {
    pod.spec
        .as_ref()
        .and_then(|s| {
            s.affinity
                .as_ref()?
                .pod_anti_affinity
                .as_ref()?
                .required_during_scheduling_ignored_during_execution
                .as_deref()
        })
        .unwrap_or_default()
}

/// The required rules about one pod, worked out against the cluster.
#[derive(Debug)]
pub(crate) struct Required<'a> {
    /// Per affinity term: topology key and the domains where all terms' pods are.
    wanted: Vec<(&'a str, BTreeSet<String>)>,
    /// First pod of its group: no pod matches anywhere and the pod matches its own terms.
    is_first: bool,
    /// Per anti-affinity term: topology key and the domains to stay out of.
    unwanted: Vec<(&'a str, BTreeSet<String>)>,
    /// (topology key, domain) that anti-affinity of placed pods closes for this pod.
    closed: BTreeSet<(String, String)>,
}

impl<'a> Required<'a> {
    pub(crate) fn new(pod: &'a Pod, cluster: &'a Cluster) -> Self {
        let terms: Vec<Term<'a>> = affinity_terms(pod).iter().map(|t| Term::new(pod, t)).collect();
        let matches_all = |other: &Pod| terms.iter().all(|t| t.selects(other, &cluster.namespaces));
        let wanted: Vec<(&str, BTreeSet<String>)> = terms
            .iter()
            .map(|term| (term.key(), domains(cluster, term.key(), |other| matches_all(other))))
            .collect();
        let is_first = !terms.is_empty() && wanted.iter().all(|(_, d)| d.is_empty()) && matches_all(pod);
        let unwanted = anti_affinity_terms(pod)
            .iter()
            .map(|term| {
                let term = Term::new(pod, term);
                let found = domains(cluster, term.key(), |other| term.selects(other, &cluster.namespaces));
                (term.key(), found)
            })
            .collect();
        Self { wanted, is_first, unwanted, closed: closed(pod, cluster) }
    }

    /// Why the node does not suit, if it does not.
    pub(crate) fn refusal(&self, info: &NodeInfo) -> Option<&'static str> {
        let met = |(key, domains): &(&str, BTreeSet<String>)| match info.label(key) {
            Some(value) => self.is_first || domains.contains(value),
            None => false,
        };
        if !self.wanted.iter().all(met) {
            return Some(AFFINITY);
        }
        let hit =
            |(key, domains): &(&str, BTreeSet<String>)| info.label(key).is_some_and(|v| domains.contains(v));
        if self.unwanted.iter().any(hit) {
            return Some(ANTI_AFFINITY);
        }
        let shut = self.closed.iter().any(|(key, domain)| info.label(key) == Some(domain.as_str()));
        shut.then_some(EXISTING)
    }
}

/// Topology domains in which a placed pod satisfies `matches`.
fn domains(cluster: &Cluster, key: &str, matches: impl Fn(&Pod) -> bool) -> BTreeSet<String> {
    cluster
        .placed()
        .filter(|(_, other)| matches(other))
        .filter_map(|(info, _)| info.label(key).map(str::to_owned))
        .collect()
}

fn closed(pod: &Pod, cluster: &Cluster) -> BTreeSet<(String, String)> {
    let mut closed = BTreeSet::new();
    for (info, other) in cluster.ruled() {
        for term in anti_affinity_terms(other) {
            let term = Term::new(other, term);
            if let Some(domain) = info.label(term.key())
                && term.selects(pod, &cluster.namespaces)
            {
                closed.insert((term.key().to_owned(), domain.to_owned()));
            }
        }
    }
    closed
}

/// Sum of preferred terms per (topology key, domain): the pod's own, those of placed pods about it, and
/// 1 for each required affinity term of a placed pod that selects it.
pub(crate) fn preferences(pod: &Pod, cluster: &Cluster) -> BTreeMap<(String, String), i64> {
    let mut sums = BTreeMap::new();
    let own = preferred(pod);
    let others: Box<dyn Iterator<Item = _>> =
        if own.is_empty() { Box::new(cluster.ruled()) } else { Box::new(cluster.placed()) };
    for (info, other) in others {
        let mut note = |owner: &Pod, about: &Pod, term: &PodAffinityTerm, weight: i64| {
            let term = Term::new(owner, term);
            if let Some(domain) = info.label(term.key())
                && term.selects(about, &cluster.namespaces)
            {
                *sums.entry((term.key().to_owned(), domain.to_owned())).or_insert(0) += weight;
            }
        };
        for (term, weight) in own.iter().copied() {
            note(pod, other, term, weight);
        }
        for (term, weight) in preferred(other) {
            note(other, pod, term, weight);
        }
        for term in affinity_terms(other) {
            note(other, pod, term, 1);
        }
    }
    sums
}

/// Preferred terms with their weight; anti-affinity counts negative.
fn preferred(pod: &Pod) -> Vec<(&PodAffinityTerm, i64)> {
    let Some(affinity) = pod.spec.as_ref().and_then(|s| s.affinity.as_ref()) else {
        return Vec::new();
    };
    let attract = affinity
        .pod_affinity
        .iter()
        .flat_map(|a| a.preferred_during_scheduling_ignored_during_execution.iter().flatten());
    let repel = affinity
        .pod_anti_affinity
        .iter()
        .flat_map(|a| a.preferred_during_scheduling_ignored_during_execution.iter().flatten());
    attract
        .map(|t| (&t.pod_affinity_term, i64::from(t.weight)))
        .chain(repel.map(|t| (&t.pod_affinity_term, -i64::from(t.weight))))
        .collect()
}
