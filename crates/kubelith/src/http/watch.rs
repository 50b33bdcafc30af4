//! Watch streams over HTTP and WebSocket (KS 8).

use super::body::{self, Answer, BoxError, HttpBody};
use super::info::ResourceRequest;
use super::negotiate::{self, Form, Offer};
use super::options;
use super::query::Query;
use super::resources::{accept, bytes, include, text_of};
use super::router::App;
use crate::core::{Core, Filter, Observed};
use crate::registry::{Registry, Served};
use crate::store::{EventKind, Object};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use holdfast_apimachinery::{
    columns::{self, IncludeObject},
    field::FieldError,
    status::Status,
};
use holdfast_env::watch as signal;
use http::{HeaderValue, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, interval_at, sleep_until};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, handshake::derive_accept_key, protocol::Role},
};

/// How often a watch that asked for bookmarks gets one.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// The last bookmark comes this long before the stream's end.
const BOOKMARK_BEFORE_END: Duration = Duration::from_secs(2);
/// Events fetched at once.
const BATCH: usize = 256;
/// Frames a slow reader may leave unread before the stream waits for it. The history does the rest:
/// who falls behind it gets the ordinary 410.
const BUFFERED: usize = 64;
/// Shortest and longest default life of a stream, in seconds.
const LIFE_S: (u64, u64) = (1800, 3600);

/// A watch as its parameters describe it.
struct Plan {
    filter: Filter,
    form: Form,
    include: IncludeObject,
    bookmarks: bool,
    /// Objects first, then the bookmark that says so.
    initial_events: bool,
    after: Option<u64>,
    life: Duration,
}

/// Answers a watch.
pub(super) async fn answer(
    app: &Arc<App>,
    served: &Arc<Served>,
    resource: &ResourceRequest,
    request: Request<HttpBody>,
    query: &Query,
) -> Result<Answer, Status> {
    let plan = plan(served, resource, &request, query)?;
    let (sender, frames) = mpsc::channel::<Bytes>(BUFFERED);
    let registry = app.core.registry_changes();
    let core = app.core.clone();
    let stream = async move {
        Stream { core: &core, plan: &plan, frames: sender, headers: true, sent: 0 }.run(registry).await;
    };
    if is_websocket(&request) {
        return Ok(websocket(request, frames, stream));
    }
    tokio::spawn(stream);
    let pieces = futures::stream::unfold(frames, |mut frames| async move {
        let mut piece = frames.recv().await?.to_vec();
        piece.push(b'\n');
        Some((Ok::<Bytes, BoxError>(piece.into()), frames))
    });
    Ok(body::answer(200, "application/json", body::streamed(pieces)))
}

fn plan(
    served: &Arc<Served>,
    resource: &ResourceRequest,
    request: &Request<HttpBody>,
    query: &Query,
) -> Result<Plan, Status> {
    let form = negotiate::choose(accept(request.headers()), Offer::List)?;
    let (labels, fields) = options::selectors(served, query)?;
    let initial_events = query.get("sendInitialEvents").map(|_| query.flag("sendInitialEvents"));
    let rule = query.get("resourceVersionMatch");
    let refuse = |text: &str, field: &str| {
        Err(Status::invalid("meta.k8s.io", "ListOptions", "", &[FieldError::forbidden(field, text)]))
    };
    match (initial_events, rule) {
        (Some(_), Some("NotOlderThan")) | (None, None) => {}
        (Some(_), _) => {
            return refuse(
                "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                "resourceVersionMatch",
            );
        }
        (None, Some(_)) => {
            return refuse(
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                "resourceVersionMatch",
            );
        }
    }
    let rev = options::number(query.get("resourceVersion"))?.filter(|rev| *rev > 0);
    let initial_events = initial_events.unwrap_or(false);
    let seconds = query.number("timeoutSeconds")?.and_then(|s| u64::try_from(s).ok()).filter(|s| *s > 0);
    let life = Duration::from_secs(
        seconds.unwrap_or_else(|| LIFE_S.0 + holdfast_env::random_u64() % (LIFE_S.1 - LIFE_S.0)),
    );
    Ok(Plan {
        filter: Filter { served: served.clone(), namespace: resource.namespace.clone(), labels, fields },
        form,
        include: include(query)?,
        bookmarks: query.flag("allowWatchBookmarks"),
        initial_events,
        // With initial events the state now is at least as new as any version given out.
        after: if initial_events { None } else { rev },
        life,
    })
}

/// A running watch; ends by returning.
struct Stream<'w> {
    core: &'w Core,
    plan: &'w Plan,
    frames: mpsc::Sender<Bytes>,
    /// Column definitions have yet to be sent.
    headers: bool,
    /// Everything up to this revision has been sent.
    sent: u64,
}

/// The reader has gone, or the stream has said its last word.
struct Over;

impl Stream<'_> {
    async fn run(mut self, mut registry: signal::Receiver<Arc<Registry>>) {
        // `Over` is how every stream ends.
        let _ = self.follow(&mut registry).await;
    }

    async fn follow(&mut self, registry: &mut signal::Receiver<Arc<Registry>>) -> Result<(), Over> {
        let end = Instant::now() + self.plan.life;
        let mut changed = self.start().await?;
        let last_bookmark = end.checked_sub(BOOKMARK_BEFORE_END).unwrap_or(end);
        let mut said_last = false;
        let mut bookmark = interval_at(Instant::now() + BOOKMARK_EVERY, BOOKMARK_EVERY);
        loop {
            self.catch_up().await?;
            // Changes come last: a kind that changes without pause starves nothing else.
            tokio::select! {
                biased;
                () = self.frames.closed() => return Err(Over),
                () = sleep_until(end) => return Ok(()),
                done = registry.changed() => {
                    done.map_err(|_| Over)?;
                    if self.withdrawn(registry) {
                        // The objects' removals precede the end of their kind.
                        self.settle().await;
                        return self.catch_up().await;
                    }
                }
                () = sleep_until(last_bookmark), if self.plan.bookmarks && !said_last => {
                    said_last = true;
                    self.bookmark(false).await?;
                }
                _ = bookmark.tick(), if self.plan.bookmarks => self.bookmark(false).await?,
                done = changed.changed() => done.map_err(|_| Over)?,
            }
        }
    }

    /// Sends the present objects where the watch begins with them.
    async fn start(&mut self) -> Result<signal::Receiver<u64>, Over> {
        let start = self.core.watch(&self.plan.filter, self.plan.after);
        self.sent = start.from;
        if self.plan.after.is_none() {
            self.core.durability().reached(start.from).await.map_err(|_| Over)?;
            for object in &start.initial {
                self.send("ADDED", object, object.rev).await?;
            }
            if self.plan.initial_events && self.plan.bookmarks {
                self.bookmark(true).await?;
            }
        }
        Ok(start.changed)
    }

    /// Sends what has become durable since the last time.
    async fn catch_up(&mut self) -> Result<(), Over> {
        loop {
            let (events, complete) = match self.core.events(&self.plan.filter, self.sent, BATCH) {
                Ok(found) => found,
                Err(too_old) => return self.too_old(too_old.oldest).await,
            };
            for Observed { kind, object, rev } in events.iter().filter_map(|e| self.plan.filter.observe(e)) {
                let word = match kind {
                    EventKind::Added => "ADDED",
                    EventKind::Modified => "MODIFIED",
                    EventKind::Deleted => "DELETED",
                };
                self.send(word, &object, rev).await?;
            }
            self.sent = complete.max(self.sent);
            if events.len() < BATCH {
                return Ok(());
            }
        }
    }

    async fn too_old(&mut self, oldest: u64) -> Result<(), Over> {
        let status = Status::watch_too_old(self.sent, oldest).to_value();
        self.frame(bytes(&json!({"type": "ERROR", "object": status}))).await?;
        Err(Over)
    }

    fn withdrawn(&self, registry: &mut signal::Receiver<Arc<Registry>>) -> bool {
        let kind = &self.plan.filter.served.kind;
        registry.borrow_and_update().find(&kind.group, &kind.version, &kind.plural).is_none()
    }

    async fn settle(&self) {
        // A failed store ends the stream through its other arms.
        let _ = self.core.durability().reached(self.core.rev()).await;
    }

    async fn send(&mut self, word: &str, object: &Arc<Object>, rev: u64) -> Result<(), Over> {
        let served = &self.plan.filter.served;
        let shown = if self.plan.form == Form::Json && object.rev == rev {
            text_of(served, object)
        } else {
            let mut value = served.read(object);
            value["metadata"]["resourceVersion"] = json!(rev.to_string());
            bytes(&self.shape(value))
        };
        let mut frame = Vec::with_capacity(shown.len() + 40);
        frame.extend_from_slice(b"{\"type\":\"");
        frame.extend_from_slice(word.as_bytes());
        frame.extend_from_slice(b"\",\"object\":");
        frame.extend_from_slice(&shown);
        frame.push(b'}');
        self.frame(frame.into()).await
    }

    fn shape(&mut self, value: Value) -> Value {
        let served = &self.plan.filter.served;
        match self.plan.form {
            Form::Json | Form::Discovery => value,
            Form::Partial => columns::partial_metadata(&value),
            Form::Table => {
                let metadata = json!({"resourceVersion": value["metadata"]["resourceVersion"]});
                let headers = std::mem::take(&mut self.headers);
                columns::table(&served.kind, &[&value], metadata, self.plan.include, headers, self.core.now())
            }
        }
    }

    async fn bookmark(&mut self, initial: bool) -> Result<(), Over> {
        let served = &self.plan.filter.served;
        let mut object = json!({
            "kind": served.kind.kind, "apiVersion": &*served.api_version,
            "metadata": {"resourceVersion": self.sent.to_string(), "creationTimestamp": null},
        });
        if initial {
            object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = match self.plan.form {
            Form::Json | Form::Discovery => object,
            Form::Partial => {
                object["kind"] = json!("PartialObjectMetadata");
                object["apiVersion"] = json!("meta.k8s.io/v1");
                object
            }
            Form::Table => columns::bookmark_table(&served.kind, &object, std::mem::take(&mut self.headers)),
        };
        self.frame(bytes(&json!({"type": "BOOKMARK", "object": object}))).await
    }

    async fn frame(&self, frame: Bytes) -> Result<(), Over> {
        self.frames.send(frame).await.map_err(|_| Over)
    }
}

fn is_websocket(request: &Request<HttpBody>) -> bool {
    request
        .headers()
        .get(header::UPGRADE)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|v| v.eq_ignore_ascii_case("websocket"))
}

/// Answers the upgrade and sends one text frame an event.
fn websocket(
    mut request: Request<HttpBody>,
    mut frames: mpsc::Receiver<Bytes>,
    stream: impl Future<Output = ()> + Send + 'static,
) -> Answer {
    let Some(key) = request.headers().get(header::SEC_WEBSOCKET_KEY).map(|k| derive_accept_key(k.as_bytes()))
    else {
        return body::refusal(&Status::bad_request("Sec-WebSocket-Key is missing"));
    };
    let protocols =
        request.headers().get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|v| v.to_str().ok());
    let offered: Vec<String> = protocols
        .flat_map(|v| v.split(','))
        .map(|p| p.trim().to_owned())
        .filter(|p| !p.is_empty() && !p.starts_with("base64url.bearer."))
        .collect();
    let chosen = offered.iter().find(|p| *p == "base64.binary.k8s.io").or(if offered.len() == 1 {
        offered.first()
    } else {
        None
    });
    let mut response = body::answer(101, "application/json", body::full(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_TYPE);
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    for (name, value) in
        [(header::SEC_WEBSOCKET_ACCEPT, Some(&key)), (header::SEC_WEBSOCKET_PROTOCOL, chosen)]
    {
        if let Some(value) = value.and_then(|v| HeaderValue::from_str(v).ok()) {
            headers.insert(name, value);
        }
    }
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(io) = upgraded.await else { return };
        let (mut sink, mut source) =
            WebSocketStream::from_raw_socket(TokioIo::new(io), Role::Server, None).await.split();
        let pump = async {
            while let Some(frame) = frames.recv().await {
                let Ok(text) = String::from_utf8(frame.to_vec()) else { break };
                if sink.send(Message::text(text)).await.is_err() {
                    return;
                }
            }
            // The reader may be gone already.
            let _ = sink.send(Message::Close(None)).await;
        };
        let until_closed = async {
            while let Some(Ok(message)) = source.next().await {
                if message.is_close() {
                    break;
                }
            }
        };
        tokio::select! {
            biased;
            () = until_closed => {}
            () = async { tokio::join!(stream, pump); } => {}
        }
    });
    response
}
