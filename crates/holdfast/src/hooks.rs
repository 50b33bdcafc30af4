//! What the platform plugs into the API server: the decision on evictions of launchers, and the
//! console, VNC and port-forward subresources. On a real cluster the same functions stand behind a
//! webhook and an aggregated API.

use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use holdfast_api::engine::Instance;
use holdfast_apimachinery::status::Status;
use holdfast_domain::eviction::{self, Decision};
use holdfast_kubelith::http::{Aggregated, Handler};
use holdfast_kubelith::{Admission, AdmissionRequest, Operation, UserInfo, View};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use k8s_openapi::api::core::v1::Pod;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::home::Home;
use crate::identity::{self, Identity};

/// Group of Instance.
const INTERNAL: &str = "internal.virtualization.deckhouse.io";

/// Field manager of the mark.
const MANAGER: &str = "holdfast-eviction";

/// Answers evictions of launchers (migration-and-maintenance.md §6.3): a VM that can move is marked
/// and moves away by itself, the eviction is refused until it has.
#[derive(Debug, Clone, Copy, Default)]
pub struct EvictionHook;

impl Admission for EvictionHook {
    fn concerns(&self, operation: Operation, group: &str, resource: &str, subresource: &str) -> bool {
        operation == Operation::Create && group.is_empty() && resource == "pods" && subresource == "eviction"
    }

    fn validate(&self, request: &AdmissionRequest, view: &dyn View) -> Result<Vec<String>, Status> {
        let Some(pod) = view.get("", "pods", &request.namespace, &request.name) else {
            // The API server answers 404 by itself.
            return Ok(Vec::new());
        };
        let pod: Pod = parse(pod)?;
        let found = eviction::instance_name(&pod)
            .and_then(|name| view.get(INTERNAL, "instances", &request.namespace, name))
            .filter(|instance| owns(instance, &pod));
        let instance: Option<Instance> = found.clone().map(parse).transpose()?;
        match eviction::decide(&pod, instance.as_ref()) {
            Decision::Allow => Ok(Vec::new()),
            Decision::Refuse(text) => Err(refuse(text)),
            Decision::MarkAndRefuse { node, source, text } => {
                if let (Some(read), false) = (found, request.dry_run) {
                    let mark = json!({"evacuationNodeName": node, "evacuationSource": source});
                    view.patch_status(INTERNAL, "instances", &read, &mark, MANAGER).map_err(|why| {
                        Status::internal(&format!(
                            "the mark for the evacuation cannot be written: {}",
                            why.message
                        ))
                    })?;
                }
                Err(refuse(text))
            }
        }
    }
}

fn owns(instance: &Value, pod: &Pod) -> bool {
    let uid = instance["metadata"]["uid"].as_str().unwrap_or_default();
    pod.metadata.owner_references.iter().flatten().any(|owner| owner.uid == uid)
}

/// 429 makes kubectl's drain try again every five seconds until the pod is gone.
fn refuse(text: String) -> Status {
    Status::too_many_requests(text, None)
}

fn parse<T: DeserializeOwned>(value: Value) -> Result<T, Status> {
    serde_json::from_value(value).map_err(|error| Status::internal(&format!("stored object: {error}")))
}

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
    let handler: Handler = Arc::new(move |request: Request<Incoming>, user: UserInfo| {
        let gateway = Arc::clone(&gateway);
        Box::pin(async move {
            let user = holdfast_gateway::User { name: user.name, groups: user.groups };
            let answer: Response<Full<Bytes>> = gateway.handle(request, user).await;
            answer.map(|body| body.map_err(|never| match never {}).boxed_unsync())
        })
    });
    Ok(Aggregated {
        group: holdfast_gateway::GROUP.to_owned(),
        version: holdfast_gateway::VERSION.to_owned(),
        resources: holdfast_gateway::resources(),
        handler,
    })
}
