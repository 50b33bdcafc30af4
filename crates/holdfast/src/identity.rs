//! Who the components are towards the API server: kubeconfigs and certificates below `pki/`.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use holdfast_kubelith::Pki;
use holdfast_sys::durable;
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};

use crate::home::{Facts, Home, NodeFacts};

/// Somebody with a kubeconfig.
#[derive(Debug, Clone, Copy)]
pub enum Identity<'a> {
    /// The home's user.
    Admin,
    /// Product controllers.
    Controller,
    /// Control loops of the embedded plane.
    Loops,
    /// Console, VNC and port-forward.
    Gateway,
    /// A node's runtime.
    Runtime(&'a NodeFacts),
    /// A node's agent.
    Agent(&'a NodeFacts),
}

impl Identity<'_> {
    fn platform(&self) -> holdfast_plane::Identity<'_> {
        use holdfast_plane::Identity as Platform;
        match self {
            Self::Admin => Platform::Admin,
            Self::Controller => Platform::Controller,
            Self::Loops => Platform::Loops,
            Self::Gateway => Platform::Gateway,
            Self::Runtime(node) => Platform::Runtime(&node.name),
            Self::Agent(node) => Platform::Agent(&node.name),
        }
    }

    fn user(self) -> String {
        self.platform().name()
    }

    fn groups(self) -> &'static [&'static str] {
        self.platform().groups()
    }

    /// Where its kubeconfig is.
    #[must_use]
    pub fn kubeconfig(self, home: &Home) -> PathBuf {
        let pki = home.pki();
        match self {
            Self::Admin => home.kubeconfig(),
            Self::Controller => pki.join("controller.kubeconfig"),
            Self::Loops => pki.join("loops.kubeconfig"),
            Self::Gateway => pki.join("gateway.kubeconfig"),
            Self::Runtime(node) => pki.join(format!("node-{}.kubeconfig", node.name)),
            Self::Agent(node) => pki.join(format!("agent-{}.kubeconfig", node.name)),
        }
    }

    fn server(self, facts: &Facts) -> String {
        match self {
            Self::Runtime(_) | Self::Agent(_) => facts.node_url(),
            Self::Admin | Self::Controller | Self::Loops | Self::Gateway => facts.host_url(),
        }
    }
}

/// Certificate files of a peer in the mutual TLS between agents, gateway and host routes.
#[derive(Debug, Clone)]
pub struct PeerFiles {
    /// The authority.
    pub ca: PathBuf,
    /// Certificate.
    pub cert: PathBuf,
    /// Key.
    pub key: PathBuf,
}

/// Files of a peer: `agent-<node>`, `host` or `gateway`.
#[must_use]
pub fn peer_files(home: &Home, name: &str) -> PeerFiles {
    let pki = home.pki();
    PeerFiles {
        ca: pki.join("ca.crt"),
        cert: pki.join(format!("{name}.crt")),
        key: pki.join(format!("{name}.key")),
    }
}

/// Makes what is missing; what is there stays.
///
/// # Errors
/// When keys cannot be made or written.
pub fn ensure(home: &Home, facts: &Facts) -> anyhow::Result<()> {
    let pki = Pki::open(&home.pki()).context("certificate authority")?;
    let mut all = vec![Identity::Admin, Identity::Controller, Identity::Loops, Identity::Gateway];
    for node in &facts.nodes {
        all.extend([Identity::Runtime(node), Identity::Agent(node)]);
    }
    for identity in all {
        let path = identity.kubeconfig(home);
        if !path.exists() {
            let text = pki.kubeconfig(&identity.server(facts), &identity.user(), identity.groups())?;
            durable::write(&path, text.as_bytes(), 0o600)?;
        }
    }
    for node in &facts.nodes {
        let name = format!("agent-{}", node.name);
        let user = Identity::Agent(node).user();
        ensure_peer(home, &pki, &name, &user, &node.name, node.address.into())?;
    }
    let user = Identity::Gateway.user();
    // The host's keeper of routes and the gateway are both of the platform, beside the agents.
    for name in ["host", "gateway"] {
        ensure_peer(home, &pki, name, &user, name, facts.bridge_address().into())?;
    }
    Ok(())
}

fn ensure_peer(
    home: &Home,
    pki: &Pki,
    name: &str,
    user: &str,
    dns: &str,
    address: IpAddr,
) -> anyhow::Result<()> {
    let files = peer_files(home, name);
    if files.cert.exists() && files.key.exists() {
        return Ok(());
    }
    let groups = ["system:holdfast:agents"];
    let made = pki.peer(user, &groups, &[dns.to_owned()], &[address])?;
    durable::write(&files.key, made.key_pem.as_bytes(), 0o600)?;
    durable::write(&files.cert, made.certificate_pem.as_bytes(), 0o644)?;
    Ok(())
}

/// An API client from a kubeconfig file.
///
/// # Errors
/// Names the file.
pub async fn client(path: &Path) -> anyhow::Result<Client> {
    let read = Kubeconfig::read_from(path).with_context(|| format!("read {}", path.display()))?;
    let mut config = kube::Config::from_custom_kubeconfig(read, &KubeConfigOptions::default())
        .await
        .with_context(|| format!("use {}", path.display()))?;
    // The server is on this machine: who does not answer at once is away.
    config.connect_timeout = Some(Duration::from_secs(2));
    // Whoever asks decides what to do about a refusal; the client would repeat a refused eviction on its own, and
    // its pass would wait for the end of the drain.
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}
