//! What is served below `subresources.virtualization.deckhouse.io/v1alpha2`, plugged into the API server,
//! which authenticates and authorises. On a real cluster the same functions stand behind an aggregated API.
//!
//! | Path | What |
//! |---|---|
//! | `namespaces/NS/virtualmachines/NAME/console`, `vnc`, `portforward` | streams: the gateway |
//! | `metrics` | the controllers' metrics page |
//! | `nodes/NODE/metrics` | that of a node's agent |
//! | `nodes/NODE/drainplan` | what a drain of the node would do |

use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use holdfast_apimachinery::status::{GroupResource, Status};
use holdfast_gateway::{GROUP, Gateway, VERSION};
use holdfast_kubelith::UserInfo;
use holdfast_kubelith::http::{Aggregated, Handler, HttpBody};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use kube::Client;
use serde_json::{Value, json};

use crate::home::{Facts, Home};
use crate::identity::{self, Identity};
use crate::metrics;

type Answer = Response<Full<Bytes>>;

/// The subresource group, served in this process.
///
/// # Errors
/// When the gateway's identity is missing.
pub async fn gateway(home: &Home, facts: &Facts) -> anyhow::Result<Aggregated> {
    let client = identity::client(&Identity::Gateway.kubeconfig(home)).await?;
    let identity::PeerFiles { ca, cert, key } = identity::peer_files(home, "gateway");
    let tls = holdfast_gateway::TlsFiles { ca, cert, key };
    let lookup = Arc::new(holdfast_gateway::Cluster(client));
    let gateway = Gateway::new(lookup, &tls).context("gateway")?;
    // Reads what the scheduler reads.
    let planner = identity::client(&Identity::Loops.kubeconfig(home)).await?;
    let facts = Arc::new(facts.clone());
    let handler: Handler = Arc::new(move |request: Request<HttpBody>, user: UserInfo| {
        let (gateway, facts, planner) = (Arc::clone(&gateway), Arc::clone(&facts), planner.clone());
        Box::pin(async move {
            let answer: Answer = match Place::of(request.uri().path()) {
                Some(Place::DrainPlan(node)) if *request.method() == Method::GET => {
                    drain_plan(&planner, &gateway, &node, measure(request.uri().query())).await
                }
                Some(place) => place.answer(request.method(), &facts).await,
                None => {
                    let user = holdfast_gateway::User { name: user.name, groups: user.groups };
                    gateway.handle(request, user).await
                }
            };
            answer.map(holdfast_kubelith::http::received)
        })
    });
    let mut resources = holdfast_gateway::resources();
    // `metrics` itself is not listed: a resource that can be listed is taken for a kind of objects.
    resources.push(subresource("nodes/metrics", "NodeMetrics"));
    resources.push(subresource("nodes/drainplan", "DrainPlan"));
    Ok(Aggregated { group: GROUP.to_owned(), version: VERSION.to_owned(), resources, handler })
}

fn subresource(name: &str, kind: &str) -> Value {
    json!({"name": name, "singularName": "", "namespaced": false, "kind": kind, "verbs": ["get"]})
}

/// What a path asks for, besides streams.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Controllers,
    Node(String),
    DrainPlan(String),
}

impl Place {
    fn of(path: &str) -> Option<Self> {
        let rest = path.strip_prefix(&format!("/apis/{GROUP}/{VERSION}/"))?;
        match *rest.trim_end_matches('/').split('/').collect::<Vec<_>>() {
            ["metrics"] => Some(Self::Controllers),
            ["nodes", node, "metrics"] => Some(Self::Node(node.to_owned())),
            ["nodes", node, "drainplan"] => Some(Self::DrainPlan(node.to_owned())),
            _ => None,
        }
    }

    async fn answer(&self, method: &Method, facts: &Facts) -> Answer {
        if *method != Method::GET {
            return refusal(&Status::method_not_allowed());
        }
        let address = match self {
            Self::Controllers => metrics::controller(facts),
            Self::Node(name) => match facts.node(name) {
                Ok(node) => metrics::agent(facts, node.address.into()),
                Err(_) => return refusal(&no_node(name)),
            },
            Self::DrainPlan(_) => return refusal(&Status::method_not_allowed()),
        };
        match metrics::fetch(address).await {
            Ok(page) => answer(StatusCode::OK, metrics::CONTENT_TYPE, page),
            Err(error) => {
                let why = format!("the metrics page cannot be fetched: {error:#}");
                refusal(&Status::new(503, "ServiceUnavailable", why))
            }
        }
    }
}

fn no_node(name: &str) -> Status {
    Status::not_found(&GroupResource::new("", "nodes"), name)
}

/// Longest measurement that is asked for, seconds.
const MEASURE_MAX_S: u32 = 10;

/// `measure=SECONDS` of a query.
fn measure(query: Option<&str>) -> Option<u32> {
    let value = query?.split('&').find_map(|pair| pair.strip_prefix("measure="))?;
    Some(value.parse::<u32>().ok()?.clamp(1, MEASURE_MAX_S))
}

async fn drain_plan(planner: &Client, gateway: &Gateway, node: &str, measured_s: Option<u32>) -> Answer {
    match holdfast_foresight::observe(planner, node).await {
        Ok(Some(mut observed)) => {
            if let Some(seconds) = measured_s {
                let all = observed.residents().into_iter().map(|(namespace, name, uid)| async move {
                    match gateway.dirty_rate(&namespace, &name, seconds).await {
                        Ok(rate) => Some((uid, rate)),
                        Err(error) => {
                            tracing::info!(namespace, name, error, "the dirty rate could not be measured");
                            None
                        }
                    }
                });
                observed.dirty = futures::future::join_all(all).await.into_iter().flatten().collect();
            }
            let plan = holdfast_foresight::plan(&observed);
            let text = serde_json::to_string(&plan).expect("invariant: a plan is JSON");
            answer(StatusCode::OK, "application/json", text)
        }
        Ok(None) => refusal(&no_node(node)),
        Err(error) => refusal(&Status::internal(&format!("the plan needs what cannot be read: {error}"))),
    }
}

fn answer(code: StatusCode, content_type: &'static str, body: String) -> Answer {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn refusal(status: &Status) -> Answer {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answer(code, "application/json", status.to_value().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measurements_are_bounded() {
        for (query, want) in [
            (None, None),
            (Some("a=b"), None),
            (Some("measure=x"), None),
            (Some("a=b&measure=3"), Some(3)),
            (Some("measure=0"), Some(1)),
            (Some("measure=600"), Some(MEASURE_MAX_S)),
        ] {
            assert_eq!(measure(query), want, "{query:?}");
        }
    }

    #[test]
    fn paths_are_read() {
        let base = "/apis/subresources.virtualization.deckhouse.io/v1alpha2";
        for (path, want) in [
            ("/metrics", Some(Place::Controllers)),
            ("/nodes/n1/metrics", Some(Place::Node("n1".into()))),
            ("/nodes/n1/drainplan", Some(Place::DrainPlan("n1".into()))),
            ("/nodes/n1", None),
            ("/namespaces/a/virtualmachines/b/vnc", None),
        ] {
            assert_eq!(Place::of(&format!("{base}{path}")), want, "{path}");
        }
    }
}
