//! The operations of a VM as controllers see them that create some of their own (`evacuation`,
//! `placement_update`, `firmware`).

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_api::engine::{Instance, Migration, MigrationState};
use holdfast_api::names::{finalizer, label};
use holdfast_api::vmop::{VirtualMachineOperationSpec, VmopType};
use holdfast_api::{VirtualMachine, VirtualMachineOperation};
use holdfast_env::derived_name;
use holdfast_reconcile::{Cache, Caches, Create, Effect, Index, Key, Plan, Watches, controller_of};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;

use crate::fronts::deckhouse::vmop::migration_name;
use crate::indexes;

/// How many names are looked at for the next operation.
const NAMES: u64 = 64;

/// An operation of the VM.
#[derive(Clone, Debug)]
pub struct Operation {
    /// The object.
    pub object: Arc<VirtualMachineOperation>,
    /// Its move copies memory already (or has begun to switch over).
    pub copying: bool,
    /// It has no slot yet.
    pub queued: bool,
}

impl Operation {
    /// It never changes any more.
    #[must_use]
    pub fn is_final(&self) -> bool {
        self.object.status.as_ref().is_some_and(|status| status.phase.is_final())
    }

    /// Its annotation `key` says `true`.
    #[must_use]
    pub fn is_marked(&self, key: &str) -> bool {
        self.object.annotations().get(key).is_some_and(|value| value == "true")
    }
}

/// Caches of a controller that looks at Instances, their VMs and the VMs' operations.
#[derive(Debug)]
pub struct Machines {
    /// All Instances.
    pub instances: Arc<Cache<Instance>>,
    vms: Arc<Cache<VirtualMachine>>,
    /// All operations.
    pub operations: Arc<Cache<VirtualMachineOperation>>,
    of_vm: Index<VirtualMachineOperation>,
    migrations: Arc<Cache<Migration>>,
}

/// One Instance and what belongs to it.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The Instance.
    pub instance: Arc<Instance>,
    /// Its VM.
    pub vm: Option<Arc<VirtualMachine>>,
    /// All operations of the VM, finished ones included, oldest first.
    pub operations: Vec<Operation>,
}

impl Machines {
    /// Opens the caches.
    #[must_use]
    pub fn new(caches: &Caches) -> Self {
        let operations = caches.cache::<VirtualMachineOperation>();
        Self {
            instances: caches.cache(),
            vms: caches.cache(),
            of_vm: indexes::operations(&operations),
            operations,
            migrations: caches.cache(),
        }
    }

    /// An Instance is looked at when it, its VM or one of the VM's operations changes.
    pub fn watch(&self, on: &mut Watches) {
        on.own(&self.instances).own(&self.vms);
        on.map(&self.operations, |operation| {
            vec![Key::new(operation.namespace().unwrap_or_default(), &operation.spec.virtual_machine_name)]
        });
    }

    /// Keys of the Instances for which `is` holds.
    #[must_use]
    pub fn keys(&self, is: impl Fn(&Instance) -> bool) -> Vec<Key> {
        self.instances.filtered(is).iter().map(|instance| Key::of(&**instance)).collect()
    }

    /// The Instance of this key.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<Machine> {
        let instance = self.instances.get(key)?;
        let owner = controller_of(&*instance).map(|owner| owner.uid.clone());
        let vm = self.vms.get(key).filter(|vm| vm.metadata.uid == owner);
        let mut operations = self.of_vm.get(key);
        operations.sort_by_key(|op| (op.metadata.creation_timestamp.as_ref().map(|t| t.0), op.name_any()));
        let operations = operations.into_iter().map(|object| self.operation(object)).collect();
        Some(Machine { instance, vm, operations })
    }

    fn operation(&self, object: Arc<VirtualMachineOperation>) -> Operation {
        let namespace = object.namespace().unwrap_or_default();
        let migration = self.migrations.named(&namespace, &migration_name(&object.name_any()));
        let status = migration.and_then(|migration| migration.status.clone()).unwrap_or_default();
        let queued = status.state.unwrap_or_default() == MigrationState::Queued;
        let copying = status.source.is_some_and(|source| source.started_at.is_some());
        Operation { copying, queued, object }
    }
}

/// Creation of an Evict operation by the platform. Named after the VM, the purpose and the first
/// attempt whose name is free: a repeated creation after a crash meets its own object, a new attempt
/// never an old one.
#[must_use]
pub fn evict(
    vm: &VirtualMachine,
    known: &[Operation],
    prefix: &str,
    purpose: &str,
    annotations: &[(&str, &str)],
    held_by: &[&str],
) -> Option<Create> {
    let uid = vm.metadata.uid.clone()?;
    let taken = |name: &String| known.iter().any(|op| op.object.metadata.name.as_ref() == Some(name));
    let name = (0..NAMES)
        .map(|attempt| derived_name(prefix.trim_end_matches('-'), &uid, purpose, attempt))
        .find(|name| !taken(name))?;
    let spec = VirtualMachineOperationSpec {
        type_: VmopType::Evict,
        virtual_machine_name: vm.metadata.name.clone()?,
        force: None,
        migrate: None,
    };
    let annotations: BTreeMap<String, String> =
        annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let finalizers = std::iter::once(&finalizer::VMOP_CLEANUP).chain(held_by);
    let mut operation = VirtualMachineOperation::new(&name, spec);
    operation.metadata = ObjectMeta {
        namespace: vm.metadata.namespace.clone(),
        labels: Some([(label::VM_UID.to_owned(), uid)].into()),
        annotations: Some(annotations),
        finalizers: Some(finalizers.map(|&name| name.to_owned()).collect()),
        ..operation.metadata
    };
    Some(Create::of(&operation).identified_by(&[label::VM_UID]))
}

/// Deletes unfinished operations with the mark `key` that have not begun to copy; those that have
/// finish.
pub fn call_off(plan: &mut Plan, operations: &[Operation], key: &str) {
    call_off_all(plan, operations.iter().filter(|op| op.is_marked(key)));
}

/// As [`call_off`], whatever their marks.
pub fn call_off_all<'o>(plan: &mut Plan, operations: impl Iterator<Item = &'o Operation>) {
    for operation in operations.filter(|op| !op.is_final() && !op.copying) {
        if operation.object.metadata.deletion_timestamp.is_none() {
            plan.then(Effect::delete(&*operation.object));
        }
    }
}
