use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::kind;

fn pod_kind() -> Arc<Kind> {
    kind::builtins().into_iter().find(|k| k.kind == "Pod").unwrap()
}

fn widget_kind() -> Arc<Kind> {
    let schema = json!({"type": "object", "properties": {
        "spec": {"type": "object", "properties": {
            "cpu": {"type": "object", "properties": {"cores": {"type": "integer"}, "model": {"type": "string"}}},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "atomic": {"type": "array", "items": {"type": "string"}},
            "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
            "list": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": {"type": "object", "required": ["k"], "properties": {"k": {"type": "string"}, "v": {"type": "integer"}, "w": {"type": "integer"}}}},
        }},
        "status": {"type": "object", "properties": {"phase": {"type": "string"}, "ready": {"type": "boolean"}}},
    }});
    let crd = json!({"metadata": {"name": "widgets.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
        "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"},
        "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}}, "schema": {"openAPIV3Schema": schema}}]}});
    crate::crd::compile(&crd).unwrap().served.remove(0)
}

fn widget(spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w", "namespace": "default"}, "spec": spec})
}

fn by(manager: &str) -> Writer<'_> {
    Writer { manager, subresource: "", endpoint: Endpoint::Main, now: "2026-11-20T12:00:00Z" }
}

fn entry<'v>(object: &'v Value, manager: &str, operation: &str) -> Option<&'v Value> {
    object["metadata"]["managedFields"]
        .as_array()?
        .iter()
        .find(|e| e["manager"] == manager && e["operation"] == operation)
}

fn applied(kind: &Kind, live: Option<&Value>, spec: Value, manager: &str) -> Value {
    apply(kind, live, &widget(spec), by(manager), false).unwrap()
}

// KS-A42
#[test]
fn create_no_op_change_and_removal() {
    let kind = widget_kind();
    let first = applied(&kind, None, json!({"cpu": {"cores": 2, "model": "x"}}), "m1");
    assert_eq!(
        entry(&first, "m1", "Apply").unwrap()["fieldsV1"],
        json!({"f:spec": {"f:cpu": {"f:cores": {}, "f:model": {}}}})
    );
    let later = Writer { now: "2026-11-20T13:00:00Z", ..by("m1") };
    let same = apply(&kind, Some(&first), &widget(json!({"cpu": {"cores": 2, "model": "x"}})), later, false)
        .unwrap();
    assert_eq!(same, first);
    let changed = apply(&kind, Some(&first), &widget(json!({"cpu": {"cores": 4}})), later, false).unwrap();
    assert_eq!(changed["spec"], json!({"cpu": {"cores": 4}}));
    assert_eq!(entry(&changed, "m1", "Apply").unwrap()["time"], "2026-11-20T13:00:00Z");
    // Nothing left: the container goes with its last field.
    let emptied = apply(&kind, Some(&changed), &widget(json!({"labels": {"a": "1"}})), later, false).unwrap();
    assert_eq!(emptied["spec"], json!({"labels": {"a": "1"}}));
}

// KS-A42
#[test]
fn conflicts_name_manager_and_field_and_force_takes_over() {
    let kind = widget_kind();
    let first = applied(&kind, None, json!({"cpu": {"cores": 2}}), "m1");
    let refused =
        apply(&kind, Some(&first), &widget(json!({"cpu": {"cores": 3}})), by("m2"), false).unwrap_err();
    assert_eq!(
        (refused.code, refused.message.as_str()),
        (409, "Apply failed with 1 conflict: conflict with \"m1\": .spec.cpu.cores")
    );
    let cause = &refused.details.unwrap().causes[0];
    assert_eq!(
        (cause.reason.as_str(), cause.message.as_str(), cause.field.as_str()),
        ("FieldManagerConflict", "conflict with \"m1\"", ".spec.cpu.cores")
    );
    let forced = apply(&kind, Some(&first), &widget(json!({"cpu": {"cores": 3}})), by("m2"), true).unwrap();
    assert_eq!((entry(&forced, "m1", "Apply"), &forced["spec"]["cpu"]["cores"]), (None, &json!(3)));
    let several = apply(
        &kind,
        Some(&applied(&kind, None, json!({"cpu": {"cores": 2, "model": "a"}}), "m1")),
        &widget(json!({"cpu": {"cores": 3, "model": "b"}})),
        by("m2"),
        false,
    );
    assert_eq!(
        several.unwrap_err().message,
        "Apply failed with 2 conflicts: conflicts with \"m1\":\n- .spec.cpu.cores\n- .spec.cpu.model"
    );
}

// KS-A42
#[test]
fn shared_fields_stay_until_the_last_owner_drops_them() {
    let kind = widget_kind();
    let one = applied(&kind, None, json!({"cpu": {"cores": 2}}), "m1");
    let both = applied(&kind, Some(&one), json!({"cpu": {"cores": 2}}), "m2");
    assert!(entry(&both, "m1", "Apply").is_some() && entry(&both, "m2", "Apply").is_some());
    let dropped = applied(&kind, Some(&both), json!({"labels": {"a": "1"}}), "m1");
    assert_eq!(dropped["spec"]["cpu"]["cores"], 2);
    let gone = applied(&kind, Some(&dropped), json!({"labels": {"a": "1"}}), "m2");
    assert_eq!(gone["spec"], json!({"labels": {"a": "1"}}));
}

// KS-A43
#[test]
fn lists_maps_sets_and_atomics() {
    let kind = widget_kind();
    let one =
        applied(&kind, None, json!({"list": [{"k": "a", "v": 1}], "set": ["x"], "atomic": ["1"]}), "m1");
    assert_eq!(
        entry(&one, "m1", "Apply").unwrap()["fieldsV1"],
        json!({"f:spec": {"f:atomic": {}, "f:list": {"k:{\"k\":\"a\"}": {".": {}, "f:k": {}, "f:v": {}}}, "f:set": {"v:\"x\"": {}}}})
    );
    let two = applied(
        &kind,
        Some(&one),
        json!({"list": [{"k": "b", "v": 2}, {"k": "a", "w": 5}], "set": ["y"]}),
        "m2",
    );
    assert_eq!(two["spec"]["list"], json!([{"k": "b", "v": 2}, {"k": "a", "v": 1, "w": 5}]));
    assert_eq!(two["spec"]["set"], json!(["x", "y"]));
    let conflict = apply(
        &kind,
        Some(&two),
        &widget(json!({"list": [{"k": "a", "v": 9}], "atomic": ["2"]})),
        by("m3"),
        false,
    )
    .unwrap_err();
    assert_eq!(
        conflict.details.unwrap().causes.iter().map(|c| c.field.clone()).collect::<Vec<_>>(),
        [".spec.atomic", ".spec.list[k=\"a\"].v"]
    );
    let without = applied(&kind, Some(&two), json!({"atomic": ["1"]}), "m1");
    assert_eq!(
        without["spec"],
        json!({"list": [{"k": "b", "v": 2}, {"k": "a", "w": 5}], "set": ["y"], "atomic": ["1"]})
    );
}

// KS-A43
#[test]
fn pod_containers_and_ports_with_their_default_key() {
    let kind = pod_kind();
    let pod = |spec: Value| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"}, "spec": spec});
    let live = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"}, "spec": {"containers": [{"name": "a", "image": "1", "ports": [{"containerPort": 80, "protocol": "TCP"}]}]}});
    let mut created = live.clone();
    track(&kind, None, &mut created, by("maker"));
    let merged = apply(
        &kind,
        Some(&created),
        &pod(json!({"containers": [{"name": "a", "ports": [{"containerPort": 80, "name": "web"}]}]})),
        by("m1"),
        false,
    )
    .unwrap();
    assert_eq!(
        merged["spec"]["containers"],
        json!([{"name": "a", "image": "1", "ports": [{"containerPort": 80, "protocol": "TCP", "name": "web"}]}])
    );
    let conflict = apply(
        &kind,
        Some(&created),
        &pod(json!({"containers": [{"name": "a", "image": "2"}]})),
        by("m1"),
        false,
    )
    .unwrap_err();
    assert_eq!(
        conflict.message,
        "Apply failed with 1 conflict: conflict with \"maker\" using v1: .spec.containers[name=\"a\"].image"
    );
}

// KS-A45
#[test]
fn updates_move_ownership_and_old_ones_are_merged() {
    let kind = widget_kind();
    let one = applied(&kind, None, json!({"cpu": {"cores": 2, "model": "x"}}), "m1");
    let mut edited = one.clone();
    edited["spec"]["cpu"]["cores"] = json!(8);
    edited["spec"]["labels"] = json!({"a": "1"});
    track(&kind, Some(&one), &mut edited, by("editor"));
    assert_eq!(
        entry(&edited, "m1", "Apply").unwrap()["fieldsV1"],
        json!({"f:spec": {"f:cpu": {"f:model": {}}}})
    );
    assert_eq!(
        entry(&edited, "editor", "Update").unwrap()["fieldsV1"],
        json!({"f:spec": {"f:cpu": {"f:cores": {}}, "f:labels": {".": {}, "f:a": {}}}})
    );
    let refused =
        apply(&kind, Some(&edited), &widget(json!({"cpu": {"cores": 2, "model": "x"}})), by("m1"), false)
            .unwrap_err();
    assert_eq!(
        refused.message,
        "Apply failed with 1 conflict: conflict with \"editor\" using example.com/v1: .spec.cpu.cores"
    );
    let mut cleared = edited.clone();
    cleared["metadata"]["managedFields"] = json!([{}]);
    track(&kind, Some(&edited), &mut cleared, by("editor"));
    assert!(cleared["metadata"].get("managedFields").is_none());
    let mut live = edited;
    for number in 0..12 {
        let mut next = live.clone();
        next["spec"]["labels"][format!("k{number}")] = json!("v");
        let manager = format!("u{number}");
        track(
            &kind,
            Some(&live),
            &mut next,
            Writer { now: &format!("2026-11-20T14:{number:02}:00Z"), ..by(&manager) },
        );
        live = next;
    }
    let updates: Vec<&Value> = live["metadata"]["managedFields"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|e| e["operation"] == "Update")
        .collect();
    assert!(updates.len() <= 10, "{}", updates.len());
    assert!(entry(&live, "ancient-changes", "Update").is_some() && entry(&live, "u11", "Update").is_some());
}

// KS-A43
#[test]
fn status_managers_own_status_only() {
    let kind = widget_kind();
    let live = applied(&kind, None, json!({"cpu": {"cores": 2}}), "m1");
    let mut patch = widget(json!({"cpu": {"cores": 99}}));
    patch["status"] = json!({"phase": "Running"});
    let writer = Writer {
        manager: "agent",
        subresource: "status",
        endpoint: Endpoint::Status,
        now: "2026-11-20T12:00:00Z",
    };
    let mut merged = apply(&kind, Some(&live), &patch, writer, false).unwrap();
    kind.prepare_update(&mut merged, &live, Endpoint::Status);
    assert_eq!((&merged["spec"]["cpu"]["cores"], &merged["status"]["phase"]), (&json!(2), &json!("Running")));
    let own = entry(&merged, "agent", "Apply").unwrap();
    assert_eq!(
        (&own["subresource"], &own["fieldsV1"]),
        (&json!("status"), &json!({"f:status": {"f:phase": {}}}))
    );
    let other = Writer { manager: "other", ..writer };
    patch["status"] = json!({"phase": "Stopped"});
    let refused = apply(&kind, Some(&merged), &patch, other, false).unwrap_err();
    assert_eq!(
        refused.message,
        "Apply failed with 1 conflict: conflict with \"agent\" with subresource \"status\": .status.phase"
    );
}

// KS-A44
#[test]
fn client_side_apply_migrates_to_one_entry() {
    let kind = widget_kind();
    let mut live = widget(json!({"cpu": {"cores": 2}}));
    live["metadata"]["annotations"] = json!({LAST_APPLIED: widget(json!({"cpu": {"cores": 2}})).to_string()});
    track(&kind, None, &mut live, by("kubectl-client-side-apply"));
    // kubectl may change what it applied itself.
    let merged =
        apply(&kind, Some(&live), &widget(json!({"cpu": {"cores": 4}})), by("kubectl"), false).unwrap();
    assert_eq!(merged["spec"]["cpu"]["cores"], 4);
    assert!(apply(&kind, Some(&live), &widget(json!({"cpu": {"cores": 4}})), by("someone"), false).is_err());
}

#[test]
fn objects_without_managers_and_bad_bodies() {
    let kind = widget_kind();
    let live = widget(json!({"cpu": {"cores": 2, "model": "x"}}));
    let refused =
        apply(&kind, Some(&live), &widget(json!({"cpu": {"cores": 3}})), by("m1"), false).unwrap_err();
    assert_eq!(
        refused.message,
        "Apply failed with 1 conflict: conflict with \"before-first-apply\" using example.com/v1: .spec.cpu.cores"
    );
    let mut untracked = live.clone();
    untracked["spec"]["cpu"]["cores"] = json!(9);
    track(&kind, Some(&live), &mut untracked, by("x"));
    assert!(untracked["metadata"].get("managedFields").is_none());
    let undeclared = apply(&kind, None, &widget(json!({"foo": 1})), by("m1"), false).unwrap_err();
    assert_eq!(
        undeclared.message,
        "failed to create typed patch object (default/w; example.com/v1, Kind=Widget): .spec.foo: field not declared in schema"
    );
    let mut with_fields = live;
    with_fields["metadata"]["managedFields"] = json!([{"manager": "x"}]);
    assert_eq!(
        apply(&kind, None, &with_fields, by("m1"), false).unwrap_err().message,
        "metadata.managedFields must be nil"
    );
    let twice =
        apply(&kind, None, &widget(json!({"list": [{"k": "a"}, {"k": "a"}]})), by("m1"), false).unwrap_err();
    assert!(twice.message.ends_with(".spec.list: duplicate entries for key [k=\"a\"]"), "{}", twice.message);
}

fn spec() -> impl Strategy<Value = Value> {
    let cpu = (prop::option::of(0..3_i64), prop::option::of("[ab]")).prop_map(|(cores, model)| {
        let mut out = Map::new();
        if let Some(cores) = cores {
            out.insert("cores".into(), json!(cores));
        }
        if let Some(model) = model {
            out.insert("model".into(), json!(model));
        }
        Value::Object(out)
    });
    let list = prop::collection::btree_map("[abc]", (0..3_i64, prop::option::of(0..3_i64)), 0..3).prop_map(
        |items| {
            let items = items.into_iter().map(|(k, (v, w))| {
                w.map_or_else(|| json!({"k": k, "v": v}), |w| json!({"k": k, "v": v, "w": w}))
            });
            Value::Array(items.collect())
        },
    );
    let set = prop::collection::btree_set("[abc]", 0..3).prop_map(|set| json!(set));
    let labels = prop::collection::btree_map("[abc]", "[xy]", 0..3).prop_map(|map| json!(map));
    (cpu, list, set, labels)
        .prop_map(|(cpu, list, set, labels)| json!({"cpu": cpu, "list": list, "set": set, "labels": labels}))
}

proptest! {
    #[test]
    fn applying_twice_changes_nothing(a in spec(), b in spec()) {
        let kind = widget_kind();
        let base = applied(&kind, None, a, "m1");
        let once = apply(&kind, Some(&base), &widget(b.clone()), by("m2"), true).unwrap();
        let later = Writer { now: "2030-01-01T00:00:00Z", ..by("m2") };
        let twice = apply(&kind, Some(&once), &widget(b), later, false).unwrap();
        prop_assert_eq!(once, twice);
    }

    #[test]
    fn a_sole_manager_gets_exactly_what_it_applies(a in spec(), b in spec()) {
        let kind = widget_kind();
        let typed = Typed { schema: &kind.schema };
        let live = applied(&kind, None, a, "m1");
        let next = applied(&kind, Some(&live), b.clone(), "m1");
        // Empty containers may remain or not; owned leaves are exactly those of `b`.
        let leaves = |object: &Value| owned(&kind, object, Endpoint::Main).paths().into_iter().filter(|p| p.len() > 2).collect::<Vec<_>>();
        prop_assert_eq!(leaves(&next), leaves(&widget(b.clone())));
        let difference = typed.compare(&tracked(&kind, &next, Endpoint::Main), &tracked(&kind, &widget(b), Endpoint::Main));
        prop_assert!(difference.modified.paths().iter().all(|path| path.len() <= 2), "{:?}", difference);
    }

    #[test]
    fn field_sets_survive_the_wire(a in spec()) {
        let kind = widget_kind();
        let set = owned(&kind, &widget(a), Endpoint::Main);
        prop_assert_eq!(FieldSet::from_value(&set.to_value()), Some(set));
    }
}
