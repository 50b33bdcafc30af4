//! Role-based access control: a real evaluator over the stored roles and bindings (KS 14.2).

use super::user::UserInfo;
use crate::core::Core;
use crate::store::Object;
use holdfast_apimachinery::selector::LabelSelector;
use parking_lot::Mutex;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::Arc;

/// Storage names the evaluator reads.
const SOURCES: [&str; 4] = [
    "clusterroles.rbac.authorization.k8s.io",
    "clusterrolebindings.rbac.authorization.k8s.io",
    "roles.rbac.authorization.k8s.io",
    "rolebindings.rbac.authorization.k8s.io",
];

/// What somebody wants to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes<'a> {
    /// Verb.
    pub verb: &'a str,
    /// Group.
    pub group: &'a str,
    /// Resource, empty for a path.
    pub resource: &'a str,
    /// Subresource.
    pub subresource: &'a str,
    /// Name.
    pub name: &'a str,
    /// Namespace, empty for cluster scope.
    pub namespace: &'a str,
    /// Path, for requests that are no resources.
    pub path: &'a str,
}

/// Answer of the evaluator; the reason says which binding allows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Allowed, with the reason.
    Allow(String),
    /// Nothing allows it.
    Deny,
}

/// One rule of a role.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourceRule {
    /// Verbs.
    pub verbs: Vec<String>,
    /// Groups.
    pub groups: Vec<String>,
    /// Resources, `res/sub` for subresources.
    pub resources: Vec<String>,
    /// Names; empty means all.
    pub names: Vec<String>,
    /// Paths.
    pub paths: Vec<String>,
}

/// The rules that hold for one user in one namespace.
pub type RuleSet = Vec<ResourceRule>;

struct Binding {
    namespace: String,
    name: String,
    /// `Kind`, name of the role.
    role: (String, String),
    subjects: Vec<Subject>,
}

struct Subject {
    kind: String,
    name: String,
    namespace: String,
}

#[derive(Default)]
struct Compiled {
    revs: Option<[u64; 4]>,
    cluster_roles: HashMap<String, Vec<ResourceRule>>,
    roles: HashMap<(String, String), Vec<ResourceRule>>,
    bindings: Vec<Binding>,
}

/// The evaluator. Roles are compiled once and again when one changes.
#[derive(Default)]
pub struct Rbac {
    compiled: Mutex<Arc<Compiled>>,
}

impl Rbac {
    /// Whether anything allows it: [`Rbac::decide`] without the reason.
    pub fn allows(&self, core: &Core, user: &UserInfo, attributes: &Attributes<'_>) -> bool {
        user.is_in("system:masters") || {
            let compiled = self.current(core);
            let mut bindings = compiled.bindings_of(user, attributes.namespace);
            bindings.any(|(binding, _)| compiled.rules(binding).iter().any(|rule| rule.allows(attributes)))
        }
    }

    /// Decides.
    pub fn decide(&self, core: &Core, user: &UserInfo, attributes: &Attributes<'_>) -> Decision {
        if user.is_in("system:masters") {
            return Decision::Allow(String::new());
        }
        let compiled = self.current(core);
        for (binding, subject) in compiled.bindings_of(user, attributes.namespace) {
            if compiled.rules(binding).iter().any(|rule| rule.allows(attributes)) {
                return Decision::Allow(reason(binding, subject));
            }
        }
        Decision::Deny
    }

    /// All rules that hold for the user in a namespace (for `auth can-i --list`).
    pub fn rules_of(&self, core: &Core, user: &UserInfo, namespace: &str) -> RuleSet {
        let all = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let mut rules = Vec::new();
        if user.is_in("system:masters") {
            rules.push(ResourceRule {
                verbs: all(&["*"]),
                groups: all(&["*"]),
                resources: all(&["*"]),
                ..Default::default()
            });
            rules.push(ResourceRule { verbs: all(&["*"]), paths: all(&["*"]), ..Default::default() });
        }
        let compiled = self.current(core);
        for (binding, _) in compiled.bindings_of(user, namespace) {
            for rule in compiled.rules(binding) {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
        }
        rules
    }

    /// Rules a binding's `roleRef` would grant; `None` if the role does not exist.
    pub fn rules_granted(&self, core: &Core, kind: &str, namespace: &str, name: &str) -> Option<RuleSet> {
        let compiled = self.current(core);
        if kind == "ClusterRole" {
            compiled.cluster_roles.get(name).cloned()
        } else {
            compiled.roles.get(&(namespace.to_owned(), name.to_owned())).cloned()
        }
    }

    fn current(&self, core: &Core) -> Arc<Compiled> {
        let mut compiled = self.compiled.lock();
        let revs = SOURCES.map(|source| core.last_rev(source));
        if compiled.revs != Some(revs) {
            *compiled = Arc::new(Compiled::build(core, revs));
        }
        compiled.clone()
    }
}

impl Compiled {
    fn build(core: &Core, revs: [u64; 4]) -> Self {
        let [cluster_roles, cluster_bindings, roles, bindings] = SOURCES.map(|source| core.all(source));
        let values: Vec<(Arc<Object>, Value)> =
            cluster_roles.iter().map(|o| (o.clone(), o.value())).collect();
        let mut out = Self { revs: Some(revs), ..Self::default() };
        for (object, value) in &values {
            let mut rules = rules_of(value);
            for selector in value["aggregationRule"]["clusterRoleSelectors"].as_array().into_iter().flatten()
            {
                let Ok(selector) = LabelSelector::from_object(selector) else { continue };
                for (_, other) in values.iter().filter(|(o, _)| selector.matches(&o.labels)) {
                    rules.extend(rules_of(other));
                }
            }
            out.cluster_roles.insert(object.key.name.to_string(), rules);
        }
        for object in &roles {
            out.roles.insert(
                (object.key.namespace.to_string(), object.key.name.to_string()),
                rules_of(&object.value()),
            );
        }
        out.bindings = cluster_bindings.iter().chain(&bindings).map(|object| binding_of(object)).collect();
        out
    }

    fn rules(&self, binding: &Binding) -> &[ResourceRule] {
        let (kind, name) = &binding.role;
        let found = if kind == "ClusterRole" {
            self.cluster_roles.get(name)
        } else {
            self.roles.get(&(binding.namespace.clone(), name.clone()))
        };
        found.map_or(&[], Vec::as_slice)
    }

    fn bindings_of<'s>(
        &'s self,
        user: &'s UserInfo,
        namespace: &'s str,
    ) -> impl Iterator<Item = (&'s Binding, &'s Subject)> {
        self.bindings
            .iter()
            .filter(move |b| b.namespace.is_empty() || b.namespace == namespace)
            .filter_map(move |b| Some((b, b.subjects.iter().find(|s| s.is(user, &b.namespace))?)))
    }
}

impl Subject {
    fn is(&self, user: &UserInfo, namespace: &str) -> bool {
        match self.kind.as_str() {
            "User" => self.name == user.name,
            "Group" => user.is_in(&self.name),
            "ServiceAccount" => {
                let namespace = if self.namespace.is_empty() { namespace } else { &self.namespace };
                user.name == format!("system:serviceaccount:{namespace}:{}", self.name)
            }
            _ => false,
        }
    }
}

impl ResourceRule {
    /// The rules of a Role or ClusterRole object.
    pub fn of_role(role: &Value) -> RuleSet {
        rules_of(role)
    }

    /// Whether `held` together allow everything this rule allows.
    pub fn is_within(&self, held: &[Self]) -> bool {
        let has = |list: &[String], wanted: &String| list.iter().any(|item| item == "*" || item == wanted);
        let anything = [String::new()];
        let names: &[String] = if self.names.is_empty() { &anything } else { &self.names };
        let resources = self.verbs.iter().all(|verb| {
            self.groups.iter().all(|group| {
                self.resources.iter().all(|resource| {
                    names.iter().all(|name| {
                        held.iter().any(|h| {
                            let named = h.names.is_empty() || (!name.is_empty() && h.names.contains(name));
                            has(&h.verbs, verb)
                                && has(&h.groups, group)
                                && named
                                && h.resources.iter().any(|r| contains(r, resource))
                        })
                    })
                })
            })
        });
        let paths = self.verbs.iter().all(|verb| {
            self.paths.iter().all(|path| {
                held.iter().any(|h| {
                    has(&h.verbs, verb)
                        && h.paths.iter().any(|p| {
                            p == path || p.strip_suffix('*').is_some_and(|prefix| path.starts_with(prefix))
                        })
                })
            })
        });
        resources && paths
    }

    /// Whether the rule allows a request.
    pub fn allows(&self, a: &Attributes<'_>) -> bool {
        let has = |list: &[String], wanted: &str| list.iter().any(|item| item == "*" || item == wanted);
        if !has(&self.verbs, a.verb) {
            return false;
        }
        if a.resource.is_empty() {
            return self.paths.iter().any(|p| {
                p == "*"
                    || p == a.path
                    || p.strip_suffix('*').is_some_and(|prefix| a.path.starts_with(prefix))
            });
        }
        has(&self.groups, a.group)
            && self.resources.iter().any(|r| covers(r, a.resource, a.subresource))
            && (self.names.is_empty() || (!a.name.is_empty() && self.names.iter().any(|n| n == a.name)))
    }
}

fn covers(rule: &str, resource: &str, subresource: &str) -> bool {
    if rule == "*" {
        return true;
    }
    match rule.split_once('/') {
        // Streaming subresources carry further path segments behind the name.
        Some((r, s)) => {
            (r == "*" || r == resource)
                && (s == subresource || subresource.split('/').next() == Some(s))
                && !subresource.is_empty()
        }
        None => rule == resource && subresource.is_empty(),
    }
}

/// Whether a rule for the resource `held` covers a rule for `wanted`.
fn contains(held: &str, wanted: &str) -> bool {
    held == "*"
        || held == wanted
        || held.strip_prefix("*/").is_some_and(|sub| wanted.split_once('/').is_some_and(|(_, s)| s == sub))
}

fn reason(binding: &Binding, subject: &Subject) -> String {
    let (kind, name) = if binding.namespace.is_empty() {
        ("ClusterRoleBinding", binding.name.clone())
    } else {
        ("RoleBinding", format!("{}/{}", binding.name, binding.namespace))
    };
    format!(
        "RBAC: allowed by {kind} \"{name}\" of {} \"{}\" to {} \"{}\"",
        binding.role.0, binding.role.1, subject.kind, subject.name
    )
}

fn rules_of(role: &Value) -> Vec<ResourceRule> {
    let list = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
    };
    role["rules"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|rule| ResourceRule {
            verbs: list(&rule["verbs"]),
            groups: list(&rule["apiGroups"]),
            resources: list(&rule["resources"]),
            names: list(&rule["resourceNames"]),
            paths: list(&rule["nonResourceURLs"]),
        })
        .collect()
}

fn binding_of(object: &Object) -> Binding {
    let value = object.value();
    let text = |v: &Value| v.as_str().unwrap_or("").to_owned();
    let subjects = value["subjects"].as_array().into_iter().flatten();
    Binding {
        namespace: object.key.namespace.to_string(),
        name: object.key.name.to_string(),
        role: (text(&value["roleRef"]["kind"]), text(&value["roleRef"]["name"])),
        subjects: subjects
            .map(|s| Subject {
                kind: text(&s["kind"]),
                name: text(&s["name"]),
                namespace: text(&s["namespace"]),
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(verbs: &[&str], groups: &[&str], resources: &[&str], names: &[&str]) -> ResourceRule {
        let own = |l: &[&str]| l.iter().map(|s| (*s).to_owned()).collect();
        ResourceRule {
            verbs: own(verbs),
            groups: own(groups),
            resources: own(resources),
            names: own(names),
            paths: own(&["/healthz/*"]),
        }
    }

    // KS-A77
    #[test]
    fn a_rule_is_within_what_several_rules_allow() {
        let held = [rule(&["get", "list"], &[""], &["pods"], &[]), rule(&["*"], &["g"], &["*"], &["a"])];
        let bare = |mut r: ResourceRule| {
            r.paths.clear();
            r
        };
        assert!(bare(rule(&["get"], &[""], &["pods"], &["x"])).is_within(&held));
        assert!(bare(rule(&["delete"], &["g"], &["things"], &["a"])).is_within(&held));
        assert!(!bare(rule(&["delete"], &["g"], &["things"], &[])).is_within(&held));
        assert!(!bare(rule(&["get"], &["", "g"], &["pods"], &[])).is_within(&held));
        assert!(!bare(rule(&["*"], &[""], &["pods"], &[])).is_within(&held));
    }

    // KS-A77
    #[test]
    fn rules_match_verbs_groups_resources_subresources_and_names() {
        let ask = |verb, resource, subresource, name| Attributes {
            verb,
            resource,
            subresource,
            name,
            ..Attributes::default()
        };
        let pods = rule(&["get"], &[""], &["pods", "pods/log"], &[]);
        assert!(pods.allows(&ask("get", "pods", "", "a")));
        assert!(pods.allows(&ask("get", "pods", "log", "a")));
        assert!(!pods.allows(&ask("get", "pods", "exec", "a")));
        assert!(!pods.allows(&ask("delete", "pods", "", "a")));
        assert!(!pods.allows(&Attributes { group: "apps", ..ask("get", "pods", "", "a") }));
        let any_scale = rule(&["*"], &["*"], &["*/scale"], &[]);
        assert!(any_scale.allows(&ask("update", "things", "scale", "a")));
        assert!(!any_scale.allows(&ask("update", "things", "", "a")));
        let named = rule(&["get", "list"], &[""], &["pods"], &["a"]);
        assert!(named.allows(&ask("get", "pods", "", "a")));
        assert!(!named.allows(&ask("get", "pods", "", "b")));
        assert!(!named.allows(&ask("list", "pods", "", "")));
        assert!(named.allows(&Attributes { verb: "get", path: "/healthz/etcd", ..Attributes::default() }));
    }
}
