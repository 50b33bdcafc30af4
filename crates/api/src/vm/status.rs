//! Status of a VirtualMachine (api.md A1.7, A1.8).

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{BlockDeviceKind, NetworkType};
use crate::macros::text_enum;
use crate::quantity::Quantity;

text_enum! {
    /// Phase of a VM (api.md A1.8).
    pub enum VmPhase {
        /// Just created, or waiting for what it depends on.
        #[default]
        Pending,
        /// Being placed or booting.
        Starting,
        /// The guest runs.
        Running,
        /// The guest runs and is being moved.
        Migrating,
        /// Shutting down or rebooting.
        Stopping,
        /// No instance, no compute consumed.
        Stopped,
        /// Being deleted.
        Terminating,
        /// The guest is paused.
        Pause,
        /// Reserved; never set.
        Degraded,
    }
}

text_enum! {
    /// Result of a migration; absent while it runs.
    pub enum MigrationResult {
        /// The guest runs on the target.
        #[default]
        Succeeded,
        /// The guest stayed on the source.
        Failed,
    }
}

/// What happens to a field at the next restart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ChangeOperation {
    /// Added.
    Add,
    /// Removed.
    Remove,
    /// Replaced.
    #[default]
    Replace,
}

/// Observed state of a VM.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineStatus {
    /// Phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<VmPhase>,
    /// Node of the running instance; empty when stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// Address of the bound VirtualMachineIPAddress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_address: Option<String>,
    /// Name of the VirtualMachineIPAddress in use.
    #[serde(rename = "virtualMachineIPAddressName", default, skip_serializing_if = "Option::is_none")]
    pub virtual_machine_ip_address_name: Option<String>,
    /// Generation that every condition speaks about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Devices: static ones as mounted, then hot-plugged ones, then those not yet attached.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub block_device_refs: Vec<BlockDeviceStatus>,
    /// What the guest agent says about the operating system.
    #[serde(rename = "guestOSInfo", default, skip_serializing_if = "Option::is_none")]
    pub guest_os_info: Option<GuestOsInfo>,
    /// Conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::condition::list_schema")]
    pub conditions: Vec<Condition>,
    /// Changes that wait for a restart.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::free_objects")]
    pub restart_awaiting_changes: Vec<RestartAwaitingChange>,
    /// Launcher pods; two during a migration.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub virtual_machine_pods: Vec<VmPod>,
    /// Last migration of the current instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration_state: Option<VmMigrationState>,
    /// Hypervisor versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub versions: Option<Versions>,
    /// Resources of the running instance; from spec when stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<VmResources>,
    /// Phase history and start-up times.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stats: Option<VmStats>,
    /// Networks of the running instance.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<NetworkStatus>,
}

/// One device of a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BlockDeviceStatus {
    /// Kind of the device.
    pub kind: BlockDeviceKind,
    /// Name of the device.
    pub name: String,
    /// Size; empty if unknown.
    pub size: String,
    /// True if the instance has it.
    pub attached: bool,
    /// Name of the device in the guest, such as `sda`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// True if attached at run time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hotplugged: Option<bool>,
    /// The attachment that attached it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_machine_block_device_attachment_name: Option<String>,
}

/// The guest's operating system; fields the agent does not give are absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct GuestOsInfo {
    /// Identifier, such as `debian`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// Name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Name for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub pretty_name: String,
    /// Version.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// Version identifier.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version_id: String,
    /// Kernel release.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kernel_release: String,
    /// Kernel version.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kernel_version: String,
    /// Machine hardware name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub machine: String,
}

/// A change that waits for a restart (api.md A1.3).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RestartAwaitingChange {
    /// `add`, `remove` or `replace`.
    pub operation: ChangeOperation,
    /// Path below spec, such as `cpu.cores` or `blockDeviceRefs.0`.
    pub path: String,
    /// Value in effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_value: Option<serde_json::Value>,
    /// Value in spec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired_value: Option<serde_json::Value>,
}

/// A launcher pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VmPod {
    /// Name of the pod.
    pub name: String,
    /// True for the pod that runs the guest.
    pub active: bool,
}

/// Last migration of an instance.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VmMigrationState {
    /// When the transfer began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::nullable_time")]
    pub start_timestamp: Option<Time>,
    /// When it ended; absent while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::nullable_time")]
    pub end_timestamp: Option<Time>,
    /// Where it came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<VmMigrationSide>,
    /// Where it went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<VmMigrationSide>,
    /// How it ended; absent while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<MigrationResult>,
}

/// One side of a migration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VmMigrationSide {
    /// Node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Launcher pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
}

/// Hypervisor versions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Versions {
    /// QEMU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qemu: Option<String>,
    /// libvirt; always absent, Holdfast does not use it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub libvirt: Option<String>,
}

/// Resources of a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VmResources {
    /// Processor.
    pub cpu: VmCpuResources,
    /// Memory.
    pub memory: VmMemoryResources,
}

/// Processor of a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VmCpuResources {
    /// Number of cores.
    pub cores: i32,
    /// Guaranteed share, such as `10%`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub core_fraction: Option<String>,
    /// cores × share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested_cores: Option<Quantity>,
    /// What the pod requests beyond that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_overhead: Option<Quantity>,
    /// Sockets and cores per socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topology: Option<CpuTopology>,
}

/// Sockets and cores per socket (api.md A1.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CpuTopology {
    /// Sockets.
    pub sockets: i32,
    /// Cores per socket.
    pub cores_per_socket: i32,
}

/// Memory of a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VmMemoryResources {
    /// Memory the guest runs with.
    pub size: Quantity,
    /// What the pod needs beyond that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_overhead: Option<Quantity>,
}

/// Phase history and start-up times.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VmStats {
    /// The last five phase changes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub phases_transitions: Vec<PhaseTransition>,
    /// How long starting took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub launch_time_duration: Option<LaunchTimeDuration>,
    /// When the guest started running last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_start_time: Option<Time>,
}

/// A phase change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PhaseTransition {
    /// The phase entered.
    pub phase: VmPhase,
    /// When.
    pub timestamp: Time,
}

/// How long starting took; duration text such as `12.5s`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LaunchTimeDuration {
    /// Pending to Starting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::nullable_text")]
    pub waiting_for_dependencies: Option<String>,
    /// Starting to Running.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::nullable_text")]
    pub virtual_machine_starting: Option<String>,
    /// Running to the first answer of the guest agent.
    #[serde(rename = "guestOSAgentStarting", default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::nullable_text")]
    pub guest_os_agent_starting: Option<String>,
}

/// A network of the running instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkStatus {
    /// Type of the network.
    #[serde(rename = "type")]
    pub type_: NetworkType,
    /// Number of the network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<i32>,
    /// Hardware address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac_address: Option<String>,
}
