//! Clients in the same process: requests go to the control plane as calls, without connection, TLS or
//! credentials. For simulations and tests.

use crate::auth::UserInfo;
use crate::http::{App, HttpBody, received};
use futures::future::BoxFuture;
use http::{Request, Response};
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

/// A tower service that lets one user call a control plane.
#[derive(Clone)]
pub struct Service {
    app: Arc<App>,
    user: UserInfo,
}

impl Service {
    /// Requests to `app` in the name of `user`.
    pub fn new(app: Arc<App>, user: UserInfo) -> Self {
        Self { app, user }
    }
}

impl tower_service::Service<Request<kube::client::Body>> for Service {
    type Response = Response<HttpBody>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        let (app, user) = (self.app.clone(), self.user.clone());
        Box::pin(async move { Ok(app.handle(request.map(received), Some(user)).await) })
    }
}

/// An API client of `user`. It needs a tokio runtime, but no I/O.
pub fn client(app: &Arc<App>, user: UserInfo) -> kube::Client {
    kube::Client::new(Service::new(app.clone(), user), "default")
}
