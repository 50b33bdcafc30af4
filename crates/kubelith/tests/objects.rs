//! Reads and writes, request by request.

mod common;

use anyhow::{Context, Result, ensure};
use common::{Http, WIDGETS, server, widget};
use serde_json::{Value, json};

const CONFIGMAPS: &str = "/api/v1/namespaces/default/configmaps";

fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "1"}})
}

// KS-A32
#[tokio::test]
async fn create_sets_what_the_server_owns() -> Result<()> {
    let server = server().await?;
    let http = Http::new(&server).await?;
    let mut body = widget("a", json!({}));
    body["metadata"]["uid"] = json!("mine");
    body["metadata"]["creationTimestamp"] = Value::Null;
    body["metadata"]["deletionTimestamp"] = json!("2020-01-01T00:00:00Z");
    let made = http.post(WIDGETS, &body).await?.expect(201)?;
    let meta = &made["metadata"];
    ensure!(meta["uid"].as_str().is_some_and(|u| u.len() == 36), "{meta}");
    ensure!(
        meta["generation"] == 1 && meta["namespace"] == "default" && meta["deletionTimestamp"].is_null(),
        "{meta}"
    );
    ensure!(meta["creationTimestamp"].as_str().is_some_and(|t| t.ends_with('Z') && t.len() == 20), "{meta}");
    ensure!(made["spec"]["mode"] == "A", "defaulted: {made}");
    let mut other = widget("b", json!({}));
    other["metadata"]["namespace"] = json!("kube-system");
    http.post(WIDGETS, &other).await?.refused(
        400,
        "the namespace of the provided object does not match the namespace sent on the request",
    )?;
    let mut versioned = widget("b", json!({}));
    versioned["metadata"]["resourceVersion"] = json!("5");
    http.post(WIDGETS, &versioned)
        .await?
        .refused(400, "resourceVersion should not be set on objects to be created")?;
    http.put(&format!("{WIDGETS}/a"), &widget("z", json!({})))
        .await?
        .refused(400, "the name of the object (z) does not match the name on the URL (a)")?;
    http.post(WIDGETS, &body).await?.refused(409, "widgets.example.io \"a\" already exists")?;
    http.post("/api/v1/namespaces/nope/configmaps", &config_map("c"))
        .await?
        .refused(404, "namespaces \"nope\" not found")?;
    Ok(())
}

// KS-A33
#[tokio::test]
async fn generated_names_have_five_letters_of_the_alphabet() -> Result<()> {
    let server = server().await?;
    let http = Http::new(&server).await?;
    let mut body = widget("", json!({}));
    body["metadata"] = json!({"generateName": "evict-linux-vm-"});
    let mut names = std::collections::BTreeSet::new();
    for _ in 0..20 {
        let made = http.post(WIDGETS, &body).await?.expect(201)?;
        let name = made["metadata"]["name"].as_str().context("name")?.to_owned();
        let tail = name.strip_prefix("evict-linux-vm-").context("prefix")?;
        ensure!(tail.len() == 5 && tail.chars().all(|c| "bcdfghjklmnpqrstvwxz2456789".contains(c)), "{name}");
        ensure!(made["metadata"]["generateName"] == "evict-linux-vm-");
        names.insert(name);
    }
    ensure!(names.len() == 20);
    body["metadata"] = json!({});
    let body = http.post(WIDGETS, &body).await?.expect(422)?;
    ensure!(
        body["message"]
            .as_str()
            .is_some_and(|m| m.ends_with("metadata.name: Required value: name or generateName is required")),
        "{body}"
    );
    Ok(())
}

// KS-A34
#[tokio::test]
async fn stale_versions_conflict() -> Result<()> {
    let server = server().await?;
    let http = Http::new(&server).await?;
    let made = http.post(WIDGETS, &widget("a", json!({"replicas": 1}))).await?.expect(201)?;
    let path = format!("{WIDGETS}/a");
    let mut next = made.clone();
    next["spec"]["replicas"] = json!(2);
    let changed = http.put(&path, &next).await?.expect(200)?;
    ensure!(changed["metadata"]["generation"] == 2);
    next["spec"]["replicas"] = json!(3);
    let text = "Operation cannot be fulfilled on widgets.example.io \"a\": the object has been modified; please apply your changes to the latest version and try again";
    http.put(&path, &next).await?.refused(409, text)?;
    let patch = json!({"metadata": {"resourceVersion": made["metadata"]["resourceVersion"]}, "spec": {"replicas": 3}});
    http.patch(&path, "merge", &patch).await?.refused(409, text)?;
    http.patch(&path, "merge", &json!({"spec": {"replicas": 3}})).await?.expect(200)?;
    let body = http.put(&path, &widget("a", json!({}))).await?.expect(422)?;
    ensure!(
        body["message"]
            == "widgets.example.io \"a\" is invalid: metadata.resourceVersion: Invalid value: 0: must be specified for an update",
        "{body}"
    );
    http.post(CONFIGMAPS, &config_map("c")).await?.expect(201)?;
    http.put(&format!("{CONFIGMAPS}/c"), &config_map("c")).await?.expect(200)?;
    Ok(())
}

// KS-A35
#[tokio::test]
async fn a_write_that_changes_nothing_writes_nothing() -> Result<()> {
    let server = server().await?;
    let http = Http::new(&server).await?;
    let made = http.post(WIDGETS, &widget("a", json!({"replicas": 1}))).await?.expect(201)?;
    let rv = made["metadata"]["resourceVersion"].clone();
    let path = format!("{WIDGETS}/a");
    for reply in [
        http.put(&path, &made).await?,
        http.patch(&path, "merge", &json!({"spec": {"replicas": 1}})).await?,
        http.patch(&path, "merge", &json!({})).await?,
    ] {
        ensure!(reply.expect(200)?["metadata"]["resourceVersion"] == rv);
    }
    let events = http
        .watch(&format!("{WIDGETS}?watch=1&timeoutSeconds=1&resourceVersion={}", rv.as_str().context("rv")?))
        .await?;
    ensure!(events.is_empty(), "{events:?}");
    Ok(())
}

// KS-A36, KS-A37
#[tokio::test]
async fn spec_and_status_are_kept_apart() -> Result<()> {
    let server = server().await?;
    let http = Http::new(&server).await?;
    let mut body = widget("a", json!({"replicas": 1}));
    body["status"] = json!({"phase": "Mine"});
    let made = http.post(WIDGETS, &body).await?.expect(201)?;
    ensure!(made["status"].is_null(), "{made}");
    let path = format!("{WIDGETS}/a");
    let patch =
        json!({"metadata": {"labels": {"x": "y"}}, "spec": {"replicas": 9}, "status": {"phase": "Up"}});
    let status = http.patch(&format!("{path}/status"), "merge", &patch).await?.expect(200)?;
    ensure!(status["status"]["phase"] == "Up" && status["spec"]["replicas"] == 1, "{status}");
    ensure!(status["metadata"]["labels"].is_null() && status["metadata"]["generation"] == 1, "{status}");
    let main = http
        .patch(&path, "merge", &json!({"metadata": {"labels": {"x": "y"}}, "status": {"phase": "No"}}))
        .await?
        .expect(200)?;
    ensure!(
        main["status"]["phase"] == "Up"
            && main["metadata"]["generation"] == 1
            && main["metadata"]["labels"]["x"] == "y",
        "{main}"
    );
    http.post("/api/v1/nodes", &json!({"metadata": {"name": "n1"}})).await?.expect(201)?;
    let patch = json!({"metadata": {"labels": {"x": "y"}}, "spec": {"unschedulable": true}, "status": {"phase": "Running"}});
    let node = http.patch("/api/v1/nodes/n1/status", "strategic-merge", &patch).await?.expect(200)?;
    ensure!(node["metadata"]["labels"]["x"] == "y" && node["spec"]["unschedulable"].is_null(), "{node}");
    ensure!(node["metadata"]["generation"].is_null(), "{node}");
    http.delete(&format!("{path}/status"), &json!({})).await?.expect(405)?;
    Ok(())
}

// KS-A38
#[tokio::test]
async fn unknown_and_duplicate_fields() -> Result<()> {
    let server = server().await?;
    let http = Http::new(&server).await?;
    let body = br#"{"apiVersion":"example.io/v1","kind":"Widget","metadata":{"name":"a","foo":1},"spec":{"x":1,"mode":"A","mode":"B"}}"#;
    let strict =
        http.send("POST", &format!("{WIDGETS}?fieldValidation=Strict"), &[], body).await?.expect(400)?;
    let text = strict["message"].as_str().context("message")?;
    for part in [
        "strict decoding error",
        "unknown field \"spec.x\"",
        "unknown field \"metadata.foo\"",
        "duplicate field \"spec.mode\"",
    ] {
        ensure!(text.contains(part), "{text}");
    }
    let warned = http.send("POST", &format!("{WIDGETS}?fieldValidation=Warn"), &[], body).await?;
    let warnings = warned.warnings().join("\n");
    ensure!(
        warnings.contains(r#"unknown field \"spec.x\""#)
            && warnings.contains(r#"duplicate field \"spec.mode\""#),
        "{warnings}"
    );
    let made = warned.expect(201)?;
    ensure!(made["spec"] == json!({"mode": "B"}), "{made}");
    http.delete(&format!("{WIDGETS}/a"), &json!({})).await?.expect(200)?;
    let ignored = http.send("POST", &format!("{WIDGETS}?fieldValidation=Ignore"), &[], body).await?;
    ensure!(ignored.warnings().is_empty());
    let strict = http
        .post(
            &format!("{CONFIGMAPS}?fieldValidation=Strict"),
            &json!({"metadata": {"name": "c"}, "datas": {}}),
        )
        .await?
        .expect(400)?;
    ensure!(
        strict["message"]
            == "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: unknown field \"datas\"",
        "{strict}"
    );
    Ok(())
}

// KS-A39
#[tokio::test]
async fn dry_run_leaves_no_trace() -> Result<()> {
    let server = server().await?;
    let http = Http::new(&server).await?;
    let before = http.get(WIDGETS).await?.expect(200)?["metadata"]["resourceVersion"].clone();
    let made = http.post(&format!("{WIDGETS}?dryRun=All"), &widget("a", json!({}))).await?.expect(201)?;
    ensure!(made["metadata"]["uid"].is_string() && made["metadata"]["resourceVersion"].is_null(), "{made}");
    http.get(&format!("{WIDGETS}/a")).await?.refused(404, "widgets.example.io \"a\" not found")?;
    let after = http.get(WIDGETS).await?.expect(200)?["metadata"]["resourceVersion"].clone();
    ensure!(before == after);
    let bad = http.post(&format!("{WIDGETS}?dryRun=foo"), &widget("a", json!({}))).await?.expect(422)?;
    ensure!(
        bad["message"]
            .as_str()
            .is_some_and(|m| m.ends_with("dryRun: Unsupported value: [\"foo\"]: supported values: \"All\"")),
        "{bad}"
    );
    Ok(())
}

// KS-A40
#[tokio::test]
async fn patch_types() -> Result<()> {
    let server = server().await?;
    let http = Http::new(&server).await?;
    http.post(WIDGETS, &widget("a", json!({"note": "x"}))).await?.expect(201)?;
    let path = format!("{WIDGETS}/a");
    let merged =
        http.patch(&path, "merge", &json!({"spec": {"note": null, "replicas": 2}})).await?.expect(200)?;
    ensure!(merged["spec"] == json!({"mode": "A", "replicas": 2}), "{merged}");
    let ops = json!([{"op": "test", "path": "/spec/replicas", "value": 2}, {"op": "replace", "path": "/spec/replicas", "value": 3}]);
    ensure!(http.patch(&path, "json", &ops).await?.expect(200)?["spec"]["replicas"] == 3);
    http.patch(&path, "json", &ops)
        .await?
        .refused(422, "the server rejected our request due to an error in our request")?;
    let refused = http.patch(&path, "strategic-merge", &json!({})).await?.expect(415)?;
    ensure!(
        refused["message"].as_str().is_some_and(|m| m.ends_with(
            "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml"
        )),
        "{refused}"
    );
    http.post("/api/v1/nodes", &json!({"metadata": {"name": "n1"}})).await?.expect(201)?;
    let cordoned = http
        .patch("/api/v1/nodes/n1", "strategic-merge", &json!({"spec": {"unschedulable": true}}))
        .await?
        .expect(200)?;
    ensure!(cordoned["spec"]["unschedulable"] == true, "{cordoned}");
    let open = http
        .patch("/api/v1/nodes/n1", "strategic-merge", &json!({"spec": {"unschedulable": null}}))
        .await?
        .expect(200)?;
    ensure!(open["spec"]["unschedulable"].is_null(), "{open}");
    let text = http.patch(&format!("{path}?force=true"), "merge", &json!({})).await?.expect(422)?;
    ensure!(
        text["message"]
            .as_str()
            .is_some_and(|m| m.contains("force: Forbidden: may not be specified for non-apply patch")),
        "{text}"
    );
    Ok(())
}

// KS-A42
#[tokio::test]
async fn server_side_apply() -> Result<()> {
    let server = server().await?;
    let http = Http::new(&server).await?;
    let path = format!("{WIDGETS}/a");
    let config = |spec: Value| widget("a", spec);
    let by = |manager: &str| format!("{path}?fieldManager={manager}");
    http.patch(&path, "apply", &config(json!({}))).await?.expect(422)?;
    let made =
        http.patch(&by("m1"), "apply", &config(json!({"replicas": 1, "note": "x"}))).await?.expect(201)?;
    let rv = made["metadata"]["resourceVersion"].clone();
    let same =
        http.patch(&by("m1"), "apply", &config(json!({"replicas": 1, "note": "x"}))).await?.expect(200)?;
    ensure!(same["metadata"]["resourceVersion"] == rv, "no-op");
    let conflict = http.patch(&by("m2"), "apply", &config(json!({"replicas": 2}))).await?.expect(409)?;
    ensure!(
        conflict["message"] == "Apply failed with 1 conflict: conflict with \"m1\": .spec.replicas",
        "{conflict}"
    );
    ensure!(
        conflict["details"]["causes"][0]
            == json!({"reason": "FieldManagerConflict", "message": "conflict with \"m1\"", "field": ".spec.replicas"}),
        "{conflict}"
    );
    let forced = http
        .patch(&format!("{}&force=true", by("m2")), "apply", &config(json!({"replicas": 2})))
        .await?
        .expect(200)?;
    ensure!(forced["spec"]["replicas"] == 2, "{forced}");
    let dropped = http.patch(&by("m1"), "apply", &config(json!({}))).await?.expect(200)?;
    ensure!(dropped["spec"]["note"].is_null() && dropped["spec"]["replicas"] == 2, "{dropped}");
    Ok(())
}

// KS-A46, KS-A47
#[tokio::test]
async fn deletion_and_finalizers() -> Result<()> {
    let server = server().await?;
    let http = Http::new(&server).await?;
    let made = http.post(WIDGETS, &widget("a", json!({}))).await?.expect(201)?;
    let path = format!("{WIDGETS}/a");
    let wrong = json!({"preconditions": {"uid": "x"}});
    ensure!(
        http.delete(&path, &wrong).await?.expect(409)?["message"]
            .as_str()
            .is_some_and(|m| m.contains("the UID in the precondition (x) does not match"))
    );
    let gone = http.delete(&path, &json!({"propagationPolicy": "Background"})).await?.expect(200)?;
    ensure!(
        gone["status"] == "Success"
            && gone["details"]["uid"] == made["metadata"]["uid"]
            && gone["details"]["kind"] == "widgets",
        "{gone}"
    );
    let mut held = widget("b", json!({}));
    held["metadata"]["finalizers"] = json!(["example.io/hold"]);
    http.post(WIDGETS, &held).await?.expect(201)?;
    let path = format!("{WIDGETS}/b");
    let marked = http.delete(&path, &json!({})).await?.expect(200)?;
    ensure!(marked["kind"] == "Widget" && marked["metadata"]["deletionTimestamp"].is_string(), "{marked}");
    ensure!(
        marked["metadata"]["deletionGracePeriodSeconds"] == 0 && marked["metadata"]["generation"] == 2,
        "{marked}"
    );
    let again = http.delete(&path, &json!({})).await?.expect(200)?;
    ensure!(again["metadata"]["resourceVersion"] == marked["metadata"]["resourceVersion"], "{again}");
    http.post(WIDGETS, &held)
        .await?
        .refused(409, "object is being deleted: widgets.example.io \"b\" already exists")?;
    let more = json!({"metadata": {"finalizers": ["example.io/hold", "new/y"]}});
    let refused = http.patch(&path, "merge", &more).await?.expect(422)?;
    ensure!(refused["message"].as_str().is_some_and(|m| m.contains("no new finalizers can be added if the object is being deleted, found new finalizers []string{\"new/y\"}")), "{refused}");
    http.patch(&path, "merge", &json!({"metadata": {"finalizers": null}})).await?.expect(200)?;
    http.get(&path).await?.expect(404)?;
    for name in ["c", "d"] {
        http.post(WIDGETS, &widget(name, json!({}))).await?.expect(201)?;
    }
    let list =
        http.delete(&format!("{WIDGETS}?fieldSelector=metadata.name%3Dc"), &json!({})).await?.expect(200)?;
    ensure!(list["kind"] == "WidgetList" && list["items"].as_array().is_some_and(|i| i.len() == 1), "{list}");
    http.get(&format!("{WIDGETS}/d")).await?.expect(200)?;
    let bad =
        http.delete(&format!("{WIDGETS}/d"), &json!({"propagationPolicy": "Foo"})).await?.expect(422)?;
    ensure!(
        bad["message"].as_str().is_some_and(|m| m.contains("propagationPolicy: Unsupported value: \"Foo\"")),
        "{bad}"
    );
    http.delete("/api/v1/namespaces/default", &json!({}))
        .await?
        .refused(403, "namespaces \"default\" is forbidden: this namespace may not be deleted")?;
    Ok(())
}

// KS-A17, KS-A18
#[tokio::test]
async fn versions_and_pages() -> Result<()> {
    let server = server().await?;
    let http = Http::new(&server).await?;
    for i in 0..25 {
        http.post(WIDGETS, &widget(&format!("w{i:02}"), json!({}))).await?.expect(201)?;
    }
    let first = http.get(&format!("{WIDGETS}?limit=10")).await?.expect(200)?;
    let rv = first["metadata"]["resourceVersion"].clone();
    ensure!(first["metadata"]["remainingItemCount"] == 15, "{}", first["metadata"]);
    // Writes between pages do not show.
    http.post(WIDGETS, &widget("w100", json!({}))).await?.expect(201)?;
    http.delete(&format!("{WIDGETS}/w15"), &json!({})).await?.expect(200)?;
    let mut names: Vec<String> = Vec::new();
    let mut page = first.clone();
    loop {
        ensure!(page["metadata"]["resourceVersion"] == rv, "{}", page["metadata"]);
        names.extend(
            page["items"]
                .as_array()
                .context("items")?
                .iter()
                .map(|w| w["metadata"]["name"].as_str().unwrap_or("").to_owned()),
        );
        let Some(token) = page["metadata"]["continue"].as_str() else { break };
        page = http.get(&format!("{WIDGETS}?limit=10&continue={token}")).await?.expect(200)?;
    }
    ensure!(names == (0..25).map(|i| format!("w{i:02}")).collect::<Vec<_>>(), "{names:?}");
    let exact = http
        .get(&format!("{WIDGETS}?resourceVersion={}&resourceVersionMatch=Exact", rv.as_str().context("rv")?))
        .await?
        .expect(200)?;
    ensure!(exact["items"].as_array().is_some_and(|i| i.len() == 25));
    http.get(&format!("{WIDGETS}?continue=%21")).await?.expect(400)?;
    http.get(&format!("{WIDGETS}?resourceVersion=abc")).await?.expect(400)?;
    http.get(&format!("{WIDGETS}?resourceVersionMatch=Exact")).await?.expect(422)?;
    http.get(&format!("{WIDGETS}?resourceVersion=0&resourceVersionMatch=Exact")).await?.expect(422)?;
    let future = http.get(&format!("{WIDGETS}?resourceVersion=99999999")).await?;
    ensure!(future.headers.iter().any(|(k, v)| k == "retry-after" && v == "1"), "{:?}", future.headers);
    let future = future.expect(504)?;
    ensure!(future["details"]["causes"][0]["reason"] == "ResourceVersionTooLarge", "{future}");
    http.get(&format!("{WIDGETS}/w01?resourceVersion=0")).await?.expect(200)?;
    let list = http.get(&format!("{WIDGETS}?resourceVersion=0")).await?.expect(200)?;
    ensure!(list["kind"] == "WidgetList" && list["items"][0]["kind"] == "Widget", "{list}");
    Ok(())
}

// KS-A19, KS-A20
#[tokio::test]
async fn selectors() -> Result<()> {
    let server = server().await?;
    let http = Http::new(&server).await?;
    for (name, labels) in [("a", json!({"x": "1", "y": "p"})), ("b", json!({"x": "2"})), ("c", json!({}))] {
        let mut map = config_map(name);
        map["metadata"]["labels"] = labels;
        http.post(CONFIGMAPS, &map).await?.expect(201)?;
    }
    for (selector, expected) in [
        ("x=1", "a"),
        ("x!=1", "bc"),
        ("x in (1,2)", "ab"),
        ("x notin (1)", "bc"),
        ("x", "ab"),
        ("!x", "c"),
        ("x>1", "b"),
        ("x=1,y", "a"),
        ("y notin (p),x", "b"),
    ] {
        let encoded: String = selector.bytes().map(|b| format!("%{b:02x}")).collect();
        let list = http.get(&format!("{CONFIGMAPS}?labelSelector={encoded}")).await?.expect(200)?;
        let names: String = list["items"]
            .as_array()
            .context("items")?
            .iter()
            .filter_map(|i| i["metadata"]["name"].as_str())
            .collect();
        ensure!(names == expected, "{selector}: {names}");
    }
    let bad = http.get(&format!("{CONFIGMAPS}?labelSelector=a%3D%3D%3Db")).await?.expect(400)?;
    ensure!(bad["message"].as_str().is_some_and(|m| m.contains("unable to parse requirement")), "{bad}");
    let list = http.get(&format!("{CONFIGMAPS}?fieldSelector=metadata.name!%3Da")).await?.expect(200)?;
    ensure!(list["items"].as_array().is_some_and(|i| i.len() == 2), "{list}");
    http.get(&format!("{CONFIGMAPS}?fieldSelector=spec.foo%3Da"))
        .await?
        .refused(400, "field label not supported: spec.foo")?;
    Ok(())
}

// KS-A82, KS-A83
#[tokio::test]
async fn errors_and_health() -> Result<()> {
    let server = server().await?;
    let http = Http::new(&server).await?;
    http.get("/apis/example.io/v1/namespaces/default/nothing")
        .await?
        .refused(404, "the server could not find the requested resource")?;
    ensure!(http.get("/apis/absent.io/v1").await?.text == "404 page not found\n");
    http.get("/api/v1/namespaces/default/nodes").await?.expect(404)?;
    http.post("/apis/example.io/v1/widgets", &widget("a", json!({}))).await?.expect(405)?;
    http.delete("/api/v1/namespaces", &json!({})).await?.expect(405)?;
    let media = http.send("POST", CONFIGMAPS, &[("content-type", "text/csv")], b"a,b").await?.expect(415)?;
    ensure!(media["reason"] == "UnsupportedMediaType", "{media}");
    http.send("POST", CONFIGMAPS, &[], b"{").await?.expect(400)?;
    let large = json!({"metadata": {"name": "c"}, "data": {"a": "x".repeat(3 << 20)}});
    http.post(CONFIGMAPS, &large).await?.expect(413)?;
    let wrong = http
        .post(CONFIGMAPS, &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "c"}}))
        .await?
        .expect(400)?;
    ensure!(
        wrong["message"]
            .as_str()
            .is_some_and(|m| m.starts_with("Secret in version \"v1\" cannot be handled as a ConfigMap")),
        "{wrong}"
    );
    let kind = http
        .post(WIDGETS, &json!({"apiVersion": "example.io/v1", "kind": "Foo", "metadata": {"name": "c"}}))
        .await?
        .expect(422)?;
    ensure!(
        kind["message"].as_str().is_some_and(|m| m.contains("kind: Invalid value: \"Foo\": must be Widget")),
        "{kind}"
    );
    for path in ["/healthz", "/livez", "/readyz", "/readyz/ping"] {
        ensure!(http.get(path).await?.text == "ok", "{path}");
    }
    ensure!(http.get("/readyz?verbose").await?.text.ends_with("readyz check passed\n"));
    ensure!(http.get("/version").await?.body["minor"] == "36");
    let accept = http
        .send("GET", CONFIGMAPS, &[("accept", "application/vnd.kubernetes.protobuf")], b"")
        .await?
        .expect(406)?;
    ensure!(accept["reason"] == "NotAcceptable", "{accept}");
    Ok(())
}
