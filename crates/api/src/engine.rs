//! The engine's internal kinds: `Instance` (one a VM) and `Migration` (one live move of an Instance).
//!
//! Group `internal.virtualization.deckhouse.io/v1alpha1`. Fronts create and delete these objects,
//! engine controllers and agents write their status. Who writes which field stands on the field;
//! nobody else may. Source: design/first-slice.md §4.1 and §4.2.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, Toleration, TopologySpreadConstraint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResource;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// API group of the engine's kinds.
pub const GROUP: &str = "internal.virtualization.deckhouse.io";
/// Version of the engine's kinds.
pub const VERSION: &str = "v1alpha1";
/// Finalizer that keeps an Instance until every launcher pod of it is gone.
pub const INSTANCE_CLEANUP: &str = "internal.virtualization.deckhouse.io/instance-cleanup";
/// Finalizer that keeps a Migration until its abort has been settled. Deleting a Migration aborts it.
pub const MIGRATION_CLEANUP: &str = "internal.virtualization.deckhouse.io/migration-cleanup";

/// Schema of a field that holds another API's object as it was given.
fn any_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
}

/// Schema of a list that holds another API's objects as they were given.
fn any_objects(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "items": { "type": "object", "x-kubernetes-preserve-unknown-fields": true }
    })
}

// ------------------------------------------------------------------------------------- Instance

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

/// Status of an Instance. Each row has one writer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceStatus {
    /// Writer: engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<InstanceState>,
    /// Epoch that `state` speaks of. Writer: engine.
    #[serde(default)]
    pub observed_epoch: i64,
    /// Reason of `state`, a CamelCase word. Writer: engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// A sentence for people. Writer: engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Starts that failed in a row. Writer: engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_failures: Option<StartFailures>,
    /// Launcher pods that exist or whose end is not proved yet. Writer: engine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pods: Vec<LauncherPod>,
    /// Who may start QEMU. Writer: engine before the first start, then the flip moves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<Claim>,
    /// How the epoch ended. Writer: engine, from the agent's report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
    /// Where the guest runs. Writer: agent of the claim at start, the target agent at the flip.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Pod the guest runs in. Writer: as `node`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_pod: Option<PodRef>,
    /// Facts of the running QEMU. Writer: agent of `node`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<Runtime>,
    /// Facts from the guest agent. Writer: agent of `node`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<Guest>,
    /// Disks as QEMU has them. Writer: agent of `node`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Volume>,
    /// Last report about the claimed launcher. Writer: agent of `node` (or of the claim).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<Report>,
    /// The node this VM shall leave. Writer: eviction hook sets; flip, cancel and uncordon clear.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evacuation_node_name: Option<String>,
    /// Who set the mark: `Eviction`, `NodeMaintenance`. Writer: as above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evacuation_source: Option<String>,
    /// Failed evacuations in a row. Writer: evacuation controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evacuation_failures: Option<EvacuationFailures>,
    /// The move in progress, or the last one. Writer: migration controller opens, source agent `start`, target agent closes it in the flip.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<InstanceMigration>,
}

/// States of an Instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum InstanceState {
    /// Accepted, nothing created yet (or waiting for the start back-off).
    #[default]
    Waiting,
    /// Launcher pod exists, no node yet.
    Placing,
    /// A node has the claim; QEMU is being started.
    Booting,
    /// The guest runs.
    Running,
    /// QEMU is there, the guest does not run.
    Paused,
    /// Shall end; not ended yet.
    Stopping,
    /// Ended, with a proof in `exit`.
    Ended,
}

/// Starts that failed in a row; back-off 10 s × n², cap 300 s (vm-lifecycle.md).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StartFailures {
    /// How many.
    pub count: i32,
    /// Not before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<Time>,
}

/// A launcher pod of an Instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LauncherPod {
    /// Pod name.
    pub name: String,
    /// Pod uid.
    pub uid: String,
    /// Node, once bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// What it is for.
    pub role: PodRole,
    /// Epoch it was made for.
    #[serde(default)]
    pub epoch: i64,
}

/// What a launcher pod is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PodRole {
    /// Runs (or ran) the guest.
    #[default]
    Active,
    /// Receives a move.
    Target,
}

/// Name and uid of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodRef {
    /// Pod name.
    pub name: String,
    /// Pod uid.
    pub uid: String,
}

/// Who may start QEMU for an epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// Node.
    pub node: String,
    /// Boot id of the node: the holder of its fence Lease.
    #[serde(rename = "bootID")]
    pub boot_id: String,
    /// Uid of the launcher pod.
    #[serde(rename = "podUID")]
    pub pod_uid: String,
    /// Epoch.
    pub epoch: i64,
}

/// How an epoch ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Exit {
    /// Cause.
    pub cause: ExitCause,
    /// A sentence for people.
    #[serde(default)]
    pub detail: String,
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Time>,
    /// Why this end is certain.
    pub proof: Proof,
}

/// Why an epoch ended (openshift.md §15.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ExitCause {
    /// Never powered on.
    #[default]
    NeverStarted,
    /// The guest powered itself off.
    GuestShutdown,
    /// The guest rebooted (and the epoch ends with it).
    GuestReset,
    /// QEMU or its launcher died.
    Crash,
    /// Killed at the end of the grace period.
    GraceExpired,
    /// Stopped because `power` went Off, or killed by force.
    PlatformStop,
    /// The launcher pod was removed without a move.
    Evicted,
    /// The node was fenced.
    NodeLost,
    /// QEMU could not be started.
    StartFailed,
}

/// Why an end is certain (failure-and-rebalancing.md §2.2).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Proof {
    /// Which proof.
    pub kind: ProofKind,
    /// Node it speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Boot id it speaks of.
    #[serde(default, rename = "bootID", skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// Who established it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Time>,
}

/// Kinds of proof. Later slices add fencing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ProofKind {
    /// Nothing was ever started.
    #[default]
    NeverStarted,
    /// P0: the node's agent reported the end and an empty cgroup.
    AgentReport,
    /// P3: the node came back under another boot id; whatever ran there is gone.
    NodeRebooted,
}

/// Facts of the running QEMU.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Runtime {
    /// When the guest of this epoch first ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// QEMU version.
    #[serde(default)]
    pub qemu_version: String,
    /// `kvm` or `tcg`.
    #[serde(default)]
    pub accelerator: String,
    /// Versioned machine type, `pc-q35-10.0`; the same on every node for the life of the epoch.
    #[serde(default)]
    pub machine_type: String,
    /// SHA-256 of `definition`, hex.
    #[serde(default)]
    pub definition_hash: String,
    /// The definition QEMU was started from; the target of a move starts from the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_object")]
    pub definition: Option<serde_json::Value>,
}

/// Facts from the guest agent (vm-lifecycle.md §11).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Guest {
    /// Whether the agent answers.
    #[serde(default)]
    pub agent_connected: bool,
    /// Version of the guest agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_version: Option<String>,
    /// Operating system, as `guest-get-osinfo` says it, keys in camelCase.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub os_info: BTreeMap<String, String>,
    /// Interfaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<GuestInterface>,
}

/// One interface as the guest sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GuestInterface {
    /// Name in the guest.
    pub name: String,
    /// MAC address.
    #[serde(default)]
    pub mac: String,
    /// Addresses.
    #[serde(default)]
    pub addresses: Vec<String>,
}

/// One disk as QEMU has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    /// [`Disk::id`].
    pub id: String,
    /// Whether the guest has it.
    pub attached: bool,
    /// Device name in the guest, `sda`.
    #[serde(default)]
    pub target: String,
    /// Size, bytes.
    #[serde(default)]
    pub size_bytes: i64,
}

/// What the agent last learned from the launcher that holds the claim.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Epoch the report speaks of.
    #[serde(default)]
    pub epoch: i64,
    /// Pod the report speaks of.
    #[serde(default, rename = "podUID")]
    pub pod_uid: String,
    /// What is.
    pub state: ReportState,
    /// Set when `state` is Ended: the cause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<ExitCause>,
    /// A sentence for people (QEMU's last words when it failed to start).
    #[serde(default)]
    pub detail: String,
    /// No process of the launcher is left.
    #[serde(default)]
    pub cgroup_empty: bool,
    /// Guest is stopped inside QEMU (paused, io-error).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_reason: Option<String>,
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Time>,
}

/// See [`Report`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ReportState {
    /// QEMU is being started.
    #[default]
    Starting,
    /// The guest runs.
    Running,
    /// QEMU is there, the guest does not run.
    Paused,
    /// The launcher has ended, or never started QEMU and never will.
    Ended,
}

/// Failed evacuations in a row.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EvacuationFailures {
    /// How many.
    pub count: i32,
    /// When the last one failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_at: Option<Time>,
}

/// The move of an Instance, in progress or last.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceMigration {
    /// Uid of the Migration object. Agents act only when Migration and Instance name the same uid.
    pub uid: String,
    /// Name of the Migration object.
    pub name: String,
    /// Source.
    pub source: Side,
    /// Target.
    pub target: Side,
    /// When the memory copy began. Writer: source agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Time>,
    /// When the guest was stopped for the switch-over. Writer: source agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspended: Option<Time>,
    /// When it was over. Writer: target agent (flip) or migration controller (failure).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<Time>,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<MigrationResult>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// One side of a move.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Side {
    /// Node.
    pub node: String,
    /// Pod name.
    pub pod: String,
    /// Pod uid.
    #[serde(rename = "podUID")]
    pub pod_uid: String,
}

/// How a move ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MigrationResult {
    /// The guest runs on the target.
    Succeeded,
    /// The guest runs on the source (or ended; see the Instance).
    #[default]
    Failed,
    /// Called off; the guest runs on the source.
    Aborted,
}

// ------------------------------------------------------------------------------------ Migration

/// One live move of an Instance. The spec never changes; deleting the object aborts the move.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "internal.virtualization.deckhouse.io",
    version = "v1alpha1",
    kind = "Migration",
    namespaced,
    status = "MigrationStatus",
    derive = "PartialEq",
    derive = "Default",
    validation = Rule::new("self.spec == oldSelf.spec").message("the spec of a Migration never changes"),
    printcolumn(name = "State", type_ = "string", json_path = ".status.state"),
    printcolumn(name = "Instance", type_ = "string", json_path = ".spec.instance.name"),
    printcolumn(name = "Source", type_ = "string", json_path = ".status.source.node"),
    printcolumn(name = "Target", type_ = "string", json_path = ".status.target.node"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct MigrationSpec {
    /// What moves.
    pub instance: InstanceRef,
    /// Why.
    pub reason: MigrationReason,
    /// Queue class 1..5, 1 first (migration-and-maintenance.md §4.3).
    pub class: i32,
    /// Overrides the VM's policy about slowing the guest down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub force: Option<bool>,
    /// Labels the target node must have, besides the VM's own placement.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// A node to prefer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preferred_node: Option<String>,
}

/// The Instance a Migration moves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceRef {
    /// Name.
    pub name: String,
    /// Uid.
    pub uid: String,
    /// Epoch; the move fails when the Instance has another one.
    pub epoch: i64,
}

/// Why a VM is moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MigrationReason {
    /// A user's operation.
    #[default]
    User,
    /// A node is drained.
    Drain,
    /// Load is spread.
    Rebalance,
    /// The placement changed.
    Placement,
    /// A new QEMU build is rolled out.
    Firmware,
}

/// Status of a Migration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MigrationStatus {
    /// Writer: migration controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<MigrationState>,
    /// A CamelCase reason of migration-and-maintenance.md §1.2. Writer: migration controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// A sentence for people. Writer: migration controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// When it entered the queue. Writer: migration controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queued_at: Option<Time>,
    /// When it got its slot. Writer: migration controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot_at: Option<Time>,
    /// When it was over. Writer: migration controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// Fixed at hand-off. Writer: migration controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<MigrationConfig>,
    /// Target side. Writers: see the fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<MigrationTarget>,
    /// Source side. Writers: see the fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<MigrationSource>,
    /// How far the copy is. Writer: source agent, at most one write in 10 s plus state changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// The move shall be called off. Writer: migration controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abort: Option<Abort>,
    /// How it ended. Writer: migration controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<MigrationResult>,
    /// Why it failed. Writer: the agent that saw it, or the migration controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}

/// States of a Migration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum MigrationState {
    /// Waits for a slot.
    #[default]
    Queued,
    /// Has a slot; the target pod is being placed and started.
    Placing,
    /// Handed over to the agents; target QEMU is being started.
    Preparing,
    /// Memory is being copied.
    Copying,
    /// The guest is stopped for the switch-over.
    Switching,
    /// Over: the guest runs on the target.
    Done,
    /// Over: it failed.
    Failed,
    /// Over: it was called off.
    Aborted,
}

impl MigrationState {
    /// Whether the move is over for good (INV-7).
    pub fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Aborted)
    }
}

/// Limits of one move, fixed at hand-off.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MigrationConfig {
    /// Bytes a second that QEMU may send: 625000000 = 5 Gbit/s.
    pub bandwidth: i64,
    /// Longest stop of the guest, milliseconds.
    pub downtime_ms: i64,
    /// May the guest be slowed down.
    pub auto_converge: bool,
    /// The whole move may take this long, seconds.
    pub completion_timeout_s: i64,
    /// The move fails after this long without progress, seconds.
    pub progress_timeout_s: i64,
}

/// Target side of a move.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MigrationTarget {
    /// Writer: migration controller.
    #[serde(default)]
    pub pod_name: String,
    /// Writer: migration controller.
    #[serde(default, rename = "podUID")]
    pub pod_uid: String,
    /// Writer: migration controller.
    #[serde(default)]
    pub node: String,
    /// Address of the target agent. Writer: target agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Ports of the target agent. Writer: target agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Ports>,
    /// Target QEMU waits for the stream. Writer: target agent.
    #[serde(default)]
    pub listening: bool,
    /// The guest runs on the target since. Writer: target agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resumed_at: Option<Time>,
}

/// Ports of the target agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Ports {
    /// COMMIT and ACK.
    pub control: i32,
    /// Memory and device state.
    pub memory: i32,
}

/// Source side of a move.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MigrationSource {
    /// Writer: migration controller.
    #[serde(default)]
    pub node: String,
    /// Writer: migration controller.
    #[serde(default)]
    pub pod_name: String,
    /// Writer: migration controller.
    #[serde(default, rename = "podUID")]
    pub pod_uid: String,
    /// The copy began. Writer: source agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// The guest was stopped. Writer: source agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspended_at: Option<Time>,
    /// The right to run was given up (COMMIT left). Writer: source agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gave_up_at: Option<Time>,
    /// The target acknowledged. Writer: source agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ack_at: Option<Time>,
    /// Stop of the guest as QEMU measured it, milliseconds. Writer: source agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downtime_ms: Option<i64>,
    /// The abort has been carried out and the guest runs here. Writer: source agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aborted_at: Option<Time>,
}

/// How far the copy is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// 0..100.
    pub percent: i32,
    /// Pass over the memory, from 1.
    pub iteration: i64,
    /// Bytes in all.
    pub total_bytes: i64,
    /// Bytes left in this pass.
    pub remaining_bytes: i64,
    /// Bytes sent.
    pub processed_bytes: i64,
    /// Rate at which the guest dirties memory, bytes a second.
    pub dirty_bytes_per_second: i64,
    /// How much the guest is slowed down, percent.
    pub throttle_pct: i32,
}

/// The move shall be called off.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Abort {
    /// Why: `Deleted`, `CompletionTimeout`, `ProgressTimeout`, `InstanceGone`, `Uncordoned`.
    pub reason: String,
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Time>,
}

/// Why a move failed (migration-and-maintenance.md §2.7).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Failure {
    /// Class, a CamelCase word.
    pub class: String,
    /// A sentence for people.
    pub text: String,
}
