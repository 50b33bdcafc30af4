//! Path items: which operations exist and which query parameters and patch types they take.

use serde_json::{Map, Value, json};

use super::{COMPONENTS, component, gvk};
use crate::kind::Kind;

/// Patch types of built-in kinds.
const BUILTIN_PATCHES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];
/// Patch types of custom resources.
const CUSTOM_PATCHES: [&str; 3] =
    ["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"];

/// Patch types of a kind.
pub(super) fn patch_types(kind: &Kind) -> &'static [&'static str] {
    if kind.is_custom() { &CUSTOM_PATCHES } else { &BUILTIN_PATCHES }
}

/// URL prefix of a kind's resource.
fn base(kind: &Kind) -> String {
    let root = if kind.group.is_empty() {
        format!("/api/{}", kind.version)
    } else {
        format!("/apis/{}/{}", kind.group, kind.version)
    };
    if kind.namespaced {
        format!("{root}/namespaces/{{namespace}}/{}", kind.plural)
    } else {
        format!("{root}/{}", kind.plural)
    }
}

/// One operation in terms both document versions understand.
pub(super) struct Operation {
    /// Path.
    pub path: String,
    /// HTTP method, lower case.
    pub method: &'static str,
    /// `x-kubernetes-action`.
    pub action: &'static str,
    /// Query parameters: name and type.
    pub query: Vec<(&'static str, &'static str)>,
    /// Whether a body is sent.
    pub body: bool,
    /// Subresource with its own body kind.
    pub body_kind: Option<(String, String, String)>,
}

const WRITE: [(&str, &str); 3] =
    [("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")];
const LIST: [(&str, &str); 7] = [
    ("allowWatchBookmarks", "boolean"),
    ("continue", "string"),
    ("fieldSelector", "string"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("resourceVersion", "string"),
    ("watch", "boolean"),
];

/// All operations of a kind.
pub(super) fn operations(kind: &Kind) -> Vec<Operation> {
    let collection = base(kind);
    let item = format!("{collection}/{{name}}");
    let mut out = Vec::new();
    for verb in &kind.verbs {
        let (path, method, action, query, body) = match *verb {
            "list" => (&collection, "get", "list", LIST.to_vec(), false),
            "create" => (&collection, "post", "post", WRITE.to_vec(), true),
            "deletecollection" => (&collection, "delete", "deletecollection", LIST.to_vec(), false),
            "get" => (&item, "get", "get", Vec::new(), false),
            "update" => (&item, "put", "put", WRITE.to_vec(), true),
            "patch" => {
                (&item, "patch", "patch", WRITE.iter().copied().chain([("force", "boolean")]).collect(), true)
            }
            "delete" => (
                &item,
                "delete",
                "delete",
                vec![
                    ("dryRun", "string"),
                    ("gracePeriodSeconds", "integer"),
                    ("propagationPolicy", "string"),
                ],
                false,
            ),
            _ => continue,
        };
        out.push(Operation { path: path.clone(), method, action, query, body, body_kind: None });
    }
    for sub in &kind.subresources {
        for verb in &sub.verbs {
            let (method, query, body) = match *verb {
                "get" => ("get", Vec::new(), false),
                "create" => ("post", WRITE.to_vec(), true),
                "update" => ("put", WRITE.to_vec(), true),
                "patch" => ("patch", WRITE.iter().copied().chain([("force", "boolean")]).collect(), true),
                _ => continue,
            };
            let action = if method == "get" && sub.name == "log" { "connect" } else { method };
            out.push(Operation {
                path: format!("{item}/{}", sub.name),
                method,
                action,
                query,
                body,
                body_kind: sub.body.clone(),
            });
        }
    }
    out
}

/// A unique id of an operation.
pub(super) fn operation_id(operation: &Operation, kind: &Kind) -> String {
    let group: String = kind.group.split('.').map(capital).collect();
    let tail: String = operation
        .path
        .rsplit('/')
        .take_while(|part| *part != "{name}")
        .filter(|part| *part != kind.plural)
        .map(capital)
        .collect();
    let scope = if kind.namespaced { "Namespaced" } else { "" };
    format!("{}{group}{}{scope}{}{tail}", operation.action, capital(&kind.version), kind.kind)
}

fn capital(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(chars).filter(|c| c.is_alphanumeric()).collect()
    })
}

/// Adds the v3 path items of a kind.
pub(super) fn add(kind: &Kind, paths: &mut Map<String, Value>) {
    let own = json!({"$ref": format!("{COMPONENTS}{}", component(kind))});
    for operation in operations(kind) {
        let mut out = json!({
            "operationId": operation_id(&operation, kind),
            "x-kubernetes-action": operation.action,
            "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": own}}}, "401": {"description": "Unauthorized"}},
        });
        let body_kind = operation.body_kind.as_ref();
        out["x-kubernetes-group-version-kind"] =
            body_kind.map_or_else(|| gvk(&kind.group, &kind.version, &kind.kind), |(g, v, k)| gvk(g, v, k));
        let query = operation.query.iter().map(
            |(name, ty)| json!({"name": name, "in": "query", "schema": {"type": ty, "uniqueItems": true}}),
        );
        out["parameters"] = Value::Array(query.collect());
        if operation.body {
            let types: &[&str] = if operation.method == "patch" { patch_types(kind) } else { &["*/*"] };
            let schema = if operation.method == "patch" { json!({"type": "object"}) } else { own.clone() };
            let content: Map<String, Value> =
                types.iter().map(|ty| ((*ty).to_owned(), json!({"schema": schema}))).collect();
            out["requestBody"] = json!({"required": true, "content": content});
        }
        let item = paths.entry(operation.path.clone()).or_insert_with(|| {
            let mut parameters = Vec::new();
            for name in ["name", "namespace"] {
                if operation.path.contains(&format!("{{{name}}}")) {
                    parameters.push(json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "uniqueItems": true}}));
                }
            }
            json!({ "parameters": parameters })
        });
        item[operation.method] = out;
    }
}
