//! API clients of simulated processes: the real client library and the real API server, with the
//! simulation's network between them.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
use holdfast_kubelith::UserInfo;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use kube::client::Body;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tower::BoxError;

use crate::net::{Kind, Net, PLANE, Party, Place};
use crate::world::World;

/// Frames of a watch that may be under way before the server waits for its reader.
const WINDOW: usize = 64;

/// A body that arrives piece by piece.
pub type Pieces = http_body_util::combinators::UnsyncBoxBody<Bytes, BoxError>;

/// A client of the API for one process, with one identity.
#[must_use]
pub fn client(net: &Net, me: &Party, user: UserInfo) -> kube::Client {
    let service = Service { net: net.clone(), me: me.clone(), user: Arc::new(user) };
    kube::Client::new(service, "default")
}

#[derive(Clone)]
struct Service {
    net: Net,
    me: Party,
    user: Arc<UserInfo>,
}

impl tower::Service<Request<Body>> for Service {
    type Response = Response<Pieces>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Self { net, me, user } = self.clone();
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            let (answer, answered) = oneshot::channel();
            let call = Call { head, body, user, me: me.clone(), answer };
            let what = call.summary();
            net.post(Kind::Request, &me.place, &plane(), what, move |world| call.serve(world));
            // The sender is dropped when the connection breaks or the server dies.
            answered.await.map_err(|_| BoxError::from("connection reset by peer"))?
        })
    }
}

/// The API server, whichever process it is at the time.
#[must_use]
pub fn plane() -> Party {
    Party { place: PLANE.into(), process: 0 }
}

type Inlet = Arc<Mutex<Option<mpsc::UnboundedSender<Bytes>>>>;

/// A piece of a watch on its way: if it is lost, the connection has broken.
struct Piece {
    inlet: Inlet,
    arrived: bool,
}

impl Drop for Piece {
    fn drop(&mut self) {
        if !self.arrived {
            self.inlet.lock().take();
        }
    }
}

type Answer = Result<Response<Pieces>, BoxError>;

/// One request on its way.
struct Call {
    head: http::request::Parts,
    body: Bytes,
    user: Arc<UserInfo>,
    me: Party,
    answer: oneshot::Sender<Answer>,
}

impl Call {
    fn summary(&self) -> String {
        let query = self.head.uri.query().unwrap_or("");
        let watch = if query.contains("watch=true") { " watch" } else { "" };
        format!("{}{watch} {}", self.head.method, self.head.uri.path())
    }

    /// Arrives at the server: handled there as fast as the server can.
    fn serve(self, world: &mut World) {
        let Some(app) = world.plane_app() else { return };
        if let Some(status) = world.unwilling(&self.head) {
            let _ = self.answer.send(Ok(status));
            let me = self.me;
            world.run_later(&me);
            return;
        }
        world.note_call(&self.head, &self.body, &self.user);
        let net = world.net().clone();
        world.on_plane(async move {
            let what = format!("answer to {}", self.summary());
            let Self { head, body, user, me, answer } = self;
            let is_stream = head.uri.query().is_some_and(|query| query.contains("watch=true"));
            let request =
                Request::from_parts(head, holdfast_kubelith::http::received(http_body_util::Full::new(body)));
            let response = app.clone().handle(request, Some((*user).clone())).await;
            let rev = app.core.rev();
            let (head, mut body) = response.into_parts();
            if !is_stream {
                let bytes = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
                let pieces = http_body_util::Full::new(bytes).map_err(|never| match never {}).boxed_unsync();
                let response = Response::from_parts(head, pieces);
                return net.post(Kind::Reply, &PLANE.into(), &me, what, move |world| {
                    world.checker.acknowledged = world.checker.acknowledged.max(rev);
                    let _ = answer.send(Ok(response));
                });
            }
            let (pieces, arrived) = mpsc::unbounded_channel::<Bytes>();
            let inlet: Inlet = Arc::new(Mutex::new(Some(pieces)));
            let stream = futures::stream::unfold(arrived, |mut arrived| async move {
                let piece = arrived.recv().await?;
                Some((Ok::<_, BoxError>(http_body::Frame::data(piece)), arrived))
            });
            let response = Response::from_parts(head, http_body_util::StreamBody::new(stream).boxed_unsync());
            let channel = net.channel();
            let place: Place = PLANE.into();
            net.send(channel, Kind::Reply, &place, &me, what.clone(), move |_| {
                let _ = answer.send(Ok(response));
            });
            let window = Arc::new(Semaphore::new(WINDOW));
            while let Some(Ok(frame)) = body.frame().await {
                let Ok(bytes) = frame.into_data() else { continue };
                let Ok(permit) = window.clone().acquire_owned().await else { return };
                if inlet.lock().as_ref().is_none_or(mpsc::UnboundedSender::is_closed) {
                    return;
                }
                let mut piece = Piece { inlet: inlet.clone(), arrived: false };
                net.send(channel, Kind::Watch, &place, &me, what.clone(), move |_| {
                    piece.arrived = true;
                    if let Some(inlet) = &*piece.inlet.lock() {
                        let _ = inlet.send(bytes);
                    }
                    drop(permit);
                });
            }
        });
    }
}
