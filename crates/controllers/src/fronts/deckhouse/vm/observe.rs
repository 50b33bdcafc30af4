//! What the VM controller looks at.

use std::sync::Arc;

use holdfast_api::engine::{Instance, Migration};
use holdfast_api::names::{NVRAM_CLAIM, claim_name};
use holdfast_api::vm::{BlockDeviceKind, BlockDeviceRef};
use holdfast_api::{
    ClusterVirtualImage, VirtualDisk, VirtualImage, VirtualMachine, VirtualMachineClass,
    VirtualMachineIPAddress, VirtualMachineOperation,
};
use holdfast_env::Timestamp;
use holdfast_reconcile::{Cache, Caches, Controller, Error, Key, Pass, Plan, Watches, controller_of};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Secret};
use kube::ResourceExt as _;

use super::devices::Device;
use crate::Config;
use crate::firmware::Launchers;

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
    launchers: Launchers,
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
        Self {
            vms: caches.cache(),
            classes: caches.cache(),
            disks: caches.cache(),
            images: caches.cache(),
            cluster_images: caches.cache(),
            claims: caches.cache(),
            addresses: caches.cache(),
            secrets,
            instances: caches.cache(),
            migrations: caches.cache(),
            operations: caches.cache(),
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
        let rivals = self.instances.in_namespace(&namespace);
        device.with_claim(claim.as_deref()).with_rivals(&name, rivals.iter().map(|instance| &**instance))
    }

    fn address(&self, vm: &VirtualMachine) -> Option<Arc<VirtualMachineIPAddress>> {
        let namespace = vm.namespace().unwrap_or_default();
        if let Some(name) = &vm.spec.virtual_machine_ip_address_name {
            return self.addresses.named(&namespace, name);
        }
        let owned = |address: &VirtualMachineIPAddress| {
            controller_of(address).is_some_and(|owner| Some(&owner.uid) == vm.metadata.uid.as_ref())
        };
        self.addresses.in_namespace(&namespace).into_iter().find(|address| owned(address))
    }
}

/// Name of the claim of a VM's UEFI variables.
pub(super) fn nvram_claim(vm: &VirtualMachine) -> String {
    claim_name(NVRAM_CLAIM, &vm.name_any(), vm.metadata.uid.as_deref().unwrap_or_default())
}

fn secret_name(vm: &VirtualMachine) -> Option<&str> {
    let provisioning = vm.spec.provisioning.as_ref()?;
    let reference = provisioning.user_data_ref.as_ref().or(provisioning.sysprep_ref.as_ref())?;
    Some(&reference.name)
}

/// Keys of the VMs of a namespace (all namespaces if empty) for which `is` holds.
fn vms_where(vms: &Cache<VirtualMachine>, namespace: &str, is: impl Fn(&VirtualMachine) -> bool) -> Vec<Key> {
    let all = if namespace.is_empty() { vms.all() } else { vms.in_namespace(namespace) };
    all.iter().filter(|vm| is(vm)).map(|vm| Key::of(&**vm)).collect()
}

fn refers_to(vm: &VirtualMachine, kind: BlockDeviceKind, name: &str) -> bool {
    vm.spec.block_device_refs.iter().any(|device| device.kind == kind && device.name == name)
}

impl VmController {
    fn watch_devices(&self, on: &mut Watches) {
        let vms = self.vms.clone();
        on.map(&self.disks, move |disk| {
            let name = disk.name_any();
            let namespace = disk.namespace().unwrap_or_default();
            vms_where(&vms, &namespace, |vm| refers_to(vm, BlockDeviceKind::VirtualDisk, &name))
        });
        let vms = self.vms.clone();
        on.map(&self.images, move |image| {
            let name = image.name_any();
            let namespace = image.namespace().unwrap_or_default();
            vms_where(&vms, &namespace, |vm| refers_to(vm, BlockDeviceKind::VirtualImage, &name))
        });
        let vms = self.vms.clone();
        on.map(&self.cluster_images, move |image| {
            let name = image.name_any();
            vms_where(&vms, "", |vm| refers_to(vm, BlockDeviceKind::ClusterVirtualImage, &name))
        });
        // A claim belongs to a disk or an image; its access modes decide about migration.
        let vms = self.vms.clone();
        on.map(&self.claims, move |claim| {
            let Some(owner) = controller_of(claim) else { return Vec::new() };
            let namespace = claim.namespace().unwrap_or_default();
            vms_where(&vms, &namespace, |vm| {
                vm.spec.block_device_refs.iter().any(|device| device.name == owner.name)
            })
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
        let vms = self.vms.clone();
        on.map(&self.instances, move |instance| {
            // Its own VM, and those that wait for one of its disks.
            let mut keys = vec![Key::of(instance)];
            let namespace = instance.namespace().unwrap_or_default();
            keys.extend(vms_where(&vms, &namespace, |vm| {
                let disks = &instance.spec.hardware.disks;
                vm.spec.block_device_refs.iter().any(|device| {
                    disks.iter().any(|disk| disk.kind == device.kind.as_str() && disk.name == device.name)
                })
            }));
            keys
        });
        on.map(&self.migrations, |migration| {
            vec![Key::new(migration.namespace().unwrap_or_default(), &migration.spec.instance.name)]
        });
        on.map(&self.operations, |operation| {
            vec![Key::new(operation.namespace().unwrap_or_default(), &operation.spec.virtual_machine_name)]
        });
        let vms = self.vms.clone();
        on.map(&self.classes, move |class| {
            let name = class.name_any();
            vms_where(&vms, "", |vm| vm.spec.virtual_machine_class_name == name)
        });
        let vms = self.vms.clone();
        on.map(&self.addresses, move |address| {
            let name = address.name_any();
            let namespace = address.namespace().unwrap_or_default();
            let owner = controller_of(address).map(|owner| owner.uid.clone());
            vms_where(&vms, &namespace, |vm| {
                vm.spec.virtual_machine_ip_address_name.as_ref() == Some(&name)
                    || (owner.is_some() && owner == vm.metadata.uid)
            })
        });
        let instances = self.instances.clone();
        on.map(self.launchers.settings(), move |_| {
            let shown = |instance: &Instance| {
                instance.status.as_ref().is_some_and(|status| status.firmware.is_some())
            };
            instances.filtered(shown).iter().map(|instance| Key::of(&**instance)).collect()
        });
        let vms = self.vms.clone();
        on.map(&self.secrets, move |secret| {
            let name = secret.name_any();
            let namespace = secret.namespace().unwrap_or_default();
            vms_where(&vms, &namespace, |vm| secret_name(vm) == Some(&name))
        });
    }

    async fn observe(&self, key: &Key, pass: Pass) -> Result<Option<Observed>, Error> {
        let Some(vm) = self.vms.get(key) else { return Ok(None) };
        let of_name = self.instances.get(key);
        let is_ours = |instance: &Arc<Instance>| {
            controller_of(&**instance).is_some_and(|owner| Some(&owner.uid) == vm.metadata.uid.as_ref())
        };
        let instance = of_name.clone().filter(is_ours);
        let migrations = match &instance {
            Some(instance) => {
                let uid = instance.metadata.uid.clone().unwrap_or_default();
                let all = self.migrations.in_namespace(&key.namespace);
                all.into_iter().filter(|migration| migration.spec.instance.uid == uid).collect()
            }
            None => Vec::new(),
        };
        let mut operations: Vec<_> = self
            .operations
            .in_namespace(&key.namespace)
            .into_iter()
            .filter(|op| op.spec.virtual_machine_name == key.name)
            .filter(|op| !op.status.as_ref().is_some_and(|status| status.phase.is_final()))
            .collect();
        operations.sort_by_key(|op| (op.metadata.creation_timestamp.clone().map(|t| t.0), op.name_any()));
        Ok(Some(Observed {
            now: pass.now,
            class: self.classes.get(&Key::cluster(&vm.spec.virtual_machine_class_name)),
            devices: vm.spec.block_device_refs.iter().map(|device| self.device(&vm, device)).collect(),
            nvram: self.claims.named(&key.namespace, &nvram_claim(&vm)),
            vmip: self.address(&vm),
            secret: secret_name(&vm).and_then(|name| self.secrets.named(&key.namespace, name)),
            foreign_instance: of_name.is_some() && instance.is_none(),
            instance,
            migrations,
            operations,
            launcher_image: self.launchers.image(),
            vm,
        }))
    }

    fn plan(observed: &Observed) -> Plan {
        super::plan::plan(observed)
    }
}
