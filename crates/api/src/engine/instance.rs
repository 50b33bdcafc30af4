//! `Instance`: identity and spec, the applied configuration of one VM.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, Toleration, TopologySpreadConstraint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{InstanceStatus, any_object, any_objects};

/// The applied configuration of one VM and its present power-on. `metadata.name` is the VM's name.
///
/// Identity of a power-on = (`metadata.uid`, `spec.epoch`). A new epoch is accepted only while
/// `status.state` is `Ended` (INV-3 at the API).
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "internal.virtualization.deckhouse.io",
    version = "v1alpha1",
    kind = "Instance",
    namespaced,
    status = "InstanceStatus",
    derive = "PartialEq",
    derive = "Default",
    validation = Rule::new("self.spec.epoch == oldSelf.spec.epoch || (self.spec.epoch == oldSelf.spec.epoch + 1 && has(oldSelf.status) && has(oldSelf.status.state) && oldSelf.status.state == 'Ended')").message("a new epoch needs the last one to have Ended (INV-3)"),
    validation = Rule::new("self.spec.epoch != oldSelf.spec.epoch || self.spec.power == oldSelf.spec.power || self.spec.power == 'Off'").message("within an epoch power goes from On to Off only"),
    validation = Rule::new("self.spec.epoch != oldSelf.spec.epoch || (self.spec.hardware == oldSelf.spec.hardware && self.spec.resources == oldSelf.spec.resources)").message("hardware and resources change only together with the epoch"),
    printcolumn(name = "State", type_ = "string", json_path = ".status.state"),
    printcolumn(name = "Epoch", type_ = "integer", json_path = ".spec.epoch"),
    printcolumn(name = "Node", type_ = "string", json_path = ".status.node"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct InstanceSpec {
    /// Number of the power-on; grows by 1. 0 = never powered on.
    pub epoch: i64,
    /// The front's object behind this Instance.
    pub owner: Owner,
    /// Live. Whether the VM shall run. On to Off only; back to On is a new epoch.
    pub power: Power,
    /// Live. How to stop when `power` is Off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<Stop>,
    /// Live. What follows an end, per cause.
    #[serde(default)]
    pub restart_rules: RestartRules,
    /// What an eviction of the launcher pod does.
    #[serde(default)]
    pub eviction_rule: EvictionRule,
    /// Time for the guest to power off by itself, in seconds.
    #[serde(default)]
    pub grace_period_seconds: i64,
    /// The virtual machine itself, fully resolved.
    #[serde(default)]
    pub hardware: Hardware,
    /// What the launcher pod asks of a node.
    #[serde(default)]
    pub resources: Resources,
    /// Live. Where the launcher may run; the class is already merged in.
    #[serde(default)]
    pub placement: Placement,
    /// Live. Labels and annotations to put on launcher pods.
    #[serde(default)]
    pub metadata: PodMetadata,
    /// Live. May a move slow the guest down.
    #[serde(default)]
    pub migration_policy: MigrationPolicy,
    /// What the front had before it when it resolved this spec: the base of the pending-changes diff.
    #[serde(default)]
    pub applied: Applied,
}

/// The front's object that owns an Instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Owner {
    /// Which front.
    pub front: Front,
    /// Kind of the owner, `VirtualMachine`.
    pub kind: String,
    /// Name of the owner (equal to the Instance's name).
    pub name: String,
    /// UID of the owner.
    pub uid: String,
}

/// The two fronts that share the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Front {
    /// `virtualization.deckhouse.io`
    #[default]
    Deckhouse,
    /// `kubevirt.io`
    OpenShift,
}

/// Power intent within one epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Power {
    /// The VM shall run.
    On,
    /// The VM shall end, or shall not start.
    #[default]
    Off,
}

/// How a power-off is carried out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Stop {
    /// Graceful (ACPI, then kill at the end of the grace period) or Force (kill at once).
    pub mode: StopMode,
    /// Who asked: `vmop/<name>`, `policy`, `deletion`, `restart`.
    pub by: String,
    /// When it was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Time>,
}

/// See [`Stop`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum StopMode {
    /// Power button, then kill when the grace period is over.
    #[default]
    Graceful,
    /// Kill at once.
    Force,
}

/// What follows an end, per cause. Decided once by the front from its run policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RestartRules {
    /// The guest powered itself off.
    pub guest_shutdown: AfterEnd,
    /// The guest rebooted.
    pub guest_reset: AfterReset,
    /// QEMU or its launcher died.
    pub crash: AfterEnd,
    /// QEMU could not be started.
    pub start_failed: AfterEnd,
    /// The launcher pod was removed without a move.
    pub evicted: AfterEnd,
    /// The node was fenced.
    pub node_lost: AfterEnd,
}

/// See [`RestartRules`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AfterEnd {
    /// Start again (a new epoch).
    Restart,
    /// Stay off.
    #[default]
    Stay,
}

/// See [`RestartRules::guest_reset`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AfterReset {
    /// Start again as a new epoch, with pending changes applied.
    Restart,
    /// Stay off.
    #[default]
    Stay,
    /// QEMU resets the machine itself; the epoch goes on.
    InPlace,
}

/// What an eviction of the launcher pod does (migration-and-maintenance.md §6.3, openshift.md §15.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum EvictionRule {
    /// Move live; if that is impossible, refuse the eviction. All deckhouse VMs.
    #[default]
    MoveOrBlock,
    /// Move live; if that is impossible, stop.
    MoveOrStop,
    /// Stop.
    Stop,
    /// Refuse and only mark; somebody else acts.
    BlockAndMark,
}

/// May a move slow the guest down (migration-and-maintenance.md §3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum MigrationPolicy {
    AlwaysSafe,
    #[default]
    PreferSafe,
    AlwaysForced,
    PreferForced,
}

/// The resolved virtual machine. Both sides of a move build their QEMU command line from this.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Hardware {
    /// Machine type family, `q35`; the version is pinned at start in `status.runtime.machineType`.
    pub machine: String,
    /// Firmware.
    pub firmware: Firmware,
    /// Processor.
    pub cpu: Cpu,
    /// Guest memory, bytes.
    pub memory_bytes: i64,
    /// SMBIOS UUID, derived from namespace + name.
    pub uuid: String,
    /// The one network interface. None before an address was assigned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nic: Option<Nic>,
    /// Disks in boot order.
    #[serde(default)]
    pub disks: Vec<Disk>,
    /// Where UEFI keeps its variables; absent under BIOS and for a VM without a disk of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nvram: Option<Nvram>,
    /// Provisioning data, absent without provisioning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<Seed>,
    /// Whether guests get paravirtual devices only (`enableParavirtualization`).
    #[serde(default)]
    pub paravirtualization: bool,
}

/// Firmware of a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Firmware {
    /// SeaBIOS.
    #[default]
    #[serde(rename = "BIOS")]
    Bios,
    /// OVMF.
    #[serde(rename = "EFI")]
    Efi,
    /// OVMF with secure boot.
    #[serde(rename = "EFIWithSecureBoot")]
    EfiWithSecureBoot,
}

/// Processor of a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Cpu {
    /// Sockets.
    pub sockets: i32,
    /// Cores of a socket.
    pub cores_per_socket: i32,
    /// How the model is chosen.
    pub model: CpuModel,
    /// Name of the model when `model` is Named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_name: Option<String>,
    /// Features added to the model.
    #[serde(default)]
    pub features: Vec<String>,
}

/// How the CPU model is chosen (vm-lifecycle.md §5.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CpuModel {
    /// The node's model in a form that can move between nodes of one kind.
    #[default]
    Host,
    /// The node's processor as it is.
    HostPassthrough,
    /// A model by name.
    Named,
}

/// The VM's network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Nic {
    /// MAC address, derived from the VM's uid.
    pub mac: String,
    /// IPv4 address without prefix.
    pub address: String,
}

/// One disk of a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Disk {
    /// Id within the VM, unique: `vd-<name>`, `vi-<name>`, `cvi-<name>`. Also the volume's name in the pod.
    pub id: String,
    /// Kind of the front's object: `VirtualDisk`, `VirtualImage`, `ClusterVirtualImage`.
    pub kind: String,
    /// Name of the front's object.
    pub name: String,
    /// PersistentVolumeClaim in the VM's namespace (of a ClusterVirtualImage: see `claim_namespace`).
    pub claim: String,
    /// Namespace of the claim when it is not the VM's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim_namespace: Option<String>,
    /// Serial number the guest sees (vm-lifecycle.md §7.2).
    pub serial: String,
    /// SCSI target id.
    pub scsi_id: i32,
    /// Place in the boot order, from 1.
    pub boot_index: i32,
    /// Opened read-only.
    #[serde(default)]
    pub read_only: bool,
    /// Presented as a cdrom.
    #[serde(default)]
    pub cdrom: bool,
    /// Whether the volume can be mounted on two nodes at once, that is, the VM can move.
    #[serde(default)]
    pub shared: bool,
}

/// The volume of a VM's UEFI variables. It lives as long as the Instance and has one user, its launcher.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Nvram {
    /// PersistentVolumeClaim in the VM's namespace, made by the engine.
    pub claim: String,
    /// Class of the claim; absent: the cluster's default one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_class: Option<String>,
    /// Whether the volume can be mounted on two nodes at once, that is, the VM can move.
    #[serde(default)]
    pub shared: bool,
}

/// Provisioning data of a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Seed {
    /// Form.
    pub kind: SeedKind,
    /// Secret in the VM's namespace that holds the data, mounted into the launcher pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_name: Option<String>,
    /// Inline user data, instead of a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inline: Option<String>,
    /// `instance-id` of cloud-init: stable for the life of the VM.
    pub instance_id: String,
    /// `local-hostname` of cloud-init.
    pub hostname: String,
}

/// Form of the provisioning data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SeedKind {
    /// cloud-init NoCloud on a small FAT disk.
    #[default]
    NoCloud,
    /// Windows answer file on a cdrom.
    Sysprep,
}

/// What the launcher pod asks of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// CPU request, thousandths of a core.
    pub cpu_request_milli: i64,
    /// CPU limit, thousandths of a core.
    pub cpu_limit_milli: i64,
    /// Guest memory + overhead, bytes.
    pub memory_bytes: i64,
}

/// Where the launcher may run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Placement {
    /// Labels the node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Affinity as in pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_object")]
    pub affinity: Option<Affinity>,
    /// Tolerations as in pods.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "any_objects")]
    pub tolerations: Vec<Toleration>,
    /// Spread constraints as in pods.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "any_objects")]
    pub topology_spread_constraints: Vec<TopologySpreadConstraint>,
    /// Priority class of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority_class_name: Option<String>,
}

/// Labels and annotations for launcher pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodMetadata {
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// Base of the pending-changes diff.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Applied {
    /// `metadata.generation` of the VM that was applied.
    #[serde(default)]
    pub vm_generation: i64,
    /// The VM's spec as given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_object")]
    pub vm_spec: Option<serde_json::Value>,
    /// The class's spec as given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_object")]
    pub class_spec: Option<serde_json::Value>,
}
