//! What garbage collection does, decided from the graph of all objects and what the API said about
//! owners the graph does not have.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::PropagationPolicy;

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

/// An object as far as ownership goes.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    /// Index into the caller's list of kinds.
    pub(crate) kind: usize,
    pub(crate) namespace: Option<String>,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) version: String,
    pub(crate) deleting: bool,
    pub(crate) finalizers: Vec<String>,
    pub(crate) owners: Vec<OwnerReference>,
}

impl Item {
    fn has(&self, finalizer: &str) -> bool {
        self.finalizers.iter().any(|f| f == finalizer)
    }

    fn deletes_dependents(&self) -> bool {
        self.deleting && self.has(FOREGROUND)
    }
}

/// An owner as a dependent names it, in the dependent's namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OwnerKey {
    pub(crate) uid: String,
    pub(crate) api_version: String,
    pub(crate) kind: String,
    pub(crate) namespace: Option<String>,
    pub(crate) name: String,
}

/// What the API said about an owner that the graph does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fact {
    /// It does not exist, or has another uid, or is in another namespace.
    Absent,
    /// It exists; the caches are behind.
    Present,
    /// Its kind is not served, so nobody can say.
    UnknownKind,
}

/// One write; `item` indexes the graph.
#[derive(Debug)]
pub(crate) enum Act {
    Delete {
        item: usize,
        policy: PropagationPolicy,
    },
    /// Remove the references to these uids.
    Strip {
        item: usize,
        owners: BTreeSet<String>,
    },
    DropFinalizer {
        item: usize,
        finalizer: &'static str,
    },
    /// Tell users that an owner reference crosses namespaces.
    WarnNamespace {
        item: usize,
        owner: String,
    },
}

impl Act {
    pub(crate) fn item(&self) -> usize {
        match self {
            Self::Delete { item, .. }
            | Self::Strip { item, .. }
            | Self::DropFinalizer { item, .. }
            | Self::WarnNamespace { item, .. } => *item,
        }
    }
}

/// All objects by uid, with who depends on whom.
#[derive(Debug)]
pub(crate) struct Graph {
    items: Vec<Item>,
    by_uid: BTreeMap<String, usize>,
    dependents: BTreeMap<String, Vec<usize>>,
}

impl Graph {
    pub(crate) fn new(mut items: Vec<Item>) -> Self {
        items.sort_by(|a, b| (a.kind, &a.namespace, &a.name).cmp(&(b.kind, &b.namespace, &b.name)));
        let by_uid = items.iter().enumerate().map(|(n, i)| (i.uid.clone(), n)).collect();
        let mut dependents: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (n, item) in items.iter().enumerate() {
            for owner in &item.owners {
                dependents.entry(owner.uid.clone()).or_default().push(n);
            }
        }
        Self { items, by_uid, dependents }
    }

    pub(crate) fn item(&self, index: usize) -> &Item {
        &self.items[index]
    }

    /// The owner in the graph, if `item` may have it: cluster-scoped or of the same namespace.
    fn owner(&self, item: &Item, reference: &OwnerReference) -> Option<&Item> {
        let owner = &self.items[*self.by_uid.get(&reference.uid)?];
        (owner.namespace.is_none() || owner.namespace == item.namespace).then_some(owner)
    }

    /// Owners to ask the API about, before anything is deleted for want of them.
    pub(crate) fn questions(&self) -> BTreeSet<OwnerKey> {
        let mut questions = BTreeSet::new();
        for item in &self.items {
            for reference in &item.owners {
                if self.owner(item, reference).is_none() {
                    questions.insert(key(item, reference));
                }
            }
        }
        questions
    }

    /// The writes that follow. `facts` answers `questions`; what it lacks counts as unknown.
    pub(crate) fn plan(&self, facts: &BTreeMap<OwnerKey, Fact>) -> Vec<Act> {
        let mut acts = Vec::new();
        for (index, item) in self.items.iter().enumerate() {
            self.warn(index, item, &mut acts);
            self.plan_owner(index, item, &mut acts);
            self.plan_dependent(index, item, facts, &mut acts);
        }
        acts
    }

    fn warn(&self, index: usize, item: &Item, acts: &mut Vec<Act>) {
        for reference in &item.owners {
            let elsewhere = self.by_uid.contains_key(&reference.uid) && self.owner(item, reference).is_none();
            if elsewhere {
                let owner = format!(
                    "[{}/{}, name: {}, uid: {}]",
                    reference.api_version, reference.kind, reference.name, reference.uid
                );
                acts.push(Act::WarnNamespace { item: index, owner });
            }
        }
    }

    /// The object as an owner whose deletion waits for its dependents.
    fn plan_owner(&self, index: usize, item: &Item, acts: &mut Vec<Act>) {
        if !item.deleting {
            return;
        }
        let dependents = self.dependents.get(&item.uid).map(Vec::as_slice).unwrap_or_default();
        if item.has(FOREGROUND) {
            let blocked = dependents.iter().any(|d| {
                let owners = &self.items[*d].owners;
                owners.iter().any(|o| o.uid == item.uid && o.block_owner_deletion == Some(true))
            });
            if !blocked {
                acts.push(Act::DropFinalizer { item: index, finalizer: FOREGROUND });
            }
        } else if item.has(ORPHAN) {
            if dependents.is_empty() {
                acts.push(Act::DropFinalizer { item: index, finalizer: ORPHAN });
            }
            for dependent in dependents {
                acts.push(Act::Strip { item: *dependent, owners: BTreeSet::from([item.uid.clone()]) });
            }
        }
    }

    /// The object as a dependent.
    fn plan_dependent(
        &self,
        index: usize,
        item: &Item,
        facts: &BTreeMap<OwnerKey, Fact>,
        acts: &mut Vec<Act>,
    ) {
        if item.owners.is_empty() || item.deleting {
            return;
        }
        let mut solid = false;
        let mut waiting = BTreeSet::new();
        let mut dangling = BTreeSet::new();
        for reference in &item.owners {
            match self.owner(item, reference) {
                Some(owner) if owner.deletes_dependents() => {
                    waiting.insert(reference.uid.clone());
                }
                // Its dependents are about to be released.
                Some(_) => solid = true,
                None => match facts.get(&key(item, reference)) {
                    Some(Fact::Absent) => {
                        dangling.insert(reference.uid.clone());
                    }
                    Some(Fact::Present | Fact::UnknownKind) | None => solid = true,
                },
            }
        }
        if solid {
            let owners: BTreeSet<String> = dangling.union(&waiting).cloned().collect();
            if !owners.is_empty() {
                acts.push(Act::Strip { item: index, owners });
            }
            return;
        }
        let has_dependents = self.dependents.contains_key(&item.uid);
        let policy = if !waiting.is_empty() && has_dependents || item.has(FOREGROUND) {
            PropagationPolicy::Foreground
        } else if item.has(ORPHAN) {
            PropagationPolicy::Orphan
        } else {
            PropagationPolicy::Background
        };
        acts.push(Act::Delete { item: index, policy });
    }
}

fn key(item: &Item, reference: &OwnerReference) -> OwnerKey {
    OwnerKey {
        uid: reference.uid.clone(),
        api_version: reference.api_version.clone(),
        kind: reference.kind.clone(),
        namespace: item.namespace.clone(),
        name: reference.name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(name: &str) -> Item {
        Item {
            kind: 0,
            namespace: Some("ns".to_owned()),
            name: name.to_owned(),
            uid: format!("u-{name}"),
            version: "1".to_owned(),
            deleting: false,
            finalizers: Vec::new(),
            owners: Vec::new(),
        }
    }

    impl Item {
        fn owned_by(mut self, owner: &str) -> Self {
            self.owners.push(OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Thing".to_owned(),
                name: owner.to_owned(),
                uid: format!("u-{owner}"),
                controller: None,
                block_owner_deletion: None,
            });
            self
        }

        fn blocking(mut self) -> Self {
            self.owners.last_mut().unwrap().block_owner_deletion = Some(true);
            self
        }

        fn deleting(mut self, finalizer: &str) -> Self {
            self.deleting = true;
            self.finalizers.push(finalizer.to_owned());
            self
        }

        fn within(mut self, namespace: Option<&str>) -> Self {
            self.namespace = namespace.map(str::to_owned);
            self
        }
    }

    fn run(items: Vec<Item>, fact: Fact) -> Vec<String> {
        let graph = Graph::new(items);
        let facts = graph.questions().into_iter().map(|q| (q, fact)).collect();
        graph
            .plan(&facts)
            .into_iter()
            .map(|act| {
                let name = graph.item(act.item()).name.clone();
                match act {
                    Act::Delete { policy, .. } => format!("delete {name} {policy:?}"),
                    Act::Strip { owners, .. } => {
                        format!("strip {name} of {}", owners.into_iter().collect::<Vec<_>>().join("+"))
                    }
                    Act::DropFinalizer { finalizer, .. } => format!("drop {finalizer} of {name}"),
                    Act::WarnNamespace { .. } => format!("warn {name}"),
                }
            })
            .collect()
    }

    // KS-A49: background, foreground with blockOwnerDeletion, orphan, dangling uid, two owners,
    // cross-namespace owner.
    #[test]
    fn ownership_decides() {
        let none: [&str; 0] = [];
        assert_eq!(run(vec![item("a"), item("b").owned_by("a")], Fact::Absent), none);
        assert_eq!(run(vec![item("b").owned_by("a")], Fact::Absent), ["delete b Background"]);
        assert_eq!(run(vec![item("b").owned_by("a")], Fact::Present), none);
        assert_eq!(run(vec![item("b").owned_by("a")], Fact::UnknownKind), none);
        assert_eq!(run(vec![item("b").owned_by("a").deleting("x")], Fact::Absent), none);
        assert_eq!(
            run(vec![item("c"), item("b").owned_by("a").owned_by("c")], Fact::Absent),
            ["strip b of u-a"]
        );
        assert_eq!(
            run(
                vec![item("a").deleting("foregroundDeletion"), item("b").owned_by("a").blocking()],
                Fact::Absent
            ),
            ["delete b Background"]
        );
        assert_eq!(
            run(vec![item("a").deleting("foregroundDeletion"), item("b").owned_by("a")], Fact::Absent),
            ["drop foregroundDeletion of a", "delete b Background"]
        );
        assert_eq!(
            run(
                vec![
                    item("a").deleting("foregroundDeletion"),
                    item("b").owned_by("a").blocking(),
                    item("c").owned_by("b")
                ],
                Fact::Absent
            ),
            ["delete b Foreground"]
        );
        assert_eq!(
            run(vec![item("a").deleting("foregroundDeletion")], Fact::Absent),
            ["drop foregroundDeletion of a"]
        );
        assert_eq!(
            run(vec![item("a").deleting("orphan"), item("b").owned_by("a")], Fact::Absent),
            ["strip b of u-a"]
        );
        assert_eq!(run(vec![item("a").deleting("orphan")], Fact::Absent), ["drop orphan of a"]);
        assert_eq!(
            run(vec![item("a").within(Some("other")), item("b").owned_by("a")], Fact::Absent),
            ["warn b", "delete b Background"]
        );
        assert_eq!(run(vec![item("a").within(None), item("b").owned_by("a")], Fact::Absent), none);
        // A namespaced owner of a cluster-scoped object is never resolved and nothing is deleted.
        assert_eq!(run(vec![item("a"), item("b").owned_by("a").within(None)], Fact::UnknownKind), ["warn b"]);
    }

    #[test]
    fn an_orphan_finalizer_on_the_dependent_is_honoured() {
        let mut dependent = item("b").owned_by("a");
        dependent.finalizers.push("orphan".to_owned());
        assert_eq!(run(vec![dependent], Fact::Absent), ["delete b Orphan"]);
    }
}
