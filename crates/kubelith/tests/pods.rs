//! Pods: admission, binding, eviction, drain, logs.

mod common;

use anyhow::{Context, Result, ensure};
use common::{Http, kubectl, kubectl_in, project_definitions};
use futures::FutureExt;
use holdfast_apimachinery::status::Status;
use holdfast_kubelith::http::FileLogs;
use holdfast_kubelith::testing::Server;
use holdfast_kubelith::{Admission, AdmissionRequest, Hooks, Operation, View};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

const PODS: &str = "/api/v1/namespaces/default/pods";
const BUDGETS: &str = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";

async fn start(hooks: Hooks) -> Result<(Server, Http)> {
    let server = Server::with(project_definitions()?, hooks).await?;
    let http = Http::new(&server).await?;
    http.post("/api/v1/namespaces/default/serviceaccounts", &json!({"metadata": {"name": "default"}}))
        .await?
        .expect(201)?;
    http.post("/api/v1/nodes", &json!({"metadata": {"name": "n1"}})).await?.expect(201)?;
    Ok((server, http))
}

fn pod(name: &str, node: &str) -> Value {
    let owner = json!([{"apiVersion": "internal.virtualization.deckhouse.io/v1alpha1", "kind": "Instance", "name": "x", "uid": "u", "controller": true}]);
    let mut pod = json!({
        "metadata": {"name": name, "labels": {"app": "x"}, "ownerReferences": owner},
        "spec": {"containers": [{"name": "c", "image": "holdfast/x:1"}]},
    });
    if !node.is_empty() {
        pod["spec"]["nodeName"] = json!(node);
    }
    pod
}

async fn run(http: &Http, name: &str, ready: bool) -> Result<()> {
    let ready = if ready { "True" } else { "False" };
    let status = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}],
        "containerStatuses": [{"name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}]}});
    http.patch(&format!("{PODS}/{name}/status"), "strategic-merge", &status).await?.expect(200).map(drop)
}

fn eviction(name: &str) -> Value {
    json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": "default", "creationTimestamp": null}, "deleteOptions": {}})
}

// KS-A59
#[tokio::test]
async fn a_new_pod_is_completed() -> Result<()> {
    let (_server, http) = start(Hooks::default()).await?;
    let made = http.post(PODS, &pod("a", "")).await?.expect(201)?;
    let spec = &made["spec"];
    ensure!(
        spec["serviceAccountName"] == "default" && spec["priority"] == 0 && spec["restartPolicy"] == "Always",
        "{spec}"
    );
    ensure!(
        spec["terminationGracePeriodSeconds"] == 30 && spec["schedulerName"] == "default-scheduler",
        "{spec}"
    );
    ensure!(spec["tolerations"].as_array().is_some_and(|t| t.len() == 2), "{spec}");
    ensure!(spec["volumes"][0]["name"].as_str().is_some_and(|n| n.starts_with("kube-api-access-")), "{spec}");
    ensure!(made["status"] == json!({"phase": "Pending", "qosClass": "BestEffort"}), "{}", made["status"]);
    let mut stranger = pod("b", "");
    stranger["spec"]["serviceAccountName"] = json!("x");
    let text =
        "pods \"b\" is forbidden: error looking up service account default/x: serviceaccount \"x\" not found";
    http.post(PODS, &stranger).await?.refused(403, text)?;
    Ok(())
}

// KS-A60
#[tokio::test]
async fn a_pod_is_bound_once_and_its_spec_stays() -> Result<()> {
    let (_server, http) = start(Hooks::default()).await?;
    http.post(PODS, &pod("a", "")).await?.expect(201)?;
    let binding = |node: &str| json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "a"}, "target": {"apiVersion": "v1", "kind": "Node", "name": node}});
    let bound = http.post(&format!("{PODS}/a/binding"), &binding("n1")).await?.expect(201)?;
    ensure!(bound["status"] == "Success", "{bound}");
    let text =
        "Operation cannot be fulfilled on pods/binding \"a\": pod a is already assigned to node \"n1\"";
    http.post(&format!("{PODS}/a/binding"), &binding("n2")).await?.refused(409, text)?;
    let found = http.get(&format!("{PODS}/a")).await?.expect(200)?;
    let scheduled = found["status"]["conditions"]
        .as_array()
        .context("conditions")?
        .iter()
        .find(|c| c["type"] == "PodScheduled")
        .context("PodScheduled")?;
    ensure!(found["spec"]["nodeName"] == "n1" && scheduled["status"] == "True", "{found}");
    let list = http
        .get("/api/v1/pods?fieldSelector=spec.nodeName%3Dn1,status.phase!%3DFailed")
        .await?
        .expect(200)?;
    ensure!(list["items"].as_array().is_some_and(|i| i.len() == 1));
    let refused =
        http.patch(&format!("{PODS}/a"), "merge", &json!({"spec": {"nodeName": "n2"}})).await?.expect(422)?;
    ensure!(
        refused["message"]
            .as_str()
            .is_some_and(|m| m.contains("spec: Forbidden: pod updates may not change fields other than")),
        "{refused}"
    );
    http.patch(
        &format!("{PODS}/a"),
        "strategic-merge",
        &json!({"spec": {"containers": [{"name": "c", "image": "holdfast/x:2"}]}}),
    )
    .await?
    .expect(200)?;
    Ok(())
}

// KS-A48
#[tokio::test]
async fn grace_periods() -> Result<()> {
    let (_server, http) = start(Hooks::default()).await?;
    http.post(PODS, &pod("waiting", "")).await?.expect(201)?;
    http.delete(&format!("{PODS}/waiting"), &json!({})).await?.expect(200)?;
    http.get(&format!("{PODS}/waiting")).await?.expect(404)?;
    http.post(PODS, &pod("a", "n1")).await?.expect(201)?;
    let path = format!("{PODS}/a");
    let first = http.delete(&path, &json!({})).await?.expect(200)?;
    ensure!(
        first["metadata"]["deletionGracePeriodSeconds"] == 30 && first["metadata"]["generation"] == 2,
        "{}",
        first["metadata"]
    );
    let longer = http.delete(&path, &json!({"gracePeriodSeconds": 60})).await?.expect(200)?;
    ensure!(longer["metadata"]["deletionGracePeriodSeconds"] == 30, "{}", longer["metadata"]);
    let shorter = http.delete(&path, &json!({"gracePeriodSeconds": 5})).await?.expect(200)?;
    ensure!(shorter["metadata"]["deletionGracePeriodSeconds"] == 5, "{}", shorter["metadata"]);
    http.delete(&path, &json!({"gracePeriodSeconds": 0, "preconditions": {"uid": first["metadata"]["uid"]}}))
        .await?
        .expect(200)?;
    http.get(&path).await?.expect(404)?;
    Ok(())
}

// KS-A61
#[tokio::test]
async fn evictions_and_budgets() -> Result<()> {
    let (_server, http) = start(Hooks::default()).await?;
    for name in ["a", "b"] {
        http.post(PODS, &pod(name, "n1")).await?.expect(201)?;
        run(&http, name, true).await?;
    }
    let budget = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "p1"}, "spec": {"minAvailable": 2, "selector": {"matchLabels": {"app": "x"}}}});
    http.post(BUDGETS, &budget).await?.expect(201)?;
    let evict = format!("{PODS}/a/eviction");
    let waiting = http.post(&evict, &eviction("a")).await?;
    ensure!(waiting.headers.iter().any(|(k, v)| k == "retry-after" && v == "10"), "{:?}", waiting.headers);
    waiting.expect(429)?;
    let healthy = |allowed: i64, desired: i64| json!({"status": {"observedGeneration": 1, "disruptionsAllowed": allowed, "currentHealthy": 2, "desiredHealthy": desired, "expectedPods": 2}});
    http.patch(&format!("{BUDGETS}/p1/status"), "merge", &healthy(0, 2)).await?.expect(200)?;
    let blocked = http
        .post(&evict, &eviction("a"))
        .await?
        .refused(429, "Cannot evict pod as it would violate the pod's disruption budget.")?;
    ensure!(
        blocked["details"]["causes"][0]["message"]
            == "The disruption budget p1 needs 2 healthy pods and has 2 currently",
        "{blocked}"
    );
    http.patch(&format!("{BUDGETS}/p1/status"), "merge", &healthy(1, 1)).await?.expect(200)?;
    http.post(&format!("{evict}?dryRun=All"), &eviction("a")).await?.expect(201)?;
    ensure!(http.get(&format!("{BUDGETS}/p1")).await?.expect(200)?["status"]["disruptionsAllowed"] == 1);
    // The body kube-rs sends: no kind, options of the wrong case.
    http.post(&evict, &json!({"delete_options": null, "metadata": {"name": "a"}})).await?.expect(201)?;
    let evicted = http.get(&format!("{PODS}/a")).await?.expect(200)?;
    let target = evicted["status"]["conditions"]
        .as_array()
        .context("conditions")?
        .iter()
        .find(|c| c["type"] == "DisruptionTarget")
        .context("DisruptionTarget")?;
    ensure!(
        target["reason"] == "EvictionByEvictionAPI" && evicted["metadata"]["deletionTimestamp"].is_string(),
        "{evicted}"
    );
    let charged = http.get(&format!("{BUDGETS}/p1")).await?.expect(200)?;
    ensure!(
        charged["status"]["disruptionsAllowed"] == 0 && charged["status"]["disruptedPods"]["a"].is_string(),
        "{charged}"
    );
    let mut second = budget.clone();
    second["metadata"]["name"] = json!("p2");
    http.post(BUDGETS, &second).await?.expect(201)?;
    let two = http.post(&format!("{PODS}/b/eviction"), &eviction("b")).await?.expect(500)?;
    ensure!(
        two["message"].as_str().is_some_and(|m| m.contains(
            "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."
        )),
        "{two}"
    );
    http.post(&format!("{PODS}/b/eviction"), &eviction("z")).await?.expect(400)?;
    http.post(PODS, &pod("c", "n1")).await?.expect(201)?;
    http.post(
        &format!("{PODS}/c/eviction"),
        &json!({"apiVersion": "policy/v1beta1", "kind": "Eviction", "metadata": {"name": "c"}}),
    )
    .await?
    .expect(201)?;
    Ok(())
}

/// Refuses the eviction of pods a few times, noting it on the node.
#[derive(Default)]
struct Refuse {
    asked: AtomicU32,
    times: u32,
}

impl Admission for Refuse {
    fn concerns(&self, operation: Operation, _group: &str, resource: &str, subresource: &str) -> bool {
        operation == Operation::Create && resource == "pods" && subresource == "eviction"
    }

    fn validate(&self, request: &AdmissionRequest, view: &dyn View) -> Result<Vec<String>, Status> {
        assert_eq!(request.kind, "Eviction");
        let asked = self.asked.fetch_add(1, Ordering::SeqCst);
        if asked >= self.times {
            return Ok(Vec::new());
        }
        let pod =
            view.get("", "pods", &request.namespace, &request.name).ok_or_else(Status::unknown_resource)?;
        let node = view
            .get("", "nodes", "", pod["spec"]["nodeName"].as_str().unwrap_or(""))
            .ok_or_else(Status::unknown_resource)?;
        let mark = json!({"phase": format!("Evicting {} {asked}", request.name)});
        let written = view.patch_status("", "nodes", &node, &mark, "evictor")?;
        assert_ne!(written["metadata"]["resourceVersion"], node["metadata"]["resourceVersion"]);
        let stale = view.patch_status("", "nodes", &node, &json!({"phase": "no"}), "evictor");
        assert_eq!(stale.map_err(|s| s.code), Err(409));
        Err(Status::too_many_requests("Eviction triggered evacuation of VMI \"default/linux-vm\"", None))
    }
}

// KS-A62, KS-A63, KS-A87
#[tokio::test]
async fn drain_repeats_a_refused_eviction_until_it_is_allowed() -> Result<()> {
    let rule = Arc::new(Refuse { times: 2, ..Refuse::default() });
    let (server, http) = start(Hooks { admission: vec![rule.clone()], ..Hooks::default() }).await?;
    http.post(PODS, &pod("a", "n1")).await?.expect(201)?;
    run(&http, "a", true).await?;
    http.post(&format!("{PODS}/a/eviction"), &eviction("a"))
        .await?
        .refused(429, "Eviction triggered evacuation of VMI \"default/linux-vm\"")?;
    ensure!(
        http.get("/api/v1/nodes/n1").await?.expect(200)?["status"]["phase"] == "Evicting a 0",
        "the mark stays"
    );
    // Plays the node runtime: removes what is told to end.
    let runtime = async {
        loop {
            let pods = http.get(PODS).await?.expect(200)?;
            for pod in pods["items"].as_array().context("items")? {
                if pod["metadata"]["deletionTimestamp"].is_string() {
                    let path = format!("{PODS}/{}", pod["metadata"]["name"].as_str().unwrap_or(""));
                    http.delete(&path, &json!({"gracePeriodSeconds": 0})).await?.expect(200)?;
                    return anyhow::Ok(());
                }
            }
            tokio::task::yield_now().await;
        }
    };
    let drain = kubectl_in(
        &server,
        server.kubeconfig(),
        &["drain", "n1", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=40s"],
        "",
    );
    let (drained, ended) = tokio::join!(drain, tokio::time::timeout(common::LIMIT, runtime));
    ended??;
    let drained = drained?;
    ensure!(drained.code == 0 && drained.out.contains("node/n1 drained"), "{drained:?}");
    ensure!(drained.err.contains("Eviction triggered evacuation of VMI \"default/linux-vm\""), "{drained:?}");
    ensure!(rule.asked.load(Ordering::SeqCst) == 3);
    kubectl(&server, &["uncordon", "n1"]).await?;
    Ok(())
}

// KS-A64
#[tokio::test]
async fn drain_refuses_a_pod_without_controller() -> Result<()> {
    let (server, http) = start(Hooks::default()).await?;
    let mut bare = pod("bare", "n1");
    bare["metadata"]["ownerReferences"] = json!([]);
    http.post(PODS, &bare).await?.expect(201)?;
    run(&http, "bare", true).await?;
    let drained = kubectl_in(&server, server.kubeconfig(), &["drain", "n1", "--timeout=20s"], "").await?;
    ensure!(
        drained.code == 1
            && drained
                .err
                .contains("cannot delete Pods that declare no controller (use --force to override)"),
        "{drained:?}"
    );
    ensure!(http.get("/api/v1/nodes/n1").await?.expect(200)?["spec"]["unschedulable"] == true);
    Ok(())
}

// KS-A80
#[tokio::test]
async fn logs() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("c.log");
    std::fs::write(&file, "one\ntwo\n")?;
    let path = file.clone();
    let hooks =
        Hooks { logs: Some(Arc::new(FileLogs::new(move |_, _, _| Some(path.clone())))), ..Hooks::default() };
    let (server, http) = start(hooks).await?;
    http.post(PODS, &pod("a", "")).await?.expect(201)?;
    ensure!(http.get(&format!("{PODS}/a/log")).await?.code == 204);
    http.post(PODS, &pod("b", "n1")).await?.expect(201)?;
    http.get(&format!("{PODS}/b/log"))
        .await?
        .refused(400, "container \"c\" in pod \"b\" is waiting to start: ContainerCreating")?;
    http.get(&format!("{PODS}/b/log?container=nope"))
        .await?
        .refused(400, "container nope is not valid for pod b")?;
    run(&http, "b", true).await?;
    ensure!(kubectl(&server, &["logs", "b"]).await? == "one\ntwo\n");
    ensure!(kubectl(&server, &["logs", "b", "--tail=1"]).await? == "two\n");
    let follow = kubectl(&server, &["logs", "-f", "b"]).fuse();
    tokio::pin!(follow);
    let ended = async {
        use std::io::Write;
        std::fs::OpenOptions::new().append(true).open(&file)?.write_all(b"three\n")?;
        let done = json!({"status": {"containerStatuses": [{"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 0}}}]}});
        http.patch(&format!("{PODS}/b/status"), "strategic-merge", &done).await?.expect(200)
    };
    let (followed, changed) = tokio::join!(follow, ended);
    changed?;
    ensure!(followed? == "one\ntwo\nthree\n");
    Ok(())
}
