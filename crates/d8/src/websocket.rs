//! WebSockets to the subresources of a VM, over the same connection settings as every other call (§10.2).

use std::fmt;

use base64::Engine;
use hyper_util::rt::TokioIo;
use kube::Client;
use kube::client::Body;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;

/// What the client offers; the server may choose none.
const PROTOCOL: &str = "plain.virtualization.deckhouse.io";

/// An open stream to a VM.
pub type Stream = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

/// Why a stream could not be opened.
#[derive(Debug)]
pub enum Refusal {
    /// The VM is not in a phase that has this stream, or its node is not reachable now: worth another try.
    NotNow(String),
    /// It will not work: no such VM, no right, no server.
    Never(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotNow(why) | Self::Never(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Refusal {}

/// Opens `SUB` (with query) of a VM.
pub async fn open(client: &Client, namespace: &str, name: &str, sub: &str) -> Result<Stream, Refusal> {
    let path = format!(
        "/apis/subresources.virtualization.deckhouse.io/v1alpha2/namespaces/{namespace}/virtualmachines/{name}/{sub}"
    );
    let nonce: [u8; 16] = std::array::from_fn(|_| fastrand());
    let key = base64::engine::general_purpose::STANDARD.encode(nonce);
    let request = http::Request::get(path)
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Version", "13")
        .header("Sec-WebSocket-Key", key)
        .header("Sec-WebSocket-Protocol", PROTOCOL)
        .body(Body::empty())
        .map_err(|e| Refusal::Never(e.to_string()))?;
    let response = client
        .send(request)
        .await
        .map_err(|e| Refusal::NotNow(format!("no connection to the API server: {e}")))?;
    if response.status() != http::StatusCode::SWITCHING_PROTOCOLS {
        return Err(refusal(response).await);
    }
    let upgraded = hyper::upgrade::on(response)
        .await
        .map_err(|e| Refusal::NotNow(format!("the connection was not upgraded: {e}")))?;
    Ok(WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await)
}

async fn refusal(response: http::Response<Body>) -> Refusal {
    let code = response.status();
    let bytes = response.into_body().collect_bytes().await.unwrap_or_default();
    let status: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let text = match status["message"].as_str() {
        Some(message) => message.to_owned(),
        None => format!("the server answered {code}"),
    };
    // 404 and rights will not change by waiting; a wrong phase (409, on older servers 400 or 500) will.
    match code.as_u16() {
        401 | 403 | 404 | 405 => Refusal::Never(text),
        _ => Refusal::NotNow(text),
    }
}

/// One byte of the nonce that keeps proxies from replaying an upgrade; it protects nothing.
fn fastrand() -> u8 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish() as u8
}
