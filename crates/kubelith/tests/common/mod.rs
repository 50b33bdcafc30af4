//! A server, the machine's kubectl, and a plain HTTP client for exact requests.
#![allow(dead_code, reason = "each test binary uses its own part")]

use anyhow::{Context, Result, bail, ensure};
use holdfast_kubelith::Hooks;
use holdfast_kubelith::testing::Server;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// How long anything may take.
pub const LIMIT: Duration = Duration::from_secs(60);

/// What a kubectl run left.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// Runs kubectl against the server with an optional standard input.
pub async fn kubectl_in(server: &Server, kubeconfig: &Path, arguments: &[&str], input: &str) -> Result<Run> {
    let cache = server.kubeconfig().parent().context("home")?.join("cache");
    let mut child = Command::new("kubectl")
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .arg("--cache-dir")
        .arg(cache)
        .args(arguments)
        .env_remove("KUBECONFIG")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("kubectl")?;
    let mut stdin = child.stdin.take().context("stdin")?;
    stdin.write_all(input.as_bytes()).await?;
    drop(stdin);
    let output = tokio::time::timeout(LIMIT, child.wait_with_output())
        .await
        .with_context(|| format!("kubectl {arguments:?} hangs"))??;
    Ok(Run {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Runs kubectl as administrator; must succeed; returns standard output.
pub async fn kubectl(server: &Server, arguments: &[&str]) -> Result<String> {
    kubectl_with(server, arguments, "").await
}

/// The same with an input.
pub async fn kubectl_with(server: &Server, arguments: &[&str], input: &str) -> Result<String> {
    let run = kubectl_in(server, server.kubeconfig(), arguments, input).await?;
    ensure!(run.code == 0, "kubectl {arguments:?} exited {}:\n{}{}", run.code, run.out, run.err);
    Ok(run.out)
}

/// Runs kubectl as administrator; must fail; returns standard error.
pub async fn kubectl_fails(server: &Server, arguments: &[&str], input: &str) -> Result<String> {
    let run = kubectl_in(server, server.kubeconfig(), arguments, input).await?;
    ensure!(run.code != 0, "kubectl {arguments:?} succeeded:\n{}", run.out);
    Ok(run.err)
}

/// Answer of a plain request.
#[derive(Debug)]
pub struct Reply {
    pub code: u16,
    pub headers: Vec<(String, String)>,
    pub body: Value,
    pub text: String,
}

/// A plain HTTP client of an administrator.
pub struct Http {
    client: kube::Client,
}

impl Http {
    pub async fn new(server: &Server) -> Result<Self> {
        Self::with(server.kubeconfig()).await
    }

    pub async fn with(kubeconfig: &Path) -> Result<Self> {
        Ok(Self { client: client(kubeconfig).await? })
    }

    /// Sends a request; the body's content type defaults to JSON.
    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Reply> {
        use http_body_util::BodyExt;
        let mut request = http::Request::builder().method(method).uri(path);
        if !body.is_empty() && !headers.iter().any(|(k, _)| k.eq_ignore_ascii_case("content-type")) {
            request = request.header("content-type", "application/json");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(kube::client::Body::from(body.to_vec()))?;
        let response = tokio::time::timeout(LIMIT, self.client.send(request))
            .await
            .with_context(|| format!("{method} {path} hangs"))??;
        let code = response.status().as_u16();
        let headers = response
            .headers()
            .iter()
            .map(|(k, v)| (k.to_string(), String::from_utf8_lossy(v.as_bytes()).into_owned()))
            .collect();
        let bytes = tokio::time::timeout(LIMIT, response.into_body().collect())
            .await
            .with_context(|| format!("{method} {path} streams on"))??
            .to_bytes();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Ok(Reply { code, headers, body: serde_json::from_str(&text).unwrap_or(Value::Null), text })
    }

    pub async fn get(&self, path: &str) -> Result<Reply> {
        self.send("GET", path, &[], b"").await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Result<Reply> {
        self.send("POST", path, &[], body.to_string().as_bytes()).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Result<Reply> {
        self.send("PUT", path, &[], body.to_string().as_bytes()).await
    }

    pub async fn patch(&self, path: &str, kind: &str, body: &Value) -> Result<Reply> {
        let media = match kind {
            "apply" => "application/apply-patch+yaml".to_owned(),
            kind => format!("application/{kind}-patch+json"),
        };
        self.send("PATCH", path, &[("content-type", &media)], body.to_string().as_bytes()).await
    }

    pub async fn delete(&self, path: &str, body: &Value) -> Result<Reply> {
        self.send("DELETE", path, &[], body.to_string().as_bytes()).await
    }

    /// The events a watch sends within its `timeoutSeconds`.
    pub async fn watch(&self, path: &str) -> Result<Vec<Value>> {
        let reply = self.get(path).await?;
        ensure!(reply.code == 200, "watch {path}: {}", reply.text);
        reply.text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }
}

impl Reply {
    pub fn expect(self, code: u16) -> Result<Value> {
        if self.code != code {
            bail!("expected {code}, got {}: {}", self.code, self.text);
        }
        Ok(self.body)
    }

    pub fn refused(self, code: u16, message: &str) -> Result<Value> {
        let body = self.expect(code)?;
        ensure!(body["message"] == message, "message is {}", body["message"]);
        Ok(body)
    }

    pub fn warnings(&self) -> Vec<&str> {
        self.headers.iter().filter(|(k, _)| k == "warning").map(|(_, v)| v.as_str()).collect()
    }
}

/// A kube-rs client without retries.
pub async fn client(kubeconfig: &Path) -> Result<kube::Client> {
    let kubeconfig = kube::config::Kubeconfig::read_from(kubeconfig)?;
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await?;
    config.default_retry = false;
    Ok(kube::Client::try_from(config)?)
}

/// A server with the definitions of this project and the test kind `widgets`.
pub async fn server() -> Result<Server> {
    let mut crds = project_definitions()?;
    crds.push(widgets());
    Ok(Server::with(crds, Hooks::default()).await?)
}

/// Definitions in `deploy/crds`.
pub fn project_definitions() -> Result<Vec<Value>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/crds");
    let mut files: Vec<_> =
        std::fs::read_dir(dir)?.collect::<std::io::Result<Vec<_>>>()?.into_iter().map(|f| f.path()).collect();
    files.sort();
    files
        .iter()
        .map(|file| {
            serde_saphyr::from_str(&std::fs::read_to_string(file)?)
                .with_context(|| file.display().to_string())
        })
        .collect()
}

/// A small definition that uses most of what definitions can say.
pub fn widgets() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "widgets.example.io"},
        "spec": {
            "group": "example.io", "scope": "Namespaced",
            "names": {"plural": "widgets", "kind": "Widget", "shortNames": ["wg"], "categories": ["all"]},
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}},
                "additionalPrinterColumns": [
                    {"name": "Mode", "type": "string", "jsonPath": ".spec.mode"},
                    {"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas"},
                    {"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Ready')].status"},
                    {"name": "Parts", "type": "string", "jsonPath": ".spec.parts", "priority": 1},
                    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
                ],
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "properties": {
                        "mode": {"type": "string", "enum": ["A", "B"], "default": "A", "description": "How it works.",
                            "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "mode is immutable"}]},
                        "replicas": {"type": "integer", "minimum": 0, "maximum": 10},
                        "note": {"type": "string"},
                        "parts": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                            "items": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}, "size": {"type": "integer"}}}},
                    }},
                    "status": {"type": "object", "properties": {
                        "phase": {"type": "string"}, "replicas": {"type": "integer"},
                        "conditions": {"type": "array", "items": {"type": "object", "properties": {"type": {"type": "string"}, "status": {"type": "string"}}}},
                    }},
                }}},
            }],
        },
    })
}

/// A widget.
pub fn widget(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "example.io/v1", "kind": "Widget", "metadata": {"name": name}, "spec": spec})
}

/// Path of the widgets of `default`.
pub const WIDGETS: &str = "/apis/example.io/v1/namespaces/default/widgets";
