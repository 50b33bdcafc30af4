//! VM, class, disks and address to `Instance.spec` (first-slice.md §4.1).

use std::collections::BTreeMap;

use holdfast_api::engine::{
    Applied, Cpu, CpuModel, EvictionRule, Firmware, Front, Hardware, Instance, InstanceSpec, MigrationPolicy,
    Nic, Nvram, Owner, PodMetadata, Power, Seed, SeedKind,
};
use holdfast_api::names::finalizer;
use holdfast_api::vm::{
    BlockDeviceKind, Bootloader, LiveMigrationPolicy, ProvisioningType, VirtualMachineSpec,
};
use holdfast_api::vmclass::{CpuType, VirtualMachineClassSpec};
use holdfast_domain::{identity, placement, sizing, topology};
use holdfast_reconcile::owner_reference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::observe::{Observed, nvram_claim};
use super::{STARTED_BY, devices, power};

/// Machine type family; the version is pinned at each start.
const MACHINE: &str = "q35";

/// Base model of CPUs that are built from features.
const FEATURE_BASE_MODEL: &str = "qemu64";

/// The Instance as it is first created. It is deleted only by us, so it carries our finalizer from
/// the start.
#[must_use]
pub fn first(o: &Observed, spec: InstanceSpec, by: &str) -> Instance {
    let mut instance = Instance::new(o.vm.metadata.name.as_deref().unwrap_or_default(), spec);
    instance.metadata = ObjectMeta {
        namespace: o.vm.metadata.namespace.clone(),
        owner_references: Some(vec![owner_reference(&*o.vm)]),
        finalizers: Some(vec![finalizer::INSTANCE_CLEANUP.to_owned()]),
        annotations: Some(BTreeMap::from([(STARTED_BY.to_owned(), by.to_owned())])),
        ..instance.metadata
    };
    instance
}

/// The spec of a power-on from the VM as it is now.
#[must_use]
pub fn power_on(o: &Observed, epoch: i64) -> InstanceSpec {
    InstanceSpec { epoch, power: Power::On, ..resolved(o) }
}

/// The spec of a VM that never ran and shall not run.
#[must_use]
pub fn never_on(o: &Observed) -> InstanceSpec {
    InstanceSpec { epoch: 0, power: Power::Off, ..resolved(o) }
}

fn resolved(o: &Observed) -> InstanceSpec {
    let spec = &o.vm.spec;
    let (namespace, name) = names(o);
    let class = class_spec(o);
    let (sockets, cores_per_socket) = topology::of(spec.cpu.cores);
    let (model, model_name, features) = cpu_model(&class);
    let address = o.vmip.as_ref().and_then(|vmip| vmip.status.as_ref()?.address.clone());
    let uid = o.vm.metadata.uid.clone().unwrap_or_default();
    let hardware = Hardware {
        machine: MACHINE.to_owned(),
        firmware: match spec.bootloader {
            Bootloader::BIOS => Firmware::Bios,
            Bootloader::EFI => Firmware::Efi,
            Bootloader::EFIWithSecureBoot => Firmware::EfiWithSecureBoot,
        },
        cpu: Cpu { sockets, cores_per_socket, model, model_name, features },
        memory_bytes: sizing::memory_bytes(&spec.memory.size),
        uuid: identity::firmware_uuid(namespace, name),
        nic: address.map(|address| Nic { mac: identity::mac(&uid), address }),
        disks: o.devices.iter().enumerate().map(|(index, device)| device.to_disk(index)).collect(),
        nvram: nvram(o),
        seed: seed(o),
        paravirtualization: spec.enable_paravirtualization,
    };
    InstanceSpec {
        owner: Owner {
            front: Front::Deckhouse,
            kind: "VirtualMachine".to_owned(),
            name: name.to_owned(),
            uid,
        },
        restart_rules: power::rules(spec),
        eviction_rule: EvictionRule::MoveOrBlock,
        grace_period_seconds: spec.termination_grace_period_seconds,
        hardware,
        resources: sizing::resources(spec, &class),
        placement: placement::merge(spec, &class),
        metadata: metadata(o),
        migration_policy: migration_policy(spec.live_migration_policy),
        applied: applied(o, spec, &class),
        ..InstanceSpec::default()
    }
}

fn names(o: &Observed) -> (&str, &str) {
    let meta = &o.vm.metadata;
    (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

pub(super) fn class_spec(o: &Observed) -> VirtualMachineClassSpec {
    o.class.as_ref().map(|class| class.spec.clone()).unwrap_or_default()
}

fn json_of<T: serde::Serialize>(value: &T) -> Option<serde_json::Value> {
    Some(serde_json::to_value(value).expect("invariant: API types serialise to JSON"))
}

fn applied(o: &Observed, spec: &VirtualMachineSpec, class: &VirtualMachineClassSpec) -> Applied {
    Applied {
        vm_generation: o.vm.metadata.generation.unwrap_or_default(),
        vm_spec: json_of(spec),
        class_spec: o.class.as_ref().and_then(|_| json_of(class)),
    }
}

fn cpu_model(class: &VirtualMachineClassSpec) -> (CpuModel, Option<String>, Vec<String>) {
    match class.cpu.type_ {
        CpuType::Host => (CpuModel::Host, None, Vec::new()),
        CpuType::HostPassthrough => (CpuModel::HostPassthrough, None, Vec::new()),
        CpuType::Model => (CpuModel::Named, class.cpu.model.clone(), Vec::new()),
        CpuType::Features | CpuType::Discovery => (
            CpuModel::Named,
            Some(FEATURE_BASE_MODEL.to_owned()),
            class.cpu.features.clone().unwrap_or_default(),
        ),
    }
}

fn migration_policy(policy: LiveMigrationPolicy) -> MigrationPolicy {
    match policy {
        LiveMigrationPolicy::AlwaysSafe => MigrationPolicy::AlwaysSafe,
        LiveMigrationPolicy::PreferSafe => MigrationPolicy::PreferSafe,
        LiveMigrationPolicy::AlwaysForced => MigrationPolicy::AlwaysForced,
        LiveMigrationPolicy::PreferForced => MigrationPolicy::PreferForced,
    }
}

/// UEFI variables are kept beside the first disk, on the same class: they are reached where the disk is. A claim
/// that is there keeps its own. A VM that has only images has nothing of its own to keep them with.
fn nvram(o: &Observed) -> Option<Nvram> {
    if o.vm.spec.bootloader == Bootloader::BIOS {
        return None;
    }
    let disk = o.devices.iter().find(|device| device.reference.kind == BlockDeviceKind::VirtualDisk)?;
    let (storage_class, shared) = match &o.nvram {
        Some(claim) => (devices::storage_class(claim), devices::is_shared(claim, false)),
        None => (disk.storage_class.clone(), disk.shared),
    };
    Some(Nvram { claim: nvram_claim(&o.vm), storage_class, shared })
}

fn seed(o: &Observed) -> Option<Seed> {
    let provisioning = o.vm.spec.provisioning.as_ref()?;
    let (namespace, name) = names(o);
    let kind = match provisioning.type_ {
        ProvisioningType::UserData | ProvisioningType::UserDataRef => SeedKind::NoCloud,
        ProvisioningType::SysprepRef => SeedKind::Sysprep,
    };
    let secret = provisioning.user_data_ref.as_ref().or(provisioning.sysprep_ref.as_ref());
    Some(Seed {
        kind,
        secret_name: secret.map(|secret| secret.name.clone()),
        inline: provisioning.user_data.clone(),
        instance_id: identity::firmware_uuid(namespace, name),
        hostname: identity::hostname(name),
    })
}

/// The VM's own labels and annotations; the engine keeps the platform's apart.
fn metadata(o: &Observed) -> PodMetadata {
    let taken = |map: &Option<BTreeMap<String, String>>| -> BTreeMap<String, String> {
        let all = map.iter().flatten();
        all.filter(|(key, _)| !key.starts_with("kubectl.kubernetes.io/"))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect()
    };
    PodMetadata { labels: taken(&o.vm.metadata.labels), annotations: taken(&o.vm.metadata.annotations) }
}

/// The spec that was applied, as a type.
#[must_use]
pub fn applied_spec(instance: &Instance) -> Option<VirtualMachineSpec> {
    serde_json::from_value(instance.spec.applied.vm_spec.clone()?).ok()
}

/// The applied spec with what applies at once taken from the present one.
fn carried(applied: VirtualMachineSpec, present: &VirtualMachineSpec) -> VirtualMachineSpec {
    VirtualMachineSpec {
        run_policy: present.run_policy,
        disruptions: present.disruptions.clone(),
        live_migration_policy: present.live_migration_policy,
        node_selector: present.node_selector.clone(),
        affinity: present.affinity.clone(),
        ..applied
    }
}

/// The Instance's spec with everything that applies at once brought up to date; the same spec if
/// nothing is new. `ended`: there is no guest, so the rules of the ended epoch stay.
#[must_use]
pub fn live(o: &Observed, instance: &Instance, ended: bool) -> InstanceSpec {
    let present = &o.vm.spec;
    let mut spec = instance.spec.clone();
    let applied_spec = applied_spec(instance).unwrap_or_else(|| present.clone());
    let effective = carried(applied_spec, present);
    if !ended {
        spec.restart_rules = power::rules(present);
        // A changed class name waits for a restart: until then the old class decides.
        let same_class = effective.virtual_machine_class_name == present.virtual_machine_class_name;
        if let Some(class) = o.class.as_ref().filter(|_| same_class) {
            spec.placement = placement::merge(&effective, &class.spec);
            spec.applied.class_spec = json_of(&class.spec);
        } else if let Some(class) = applied_class(instance) {
            spec.placement = placement::merge(&effective, &class);
        }
    }
    spec.metadata = metadata(o);
    spec.migration_policy = migration_policy(present.live_migration_policy);
    let vm_spec = json_of(&effective);
    if spec.applied.vm_spec != vm_spec {
        spec.applied.vm_spec = vm_spec;
    }
    spec
}

fn applied_class(instance: &Instance) -> Option<VirtualMachineClassSpec> {
    serde_json::from_value(instance.spec.applied.class_spec.clone()?).ok()
}
