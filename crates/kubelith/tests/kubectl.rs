//! The machine's kubectl against the server.

mod common;

use anyhow::{Context, Result, ensure};
use common::{Http, LIMIT, kubectl, kubectl_fails, kubectl_in, kubectl_with, server, widget};
use holdfast_kubelith::testing::Server;
use serde_json::{Value, json};

const VM: &str = "apiVersion: virtualization.deckhouse.io/v1alpha2
kind: VirtualMachine
metadata:
  name: linux-vm
spec:
  virtualMachineClassName: host
  cpu:
    cores: 1
  memory:
    size: 1Gi
  blockDeviceRefs:
    - kind: VirtualDisk
      name: linux-disk
";

async fn status(server: &Server, patch: Value) -> Result<()> {
    let path =
        "/apis/virtualization.deckhouse.io/v1alpha2/namespaces/default/virtualmachines/linux-vm/status";
    Http::new(server).await?.patch(path, "merge", &json!({"status": patch})).await?.expect(200).map(drop)
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

// KS-A01, KS-A03, KS-A04, KS-A06
#[tokio::test]
async fn discovery() -> Result<()> {
    let server = server().await?;
    let version = kubectl(&server, &["version", "-o", "json"]).await?;
    ensure!(serde_json::from_str::<Value>(&version)?["serverVersion"]["major"] == "1", "{version}");
    let kinds = kubectl(&server, &["api-resources", "--no-headers", "-o", "wide"]).await?;
    let find = |plural: &str| kinds.lines().map(words).find(|w| w[0] == plural);
    let vm = find("virtualmachines").context("virtualmachines")?;
    ensure!(vm[1..5] == ["vm", "virtualization.deckhouse.io/v1alpha2", "true", "VirtualMachine"], "{vm:?}");
    let verbs = "create,delete,deletecollection,get,list,patch,update,watch";
    let mut sorted: Vec<&str> = vm[5].split(',').collect();
    sorted.sort_unstable();
    ensure!(sorted.join(",") == verbs, "{vm:?}");
    for (plural, short) in [
        ("nodes", "no"),
        ("pods", "po"),
        ("namespaces", "ns"),
        ("events", "ev"),
        ("persistentvolumeclaims", "pvc"),
        ("widgets", "wg"),
    ] {
        ensure!(find(plural).context(plural.to_owned())?[1] == short, "{plural}");
    }
    let versions = kubectl(&server, &["api-versions"]).await?;
    ensure!(
        versions.contains("policy/v1\n") && versions.contains("rbac.authorization.k8s.io/v1\n"),
        "{versions}"
    );
    let core = kubectl(&server, &["get", "--raw", "/api/v1"]).await?;
    let core: Value = serde_json::from_str(&core)?;
    let eviction = core["resources"]
        .as_array()
        .context("resources")?
        .iter()
        .find(|r| r["name"] == "pods/eviction")
        .context("eviction")?;
    ensure!(
        eviction["group"] == "policy" && eviction["version"] == "v1" && eviction["kind"] == "Eviction",
        "{eviction}"
    );
    kubectl(&server, &["cluster-info"]).await?;
    kubectl(&server, &["delete", "crd", "widgets.example.io"]).await?;
    kubectl_fails(&server, &["get", "--raw", "/apis/example.io/v1"], "").await?;
    Ok(())
}

// KS-A07, KS-A11, KS-A41
#[tokio::test]
async fn a_machine_is_applied_shown_changed_and_deleted() -> Result<()> {
    let server = server().await?;
    let applied = kubectl_with(&server, &["apply", "-f", "-"], VM).await?;
    ensure!(applied == "virtualmachine.virtualization.deckhouse.io/linux-vm created\n", "{applied}");
    ensure!(kubectl_with(&server, &["apply", "-f", "-"], VM).await?.ends_with("unchanged\n"));
    let changed = VM.replace("cores: 1", "cores: 2");
    ensure!(kubectl_with(&server, &["diff", "-f", "-"], VM).await?.is_empty());
    ensure!(kubectl_with(&server, &["apply", "-f", "-"], &changed).await?.ends_with("configured\n"));
    ensure!(kubectl(&server, &["get", "vm", "linux-vm", "-o", "jsonpath={.spec.cpu.cores}"]).await? == "2");
    status(&server, json!({"phase": "Running", "nodeName": "virtlab-pt-1", "ipAddress": "10.66.10.12"}))
        .await?;
    let shown = kubectl(&server, &["get", "vm"]).await?;
    let lines: Vec<&str> = shown.lines().collect();
    ensure!(words(lines[0]) == ["NAME", "PHASE", "NODE", "IPADDRESS", "AGE"], "{shown}");
    ensure!(words(lines[1])[..4] == ["linux-vm", "Running", "virtlab-pt-1", "10.66.10.12"], "{shown}");
    let wide = kubectl(&server, &["get", "vm", "-o", "wide"]).await?;
    let header = words(wide.lines().next().context("header")?).join(" ");
    ensure!(
        header == "NAME PHASE CORES COREFRACTION MEMORY NEED RESTART AGENT MIGRATABLE NODE IPADDRESS AGE",
        "{header}"
    );
    kubectl(
        &server,
        &["patch", "vm", "linux-vm", "--type", "merge", "-p", r#"{"spec":{"cpu":{"cores":3}}}"#],
    )
    .await?;
    let refused = kubectl_fails(&server, &["patch", "vm", "linux-vm", "-p", "{}"], "").await?;
    ensure!(
        refused.contains(
            "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml"
        ),
        "{refused}"
    );
    kubectl(&server, &["label", "vm", "linux-vm", "tier=db"]).await?;
    kubectl(&server, &["annotate", "vm", "linux-vm", "note=x"]).await?;
    ensure!(
        kubectl(&server, &["get", "vm", "-A", "-l", "tier=db", "-o", "name"]).await?.lines().count() == 1
    );
    ensure!(kubectl(&server, &["get", "vm", "-l", "tier!=db", "-o", "name"]).await?.is_empty());
    kubectl(
        &server,
        &[
            "patch",
            "vm",
            "linux-vm",
            "--subresource=status",
            "--type=merge",
            "-p",
            r#"{"status":{"phase":"Stopped"}}"#,
        ],
    )
    .await?;
    let described = kubectl(&server, &["describe", "vm", "linux-vm"]).await?;
    ensure!(described.contains("Stopped") && described.contains("Events:"), "{described}");
    let file = kubectl(&server, &["get", "vm", "linux-vm", "-o", "yaml"]).await?;
    ensure!(
        kubectl_with(&server, &["replace", "-f", "-"], &file.replace("cores: 3", "cores: 4"))
            .await?
            .ends_with("replaced\n")
    );
    ensure!(kubectl(&server, &["delete", "vm", "linux-vm"]).await?.contains("deleted"));
    ensure!(kubectl(&server, &["get", "vm", "-o", "name"]).await?.is_empty());
    Ok(())
}

// KS-A07, KS-A33, KS-A38
#[tokio::test]
async fn create_edit_and_validation() -> Result<()> {
    let server = server().await?;
    let operation = "apiVersion: virtualization.deckhouse.io/v1alpha2\nkind: VirtualMachineOperation\nmetadata:\n  generateName: evict-linux-vm-\nspec:\n  virtualMachineName: linux-vm\n  type: Evict\n";
    let made = kubectl_with(&server, &["create", "-f", "-"], operation).await?;
    ensure!(made.contains("/evict-linux-vm-") && made.ends_with("created\n"), "{made}");
    let typo = VM.replace("cores: 1", "cores: 1\n    corez: 2");
    let refused = kubectl_fails(&server, &["apply", "-f", "-"], &typo).await?;
    ensure!(refused.contains("strict decoding error: unknown field \"spec.cpu.corez\""), "{refused}");
    let run =
        kubectl_in(&server, server.kubeconfig(), &["apply", "--validate=warn", "-f", "-"], &typo).await?;
    ensure!(run.code == 0 && run.err.contains("Warning: unknown field \"spec.cpu.corez\""), "{run:?}");
    let script = "#!/bin/sh\nsed -i 's/cores: 1/cores: 2/' \"$1\"\n";
    let editor = server.kubeconfig().with_file_name("editor");
    std::fs::write(&editor, script)?;
    let command = format!("sh {}", editor.display());
    let cache = server.kubeconfig().with_file_name("cache");
    let edit = tokio::process::Command::new("kubectl")
        .arg("--kubeconfig")
        .arg(server.kubeconfig())
        .arg("--cache-dir")
        .arg(cache)
        .args(["edit", "vm", "linux-vm"])
        .env("KUBE_EDITOR", command)
        .kill_on_drop(true)
        .output();
    let edit = tokio::time::timeout(LIMIT, edit).await??;
    ensure!(edit.status.success(), "{edit:?}");
    ensure!(kubectl(&server, &["get", "vm", "linux-vm", "-o", "jsonpath={.spec.cpu.cores}"]).await? == "2");
    Ok(())
}

// KS-A08
#[tokio::test]
async fn explain() -> Result<()> {
    let server = server().await?;
    let vm = kubectl(&server, &["explain", "vm.spec.cpu"]).await?;
    ensure!(
        vm.contains("GROUP:      virtualization.deckhouse.io") && vm.contains("cores\t<integer>"),
        "{vm}"
    );
    let pod = kubectl(&server, &["explain", "pod.spec.nodeName", "--recursive"]).await?;
    ensure!(pod.contains("FIELD: nodeName <string>"), "{pod}");
    let widget = kubectl(&server, &["explain", "widget.spec.mode"]).await?;
    ensure!(widget.contains("How it works.") && widget.contains("ENUM"), "{widget}");
    Ok(())
}

// KS-A09, KS-A10
#[tokio::test]
async fn typed_commands_send_protobuf() -> Result<()> {
    let server = server().await?;
    for command in [
        &["create", "ns", "team"][..],
        &["create", "secret", "generic", "s", "--from-literal=user=me"],
        &["create", "cm", "c", "--from-literal=a=1"],
        &["create", "sa", "robot"],
        &[
            "create",
            "role",
            "reader",
            "--verb=get,list",
            "--resource=pods,virtualmachines.virtualization.deckhouse.io",
        ],
        &["create", "clusterrole", "creader", "--verb=get", "--resource=nodes"],
        &["create", "rolebinding", "readers", "--role=reader", "--user=alice"],
        &[
            "create",
            "clusterrolebinding",
            "creaders",
            "--clusterrole=creader",
            "--serviceaccount=default:robot",
        ],
        &["create", "pdb", "p", "--selector=app=x", "--min-available=1"],
        &["create", "priorityclass", "high", "--value=1000"],
        &["create", "quota", "many", "--hard=pods=1000,requests.memory=1Ti"],
    ] {
        kubectl(&server, command).await?;
    }
    let data = kubectl(&server, &["get", "secret", "s", "-o", "jsonpath={.data.user} {.type}"]).await?;
    ensure!(data == "bWU= Opaque", "{data}");
    let pdb = kubectl(&server, &["get", "pdb", "p", "-o", "jsonpath={.spec}"]).await?;
    ensure!(
        serde_json::from_str::<Value>(&pdb)?
            == json!({"minAvailable": 1, "selector": {"matchLabels": {"app": "x"}}}),
        "{pdb}"
    );
    ensure!(kubectl(&server, &["auth", "can-i", "delete", "pods"]).await? == "yes\n");
    let who = kubectl(&server, &["auth", "whoami", "-o", "json"]).await?;
    ensure!(
        serde_json::from_str::<Value>(&who)?["status"]["userInfo"]["username"] == "kubernetes-admin",
        "{who}"
    );
    let token = kubectl(&server, &["create", "token", "robot", "--duration=20m"]).await?;
    ensure!(token.trim().split('.').count() == 3, "{token}");
    Ok(())
}

// KS-A75, KS-A77
#[tokio::test]
async fn identities_and_permissions() -> Result<()> {
    let server = server().await?;
    kubectl(&server, &["create", "role", "reader", "--verb=get,list", "--resource=pods"]).await?;
    kubectl(&server, &["create", "rolebinding", "readers", "--role=reader", "--user=alice"]).await?;
    let alice = server.kubeconfig_for("alice", &["dev"])?;
    let run = async |arguments: &[&str]| kubectl_in(&server, &alice, arguments, "").await;
    ensure!(run(&["get", "pods"]).await?.code == 0);
    let refused = run(&["get", "secrets"]).await?;
    ensure!(refused.err.contains("secrets is forbidden: User \"alice\" cannot list resource \"secrets\" in API group \"\" in the namespace \"default\""), "{refused:?}");
    let refused = run(&["get", "nodes"]).await?;
    ensure!(refused.err.contains("at the cluster scope"), "{refused:?}");
    ensure!(run(&["auth", "can-i", "list", "pods"]).await?.out == "yes\n");
    ensure!(run(&["auth", "can-i", "delete", "pods"]).await?.out == "no\n");
    let list = run(&["auth", "can-i", "--list"]).await?;
    ensure!(list.out.contains("pods") && list.out.contains("[get list]"), "{list:?}");
    ensure!(kubectl(&server, &["auth", "can-i", "list", "pods", "--as", "alice"]).await? == "yes\n");
    ensure!(
        run(&["get", "pods", "--as", "bob"]).await?.err.contains("cannot impersonate resource \"users\"")
    );

    kubectl(&server, &["create", "sa", "robot"]).await?;
    kubectl(
        &server,
        &["create", "clusterrolebinding", "robots", "--clusterrole=view", "--serviceaccount=default:robot"],
    )
    .await?;
    let token = kubectl(&server, &["create", "token", "robot"]).await?.trim().to_owned();
    let ca = server.kubeconfig().with_file_name("ca.crt");
    std::fs::write(&ca, server.pki().ca_pem())?;
    let empty = server.kubeconfig().with_file_name("empty");
    std::fs::write(&empty, "{}")?;
    let (url, ca) = (server.url(), ca.display().to_string());
    let robot = ["--server", &url, "--certificate-authority", &ca, "--token", &token];
    let run = async |base: &[&str], arguments: &[&str]| {
        kubectl_in(&server, &empty, &[base, arguments].concat(), "").await
    };
    ensure!(run(&robot, &["get", "pods"]).await?.code == 0);
    let who = run(&robot, &["auth", "whoami"]).await?;
    ensure!(
        who.out.contains("system:serviceaccount:default:robot")
            && who.out.contains("system:serviceaccounts:default"),
        "{who:?}"
    );
    let foreign = ["--server", &url, "--certificate-authority", &ca, "--token", "a.b.c"];
    ensure!(run(&foreign, &["get", "--raw", "/api/v1/pods"]).await?.err.contains("Unauthorized"));
    // kubectl asks for a password when it has no credential, so this is asked plainly.
    let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": &url, "certificate-authority": &ca}}],
        "users": [{"name": "c", "user": {}}], "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}]});
    std::fs::write(&empty, config.to_string())?;
    let anonymous = Http::with(&empty).await?;
    for path in ["/version", "/healthz", "/livez", "/readyz"] {
        anonymous.get(path).await?.expect(200)?;
    }
    anonymous.get("/api/v1/pods").await?.refused(
        403,
        "pods is forbidden: User \"system:anonymous\" cannot list resource \"pods\" in API group \"\" at the cluster scope",
    )?;
    for path in ["/apis", "/metrics"] {
        anonymous.get(path).await?.expect(403)?;
    }
    std::fs::write(&empty, "{}")?;
    kubectl(&server, &["delete", "sa", "robot"]).await?;
    ensure!(run(&robot, &["get", "--raw", "/api/v1/pods"]).await?.err.contains("Unauthorized"));
    Ok(())
}

// KS 3.6: what a Prometheus finds.
#[tokio::test]
async fn requests_are_counted_under_the_field_s_names() -> Result<()> {
    let server = server().await?;
    let page = async || kubectl(&server, &["get", "--raw", "/metrics"]).await;
    kubectl(&server, &["create", "configmap", "a"]).await?;
    kubectl_fails(&server, &["create", "configmap", "a"], "").await?;
    kubectl(&server, &["create", "configmap", "b", "--dry-run=server"]).await?;
    let map = r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}}"#;
    kubectl_with(&server, &["apply", "--server-side", "-f", "-"], map).await?;
    kubectl(&server, &["get", "configmap", "a"]).await?;
    kubectl_fails(&server, &["get", "--raw", "/apis/made.up/v1/things"], "").await?;
    let found = page().await?;
    let line = |code: u16, dry: &str, name: bool, verb: &str| {
        let scope = if name { "resource" } else { "namespace" };
        format!(
            "apiserver_request_total{{code=\"{code}\",component=\"apiserver\",dry_run=\"{dry}\",group=\"\",\
             resource=\"configmaps\",scope=\"{scope}\",subresource=\"\",verb=\"{verb}\",version=\"v1\"}} 1\n"
        )
    };
    let wanted = [
        line(201, "", false, "POST"),
        line(409, "", false, "POST"),
        line(201, "All", false, "POST"),
        line(201, "", true, "APPLY"),
        line(200, "", true, "GET"),
        "# TYPE apiserver_request_total counter\n".to_owned(),
    ];
    for line in wanted {
        ensure!(found.contains(&line), "{line} is not in {found}");
    }
    ensure!(!found.contains("made.up"), "{found}");
    Ok(())
}

// KS-A12, KS-A13
#[tokio::test]
async fn get_watch_prints_every_change() -> Result<()> {
    use tokio::io::{AsyncBufReadExt, BufReader};
    let server = server().await?;
    kubectl_with(&server, &["create", "-f", "-"], VM).await?;
    status(&server, json!({"phase": "Pending"})).await?;
    let cache = server.kubeconfig().with_file_name("cache");
    let mut child = tokio::process::Command::new("kubectl")
        .arg("--kubeconfig")
        .arg(server.kubeconfig())
        .arg("--cache-dir")
        .arg(cache)
        .args(["get", "vm", "linux-vm", "-w", "--no-headers"])
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
    let mut phases = Vec::new();
    for next in ["Starting", "Running", "Migrating", "Running", ""] {
        let line = tokio::time::timeout(LIMIT, lines.next_line()).await??.context("kubectl ended")?;
        phases.push(words(&line)[1].to_owned());
        if !next.is_empty() {
            status(&server, json!({"phase": next})).await?;
        }
    }
    ensure!(phases == ["Pending", "Starting", "Running", "Migrating", "Running"], "{phases:?}");
    child.kill().await?;
    Ok(())
}

// KS-A28
#[tokio::test]
async fn wait_for_conditions_values_and_deletion() -> Result<()> {
    let server = server().await?;
    kubectl_with(&server, &["create", "-f", "-"], VM).await?;
    let timeout = kubectl_in(
        &server,
        server.kubeconfig(),
        &["wait", "vm/linux-vm", "--for=jsonpath={.status.phase}=Running", "--timeout=1s"],
        "",
    )
    .await?;
    ensure!(timeout.code == 1 && timeout.err.contains("timed out waiting"), "{timeout:?}");
    let (waited, changed) = tokio::join!(
        kubectl(&server, &["wait", "vm/linux-vm", "--for=jsonpath={.status.phase}=Running", "--timeout=30s"]),
        async { tokio::time::timeout(LIMIT, status(&server, json!({"phase": "Running"}))).await? }
    );
    changed?;
    ensure!(waited?.contains("condition met"));
    let conditions = json!({"conditions": [{"type": "Running", "status": "True", "reason": "Running", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
    status(&server, conditions).await?;
    kubectl(&server, &["wait", "vm/linux-vm", "--for=condition=Running", "--timeout=30s"]).await?;
    let (waited, deleted) = tokio::join!(
        kubectl(&server, &["wait", "vm/linux-vm", "--for=delete", "--timeout=30s"]),
        kubectl(&server, &["delete", "vm", "linux-vm"]),
    );
    deleted?;
    waited?;
    Ok(())
}

// KS-A44
#[tokio::test]
async fn client_side_apply_migrates_to_server_side() -> Result<()> {
    let server = server().await?;
    let config = widget("a", json!({"replicas": 1})).to_string();
    kubectl_with(&server, &["apply", "-f", "-"], &config).await?;
    kubectl_with(&server, &["apply", "--server-side", "-f", "-"], &config).await?;
    let entries = kubectl(&server, &["get", "widget", "a", "--show-managed-fields", "-o", "json"]).await?;
    let entries = serde_json::from_str::<Value>(&entries)?["metadata"]["managedFields"].clone();
    let apply: Vec<&Value> =
        entries.as_array().context("entries")?.iter().filter(|e| e["operation"] == "Apply").collect();
    ensure!(apply.iter().filter(|e| e["manager"] == "kubectl").count() == 1, "{entries}");
    ensure!(!entries.to_string().contains("kubectl-client-side-apply"), "{entries}");
    kubectl_with(&server, &["apply", "--server-side", "--dry-run=server", "-f", "-"], &config).await?;
    Ok(())
}

// KS-A14
#[tokio::test]
async fn columns_of_built_in_kinds() -> Result<()> {
    let server = server().await?;
    let http = Http::new(&server).await?;
    let ready =
        json!({"conditions": [{"type": "Ready", "status": "True"}], "nodeInfo": {"kubeletVersion": "v1"}});
    http.post("/api/v1/nodes", &json!({"metadata": {"name": "n1", "labels": {"node-role.kubernetes.io/worker": ""}}, "status": ready})).await?.expect(201)?;
    kubectl(&server, &["cordon", "n1"]).await?;
    let node = kubectl(&server, &["get", "nodes"]).await?;
    ensure!(node.contains("Ready,SchedulingDisabled") && node.contains("worker"), "{node}");
    ensure!(kubectl(&server, &["describe", "node", "n1"]).await?.contains("Unschedulable:      true"));
    kubectl(&server, &["uncordon", "n1"]).await?;
    kubectl(&server, &["taint", "node", "n1", "k=v:NoSchedule"]).await?;
    ensure!(
        kubectl(&server, &["get", "node", "n1", "-o", "jsonpath={.spec.taints[*].key}"]).await?.contains('k')
    );
    kubectl(&server, &["create", "sa", "default"]).await?;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "holdfast/x:1"}]}});
    http.post("/api/v1/namespaces/default/pods", &pod).await?.expect(201)?;
    let pods = kubectl(&server, &["get", "pods", "-o", "wide"]).await?;
    ensure!(words(pods.lines().nth(1).context("row")?)[..4] == ["p", "0/1", "Pending", "0"], "{pods}");
    http.delete("/api/v1/namespaces/default/pods/p", &json!({})).await?.expect(200)?;
    ensure!(kubectl(&server, &["get", "pods"]).await?.contains("Terminating"));
    let ns = kubectl(&server, &["get", "ns", "default"]).await?;
    ensure!(words(ns.lines().nth(1).context("row")?)[..2] == ["default", "Active"], "{ns}");
    kubectl(
        &server,
        &["get", "sa,cm,secret,pv,pvc,sc,pdb,lease,role,clusterrole,crd,priorityclass,events", "-A"],
    )
    .await?;
    Ok(())
}
