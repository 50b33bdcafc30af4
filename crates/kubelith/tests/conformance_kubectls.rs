//! Every kubectl on this machine: the one on PATH and its versioned siblings (`kubectl.1.28` …).

mod common;

use anyhow::{Context, Result, ensure};
use common::{Http, kubectl, kubectl_with, project_definitions};
use holdfast_kubelith::Hooks;
use holdfast_kubelith::http::{Aggregated, full};
use holdfast_kubelith::testing::Server;
use serde_json::json;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// The kubectl on PATH and what lies beside it.
fn kubectls() -> Result<Vec<PathBuf>> {
    let path = std::env::var_os("PATH").context("PATH")?;
    let found = std::env::split_paths(&path).map(|dir| dir.join("kubectl")).find(|file| file.exists());
    let found = std::fs::canonicalize(found.context("no kubectl on PATH")?)?;
    let mut all = vec![found.clone()];
    for entry in std::fs::read_dir(found.parent().context("folder")?)? {
        let file = entry?.path();
        if file.file_name().and_then(|n| n.to_str()).is_some_and(|name| name.starts_with("kubectl.1.")) {
            all.push(file);
        }
    }
    all.sort();
    Ok(all)
}

/// One client with its own cache, so that every version discovers for itself.
struct Client<'s> {
    binary: &'s Path,
    server: &'s Server,
    cache: PathBuf,
}

impl Client<'_> {
    async fn run(&self, arguments: &[&str], input: &str) -> Result<(bool, String, String)> {
        let mut child = Command::new(self.binary)
            .arg("--kubeconfig")
            .arg(self.server.kubeconfig())
            .arg("--cache-dir")
            .arg(&self.cache)
            .args(arguments)
            .env_remove("KUBECONFIG")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut stdin = child.stdin.take().context("stdin")?;
        stdin.write_all(input.as_bytes()).await?;
        drop(stdin);
        let output = tokio::time::timeout(common::LIMIT, child.wait_with_output())
            .await
            .context("kubectl hangs")??;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((output.status.success(), text(&output.stdout), text(&output.stderr)))
    }

    async fn ok(&self, arguments: &[&str], input: &str) -> Result<String> {
        let (success, out, err) = self.run(arguments, input).await?;
        ensure!(success, "{} {arguments:?}: {out}{err}", self.binary.display());
        Ok(out)
    }
}

fn vm(name: &str, cores: i64) -> String {
    json!({
        "apiVersion": "virtualization.deckhouse.io/v1alpha2", "kind": "VirtualMachine",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"virtualMachineClassName": "host", "cpu": {"cores": cores}, "memory": {"size": "1Gi"}, "blockDeviceRefs": [{"kind": "VirtualDisk", "name": "d"}]},
    })
    .to_string()
}

// KS-A01, KS-A06, KS-A07, KS-A08, KS-A09, KS-A11, KS-A38, KS-A44
#[tokio::test]
async fn every_version_discovers_validates_creates_applies_and_explains() -> Result<()> {
    let server = Server::with(project_definitions()?, Hooks::default()).await?;
    let http = Http::new(&server).await?;
    let folder = server.kubeconfig().parent().context("home")?.to_owned();
    let mut catalogues = BTreeSet::new();
    for (number, binary) in kubectls()?.iter().enumerate() {
        let client = Client { binary, server: &server, cache: folder.join(format!("cache-{number}")) };
        let catalogue = client.ok(&["api-resources", "--no-headers", "-o", "wide"], "").await?;
        // Column widths and the order of verbs differ between versions, the facts may not.
        catalogues.insert(
            catalogue
                .lines()
                .map(|l| l.split_whitespace().take(5).collect::<Vec<_>>().join(" "))
                .collect::<Vec<_>>(),
        );
        client.ok(&["version"], "").await?;
        let name = format!("vm{number}");
        let created = client.ok(&["apply", "-f", "-"], &vm(&name, 1)).await?;
        ensure!(created.contains("created"), "{created}");
        let again = client.ok(&["apply", "-f", "-"], &vm(&name, 1)).await?;
        ensure!(again.contains("unchanged"), "{again}");
        client.ok(&["apply", "-f", "-"], &vm(&name, 2)).await?;
        client.ok(&["apply", "--server-side", "-f", "-"], &vm(&name, 2)).await?;
        let path =
            format!("/apis/virtualization.deckhouse.io/v1alpha2/namespaces/default/virtualmachines/{name}");
        let stored = http.get(&path).await?.expect(200)?;
        ensure!(stored["spec"]["cpu"]["cores"] == 2, "{stored}");
        let owners: Vec<_> = stored["metadata"]["managedFields"]
            .as_array()
            .context("managedFields")?
            .iter()
            .filter(|e| e["manager"] == "kubectl" && e["operation"] == "Apply")
            .collect();
        ensure!(owners.len() == 1, "{}: {:?}", binary.display(), stored["metadata"]["managedFields"]);
        let table = client.ok(&["get", "vm", &name], "").await?;
        ensure!(
            table.lines().next().is_some_and(|l| l.split_whitespace().eq([
                "NAME",
                "PHASE",
                "NODE",
                "IPADDRESS",
                "AGE"
            ])),
            "{table}"
        );
        let explained = client.ok(&["explain", "vm.spec.cpu"], "").await?;
        ensure!(explained.contains("cores") && explained.contains("coreFraction"), "{explained}");
        let pods = client.ok(&["explain", "pod.spec", "--recursive"], "").await?;
        ensure!(pods.contains("nodeName") && pods.contains("tolerationSeconds"), "{pods}");
        let (accepted, _, refusal) = client
            .run(
                &["create", "-f", "-"],
                &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "datas": {}})
                    .to_string(),
            )
            .await?;
        ensure!(!accepted && refusal.contains("unknown field \"datas\""), "{}: {refusal}", binary.display());
        let namespace = format!("ns{number}");
        client.ok(&["create", "namespace", &namespace], "").await?;
        for command in [
            &["create", "secret", "generic", "s", "--from-literal=a=b"][..],
            &["create", "configmap", "c", "--from-literal=a=b"],
            &["create", "role", "r", "--verb=get", "--resource=pods"],
            &["create", "pdb", "p", "--selector=app=x", "--max-unavailable=50%"],
            &["create", "service", "clusterip", "svc", "--tcp=80:8080"],
            &["auth", "can-i", "list", "pods"],
        ] {
            client.ok(&[command, &["-n", &namespace]].concat(), "").await?;
        }
        let secret = http.get(&format!("/api/v1/namespaces/{namespace}/secrets/s")).await?.expect(200)?;
        ensure!(secret["data"] == json!({"a": "Yg=="}) && secret["type"] == "Opaque", "{secret}");
        let budget = http
            .get(&format!("/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets/p"))
            .await?
            .expect(200)?;
        ensure!(
            budget["spec"] == json!({"maxUnavailable": "50%", "selector": {"matchLabels": {"app": "x"}}}),
            "{}",
            budget["spec"]
        );
        let service = http.get(&format!("/api/v1/namespaces/{namespace}/services/svc")).await?.expect(200)?;
        ensure!(
            service["spec"]["ports"]
                == json!([{"name": "80-8080", "port": 80, "protocol": "TCP", "targetPort": 8080}]),
            "{}",
            service["spec"]
        );
        client.ok(&["delete", "vm", &name], "").await?;
    }
    ensure!(catalogues.len() == 1, "versions see different kinds: {catalogues:#?}");
    Ok(())
}

// KS-A05
#[tokio::test]
async fn the_word_vm_means_the_resource_and_not_its_subresource_group() -> Result<()> {
    let subresources = Aggregated {
        group: "subresources.virtualization.deckhouse.io".into(),
        version: "v1alpha2".into(),
        resources: vec![
            json!({"name": "virtualmachines", "singularName": "virtualmachine", "namespaced": true, "kind": "VirtualMachine", "verbs": ["get"], "shortNames": ["vm"]}),
            json!({"name": "virtualmachines/console", "singularName": "", "namespaced": true, "kind": "VirtualMachineConsole", "verbs": ["get"]}),
        ],
        handler: Arc::new(|_, _| Box::pin(async { http::Response::new(full("subresources answered")) })),
    };
    let hooks = Hooks { aggregated: vec![subresources], ..Hooks::default() };
    let server = Server::with(project_definitions()?, hooks).await?;
    kubectl_with(&server, &["apply", "-f", "-"], &vm("linux-vm", 1)).await?;
    for word in ["vm", "virtualmachine", "virtualmachines"] {
        let found = kubectl(&server, &["get", word, "linux-vm", "-o", "jsonpath={.apiVersion}"]).await?;
        ensure!(found == "virtualization.deckhouse.io/v1alpha2", "{word}: {found}");
    }
    let groups = kubectl(&server, &["api-versions"]).await?;
    ensure!(groups.contains("subresources.virtualization.deckhouse.io/v1alpha2"), "{groups}");
    Ok(())
}
