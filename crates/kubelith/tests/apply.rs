//! Server-side apply on lists and sets, and paths of other subresources.

mod common;

use anyhow::{Context, Result, ensure};
use common::{Http, WIDGETS, server, widget};
use serde_json::{Value, json};

fn owned<'v>(object: &'v Value, manager: &str) -> Option<&'v Value> {
    object["metadata"]["managedFields"]
        .as_array()?
        .iter()
        .find(|e| e["manager"] == manager)
        .map(|e| &e["fieldsV1"])
}

// KS-A43
#[tokio::test]
async fn list_items_and_set_items_have_owners() -> Result<()> {
    let server = server().await?;
    let http = Http::new(&server).await?;
    let by = |manager: &str| format!("{WIDGETS}/a?fieldManager={manager}");
    let parts = |list: Value| widget("a", json!({"parts": list}));
    http.patch(&by("m1"), "apply", &parts(json!([{"name": "p", "size": 1}]))).await?.expect(201)?;
    let both =
        http.patch(&by("m2"), "apply", &parts(json!([{"name": "q", "size": 2}]))).await?.expect(200)?;
    ensure!(both["spec"]["parts"].as_array().is_some_and(|p| p.len() == 2), "{both}");
    let conflict = http
        .patch(&by("m2"), "apply", &parts(json!([{"name": "p", "size": 9}, {"name": "q", "size": 2}])))
        .await?
        .expect(409)?;
    ensure!(conflict["details"]["causes"][0]["field"] == ".spec.parts[name=\"p\"].size", "{conflict}");
    let left = http.patch(&by("m1"), "apply", &parts(json!([]))).await?.expect(200)?;
    ensure!(left["spec"]["parts"] == json!([{"name": "q", "size": 2}]), "{left}");
    let mut first = widget("b", json!({}));
    first["metadata"]["finalizers"] = json!(["example.io/x"]);
    let mut second = first.clone();
    second["metadata"]["finalizers"] = json!(["example.io/y"]);
    let by = |manager: &str| format!("{WIDGETS}/b?fieldManager={manager}");
    http.patch(&by("m1"), "apply", &first).await?.expect(201)?;
    let union = http.patch(&by("m2"), "apply", &second).await?.expect(200)?;
    ensure!(union["metadata"]["finalizers"] == json!(["example.io/x", "example.io/y"]), "{union}");
    ensure!(
        owned(&union, "m2").context("m2")?["f:metadata"]["f:finalizers"]["v:\"example.io/y\""].is_object(),
        "{union}"
    );
    Ok(())
}

// KS-A43
#[tokio::test]
async fn the_status_subresource_has_its_own_entry() -> Result<()> {
    let server = server().await?;
    let http = Http::new(&server).await?;
    http.post(&format!("{WIDGETS}?fieldManager=maker"), &widget("a", json!({}))).await?.expect(201)?;
    let status = json!({"apiVersion": "example.io/v1", "kind": "Widget", "metadata": {"name": "a"}, "status": {"phase": "Up"}});
    let path = format!("{WIDGETS}/a/status?fieldManager=controller");
    let applied = http.patch(&path, "apply", &status).await?.expect(200)?;
    ensure!(applied["status"]["phase"] == "Up" && applied["spec"]["mode"] == "A", "{applied}");
    let entry = applied["metadata"]["managedFields"]
        .as_array()
        .context("entries")?
        .iter()
        .find(|e| e["manager"] == "controller")
        .context("entry")?;
    ensure!(entry["subresource"] == "status" && entry["operation"] == "Apply", "{entry}");
    ensure!(entry["fieldsV1"] == json!({"f:status": {"f:phase": {}}}), "{entry}");
    let by = http
        .patch(&format!("{WIDGETS}/a?fieldManager=other"), "apply", &widget("a", json!({"undeclared": 1})))
        .await?;
    ensure!(
        by.code == 400 && by.text.contains(".spec.undeclared: field not declared in schema"),
        "{}",
        by.text
    );
    Ok(())
}

// KS-A02
#[tokio::test]
async fn discovery_documents_have_tags() -> Result<()> {
    let server = server().await?;
    let http = Http::new(&server).await?;
    let accept = ("accept", "application/json;v=v2;g=apidiscovery.k8s.io;as=APIGroupDiscoveryList");
    let first = http.send("GET", "/apis", &[accept], b"").await?;
    ensure!(first.body["kind"] == "APIGroupDiscoveryList", "{}", first.text);
    let tag = first.headers.iter().find(|(k, _)| k == "etag").map(|(_, v)| v.clone()).context("etag")?;
    ensure!(http.send("GET", "/apis", &[accept, ("if-none-match", &tag)], b"").await?.code == 304);
    let plain = http
        .send("GET", "/apis", &[("accept", "application/json;as=Unknown;g=x;v=y,application/json")], b"")
        .await?;
    ensure!(plain.body["kind"] == "APIGroupList", "{}", plain.text);
    let groups: Vec<&str> = plain.body["groups"]
        .as_array()
        .context("groups")?
        .iter()
        .filter_map(|g| g["name"].as_str())
        .collect();
    ensure!(
        groups.first() == Some(&"events.k8s.io") && groups.contains(&"virtualization.deckhouse.io"),
        "{groups:?}"
    );
    let v2 = http.get("/openapi/v2").await?.expect(200)?;
    ensure!(v2["swagger"] == "2.0", "{}", v2["info"]);
    let protobuf = [("accept", "application/com.github.proto-openapi.spec.v2@v1.0+protobuf")];
    let v2 = http.send("GET", "/openapi/v2", &protobuf, b"").await?;
    ensure!(
        v2.code == 200
            && v2
                .headers
                .iter()
                .any(|(k, v)| k == "content-type" && v.contains("proto-openapi.spec.v2.v1.0+protobuf")),
        "{:?}",
        v2.headers
    );
    Ok(())
}
