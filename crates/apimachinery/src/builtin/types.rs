//! Schemas of the built-in types: generated from `k8s-openapi`, with the list keys of KS §9.5,
//! which those types do not carry, laid over them.

use std::sync::LazyLock;

use k8s_openapi::{
    api::{
        authentication::v1 as authn, authorization::v1 as authz, coordination::v1 as coordination,
        core::v1 as core, events::v1 as events, policy::v1 as policy, rbac::v1 as rbac,
        scheduling::v1 as scheduling, storage::v1 as storage,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1 as apiextensions,
    apimachinery::pkg::apis::meta::v1 as meta,
};
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use crate::schema::{Definitions, Schema};

/// Where references point in published documents.
const REFERENCE: &str = "#/components/schemas/";

/// How a list or map of a built-in type merges.
struct Overlay {
    /// End of the component name, for example `core.v1.PodSpec`.
    component: &'static str,
    property: &'static str,
    /// Map keys; `["*"]` is a set, empty is atomic.
    keys: &'static [&'static str],
    /// Patch strategy and merge key; empty where lists are replaced.
    strategy: &'static str,
    merge_key: &'static str,
}

const fn map(component: &'static str, property: &'static str, keys: &'static [&'static str]) -> Overlay {
    Overlay { component, property, keys, strategy: "merge", merge_key: keys[0] }
}

const fn set(component: &'static str, property: &'static str) -> Overlay {
    Overlay { component, property, keys: &["*"], strategy: "merge", merge_key: "" }
}

/// Atomic for apply, merged by key for strategic patches.
const fn atomic_merge(component: &'static str, property: &'static str, merge_key: &'static str) -> Overlay {
    Overlay { component, property, keys: &[], strategy: "merge", merge_key }
}

/// Lists that are not atomic, or that strategic patches merge. Everything else is replaced.
const LISTS: [Overlay; 34] = [
    map("meta.v1.ObjectMeta", "ownerReferences", &["uid"]),
    set("meta.v1.ObjectMeta", "finalizers"),
    map("core.v1.PodSpec", "containers", &["name"]),
    map("core.v1.PodSpec", "initContainers", &["name"]),
    map("core.v1.PodSpec", "ephemeralContainers", &["name"]),
    Overlay {
        component: "core.v1.PodSpec",
        property: "volumes",
        keys: &["name"],
        strategy: "merge,retainKeys",
        merge_key: "name",
    },
    map("core.v1.PodSpec", "imagePullSecrets", &["name"]),
    map("core.v1.PodSpec", "schedulingGates", &["name"]),
    map("core.v1.PodSpec", "hostAliases", &["ip"]),
    map("core.v1.PodSpec", "topologySpreadConstraints", &["topologyKey", "whenUnsatisfiable"]),
    map("core.v1.PodSpec", "resourceClaims", &["name"]),
    map("core.v1.Container", "env", &["name"]),
    map("core.v1.Container", "ports", &["containerPort", "protocol"]),
    map("core.v1.Container", "volumeMounts", &["mountPath"]),
    map("core.v1.Container", "volumeDevices", &["devicePath"]),
    map("core.v1.EphemeralContainer", "env", &["name"]),
    map("core.v1.EphemeralContainer", "ports", &["containerPort", "protocol"]),
    map("core.v1.EphemeralContainer", "volumeMounts", &["mountPath"]),
    map("core.v1.EphemeralContainer", "volumeDevices", &["devicePath"]),
    map("core.v1.ResourceRequirements", "claims", &["name"]),
    map("core.v1.PodStatus", "conditions", &["type"]),
    map("core.v1.PodStatus", "podIPs", &["ip"]),
    atomic_merge("core.v1.PodStatus", "hostIPs", "ip"),
    map("core.v1.PodStatus", "resourceClaimStatuses", &["name"]),
    set("core.v1.NodeSpec", "podCIDRs"),
    map("core.v1.NodeStatus", "conditions", &["type"]),
    map("core.v1.NodeStatus", "addresses", &["type"]),
    map("core.v1.NamespaceStatus", "conditions", &["type"]),
    map("core.v1.PersistentVolumeClaimStatus", "conditions", &["type"]),
    map("core.v1.ServiceSpec", "ports", &["port", "protocol"]),
    map("core.v1.ServiceStatus", "conditions", &["type"]),
    map("core.v1.ServiceAccount", "secrets", &["name"]),
    map("policy.v1.PodDisruptionBudgetStatus", "conditions", &["type"]),
    map("apiextensions.v1.CustomResourceDefinitionStatus", "conditions", &["type"]),
];

/// Maps that apply replaces as a whole, and objects that strategic patches replace.
const ATOMIC_MAPS: [(&str, &str); 3] = [
    ("core.v1.PodSpec", "nodeSelector"),
    ("core.v1.ServiceSpec", "selector"),
    ("core.v1.PersistentVolumeClaimSpec", "selector"),
];
/// Types every use of which is atomic for apply.
const ATOMIC_TYPES: [&str; 14] = [
    "core.v1.ObjectReference",
    "core.v1.LocalObjectReference",
    "core.v1.TypedLocalObjectReference",
    "core.v1.SecretReference",
    "core.v1.NodeSelector",
    "core.v1.NodeSelectorTerm",
    "core.v1.SecretKeySelector",
    "core.v1.ConfigMapKeySelector",
    "core.v1.ObjectFieldSelector",
    "core.v1.ResourceFieldSelector",
    "core.v1.TopologySelectorTerm",
    "rbac.v1.RoleRef",
    "rbac.v1.Subject",
    "meta.v1.OwnerReference",
];

static DEFINITIONS: LazyLock<Definitions> = LazyLock::new(build);
static OBJECT_META: LazyLock<Schema> =
    LazyLock::new(|| Schema::builtin(&DEFINITIONS, "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"));

/// Schemas of all built-in types by component name.
pub fn definitions() -> &'static Definitions {
    &DEFINITIONS
}

/// `ObjectMeta`, grafted into every custom resource.
pub(crate) fn object_meta() -> &'static Schema {
    &OBJECT_META
}

fn build() -> Definitions {
    let settings =
        SchemaSettings::openapi3().with(|settings| settings.definitions_path = "/components/schemas".into());
    let mut generator = settings.into_generator();
    macro_rules! types {
        ($($kind:ty),+ $(,)?) => { $( let _ = generator.subschema_for::<$kind>(); )+ };
    }
    types!(
        core::Binding,
        core::ConfigMap,
        core::Event,
        core::Namespace,
        core::Node,
        core::PersistentVolume,
        core::PersistentVolumeClaim,
        core::Pod,
        core::ResourceQuota,
        core::Secret,
        core::Service,
        core::ServiceAccount,
        authn::SelfSubjectReview,
        authn::TokenRequest,
        authn::TokenReview,
        authz::LocalSubjectAccessReview,
        authz::SelfSubjectAccessReview,
        authz::SelfSubjectRulesReview,
        authz::SubjectAccessReview,
        coordination::Lease,
        events::Event,
        policy::Eviction,
        policy::PodDisruptionBudget,
        rbac::ClusterRole,
        rbac::ClusterRoleBinding,
        rbac::Role,
        rbac::RoleBinding,
        scheduling::PriorityClass,
        storage::StorageClass,
        apiextensions::CustomResourceDefinition,
        meta::DeleteOptions,
        meta::ListMeta,
        meta::ObjectMeta,
        meta::Status,
        k8s_openapi::api::autoscaling::v1::Scale,
    );
    let mut definitions = Definitions { schemas: generator.take_definitions(true).into_iter().collect() };
    for (name, schema) in &mut definitions.schemas {
        overlay(name, schema);
    }
    definitions
}

fn overlay(name: &str, schema: &mut Value) {
    let is = |component: &str| name.strip_suffix(component).is_some_and(|head| head.ends_with('.'));
    for entry in LISTS.iter().filter(|entry| is(entry.component)) {
        let Some(property) = schema.pointer_mut(&format!("/properties/{}", entry.property)) else {
            continue;
        };
        match entry.keys {
            [] => property["x-kubernetes-list-type"] = json!("atomic"),
            ["*"] => property["x-kubernetes-list-type"] = json!("set"),
            keys => {
                property["x-kubernetes-list-type"] = json!("map");
                property["x-kubernetes-list-map-keys"] = json!(keys);
            }
        }
        property["x-kubernetes-patch-strategy"] = json!(entry.strategy);
        if !entry.merge_key.is_empty() {
            property["x-kubernetes-patch-merge-key"] = json!(entry.merge_key);
        }
    }
    for (_, property) in ATOMIC_MAPS.iter().filter(|(component, _)| is(component)) {
        if let Some(property) = schema.pointer_mut(&format!("/properties/{property}")) {
            property["x-kubernetes-map-type"] = json!("atomic");
        }
    }
    if ATOMIC_TYPES.iter().any(|component| is(component)) {
        schema["x-kubernetes-map-type"] = json!("atomic");
    }
    if is("policy.v1.PodDisruptionBudgetSpec")
        && let Some(property) = schema.pointer_mut("/properties/selector")
    {
        property["x-kubernetes-patch-strategy"] = json!("replace");
    }
    // The protocol of a port is a map key that clients leave out.
    if (is("core.v1.ContainerPort") || is("core.v1.ServicePort"))
        && let Some(property) = schema.pointer_mut("/properties/protocol")
    {
        property["default"] = json!("TCP");
    }
    if is("apiextensions.v1.JSONSchemaProps") {
        loosen_schema_props(schema);
    }
    if schema["required"] == json!(["metadata"])
        && let Some(object) = schema.as_object_mut()
    {
        object.shift_remove("required");
    }
}

/// `items`, `additionalProperties` and friends are "a schema or something else"; for field
/// checking they are schemas.
fn loosen_schema_props(schema: &mut Value) {
    let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) else {
        return;
    };
    for property in properties.values_mut() {
        let text = property.to_string();
        for variant in ["JSONSchemaPropsOrArray", "JSONSchemaPropsOrBool"] {
            let from =
                format!("{REFERENCE}io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.{variant}");
            if text.contains(&from) {
                let to = format!(
                    "{REFERENCE}io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps"
                );
                if let Ok(replaced) = serde_json::from_str(&text.replace(&from, &to)) {
                    *property = replaced;
                }
            }
        }
        // A default, example or enum member may be any value.
        if text.contains("apiextensions.v1.JSON\"") {
            *property =
                if text.contains("\"array\"") { json!({"type": "array", "items": {}}) } else { json!({}) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::{ListType, Strategic};

    #[test]
    fn every_overlay_names_a_real_property() {
        let known = |component: &str, property: &str| {
            definitions().schemas.iter().any(|(name, schema)| {
                name.ends_with(&format!(".{component}"))
                    && schema.pointer(&format!("/properties/{property}")).is_some()
            })
        };
        for entry in &LISTS {
            let served =
                definitions().schemas.keys().any(|name| name.ends_with(&format!(".{}", entry.component)));
            assert!(
                !served || known(entry.component, entry.property),
                "{}.{}",
                entry.component,
                entry.property
            );
        }
    }

    #[test]
    fn pod_lists_carry_their_keys() {
        let pod = Schema::builtin(definitions(), "io.k8s.api.core.v1.Pod");
        let spec = pod.child(pod.root, "spec").unwrap();
        let containers = pod.child(spec, "containers").unwrap();
        assert_eq!(pod.node(containers).list, ListType::Map(vec!["name".into()]));
        let volumes = pod.child(spec, "volumes").unwrap();
        assert_eq!(pod.node(volumes).strategic, Strategic::MergeByRetainKeys("name".into()));
        let tolerations = pod.child(spec, "tolerations").unwrap();
        assert_eq!(
            (&pod.node(tolerations).list, &pod.node(tolerations).strategic),
            (&ListType::Atomic, &Strategic::Plain)
        );
        let selector = pod.child(spec, "nodeSelector").unwrap();
        assert!(pod.node(selector).atomic_map);
    }
}
