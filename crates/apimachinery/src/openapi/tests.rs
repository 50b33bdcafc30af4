use super::*;
use crate::kind;

fn widget() -> Vec<Arc<Kind>> {
    let crd = json!({"metadata": {"name": "widgets.example.com"}, "spec": {
        "group": "example.com", "scope": "Namespaced",
        "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"},
        "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object", "properties": {"size": {"type": "integer", "description": "How big."}}}}}}}]}});
    crate::crd::compile(&crd).unwrap().served
}

/// What kubectl looks for before it validates on the server, and for `explain`.
#[test]
fn v3_of_a_custom_resource_has_what_kubectl_wants() {
    let document = v3("example.com", "v1", &widget());
    let patch = &document["paths"]["/apis/example.com/v1/namespaces/{namespace}/widgets/{name}"]["patch"];
    assert_eq!(
        patch["x-kubernetes-group-version-kind"],
        json!({"group": "example.com", "version": "v1", "kind": "Widget"})
    );
    assert!(
        patch["parameters"]
            .as_array()
            .unwrap()
            .iter()
            .any(|p| p["name"] == "fieldValidation" && p["in"] == "query")
    );
    assert!(patch["requestBody"]["content"].get("application/strategic-merge-patch+json").is_none());
    let schema = &document["components"]["schemas"]["com.example.v1.Widget"];
    assert_eq!(schema["properties"]["spec"]["properties"]["size"]["description"], "How big.");
    assert_eq!(schema["x-kubernetes-group-version-kind"][0]["kind"], "Widget");
    assert!(document["components"]["schemas"].get(OBJECT_META).is_some());
}

#[test]
fn v3_of_the_core_group_is_closed_under_references() {
    let document = v3("", "v1", &kind::builtins());
    let schemas = document["components"]["schemas"].as_object().unwrap();
    for (name, schema) in schemas {
        for reference in references(schema) {
            assert!(schemas.contains_key(&reference), "{name} refers to {reference}");
        }
    }
    let patch = &document["paths"]["/api/v1/namespaces/{name}"]["patch"];
    assert!(patch["requestBody"]["content"].get("application/strategic-merge-patch+json").is_some());
    let volumes = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["volumes"];
    assert_eq!(
        (&volumes["x-kubernetes-list-type"], &volumes["x-kubernetes-patch-merge-key"]),
        (&json!("map"), &json!("name"))
    );
}

#[test]
fn v2_has_definitions_and_no_v3_words() {
    let document = v2(&kind::builtins(), "v1.36.0");
    let text = document.to_string();
    assert!(!text.contains(COMPONENTS) && !text.contains("\"nullable\":true"));
    assert!(document["definitions"].get("io.k8s.api.core.v1.Pod").is_some());
    let bytes = v2_protobuf(&kind::builtins(), "v1.36.0");
    assert_eq!(&bytes[..5], b"\x0a\x032.0");
    assert!(bytes.len() > 50_000);
}
