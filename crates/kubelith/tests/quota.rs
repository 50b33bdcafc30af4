//! ResourceQuota (KS 16.6).

mod common;

use anyhow::{Result, ensure};
use common::{Http, WIDGETS, kubectl, kubectl_fails, kubectl_with, server, widget};
use futures::future::join_all;
use serde_json::{Value, json};

const NS: &str = "/api/v1/namespaces/default";

fn pod(name: &str, cpu: &str, memory: &str) -> Value {
    let resources = json!({"requests": {"cpu": cpu, "memory": memory}});
    json!({"metadata": {"name": name}, "spec": {
        "containers": [{"name": "c", "image": "holdfast/x:1", "resources": resources}]}})
}

fn claim(name: &str, size: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "fast",
        "resources": {"requests": {"storage": size}}}})
}

async fn used(http: &Http, name: &str) -> Result<Value> {
    let quota = http.get(&format!("{NS}/resourcequotas/{name}")).await?.expect(200)?;
    Ok(quota["status"]["used"].clone())
}

// KS-A73
#[tokio::test]
async fn a_namespace_uses_no_more_than_its_quota_allows() -> Result<()> {
    let server = server().await?;
    let http = Http::new(&server).await?;
    kubectl(&server, &["create", "sa", "default"]).await?;
    http.post(&format!("{NS}/pods"), &pod("before", "100m", "64Mi")).await?.expect(201)?;
    let hard = "--hard=pods=2,requests.cpu=1,memory=1Gi,requests.storage=3Gi,fast.storageclass.storage.k8s.io/requests.storage=2Gi,count/widgets.example.io=1";
    kubectl(&server, &["create", "quota", "q", hard]).await?;
    let of_pods = json!({"pods": "1", "requests.cpu": "100m", "memory": "64Mi"});
    let now = used(&http, "q").await?;
    ensure!(of_pods.as_object().into_iter().flatten().all(|(name, amount)| now[name] == *amount), "{now}");

    let refused = http.post(&format!("{NS}/pods"), &pod("big", "950m", "64Mi")).await?;
    refused.refused(
        403,
        "pods \"big\" is forbidden: exceeded quota: q, requested: requests.cpu=950m, used: requests.cpu=100m, limited: requests.cpu=1",
    )?;
    let mut open = pod("open", "1m", "1Mi");
    open["spec"]["containers"][0]["resources"] = json!({});
    let refused = http.post(&format!("{NS}/pods"), &open).await?;
    refused.refused(
        403,
        "pods \"open\" is forbidden: failed quota: q: must specify memory for: c; requests.cpu for: c",
    )?;
    http.post(&format!("{NS}/pods"), &pod("second", "100m", "64Mi")).await?.expect(201)?;
    let mut third = pod("third", "1m", "1Mi");
    third["apiVersion"] = json!("v1");
    third["kind"] = json!("Pod");
    let refused = kubectl_fails(&server, &["create", "-f", "-"], &third.to_string()).await?;
    ensure!(
        refused.contains("exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2"),
        "{refused}"
    );
    // A pod that has ended counts no more.
    let ended = json!({"status": {"phase": "Succeeded"}});
    http.patch(&format!("{NS}/pods/second/status"), "merge", &ended).await?.expect(200)?;
    http.post(&format!("{NS}/pods"), &pod("third", "1m", "1Mi")).await?.expect(201)?;

    http.post(&format!("{NS}/persistentvolumeclaims"), &claim("a", "2Gi")).await?.expect(201)?;
    let refused = http.post(&format!("{NS}/persistentvolumeclaims"), &claim("b", "1Gi")).await?;
    refused.refused(
        403,
        "persistentvolumeclaims \"b\" is forbidden: exceeded quota: q, requested: fast.storageclass.storage.k8s.io/requests.storage=1Gi, used: fast.storageclass.storage.k8s.io/requests.storage=2Gi, limited: fast.storageclass.storage.k8s.io/requests.storage=2Gi",
    )?;
    http.post(WIDGETS, &widget("w", json!({}))).await?.expect(201)?;
    http.post(WIDGETS, &widget("x", json!({}))).await?.expect(403)?;
    http.delete(&format!("{WIDGETS}/w"), &json!({})).await?.expect(200)?;
    http.post(WIDGETS, &widget("x", json!({}))).await?.expect(201)?;

    let shown = kubectl(&server, &["get", "quota", "q"]).await?;
    let (head, row) = shown.split_once('\n').unwrap_or_default();
    ensure!(head.split_whitespace().eq(["NAME", "REQUEST", "LIMIT", "AGE"]), "{shown}");
    ensure!(row.contains("memory: 65Mi/1Gi, pods: 2/2, requests.cpu: 101m/1"), "{shown}");
    Ok(())
}

// KS-A73: parallel creates; raising and lowering; a count that survives a restart.
#[tokio::test]
async fn used_never_exceeds_hard() -> Result<()> {
    let server = server().await?;
    let http = Http::new(&server).await?;
    let quota =
        "apiVersion: v1\nkind: ResourceQuota\nmetadata: {name: q}\nspec: {hard: {secrets: 7, limits.cpu: 2}}";
    kubectl_with(&server, &["apply", "-f", "-"], quota).await?;
    let secrets = format!("{NS}/secrets");
    let bodies: Vec<Value> = (0..50).map(|n| json!({"metadata": {"name": format!("s{n}")}})).collect();
    let answers = join_all(bodies.iter().map(|body| http.post(&secrets, body))).await;
    let codes: Vec<u16> = answers.into_iter().map(|answer| answer.map(|a| a.code)).collect::<Result<_>>()?;
    ensure!(codes.iter().filter(|code| **code == 201).count() == 7, "{codes:?}");
    ensure!(codes.iter().all(|code| matches!(code, 201 | 403)), "{codes:?}");
    ensure!(used(&http, "q").await? == json!({"secrets": "7", "limits.cpu": "0"}));
    // KS A39, its part about quotas.
    let tried = http.post(&format!("{secrets}?dryRun=All"), &json!({"metadata": {"name": "dry"}})).await?;
    tried.expect(403)?;
    kubectl(&server, &["patch", "quota", "q", "--type=merge", "-p", r#"{"spec":{"hard":{"secrets":8}}}"#])
        .await?;
    let before = used(&http, "q").await?;
    http.post(&format!("{secrets}?dryRun=All"), &json!({"metadata": {"name": "dry"}})).await?.expect(201)?;
    ensure!(used(&http, "q").await? == before, "a dry run uses nothing");
    http.post(&secrets, &json!({"metadata": {"name": "eighth"}})).await?.expect(201)?;
    // Lowered below what is used: nothing is taken away, nothing more is given.
    kubectl(&server, &["patch", "quota", "q", "--type=merge", "-p", r#"{"spec":{"hard":{"secrets":3}}}"#])
        .await?;
    http.post(&secrets, &json!({"metadata": {"name": "ninth"}})).await?.expect(403)?;
    let scoped = "apiVersion: v1\nkind: ResourceQuota\nmetadata: {name: s}\nspec: {scopes: [BestEffort]}";
    let refused = kubectl_fails(&server, &["apply", "-f", "-"], scoped).await?;
    ensure!(refused.contains("this server has no scopes of quotas"), "{refused}");

    let server = server.restart(holdfast_kubelith::Hooks::default()).await?;
    let http = Http::new(&server).await?;
    ensure!(used(&http, "q").await?["secrets"] == "8");
    Ok(())
}
