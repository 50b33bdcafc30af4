//! What the VM controller looks at.

use std::sync::Arc;

use holdfast_api::engine::{Instance, Migration};
use holdfast_api::names::{NVRAM_CLAIM, claim_name};
use holdfast_api::vm::conditions::Running;
use holdfast_api::vm::{BlockDeviceKind, BlockDeviceRef};
use holdfast_api::{
    ClusterVirtualImage, VirtualDisk, VirtualImage, VirtualMachine, VirtualMachineClass,
    VirtualMachineIPAddress, VirtualMachineOperation,
};
use holdfast_env::Timestamp;
use holdfast_reconcile::{Cache, Caches, Controller, Error, Index, Key, Pass, Plan, Watches, controller_of};
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Secret};
use kube::{Resource, ResourceExt as _};

use super::devices::Device;
use crate::firmware::Launchers;
use crate::{Config, indexes};

/// Everything the plan for one VM depends on.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The instant.
    pub now: Timestamp,
    /// The VM.
    pub vm: Arc<VirtualMachine>,
    /// Its class.
    pub class: Option<Arc<VirtualMachineClass>>,
    /// What its references resolve to, in order.
    pub devices: Vec<Device>,
    /// The claim of its UEFI variables, once there is one.
    pub nvram: Option<Arc<PersistentVolumeClaim>>,
    /// The address it names, or the one it owns.
    pub vmip: Option<Arc<VirtualMachineIPAddress>>,
    /// The Secret its provisioning names, without its data's values.
    pub secret: Option<Arc<Secret>>,
    /// Its Instance.
    pub instance: Option<Arc<Instance>>,
    /// An Instance of the same name that belongs to something else, such as a VM deleted before.
    pub foreign_instance: bool,
    /// Moves of its Instance, finished ones included, sorted by name.
    pub migrations: Vec<Arc<Migration>>,
    /// Its operations that are not finished, oldest first.
    pub operations: Vec<Arc<VirtualMachineOperation>>,
    /// The node that has its guest, if nothing has been heard of it, and since when.
    pub silent_node: Option<(String, Timestamp)>,
    /// Image of a launcher made now.
    pub launcher_image: String,
}

/// The controller of VMs.
#[derive(Debug)]
pub struct VmController {
    vms: Arc<Cache<VirtualMachine>>,
    classes: Arc<Cache<VirtualMachineClass>>,
    disks: Arc<Cache<VirtualDisk>>,
    images: Arc<Cache<VirtualImage>>,
    cluster_images: Arc<Cache<ClusterVirtualImage>>,
    claims: Arc<Cache<PersistentVolumeClaim>>,
    addresses: Arc<Cache<VirtualMachineIPAddress>>,
    secrets: Arc<Cache<Secret>>,
    instances: Arc<Cache<Instance>>,
    migrations: Arc<Cache<Migration>>,
    operations: Arc<Cache<VirtualMachineOperation>>,
    nodes: Arc<Cache<Node>>,
    launchers: Launchers,
    rivals: Index<Instance>,
    owned: Index<VirtualMachineIPAddress>,
    moves: Index<Migration>,
    operations_of: Index<VirtualMachineOperation>,
    by_device: Index<VirtualMachine>,
}

impl VmController {
    /// Opens the caches it needs.
    #[must_use]
    pub fn new(caches: &Caches, config: &Config) -> Self {
        let secrets = caches.cache::<Secret>();
        // Only type and keys are looked at: user data and its passwords do not stay in memory.
        secrets.trim(|secret| {
            for value in secret.data.iter_mut().flat_map(|data| data.values_mut()) {
                value.0 = Vec::new();
            }
        });
        let (vms, addresses, instances) = (caches.cache(), caches.cache(), caches.cache());
        let (migrations, operations) = (caches.cache(), caches.cache());
        Self {
            rivals: indexes::instances_by_disk(&instances),
            owned: indexes::owned(&addresses),
            moves: indexes::moves(&migrations),
            operations_of: indexes::operations(&operations),
            by_device: indexes::vms_by_device(&vms),
            vms,
            classes: caches.cache(),
            disks: caches.cache(),
            images: caches.cache(),
            cluster_images: caches.cache(),
            claims: caches.cache(),
            addresses,
            secrets,
            instances,
            migrations,
            operations,
            nodes: caches.cache(),
            launchers: Launchers::new(caches, config),
        }
    }

    fn device(&self, vm: &VirtualMachine, reference: &BlockDeviceRef) -> Device {
        let (namespace, name) = (vm.namespace().unwrap_or_default(), vm.name_any());
        let device = match reference.kind {
            BlockDeviceKind::VirtualDisk => {
                let disk = self.disks.named(&namespace, &reference.name);
                Device::of_disk(reference, disk.as_deref(), &name)
            }
            BlockDeviceKind::VirtualImage => {
                let image = self.images.named(&namespace, &reference.name);
                Device::of_image(reference, image.as_deref())
            }
            BlockDeviceKind::ClusterVirtualImage => {
                let image = self.cluster_images.get(&Key::cluster(&reference.name));
                Device::of_cluster_image(reference, image.as_deref())
            }
        };
        let claim = device.claim.as_deref().and_then(|claim| self.claims.named(&namespace, claim));
        let rivals = self.rivals.get(&indexes::device(reference.kind.as_str(), &namespace, &reference.name));
        device.with_claim(claim.as_deref()).with_rivals(&name, rivals.iter().map(|instance| &**instance))
    }

    fn silent_node(&self, instance: &Instance) -> Option<(String, Timestamp)> {
        let node = self.nodes.get(&Key::cluster(claimed_node(instance)?))?;
        Some((node.name_any(), silent_since(&node)?))
    }

    fn address(&self, vm: &VirtualMachine) -> Option<Arc<VirtualMachineIPAddress>> {
        let namespace = vm.namespace().unwrap_or_default();
        if let Some(name) = &vm.spec.virtual_machine_ip_address_name {
            return self.addresses.named(&namespace, name);
        }
        let owned = self.owned.of_uid(vm.metadata.uid.as_deref());
        owned.into_iter().find(|address| address.metadata.namespace == vm.metadata.namespace)
    }
}

/// Since when nothing has been heard of a node.
fn silent_since(node: &Node) -> Option<Timestamp> {
    let conditions = node.status.as_ref()?.conditions.as_deref()?;
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready")?;
    (ready.status == "Unknown").then(|| ready.last_transition_time.as_ref().map(|time| time.0))?
}

/// The node whose agent speaks for the Instance's guest.
fn claimed_node(instance: &Instance) -> Option<&str> {
    Some(instance.status.as_ref()?.claim.as_ref()?.node.as_str())
}

/// Whether the VM says that its node is silent.
fn says_silent(vm: &VirtualMachine) -> bool {
    let conditions = vm.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    holdfast_api::condition::get::<Running>(conditions) == Some(Running::NodeUnresponsive)
}

/// Name of the claim of a VM's UEFI variables.
pub(super) fn nvram_claim(vm: &VirtualMachine) -> String {
    claim_name(NVRAM_CLAIM, &vm.name_any(), vm.metadata.uid.as_deref().unwrap_or_default())
}

/// Name of the Secret with a VM's provisioning data.
pub(crate) fn secret_name(vm: &VirtualMachine) -> Option<&str> {
    let provisioning = vm.spec.provisioning.as_ref()?;
    let reference = provisioning.user_data_ref.as_ref().or(provisioning.sysprep_ref.as_ref())?;
    Some(&reference.name)
}

/// Keys of the VMs that refer to the device of this kind that has an object's key.
fn users<K: Resource>(by_device: &Index<VirtualMachine>, kind: BlockDeviceKind, object: &K) -> Vec<Key> {
    let key = Key::of(object);
    by_device.keys(&indexes::device(kind.as_str(), &key.namespace, &key.name))
}

impl VmController {
    fn watch_devices(&self, on: &mut Watches) {
        let vms = self.by_device.clone();
        on.map(&self.disks, move |disk| users(&vms, BlockDeviceKind::VirtualDisk, disk));
        let vms = self.by_device.clone();
        on.map(&self.images, move |image| users(&vms, BlockDeviceKind::VirtualImage, image));
        let vms = self.by_device.clone();
        on.map(&self.cluster_images, move |image| users(&vms, BlockDeviceKind::ClusterVirtualImage, image));
        // A claim belongs to a disk or an image; its access modes decide about migration.
        let vms = self.by_device.clone();
        on.map(&self.claims, move |claim| {
            let Some(owner) = controller_of(claim) else { return Vec::new() };
            let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
            vms.keys(&indexes::device(&owner.kind, namespace, &owner.name))
        });
    }
}

impl Controller for VmController {
    type Observed = Observed;

    fn name(&self) -> &'static str {
        "vm"
    }

    fn watches(&self, on: &mut Watches) {
        on.own(&self.vms);
        self.watch_devices(on);
        let vms = self.by_device.clone();
        on.map(&self.instances, move |instance| {
            // Its own VM, and those that wait for one of its disks.
            let mut keys = vec![Key::of(instance)];
            let namespace = instance.metadata.namespace.as_deref().unwrap_or_default();
            for disk in &instance.spec.hardware.disks {
                keys.extend(vms.keys(&indexes::device(&disk.kind, namespace, &disk.name)));
            }
            keys
        });
        on.map(&self.migrations, |migration| {
            vec![Key::new(migration.namespace().unwrap_or_default(), &migration.spec.instance.name)]
        });
        on.map(&self.operations, |operation| {
            vec![Key::new(operation.namespace().unwrap_or_default(), &operation.spec.virtual_machine_name)]
        });
        let vms = indexes::vms_by_class(&self.vms);
        on.map(&self.classes, move |class| vms.keys(&Key::of(class)));
        let vms = indexes::vms_by_address(&self.vms);
        on.map(&self.addresses, move |address| {
            let mut keys = vms.keys(&Key::of(address));
            let owner = controller_of(address).filter(|owner| owner.kind == VirtualMachine::kind(&()));
            let namespace = address.metadata.namespace.as_deref().unwrap_or_default();
            keys.extend(owner.map(|owner| Key::new(namespace, &owner.name)));
            keys
        });
        let instances = self.instances.clone();
        on.map(self.launchers.settings(), move |_| {
            let shown = |instance: &Instance| {
                instance.status.as_ref().is_some_and(|status| status.firmware.is_some())
            };
            instances.filtered(shown).iter().map(|instance| Key::of(&**instance)).collect()
        });
        let (instances, vms) = (indexes::instances_at(&self.instances), self.vms.clone());
        // A node's heartbeat is no news: only that it falls silent, and that it is back.
        on.map(&*self.nodes, move |node| {
            let is_silent = silent_since(node).is_some();
            let mut keys = instances.keys(&Key::cluster(node.name_any()));
            keys.retain(|key| vms.get(key).is_some_and(|vm| says_silent(&vm) != is_silent));
            keys
        });
        let vms = indexes::vms_by_secret(&self.vms);
        on.map(&self.secrets, move |secret| vms.keys(&Key::of(secret)));
    }

    async fn observe(&self, key: &Key, pass: Pass) -> Result<Option<Observed>, Error> {
        let Some(vm) = self.vms.get(key) else { return Ok(None) };
        let of_name = self.instances.get(key);
        let is_ours = |instance: &Arc<Instance>| {
            controller_of(&**instance).is_some_and(|owner| Some(&owner.uid) == vm.metadata.uid.as_ref())
        };
        let instance = of_name.clone().filter(is_ours);
        let migrations = match &instance {
            Some(instance) => self.moves.of_uid(instance.metadata.uid.as_deref()),
            None => Vec::new(),
        };
        let mut operations = self.operations_of.get(key);
        operations.retain(|op| !op.status.as_ref().is_some_and(|status| status.phase.is_final()));
        operations.sort_by_key(|op| (op.metadata.creation_timestamp.clone().map(|t| t.0), op.name_any()));
        Ok(Some(Observed {
            now: pass.now,
            class: self.classes.get(&Key::cluster(&vm.spec.virtual_machine_class_name)),
            devices: vm.spec.block_device_refs.iter().map(|device| self.device(&vm, device)).collect(),
            nvram: self.claims.named(&key.namespace, &nvram_claim(&vm)),
            vmip: self.address(&vm),
            secret: secret_name(&vm).and_then(|name| self.secrets.named(&key.namespace, name)),
            foreign_instance: of_name.is_some() && instance.is_none(),
            migrations,
            operations,
            silent_node: instance.as_deref().and_then(|instance| self.silent_node(instance)),
            launcher_image: self.launchers.image(),
            instance,
            vm,
        }))
    }

    fn plan(observed: &Observed) -> Plan {
        super::plan::plan(observed)
    }
}
