//! What the operation controller looks at.

use std::sync::Arc;

use holdfast_api::engine::{Instance, Migration};
use holdfast_api::vmop::VmopType;
use holdfast_api::{VirtualMachine, VirtualMachineOperation};
use holdfast_domain::power;
use holdfast_env::Timestamp;
use holdfast_reconcile::{Cache, Caches, Controller, Error, Index, Key, Pass, Plan, Watches, controller_of};
use kube::ResourceExt as _;

use super::SUPERSEDED_BY;
use super::migration::migration_name;
use crate::fronts::deckhouse::vm::tag;
use crate::indexes;

/// Everything the plan for one operation depends on.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The instant.
    pub now: Timestamp,
    /// The operation.
    pub operation: Arc<VirtualMachineOperation>,
    /// Its VM.
    pub vm: Option<Arc<VirtualMachine>>,
    /// The VM's Instance.
    pub instance: Option<Arc<Instance>>,
    /// Its own Migration.
    pub migration: Option<Arc<Migration>>,
    /// Another unfinished move of the VM.
    pub other_migration: Option<String>,
    /// An older unfinished operation of the VM that this one does not overtake.
    pub older: Option<String>,
    /// Older unfinished operations of the VM that this one overtakes.
    pub overtakes: Vec<Arc<VirtualMachineOperation>>,
    /// Operations were told that this one overtakes them.
    pub overtook: bool,
    /// Finished operations of the VM that are newer than this one.
    pub newer_finished: usize,
}

/// The controller of operations.
#[derive(Debug)]
pub struct VmopController {
    operations: Arc<Cache<VirtualMachineOperation>>,
    vms: Arc<Cache<VirtualMachine>>,
    instances: Arc<Cache<Instance>>,
    migrations: Arc<Cache<Migration>>,
    of_vm: Index<VirtualMachineOperation>,
    moves: Index<Migration>,
}

impl VmopController {
    /// Opens the caches it needs.
    #[must_use]
    pub fn new(caches: &Caches) -> Self {
        let (operations, migrations) = (caches.cache(), caches.cache());
        Self {
            of_vm: indexes::operations(&operations),
            moves: indexes::moves(&migrations),
            operations,
            vms: caches.cache(),
            instances: caches.cache(),
            migrations,
        }
    }
}

fn is_finished(operation: &VirtualMachineOperation) -> bool {
    operation.status.as_ref().is_some_and(|status| status.phase.is_final())
}

fn kind(operation: &VirtualMachineOperation) -> (VmopType, bool) {
    (operation.spec.type_, operation.spec.force == Some(true))
}

/// Orders operations by age.
fn age(operation: &VirtualMachineOperation) -> (Option<Timestamp>, String) {
    (operation.metadata.creation_timestamp.as_ref().map(|t| t.0), operation.name_any())
}

impl Controller for VmopController {
    type Observed = Observed;

    fn name(&self) -> &'static str {
        "vmop"
    }

    fn watches(&self, on: &mut Watches) {
        // Siblings too: the end of one lets the next be looked at.
        let siblings = self.of_vm.clone();
        on.map(&self.operations, move |operation| {
            let vm =
                Key::new(operation.namespace().unwrap_or_default(), &operation.spec.virtual_machine_name);
            let mut keys = siblings.keys(&vm);
            keys.push(Key::of(operation));
            keys
        });
        let of_vm = self.of_vm.clone();
        on.map(&self.vms, move |vm| of_vm.keys(&Key::of(vm)));
        let of_vm = self.of_vm.clone();
        on.map(&self.instances, move |instance| of_vm.keys(&Key::of(instance)));
        on.owned_by::<VirtualMachineOperation, Migration>(&self.migrations);
    }

    async fn observe(&self, key: &Key, pass: Pass) -> Result<Option<Observed>, Error> {
        let Some(operation) = self.operations.get(key) else { return Ok(None) };
        let name = &operation.spec.virtual_machine_name;
        let vm = self.vms.named(&key.namespace, name);
        let instance = self.instances.named(&key.namespace, name).filter(|instance| {
            let owner = controller_of(&**instance).map(|owner| owner.uid.clone());
            owner.is_some() && owner == vm.as_ref().and_then(|vm| vm.metadata.uid.clone())
        });
        let ours = |migration: &Migration| {
            controller_of(migration).is_some_and(|owner| Some(&owner.uid) == operation.metadata.uid.as_ref())
        };
        let migration = self
            .migrations
            .named(&key.namespace, &migration_name(&key.name))
            .filter(|migration| ours(migration));
        let other_migration = self
            .moves
            .of_uid(instance.as_ref().and_then(|instance| instance.metadata.uid.as_deref()))
            .into_iter()
            .filter(|m| !ours(m))
            .find(|m| !m.status.as_ref().and_then(|s| s.state).is_some_and(|state| state.is_final()))
            .map(|m| m.name_any());
        let mut siblings = self.of_vm.get(&Key::new(&key.namespace, name));
        siblings.retain(|op| op.metadata.uid != operation.metadata.uid);
        let (overtakes, blocking): (Vec<_>, Vec<_>) = siblings
            .iter()
            .filter(|op| !is_finished(op) && age(op) < age(&operation))
            .partition(|op| power::supersedes(kind(&operation), kind(op)));
        let older = blocking.first().map(|op| op.name_any());
        let overtakes = overtakes.into_iter().cloned().collect();
        let tag = tag(&operation);
        let overtook = siblings.iter().any(|op| op.annotations().get(SUPERSEDED_BY) == Some(&tag));
        let newer_finished =
            siblings.iter().filter(|op| is_finished(op) && age(op) > age(&operation)).count();
        Ok(Some(Observed {
            now: pass.now,
            operation,
            vm,
            instance,
            migration,
            other_migration,
            older,
            overtakes,
            overtook,
            newer_finished,
        }))
    }

    fn plan(observed: &Observed) -> Plan {
        super::plan::plan(observed)
    }
}
