//! Status of an `Instance`: state, claim, exit, reports, the move under way.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::any_object;

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
    /// What the launcher of `activePod` was made from. Writer: engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<InstanceFirmware>,
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
    /// Who set the mark: `Eviction`, `Rebalance`. Writer: as above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evacuation_source: Option<String>,
    /// The version of that node (its resourceVersion, as a number) in which a drain had it closed: as soon as a later
    /// one is open, the mark holds no more. Writer: as above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evacuation_node_version: Option<i64>,
    /// A node that a drain wants empty, and that this VM cannot leave. Writer: eviction hook sets, evacuation
    /// controller clears.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evacuation_blocked_node: Option<String>,
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

/// What a launcher was made from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceFirmware {
    /// Uid of the launcher pod this speaks of.
    #[serde(rename = "podUID")]
    pub pod_uid: String,
    /// Its image.
    pub image: String,
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
    /// `id` of the disk in `spec.hardware.disks`.
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
    /// Why the last one failed, a sentence for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
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
