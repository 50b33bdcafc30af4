//! What the evacuation controller looks at.

use std::sync::Arc;

use holdfast_api::engine::{Instance, Migration};
use holdfast_api::{VirtualMachine, VirtualMachineOperation};
use holdfast_env::Timestamp;
use holdfast_reconcile::{Cache, Caches, Controller, Error, Key, Pass, Plan, Watches, controller_of};
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;

use crate::fronts::deckhouse::vmop::migration_name;

/// An operation of the VM.
#[derive(Clone, Debug)]
pub struct Operation {
    /// The object.
    pub object: Arc<VirtualMachineOperation>,
    /// Its move copies memory already (or has begun to switch over).
    pub copying: bool,
}

/// Everything the plan for one Instance depends on.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The instant.
    pub now: Timestamp,
    /// The Instance, marked or not.
    pub instance: Arc<Instance>,
    /// Its VM.
    pub vm: Option<Arc<VirtualMachine>>,
    /// All operations of the VM, finished ones included, oldest first.
    pub operations: Vec<Operation>,
    /// The marked node is cordoned; `None` if there is no such node (or no mark).
    pub cordoned: Option<bool>,
}

/// The controller.
#[derive(Debug)]
pub struct EvacuationController {
    instances: Arc<Cache<Instance>>,
    vms: Arc<Cache<VirtualMachine>>,
    operations: Arc<Cache<VirtualMachineOperation>>,
    migrations: Arc<Cache<Migration>>,
    nodes: Arc<Cache<Node>>,
}

impl EvacuationController {
    /// Opens the caches it needs.
    #[must_use]
    pub fn new(caches: &Caches) -> Self {
        Self {
            instances: caches.cache(),
            vms: caches.cache(),
            operations: caches.cache(),
            migrations: caches.cache(),
            nodes: caches.cache(),
        }
    }

    fn operation(&self, object: Arc<VirtualMachineOperation>) -> Operation {
        let namespace = object.namespace().unwrap_or_default();
        let migration = self.migrations.named(&namespace, &migration_name(&object.name_any()));
        let source = migration.and_then(|migration| migration.status.as_ref()?.source.clone());
        Operation { copying: source.is_some_and(|source| source.started_at.is_some()), object }
    }
}

impl Controller for EvacuationController {
    type Observed = Observed;

    fn name(&self) -> &'static str {
        "evacuation"
    }

    fn watches(&self, on: &mut Watches) {
        on.own(&self.instances).own(&self.vms);
        on.map(&self.operations, |operation| {
            vec![Key::new(operation.namespace().unwrap_or_default(), &operation.spec.virtual_machine_name)]
        });
        let instances = self.instances.clone();
        on.map(&self.nodes, move |node| {
            let name = node.name_any();
            let marked = instances.filtered(|instance| {
                let mark = instance.status.as_ref().and_then(|status| status.evacuation_node_name.as_ref());
                mark == Some(&name)
            });
            marked.iter().map(|instance| Key::of(&**instance)).collect()
        });
    }

    async fn observe(&self, key: &Key, pass: Pass) -> Result<Option<Observed>, Error> {
        let Some(instance) = self.instances.get(key) else { return Ok(None) };
        let owner = controller_of(&*instance).map(|owner| owner.uid.clone());
        let vm = self.vms.get(key).filter(|vm| vm.metadata.uid == owner);
        let mut operations: Vec<_> = self
            .operations
            .in_namespace(&key.namespace)
            .into_iter()
            .filter(|operation| operation.spec.virtual_machine_name == key.name)
            .collect();
        operations.sort_by_key(|op| (op.metadata.creation_timestamp.as_ref().map(|t| t.0), op.name_any()));
        let mark = instance.status.as_ref().and_then(|status| status.evacuation_node_name.clone());
        let node = mark.and_then(|mark| self.nodes.get(&Key::cluster(mark)));
        let unschedulable =
            |node: Arc<Node>| node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true);
        Ok(Some(Observed {
            now: pass.now,
            operations: operations.into_iter().map(|object| self.operation(object)).collect(),
            cordoned: node.map(unschedulable),
            instance,
            vm,
        }))
    }

    fn plan(observed: &Observed) -> Plan {
        super::plan::plan(observed)
    }
}
