//! Running sessions: who holds which stream, and the copying of bytes.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{Sink, SinkExt as _, Stream, StreamExt as _};
use holdfast_apimachinery::status::Status;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_util::sync::CancellationToken;

use crate::request::{Call, Kind};
use crate::{READ_BUFFER_BYTES, User};

/// Time between two pings.
const PING: Duration = Duration::from_secs(5);
/// A client silent for this long is gone.
const SILENCE: Duration = Duration::from_secs(20);
/// Time for the last frame to leave.
const FAREWELL: Duration = Duration::from_secs(2);
/// Port-forward streams per VM and user.
const FORWARDS_MAX: usize = 64;

type Key = (String, String, Kind);

#[derive(Default)]
struct Held {
    next: u64,
    /// Holder of each exclusive stream and how to end it.
    exclusive: HashMap<Key, (u64, CancellationToken)>,
    /// Port-forward streams per (namespace, VM, user).
    forwards: HashMap<(String, String, String), usize>,
}

/// All sessions of this gateway.
#[derive(Default)]
pub(crate) struct Sessions {
    held: Mutex<Held>,
}

/// A session's right to its stream; dropping it gives the stream back.
pub(crate) struct Place {
    sessions: Arc<Sessions>,
    number: u64,
    key: Key,
    user: String,
    taken_over: CancellationToken,
}

impl Sessions {
    /// Lets a session in. On an exclusive stream the present holder is told to leave.
    pub(crate) fn admit(self: &Arc<Self>, call: &Call, user: &User) -> Result<Place, Status> {
        let mut held = self.held.lock();
        held.next += 1;
        let number = held.next;
        let key = (call.namespace.clone(), call.name.clone(), call.kind);
        let taken_over = CancellationToken::new();
        if call.kind.is_exclusive() {
            if let Some((_, before)) = held.exclusive.insert(key.clone(), (number, taken_over.clone())) {
                before.cancel();
            }
        } else {
            let count = held.forwards.entry((key.0.clone(), key.1.clone(), user.name.clone())).or_default();
            if *count >= FORWARDS_MAX {
                let text = format!(
                    "{FORWARDS_MAX} forwarded connections to this VirtualMachine are open already; close some"
                );
                return Err(Status::too_many_requests(text, Some(1)));
            }
            *count += 1;
        }
        drop(held);
        Ok(Place { sessions: self.clone(), number, key, user: user.name.clone(), taken_over })
    }
}

impl Place {
    fn forwards_key(&self) -> (String, String, String) {
        (self.key.0.clone(), self.key.1.clone(), self.user.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.sessions.held.lock();
        if self.key.2.is_exclusive() {
            if held.exclusive.get(&self.key).is_some_and(|(number, _)| *number == self.number) {
                held.exclusive.remove(&self.key);
            }
            return;
        }
        let key = self.forwards_key();
        if let Some(count) = held.forwards.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                held.forwards.remove(&key);
            }
        }
    }
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The client closed or went away.
    Client,
    /// The guest's side ended: the VM stopped, moved, or closed the connection.
    Guest,
    /// Another user opened the stream.
    TakenOver,
    /// The client did not answer for too long.
    Silent,
}

/// Signs of life of the client.
struct Pulse {
    start: Instant,
    /// Milliseconds after `start` at which the client was last heard.
    heard_ms: AtomicU64,
    /// Nobody listens to the client now, because the guest does not take what it sent before.
    deaf: AtomicBool,
}

impl Pulse {
    fn new() -> Self {
        Self { start: Instant::now(), heard_ms: AtomicU64::new(0), deaf: AtomicBool::new(false) }
    }

    fn beat(&self) {
        let now_ms = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.heard_ms.store(now_ms, Ordering::Relaxed);
    }

    fn is_lost(&self) -> bool {
        let heard = Duration::from_millis(self.heard_ms.load(Ordering::Relaxed));
        !self.deaf.load(Ordering::Relaxed) && self.start.elapsed().saturating_sub(heard) > SILENCE
    }
}

/// Client to guest.
async fn upward<S, G>(from_client: &mut S, to_guest: &mut G, pulse: &Pulse) -> End
where
    S: Stream<Item = Result<Message, WsError>> + Unpin,
    G: AsyncWrite + Unpin,
{
    loop {
        let message = from_client.next().await;
        pulse.beat();
        match message {
            Some(Ok(Message::Binary(bytes))) => {
                pulse.deaf.store(true, Ordering::Relaxed);
                let written = to_guest.write_all(&bytes).await.is_ok() && to_guest.flush().await.is_ok();
                pulse.beat();
                pulse.deaf.store(false, Ordering::Relaxed);
                if !written {
                    return End::Guest;
                }
            }
            // The library answers pings with the next read or write.
            Some(Ok(Message::Text(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
            Some(Ok(Message::Close(_)) | Err(_)) | None => return End::Client,
        }
    }
}

/// Guest to client, with pings in between.
async fn downward<G, S>(from_guest: &mut G, to_client: &mut S, pulse: &Pulse) -> End
where
    G: AsyncRead + Unpin,
    S: Sink<Message, Error = WsError> + Unpin,
{
    let mut buffer = vec![0; READ_BUFFER_BYTES];
    let mut ping = tokio::time::interval(PING);
    ping.reset();
    loop {
        let message = tokio::select! {
            read = from_guest.read(&mut buffer) => match read {
                Ok(0) | Err(_) => return End::Guest,
                Ok(length) => Message::Binary(Bytes::copy_from_slice(&buffer[..length])),
            },
            _ = ping.tick() => {
                if pulse.is_lost() {
                    return End::Silent;
                }
                Message::Ping(Bytes::new())
            }
        };
        // A client that takes nothing for so long has as good as left.
        match tokio::time::timeout(SILENCE, to_client.send(message)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return End::Client,
            Err(_) => return End::Silent,
        }
    }
}

/// Copies until either side ends. How the client is told: taken over = close 1001, a forwarded
/// connection that the guest closed = close 1000, a console or screen that broke off = no close frame,
/// so that clients reconnect (cli-and-console.md §10).
pub(crate) async fn copy<C, G>(client: WebSocketStream<C>, guest: G, place: &Place) -> End
where
    C: AsyncRead + AsyncWrite + Unpin,
    G: AsyncRead + AsyncWrite + Unpin,
{
    let (mut to_client, mut from_client) = client.split();
    let (mut from_guest, mut to_guest) = tokio::io::split(guest);
    let pulse = Pulse::new();
    // The directions are independent: neither may wait for the other, or full buffers on both sides
    // would stop the stream for ever.
    let end = tokio::select! {
        () = place.taken_over.cancelled() => End::TakenOver,
        end = upward(&mut from_client, &mut to_guest, &pulse) => end,
        end = downward(&mut from_guest, &mut to_client, &pulse) => end,
    };
    let farewell = match end {
        End::TakenOver => Some((CloseCode::Away, "another user has connected")),
        End::Guest if !place.key.2.is_exclusive() => Some((CloseCode::Normal, "")),
        End::Client => Some((CloseCode::Normal, "")),
        End::Guest | End::Silent => None,
    };
    // Whether the last words arrive changes nothing any more.
    let _ = tokio::time::timeout(FAREWELL, async {
        let _ = to_guest.shutdown().await;
        if let Some((code, reason)) = farewell {
            let _ = to_client.send(Message::Close(Some(CloseFrame { code, reason: reason.into() }))).await;
            // The client answers with its own close; leaving earlier could lose ours.
            while let Some(Ok(_)) = from_client.next().await {}
        }
    })
    .await;
    end
}
