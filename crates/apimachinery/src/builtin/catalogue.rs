//! The served built-in kinds (KS §12.1) as data.

use super::{
    BuiltinColumn, BuiltinKind, BuiltinSubresource, NameRule, StatusRule, Strategy, cells, core, event, pod,
    pod_validation, policy, quota, storage,
};

const ALL: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const NAMESPACE_VERBS: &[&str] = &["create", "delete", "get", "list", "patch", "update", "watch"];
const CREATE: &[&str] = &["create"];
const STATUS: BuiltinSubresource =
    BuiltinSubresource { name: "status", body: None, verbs: &["get", "patch", "update"] };
const AGE: BuiltinColumn = ("Age", "string", "", 0);
const NAME: BuiltinColumn = ("Name", "string", "name", 0);

const fn text(name: &'static str) -> BuiltinColumn {
    (name, "string", "", 0)
}

const fn wide(name: &'static str) -> BuiltinColumn {
    (name, "string", "", 1)
}

const NONE: Strategy = Strategy {
    default: |_| {},
    create: |_| {},
    update: |_, _| {},
    validate: |_, _| {},
    validate_update: |_, _, _| {},
    cells: cells::name_and_age,
};

const PLAIN: BuiltinKind = BuiltinKind {
    group: "",
    version: "v1",
    kind: "",
    plural: "",
    short: &[],
    categories: &[],
    namespaced: true,
    verbs: ALL,
    subresources: &[],
    component: "",
    columns: &[NAME, AGE],
    fields: &[],
    names: NameRule::Subdomain,
    status: StatusRule::None,
    generation: false,
    create_on_update: false,
    unconditional_update: true,
    strategy: NONE,
};

/// A create-only kind that is answered and not stored.
const fn review(
    group: &'static str,
    kind: &'static str,
    plural: &'static str,
    namespaced: bool,
    component: &'static str,
) -> BuiltinKind {
    BuiltinKind { group, kind, plural, namespaced, verbs: CREATE, component, ..PLAIN }
}

/// `exec`, `attach` and `portforward` are not served, so they are not announced.
const POD_SUBRESOURCES: &[BuiltinSubresource] = &[
    BuiltinSubresource { name: "binding", body: Some(("", "v1", "Binding")), verbs: CREATE },
    BuiltinSubresource { name: "eviction", body: Some(("policy", "v1", "Eviction")), verbs: CREATE },
    BuiltinSubresource { name: "log", body: None, verbs: &["get"] },
    STATUS,
];

const POD_COLUMNS: &[BuiltinColumn] = &[
    NAME,
    text("Ready"),
    text("Status"),
    text("Restarts"),
    AGE,
    wide("IP"),
    wide("Node"),
    wide("Nominated Node"),
    wide("Readiness Gates"),
];

const POD_FIELDS: &[(&str, &str)] = &[
    ("spec.nodeName", "/spec/nodeName"),
    ("spec.host", "/spec/nodeName"),
    ("spec.restartPolicy", "/spec/restartPolicy"),
    ("spec.schedulerName", "/spec/schedulerName"),
    ("spec.serviceAccountName", "/spec/serviceAccountName"),
    ("spec.hostNetwork", "/spec/hostNetwork"),
    ("status.phase", "/status/phase"),
    ("status.podIP", "/status/podIP"),
    ("status.nominatedNodeName", "/status/nominatedNodeName"),
];

const NODE_COLUMNS: &[BuiltinColumn] = &[
    NAME,
    text("Status"),
    text("Roles"),
    AGE,
    text("Version"),
    wide("Internal-IP"),
    wide("External-IP"),
    wide("OS-Image"),
    wide("Kernel-Version"),
    wide("Container-Runtime"),
];

const EVENT_COLUMNS: &[BuiltinColumn] = &[
    text("Last Seen"),
    text("Type"),
    text("Reason"),
    text("Object"),
    wide("Subobject"),
    wide("Source"),
    text("Message"),
    wide("First Seen"),
    ("Count", "string", "", 1),
    ("Name", "string", "name", 1),
];

const EVENT_FIELDS: &[(&str, &str)] = &[
    ("involvedObject.kind", "/involvedObject/kind"),
    ("involvedObject.namespace", "/involvedObject/namespace"),
    ("involvedObject.name", "/involvedObject/name"),
    ("involvedObject.uid", "/involvedObject/uid"),
    ("involvedObject.apiVersion", "/involvedObject/apiVersion"),
    ("involvedObject.resourceVersion", "/involvedObject/resourceVersion"),
    ("involvedObject.fieldPath", "/involvedObject/fieldPath"),
    ("reason", "/reason"),
    ("reportingComponent", "/reportingComponent"),
    ("source", "/source/component"),
    ("type", "/type"),
];

const NEW_EVENT_FIELDS: &[(&str, &str)] = &[
    ("regarding.kind", "/regarding/kind"),
    ("regarding.namespace", "/regarding/namespace"),
    ("regarding.name", "/regarding/name"),
    ("regarding.uid", "/regarding/uid"),
    ("regarding.apiVersion", "/regarding/apiVersion"),
    ("regarding.resourceVersion", "/regarding/resourceVersion"),
    ("regarding.fieldPath", "/regarding/fieldPath"),
    ("reason", "/reason"),
    ("reportingController", "/reportingController"),
    ("type", "/type"),
];

const PV_COLUMNS: &[BuiltinColumn] = &[
    NAME,
    text("Capacity"),
    text("Access Modes"),
    text("Reclaim Policy"),
    text("Status"),
    text("Claim"),
    text("StorageClass"),
    text("VolumeAttributesClass"),
    text("Reason"),
    AGE,
    wide("VolumeMode"),
];

const PVC_COLUMNS: &[BuiltinColumn] = &[
    NAME,
    text("Status"),
    text("Volume"),
    text("Capacity"),
    text("Access Modes"),
    text("StorageClass"),
    text("VolumeAttributesClass"),
    AGE,
    wide("VolumeMode"),
];

const SERVICE_COLUMNS: &[BuiltinColumn] =
    &[NAME, text("Type"), text("Cluster-IP"), text("External-IP"), text("Port(s)"), AGE, wide("Selector")];
const BINDING_COLUMNS: &[BuiltinColumn] =
    &[NAME, text("Role"), AGE, wide("Users"), wide("Groups"), wide("ServiceAccounts")];
const ROLE_COLUMNS: &[BuiltinColumn] = &[NAME, ("Created At", "date", "", 0)];

static CORE_KINDS: [BuiltinKind; 12] = [
    review("", "Binding", "bindings", true, "io.k8s.api.core.v1.Binding"),
    BuiltinKind {
        kind: "ConfigMap",
        plural: "configmaps",
        short: &["cm"],
        component: "io.k8s.api.core.v1.ConfigMap",
        columns: &[NAME, text("Data"), AGE],
        strategy: Strategy {
            validate: core::validate_config_map,
            validate_update: core::validate_config_map_update,
            cells: cells::config_map,
            ..NONE
        },
        ..PLAIN
    },
    BuiltinKind {
        kind: "Event",
        plural: "events",
        short: &["ev"],
        component: "io.k8s.api.core.v1.Event",
        columns: EVENT_COLUMNS,
        fields: EVENT_FIELDS,
        create_on_update: true,
        strategy: Strategy { validate: event::validate, cells: cells::event, ..NONE },
        ..PLAIN
    },
    BuiltinKind {
        kind: "Namespace",
        plural: "namespaces",
        short: &["ns"],
        namespaced: false,
        verbs: NAMESPACE_VERBS,
        subresources: &[BuiltinSubresource { name: "finalize", body: None, verbs: &["update"] }, STATUS],
        component: "io.k8s.api.core.v1.Namespace",
        columns: &[NAME, text("Status"), AGE],
        fields: &[("status.phase", "/status/phase")],
        names: NameRule::Label,
        status: StatusRule::Subresource,
        strategy: Strategy {
            default: core::default_namespace,
            create: core::create_namespace,
            update: core::update_namespace,
            cells: cells::namespace,
            ..NONE
        },
        ..PLAIN
    },
    BuiltinKind {
        kind: "Node",
        plural: "nodes",
        short: &["no"],
        namespaced: false,
        subresources: &[STATUS],
        component: "io.k8s.api.core.v1.Node",
        columns: NODE_COLUMNS,
        fields: &[("spec.unschedulable", "/spec/unschedulable")],
        status: StatusRule::KeptOnCreate,
        strategy: Strategy {
            default: core::default_node,
            validate: core::validate_node,
            validate_update: core::validate_node_update,
            cells: cells::node,
            ..NONE
        },
        ..PLAIN
    },
    BuiltinKind {
        kind: "ResourceQuota",
        plural: "resourcequotas",
        short: &["quota"],
        subresources: &[STATUS],
        component: "io.k8s.api.core.v1.ResourceQuota",
        columns: &[NAME, text("Request"), text("Limit"), AGE],
        status: StatusRule::Subresource,
        strategy: Strategy { validate: quota::validate, cells: cells::quota, ..NONE },
        ..PLAIN
    },
    BuiltinKind {
        kind: "PersistentVolumeClaim",
        plural: "persistentvolumeclaims",
        short: &["pvc"],
        subresources: &[STATUS],
        component: "io.k8s.api.core.v1.PersistentVolumeClaim",
        columns: PVC_COLUMNS,
        status: StatusRule::Subresource,
        strategy: Strategy {
            default: storage::default_claim,
            create: storage::create_claim,
            validate: storage::validate_claim,
            validate_update: storage::validate_claim_update,
            cells: cells::claim,
            ..NONE
        },
        ..PLAIN
    },
    BuiltinKind {
        kind: "PersistentVolume",
        plural: "persistentvolumes",
        short: &["pv"],
        namespaced: false,
        subresources: &[STATUS],
        component: "io.k8s.api.core.v1.PersistentVolume",
        columns: PV_COLUMNS,
        status: StatusRule::Subresource,
        strategy: Strategy {
            default: storage::default_volume,
            create: storage::create_volume,
            validate: storage::validate_volume,
            validate_update: storage::validate_volume_update,
            cells: cells::volume,
            ..NONE
        },
        ..PLAIN
    },
    BuiltinKind {
        kind: "Pod",
        plural: "pods",
        short: &["po"],
        categories: &["all"],
        subresources: POD_SUBRESOURCES,
        component: "io.k8s.api.core.v1.Pod",
        columns: POD_COLUMNS,
        fields: POD_FIELDS,
        status: StatusRule::Subresource,
        generation: true,
        strategy: Strategy {
            default: pod::default,
            create: pod::create,
            update: |_, _| {},
            validate: pod_validation::validate,
            validate_update: pod_validation::validate_update,
            cells: cells::pod,
        },
        ..PLAIN
    },
    BuiltinKind {
        kind: "Secret",
        plural: "secrets",
        component: "io.k8s.api.core.v1.Secret",
        columns: &[NAME, text("Type"), text("Data"), AGE],
        fields: &[("type", "/type")],
        strategy: Strategy {
            default: core::default_secret,
            validate: core::validate_secret,
            validate_update: core::validate_secret_update,
            cells: cells::secret,
            ..NONE
        },
        ..PLAIN
    },
    BuiltinKind {
        kind: "ServiceAccount",
        plural: "serviceaccounts",
        short: &["sa"],
        subresources: &[BuiltinSubresource {
            name: "token",
            body: Some(("authentication.k8s.io", "v1", "TokenRequest")),
            verbs: CREATE,
        }],
        component: "io.k8s.api.core.v1.ServiceAccount",
        ..PLAIN
    },
    BuiltinKind {
        kind: "Service",
        plural: "services",
        short: &["svc"],
        categories: &["all"],
        subresources: &[STATUS],
        component: "io.k8s.api.core.v1.Service",
        columns: SERVICE_COLUMNS,
        fields: &[("spec.clusterIP", "/spec/clusterIP"), ("spec.type", "/spec/type")],
        names: NameRule::Label1035,
        status: StatusRule::Subresource,
        strategy: Strategy {
            default: core::default_service,
            validate: core::validate_service,
            cells: cells::service,
            ..NONE
        },
        ..PLAIN
    },
];

const RBAC: BuiltinKind = BuiltinKind {
    group: "rbac.authorization.k8s.io",
    names: NameRule::PathSegment,
    create_on_update: true,
    columns: ROLE_COLUMNS,
    strategy: Strategy { cells: cells::role, ..NONE },
    ..PLAIN
};

const BINDING: Strategy = Strategy {
    default: policy::default_binding,
    validate: policy::validate_binding,
    validate_update: policy::validate_binding_update,
    cells: cells::binding,
    ..NONE
};

static OTHER_KINDS: [BuiltinKind; 16] = [
    BuiltinKind {
        group: "events.k8s.io",
        kind: "Event",
        plural: "events",
        short: &["ev"],
        component: "io.k8s.api.events.v1.Event",
        columns: EVENT_COLUMNS,
        fields: NEW_EVENT_FIELDS,
        create_on_update: true,
        strategy: Strategy { validate: event::validate_new, cells: cells::new_event, ..NONE },
        ..PLAIN
    },
    review(
        "authentication.k8s.io",
        "SelfSubjectReview",
        "selfsubjectreviews",
        false,
        "io.k8s.api.authentication.v1.SelfSubjectReview",
    ),
    review(
        "authentication.k8s.io",
        "TokenReview",
        "tokenreviews",
        false,
        "io.k8s.api.authentication.v1.TokenReview",
    ),
    review(
        "authorization.k8s.io",
        "LocalSubjectAccessReview",
        "localsubjectaccessreviews",
        true,
        "io.k8s.api.authorization.v1.LocalSubjectAccessReview",
    ),
    review(
        "authorization.k8s.io",
        "SelfSubjectAccessReview",
        "selfsubjectaccessreviews",
        false,
        "io.k8s.api.authorization.v1.SelfSubjectAccessReview",
    ),
    review(
        "authorization.k8s.io",
        "SelfSubjectRulesReview",
        "selfsubjectrulesreviews",
        false,
        "io.k8s.api.authorization.v1.SelfSubjectRulesReview",
    ),
    review(
        "authorization.k8s.io",
        "SubjectAccessReview",
        "subjectaccessreviews",
        false,
        "io.k8s.api.authorization.v1.SubjectAccessReview",
    ),
    BuiltinKind {
        group: "policy",
        kind: "PodDisruptionBudget",
        plural: "poddisruptionbudgets",
        short: &["pdb"],
        subresources: &[STATUS],
        component: "io.k8s.api.policy.v1.PodDisruptionBudget",
        columns: &[
            NAME,
            text("Min Available"),
            text("Max Unavailable"),
            ("Allowed Disruptions", "integer", "", 0),
            AGE,
        ],
        status: StatusRule::Subresource,
        generation: true,
        unconditional_update: false,
        strategy: Strategy {
            validate: policy::validate_budget,
            create: policy::create_budget,
            cells: cells::budget,
            ..NONE
        },
        ..PLAIN
    },
    BuiltinKind {
        kind: "ClusterRoleBinding",
        plural: "clusterrolebindings",
        namespaced: false,
        component: "io.k8s.api.rbac.v1.ClusterRoleBinding",
        columns: BINDING_COLUMNS,
        strategy: BINDING,
        ..RBAC
    },
    BuiltinKind {
        kind: "ClusterRole",
        plural: "clusterroles",
        namespaced: false,
        component: "io.k8s.api.rbac.v1.ClusterRole",
        ..RBAC
    },
    BuiltinKind {
        kind: "RoleBinding",
        plural: "rolebindings",
        component: "io.k8s.api.rbac.v1.RoleBinding",
        columns: BINDING_COLUMNS,
        strategy: BINDING,
        ..RBAC
    },
    BuiltinKind { kind: "Role", plural: "roles", component: "io.k8s.api.rbac.v1.Role", ..RBAC },
    BuiltinKind {
        group: "storage.k8s.io",
        kind: "StorageClass",
        plural: "storageclasses",
        short: &["sc"],
        namespaced: false,
        component: "io.k8s.api.storage.v1.StorageClass",
        columns: &[
            NAME,
            text("Provisioner"),
            text("ReclaimPolicy"),
            text("VolumeBindingMode"),
            ("AllowVolumeExpansion", "boolean", "", 0),
            AGE,
        ],
        strategy: Strategy {
            default: storage::default_class,
            validate: storage::validate_class,
            validate_update: storage::validate_class_update,
            cells: cells::storage_class,
            ..NONE
        },
        ..PLAIN
    },
    BuiltinKind {
        group: "apiextensions.k8s.io",
        kind: "CustomResourceDefinition",
        plural: "customresourcedefinitions",
        short: &["crd", "crds"],
        categories: &["api-extensions"],
        namespaced: false,
        subresources: &[STATUS],
        component: "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition",
        columns: &[NAME, ("Created At", "date", "", 0)],
        status: StatusRule::Subresource,
        generation: true,
        unconditional_update: false,
        strategy: Strategy {
            default: crate::crd::default,
            create: crate::crd::create,
            validate: |crd, errors| errors.extend(crate::crd::validate(crd, None)),
            validate_update: |crd, old, errors| errors.extend(crate::crd::validate_update(crd, old)),
            cells: cells::role,
            ..NONE
        },
        ..PLAIN
    },
    BuiltinKind {
        group: "scheduling.k8s.io",
        kind: "PriorityClass",
        plural: "priorityclasses",
        short: &["pc"],
        namespaced: false,
        component: "io.k8s.api.scheduling.v1.PriorityClass",
        columns: &[
            NAME,
            ("Value", "integer", "", 0),
            ("Global-Default", "boolean", "", 0),
            AGE,
            text("PreemptionPolicy"),
        ],
        strategy: Strategy {
            default: policy::default_priority_class,
            validate: policy::validate_priority_class,
            validate_update: policy::validate_priority_class_update,
            cells: cells::priority_class,
            ..NONE
        },
        ..PLAIN
    },
    BuiltinKind {
        group: "coordination.k8s.io",
        kind: "Lease",
        plural: "leases",
        component: "io.k8s.api.coordination.v1.Lease",
        columns: &[NAME, text("Holder"), AGE],
        create_on_update: true,
        unconditional_update: false,
        strategy: Strategy { validate: policy::validate_lease, cells: cells::lease, ..NONE },
        ..PLAIN
    },
];

/// Every served built-in kind.
pub fn all() -> impl Iterator<Item = &'static BuiltinKind> {
    CORE_KINDS.iter().chain(&OTHER_KINDS)
}
