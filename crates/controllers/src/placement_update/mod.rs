//! Placement updates: a running VM whose node no longer satisfies its required node rules gets one
//! `nodeplacement-update-*` operation per placement (migration-and-maintenance.md §10).
//!
//! Looked at: required node selector and node affinity, the VM's and its class's merged. Not looked
//! at yet: required rules about other VMs and pods. Start at `plan.rs`.

mod plan;

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_api::engine::Instance;
use holdfast_api::{VirtualMachine, VirtualMachineOperation};
use holdfast_env::Timestamp;
use holdfast_reconcile::{Cache, Caches, Controller, Error, Key, Pass, Plan, Watches, controller_of};
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;

pub use plan::plan;

/// Everything the plan for one Instance depends on.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The instant.
    pub now: Timestamp,
    /// The Instance.
    pub instance: Arc<Instance>,
    /// Its VM.
    pub vm: Option<Arc<VirtualMachine>>,
    /// Labels of the node it runs on.
    pub node_labels: Option<BTreeMap<String, String>>,
    /// An operation of the VM is not finished.
    pub busy: bool,
}

/// The controller.
#[derive(Debug)]
pub struct PlacementController {
    instances: Arc<Cache<Instance>>,
    vms: Arc<Cache<VirtualMachine>>,
    operations: Arc<Cache<VirtualMachineOperation>>,
    nodes: Arc<Cache<Node>>,
}

impl PlacementController {
    /// Opens the caches it needs.
    #[must_use]
    pub fn new(caches: &Caches) -> Self {
        Self {
            instances: caches.cache(),
            vms: caches.cache(),
            operations: caches.cache(),
            nodes: caches.cache(),
        }
    }
}

impl Controller for PlacementController {
    type Observed = Observed;

    fn name(&self) -> &'static str {
        "placement"
    }

    fn watches(&self, on: &mut Watches) {
        on.own(&self.instances);
        on.map(&self.operations, |operation| {
            vec![Key::new(operation.namespace().unwrap_or_default(), &operation.spec.virtual_machine_name)]
        });
        // A node is written often (heartbeats); only those that run something are looked up.
        let instances = self.instances.clone();
        on.map(&self.nodes, move |node| {
            let name = node.name_any();
            let on_it = instances.filtered(|instance| {
                let at = instance.status.as_ref().and_then(|status| status.node.as_ref());
                at == Some(&name)
            });
            on_it.iter().map(|instance| Key::of(&**instance)).collect()
        });
    }

    async fn observe(&self, key: &Key, pass: Pass) -> Result<Option<Observed>, Error> {
        let Some(instance) = self.instances.get(key) else { return Ok(None) };
        let owner = controller_of(&*instance).map(|owner| owner.uid.clone());
        let vm = self.vms.get(key).filter(|vm| vm.metadata.uid == owner);
        let node = instance.status.as_ref().and_then(|status| status.node.clone());
        let node = node.and_then(|node| self.nodes.get(&Key::cluster(node)));
        let busy = self.operations.in_namespace(&key.namespace).iter().any(|operation| {
            operation.spec.virtual_machine_name == key.name
                && !operation.status.as_ref().is_some_and(|status| status.phase.is_final())
        });
        Ok(Some(Observed {
            now: pass.now,
            vm,
            node_labels: node.map(|node| node.labels().clone()),
            busy,
            instance,
        }))
    }

    fn plan(observed: &Observed) -> Plan {
        plan::plan(observed)
    }
}
