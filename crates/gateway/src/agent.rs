//! Opens streams on node agents, over mutual TLS.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use holdfast_wire::frame;
use holdfast_wire::peer::{Open, Opened, Opening, PORT, StreamTo};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::lookup::Target;

/// Time for connecting and for the agent's answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// PEM files of the gateway's identity.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// Certificate of the authority that signed the agents' certificates.
    pub ca: PathBuf,
    /// Own certificate.
    pub cert: PathBuf,
    /// Key of the own certificate.
    pub key: PathBuf,
}

/// Said of an agent that does not keep to the protocol.
const MISFIT: &str = "the agent gave an answer that does not fit the question";

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("node {node:?} has no address; its agent cannot be reached")]
    NoAddress { node: String },
    #[error("the agent of node {node:?} at {address} cannot be reached: {why}")]
    Unreachable { node: String, address: SocketAddr, why: String },
    #[error("node {node:?}: {why}")]
    Refused { node: String, why: String },
}

/// Connects to agents.
pub(crate) struct Dialer {
    tls: TlsConnector,
    port: u16,
}

impl Dialer {
    pub(crate) fn new(files: &TlsFiles) -> anyhow::Result<Self> {
        let read = |path: &PathBuf| format!("reading {}", path.display());
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(&files.ca).with_context(|| read(&files.ca))? {
            roots.add(certificate.with_context(|| read(&files.ca))?)?;
        }
        let chain = CertificateDer::pem_file_iter(&files.cert)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .with_context(|| read(&files.cert))?;
        let key = PrivateKeyDer::from_pem_file(&files.key).with_context(|| read(&files.key))?;
        let config =
            rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()?
                .with_root_certificates(roots)
                .with_client_auth_cert(chain, key)
                .with_context(|| format!("using the certificate {}", files.cert.display()))?;
        Ok(Self { tls: TlsConnector::from(Arc::new(config)), port: PORT })
    }

    /// Another port, for tests with an agent on a free one.
    #[cfg(test)]
    pub(crate) fn with_port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// Opens a stream of the VM on its node.
    pub(crate) async fn open(&self, target: &Target, kind: StreamTo) -> Result<TlsStream<TcpStream>, Error> {
        let Some(address) = target.address else {
            return Err(Error::NoAddress { node: target.node.clone() });
        };
        let address = SocketAddr::new(address, self.port);
        let unreachable = |why: String| Error::Unreachable { node: target.node.clone(), address, why };
        let open = Open::Stream { vm_uid: target.instance_uid.clone(), kind };
        match self.ask(target, open, TIMEOUT).await? {
            (stream, Opened::Stream) => Ok(stream),
            _ => Err(unreachable(MISFIT.to_owned())),
        }
    }

    /// Has the VM's memory measured for so many seconds; bytes a second that its guest dirties.
    pub(crate) async fn dirty_rate(&self, target: &Target, seconds: u32) -> Result<i64, Error> {
        let open = Open::DirtyRate { vm_uid: target.instance_uid.clone(), seconds };
        let limit = TIMEOUT * 2 + Duration::from_secs(seconds.into());
        match self.ask(target, open, limit).await? {
            (_, Opened::DirtyRate { bytes_s }) => Ok(bytes_s),
            _ => Err(Error::Refused { node: target.node.clone(), why: MISFIT.to_owned() }),
        }
    }

    /// The agent's answer, and the connection it came over.
    async fn ask(
        &self,
        target: &Target,
        open: Open,
        limit: Duration,
    ) -> Result<(TlsStream<TcpStream>, Opened), Error> {
        let Some(address) = target.address else {
            return Err(Error::NoAddress { node: target.node.clone() });
        };
        let address = SocketAddr::new(address, self.port);
        let unreachable = |why: String| Error::Unreachable { node: target.node.clone(), address, why };
        match tokio::time::timeout(limit, self.converse(target, address, open)).await {
            Err(_) => Err(unreachable(format!("no answer within {limit:?}"))),
            Ok(Err(error)) => Err(unreachable(format!("{error:#}"))),
            Ok(Ok((_, Opened::Refused { why }))) => Err(Error::Refused { node: target.node.clone(), why }),
            Ok(Ok(answered)) => Ok(answered),
        }
    }

    async fn converse(
        &self,
        target: &Target,
        address: SocketAddr,
        open: Open,
    ) -> anyhow::Result<(TlsStream<TcpStream>, Opened)> {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        // An agent's certificate bears its node's name.
        let name = ServerName::try_from(target.node.clone()).context("the node's name is no DNS name")?;
        let mut stream = self.tls.connect(name, tcp).await?;
        frame::write(&mut stream, &Opening::of(open)).await?;
        let answer = frame::read::<Opened>(&mut stream).await?;
        let answer = answer.context("the agent closed the connection without an answer")?;
        Ok((stream, answer))
    }
}
