//! Serves `subresources.virtualization.deckhouse.io/v1alpha2`: console, vnc and portforward of virtual
//! machines, over WebSockets (cli-and-console.md §10 and §11).
//!
//! A request comes here authenticated and authorised. `request` reads it, `lookup` finds the VM and its
//! node, `agent` opens the stream on that node, `session` copies bytes until either side ends. Nothing is
//! stored: a gateway that dies cuts its sessions and clients reconnect.

// A refusal is the answer's body; it is made once a request and never travels far.
#![allow(clippy::result_large_err)]

use std::sync::Arc;

use bytes::Bytes;
use holdfast_apimachinery::status::{GroupResource, Status};
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

mod agent;
mod lookup;
mod request;
mod session;
#[cfg(test)]
mod tests;

pub use agent::TlsFiles;
pub use lookup::{Cluster, Lookup, Target};

use request::{Call, Kind};
use session::Sessions;

/// Group served.
pub const GROUP: &str = "subresources.virtualization.deckhouse.io";
/// Version served.
pub const VERSION: &str = "v1alpha2";
/// Bytes read from an agent and sent as one frame at most.
const READ_BUFFER_BYTES: usize = 10_240;
/// A client that sends larger frames is cut off.
const FRAME_BYTES_MAX: usize = 1 << 20;

/// Who asks, as the API server authenticated them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// User name.
    pub name: String,
    /// Groups.
    pub groups: Vec<String>,
}

/// The subresource server. Cheap to share; one per process, because "one session, the newest wins" is
/// kept in memory.
pub struct Gateway {
    lookup: Arc<dyn Lookup>,
    dialer: agent::Dialer,
    sessions: Arc<Sessions>,
}

impl Gateway {
    /// A gateway that finds VMs through `lookup` (usually [`Cluster`]) and proves itself to the agents with
    /// the certificate in `tls`.
    ///
    /// # Errors
    /// When a certificate file cannot be read or used.
    pub fn new(lookup: Arc<dyn Lookup>, tls: &TlsFiles) -> anyhow::Result<Arc<Self>> {
        Ok(Arc::new(Self { lookup, dialer: agent::Dialer::new(tls)?, sessions: Arc::default() }))
    }

    /// Has QEMU measure for so many seconds how fast the guest of a VM dirties memory; bytes a second.
    ///
    /// # Errors
    /// When the VM does not run, or nobody can measure it; a sentence.
    pub async fn dirty_rate(&self, namespace: &str, name: &str, seconds: u32) -> Result<i64, String> {
        let target = self.lookup.find(namespace, name).await.map_err(|status| status.message)?;
        if !target.is_running {
            return Err(format!("its phase is {}", target.phase));
        }
        self.dialer.dirty_rate(&target, seconds).await.map_err(|error| error.to_string())
    }

    /// Answers one request below the group-version. A successful one is answered with 101 and goes on
    /// as a WebSocket in a task of its own; the connection must have been served with upgrades enabled.
    pub async fn handle<B: Send + 'static>(
        self: Arc<Self>,
        mut request: Request<B>,
        user: User,
    ) -> Response<Full<Bytes>> {
        match self.open(&mut request, &user).await {
            Ok(response) => response,
            Err(status) => refusal(&status),
        }
    }

    async fn open<B: Send + 'static>(
        &self,
        request: &mut Request<B>,
        user: &User,
    ) -> Result<Response<Full<Bytes>>, Status> {
        let call = Call::parse(request)?;
        let target = self.lookup.find(&call.namespace, &call.name).await?;
        if !target.is_running {
            let why = format!("VirtualMachine is not Running or Migrating: its phase is {}", target.phase);
            return Err(conflict(&call.name, &why));
        }
        let place = self.sessions.admit(&call, user)?;
        let stream = self.dialer.open(&target, call.kind.stream()).await.map_err(|error| match error {
            agent::Error::Refused { .. } if call.kind.is_exclusive() => {
                conflict(&call.name, &error.to_string())
            }
            other => Status::internal(&other.to_string()),
        })?;
        let response = switching(&call)?;
        let upgrade = hyper::upgrade::on(request);
        let about = format!("{}/{} {}", call.namespace, call.name, call.kind);
        let user = user.name.clone();
        tokio::spawn(async move {
            let upgraded = match upgrade.await {
                Ok(upgraded) => TokioIo::new(upgraded),
                Err(error) => {
                    tracing::debug!(session = about, "the client left before the stream began: {error}");
                    return;
                }
            };
            let config = WebSocketConfig::default()
                .max_message_size(Some(FRAME_BYTES_MAX))
                .max_frame_size(Some(FRAME_BYTES_MAX));
            let socket = WebSocketStream::from_raw_socket(upgraded, Role::Server, Some(config)).await;
            tracing::info!(session = about, user, node = target.node, "session begins");
            let end = session::copy(socket, stream, &place).await;
            tracing::info!(session = about, user, ?end, "session ends");
        });
        Ok(response)
    }
}

/// 409 with the words clients know.
fn conflict(name: &str, why: &str) -> Status {
    Status::conflict(&GroupResource::new(holdfast_api::GROUP, "virtualmachines"), name, why)
}

fn switching(call: &Call) -> Result<Response<Full<Bytes>>, Status> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    let accept = HeaderValue::from_str(&derive_accept_key(call.websocket_key.as_bytes()));
    headers
        .insert(header::SEC_WEBSOCKET_ACCEPT, accept.map_err(|error| Status::internal(&error.to_string()))?);
    if let Some(protocol) = call.protocol {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    }
    Ok(response)
}

fn refusal(status: &Status) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(status.to_value().to_string()));
    *response.status_mut() = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// `APIResource` entries of the group-version's discovery document. The list has no readable
/// `virtualmachines`, so the word `vm` still means the main group.
#[must_use]
pub fn resources() -> Vec<Value> {
    [Kind::Console, Kind::Vnc, Kind::Port(0)]
        .iter()
        .map(|kind| {
            json!({
                "name": format!("virtualmachines/{}", kind.subresource()),
                "singularName": "",
                "namespaced": true,
                "kind": kind.object(),
                "verbs": ["create", "get"],
            })
        })
        .collect()
}
