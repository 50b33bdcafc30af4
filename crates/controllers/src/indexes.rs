//! What controllers find objects by, so that no pass and no wake-up looks at all objects of a kind.
//! An index is made once a cache and shared by every controller that asks for it.

use holdfast_api::engine::{Instance, Migration};
use holdfast_api::names::label;
use holdfast_api::source::ObjectRefKind;
use holdfast_api::vm::BlockDeviceKind;
use holdfast_api::{
    VirtualDisk, VirtualMachine, VirtualMachineIPAddress, VirtualMachineIPAddressLease,
    VirtualMachineOperation,
};
use holdfast_reconcile::{Cache, Index, Key, Kind, controller_of};
use k8s_openapi::api::core::v1::Pod;
use kube::{Resource, ResourceExt as _};

fn labelled(pod: &Pod, label: &str) -> Vec<Key> {
    pod.labels().get(label).map(Key::cluster).into_iter().collect()
}

/// A key in the object's namespace.
fn beside<K: Resource>(object: &K, name: &str) -> Key {
    Key::new(object.meta().namespace.as_deref().unwrap_or_default(), name)
}

/// Launcher pods by the uid of their Instance.
#[must_use]
pub fn launchers(pods: &Cache<Pod>) -> Index<Pod> {
    pods.index("Instance", |pod| labelled(pod, label::CREATED_BY))
}

/// Launcher pods by the uid of the move they were made for.
#[must_use]
pub fn targets(pods: &Cache<Pod>) -> Index<Pod> {
    pods.index("move", |pod| labelled(pod, label::MIGRATION_UID))
}

/// Importer pods by the uid of what they fill.
#[must_use]
pub fn importers(pods: &Cache<Pod>) -> Index<Pod> {
    pods.index("import", |pod| labelled(pod, label::IMPORT_OWNER_UID))
}

/// Pods by their node.
#[must_use]
pub fn pods_on(pods: &Cache<Pod>) -> Index<Pod> {
    pods.index("node", |pod| pod.spec.iter().flat_map(|spec| &spec.node_name).map(Key::cluster).collect())
}

/// Moves by the uid of their Instance.
#[must_use]
pub fn moves(migrations: &Cache<Migration>) -> Index<Migration> {
    migrations.index("Instance", |migration| vec![Key::cluster(&migration.spec.instance.uid)])
}

/// The term of [`unfinished`].
pub const UNFINISHED: &str = "unfinished";

/// Moves that have not ended, by [`UNFINISHED`].
#[must_use]
pub fn unfinished(migrations: &Cache<Migration>) -> Index<Migration> {
    migrations.index(UNFINISHED, |migration| {
        let state = migration.status.as_ref().and_then(|status| status.state).unwrap_or_default();
        (!state.is_final()).then(|| Key::cluster(UNFINISHED)).into_iter().collect()
    })
}

/// Operations by their VM.
#[must_use]
pub fn operations(operations: &Cache<VirtualMachineOperation>) -> Index<VirtualMachineOperation> {
    operations.index("VM", |operation| vec![beside(operation, &operation.spec.virtual_machine_name)])
}

/// What a disk of a VM or an Instance is found by.
#[must_use]
pub fn device(kind: &str, namespace: &str, name: &str) -> Key {
    let namespace = if kind == BlockDeviceKind::ClusterVirtualImage.as_str() { "" } else { namespace };
    Key::new(namespace, format!("{kind}/{name}"))
}

/// VMs by the devices that their spec or status lists, see [`device`].
#[must_use]
pub fn vms_by_device(vms: &Cache<VirtualMachine>) -> Index<VirtualMachine> {
    vms.index("device", |vm| {
        let namespace = vm.metadata.namespace.as_deref().unwrap_or_default();
        let wanted = vm.spec.block_device_refs.iter().map(|device| (device.kind, &device.name));
        let listed = vm.status.iter().flat_map(|status| &status.block_device_refs);
        let listed = listed.map(|device| (device.kind, &device.name));
        wanted.chain(listed).map(|(kind, name)| device(kind.as_str(), namespace, name)).collect()
    })
}

/// VMs by their class.
#[must_use]
pub fn vms_by_class(vms: &Cache<VirtualMachine>) -> Index<VirtualMachine> {
    vms.index("class", |vm| vec![Key::cluster(&vm.spec.virtual_machine_class_name)])
}

/// VMs by the address that their spec names or their status reports.
#[must_use]
pub fn vms_by_address(vms: &Cache<VirtualMachine>) -> Index<VirtualMachine> {
    vms.index("address", |vm| {
        let reported = vm.status.iter().flat_map(|status| &status.virtual_machine_ip_address_name);
        let named = vm.spec.virtual_machine_ip_address_name.iter();
        named.chain(reported).map(|name| beside(vm, name)).collect()
    })
}

/// VMs by the Secret with their provisioning data.
#[must_use]
pub fn vms_by_secret(vms: &Cache<VirtualMachine>) -> Index<VirtualMachine> {
    vms.index("Secret", |vm| {
        crate::fronts::deckhouse::vm::secret_name(vm).map(|name| beside(vm, name)).into_iter().collect()
    })
}

/// Instances by their disks, see [`device`].
#[must_use]
pub fn instances_by_disk(instances: &Cache<Instance>) -> Index<Instance> {
    instances.index("disk", |instance| {
        let namespace = instance.metadata.namespace.as_deref().unwrap_or_default();
        let disks = &instance.spec.hardware.disks;
        disks.iter().map(|disk| device(&disk.kind, namespace, &disk.name)).collect()
    })
}

/// Instances by every node that their status names: where they run, are claimed, have pods, shall leave.
#[must_use]
pub fn instances_at(instances: &Cache<Instance>) -> Index<Instance> {
    instances.index("node", |instance| {
        let Some(status) = &instance.status else { return Vec::new() };
        let claimed = status.claim.as_ref().map(|claim| &claim.node);
        let pods = status.pods.iter().filter_map(|pod| pod.node.as_ref());
        let leaving = [status.evacuation_node_name.as_ref(), status.evacuation_blocked_node.as_ref()];
        let named = [status.node.as_ref(), claimed].into_iter().chain(leaving);
        named.flatten().chain(pods).map(Key::cluster).collect()
    })
}

/// Disks by the VMs that their status says they are attached to.
#[must_use]
pub fn disks_by_vm(disks: &Cache<VirtualDisk>) -> Index<VirtualDisk> {
    disks.index("VM", |disk| {
        let status = disk.status.iter().flat_map(|status| &status.attached_to_virtual_machines);
        status.map(|vm| beside(disk, &vm.name)).collect()
    })
}

/// What a disk that is filled from something is found by.
#[must_use]
pub fn source(kind: ObjectRefKind, name: &str) -> Key {
    Key::cluster(format!("{kind:?}/{name}"))
}

/// Disks by what they are filled from, in whatever namespace that is, see [`source`].
#[must_use]
pub fn disks_by_source(disks: &Cache<VirtualDisk>) -> Index<VirtualDisk> {
    disks.index("source", |disk| {
        let named = disk.spec.data_source.as_ref().and_then(|source| source.object_ref.as_ref());
        named.map(|named| source(named.kind, &named.name)).into_iter().collect()
    })
}

/// Objects by the uid of the owner that controls them.
#[must_use]
pub fn owned<K: Kind>(objects: &Cache<K>) -> Index<K> {
    objects.index("owner", |object| {
        controller_of(object).map(|owner| Key::cluster(&owner.uid)).into_iter().collect()
    })
}

/// Addresses by the VM that their status says uses them.
#[must_use]
pub fn addresses_by_vm(addresses: &Cache<VirtualMachineIPAddress>) -> Index<VirtualMachineIPAddress> {
    addresses.index("VM", |vmip| {
        let status = vmip.status.iter().flat_map(|status| &status.virtual_machine_name);
        status.map(|vm| beside(vmip, vm)).collect()
    })
}

/// The term of [`pending`].
pub const PENDING: &str = "pending";

/// Addresses that wait for their lease, by [`PENDING`].
#[must_use]
pub fn pending(addresses: &Cache<VirtualMachineIPAddress>) -> Index<VirtualMachineIPAddress> {
    addresses.index(PENDING, |vmip| {
        let phase = vmip.status.as_ref().and_then(|status| status.phase).unwrap_or_default();
        let waits = phase == holdfast_api::vmip::VmipPhase::Pending;
        waits.then(|| Key::cluster(PENDING)).into_iter().collect()
    })
}

/// Leases by the address that they name.
#[must_use]
pub fn leases_of(leases: &Cache<VirtualMachineIPAddressLease>) -> Index<VirtualMachineIPAddressLease> {
    leases.index("address", |lease| {
        let holder = lease.spec.virtual_machine_ip_address_ref.iter();
        holder.map(|holder| Key::new(&holder.namespace, &holder.name)).collect()
    })
}
