//! API server with Holdfast's kinds, gateway, a node whose agent is a script, and `d8` with its kubeconfig.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use holdfast_api::engine::Instance;
use holdfast_api::{VirtualMachine, VirtualMachineOperation};
use holdfast_apimachinery::status::{GroupResource, Status};
use holdfast_gateway::{Cluster, Gateway, Lookup, Target, TlsFiles, User};
use holdfast_kubelith::Hooks;
use holdfast_kubelith::http::{Aggregated, Handler};
use holdfast_kubelith::testing::Server;
use holdfast_wire::frame;
use holdfast_wire::peer::{Open, Opened, Opening, PORT, StreamTo};
use http_body_util::BodyExt as _;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::process::Command;

/// Longest time any condition may take.
pub const LIMIT: Duration = Duration::from_secs(20);
const NODE: &str = "virtlab-pt-1";

/// Finds VMs once there is a client: the gateway is plugged in before the server is up.
#[derive(Default)]
struct Late(OnceLock<Cluster>);

impl Lookup for Late {
    fn find<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<Target, Status>> {
        self.0.get().expect("the client is set before the first request").find(namespace, name)
    }
}

type Plans = Arc<Mutex<BTreeMap<String, Value>>>;

pub struct Platform {
    pub client: Client,
    pub home: tempfile::TempDir,
    /// Plans of drains, by the path that asks for them.
    plans: Plans,
    queried: Arc<Mutex<Option<String>>>,
    server: Server,
}

impl Platform {
    pub async fn new() -> Self {
        // Fails only when an earlier test has installed it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let home = tempfile::tempdir().expect("a directory");
        let authority = Authority::new();
        let address = agent(&authority.issue(home.path(), NODE)).await;
        let late = Arc::new(Late::default());
        let gateway =
            Gateway::new(late.clone(), &authority.issue(home.path(), "gateway")).expect("a gateway");
        let plans = Plans::default();
        let shown = plans.clone();
        let queried = Arc::<Mutex<Option<String>>>::default();
        let query = queried.clone();
        let handler: Handler = Arc::new(move |request, user| {
            let gateway = gateway.clone();
            let path = request.uri().path().to_owned();
            *query.lock().unwrap() = request.uri().query().map(str::to_owned);
            let plan = shown.lock().unwrap().get(&path).cloned();
            Box::pin(async move {
                if let Some(plan) = plan {
                    return http::Response::new(holdfast_kubelith::http::received(plan.to_string()));
                }
                if let Some(node) = path.strip_suffix("/drainplan").and_then(|path| path.rsplit('/').next()) {
                    let status = Status::not_found(&GroupResource::new("", "nodes"), node);
                    let body = holdfast_kubelith::http::received(status.to_value().to_string());
                    return http::Response::builder().status(404).body(body).unwrap();
                }
                let user = User { name: user.name, groups: user.groups };
                let answer = gateway.handle(request, user).await;
                answer.map(|body| body.map_err(|never| match never {}).boxed_unsync())
            })
        });
        let aggregated = Aggregated {
            group: holdfast_gateway::GROUP.to_owned(),
            version: holdfast_gateway::VERSION.to_owned(),
            resources: holdfast_gateway::resources(),
            handler,
        };
        let crds = holdfast_api::crds().iter().map(|crd| serde_json::to_value(crd).unwrap()).collect();
        let hooks = Hooks { aggregated: vec![aggregated], ..Hooks::default() };
        let server = Server::with(crds, hooks).await.expect("the API server starts");
        let kubeconfig = Kubeconfig::read_from(server.kubeconfig()).unwrap();
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        let client = Client::try_from(config).unwrap();
        assert!(late.0.set(Cluster(client.clone())).is_ok());
        let platform = Self { client, home, plans, queried, server };
        let node = json!({"metadata": {"name": NODE}, "status": {"addresses": [{"type": "InternalIP", "address": address}]}});
        let nodes: Api<Node> = Api::all(platform.client.clone());
        nodes.create(&PostParams::default(), &serde_json::from_value(node).unwrap()).await.expect("a node");
        platform
    }

    /// The query of the last request for a subresource.
    pub fn last_query(&self) -> Option<String> {
        self.queried.lock().unwrap().clone()
    }

    /// From now on this is the plan of a drain of the node.
    pub fn show_drain_plan(&self, node: &str, plan: &Value) {
        let path = format!("/apis/{}/v1alpha2/nodes/{node}/drainplan", holdfast_gateway::GROUP);
        self.plans.lock().unwrap().insert(path, plan.clone());
    }

    /// A VM in that phase, on the node if it runs.
    pub async fn vm(&self, name: &str, phase: &str) {
        let machines: Api<VirtualMachine> = Api::namespaced(self.client.clone(), "default");
        let vm = json!({"metadata": {"name": name}, "spec": {
            "virtualMachineClassName": "host", "cpu": {"cores": 1}, "memory": {"size": "256Mi"},
            "blockDeviceRefs": [{"kind": "VirtualDisk", "name": "root"}]}});
        machines.create(&PostParams::default(), &serde_json::from_value(vm).unwrap()).await.expect("a VM");
        let instances: Api<Instance> = Api::namespaced(self.client.clone(), "default");
        let instance = json!({"metadata": {"name": name}, "spec": {"epoch": 1, "power": "On",
            "owner": {"front": "Deckhouse", "kind": "VirtualMachine", "name": name, "uid": "u"}}});
        instances
            .create(&PostParams::default(), &serde_json::from_value(instance).unwrap())
            .await
            .expect("an Instance");
        let status = Patch::Merge(json!({"status": {"state": "Running", "node": NODE}}));
        instances.patch_status(name, &PatchParams::default(), &status).await.expect("its status");
        self.phase(name, phase).await;
    }

    pub async fn phase(&self, name: &str, phase: &str) {
        let machines: Api<VirtualMachine> = Api::namespaced(self.client.clone(), "default");
        let status = Patch::Merge(json!({"status": {"phase": phase}}));
        machines.patch_status(name, &PatchParams::default(), &status).await.expect("the phase");
    }

    pub fn operations(&self) -> Api<VirtualMachineOperation> {
        Api::namespaced(self.client.clone(), "default")
    }

    /// `d8` with these arguments, as the administrator.
    pub fn d8(&self, args: &[&str]) -> Command {
        self.d8_as(self.server.kubeconfig(), args)
    }

    pub fn d8_as(&self, kubeconfig: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_d8"));
        command.args(args).env("KUBECONFIG", kubeconfig).env("HOME", self.home.path());
        command.env_remove("HOLDFAST_HOME").stdin(Stdio::null()).kill_on_drop(true);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// A user without any rights.
    pub fn stranger(&self) -> PathBuf {
        self.server.kubeconfig_for("bob", &[]).expect("a kubeconfig")
    }

    /// Runs `d8` to its end.
    pub async fn run(&self, args: &[&str]) -> Ended {
        Ended::of(self.d8(args)).await
    }

    /// Asks until there is an answer.
    pub async fn until<T, F: Future<Output = Option<T>>>(&self, what: &str, mut ask: impl FnMut() -> F) -> T {
        let start = Instant::now();
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            assert!(start.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// What a finished `d8` left.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    pub async fn of(mut command: Command) -> Self {
        let output = tokio::time::timeout(LIMIT, command.output()).await;
        Self::from(output.unwrap_or_else(|_| panic!("{command:?} did not end")).expect("d8 starts"))
    }
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }
}

/// Reads until the text appears; returns all that was read.
pub async fn read_until(mut from: impl AsyncRead + Unpin, text: &str) -> String {
    let mut seen = Vec::new();
    let mut buffer = [0; 1024];
    let done = tokio::time::timeout(LIMIT, async {
        while !String::from_utf8_lossy(&seen).contains(text) {
            match from.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(length) => seen.extend_from_slice(&buffer[..length]),
            }
        }
    });
    let in_time = done.await.is_ok();
    let seen = String::from_utf8_lossy(&seen).into_owned();
    assert!(in_time && seen.contains(text), "{text:?} did not appear in {seen:?}");
    seen
}

struct Authority {
    issuer: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        Self {
            issuer: rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap(),
        }
    }

    fn issue(&self, directory: &Path, name: &str) -> TlsFiles {
        let file = |ending: &str| directory.join(format!("{name}.{ending}"));
        let files = TlsFiles { ca: directory.join("ca.crt"), cert: file("crt"), key: file("key") };
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        std::fs::write(&files.ca, self.issuer.pem()).unwrap();
        std::fs::write(&files.cert, params.signed_by(&key, &self.issuer).unwrap().pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }
}

/// An agent on a loopback address of its own, since the port of agents is fixed.
async fn agent(files: &TlsFiles) -> IpAddr {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&files.ca).unwrap()).unwrap();
    let verifier = rustls::server::WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
    let config = rustls::ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![CertificateDer::from_pem_file(&files.cert).unwrap()],
            PrivateKeyDer::from_pem_file(&files.key).unwrap(),
        )
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = loop {
        let address =
            Ipv4Addr::new(127, rand::random_range(1..255), rand::random(), rand::random_range(1..255));
        if let Ok(listener) = TcpListener::bind((address, PORT)).await {
            break listener;
        }
    };
    let address = listener.local_addr().unwrap().ip();
    let boots = Arc::new(AtomicUsize::new(0));
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (acceptor, boots) = (acceptor.clone(), boots.clone());
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(tcp).await else { return };
                let Ok(Some(Opening { open: Open::Stream { kind, .. }, .. })) =
                    frame::read(&mut stream).await
                else {
                    return;
                };
                if frame::write(&mut stream, &Opened::Stream).await.is_ok() {
                    // A client that leaves ends the conversation.
                    let _ = guest(stream, kind, &boots).await;
                }
            });
        }
    });
    address
}

/// A guest: a login on its console that knows `reboot`, a screen, an SSH banner, a web server.
async fn guest(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    kind: StreamTo,
    boots: &AtomicUsize,
) -> std::io::Result<()> {
    let mut buffer = [0; 4096];
    match kind {
        StreamTo::Console => {
            let greeting = format!("boot {}\r\n", boots.fetch_add(1, Ordering::SeqCst));
            stream.write_all(greeting.as_bytes()).await?;
            let mut line = String::new();
            loop {
                stream.flush().await?;
                let length = stream.read(&mut buffer).await?;
                if length == 0 {
                    return Ok(());
                }
                for byte in &buffer[..length] {
                    stream.write_all(&[*byte]).await?;
                    line.push(char::from(*byte));
                    if matches!(byte, b'\r' | b'\n') {
                        if line.trim() == "reboot" {
                            return Ok(());
                        }
                        let answer = if line.trim().is_empty() {
                            "login: ".to_owned()
                        } else {
                            format!("<{}>", line.trim())
                        };
                        stream.write_all(answer.as_bytes()).await?;
                        line.clear();
                    }
                }
            }
        }
        StreamTo::Vnc => stream.write_all(b"RFB 003.008\n").await?,
        StreamTo::Port(22) => stream.write_all(b"SSH-2.0-guest\r\n").await?,
        StreamTo::Port(_) => {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let length = stream.read(&mut buffer).await?;
                request.extend_from_slice(&buffer[..length]);
                if length == 0 {
                    return Ok(());
                }
            }
            let page = "a page ".repeat(2000);
            stream.write_all(format!("HTTP/1.0 200 OK\r\n\r\n{page}").as_bytes()).await?;
            return stream.shutdown().await;
        }
    }
    stream.flush().await?;
    while stream.read(&mut buffer).await? > 0 {}
    Ok(())
}

/// Text of a JSON value at a path.
pub fn text<'v>(value: &'v Value, path: &str) -> &'v str {
    value.pointer(path).and_then(Value::as_str).unwrap_or_default()
}
