//! Configuration of a control plane that keeps its data in a directory and listens.

use crate::admission::Admission;
use crate::auth::{Pki, PkiError, Tokens};
use crate::core::{Core, OpenError};
use crate::http::{self, Aggregated, LogSource, Running, ServeError};
use crate::plane::{self, Contents, PlaneParts};
use crate::store::{HistoryLimits, SqliteJournal, StoreError, Writing};
use holdfast_env::{Clock, Entropy};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

/// Where the server keeps its data and how it is reached.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory of `store.db`.
    pub data_dir: PathBuf,
    /// Directory of the certificate authority (see [`Pki`]).
    pub pki_dir: PathBuf,
    /// Addresses to listen on; port 0 takes a free one.
    pub listen: Vec<SocketAddr>,
    /// Further DNS names of the server certificate.
    pub names: Vec<String>,
    /// Further addresses of the server certificate.
    pub addresses: Vec<IpAddr>,
    /// What shall exist.
    pub contents: Contents,
    /// Source of timestamps.
    pub clock: Clock,
}

impl Config {
    /// A server that keeps everything below `home` (`kubelith/`, `pki/`) and listens on `listen`.
    pub fn new(home: &std::path::Path, listen: Vec<SocketAddr>) -> Self {
        Self {
            data_dir: home.join("kubelith"),
            pki_dir: home.join("pki"),
            listen,
            names: Vec::new(),
            addresses: Vec::new(),
            contents: Contents::default(),
            clock: Clock::Real,
        }
    }
}

/// What other parts of the platform plug in.
#[derive(Clone, Default)]
pub struct Hooks {
    /// Rules asked on every write, in order.
    pub admission: Vec<Arc<dyn Admission>>,
    /// Group-versions served by other parts.
    pub aggregated: Vec<Aggregated>,
    /// Where pod logs come from.
    pub logs: Option<Arc<dyn LogSource>>,
}

/// Why the server cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A directory cannot be made.
    #[error("create {path}: {source}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The core cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The certificate authority is unusable.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The service-account key is unusable.
    #[error("{0}")]
    Tokens(String),
    /// The listeners cannot be served.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// An object that shall exist is refused.
    #[error("ensure {what}: {why}")]
    Ensure {
        /// Which object.
        what: String,
        /// Refusal.
        why: String,
    },
    /// The store failed while running.
    #[error("the store failed: {0}; no write after the last answered one is lost")]
    Failed(Arc<str>),
}

/// A control plane that is up.
pub struct Server {
    /// The objects: in-process callers may use them directly.
    pub core: Arc<Core>,
    /// The certificate authority.
    pub pki: Arc<Pki>,
    running: Running,
}

/// Runs a control plane until the store fails (or for ever).
///
/// # Errors
/// It cannot start, or the store failed.
pub async fn run(config: Config, hooks: Hooks) -> Result<(), Error> {
    let server = Server::start(config, hooks).await?;
    Err(server.failed().await)
}

impl Server {
    /// Opens the store, ensures what shall exist, and listens.
    ///
    /// # Errors
    /// It cannot start.
    pub async fn start(config: Config, hooks: Hooks) -> Result<Self, Error> {
        use std::os::unix::fs::DirBuilderExt;
        let make = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&config.data_dir);
        make.map_err(|source| Error::Directory { path: config.data_dir.clone(), source })?;
        let pki = Arc::new(Pki::open(&config.pki_dir)?);
        let tokens = Tokens::new(pki.service_account_key_pem()).map_err(Error::Tokens)?;
        let journal = SqliteJournal::open(&config.data_dir.join("store.db"))?;
        let listeners = http::bind(&config.listen).await?;
        let advertised =
            listeners.first().and_then(|l| l.local_addr().ok()).map(|a| a.to_string()).unwrap_or_default();
        let (names, addresses) = subject_names(&config);
        let app = plane::open(PlaneParts {
            journal: Box::new(journal),
            writing: Writing::Thread,
            history: HistoryLimits::default(),
            contents: config.contents,
            hooks,
            clock: config.clock,
            entropy: Entropy::real(),
            tokens: Some(tokens),
            advertised,
        })?;
        let certificate = pki.server(&names, &addresses)?;
        let running = http::serve(&app, listeners, &certificate, pki.ca_pem())?;
        let core = app.core.clone();
        core.durability().reached(core.rev()).await.map_err(Error::Failed)?;
        tracing::info!(addresses = ?running.addresses, revision = core.rev(), "control plane is up");
        Ok(Self { core, pki, running })
    }

    /// Addresses it listens on.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.running.addresses
    }

    /// `https://host:port` of the first address.
    pub fn url(&self) -> String {
        self.running.addresses.first().map(|a| format!("https://{a}")).unwrap_or_default()
    }

    /// Waits until the store fails; the error says why.
    pub async fn failed(&self) -> Error {
        Error::Failed(self.core.durability().failed().await)
    }

    /// Closes the listeners and all connections, makes durable what is queued, and lets go of the store.
    /// Streams that other holders of `core` keep must end for it to return.
    pub async fn shutdown(self) {
        let Self { core, mut running, .. } = self;
        running.stop();
        running.ended().await;
        let durability = core.durability().clone();
        drop((core, running));
        durability.closed().await;
    }
}

fn subject_names(config: &Config) -> (Vec<String>, Vec<IpAddr>) {
    let mut names: Vec<String> = [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ]
    .map(str::to_owned)
    .to_vec();
    names.extend(config.names.iter().cloned());
    let mut addresses = vec![IpAddr::from([127, 0, 0, 1]), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])];
    let listening = config.listen.iter().map(SocketAddr::ip).filter(|ip| !ip.is_unspecified());
    for address in listening.chain(config.addresses.iter().copied()) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    (names, addresses)
}
