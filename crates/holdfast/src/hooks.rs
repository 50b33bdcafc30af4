//! The console, VNC and port-forward subresources, plugged into the API server. On a real cluster the
//! same function stands behind an aggregated API.

use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use holdfast_kubelith::UserInfo;
use holdfast_kubelith::http::{Aggregated, Handler, HttpBody};
use http::{Request, Response};
use http_body_util::Full;

use crate::home::Home;
use crate::identity::{self, Identity};

/// The subresource group, served in this process.
///
/// # Errors
/// When the gateway's identity is missing.
pub async fn gateway(home: &Home) -> anyhow::Result<Aggregated> {
    let client = identity::client(&Identity::Gateway.kubeconfig(home)).await?;
    let identity::PeerFiles { ca, cert, key } = identity::peer_files(home, "gateway");
    let tls = holdfast_gateway::TlsFiles { ca, cert, key };
    let lookup = Arc::new(holdfast_gateway::Cluster(client));
    let gateway = holdfast_gateway::Gateway::new(lookup, &tls).context("gateway")?;
    let handler: Handler = Arc::new(move |request: Request<HttpBody>, user: UserInfo| {
        let gateway = Arc::clone(&gateway);
        Box::pin(async move {
            let user = holdfast_gateway::User { name: user.name, groups: user.groups };
            let answer: Response<Full<Bytes>> = gateway.handle(request, user).await;
            answer.map(holdfast_kubelith::http::received)
        })
    });
    Ok(Aggregated {
        group: holdfast_gateway::GROUP.to_owned(),
        version: holdfast_gateway::VERSION.to_owned(),
        resources: holdfast_gateway::resources(),
        handler,
    })
}
