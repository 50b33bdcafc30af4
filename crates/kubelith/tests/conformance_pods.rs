//! Pods as clients meet them: defaults, immutability, binding, grace, eviction, drain.

mod common;

use anyhow::{Context, Result, ensure};
use common::{Http, kubectl, kubectl_in};
use holdfast_apimachinery::status::Status;
use holdfast_kubelith::Hooks;
use holdfast_kubelith::admission::{Admission, AdmissionRequest, Operation, View};
use holdfast_kubelith::testing::Server;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const PODS: &str = "/api/v1/namespaces/default/pods";

async fn start(hooks: Hooks) -> Result<(Server, Http)> {
    let server = Server::with(Vec::new(), hooks).await?;
    let http = Http::new(&server).await?;
    let account = json!({"metadata": {"name": "default"}});
    let made = http.post("/api/v1/namespaces/default/serviceaccounts", &account).await?;
    ensure!(matches!(made.code, 201 | 409), "{}", made.text);
    Ok((server, http))
}

fn pod(name: &str, spec: &Value) -> Value {
    let mut spec = spec.clone();
    if spec["containers"].is_null() {
        spec["containers"] = json!([{"name": "c", "image": "holdfast/x:1"}]);
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "x"}}, "spec": spec})
}

/// Makes a pod that runs and is ready, owned by a controller.
async fn running(http: &Http, name: &str) -> Result<Value> {
    let mut body = pod(name, &json!({"nodeName": "n1", "automountServiceAccountToken": false}));
    body["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "x.io/v1", "kind": "Thing", "name": "t", "uid": "u-1", "controller": true}]);
    http.post(PODS, &body).await?.expect(201)?;
    let status = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
    http.patch(&format!("{PODS}/{name}/status"), "strategic-merge", &status).await?.expect(200)
}

/// Makes a budget whose controller has just looked.
async fn budget(http: &Http, name: &str, allowed: i64) -> Result<()> {
    let path = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let body = json!({"metadata": {"name": name}, "spec": {"minAvailable": 2, "selector": {"matchLabels": {"app": "x"}}}});
    http.post(path, &body).await?.expect(201)?;
    let status = json!({"status": {"observedGeneration": 1, "disruptionsAllowed": allowed, "currentHealthy": 2, "desiredHealthy": 2, "expectedPods": 2}});
    http.patch(&format!("{path}/{name}/status"), "merge", &status).await?.expect(200)?;
    Ok(())
}

fn eviction(name: &str) -> Value {
    json!({"kind": "Eviction", "apiVersion": "policy/v1", "metadata": {"name": name, "namespace": "default", "creationTimestamp": null}, "deleteOptions": {}})
}

// KS-A59
#[tokio::test]
async fn a_new_pod_gets_the_defaults_of_the_reference() -> Result<()> {
    let (_server, http) = start(Hooks::default()).await?;
    let containers = json!([
        {"name": "a", "image": "x", "resources": {"limits": {"cpu": "1000m", "memory": "1024Mi"}}, "ports": [{"containerPort": 80}], "readinessProbe": {"httpGet": {"port": 80}}},
        {"name": "b", "image": "r.io:5000/x:1"},
    ]);
    let made = http
        .post(PODS, &pod("p", &json!({"containers": containers, "volumes": [{"name": "v"}]})))
        .await?
        .expect(201)?;
    let spec = &made["spec"];
    for (pointer, expected) in [
        ("/restartPolicy", json!("Always")),
        ("/dnsPolicy", json!("ClusterFirst")),
        ("/terminationGracePeriodSeconds", json!(30)),
        ("/schedulerName", json!("default-scheduler")),
        ("/securityContext", json!({})),
        ("/enableServiceLinks", json!(true)),
        ("/serviceAccountName", json!("default")),
        ("/serviceAccount", json!("default")),
        ("/priority", json!(0)),
        ("/preemptionPolicy", json!("PreemptLowerPriority")),
        ("/containers/0/imagePullPolicy", json!("Always")),
        ("/containers/1/imagePullPolicy", json!("IfNotPresent")),
        ("/containers/0/terminationMessagePath", json!("/dev/termination-log")),
        ("/containers/0/terminationMessagePolicy", json!("File")),
        ("/containers/0/ports/0/protocol", json!("TCP")),
        (
            "/containers/0/resources",
            json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Gi"}}),
        ),
        ("/containers/1/resources", json!({})),
        ("/containers/0/readinessProbe/periodSeconds", json!(10)),
        ("/containers/0/readinessProbe/httpGet/scheme", json!("HTTP")),
        ("/volumes/0/emptyDir", json!({})),
        ("/volumes/1/projected/sources/0/serviceAccountToken/expirationSeconds", json!(3607)),
        ("/containers/1/volumeMounts/0/mountPath", json!("/var/run/secrets/kubernetes.io/serviceaccount")),
        (
            "/tolerations/0",
            json!({"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}),
        ),
        ("/tolerations/1/key", json!("node.kubernetes.io/unreachable")),
    ] {
        ensure!(spec.pointer(pointer) == Some(&expected), "{pointer}: {:?}", spec.pointer(pointer));
    }
    ensure!(made["status"] == json!({"phase": "Pending", "qosClass": "Burstable"}), "{}", made["status"]);
    http.post(PODS, &pod("q", &json!({"serviceAccountName": "nobody"}))).await?.refused(
        403,
        "pods \"q\" is forbidden: error looking up service account default/nobody: serviceaccount \"nobody\" not found",
    )?;
    http.post(PODS, &pod("q", &json!({"priorityClassName": "none"})))
        .await?
        .refused(403, "pods \"q\" is forbidden: no PriorityClass with name none was found")?;
    let given = json!({"tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"}], "priorityClassName": "system-node-critical", "automountServiceAccountToken": false});
    let made = http.post(PODS, &pod("r", &given)).await?.expect(201)?;
    let tolerations = made["spec"]["tolerations"].as_array().context("tolerations")?;
    ensure!(tolerations.len() == 2 && tolerations[0].get("tolerationSeconds").is_none(), "{tolerations:?}");
    ensure!(
        made["spec"]["priority"] == 2_000_001_000 && made["spec"].get("volumes").is_none(),
        "{}",
        made["spec"]
    );
    Ok(())
}

// KS-A60
#[tokio::test]
async fn the_spec_is_fixed_and_a_pod_is_bound_once() -> Result<()> {
    let (_server, http) = start(Hooks::default()).await?;
    http.post(PODS, &pod("p", &json!({}))).await?.expect(201)?;
    let one = format!("{PODS}/p");
    for patch in [
        json!({"spec": {"restartPolicy": "Never"}}),
        json!({"spec": {"containers": [{"name": "c", "command": ["x"]}]}}),
        json!({"spec": {"nodeName": "n1"}}),
        json!({"spec": {"tolerations": []}}),
    ] {
        let refused = http.patch(&one, "strategic-merge", &patch).await?.expect(422)?;
        let message = refused["message"].as_str().unwrap_or_default();
        ensure!(
            message.starts_with(
                "Pod \"p\" is invalid: spec: Forbidden: pod updates may not change fields other than"
            ),
            "{patch}: {message}"
        );
    }
    for (patch, generation) in [
        (json!({"spec": {"containers": [{"name": "c", "image": "holdfast/x:2"}]}}), 2),
        (json!({"spec": {"activeDeadlineSeconds": 60}}), 3),
        (json!({"spec": {"activeDeadlineSeconds": 30}}), 4),
        (json!({"metadata": {"labels": {"a": "b"}}}), 4),
    ] {
        let changed = http.patch(&one, "strategic-merge", &patch).await?.expect(200)?;
        ensure!(
            changed["metadata"]["generation"] == generation,
            "{patch}: {}",
            changed["metadata"]["generation"]
        );
    }
    http.patch(&one, "strategic-merge", &json!({"spec": {"activeDeadlineSeconds": 90}}))
        .await?
        .expect(422)?;
    let binding = |node: &str| json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": node}});
    http.post(&format!("{one}/binding"), &binding("n1")).await?.expect(201)?;
    http.post(&format!("{one}/binding"), &binding("n2")).await?.refused(
        409,
        "Operation cannot be fulfilled on pods/binding \"p\": pod p is already assigned to node \"n1\"",
    )?;
    let bound = http.get(&one).await?.expect(200)?;
    ensure!(bound["spec"]["nodeName"] == "n1", "{}", bound["spec"]["nodeName"]);
    let scheduled = bound["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|c| c["type"] == "PodScheduled" && c["status"] == "True");
    ensure!(scheduled, "{}", bound["status"]);
    Ok(())
}

// KS-A48
#[tokio::test]
async fn grace_is_kept_shortened_and_forced() -> Result<()> {
    let (_server, http) = start(Hooks::default()).await?;
    http.post(PODS, &pod("waits", &json!({}))).await?.expect(201)?;
    http.delete(&format!("{PODS}/waits"), &json!({})).await?.expect(200)?;
    http.get(&format!("{PODS}/waits")).await?.expect(404)?;
    running(&http, "p").await?;
    let one = format!("{PODS}/p");
    let before = chrono::Utc::now();
    let marked = http.delete(&one, &json!({"gracePeriodSeconds": 100})).await?.expect(200)?;
    let until = marked["metadata"]["deletionTimestamp"].as_str().context("deletionTimestamp")?;
    let until = chrono::DateTime::parse_from_rfc3339(until)?.with_timezone(&chrono::Utc);
    ensure!((98..=102).contains(&(until - before).num_seconds()), "{until}");
    ensure!(
        marked["metadata"]["deletionGracePeriodSeconds"] == 100 && marked["metadata"]["generation"] == 2,
        "{}",
        marked["metadata"]
    );
    let longer = http.delete(&one, &json!({"gracePeriodSeconds": 200})).await?.expect(200)?;
    ensure!(longer["metadata"]["deletionGracePeriodSeconds"] == 100, "never longer");
    let shorter = http.delete(&one, &json!({"gracePeriodSeconds": 5})).await?.expect(200)?;
    ensure!(shorter["metadata"]["deletionGracePeriodSeconds"] == 5, "{}", shorter["metadata"]);
    let wrong = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": "other"}});
    http.delete(&one, &wrong).await?.expect(409)?;
    http.delete(&one, &json!({"gracePeriodSeconds": 0})).await?.expect(200)?;
    http.get(&one).await?.expect(404)?;
    Ok(())
}

// KS-A61
#[tokio::test]
async fn evictions_and_budgets() -> Result<()> {
    let (_server, http) = start(Hooks::default()).await?;
    let evict = |name: &str| format!("{PODS}/{name}/eviction");
    running(&http, "free").await?;
    let mut trial = eviction("free");
    trial["deleteOptions"] = json!({"dryRun": ["All"]});
    http.post(&evict("free"), &trial).await?.expect(201)?;
    ensure!(
        http.get(&format!("{PODS}/free")).await?.expect(200)?["metadata"]["deletionTimestamp"].is_null(),
        "a dry run writes nothing"
    );
    http.post(&evict("free"), &eviction("other")).await?.expect(400)?;
    let done = http.post(&evict("free"), &eviction("free")).await?.expect(201)?;
    ensure!(done["kind"] == "Status" && done["status"] == "Success" && done["code"] == 201, "{done}");
    let gone = http.get(&format!("{PODS}/free")).await?.expect(200)?;
    let target = gone["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|c| c["type"] == "DisruptionTarget")
        .context("condition")?;
    ensure!(
        target["status"] == "True"
            && target["reason"] == "EvictionByEvictionAPI"
            && target["message"] == "Eviction API: evicting",
        "{target}"
    );
    ensure!(gone["metadata"]["deletionTimestamp"].is_string(), "{}", gone["metadata"]);

    running(&http, "p1").await?;
    budget(&http, "b1", 0).await?;
    let refused = http
        .post(&evict("p1"), &eviction("p1"))
        .await?
        .refused(429, "Cannot evict pod as it would violate the pod's disruption budget.")?;
    ensure!(refused["reason"] == "TooManyRequests", "{refused}");
    let cause = &refused["details"]["causes"][0];
    ensure!(
        cause["reason"] == "DisruptionBudget"
            && cause["message"] == "The disruption budget b1 needs 2 healthy pods and has 2 currently",
        "{cause}"
    );
    // What kube-rs sends: no kind, options in another case.
    let bare = json!({"delete_options": null, "metadata": {"name": "p1"}});
    http.post(&evict("p1"), &bare).await?.expect(429)?;
    let mut beta = eviction("p1");
    beta["apiVersion"] = json!("policy/v1beta1");
    http.post(&evict("p1"), &beta).await?.expect(429)?;
    let path = "/apis/policy/v1/namespaces/default/poddisruptionbudgets/b1";
    http.patch(&format!("{path}/status"), "merge", &json!({"status": {"disruptionsAllowed": 1}}))
        .await?
        .expect(200)?;
    http.post(&evict("p1"), &bare).await?.expect(201)?;
    let after = http.get(path).await?.expect(200)?;
    ensure!(
        after["status"]["disruptionsAllowed"] == 0 && after["status"]["disruptedPods"].get("p1").is_some(),
        "{}",
        after["status"]
    );

    running(&http, "p2").await?;
    budget(&http, "b2", 5).await?;
    http.post(&evict("p2"), &eviction("p2")).await?.refused(
        500,
        "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
    )?;
    http.delete("/apis/policy/v1/namespaces/default/poddisruptionbudgets/b2", &json!({}))
        .await?
        .expect(200)?;
    // The budget changed and its controller has not looked yet.
    http.patch(path, "merge", &json!({"spec": {"minAvailable": 1}})).await?.expect(200)?;
    let stale = http.post(&evict("p2"), &eviction("p2")).await?;
    ensure!(stale.headers.iter().any(|(k, v)| k == "retry-after" && v == "10"), "{:?}", stale.headers);
    ensure!(stale.expect(429)?["details"]["retryAfterSeconds"] == 10);
    Ok(())
}

/// Denies evictions of labelled pods until told otherwise, as the rule of virtual machines does.
struct Guard {
    asked: AtomicUsize,
    allow_after: usize,
}

impl Admission for Guard {
    fn concerns(&self, _: Operation, group: &str, resource: &str, subresource: &str) -> bool {
        group.is_empty() && resource == "pods" && subresource == "eviction"
    }

    fn validate(&self, request: &AdmissionRequest, view: &dyn View) -> Result<Vec<String>, Status> {
        let pod = view.get("", "pods", &request.namespace, &request.name).unwrap_or_default();
        if pod["metadata"]["labels"]["vm"].is_null() {
            return Ok(Vec::new());
        }
        if self.asked.fetch_add(1, Ordering::SeqCst) >= self.allow_after {
            return Ok(Vec::new());
        }
        Err(Status::too_many_requests(
            "admission webhook \"vm\" denied the request: Eviction triggered evacuation of VMI \"default/vm\"",
            None,
        ))
    }
}

async fn node(http: &Http) -> Result<()> {
    http.post("/api/v1/nodes", &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}}))
        .await?
        .expect(201)?;
    Ok(())
}

// KS-A62
#[tokio::test]
async fn drain_waits_while_a_rule_denies_and_uncordon_restores() -> Result<()> {
    let guard = Arc::new(Guard { asked: AtomicUsize::new(0), allow_after: 1 });
    let (server, http) = start(Hooks { admission: vec![guard.clone()], ..Hooks::default() }).await?;
    node(&http).await?;
    running(&http, "vm").await?;
    http.patch(&format!("{PODS}/vm"), "merge", &json!({"metadata": {"labels": {"vm": "a"}}}))
        .await?
        .expect(200)?;
    let gone = async {
        // The node's part: an evicted pod ends.
        let deadline = tokio::time::Instant::now() + common::LIMIT;
        loop {
            let found = http.get(&format!("{PODS}/vm")).await?;
            if found.code == 404 || found.body["metadata"]["deletionTimestamp"].is_string() {
                break;
            }
            ensure!(tokio::time::Instant::now() < deadline, "never evicted");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        http.delete(&format!("{PODS}/vm"), &json!({"gracePeriodSeconds": 0})).await?;
        Ok(())
    };
    let drain = kubectl_in(
        &server,
        server.kubeconfig(),
        &["drain", "n1", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=50s"],
        "",
    );
    let (drained, ended) = tokio::join!(drain, gone);
    ended?;
    let drained = drained?;
    ensure!(drained.code == 0 && drained.out.contains("node/n1 drained"), "{drained:?}");
    ensure!(
        drained.err.contains("Eviction triggered evacuation of VMI \"default/vm\"")
            && drained.err.contains("will retry after 5s"),
        "{}",
        drained.err
    );
    ensure!(guard.asked.load(Ordering::SeqCst) == 2, "asked once more after 5 s");
    ensure!(http.get("/api/v1/nodes/n1").await?.expect(200)?["spec"]["unschedulable"] == true);
    kubectl(&server, &["uncordon", "n1"]).await?;
    ensure!(http.get("/api/v1/nodes/n1").await?.expect(200)?["spec"]["unschedulable"].is_null());
    Ok(())
}

// KS-A63, KS-A64
#[tokio::test]
async fn drain_refuses_bare_pods_and_skips_mirrors() -> Result<()> {
    let (server, http) = start(Hooks::default()).await?;
    node(&http).await?;
    let mut mirror = pod("mirror", &json!({"nodeName": "n1"}));
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
    http.post(PODS, &mirror).await?.expect(201)?;
    http.post(PODS, &pod("bare", &json!({"nodeName": "n1", "automountServiceAccountToken": false})))
        .await?
        .expect(201)?;
    let refused = kubectl_in(&server, server.kubeconfig(), &["drain", "n1", "--timeout=20s"], "").await?;
    ensure!(refused.code == 1, "{refused:?}");
    ensure!(
        refused.err.contains(
            "cannot delete Pods that declare no controller (use --force to override): default/bare"
        ),
        "{}",
        refused.err
    );
    ensure!(
        http.get("/api/v1/nodes/n1").await?.expect(200)?["spec"]["unschedulable"] == true,
        "stays cordoned"
    );
    http.delete(&format!("{PODS}/bare"), &json!({"gracePeriodSeconds": 0})).await?.expect(200)?;
    // A pod with scratch space needs the flag; a pending one goes at once.
    let mut scratch = pod(
        "scratch",
        &json!({"nodeName": "n1", "volumes": [{"name": "v"}], "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 0}),
    );
    scratch["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "x.io/v1", "kind": "Thing", "name": "t", "uid": "u-1", "controller": true}]);
    http.post(PODS, &scratch).await?.expect(201)?;
    let refused = kubectl_in(&server, server.kubeconfig(), &["drain", "n1", "--timeout=20s"], "").await?;
    ensure!(refused.code == 1 && refused.err.contains("cannot delete Pods with local storage (use --delete-emptydir-data to override): default/scratch"), "{refused:?}");
    let typo =
        kubectl_in(&server, server.kubeconfig(), &["drain", "n1", "--delete-emptydir-dat"], "").await?;
    ensure!(typo.code == 1 && typo.err.contains("unknown flag: --delete-emptydir-dat"), "{typo:?}");
    let drained = kubectl_in(
        &server,
        server.kubeconfig(),
        &["drain", "n1", "--delete-emptydir-data", "--timeout=40s"],
        "",
    )
    .await?;
    ensure!(
        drained.code == 0
            && drained.out.contains("evicting pod default/scratch")
                | drained.err.contains("evicting pod default/scratch"),
        "{drained:?}"
    );
    http.get(&format!("{PODS}/mirror")).await?.expect(200)?;
    Ok(())
}

// KS-A87
#[tokio::test]
async fn a_client_without_retries_sees_the_first_429() -> Result<()> {
    let guard = Arc::new(Guard { asked: AtomicUsize::new(0), allow_after: usize::MAX });
    let (server, http) = start(Hooks { admission: vec![guard.clone()], ..Hooks::default() }).await?;
    running(&http, "vm").await?;
    http.patch(&format!("{PODS}/vm"), "merge", &json!({"metadata": {"labels": {"vm": "a"}}}))
        .await?
        .expect(200)?;
    let pods: kube::Api<k8s_openapi::api::core::v1::Pod> =
        kube::Api::namespaced(common::client(server.kubeconfig()).await?, "default");
    let refused = pods.evict("vm", &Default::default()).await.err().context("denied")?;
    ensure!(matches!(&refused, kube::Error::Api(status) if status.code == 429), "{refused}");
    ensure!(guard.asked.load(Ordering::SeqCst) == 1, "no hidden attempts");
    Ok(())
}
