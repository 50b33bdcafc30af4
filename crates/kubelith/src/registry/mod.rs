//! Which kinds are served, under which path, and where their objects are stored.
//!
//! A registry is an immutable snapshot: built-in kinds plus those of established
//! CustomResourceDefinitions. A change of a definition makes a new snapshot.

mod events;

use crate::store::Object;
use holdfast_apimachinery::{crd::Compiled, kind::Kind};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::Arc;

/// A kind in one version together with its place in the store.
#[derive(Debug)]
pub struct Served {
    /// Names, schema, strategy.
    pub kind: Arc<Kind>,
    /// Storage name, shared by all versions (and by the two Event groups).
    pub storage: Arc<str>,
    /// `apiVersion` objects are stored with.
    pub stored_as: Arc<str>,
    /// `apiVersion` of this endpoint.
    pub api_version: Arc<str>,
    /// Name of the CustomResourceDefinition behind it.
    pub definition: Option<Arc<str>>,
    /// Objects written before this revision may lack defaults the definition has gained since.
    pub defaults_since: u64,
}

impl Served {
    fn builtin(kind: Arc<Kind>) -> Self {
        let api_version: Arc<str> = kind.api_version().into();
        let (storage, stored_as) = if events::is_event(&kind) {
            ("events".into(), "v1".into())
        } else {
            (kind.group_resource().to_string().into(), api_version.clone())
        };
        Self { kind, storage, stored_as, api_version, definition: None, defaults_since: 0 }
    }

    fn custom(kind: Arc<Kind>, definition: &Definition) -> Self {
        Self {
            storage: kind.group_resource().to_string().into(),
            stored_as: format!("{}/{}", kind.group, definition.compiled.storage_version).into(),
            api_version: kind.api_version().into(),
            definition: Some(definition.name.clone()),
            defaults_since: definition.rev,
            kind,
        }
    }

    fn is_storage_version(&self) -> bool {
        self.api_version == self.stored_as
    }

    /// Whether the stored text can be sent as it is.
    pub fn is_verbatim(&self, object: &Object) -> bool {
        self.is_storage_version() && object.rev >= self.defaults_since
    }

    /// A stored object as this endpoint shows it: in its version, with the defaults of today (KS 11.3).
    pub fn read(&self, object: &Object) -> Value {
        let mut value = self.served_form(object.value());
        if object.rev < self.defaults_since {
            self.kind.default(&mut value);
        }
        value
    }

    fn served_form(&self, mut value: Value) -> Value {
        if !self.is_storage_version() {
            if events::is_event(&self.kind) {
                value = events::to_new(value);
            }
            value["apiVersion"] = Value::from(&*self.api_version);
        }
        value
    }

    /// An object of this endpoint in the version it is stored with.
    pub fn to_storage(&self, mut value: Value) -> Value {
        if !self.is_storage_version() {
            if events::is_event(&self.kind) {
                value = events::to_old(value);
            }
            value["apiVersion"] = Value::from(&*self.stored_as);
        }
        value
    }

    /// Whether this is the built-in kind `group`/`plural`.
    pub fn is(&self, group: &str, plural: &str) -> bool {
        self.kind.plural == plural && self.kind.group == group
    }
}

/// An established CustomResourceDefinition.
#[derive(Debug)]
pub struct Definition {
    /// Name.
    pub name: Arc<str>,
    /// Revision of its last change.
    pub rev: u64,
    /// Its kinds.
    pub compiled: Compiled,
}

/// A served group with its versions, in discovery order.
#[derive(Debug)]
pub struct Group {
    /// Name, empty for core.
    pub name: String,
    /// Versions, preferred first.
    pub versions: Vec<Version>,
}

/// A served version of a group.
#[derive(Debug)]
pub struct Version {
    /// Name.
    pub name: String,
    /// Kinds in discovery order.
    pub kinds: Vec<Arc<Served>>,
}

/// A snapshot of everything served.
#[derive(Debug)]
pub struct Registry {
    /// Number of the snapshot; grows.
    pub generation: u64,
    /// Groups in discovery order, core first.
    pub groups: Vec<Group>,
    by_path: HashMap<(String, String, String), Arc<Served>>,
}

impl Registry {
    /// Builds the snapshot of the built-in kinds and these definitions.
    pub fn build(generation: u64, definitions: &[Arc<Definition>]) -> Self {
        let mut all: Vec<Arc<Served>> = holdfast_apimachinery::kind::builtins()
            .into_iter()
            .map(|kind| Arc::new(Served::builtin(kind)))
            .collect();
        for definition in definitions {
            let kinds = definition.compiled.served.iter();
            all.extend(kinds.map(|kind| Arc::new(Served::custom(kind.clone(), definition))));
        }
        let mut groups: Vec<Group> = Vec::new();
        let mut by_path = HashMap::new();
        for served in all {
            let kind = &served.kind;
            by_path.insert((kind.group.clone(), kind.version.clone(), kind.plural.clone()), served.clone());
            let group = find_or_insert(
                &mut groups,
                |g| g.name == kind.group,
                || Group { name: kind.group.clone(), versions: Vec::new() },
            );
            let version = find_or_insert(
                &mut group.versions,
                |v| v.name == kind.version,
                || Version { name: kind.version.clone(), kinds: Vec::new() },
            );
            version.kinds.push(served.clone());
        }
        for group in &mut groups {
            group.versions.sort_by_key(|v| std::cmp::Reverse(version_rank(&v.name)));
        }
        groups.sort_by(|a, b| {
            group_priority(&b.name).cmp(&group_priority(&a.name)).then_with(|| a.name.cmp(&b.name))
        });
        Self { generation, groups, by_path }
    }

    /// The kind served at that path.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Served>> {
        self.by_path.get(&(group.to_owned(), version.to_owned(), plural.to_owned()))
    }

    /// The kind of that group and plural in its preferred version.
    pub fn preferred(&self, group: &str, plural: &str) -> Option<&Arc<Served>> {
        let group = self.groups.iter().find(|g| g.name == group)?;
        group.versions.iter().find_map(|v| v.kinds.iter().find(|s| s.kind.plural == plural))
    }

    /// Whether the group-version is served.
    pub fn has_version(&self, group: &str, version: &str) -> bool {
        self.groups.iter().any(|g| g.name == group && g.versions.iter().any(|v| v.name == version))
    }

    /// One entry for each kind, in its preferred version.
    pub fn kinds(&self) -> impl Iterator<Item = &Arc<Served>> {
        self.groups.iter().flat_map(|g| {
            g.versions.iter().enumerate().flat_map(move |(i, v)| {
                v.kinds.iter().filter(move |s| {
                    !g.versions[..i]
                        .iter()
                        .any(|earlier| earlier.kinds.iter().any(|e| e.kind.plural == s.kind.plural))
                })
            })
        })
    }
}

fn find_or_insert<T>(list: &mut Vec<T>, is: impl Fn(&T) -> bool, make: impl FnOnce() -> T) -> &mut T {
    let at = list.iter().position(is).unwrap_or_else(|| {
        list.push(make());
        list.len() - 1
    });
    &mut list[at]
}

/// Priority of a group in discovery (KS 4): kubectl resolves an ambiguous word to the first group.
pub(crate) fn group_priority(group: &str) -> u32 {
    match group {
        "" => 18000,
        "events.k8s.io" => 17750,
        "authentication.k8s.io" => 17700,
        "authorization.k8s.io" => 17600,
        "policy" => 17100,
        "rbac.authorization.k8s.io" => 17000,
        "storage.k8s.io" => 16800,
        "apiextensions.k8s.io" | "admissionregistration.k8s.io" => 16700,
        "scheduling.k8s.io" => 16600,
        "coordination.k8s.io" => 16500,
        "discovery.k8s.io" => 16200,
        g if g.starts_with("subresources.") => 999,
        _ => 1000,
    }
}

/// Kubernetes version order: stable before beta before alpha, higher numbers first; others last by name.
pub(crate) fn version_rank(version: &str) -> (u8, u32, u32) {
    let Some(rest) = version.strip_prefix('v') else { return (0, 0, 0) };
    let digits = rest.chars().take_while(char::is_ascii_digit).count();
    let Ok(major) = rest[..digits].parse() else { return (0, 0, 0) };
    let tail = &rest[digits..];
    if tail.is_empty() {
        return (3, major, 0);
    }
    for (stage, rank) in [("beta", 2), ("alpha", 1)] {
        if let Some(minor) = tail.strip_prefix(stage).and_then(|n| n.parse().ok()) {
            return (rank, major, minor);
        }
    }
    (0, 0, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_follow_the_kubernetes_order() {
        let mut versions = ["v1alpha2", "v1", "v2beta1", "foo", "v1alpha3", "v2", "v1beta1"];
        versions.sort_by_key(|v| std::cmp::Reverse(version_rank(v)));
        assert_eq!(versions, ["v2", "v1", "v2beta1", "v1beta1", "v1alpha3", "v1alpha2", "foo"]);
    }
}
