//! Watches, over plain requests and with kube-rs.

mod common;

use anyhow::{Context, Result, ensure};
use common::{Http, LIMIT, WIDGETS, client, server, widget};
use futures::{StreamExt, TryStreamExt};
use holdfast_kubelith::Hooks;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::watcher::{self, Event};
use serde_json::{Value, json};
use std::collections::BTreeMap;

fn kinds(events: &[Value]) -> Vec<String> {
    let word = |e: &Value| e["type"].as_str().unwrap_or("?").to_owned();
    let name = |e: &Value| e["object"]["metadata"]["name"].as_str().unwrap_or("-").to_owned();
    events.iter().map(|e| format!("{} {}", word(e), name(e))).collect()
}

fn rv(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse().ok()).unwrap_or(0)
}

// KS-A24, KS-A29
#[tokio::test]
async fn a_watch_replays_resumes_and_ends() -> Result<()> {
    let server = server().await?;
    let http = Http::new(&server).await?;
    let a = http.post(WIDGETS, &widget("a", json!({}))).await?.expect(201)?;
    http.post(WIDGETS, &widget("b", json!({}))).await?.expect(201)?;
    http.patch(&format!("{WIDGETS}/a"), "merge", &json!({"spec": {"note": "x"}})).await?.expect(200)?;
    http.delete(&format!("{WIDGETS}/b"), &json!({})).await?.expect(200)?;
    for start in ["", "&resourceVersion=0"] {
        let events = http.watch(&format!("{WIDGETS}?watch=true&timeoutSeconds=1{start}")).await?;
        ensure!(kinds(&events) == ["ADDED a"], "{events:?}");
    }
    let events =
        http.watch(&format!("{WIDGETS}?watch=1&timeoutSeconds=1&resourceVersion={}", rv(&a))).await?;
    ensure!(kinds(&events) == ["ADDED b", "MODIFIED a", "DELETED b"], "{events:?}");
    let revs: Vec<u64> = events.iter().map(|e| rv(&e["object"])).collect();
    ensure!(revs.is_sorted() && revs[0] > rv(&a), "{revs:?}");
    ensure!(events[0]["object"]["kind"] == "Widget");
    let future = http.watch(&format!("{WIDGETS}?watch=1&timeoutSeconds=1&resourceVersion=999999")).await?;
    ensure!(future.is_empty(), "{future:?}");
    http.get(&format!("{WIDGETS}?watch=1&resourceVersion=x")).await?.expect(400)?;
    http.get(&format!("{WIDGETS}?watch=1&resourceVersion=1&resourceVersionMatch=Exact"))
        .await?
        .expect(422)?;
    Ok(())
}

// KS-A23
#[tokio::test]
async fn entering_and_leaving_a_selection() -> Result<()> {
    let server = server().await?;
    let http = Http::new(&server).await?;
    let made = http.post(WIDGETS, &widget("a", json!({}))).await?.expect(201)?;
    let path = format!("{WIDGETS}/a");
    let label = |value: Value| json!({"metadata": {"labels": {"x": value}}});
    for value in [json!("1"), json!("1"), json!("2"), json!("3"), json!("1")] {
        http.patch(&path, "merge", &label(value)).await?.expect(200)?;
    }
    http.delete(&path, &json!({})).await?.expect(200)?;
    let events = http
        .watch(&format!(
            "{WIDGETS}?watch=1&timeoutSeconds=1&labelSelector=x%3D1&resourceVersion={}",
            rv(&made)
        ))
        .await?;
    ensure!(kinds(&events) == ["ADDED a", "DELETED a", "ADDED a", "DELETED a"], "{events:?}");
    let left = &events[1]["object"];
    ensure!(
        left["metadata"]["labels"]["x"] == "1" && rv(left) > rv(&events[0]["object"]),
        "old state, new version: {left}"
    );
    Ok(())
}

// KS-A26, KS-A27
#[tokio::test]
async fn bookmarks_and_initial_events() -> Result<()> {
    let server = server().await?;
    let http = Http::new(&server).await?;
    let query = "watch=1&timeoutSeconds=3&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
    let empty = http.watch(&format!("{WIDGETS}?{query}")).await?;
    ensure!(
        empty[0]["type"] == "BOOKMARK"
            && empty[0]["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"] == "true",
        "{empty:?}"
    );
    ensure!(
        empty.last().context("last")?["type"] == "BOOKMARK" && empty.len() == 2,
        "one more before the end: {empty:?}"
    );
    http.post(WIDGETS, &widget("a", json!({}))).await?.expect(201)?;
    http.post(WIDGETS, &widget("b", json!({}))).await?.expect(201)?;
    let events = http.watch(&format!("{WIDGETS}?{query}&resourceVersion=0")).await?;
    ensure!(kinds(&events[..3]) == ["ADDED a", "ADDED b", "BOOKMARK -"], "{events:?}");
    let mark = rv(&events[2]["object"]);
    http.post(WIDGETS, &widget("c", json!({}))).await?.expect(201)?;
    let resumed = http.watch(&format!("{WIDGETS}?watch=1&timeoutSeconds=1&resourceVersion={mark}")).await?;
    ensure!(kinds(&resumed) == ["ADDED c"], "{resumed:?}");
    let none = http.watch(&format!("{WIDGETS}?watch=1&timeoutSeconds=3&resourceVersion={mark}")).await?;
    ensure!(kinds(&none) == ["ADDED c"], "no bookmark unless asked for: {none:?}");
    http.get(&format!("{WIDGETS}?watch=1&sendInitialEvents=true"))
        .await?
        .refused(422, "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan")?;
    Ok(())
}

fn widget_api(client: kube::Client) -> Api<DynamicObject> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("example.io", "v1", "Widget"));
    Api::namespaced_with(client, "default", &resource)
}

// KS-A25: the history is bounded, so a watch from revision 1 after enough bytes is too old; kube-rs recovers.
#[tokio::test]
async fn too_old_is_an_event_in_the_stream_and_kube_recovers() -> Result<()> {
    let server = server().await?;
    let http = Http::new(&server).await?;
    let api = widget_api(client(server.kubeconfig()).await?);
    http.post(WIDGETS, &widget("a", json!({}))).await?.expect(201)?;
    let pad = "x".repeat(1 << 20);
    for i in 0..14 {
        http.patch(&format!("{WIDGETS}/a"), "merge", &json!({"spec": {"note": format!("{i}{pad}")}}))
            .await?
            .expect(200)?;
    }
    let events = http.watch(&format!("{WIDGETS}?watch=1&timeoutSeconds=5&resourceVersion=1")).await?;
    let error = &events[0];
    ensure!(events.len() == 1 && error["type"] == "ERROR", "{}", error["type"]);
    ensure!(error["object"]["code"] == 410 && error["object"]["reason"] == "Expired", "{error}");
    ensure!(
        error["object"]["message"].as_str().is_some_and(|m| m.starts_with("too old resource version: 1 (")),
        "{error}"
    );
    let first = tokio::time::timeout(LIMIT, async {
        let mut events = watcher::watcher(api, watcher::Config::default()).boxed();
        while let Some(event) = events.try_next().await? {
            if let Event::InitApply(object) | Event::Apply(object) = event {
                return anyhow::Ok(object.metadata.name);
            }
        }
        Ok(None)
    });
    ensure!(first.await??.as_deref() == Some("a"));
    Ok(())
}

// KS-A22
#[tokio::test]
async fn every_watcher_sees_every_write_once_and_in_order() -> Result<()> {
    let server = server().await?;
    let http = Http::new(&server).await?;
    let rv0 = rv(&http.get(WIDGETS).await?.expect(200)?);
    let watchers: Vec<_> = (0..20)
        .map(|_| {
            let kubeconfig = server.kubeconfig().to_owned();
            tokio::spawn(async move {
                Http::with(&kubeconfig)
                    .await?
                    .watch(&format!("{WIDGETS}?watch=1&timeoutSeconds=8&resourceVersion={rv0}"))
                    .await
            })
        })
        .collect();
    let writers = (0..4).map(|w| {
        let kubeconfig = server.kubeconfig().to_owned();
        async move {
            let http = Http::with(&kubeconfig).await?;
            for i in 0..25 {
                let name = format!("w{w}-{i}");
                http.post(WIDGETS, &widget(&name, json!({}))).await?.expect(201)?;
                http.patch(&format!("{WIDGETS}/{name}"), "merge", &json!({"spec": {"replicas": 1}}))
                    .await?
                    .expect(200)?;
                http.delete(&format!("{WIDGETS}/{name}"), &json!({})).await?.expect(200)?;
            }
            anyhow::Ok(())
        }
    });
    futures::future::try_join_all(writers).await?;
    for watcher in watchers {
        let events = watcher.await??;
        ensure!(events.len() == 300, "{} events", events.len());
        ensure!(events.iter().map(|e| rv(&e["object"])).is_sorted_by(|a, b| a < b), "out of order");
        let mut words: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for event in &events {
            let name = event["object"]["metadata"]["name"].as_str().unwrap_or("").to_owned();
            words.entry(name).or_default().push(event["type"].as_str().unwrap_or("").to_owned());
        }
        ensure!(words.len() == 100 && words.values().all(|w| *w == ["ADDED", "MODIFIED", "DELETED"]));
    }
    Ok(())
}

// KS-A31
#[tokio::test]
async fn a_watch_resumes_over_a_restart() -> Result<()> {
    let server = server().await?;
    let http = Http::new(&server).await?;
    let a = http.post(WIDGETS, &widget("a", json!({}))).await?.expect(201)?;
    http.post(WIDGETS, &widget("b", json!({}))).await?.expect(201)?;
    http.delete(&format!("{WIDGETS}/a"), &json!({})).await?.expect(200)?;
    drop(http);
    let server = server.restart(Hooks::default()).await?;
    let http = Http::new(&server).await?;
    let events =
        http.watch(&format!("{WIDGETS}?watch=1&timeoutSeconds=1&resourceVersion={}", rv(&a))).await?;
    ensure!(kinds(&events) == ["ADDED b", "DELETED a"], "{events:?}");
    Ok(())
}

// KS-A15, KS-A16
#[tokio::test]
async fn tables_over_lists_gets_and_watches() -> Result<()> {
    let server = server().await?;
    let http = Http::new(&server).await?;
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")];
    let parts = json!([{"name": "p", "size": 1}]);
    http.post(WIDGETS, &widget("a", json!({"replicas": 3, "parts": parts}))).await?.expect(201)?;
    let status = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    http.patch(&format!("{WIDGETS}/a/status"), "merge", &status).await?.expect(200)?;
    http.post(WIDGETS, &widget("b", json!({}))).await?.expect(201)?;
    let table = http.send("GET", WIDGETS, &accept, b"").await?.expect(200)?;
    let names: Vec<&str> = table["columnDefinitions"]
        .as_array()
        .context("columns")?
        .iter()
        .filter_map(|c| c["name"].as_str())
        .collect();
    ensure!(names == ["Name", "Mode", "Replicas", "Ready", "Parts", "Age"], "{names:?}");
    let cells = table["rows"][0]["cells"].as_array().context("cells")?;
    ensure!(cells[..4] == [json!("a"), json!("A"), json!(3), json!("True")], "{cells:?}");
    ensure!(cells[4] == "[{\"name\":\"p\",\"size\":1}]", "{cells:?}");
    ensure!(table["rows"][1]["cells"][2].is_null() && table["rows"][1]["cells"][3].is_null(), "{table}");
    ensure!(table["rows"][0]["object"]["kind"] == "PartialObjectMetadata");
    let whole =
        http.send("GET", &format!("{WIDGETS}/a?includeObject=Object"), &accept, b"").await?.expect(200)?;
    ensure!(
        whole["rows"][0]["object"]["kind"] == "Widget"
            && whole["rows"].as_array().is_some_and(|r| r.len() == 1),
        "{whole}"
    );
    let none = http.send("GET", &format!("{WIDGETS}?includeObject=None"), &accept, b"").await?.expect(200)?;
    ensure!(none["rows"][0]["object"].is_null());
    http.send("GET", &format!("{WIDGETS}?includeObject=Foo"), &accept, b"").await?.expect(400)?;
    let stream = http.send("GET", &format!("{WIDGETS}?watch=1&timeoutSeconds=1"), &accept, b"").await?;
    let events: Vec<Value> = stream.text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    ensure!(
        events.len() == 2
            && events[0]["object"]["columnDefinitions"].is_array()
            && events[1]["object"]["columnDefinitions"].is_null(),
        "{events:?}"
    );
    let partial = [("accept", "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1")];
    let stream = http.send("GET", &format!("{WIDGETS}?watch=1&timeoutSeconds=1"), &partial, b"").await?;
    ensure!(
        stream.text.contains("PartialObjectMetadata") && !stream.text.contains("\"spec\":{\""),
        "{}",
        stream.text
    );
    Ok(())
}

// KS-A30
#[tokio::test]
async fn a_watch_over_websocket() -> Result<()> {
    let server = server().await?;
    let http = Http::new(&server).await?;
    http.post(WIDGETS, &widget("a", json!({}))).await?.expect(201)?;
    let protocol = "base64.binary.k8s.io";
    let request = http::Request::get(format!("{WIDGETS}?watch=1"))
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .header("sec-websocket-protocol", protocol)
        .body(kube::client::Body::empty())?;
    let response = client(server.kubeconfig()).await?.send(request).await?;
    ensure!(response.status() == 101, "{response:?}");
    ensure!(response.headers()["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", "{response:?}");
    ensure!(response.headers()["sec-websocket-protocol"] == protocol, "{response:?}");
    let io = hyper_util::rt::TokioIo::new(hyper::upgrade::on(response).await?);
    let role = tokio_tungstenite::tungstenite::protocol::Role::Client;
    let mut frames = tokio_tungstenite::WebSocketStream::from_raw_socket(io, role, None).await;
    let mut next = async || -> Result<Value> {
        let frame = tokio::time::timeout(LIMIT, frames.next()).await?.context("closed")??;
        Ok(serde_json::from_str(frame.to_text()?)?)
    };
    ensure!(kinds(&[next().await?]) == ["ADDED a"]);
    http.delete(&format!("{WIDGETS}/a"), &json!({})).await?.expect(200)?;
    ensure!(kinds(&[next().await?]) == ["DELETED a"]);
    Ok(())
}
