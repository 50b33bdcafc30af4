//! Listeners, TLS and connections.

use super::body::received;
use super::router::App;
use crate::auth::{ServerCertificate, UserInfo, user_of_certificate};
use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// A client that does not finish its TLS handshake in this time is dropped.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Why the server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// An address cannot be bound.
    #[error("listen on {address}: {source}; choose another address or stop the program that uses it")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Cause.
        source: std::io::Error,
    },
    /// The certificates are no good.
    #[error("tls: {0}")]
    Tls(String),
}

/// A server that is listening. Dropping it closes the listeners and all connections.
pub struct Running {
    /// The addresses bound, in the order asked for.
    pub addresses: Vec<SocketAddr>,
    tasks: JoinSet<()>,
    stop: watch::Sender<bool>,
}

impl Running {
    /// Waits until the server ends, which it does only when [`Running::stop`] is called.
    pub async fn ended(&mut self) {
        while self.tasks.join_next().await.is_some() {}
    }

    /// Closes the listeners and all connections.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }
}

/// Binds the addresses.
///
/// # Errors
/// One of them cannot be bound.
pub async fn bind(addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, ServeError> {
    let mut listeners = Vec::new();
    for address in addresses {
        listeners.push(
            TcpListener::bind(address)
                .await
                .map_err(|source| ServeError::Bind { address: *address, source })?,
        );
    }
    Ok(listeners)
}

/// Serves `app` on bound listeners.
///
/// # Errors
/// The certificates are no good.
pub fn serve(
    app: &Arc<App>,
    listeners: Vec<TcpListener>,
    certificate: &ServerCertificate,
    ca_pem: &str,
) -> Result<Running, ServeError> {
    let tls = TlsAcceptor::from(Arc::new(tls(certificate, ca_pem)?));
    let (stop, stopped) = watch::channel(false);
    let mut running = Running { addresses: Vec::new(), tasks: JoinSet::new(), stop };
    for listener in listeners {
        let address = listener.local_addr().map_err(|e| ServeError::Tls(e.to_string()))?;
        running.addresses.push(address);
        running.tasks.spawn(accept(app.clone(), listener, tls.clone(), stopped.clone()));
    }
    Ok(running)
}

fn tls(certificate: &ServerCertificate, ca_pem: &str) -> Result<ServerConfig, ServeError> {
    let bad = |what: &str, e: &dyn std::fmt::Display| ServeError::Tls(format!("{what}: {e}"));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        roots.add(root.map_err(|e| bad("CA certificate", &e))?).map_err(|e| bad("CA certificate", &e))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|e| bad("client verifier", &e))?;
    let chain: Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(certificate.certificate_pem.as_bytes()).collect();
    let chain = chain.map_err(|e| bad("server certificate", &e))?;
    let key =
        PrivateKeyDer::from_pem_slice(certificate.key_pem.as_bytes()).map_err(|e| bad("server key", &e))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| bad("protocol versions", &e))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|e| bad("server certificate", &e))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

async fn accept(app: Arc<App>, listener: TcpListener, tls: TlsAcceptor, mut stopped: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = stop_asked(&mut stopped) => return connections.shutdown().await,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => {
                    connections.spawn(connection(app.clone(), socket, tls.clone()));
                }
                Err(error) => {
                    // Out of descriptors: give connections time to end instead of spinning.
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
}

/// Returns when the server shall stop, also when its handle is gone.
async fn stop_asked(stopped: &mut watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stop| *stop).await;
}

async fn connection(app: Arc<App>, socket: TcpStream, tls: TlsAcceptor) {
    // Latency matters more than packet count; failure only costs the former.
    let _ = socket.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE, tls.accept(socket)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%error, "TLS handshake failed");
            return;
        }
        Err(_) => return,
    };
    let user: Option<UserInfo> = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first())
        .and_then(|der| user_of_certificate(der));
    let service = service_fn(move |request: Request<Incoming>| {
        let (app, user) = (app.clone(), user.clone());
        async move { Ok::<_, Infallible>(app.handle(request.map(received), user).await) }
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http2().max_concurrent_streams(1000);
    if let Err(error) = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await {
        tracing::debug!(error, "connection ended");
    }
}
