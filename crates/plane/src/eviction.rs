//! The decision on evictions of launchers, plugged into the API server.

use holdfast_api::engine::Instance;
use holdfast_apimachinery::status::Status;
use holdfast_domain::eviction::{self, Asked, Decision};
use holdfast_kubelith::{Admission, AdmissionRequest, Operation, View};
use k8s_openapi::api::core::v1::{Node, Pod};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

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
        let node: Option<Node> = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.node_name.as_deref())
            .and_then(|name| view.get("", "nodes", "", name))
            .map(parse)
            .transpose()?;
        let body = request.object.as_ref();
        let by = body.and_then(|body| body["metadata"]["annotations"][eviction::REQUESTED_BY].as_str());
        match eviction::decide(&pod, instance.as_ref(), Asked { by, node: node.as_ref() }) {
            Decision::Allow => Ok(Vec::new()),
            Decision::Refuse(text) => Err(refuse(text)),
            Decision::RefuseAndNote { node, text } => {
                let known = instance.and_then(|instance| instance.status?.evacuation_blocked_node);
                if let (Some(read), false, true) = (found, request.dry_run, known.as_ref() != Some(&node)) {
                    let note = json!({"evacuationBlockedNode": node});
                    // Only for people: the next eviction, five seconds later, tries again.
                    let _ = view.patch_status(INTERNAL, "instances", &read, &note, MANAGER);
                }
                Err(refuse(text))
            }
            Decision::MarkAndRefuse { mark, text } => {
                if let (Some(read), false) = (found, request.dry_run) {
                    let mark = json!({
                        "evacuationNodeName": mark.node,
                        "evacuationSource": mark.source,
                        "evacuationNodeVersion": mark.node_version,
                    });
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
