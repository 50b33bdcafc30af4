//! From a VM's name to the node it runs on.

use std::net::IpAddr;

use futures::future::BoxFuture;
use holdfast_api::engine::Instance;
use holdfast_api::vm::VmPhase;
use holdfast_api::{GROUP, VirtualMachine};
use holdfast_apimachinery::status::{GroupResource, Status};
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client};

/// A VM as far as streams need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Phase as users see it.
    pub phase: String,
    /// Whether streams are allowed in this phase. The fields below mean something only then.
    pub is_running: bool,
    /// `metadata.uid` of the Instance; the agent refuses any other, so that a stale answer harms nobody.
    pub instance_uid: String,
    /// Node the guest runs on.
    pub node: String,
    /// Address of that node's agent.
    pub address: Option<IpAddr>,
}

/// Finds VMs.
pub trait Lookup: Send + Sync {
    /// The VM of that name, or the refusal to send (404 when there is none).
    fn find<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<Target, Status>>;
}

/// Looks VMs up in the API, always at its newest state: after a move the next session must find the
/// new node at once.
#[derive(Clone)]
pub struct Cluster(pub Client);

impl Lookup for Cluster {
    fn find<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<Target, Status>> {
        Box::pin(self.read(namespace, name))
    }
}

impl Cluster {
    async fn read(&self, namespace: &str, name: &str) -> Result<Target, Status> {
        let machines: Api<VirtualMachine> = Api::namespaced(self.0.clone(), namespace);
        let Some(machine) = machines.get_opt(name).await.map_err(|e| unreadable("the VirtualMachine", &e))?
        else {
            return Err(Status::not_found(&GroupResource::new(GROUP, "virtualmachines"), name));
        };
        let phase = machine.status.and_then(|s| s.phase).unwrap_or(VmPhase::Pending);
        let mut target = Target {
            phase: phase.to_string(),
            is_running: matches!(phase, VmPhase::Running | VmPhase::Migrating),
            instance_uid: String::new(),
            node: String::new(),
            address: None,
        };
        if !target.is_running {
            return Ok(target);
        }
        let instances: Api<Instance> = Api::namespaced(self.0.clone(), namespace);
        let instance = instances.get_opt(name).await.map_err(|e| unreadable("the Instance", &e))?;
        let node = instance.as_ref().and_then(|i| i.status.as_ref()?.node.clone());
        let (Some(instance), Some(node)) = (instance, node) else {
            // Between two phases: the phase is shown, the guest is not (or no longer) there.
            target.is_running = false;
            return Ok(target);
        };
        target.instance_uid = instance.metadata.uid.unwrap_or_default();
        let nodes: Api<Node> = Api::all(self.0.clone());
        let found = nodes.get_opt(&node).await.map_err(|e| unreadable("the Node", &e))?;
        target.address = found.as_ref().and_then(internal_address);
        target.node = node;
        Ok(target)
    }
}

fn internal_address(node: &Node) -> Option<IpAddr> {
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    addresses.iter().find(|a| a.type_ == "InternalIP").and_then(|a| a.address.parse().ok())
}

fn unreadable(what: &str, error: &kube::Error) -> Status {
    Status::internal(&format!("reading {what}: {error}"))
}
