use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::kind::Endpoint;

fn definition(schema: &Value) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"},
            "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}}, "schema": {"openAPIV3Schema": schema}}],
        },
    })
}

fn widget_kind(spec: Value) -> Arc<Kind> {
    let schema = json!({"type": "object", "properties": {"spec": spec, "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}});
    let crd = definition(&schema);
    assert_eq!(validate(&crd, None), []);
    compile(&crd).unwrap().served.remove(0)
}

fn widget(spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w", "namespace": "default"}, "spec": spec})
}

fn texts(errors: &[FieldError]) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

// KS-A52
#[test]
fn every_definition_of_the_platform_is_valid_and_clean() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/crds");
    let own = crate::kind::builtins().into_iter().find(|k| k.kind == "CustomResourceDefinition").unwrap();
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let mut crd = crate::decode::yaml(&std::fs::read(&path).unwrap()).unwrap().value;
        assert_eq!(own.prune(&mut crd), Vec::<String>::new(), "{}: unknown fields", path.display());
        own.default(&mut crd);
        assert_eq!(texts(&validate(&crd, None)), Vec::<String>::new(), "{}", path.display());
        assert!(!compile(&crd).unwrap().served.is_empty());
        seen += 1;
    }
    assert!(seen >= 12, "only {seen} definitions found");
}

// KS-A52
#[test]
fn bad_definitions_are_refused_with_the_reference_texts() {
    let ok = json!({"type": "object", "properties": {"spec": {"type": "object"}}});
    let with_spec = |spec: Value| json!({"type": "object", "properties": {"spec": spec}});
    let table: Vec<(Value, &str)> = vec![
        (
            with_spec(json!({"type": "object", "properties": {"z": {}}})),
            "spec.validation.openAPIV3Schema.properties[spec].properties[z].type: Required value: must not be empty for specified object fields",
        ),
        (
            with_spec(json!({"type": "array", "items": {}})),
            "spec.validation.openAPIV3Schema.properties[spec].items.type: Required value: must not be empty for specified array items",
        ),
        (
            with_spec(
                json!({"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "string"}}),
            ),
            "spec.validation.openAPIV3Schema.properties[spec].additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive",
        ),
        (
            with_spec(json!({"type": "object", "properties": {"a": {"type": "integer", "default": "x"}}})),
            "spec.validation.openAPIV3Schema.properties[spec].properties[a].default: Invalid value: \"string\":  in body must be of type integer: \"string\"",
        ),
        (
            with_spec(
                json!({"type": "array", "items": {"type": "object", "properties": {"k": {"type": "string"}}}, "x-kubernetes-list-type": "map"}),
            ),
            "spec.validation.openAPIV3Schema.properties[spec].x-kubernetes-list-map-keys: Required value: must not be empty if x-kubernetes-list-type is map",
        ),
        (
            with_spec(json!({"type": "string", "pattern": "["})),
            "spec.validation.openAPIV3Schema.properties[spec].pattern: Invalid value: \"[\": must be a valid regular expression",
        ),
        (
            with_spec(json!({"type": "string", "anyOf": [{"type": "string"}]})),
            "spec.validation.openAPIV3Schema.properties[spec].anyOf[0].type: Forbidden: must be empty to be structural",
        ),
        (
            with_spec(
                json!({"type": "object", "properties": {"a": {"type": "string"}}, "x-kubernetes-validations": [{"rule": "self.nope == 'x'"}]}),
            ),
            "spec.validation.openAPIV3Schema.properties[spec].x-kubernetes-validations[0].rule: Invalid value: \"self.nope == 'x'\": compilation failed: ERROR: <input>:1:5: undefined field 'nope'",
        ),
        (
            with_spec(json!({"type": "object", "x-kubernetes-validations": [{"rule": "1 +"}]})),
            "spec.validation.openAPIV3Schema.properties[spec].x-kubernetes-validations[0].rule: Invalid value: \"1 +\": compilation failed: ",
        ),
    ];
    for (schema, expected) in table {
        let found = texts(&validate(&definition(&schema), None));
        assert!(found.iter().any(|text| text.starts_with(expected)), "{expected}\n{found:#?}");
    }
    let mut name = definition(&ok);
    name["metadata"]["name"] = json!("x");
    assert_eq!(
        texts(&validate(&name, None)),
        ["metadata.name: Invalid value: \"x\": must be spec.names.plural+\".\"+spec.group"]
    );
    let mut storage = definition(&ok);
    storage["spec"]["versions"][0]["storage"] = json!(false);
    assert_eq!(
        texts(&validate(&storage, None)),
        ["spec.versions: Invalid value: \"array\": must have exactly one version marked as storage version"]
    );
    let mut column = definition(&ok);
    column["spec"]["versions"][0]["additionalPrinterColumns"] =
        json!([{"name": "A", "type": "text", "jsonPath": ".spec["}]);
    assert_eq!(validate(&column, None).len(), 2);
}

// KS-A53
#[test]
fn pruning_and_defaulting() {
    let kind = widget_kind(json!({"type": "object", "properties": {
        "mode": {"type": "string", "default": "A"},
        "nothing": {"type": "string", "nullable": true, "default": "D"},
        "plain": {"type": "string"},
        "inner": {"type": "object", "properties": {"n": {"type": "integer", "default": 1}}},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"k": {"type": "object", "properties": {"a": {"type": "string"}}}}},
        "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"x": {"type": "integer", "default": 7}}}},
        "list": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "integer", "default": 7}}}},
    }}));
    let mut object = widget(
        json!({"nothing": null, "plain": null, "bad": 1, "free": {"z": 1, "k": {"a": "1", "b": 2}}, "map": {"m": {"y": 1}}, "list": [{"q": 1}]}),
    );
    object["metadata"]["foo"] = json!(1);
    object["extra"] = json!(1);
    assert_eq!(
        kind.prune(&mut object),
        ["metadata.foo", "spec.bad", "spec.free.k.b", "spec.map.m.y", "spec.list[0].q", "extra"]
    );
    kind.default(&mut object);
    assert_eq!(
        object["spec"],
        json!({"nothing": null, "free": {"z": 1, "k": {"a": "1"}}, "map": {"m": {"x": 7}}, "list": [{"x": 7}], "mode": "A"})
    );
    // Defaults inside an absent object do not make it.
    assert!(object["spec"].get("inner").is_none());
    let mut present = widget(json!({"inner": {}}));
    kind.default(&mut present);
    assert_eq!(present["spec"]["inner"]["n"], 1);
}

// KS-A53
#[test]
fn value_errors_have_the_reference_texts() {
    let kind = widget_kind(json!({"type": "object", "required": ["cpu"], "properties": {
        "cpu": {"type": "integer"},
        "mode": {"type": "string", "enum": ["A", "B"]},
        "replicas": {"type": "integer", "minimum": 1, "maximum": 10},
        "p": {"type": "string", "pattern": "^[a-z]+$"},
        "pat": {"type": "string", "maxLength": 4},
        "ios": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
        "items": {"type": "array", "minItems": 1, "maxItems": 2, "items": {"type": "string"}},
        "list": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": {"type": "object", "required": ["k"], "properties": {"k": {"type": "string"}}}},
        "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "one": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}}, "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
        "when": {"type": "string", "format": "date-time"},
        "ip": {"type": "string", "format": "ipv4"},
    }}));
    let blocked = "<nil>: Invalid value: null: some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";
    let table: Vec<(Value, Vec<&str>)> = vec![
        (
            json!({"cpu": 1, "mode": "A", "replicas": 3, "ios": "5", "list": [{"k": "a"}, {"k": "b"}], "set": ["x"], "one": {"a": "1"}}),
            vec![],
        ),
        (json!({"cpu": 1, "ios": 5}), vec![]),
        (json!({}), vec!["spec.cpu: Required value", blocked]),
        (
            json!({"cpu": 1, "mode": 3}),
            vec![
                "spec.mode: Invalid value: \"integer\": spec.mode in body must be of type string: \"integer\"",
                "spec.mode: Unsupported value: 3: supported values: \"A\", \"B\"",
                blocked,
            ],
        ),
        (
            json!({"cpu": 1, "mode": "C"}),
            vec!["spec.mode: Unsupported value: \"C\": supported values: \"A\", \"B\"", blocked],
        ),
        (
            json!({"cpu": 1, "replicas": 20}),
            vec![
                "spec.replicas: Invalid value: 20: spec.replicas in body should be less than or equal to 10",
            ],
        ),
        (
            json!({"cpu": 1, "replicas": 0}),
            vec![
                "spec.replicas: Invalid value: 0: spec.replicas in body should be greater than or equal to 1",
            ],
        ),
        (
            json!({"cpu": 1, "p": "X"}),
            vec!["spec.p: Invalid value: \"X\": spec.p in body should match '^[a-z]+$'"],
        ),
        (
            json!({"cpu": 1, "pat": "12345"}),
            vec!["spec.pat: Too long: may not be more than 4 bytes", blocked],
        ),
        (
            json!({"cpu": 1, "list": [{"k": "a"}, {"k": "a"}]}),
            vec!["spec.list[1]: Duplicate value: {\"k\":\"a\"}"],
        ),
        (json!({"cpu": 1, "set": ["a", "a"]}), vec!["spec.set[1]: Duplicate value: \"a\""]),
        (
            json!({"cpu": 1, "one": {}}),
            vec![
                "<nil>: Invalid value: \"\": \"spec.one\" must validate one and only one schema (oneOf). Found none valid",
                "spec.one.a: Required value",
                blocked,
            ],
        ),
        (
            json!({"cpu": 1, "when": "soon"}),
            vec![
                "spec.when: Invalid value: \"soon\": spec.when in body must be of type date-time: \"soon\"",
                blocked,
            ],
        ),
        (
            json!({"cpu": 1, "ip": "10.0.0.300"}),
            vec![
                "spec.ip: Invalid value: \"10.0.0.300\": spec.ip in body must be of type ipv4: \"10.0.0.300\"",
                blocked,
            ],
        ),
    ];
    for (spec, expected) in table {
        assert_eq!(texts(&kind.validate_create(&widget(spec.clone()))), expected, "{spec}");
    }
    let status = kind.invalid("w", &kind.validate_create(&widget(json!({"cpu": 1, "replicas": 20}))));
    assert_eq!(
        status.message,
        "Widget.example.com \"w\" is invalid: spec.replicas: Invalid value: 20: spec.replicas in body should be less than or equal to 10"
    );
}

// KS-A54
#[test]
fn rules_run_with_old_values_messages_and_reasons() {
    let kind = widget_kind(json!({"type": "object", "properties": {
        "mode": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "mode is immutable"}]},
        "replicas": {"type": "integer", "x-kubernetes-validations": [{"rule": "self <= 5", "message": "too many", "reason": "FieldValueForbidden"}]},
        "namespace": {"type": "string"},
        "min": {"type": "integer"}, "max": {"type": "integer"},
        "size": {"x-kubernetes-int-or-string": true, "x-kubernetes-validations": [{"rule": "type(self) == int ? self < 10 : quantity(self).isLessThan(quantity('1Gi'))", "message": "too big"}]},
        "once": {"type": "string", "x-kubernetes-validations": [{"rule": "!oldSelf.hasValue() || oldSelf.value() == self", "optionalOldSelf": true, "messageExpression": "'was ' + oldSelf.value()"}]},
        "list": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": {"type": "object", "required": ["k"], "properties": {
            "k": {"type": "string"}, "v": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf"}]}}}},
        "opt": {"type": "object", "properties": {"a": {"type": "string"}}, "x-kubernetes-validations": [{"rule": "self.a == 'x'", "message": "a is x"}]},
    }, "x-kubernetes-validations": [
        {"rule": "!has(self.min) || !has(self.max) || self.min <= self.max", "messageExpression": "'min ' + string(self.min) + ' above max'", "fieldPath": ".min"},
        {"rule": "!has(self.__namespace__) || self.__namespace__ != 'bad'", "message": "no"},
    ]}));
    let update =
        |old: Value, new: Value| texts(&kind.validate_update(&widget(new), &widget(old), Endpoint::Main));
    let create = |spec: Value| texts(&kind.validate_create(&widget(spec)));
    assert_eq!(create(json!({"mode": "B"})), Vec::<String>::new());
    assert_eq!(
        update(json!({"mode": "A"}), json!({"mode": "B"})),
        ["spec.mode: Invalid value: \"B\": mode is immutable"]
    );
    assert_eq!(update(json!({}), json!({"mode": "B"})), Vec::<String>::new());
    assert_eq!(create(json!({"replicas": 6})), ["spec.replicas: Forbidden: too many"]);
    assert_eq!(create(json!({"min": 3, "max": 2})), ["spec.min: Invalid value: \"object\": min 3 above max"]);
    assert_eq!(create(json!({"namespace": "bad"})), ["spec: Invalid value: \"object\": no"]);
    assert_eq!(create(json!({"size": 3})), Vec::<String>::new());
    assert_eq!(create(json!({"size": 30})), ["spec.size: Invalid value: 30: too big"]);
    assert_eq!(create(json!({"size": "2Gi"})), ["spec.size: Invalid value: \"2Gi\": too big"]);
    assert_eq!(create(json!({"once": "a"})), Vec::<String>::new());
    assert_eq!(
        update(json!({"once": "a"}), json!({"once": "b"})),
        ["spec.once: Invalid value: \"b\": was a"]
    );
    // List-map elements correlate by key, whatever their order.
    let old = json!({"list": [{"k": "1", "v": "a"}, {"k": "2", "v": "b"}]});
    assert_eq!(
        update(old.clone(), json!({"list": [{"k": "2", "v": "b"}, {"k": "1", "v": "a"}]})),
        Vec::<String>::new()
    );
    assert_eq!(
        update(old, json!({"list": [{"k": "2", "v": "x"}]})),
        ["spec.list[0].v: Invalid value: \"x\": failed rule: self == oldSelf"]
    );
    assert_eq!(
        create(json!({"opt": {}})),
        ["spec.opt: Invalid value: \"object\": no such key: a evaluating rule: a is x"]
    );
}

// KS-A57
#[test]
fn unchanged_values_are_not_checked_again() {
    let kind = widget_kind(json!({"type": "object", "properties": {
        "mode": {"type": "string", "enum": ["A"]},
        "n": {"type": "integer", "x-kubernetes-validations": [{"rule": "self < 5"}]},
        "other": {"type": "string"},
    }}));
    let old = widget(json!({"mode": "OLD", "n": 9}));
    assert_eq!(
        kind.validate_update(&widget(json!({"mode": "OLD", "n": 9, "other": "x"})), &old, Endpoint::Main),
        []
    );
    assert_eq!(kind.validate_update(&widget(json!({"mode": "NEW", "n": 9})), &old, Endpoint::Main).len(), 2);
    assert_eq!(kind.validate_update(&widget(json!({"mode": "OLD", "n": 8})), &old, Endpoint::Main).len(), 1);
}

// KS-A36, KS-A37
#[test]
fn generation_and_status_of_custom_resources() {
    let kind = widget_kind(json!({"type": "object", "properties": {"a": {"type": "integer"}}}));
    let mut created = widget(json!({"a": 1}));
    created["status"] = json!({"phase": "X"});
    kind.prepare_create(&mut created);
    assert_eq!((&created["metadata"]["generation"], created.get("status")), (&json!(1), None));
    let mut labelled = created.clone();
    labelled["metadata"]["labels"] = json!({"a": "b"});
    labelled["status"] = json!({"phase": "Y"});
    kind.prepare_update(&mut labelled, &created, Endpoint::Main);
    assert_eq!((&labelled["metadata"]["generation"], labelled.get("status")), (&json!(1), None));
    let mut changed = created.clone();
    changed["spec"]["a"] = json!(2);
    kind.prepare_update(&mut changed, &created, Endpoint::Main);
    assert_eq!(changed["metadata"]["generation"], 2);
    let mut status = created.clone();
    status["spec"]["a"] = json!(3);
    status["metadata"]["labels"] = json!({"x": "y"});
    status["status"] = json!({"phase": "Z"});
    kind.prepare_update(&mut status, &created, Endpoint::Status);
    assert_eq!(status["spec"]["a"], 1);
    assert_eq!(
        (status["metadata"].get("labels"), &status["status"]["phase"], &status["metadata"]["generation"]),
        (None, &json!("Z"), &json!(1))
    );
}

#[test]
fn versions_sort_as_kubernetes_sorts_them() {
    let mut versions = vec!["v1alpha2", "v1", "v2beta1", "v10", "v1alpha3", "foo", "v1beta2"];
    versions.sort_by(|a, b| version_order(a, b));
    assert_eq!(versions, ["v10", "v1", "v2beta1", "v1beta2", "v1alpha3", "v1alpha2", "foo"]);
}

// KS-A52
#[test]
fn names_conflict_with_conditions() {
    let crd = definition(&json!({"type": "object"}));
    let free = accept_names(&crd, &TakenNames::default(), "2026-01-01T00:00:00Z");
    assert_eq!(
        free["conditions"][0],
        json!({"type": "NamesAccepted", "status": "True", "reason": "NoConflicts", "message": "no conflicts found", "lastTransitionTime": "2026-01-01T00:00:00Z"})
    );
    assert_eq!(
        (&free["conditions"][1]["reason"], &free["storedVersions"], &free["acceptedNames"]["kind"]),
        (&json!("InitialNamesAccepted"), &json!(["v1"]), &json!("Widget"))
    );
    let taken = accept_names(&crd, &TakenNames { resources: vec![], kinds: vec!["WidgetList".into()] }, "t");
    assert_eq!(
        (&taken["conditions"][0]["reason"], &taken["conditions"][0]["message"]),
        (&json!("ListKindConflict"), &json!("\"WidgetList\" is already in use"))
    );
    assert_eq!(
        (&taken["conditions"][1]["status"], &taken["conditions"][1]["reason"]),
        (&json!("False"), &json!("NotAccepted"))
    );
}
