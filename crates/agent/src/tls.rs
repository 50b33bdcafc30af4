//! Mutual TLS between agents, and from the gateway to agents. Both ends show a certificate of the
//! platform's authority; who they are stands in the subject's common name.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::config::TlsFiles;

/// Common name of an agent's certificate, followed by the node's name.
pub const AGENT: &str = "system:holdfast:agent:";
/// Prefix of the common names of the platform's own programs.
pub const PLATFORM: &str = "system:holdfast:";

/// The files cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("TLS identity: {0}")]
pub struct IdentityError(String);

fn unusable(what: impl std::fmt::Display) -> impl FnOnce(String) -> IdentityError {
    let what = what.to_string();
    move |why| IdentityError(format!("{what}: {why}"))
}

/// Both directions of this program's TLS.
#[derive(Clone)]
pub struct Identity {
    connector: TlsConnector,
    acceptor: TlsAcceptor,
}

impl Identity {
    /// Reads the files.
    ///
    /// # Errors
    /// A file is missing or unusable; the error names it.
    pub fn load(files: &TlsFiles) -> Result<Self, IdentityError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&files.ca)? {
            roots.add(certificate).map_err(|e| unusable(files.ca.display())(e.to_string()))?;
        }
        let roots = Arc::new(roots);
        let chain = certificates(&files.cert)?;
        let failed = |e: rustls::Error| unusable(files.cert.display())(e.to_string());
        let client = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(failed)?
            .with_root_certificates(roots.clone())
            .with_client_auth_cert(chain.clone(), key(&files.key)?)
            .map_err(failed)?;
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
            .build()
            .map_err(|e| unusable(files.ca.display())(e.to_string()))?;
        let server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(failed)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key(&files.key)?)
            .map_err(failed)?;
        Ok(Self { connector: Arc::new(client).into(), acceptor: Arc::new(server).into() })
    }

    /// Opens a connection whose other end must be the agent of `node` (a DNS name of its certificate).
    ///
    /// # Errors
    /// The certificate is not of the authority or of another node, or the transport fails.
    pub async fn connect(&self, node: &str, stream: TcpStream) -> io::Result<client::TlsStream<TcpStream>> {
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(node.to_owned()).map_err(io::Error::other)?;
        self.connector.connect(name, stream).await
    }

    /// Accepts a connection and tells who is at the other end.
    ///
    /// # Errors
    /// The other end shows no certificate of the authority, or the transport fails.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<(server::TlsStream<TcpStream>, String)> {
        stream.set_nodelay(true)?;
        let stream = self.acceptor.accept(stream).await?;
        let name = stream
            .get_ref()
            .1
            .peer_certificates()
            .and_then(|chain| chain.first())
            .and_then(common_name)
            .ok_or_else(|| io::Error::other("the client's certificate has no common name"))?;
        Ok((stream, name))
    }
}

/// What is wrong with whose certificate, when that is why a connection failed.
pub fn certificate_trouble(error: &io::Error) -> Option<String> {
    use rustls::AlertDescription as Alert;
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::InvalidCertificate(why) => {
            Some(format!("its certificate is not accepted on this node: {why:?}"))
        }
        rustls::Error::AlertReceived(
            alert @ (Alert::UnknownCA
            | Alert::BadCertificate
            | Alert::CertificateExpired
            | Alert::CertificateRequired
            | Alert::CertificateRevoked
            | Alert::CertificateUnknown
            | Alert::DecryptError
            | Alert::UnsupportedCertificate),
        ) => Some(format!("it does not accept this node's certificate: {alert:?}")),
        _ => None,
    }
}

fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let name = parsed.subject().iter_common_name().next()?;
    name.as_str().ok().map(str::to_owned)
}

fn blocks(path: &Path) -> Result<Vec<pem::Pem>, IdentityError> {
    let text = std::fs::read(path).map_err(|e| unusable(path.display())(e.to_string()))?;
    pem::parse_many(text).map_err(|e| unusable(path.display())(e.to_string()))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let found: Vec<_> = blocks(path)?
        .into_iter()
        .filter(|block| block.tag() == "CERTIFICATE")
        .map(|block| CertificateDer::from(block.into_contents()))
        .collect();
    if found.is_empty() {
        return Err(unusable(path.display())("holds no certificate".to_owned()));
    }
    Ok(found)
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, IdentityError> {
    let block = blocks(path)?
        .into_iter()
        .find(|block| block.tag().ends_with("PRIVATE KEY"))
        .ok_or_else(|| unusable(path.display())("holds no private key".to_owned()))?;
    PrivateKeyDer::try_from(block.into_contents()).map_err(|e| unusable(path.display())(e.to_owned()))
}
