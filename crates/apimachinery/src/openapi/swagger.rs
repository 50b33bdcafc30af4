//! Swagger 2.0: the same facts in the older form.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::{COMPONENTS, Components, component, gvk, paths};
use crate::kind::Kind;

const DEFINITIONS: &str = "#/definitions/";
/// Keywords the older form does not know.
const UNKNOWN: [&str; 5] = ["nullable", "anyOf", "oneOf", "not", "writeOnly"];

/// The whole document.
pub(super) fn document(kinds: &[Arc<Kind>], git_version: &str) -> Value {
    let mut components = Components::default();
    let mut out = Map::new();
    for kind in kinds {
        components.add_kind(kind);
        add_paths(kind, &mut out);
    }
    let definitions: Map<String, Value> =
        components.finish().into_iter().map(|(name, schema)| (name, older(schema))).collect();
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": git_version},
        "paths": out,
        "definitions": definitions,
    })
}

/// A schema without what Swagger lacks; references with siblings stand alone.
fn older(schema: Value) -> Value {
    match schema {
        Value::Object(map) => {
            let reference = map
                .get("allOf")
                .and_then(Value::as_array)
                .filter(|list| list.len() == 1)
                .and_then(|list| list[0].get("$ref"))
                .cloned();
            let mut out = Map::new();
            for (name, value) in map {
                if UNKNOWN.contains(&name.as_str()) || (name == "allOf") {
                    continue;
                }
                // Below `properties` the names are fields, not keywords.
                let value = if name == "properties" { fields(value) } else { older(value) };
                out.insert(name, value);
            }
            if let Some(reference) = reference {
                out.insert("$ref".into(), reference);
            }
            if let Some(Value::String(target)) = out.get_mut("$ref") {
                *target = target.replace(COMPONENTS, DEFINITIONS);
            }
            Value::Object(out)
        }
        Value::Array(list) => Value::Array(list.into_iter().map(older).collect()),
        scalar => scalar,
    }
}

fn fields(properties: Value) -> Value {
    match properties {
        Value::Object(map) => {
            Value::Object(map.into_iter().map(|(name, schema)| (name, older(schema))).collect())
        }
        other => older(other),
    }
}

fn add_paths(kind: &Kind, out: &mut Map<String, Value>) {
    let own = json!({"$ref": format!("{DEFINITIONS}{}", component(kind))});
    for operation in paths::operations(kind) {
        let mut parameters: Vec<Value> = operation
            .query
            .iter()
            .map(|(name, ty)| json!({"name": name, "in": "query", "type": ty, "uniqueItems": true}))
            .collect();
        let mut consumes = vec![json!("*/*")];
        if operation.body {
            let schema = if operation.method == "patch" { json!({"type": "object"}) } else { own.clone() };
            parameters.insert(0, json!({"name": "body", "in": "body", "required": true, "schema": schema}));
            if operation.method == "patch" {
                consumes = paths::patch_types(kind).iter().map(|ty| json!(ty)).collect();
            }
        }
        let body_kind = operation.body_kind.as_ref();
        let described = json!({
            "operationId": paths::operation_id(&operation, kind),
            "consumes": consumes,
            "produces": ["application/json"],
            "parameters": parameters,
            "responses": {"200": {"description": "OK", "schema": own}, "401": {"description": "Unauthorized"}},
            "x-kubernetes-action": operation.action,
            "x-kubernetes-group-version-kind": body_kind.map_or_else(|| gvk(&kind.group, &kind.version, &kind.kind), |(g, v, k)| gvk(g, v, k)),
        });
        let item = out.entry(operation.path.clone()).or_insert_with(|| json!({}));
        item[operation.method] = described;
    }
}
