//! `/openapi/v3` and `/openapi/v2` documents generated from the served kinds (KS §5).

mod gnostic;
mod paths;
mod swagger;

use std::sync::Arc;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha512};

use crate::{builtin, kind::Kind};

/// Where components stand in v3 documents.
pub(crate) const COMPONENTS: &str = "#/components/schemas/";
const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";

/// The v3 document of one group-version; kinds of others are ignored.
#[must_use]
pub fn v3(group: &str, version: &str, kinds: &[Arc<Kind>]) -> Value {
    let own: Vec<&Kind> =
        kinds.iter().map(Arc::as_ref).filter(|kind| kind.group == group && kind.version == version).collect();
    let mut components = Components::default();
    let mut documented = Map::new();
    for kind in own {
        components.add_kind(kind);
        paths::add(kind, &mut documented);
    }
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "v1.36.0"},
        "paths": documented,
        "components": {"schemas": components.finish()},
    })
}

/// Root of `/openapi/v3`: `(path such as "apis/g/v", hash)` pairs.
#[must_use]
pub fn v3_root(documents: &[(String, String)]) -> Value {
    let paths: Map<String, Value> = documents
        .iter()
        .map(|(path, hash)| {
            (path.clone(), json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={hash}")}))
        })
        .collect();
    json!({ "paths": paths })
}

/// Hash used in `?hash=` and as ETag.
#[must_use]
pub fn hash(document: &[u8]) -> String {
    Sha512::digest(document).iter().map(|byte| format!("{byte:02X}")).collect()
}

/// Swagger 2.0 of all served kinds.
#[must_use]
pub fn v2(kinds: &[Arc<Kind>], git_version: &str) -> Value {
    swagger::document(kinds, git_version)
}

/// The v2 document as gnostic protobuf for kubectl 1.28 and older.
#[must_use]
pub fn v2_protobuf(kinds: &[Arc<Kind>], git_version: &str) -> Vec<u8> {
    gnostic::encode(&swagger::document(kinds, git_version))
}

/// Component name of a kind: built-ins have their Go name, custom ones the reversed group.
pub(crate) fn component(kind: &Kind) -> String {
    kind.builtin_component().map_or_else(
        || {
            let reversed: Vec<&str> = kind.group.split('.').rev().collect();
            format!("{}.{}.{}", reversed.join("."), kind.version, kind.kind)
        },
        str::to_owned,
    )
}

fn gvk(group: &str, version: &str, kind: &str) -> Value {
    json!({"group": group, "version": version, "kind": kind})
}

/// Schemas of a document, with everything they refer to.
#[derive(Default)]
pub(crate) struct Components {
    schemas: Map<String, Value>,
}

impl Components {
    /// Adds the schema of a kind and of its list.
    pub(crate) fn add_kind(&mut self, kind: &Kind) {
        let name = component(kind);
        let mut schema = kind.schema.document.clone();
        if kind.is_custom() {
            complete(&mut schema);
        }
        schema["x-kubernetes-group-version-kind"] = json!([gvk(&kind.group, &kind.version, &kind.kind)]);
        self.add(&name, schema);
        if kind.verbs.contains(&"list") {
            self.add(&format!("{name}List"), list_schema(kind, &name));
        }
        for body in kind.subresources.iter().filter_map(|sub| sub.body.as_ref()) {
            let (group, version, kind) = body;
            let found =
                builtin::definitions().schemas.keys().find(|n| n.ends_with(&format!(".{version}.{kind}")));
            if let Some(found) = found.cloned()
                && !self.schemas.contains_key(&found)
            {
                let mut schema = builtin::definitions().schemas[&found].clone();
                schema["x-kubernetes-group-version-kind"] = json!([gvk(group, version, kind)]);
                self.add(&found, schema);
            }
        }
    }

    fn add(&mut self, name: &str, schema: Value) {
        let references = references(&schema);
        self.schemas.insert(name.to_owned(), schema);
        for reference in references {
            if !self.schemas.contains_key(&reference)
                && let Some(schema) = builtin::definitions().schemas.get(&reference)
            {
                self.add(&reference, schema.clone());
            }
        }
    }

    /// All components, in name order.
    pub(crate) fn finish(self) -> Map<String, Value> {
        let mut sorted: Vec<(String, Value)> = self.schemas.into_iter().collect();
        sorted.sort_by(|a, b| a.0.cmp(&b.0));
        sorted.into_iter().collect()
    }
}

/// A custom resource has type and metadata besides its declared fields.
fn complete(schema: &mut Value) {
    if !schema["properties"].is_object() {
        schema["properties"] = json!({});
    }
    let properties = &mut schema["properties"];
    properties["apiVersion"] = json!({"type": "string", "description": "APIVersion defines the versioned schema of this representation of an object."});
    properties["kind"] = json!({"type": "string", "description": "Kind is a string value representing the REST resource this object represents."});
    properties["metadata"] = json!({"description": "Standard object's metadata.", "allOf": [{"$ref": format!("{COMPONENTS}{OBJECT_META}")}]});
}

fn list_schema(kind: &Kind, item: &str) -> Value {
    json!({
        "description": format!("{} is a list of {}", kind.list_kind, kind.kind),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"allOf": [{"$ref": format!("{COMPONENTS}{LIST_META}")}]},
            "items": {"type": "array", "items": {"allOf": [{"$ref": format!("{COMPONENTS}{item}")}]}},
        },
        "x-kubernetes-group-version-kind": [gvk(&kind.group, &kind.version, &kind.list_kind)],
    })
}

/// Names of the components a schema refers to.
fn references(schema: &Value) -> Vec<String> {
    let mut out = Vec::new();
    let mut left = vec![schema];
    while let Some(value) = left.pop() {
        match value {
            Value::Object(map) => {
                if let Some(name) =
                    map.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix(COMPONENTS))
                {
                    out.push(name.to_owned());
                }
                left.extend(map.values());
            }
            Value::Array(list) => left.extend(list),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    out
}

#[cfg(test)]
mod tests;
