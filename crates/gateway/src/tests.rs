//! The gateway behind a real HTTP server, before a real TLS agent; only the VM's lookup is a table.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{SinkExt as _, StreamExt as _};
use holdfast_wire::frame;
use holdfast_wire::peer::{Open, Opened, Opening, StreamTo};
use hyper::service::service_fn;
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::MaybeTlsStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use super::*;

const LIMIT: Duration = Duration::from_secs(10);
const NODE: &str = "virtlab-pt-1";

struct Table(Mutex<BTreeMap<String, Target>>);

impl Lookup for Table {
    fn find<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<Target, Status>> {
        let found = self.0.lock().get(&format!("{namespace}/{name}")).cloned();
        let missing = || Status::not_found(&GroupResource::new(holdfast_api::GROUP, "virtualmachines"), name);
        Box::pin(async move { found.ok_or_else(missing) })
    }
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
        let files = TlsFiles {
            ca: directory.join("ca.crt"),
            cert: directory.join(format!("{name}.crt")),
            key: directory.join(format!("{name}.key")),
        };
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(&files.ca, self.issuer.pem()).unwrap();
        std::fs::write(&files.cert, certificate.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }
}

/// An agent that echoes; a guest's port 1 is closed, port 2 says "bye" and ends.
async fn agent(files: &TlsFiles) -> u16 {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&files.ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(
            vec![CertificateDer::from_pem_file(&files.cert).unwrap()],
            PrivateKeyDer::from_pem_file(&files.key).unwrap(),
        )
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(tcp).await else { return };
                let opening: Opening = frame::read(&mut stream).await.unwrap().unwrap();
                let Open::Stream { vm_uid, kind } = opening.open else {
                    panic!("only streams are asked for")
                };
                let refused = |why: &str| Opened::Refused { why: why.to_owned() };
                let answer = match (vm_uid.as_str(), kind) {
                    (_, StreamTo::Port(1)) => refused("connection refused"),
                    ("u1", _) => Opened::Stream,
                    _ => refused("another instance runs here"),
                };
                frame::write(&mut stream, &answer).await.unwrap();
                if kind == StreamTo::Port(2) {
                    stream.write_all(b"bye").await.unwrap();
                    stream.shutdown().await.unwrap();
                    return;
                }
                let mut buffer = [0; 4096];
                while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                    if buffer[..length] == *b"break" {
                        return;
                    }
                    stream.write_all(&buffer[..length]).await.unwrap();
                    stream.flush().await.unwrap();
                }
            });
        }
    });
    port
}

struct World {
    address: SocketAddr,
    table: Arc<Table>,
    _directory: tempfile::TempDir,
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

impl World {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::new();
        let port = agent(&authority.issue(directory.path(), NODE)).await;
        let target = |phase: &str, uid: &str| Target {
            phase: phase.to_owned(),
            is_running: phase == "Running",
            instance_uid: uid.to_owned(),
            node: NODE.to_owned(),
            address: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        };
        let table = Arc::new(Table(Mutex::new(BTreeMap::from([
            ("shop/web".to_owned(), target("Running", "u1")),
            ("shop/off".to_owned(), target("Stopped", "u1")),
            ("shop/stale".to_owned(), target("Running", "u2")),
        ]))));
        let dialer =
            agent::Dialer::new(&authority.issue(directory.path(), "gateway")).unwrap().with_port(port);
        let gateway = Arc::new(Gateway { lookup: table.clone(), dialer, sessions: Arc::default() });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let gateway = gateway.clone();
                let service = service_fn(move |request| {
                    let gateway = gateway.clone();
                    let user = User { name: "anna".to_owned(), groups: Vec::new() };
                    async move { Ok::<_, std::convert::Infallible>(gateway.handle(request, user).await) }
                });
                tokio::spawn(async move {
                    let connection = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(tcp), service);
                    let _ = connection.with_upgrades().await;
                });
            }
        });
        Self { address, table, _directory: directory }
    }

    async fn connect(&self, path: &str, protocol: &str) -> Result<(Socket, Option<String>), WsError> {
        let url =
            format!("ws://{}/apis/{GROUP}/{VERSION}/namespaces/shop/virtualmachines/{path}", self.address);
        let mut request = url.into_client_request()?;
        if !protocol.is_empty() {
            request.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_str(protocol)?);
        }
        let (socket, response) = tokio_tungstenite::connect_async(request).await?;
        let chosen = response.headers().get("sec-websocket-protocol").map(|v| v.to_str().unwrap().to_owned());
        Ok((socket, chosen))
    }

    async fn open(&self, path: &str) -> Socket {
        self.connect(path, "plain.kubevirt.io").await.unwrap().0
    }

    /// Code and message of a refused request.
    async fn refused(&self, path: &str) -> (u16, String) {
        match self.connect(path, "plain.kubevirt.io").await {
            Err(WsError::Http(response)) => {
                let body: Value = serde_json::from_slice(response.body().as_deref().unwrap()).unwrap();
                assert_eq!(body["kind"], "Status");
                (response.status().as_u16(), body["message"].as_str().unwrap().to_owned())
            }
            other => panic!("{path}: a refusal was expected, not {other:?}"),
        }
    }
}

async fn next(socket: &mut Socket) -> Option<Result<Message, WsError>> {
    loop {
        let message = tokio::time::timeout(LIMIT, socket.next()).await.expect("nothing within the limit");
        if !matches!(message, Some(Ok(Message::Ping(_)))) {
            return message;
        }
    }
}

async fn echo(socket: &mut Socket, text: &str) {
    socket.send(Message::Binary(Bytes::copy_from_slice(text.as_bytes()))).await.unwrap();
    let mut got = Vec::new();
    while got.len() < text.len() {
        match next(socket).await {
            Some(Ok(Message::Binary(bytes))) => got.extend_from_slice(&bytes),
            other => panic!("bytes were expected, not {other:?}"),
        }
    }
    assert_eq!(got, text.as_bytes());
}

// CC-40
#[tokio::test]
async fn every_sub_protocol_is_accepted() {
    let world = World::new().await;
    for (offer, want) in [
        ("plain.kubevirt.io", Some("plain.kubevirt.io")),
        ("plain.virtualization.deckhouse.io", Some("plain.virtualization.deckhouse.io")),
        ("", None),
    ] {
        let (mut socket, chosen) = world.connect("web/console", offer).await.unwrap();
        assert_eq!(chosen.as_deref(), want);
        echo(&mut socket, "login: ").await;
    }
}

#[tokio::test]
async fn refusals_come_before_the_upgrade() {
    let world = World::new().await;
    let (code, text) = world.refused("nope/console").await;
    assert_eq!(
        (code, text.as_str()),
        (404, "virtualmachines.virtualization.deckhouse.io \"nope\" not found")
    );
    let (code, text) = world.refused("off/console").await;
    assert_eq!(code, 409);
    assert!(text.contains("VirtualMachine is not Running or Migrating: its phase is Stopped"), "{text}");
    let (code, text) = world.refused("stale/console").await;
    assert_eq!(code, 409);
    assert!(text.contains("another instance runs here"), "{text}");
    let (code, text) = world.refused("web/portforward?port=1").await;
    assert_eq!(code, 500);
    assert!(text.contains("connection refused"), "{text}");
}

// CC-12: the older session is told and does not fight back.
#[tokio::test]
async fn the_newest_console_wins() {
    let world = World::new().await;
    let mut first = world.open("web/console").await;
    echo(&mut first, "one").await;
    let mut vnc = world.open("web/vnc").await;
    let mut second = world.open("web/console").await;
    match next(&mut first).await {
        Some(Ok(Message::Close(Some(frame)))) => assert_eq!(frame.code, CloseCode::Away),
        other => panic!("a close was expected, not {other:?}"),
    }
    echo(&mut second, "two").await;
    echo(&mut vnc, "RFB").await;
}

#[tokio::test]
async fn a_console_that_breaks_off_has_no_close_frame() {
    let world = World::new().await;
    let mut socket = world.open("web/console").await;
    socket.send(Message::Binary(Bytes::from_static(b"break"))).await.unwrap();
    let end = next(&mut socket).await;
    assert!(!matches!(end, Some(Ok(_))), "the stream is cut, not closed: {end:?}");
}

#[tokio::test]
async fn a_forwarded_connection_ends_with_its_guest() {
    let world = World::new().await;
    let mut socket = world.open("web/portforward?port=2").await;
    assert_eq!(next(&mut socket).await.unwrap().unwrap(), Message::Binary(Bytes::from_static(b"bye")));
    match next(&mut socket).await {
        Some(Ok(Message::Close(Some(frame)))) => assert_eq!(frame.code, CloseCode::Normal),
        other => panic!("a close was expected, not {other:?}"),
    }
}

#[tokio::test]
async fn forwarded_connections_are_many_but_not_without_limit() {
    let world = World::new().await;
    let mut sockets = Vec::new();
    for _ in 0..64 {
        sockets.push(world.open("web/portforward?port=80").await);
    }
    for (number, socket) in sockets.iter_mut().enumerate() {
        echo(socket, &format!("GET /{number}")).await;
    }
    assert_eq!(world.refused("web/portforward?port=80").await.0, 429);
    let mut last = sockets.pop().unwrap();
    last.close(None).await.unwrap();
    while next(&mut last).await.is_some() {}
    let again = tokio::time::timeout(LIMIT, async {
        loop {
            if let Ok((socket, _)) = world.connect("web/portforward?port=80", "").await {
                return socket;
            }
            tokio::task::yield_now().await;
        }
    });
    echo(&mut again.await.unwrap(), "again").await;
}

#[tokio::test]
async fn large_streams_arrive_whole() {
    let world = World::new().await;
    let mut socket = world.open("web/portforward?port=80").await;
    echo(&mut socket, &"0123456789abcdef".repeat(4096)).await;
    // More than all buffers on the way hold, sent before anything is read.
    let (mut to, mut from) = socket.split();
    let piece = Bytes::from(vec![7; 512 * 1024]);
    let sender = tokio::spawn(async move {
        for _ in 0..32 {
            to.send(Message::Binary(piece.clone())).await.unwrap();
        }
        to
    });
    let mut missing = 32 * 512 * 1024;
    while missing > 0 {
        match tokio::time::timeout(LIMIT, from.next()).await.expect("the stream stopped") {
            Some(Ok(Message::Binary(bytes))) => missing -= bytes.len(),
            Some(Ok(_)) => {}
            other => panic!("bytes were expected, not {other:?}"),
        }
    }
    drop(sender.await.unwrap());
}

#[tokio::test]
async fn an_agent_of_another_node_is_not_believed() {
    let world = World::new().await;
    world.table.0.lock().get_mut("shop/web").unwrap().node = "virtlab-pt-2".to_owned();
    let (code, text) = world.refused("web/console").await;
    assert_eq!(code, 500);
    assert!(text.contains("virtlab-pt-2") && text.contains("certificate"), "{text}");
}
