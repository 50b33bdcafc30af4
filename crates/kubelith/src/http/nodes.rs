//! Node identities reach only what is theirs (KS 14.2): a simple check instead of a node authorizer.

use super::info::ResourceRequest;
use crate::auth::UserInfo;
use crate::core::{Core, ReadVersion};
use holdfast_apimachinery::status::{GroupResource, Status};

/// 403 when a node writes another node's objects.
pub(super) fn restrict(core: &Core, user: &UserInfo, request: &ResourceRequest) -> Result<(), Status> {
    let Some(node) = user.name.strip_prefix("system:node:").filter(|_| user.is_in("system:nodes")) else {
        return Ok(());
    };
    if matches!(request.verb, "get" | "list" | "watch") {
        return Ok(());
    }
    let name = request.name.as_deref().unwrap_or("");
    let foreign = match (request.group.as_str(), request.resource.as_str()) {
        ("", "nodes") => !name.is_empty() && name != node,
        ("coordination.k8s.io", "leases") => {
            request.namespace.as_deref() == Some("kube-node-lease") && !name.is_empty() && name != node
        }
        ("", "pods") if !name.is_empty() => {
            node_of_pod(core, request.namespace.as_deref().unwrap_or(""), name).is_some_and(|n| n != node)
        }
        _ => false,
    };
    if foreign {
        let resource = GroupResource::new(request.group.clone(), request.resource.clone());
        return Err(Status::forbidden(
            &resource,
            name,
            &format!("node \"{node}\" may write only its own objects"),
        ));
    }
    Ok(())
}

fn node_of_pod(core: &Core, namespace: &str, name: &str) -> Option<String> {
    let registry = core.registry();
    let pod = core.get(registry.preferred("", "pods")?, namespace, name, ReadVersion::Latest).ok()?.value();
    Some(pod["spec"]["nodeName"].as_str().unwrap_or("").to_owned())
}
