//! `Migration`: one live move of an Instance.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::MigrationResult;

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
    /// Nothing of the target's launcher is left, and the guest never ran there. Writer: target agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Time>,
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
    /// The guest writes faster than is copied, and is slowed down as far as it may be.
    #[serde(default)]
    pub not_converging: bool,
}

/// Reason of an [`Abort`]: the source's node is back under another boot id.
pub const ABORT_SOURCE_LOST: &str = "SourceLost";

/// The move shall be called off.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Abort {
    /// Why: `Deleted`, `CompletionTimeout`, `ProgressTimeout`, `InstanceGone`, `SourceLost`, `Uncordoned`.
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
