//! A real server on a free port of the loopback in a temporary directory, for tests of controllers.
//!
//! ```no_run
//! # async fn example() -> Result<(), holdfast_kubelith::server::Error> {
//! let server = holdfast_kubelith::testing::Server::start().await?;
//! // kube::Config::from_custom_kubeconfig, or kubectl --kubeconfig:
//! println!("{}", server.kubeconfig().display());
//! # Ok(()) }
//! ```

use crate::auth::{Pki, PkiError};
use crate::server::{self, Config, Error, Hooks};
use serde_json::Value;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A running server; its data vanishes with it.
pub struct Server {
    inner: server::Server,
    home: Arc<tempfile::TempDir>,
    kubeconfig: PathBuf,
}

impl Server {
    /// Starts an empty control plane.
    ///
    /// # Errors
    /// It cannot start.
    pub async fn start() -> Result<Self, Error> {
        Self::with(Vec::new(), Hooks::default()).await
    }

    /// Starts a control plane with these definitions (JSON of CustomResourceDefinitions) and hooks.
    ///
    /// # Errors
    /// It cannot start.
    pub async fn with(crds: Vec<Value>, hooks: Hooks) -> Result<Self, Error> {
        Self::configured(hooks, |config| config.contents.crds = crds).await
    }

    /// Starts a control plane whose configuration `change` has adapted.
    ///
    /// # Errors
    /// It cannot start.
    pub async fn configured(hooks: Hooks, change: impl FnOnce(&mut Config)) -> Result<Self, Error> {
        let home = tempfile::Builder::new().prefix("kubelith-").tempdir();
        let home = home.map_err(|source| Error::Directory { path: std::env::temp_dir(), source })?;
        Self::at(Arc::new(home), hooks, change).await
    }

    async fn at(
        home: Arc<tempfile::TempDir>,
        hooks: Hooks,
        change: impl FnOnce(&mut Config),
    ) -> Result<Self, Error> {
        let mut config = Config::new(home.path(), vec![SocketAddr::from(([127, 0, 0, 1], 0))]);
        change(&mut config);
        let inner = server::Server::start(config, hooks).await?;
        let kubeconfig = home.path().join("kubeconfig");
        inner.pki.write_kubeconfig(&kubeconfig, &inner.url(), "kubernetes-admin", &["system:masters"])?;
        Ok(Self { inner, home, kubeconfig })
    }

    /// Stops the server and starts it again on the same data, at the same address and without definitions to ensure.
    ///
    /// # Errors
    /// It cannot start.
    pub async fn restart(self, hooks: Hooks) -> Result<Self, Error> {
        let Self { inner, home, .. } = self;
        let addresses = inner.addresses().to_vec();
        inner.shutdown().await;
        Self::at(home, hooks, |config| config.listen = addresses).await
    }

    /// Kubeconfig of an administrator.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Writes a kubeconfig for another user and returns its path.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn kubeconfig_for(&self, user: &str, groups: &[&str]) -> Result<PathBuf, PkiError> {
        let file: String = user.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let path = self.home.path().join(format!("kubeconfig-{file}"));
        self.inner.pki.write_kubeconfig(&path, &self.inner.url(), user, groups)?;
        Ok(path)
    }

    /// `https://127.0.0.1:port`.
    pub fn url(&self) -> String {
        self.inner.url()
    }

    /// The certificate authority.
    pub fn pki(&self) -> &Pki {
        &self.inner.pki
    }

    /// The server itself.
    pub fn server(&self) -> &server::Server {
        &self.inner
    }
}
