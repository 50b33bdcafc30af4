//! CustomResourceDefinitions, namespaces, events, leases.

mod common;

use anyhow::{Context, Result, ensure};
use common::{
    Http, LIMIT, WIDGETS, kubectl_fails, kubectl_with, project_definitions, server, widget, widgets,
};
use holdfast_kubelith::Hooks;
use holdfast_kubelith::testing::Server;
use serde_json::{Value, json};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

fn condition<'v>(object: &'v Value, kind: &str) -> &'v Value {
    object["status"]["conditions"]
        .as_array()
        .and_then(|l| l.iter().find(|c| c["type"] == kind))
        .unwrap_or(&Value::Null)
}

// KS-A03, KS-A52
#[tokio::test]
async fn a_definition_is_served_at_once() -> Result<()> {
    let server = Server::start().await?;
    let http = Http::new(&server).await?;
    for definition in project_definitions()? {
        kubectl_with(&server, &["create", "--validate=strict", "-f", "-"], &definition.to_string()).await?;
    }
    let made = http.post(DEFINITIONS, &widgets()).await?.expect(201)?;
    ensure!(condition(&made, "Established")["reason"] == "InitialNamesAccepted", "{}", made["status"]);
    ensure!(
        condition(&made, "NamesAccepted")["message"] == "no conflicts found"
            && made["status"]["storedVersions"] == json!(["v1"]),
        "{}",
        made["status"]
    );
    ensure!(
        made["spec"]["names"]["singular"] == "widget" && made["spec"]["names"]["listKind"] == "WidgetList",
        "{}",
        made["spec"]["names"]
    );
    http.post(WIDGETS, &widget("a", json!({}))).await?.expect(201)?;
    let mut rival = widgets();
    rival["metadata"]["name"] = json!("gadgets.example.io");
    rival["spec"]["names"] = json!({"plural": "gadgets", "kind": "Gadget", "listKind": "WidgetList"});
    let refused = http.post(DEFINITIONS, &rival).await?.expect(201)?;
    let names = condition(&refused, "NamesAccepted");
    ensure!(
        names["reason"] == "ListKindConflict" && names["message"] == "\"WidgetList\" is already in use",
        "{names}"
    );
    http.get("/apis/example.io/v1/gadgets").await?.expect(404)?;
    let mut bad = widgets();
    bad["metadata"]["name"] = json!("x");
    let bad = http.post(DEFINITIONS, &bad).await?.expect(422)?;
    ensure!(
        bad["message"]
            .as_str()
            .is_some_and(|m| m
                .contains("metadata.name: Invalid value: \"x\": must be spec.names.plural+\".\"+spec.group")),
        "{bad}"
    );
    Ok(())
}

// KS-A58
#[tokio::test]
async fn a_deleted_definition_takes_its_objects_with_it() -> Result<()> {
    let server = server().await?;
    let http = Http::new(&server).await?;
    let mut held = widget("held", json!({}));
    held["metadata"]["finalizers"] = json!(["example.io/hold"]);
    http.post(WIDGETS, &held).await?.expect(201)?;
    http.post(WIDGETS, &widget("free", json!({}))).await?.expect(201)?;
    let list = http.get(WIDGETS).await?.expect(200)?;
    let rv = list["metadata"]["resourceVersion"].as_str().context("rv")?.to_owned();
    let other = Http::new(&server).await?;
    let watch =
        tokio::spawn(async move { other.watch(&format!("{WIDGETS}?watch=1&resourceVersion={rv}")).await });
    let path = format!("{DEFINITIONS}/widgets.example.io");
    let marked = http.delete(&path, &json!({})).await?.expect(200)?;
    ensure!(condition(&marked, "Terminating")["status"] == "True", "{marked}");
    http.get(&format!("{WIDGETS}/free")).await?.expect(404)?;
    http.patch(&format!("{WIDGETS}/held"), "merge", &json!({"metadata": {"finalizers": []}}))
        .await?
        .expect(200)?;
    http.get(&path).await?.expect(404)?;
    ensure!(http.get(WIDGETS).await?.code == 404);
    let events = tokio::time::timeout(LIMIT, watch).await???;
    let gone: Vec<&str> = events
        .iter()
        .filter(|e| e["type"] == "DELETED")
        .filter_map(|e| e["object"]["metadata"]["name"].as_str())
        .collect();
    ensure!(gone == ["free", "held"], "{events:?}");
    Ok(())
}

// KS-A53, KS-A54
#[tokio::test]
async fn values_are_pruned_defaulted_and_checked() -> Result<()> {
    let server = server().await?;
    let http = Http::new(&server).await?;
    let refused =
        http.post(WIDGETS, &widget("a", json!({"mode": "C", "replicas": 20}))).await?.expect(422)?;
    let causes: Vec<&str> = refused["details"]["causes"]
        .as_array()
        .context("causes")?
        .iter()
        .filter_map(|c| c["field"].as_str())
        .collect();
    ensure!(causes.contains(&"spec.mode") && causes.contains(&"spec.replicas"), "{refused}");
    let message = refused["message"].as_str().context("message")?;
    ensure!(
        message.contains("spec.mode: Unsupported value: \"C\": supported values: \"A\", \"B\""),
        "{message}"
    );
    ensure!(
        message.contains(
            "spec.replicas: Invalid value: 20: spec.replicas in body should be less than or equal to 10"
        ),
        "{message}"
    );
    let refused = http.post(WIDGETS, &widget("a", json!({"mode": 1}))).await?.expect(422)?;
    ensure!(
        refused["message"]
            .as_str()
            .is_some_and(|m| m.contains("spec.mode in body must be of type string: \"integer\"")),
        "{refused}"
    );
    let twice = json!([{"name": "p"}, {"name": "p"}]);
    let refused = http.post(WIDGETS, &widget("a", json!({"parts": twice}))).await?.expect(422)?;
    ensure!(
        refused["message"]
            .as_str()
            .is_some_and(|m| m.contains("spec.parts[1]: Duplicate value: {\"name\":\"p\"}")),
        "{refused}"
    );
    http.post(WIDGETS, &widget("a", json!({}))).await?.expect(201)?;
    let refused =
        http.patch(&format!("{WIDGETS}/a"), "merge", &json!({"spec": {"mode": "B"}})).await?.expect(422)?;
    ensure!(
        refused["message"]
            == "Widget.example.io \"a\" is invalid: spec.mode: Invalid value: \"A\": mode is immutable"
            || refused["message"]
                == "Widget.example.io \"a\" is invalid: spec.mode: Invalid value: \"B\": mode is immutable",
        "{refused}"
    );
    Ok(())
}

// KS-A56
#[tokio::test]
async fn scale() -> Result<()> {
    let server = server().await?;
    let http = Http::new(&server).await?;
    http.post(WIDGETS, &widget("a", json!({"replicas": 1}))).await?.expect(201)?;
    let scale = http.get(&format!("{WIDGETS}/a/scale")).await?.expect(200)?;
    ensure!(
        scale["kind"] == "Scale" && scale["spec"]["replicas"] == 1 && scale["status"]["replicas"] == 0,
        "{scale}"
    );
    kubectl_with(&server, &["scale", "widget", "a", "--replicas=3"], "").await?;
    ensure!(http.get(&format!("{WIDGETS}/a")).await?.expect(200)?["spec"]["replicas"] == 3);
    let refused = kubectl_fails(&server, &["scale", "widget", "a", "--replicas=30"], "").await?;
    ensure!(refused.contains("should be less than or equal to 10"), "{refused}");
    Ok(())
}

// KS-A51
#[tokio::test]
async fn a_terminating_namespace_takes_nothing_new() -> Result<()> {
    let server = server().await?;
    let http = Http::new(&server).await?;
    let made = http.post("/api/v1/namespaces", &json!({"metadata": {"name": "tn"}})).await?.expect(201)?;
    ensure!(
        made["metadata"]["labels"]["kubernetes.io/metadata.name"] == "tn"
            && made["spec"]["finalizers"] == json!(["kubernetes"]),
        "{made}"
    );
    ensure!(made["status"]["phase"] == "Active", "{made}");
    let marked = http.delete("/api/v1/namespaces/tn", &json!({})).await?.expect(200)?;
    ensure!(marked["kind"] == "Namespace" && marked["status"]["phase"] == "Terminating", "{marked}");
    let text = "configmaps \"c2\" is forbidden: unable to create new content in namespace tn because it is being terminated";
    let refused = http
        .post("/api/v1/namespaces/tn/configmaps", &json!({"metadata": {"name": "c2"}}))
        .await?
        .refused(403, text)?;
    ensure!(refused["details"]["causes"][0]["reason"] == "NamespaceTerminating", "{refused}");
    let mut emptied = http.get("/api/v1/namespaces/tn").await?.expect(200)?;
    emptied["spec"]["finalizers"] = json!([]);
    http.put("/api/v1/namespaces/tn/finalize", &emptied).await?.expect(200)?;
    http.get("/api/v1/namespaces/tn").await?.expect(404)?;
    Ok(())
}

// KS-A65
#[tokio::test]
async fn events_have_two_faces() -> Result<()> {
    let server = server().await?;
    let http = Http::new(&server).await?;
    let old = json!({"metadata": {"name": "e1"}, "involvedObject": {"kind": "VirtualMachine", "name": "v", "namespace": "default", "uid": "u"}, "reason": "R", "message": "hello", "type": "Normal", "count": 2});
    http.post("/api/v1/namespaces/default/events", &old).await?.expect(201)?;
    let seen = http.get("/apis/events.k8s.io/v1/namespaces/default/events/e1").await?.expect(200)?;
    ensure!(
        seen["apiVersion"] == "events.k8s.io/v1"
            && seen["regarding"]["name"] == "v"
            && seen["note"] == "hello"
            && seen["deprecatedCount"] == 2,
        "{seen}"
    );
    let new = json!({"metadata": {"name": "e2"}, "regarding": {"kind": "VirtualMachine", "name": "v", "namespace": "default", "uid": "u"},
        "reason": "S", "note": "again", "type": "Warning", "action": "Act", "reportingController": "c", "reportingInstance": "i", "eventTime": "2026-01-01T00:00:00.000000Z"});
    http.post("/apis/events.k8s.io/v1/namespaces/default/events", &new).await?.expect(201)?;
    let list = http
        .get("/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3Dv,involvedObject.uid%3Du")
        .await?
        .expect(200)?;
    let messages: Vec<&str> =
        list["items"].as_array().context("items")?.iter().filter_map(|e| e["message"].as_str()).collect();
    ensure!(messages == ["hello", "again"], "{list}");
    let list = http
        .get("/apis/events.k8s.io/v1/namespaces/default/events?fieldSelector=regarding.name%3Dv")
        .await?
        .expect(200)?;
    ensure!(
        list["kind"] == "EventList"
            && list["items"].as_array().is_some_and(|i| i.len() == 2 && i[0]["regarding"]["name"] == "v"),
        "{list}"
    );
    let patched = http
        .patch(
            "/apis/events.k8s.io/v1/namespaces/default/events/e2",
            "merge",
            &json!({"series": {"count": 2, "lastObservedTime": "2026-01-01T00:00:01.000000Z"}}),
        )
        .await?
        .expect(200)?;
    ensure!(patched["series"]["count"] == 2 && patched["note"] == "again", "{patched}");
    let mut foreign = old.clone();
    foreign["metadata"]["name"] = json!("e3");
    foreign["involvedObject"]["namespace"] = json!("kube-system");
    let refused = http.post("/api/v1/namespaces/default/events", &foreign).await?.expect(422)?;
    ensure!(
        refused["message"].as_str().is_some_and(|m| m.contains("does not match event.namespace")),
        "{refused}"
    );
    let shown = kubectl_with(&server, &["get", "events", "--no-headers"], "").await?;
    ensure!(shown.contains("virtualmachine/v") && shown.contains("hello"), "{shown}");
    Ok(())
}

// KS-A66
#[tokio::test]
async fn leases_are_created_on_update_and_guarded() -> Result<()> {
    let server = server().await?;
    let http = Http::new(&server).await?;
    let path = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/l";
    let lease = |holder: &str| json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"}, "spec": {"holderIdentity": holder, "leaseDurationSeconds": 5}});
    let made = http.put(path, &lease("a")).await?.expect(201)?;
    http.put(path, &lease("b")).await?.expect(422)?;
    let mut next = made.clone();
    next["spec"]["holderIdentity"] = json!("b");
    http.put(path, &next).await?.expect(200)?;
    http.put(path, &next).await?.expect(409)?;
    Ok(())
}

#[tokio::test]
async fn a_node_may_write_only_what_is_its_own() -> Result<()> {
    let server = Server::with(Vec::new(), Hooks::default()).await?;
    let n1 = Http::with(&server.kubeconfig_for("system:node:n1", &["system:nodes"])?).await?;
    n1.post("/api/v1/nodes", &json!({"metadata": {"name": "n1"}})).await?.expect(201)?;
    let n2 = Http::with(&server.kubeconfig_for("system:node:n2", &["system:nodes"])?).await?;
    n2.patch("/api/v1/nodes/n1/status", "merge", &json!({"status": {"phase": "x"}})).await?.expect(403)?;
    n1.patch("/api/v1/nodes/n1/status", "merge", &json!({"status": {"phase": "x"}})).await?.expect(200)?;
    let lease =
        json!({"metadata": {"name": "n1"}, "spec": {"holderIdentity": "n1", "leaseDurationSeconds": 5}});
    n2.put("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1", &lease).await?.expect(403)?;
    n1.put("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1", &lease).await?.expect(201)?;
    n1.delete("/api/v1/namespaces/kube-system", &json!({})).await?.expect(403)?;
    Ok(())
}

// KS-A53: defaults a definition gains later show on objects written before.
#[tokio::test]
async fn later_defaults_apply_to_earlier_objects() -> Result<()> {
    let server = server().await?;
    let http = Http::new(&server).await?;
    let made = http.post(WIDGETS, &widget("a", json!({}))).await?.expect(201)?;
    let path = format!("{DEFINITIONS}/widgets.example.io");
    let mut definition = http.get(&path).await?.expect(200)?;
    let note = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/note";
    definition.pointer_mut(note).context("note")?["default"] = json!("later");
    http.put(&path, &definition).await?.expect(200)?;
    let seen = http.get(&format!("{WIDGETS}/a")).await?.expect(200)?;
    ensure!(seen["spec"]["note"] == "later", "{seen}");
    ensure!(
        seen["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"],
        "nothing was written"
    );
    ensure!(http.get(WIDGETS).await?.expect(200)?["items"][0]["spec"]["note"] == "later");
    Ok(())
}

// KS-A77
#[tokio::test]
async fn nobody_grants_what_they_do_not_have() -> Result<()> {
    const ROLES: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    let server = server().await?;
    let http = Http::new(&server).await?;
    let role = |name: &str, group: &str, resource: &str| json!({"metadata": {"name": name}, "rules": [{"apiGroups": [group], "resources": [resource], "verbs": ["get", "create", "update"]}]});
    let binding = |name: &str, kind: &str, role: &str, user: &str| {
        let group = "rbac.authorization.k8s.io";
        json!({"metadata": {"name": name}, "roleRef": {"apiGroup": group, "kind": kind, "name": role},
            "subjects": [{"kind": "User", "apiGroup": group, "name": user}]})
    };
    for name in ["roles", "rolebindings"] {
        http.post(&format!("{ROLES}/roles"), &role(name, "rbac.authorization.k8s.io", name))
            .await?
            .expect(201)?;
        http.post(&format!("{ROLES}/rolebindings"), &binding(name, "Role", name, "alice"))
            .await?
            .expect(201)?;
    }
    let alice = Http::with(&server.kubeconfig_for("alice", &["dev"])?).await?;
    let refused = alice.post(&format!("{ROLES}/roles"), &role("s", "", "secrets")).await?.expect(403)?;
    let text = refused["message"].as_str().context("message")?;
    ensure!(text.contains("user \"alice\" (groups=[\"dev\" \"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:"), "{text}");
    ensure!(
        text.contains("{APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"get\", \"create\", \"update\"]}"),
        "{text}"
    );
    alice
        .post(&format!("{ROLES}/rolebindings"), &binding("up", "ClusterRole", "cluster-admin", "alice"))
        .await?
        .expect(403)?;
    alice
        .post(&format!("{ROLES}/rolebindings"), &binding("none", "Role", "absent", "alice"))
        .await?
        .expect(404)?;
    alice
        .post(&format!("{ROLES}/rolebindings"), &binding("same", "Role", "roles", "bob"))
        .await?
        .expect(201)?;
    alice
        .post(&format!("{ROLES}/roles"), &role("own", "rbac.authorization.k8s.io", "roles"))
        .await?
        .expect(201)?;
    Ok(())
}
