//! RFC 6902, RFC 7386 and strategic merge patches (KS §9.3, §9.4).

use serde_json::{Map, Value};

use crate::{
    schema::{NodeId, Schema, Strategic},
    status::Status,
};

/// Most operations a JSON patch may have.
const OPERATIONS_MAX: usize = 10_000;
const SET_ORDER: &str = "$setElementOrder/";
const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList/";

/// Applies a JSON patch (≤ 10 000 operations).
///
/// # Errors
/// 400 malformed, 413 too many operations, 422 impossible.
pub fn json(document: &Value, patch: &Value) -> Result<Value, Status> {
    if patch.as_array().is_some_and(|operations| operations.len() > OPERATIONS_MAX) {
        let count = patch.as_array().map_or(0, Vec::len);
        return Err(Status::new(
            413,
            "RequestEntityTooLarge",
            format!("The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {count}"),
        ));
    }
    let operations: json_patch::Patch = serde_json::from_value(patch.clone())
        .map_err(|error| Status::bad_request(format!("error decoding patch: {error}")))?;
    let mut patched = document.clone();
    json_patch::patch(&mut patched, &operations).map_err(|_| Status::rejected())?;
    Ok(patched)
}

/// Applies a merge patch.
#[must_use]
pub fn merge(document: &Value, patch: &Value) -> Value {
    let mut patched = document.clone();
    json_patch::merge(&mut patched, patch);
    patched
}

/// Applies a strategic merge patch to a built-in kind.
///
/// # Errors
/// 422 or 400 for a patch that does not fit.
pub fn strategic(schema: &Schema, document: &Value, patch: &Value) -> Result<Value, Status> {
    match (document, patch) {
        (Value::Object(document), Value::Object(patch)) => {
            Ok(Value::Object(Merger { schema }.object(Some(schema.root), document, patch)?))
        }
        _ => Err(Status::bad_request("a strategic merge patch must be an object")),
    }
}

struct Merger<'s> {
    schema: &'s Schema,
}

/// The `$patch` directive of an object.
fn directive(object: &Map<String, Value>) -> Option<&str> {
    object.get("$patch").and_then(Value::as_str)
}

fn without_directives(object: &Map<String, Value>) -> Map<String, Value> {
    object
        .iter()
        .filter(|(key, _)| !key.starts_with('$'))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

impl Merger<'_> {
    fn object(
        &self,
        id: Option<NodeId>,
        document: &Map<String, Value>,
        patch: &Map<String, Value>,
    ) -> Result<Map<String, Value>, Status> {
        match directive(patch) {
            Some("replace") => return Ok(without_directives(patch)),
            Some("delete") => return Ok(Map::new()),
            None | Some("merge") => {}
            Some(other) => return Err(Status::bad_request(format!("Unknown patch type found: {other}"))),
        }
        let mut out = document.clone();
        for (key, value) in patch {
            if let Some(list) = key.strip_prefix(DELETE_PRIMITIVES) {
                delete_primitives(&mut out, list, value);
            } else if !key.starts_with('$') {
                let order = patch.get(&format!("{SET_ORDER}{key}"));
                self.member(id.and_then(|id| self.schema.child(id, key)), &mut out, key, value, order)?;
            }
        }
        // An order without a list sorts what is there.
        for (key, order) in patch {
            if let Some(list) = key.strip_prefix(SET_ORDER)
                && !patch.contains_key(list)
                && let Some(Value::Array(elements)) = out.get_mut(list)
            {
                let node = id.and_then(|id| self.schema.child(id, list)).map(|id| self.schema.node(id));
                let merge_key = node.and_then(|node| merge_key(&node.strategic));
                let live = elements.clone();
                *elements = ordered(std::mem::take(elements), &live, Some(order), merge_key);
            }
        }
        if let Some(Value::Array(keep)) = patch.get("$retainKeys") {
            out.retain(|key, _| keep.iter().any(|k| k == key));
        }
        Ok(out)
    }

    fn member(
        &self,
        id: Option<NodeId>,
        out: &mut Map<String, Value>,
        key: &str,
        value: &Value,
        order: Option<&Value>,
    ) -> Result<(), Status> {
        let node = id.map(|id| self.schema.node(id));
        match value {
            Value::Null => {
                out.shift_remove(key);
            }
            Value::Object(patch) => {
                let replace = node.is_some_and(|node| node.strategic == Strategic::Replace);
                let empty = Map::new();
                let current = out.get(key).and_then(Value::as_object).filter(|_| !replace).unwrap_or(&empty);
                let merged = self.object(id, current, patch)?;
                out.insert(key.to_owned(), Value::Object(merged));
            }
            Value::Array(patch) => {
                let empty = Vec::new();
                let current = out.get(key).and_then(Value::as_array).unwrap_or(&empty);
                let merged = match node.map(|node| &node.strategic) {
                    Some(Strategic::MergeBy(merge_key) | Strategic::MergeByRetainKeys(merge_key)) => {
                        let items = node.and_then(|node| node.items);
                        let merged = self.list(items, merge_key, current, patch)?;
                        ordered(merged, current, order, Some(merge_key))
                    }
                    Some(Strategic::MergePrimitives) => {
                        let mut merged = current.clone();
                        for value in patch {
                            if !merged.contains(value) {
                                merged.push(value.clone());
                            }
                        }
                        ordered(merged, current, order, None)
                    }
                    Some(Strategic::Plain | Strategic::Replace) | None => patch.clone(),
                };
                out.insert(key.to_owned(), Value::Array(merged));
            }
            scalar => {
                out.insert(key.to_owned(), scalar.clone());
            }
        }
        Ok(())
    }

    fn list(
        &self,
        items: Option<NodeId>,
        merge_key: &str,
        current: &[Value],
        patch: &[Value],
    ) -> Result<Vec<Value>, Status> {
        let is_replace = |element: &Value| element.as_object().and_then(directive) == Some("replace");
        if patch.iter().any(is_replace) {
            let kept = patch
                .iter()
                .filter(|element| element.as_object().is_some_and(|o| o.len() > 1 || directive(o).is_none()));
            return Ok(kept
                .map(|element| {
                    element
                        .as_object()
                        .map_or_else(|| element.clone(), |o| Value::Object(without_directives(o)))
                })
                .collect());
        }
        let mut out = current.to_vec();
        for element in patch {
            let Some(object) = element.as_object() else {
                return Err(Status::bad_request("expected an object in a list merged by key"));
            };
            let Some(identity) = object.get(merge_key) else {
                return Err(Status::bad_request(format!(
                    "map: {element} does not contain declared merge key: {merge_key}"
                )));
            };
            let position = out.iter().position(|existing| existing.get(merge_key) == Some(identity));
            match (directive(object), position) {
                (Some("delete"), Some(position)) => {
                    out.remove(position);
                }
                (Some("delete"), None) => {}
                (_, Some(position)) => {
                    let empty = Map::new();
                    let merged = self.object(items, out[position].as_object().unwrap_or(&empty), object)?;
                    out[position] = Value::Object(merged);
                }
                (_, None) => out.push(Value::Object(self.object(items, &Map::new(), object)?)),
            }
        }
        Ok(out)
    }
}

fn merge_key(strategic: &Strategic) -> Option<&str> {
    match strategic {
        Strategic::MergeBy(key) | Strategic::MergeByRetainKeys(key) => Some(key),
        Strategic::Plain | Strategic::MergePrimitives | Strategic::Replace => None,
    }
}

fn delete_primitives(out: &mut Map<String, Value>, list: &str, values: &Value) {
    if let (Some(Value::Array(elements)), Some(values)) = (out.get_mut(list), values.as_array()) {
        elements.retain(|element| !values.contains(element));
    }
}

/// Sorts merged elements by `$setElementOrder`; elements it does not name keep their place
/// relative to the live list.
fn ordered(merged: Vec<Value>, live: &[Value], order: Option<&Value>, merge_key: Option<&str>) -> Vec<Value> {
    let Some(order) = order.and_then(Value::as_array) else {
        return merged;
    };
    let identity = |element: &Value| {
        merge_key.map_or_else(|| element.clone(), |key| element.get(key).cloned().unwrap_or_default())
    };
    let place = |element: &Value| order.iter().position(|o| identity(o) == identity(element));
    let live_place = |element: &Value| live.iter().position(|l| identity(l) == identity(element));
    let (mut named, rest): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|element| place(element).is_some());
    named.sort_by_key(|element| place(element));
    let mut out = Vec::with_capacity(named.len() + rest.len());
    let mut rest = rest.into_iter().peekable();
    for element in named {
        while let (Some(next), Some(own)) = (rest.peek(), live_place(&element)) {
            if live_place(next).is_some_and(|other| other < own) {
                out.extend(rest.next());
            } else {
                break;
            }
        }
        out.push(element);
    }
    out.extend(rest);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::builtin::definitions;

    fn pod_patch(document: &Value, patch: &Value) -> Value {
        let schema = Schema::builtin(definitions(), "io.k8s.api.core.v1.Pod");
        strategic(&schema, document, patch).unwrap()
    }

    // KS-A40
    #[test]
    fn strategic_directives() {
        let pod = json!({"metadata": {"finalizers": ["a/x", "b/y"], "labels": {"a": "1"}}, "spec": {
            "containers": [{"name": "a", "image": "1", "args": ["x"]}, {"name": "b", "image": "2"}],
            "tolerations": [{"key": "t"}],
            "volumes": [{"name": "v", "emptyDir": {}}]}});
        let table = [
            (
                json!({"spec": {"containers": [{"name": "b", "image": "3"}]}}),
                "/spec/containers/1/image",
                json!("3"),
            ),
            (json!({"spec": {"containers": [{"name": "c"}]}}), "/spec/containers/2/name", json!("c")),
            (
                json!({"spec": {"containers": [{"name": "a", "$patch": "delete"}]}}),
                "/spec/containers",
                json!([{"name": "b", "image": "2"}]),
            ),
            (
                json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "z"}]}}),
                "/spec/containers",
                json!([{"name": "z"}]),
            ),
            (
                json!({"spec": {"containers": [{"name": "a", "args": ["y"]}]}}),
                "/spec/containers/0/args",
                json!(["y"]),
            ),
            (json!({"spec": {"tolerations": [{"key": "u"}]}}), "/spec/tolerations", json!([{"key": "u"}])),
            (
                json!({"metadata": {"finalizers": ["c/z"]}}),
                "/metadata/finalizers",
                json!(["a/x", "b/y", "c/z"]),
            ),
            (
                json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a/x"]}}),
                "/metadata/finalizers",
                json!(["b/y"]),
            ),
            (json!({"metadata": {"labels": {"a": null, "b": "2"}}}), "/metadata/labels", json!({"b": "2"})),
            (
                json!({"metadata": {"labels": {"$patch": "replace", "z": "1"}}}),
                "/metadata/labels",
                json!({"z": "1"}),
            ),
            (
                json!({"spec": {"volumes": [{"name": "v", "$retainKeys": ["name", "secret"], "secret": {"secretName": "s"}}]}}),
                "/spec/volumes/0",
                json!({"name": "v", "secret": {"secretName": "s"}}),
            ),
            (
                json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}}),
                "/spec/containers/0/name",
                json!("b"),
            ),
            (json!({"spec": {"unschedulable": true}}), "/spec/unschedulable", json!(true)),
        ];
        for (patch, pointer, expected) in table {
            assert_eq!(pod_patch(&pod, &patch).pointer(pointer), Some(&expected), "{patch}");
        }
        let no_key = strategic(
            &Schema::builtin(definitions(), "io.k8s.api.core.v1.Pod"),
            &pod,
            &json!({"spec": {"containers": [{"image": "x"}]}}),
        );
        assert_eq!(no_key.unwrap_err().code, 400);
    }

    #[test]
    fn json_patches() {
        let document = json!({"a": {"b": 1}, "l": [1, 2]});
        let patched = json(
            &document,
            &json!([{"op": "test", "path": "/a/b", "value": 1}, {"op": "add", "path": "/l/-", "value": 3}]),
        )
        .unwrap();
        assert_eq!(patched, json!({"a": {"b": 1}, "l": [1, 2, 3]}));
        for (patch, code) in [
            (json!([{"op": "test", "path": "/a/b", "value": 2}]), 422),
            (json!([{"op": "remove", "path": "/x"}]), 422),
            (json!([{"op": "fly", "path": "/x"}]), 400),
            (json!({"a": 1}), 400),
            (json!(vec![json!({"op": "remove", "path": "/x"}); 10_001]), 413),
        ] {
            assert_eq!(super::json(&document, &patch).unwrap_err().code, code);
        }
    }

    fn tree() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[a-z]{0,3}".prop_map(Value::from)
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::Array),
                prop::collection::btree_map("[a-d]", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn merge_patch_is_idempotent(document in tree(), patch in tree()) {
            let once = merge(&document, &patch);
            prop_assert_eq!(merge(&once, &patch), once);
        }

        #[test]
        fn diff_and_merge_round_trip(a in tree(), b in tree()) {
            // The patch that turns every member of `a` not in `b` to null gives `b` back.
            let (Value::Object(a), Value::Object(b)) = (a, b) else { return Ok(()) };
            let mut patch = Map::new();
            for key in a.keys() {
                patch.insert(key.clone(), Value::Null);
            }
            let emptied = merge(&Value::Object(a), &Value::Object(patch));
            prop_assert_eq!(merge(&emptied, &Value::Object(b.clone())), Value::Object(b));
        }
    }
}
