//! The objects every control plane starts with: namespaces, priority classes, roles and bindings.

use super::user::UserInfo;
use crate::core::{Body, Call, Core};
use holdfast_apimachinery::status::Status;
use serde_json::{Value, json};

/// Namespaces that always exist.
pub const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// Creates these namespaces where they are missing.
///
/// # Errors
/// A name is not a namespace name.
pub fn ensure_namespaces<'n>(core: &Core, names: impl IntoIterator<Item = &'n str>) -> Result<(), Status> {
    for name in names {
        ensure(
            core,
            "",
            "namespaces",
            "",
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}),
        )?;
    }
    Ok(())
}

/// Creates an object where it is missing; an existing one stays as it is, except that the rules of a
/// default role follow the version of this program.
///
/// # Errors
/// The object is invalid.
pub fn ensure(
    core: &Core,
    group: &str,
    resource: &str,
    namespace: &str,
    object: Value,
) -> Result<(), Status> {
    let user = UserInfo::kubelith();
    let call = Call::internal(&user);
    let registry = core.registry();
    let served = registry
        .preferred(group, resource)
        .ok_or_else(|| Status::internal(&format!("{resource} are not served")))?;
    let name = object["metadata"]["name"].as_str().unwrap_or("").to_owned();
    let Ok(existing) = core.get(served, namespace, &name, crate::core::ReadVersion::Latest) else {
        return core
            .create(call, served, namespace, Body { value: object, duplicates: Vec::new() })
            .map(drop);
    };
    let mut existing = existing.value();
    let is_default = existing["metadata"]["labels"]["kubernetes.io/bootstrapping"] == "rbac-defaults";
    if is_default && !object["rules"].is_null() && existing["rules"] != object["rules"] {
        existing["rules"] = object["rules"].clone();
        core.update(call, served, (namespace, &name), "", Body { value: existing, duplicates: Vec::new() })?;
    }
    Ok(())
}

/// Creates everything a new control plane needs.
///
/// # Errors
/// One of our own objects is invalid: a defect.
pub fn defaults(core: &Core) -> Result<(), Status> {
    ensure_namespaces(core, NAMESPACES)?;
    for (name, value, what) in [
        (
            "system-cluster-critical",
            2_000_000_000_i64,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
        (
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
    ] {
        let class = json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": value, "description": what});
        ensure(core, "scheduling.k8s.io", "priorityclasses", "", class)?;
    }
    for (name, labels, rules) in roles() {
        let mut role = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {"name": name, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}}, "rules": rules,
        });
        for label in labels {
            role["metadata"]["labels"][*label] = json!("true");
        }
        ensure(core, "rbac.authorization.k8s.io", "clusterroles", "", role)?;
    }
    for (role, kind, subjects) in bindings() {
        let subjects: Vec<Value> = subjects
            .iter()
            .map(|name| json!({"kind": kind, "apiGroup": "rbac.authorization.k8s.io", "name": name}))
            .collect();
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": role, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": subjects,
        });
        ensure(core, "rbac.authorization.k8s.io", "clusterrolebindings", "", binding)?;
    }
    Ok(())
}

fn rule(groups: &[&str], resources: &[&str], verbs: &[&str]) -> Value {
    json!({"apiGroups": groups, "resources": resources, "verbs": verbs})
}

fn paths(paths: &[&str]) -> Value {
    json!({"nonResourceURLs": paths, "verbs": ["get"]})
}

const READ: [&str; 3] = ["get", "list", "watch"];
const WRITE: [&str; 8] = ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];
const VIRTUALIZATION: [&str; 4] = [
    "virtualization.deckhouse.io",
    "internal.virtualization.deckhouse.io",
    "subresources.virtualization.deckhouse.io",
    "deckhouse.io",
];
/// Events go to either group.
const EVENTS: [&str; 2] = ["", "events.k8s.io"];

/// Name, additional labels, rules.
fn roles() -> Vec<(&'static str, &'static [&'static str], Value)> {
    let mut roles = user_roles();
    roles.extend(machine_roles());
    roles
}

fn user_roles() -> Vec<(&'static str, &'static [&'static str], Value)> {
    let everything = json!([rule(&["*"], &["*"], &["*"]), {"nonResourceURLs": ["*"], "verbs": ["*"]}]);
    let core_resources = [
        "pods",
        "pods/log",
        "pods/status",
        "configmaps",
        "persistentvolumeclaims",
        "serviceaccounts",
        "events",
        "resourcequotas",
        "resourcequotas/status",
        "services",
    ];
    let user_groups = ["virtualization.deckhouse.io", "subresources.virtualization.deckhouse.io"];
    let view = json!([
        rule(&[""], &core_resources, &READ),
        rule(&[""], &["namespaces"], &READ),
        rule(&["policy"], &["poddisruptionbudgets"], &READ),
        rule(&["virtualization.deckhouse.io"], &["*"], &READ),
        rule(&["events.k8s.io"], &["events"], &READ),
    ]);
    let edit = json!([
        rule(
            &[""],
            &[
                "pods",
                "pods/eviction",
                "configmaps",
                "secrets",
                "persistentvolumeclaims",
                "serviceaccounts",
                "services"
            ],
            &WRITE
        ),
        rule(&[""], &["serviceaccounts/token"], &["create"]),
        rule(&["policy"], &["poddisruptionbudgets"], &WRITE),
        rule(&user_groups, &["*"], &WRITE),
        rule(&[""], &core_resources, &READ),
        rule(&[""], &["namespaces"], &READ),
    ]);
    let admin = json!([
        rule(&["rbac.authorization.k8s.io"], &["roles", "rolebindings"], &WRITE),
        rule(&["authorization.k8s.io"], &["localsubjectaccessreviews"], &["create"]),
    ]);
    let reviews = json!([
        rule(
            &["authorization.k8s.io"],
            &["selfsubjectaccessreviews", "selfsubjectrulesreviews"],
            &["create"]
        ),
        rule(&["authentication.k8s.io"], &["selfsubjectreviews"], &["create"]),
    ]);
    let discovery = json!([paths(&[
        "/api",
        "/api/*",
        "/apis",
        "/apis/*",
        "/healthz",
        "/livez",
        "/openapi",
        "/openapi/*",
        "/readyz",
        "/version",
        "/version/"
    ])]);
    vec![
        ("cluster-admin", &[], everything),
        (
            "admin",
            &[],
            json!([
                admin[0], admin[1], edit[0], edit[1], edit[2], edit[3], edit[4], edit[5], view[2], view[3],
                view[4]
            ]),
        ),
        (
            "edit",
            &["rbac.authorization.k8s.io/aggregate-to-admin"],
            json!([edit[0], edit[1], edit[2], edit[3], edit[4], edit[5], view[4]]),
        ),
        ("view", &["rbac.authorization.k8s.io/aggregate-to-edit"], view),
        ("system:basic-user", &[], reviews),
        ("system:discovery", &[], discovery),
        (
            "system:public-info-viewer",
            &[],
            json!([paths(&["/healthz", "/livez", "/readyz", "/version", "/version/"])]),
        ),
    ]
}

fn machine_roles() -> Vec<(&'static str, &'static [&'static str], Value)> {
    let events = rule(&EVENTS, &["events"], &["create", "update", "patch", "get", "list", "watch"]);
    let leases = rule(&["coordination.k8s.io"], &["leases"], &WRITE);
    vec![
        (
            "system:node",
            &[],
            json!([
                rule(
                    &[""],
                    &["nodes", "nodes/status"],
                    &["get", "list", "watch", "create", "update", "patch"]
                ),
                rule(&[""], &["pods"], &["get", "list", "watch", "create", "delete"]),
                rule(&[""], &["pods/status"], &["update", "patch"]),
                rule(
                    &[""],
                    &["secrets", "configmaps", "persistentvolumeclaims", "persistentvolumes", "services"],
                    &READ
                ),
                rule(&[""], &["serviceaccounts/token"], &["create"]),
                leases,
                events,
            ]),
        ),
        (
            "system:holdfast:agent",
            &[],
            json!([
                rule(
                    &["internal.virtualization.deckhouse.io"],
                    &["*"],
                    &["get", "list", "watch", "update", "patch"]
                ),
                rule(&["virtualization.deckhouse.io", "deckhouse.io"], &["*"], &READ),
                rule(
                    &[""],
                    &[
                        "pods",
                        "nodes",
                        "secrets",
                        "configmaps",
                        "persistentvolumeclaims",
                        "persistentvolumes"
                    ],
                    &READ
                ),
                rule(&[""], &["nodes"], &["patch"]),
                rule(&[""], &["pods/status", "nodes/status"], &["patch", "update"]),
                leases,
                events,
            ]),
        ),
        (
            "system:holdfast:gateway",
            &[],
            json!([
                rule(&VIRTUALIZATION, &["*"], &["get", "list", "watch", "update", "patch"]),
                rule(&[""], &["pods", "nodes"], &READ),
                leases,
                events,
            ]),
        ),
        (
            "system:holdfast:controller",
            &[],
            json!([
                rule(&VIRTUALIZATION, &["*"], &WRITE),
                rule(&["nodemaintenance.medik8s.io"], &["*"], &WRITE),
                rule(
                    &[""],
                    &[
                        "pods",
                        "pods/eviction",
                        "persistentvolumeclaims",
                        "persistentvolumes",
                        "secrets",
                        "configmaps",
                        "serviceaccounts"
                    ],
                    &WRITE
                ),
                rule(
                    &[""],
                    &[
                        "pods/status",
                        "pods/log",
                        "pods/binding",
                        "nodes/status",
                        "persistentvolumeclaims/status"
                    ],
                    &["get", "update", "patch", "create"]
                ),
                rule(
                    &[""],
                    &["nodes", "namespaces"],
                    &["get", "list", "watch", "create", "update", "patch", "delete"]
                ),
                rule(&["storage.k8s.io", "scheduling.k8s.io"], &["*"], &WRITE),
                rule(&[""], &["resourcequotas"], &READ),
                rule(&["policy"], &["poddisruptionbudgets"], &READ),
                rule(&["apiextensions.k8s.io"], &["customresourcedefinitions"], &WRITE),
                leases,
                events,
            ]),
        ),
        // Garbage collection and namespace deletion reach every kind, so the loops may too.
        (
            "system:holdfast:loops",
            &[],
            json!([rule(&["*"], &["*"], &["*"]), {"nonResourceURLs": ["*"], "verbs": ["get"]}]),
        ),
    ]
}

/// Role, kind of its subjects, subjects.
fn bindings() -> Vec<(&'static str, &'static str, &'static [&'static str])> {
    vec![
        ("cluster-admin", "Group", &["system:masters"]),
        ("system:basic-user", "Group", &["system:authenticated"]),
        ("system:discovery", "Group", &["system:authenticated"]),
        ("system:public-info-viewer", "Group", &["system:authenticated", "system:unauthenticated"]),
        ("system:node", "Group", &["system:nodes"]),
        ("system:holdfast:agent", "Group", &["system:holdfast:agents"]),
        ("system:holdfast:gateway", "User", &["system:holdfast:gateway"]),
        ("system:holdfast:controller", "User", &["system:holdfast:controller"]),
        ("system:holdfast:loops", "User", &["system:holdfast:loops"]),
    ]
}

/// Makes a CustomResourceDefinition exist as given: created, or its spec replaced.
///
/// # Errors
/// The definition is invalid.
pub fn ensure_definition(core: &Core, definition: &Value) -> Result<(), Status> {
    let (group, plural) = ("apiextensions.k8s.io", "customresourcedefinitions");
    let user = UserInfo::kubelith();
    let call = Call::internal(&user);
    let registry = core.registry();
    let served =
        registry.preferred(group, plural).ok_or_else(|| Status::internal("definitions are not served"))?;
    let name = definition["metadata"]["name"].as_str().unwrap_or("");
    let Ok(existing) = core.get(served, "", name, crate::core::ReadVersion::Latest) else {
        return ensure(core, group, plural, "", definition.clone());
    };
    let mut updated = existing.value();
    let stored = std::mem::replace(&mut updated["spec"], definition["spec"].clone());
    served.kind.default(&mut updated);
    if updated["spec"] == stored {
        // The usual start: spared is the validation of every schema.
        return Ok(());
    }
    core.update(call, served, ("", name), "", Body { value: updated, duplicates: Vec::new() }).map(drop)
}
