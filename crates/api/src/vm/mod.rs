//! VirtualMachine (`vm`), api.md A1: spec here, the rest in the files beside.

pub mod conditions;
mod placement;
mod status;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Toleration;

pub use placement::*;
pub use status::*;

use crate::macros::text_enum;
use crate::quantity::Quantity;
use crate::schema::PERCENT_PATTERN;

/// Desired configuration of a virtual machine.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "virtualization.deckhouse.io",
    version = "v1alpha2",
    kind = "VirtualMachine",
    plural = "virtualmachines",
    singular = "virtualmachine",
    shortname = "vm",
    category = "all",
    category = "virtualization",
    namespaced,
    status = "VirtualMachineStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "A virtual machine: its resources, disks, start-up policy and placement.",
    printcolumn(
        name = "Phase",
        type_ = "string",
        json_path = ".status.phase",
        description = "The phase of the virtual machine."
    ),
    printcolumn(
        name = "Cores",
        type_ = "string",
        json_path = ".spec.cpu.cores",
        description = "The number of cores of the virtual machine.",
        priority = "1"
    ),
    printcolumn(
        name = "CoreFraction",
        type_ = "string",
        json_path = ".spec.cpu.coreFraction",
        description = "Guaranteed share of each core.",
        priority = "1"
    ),
    printcolumn(
        name = "Memory",
        type_ = "string",
        json_path = ".spec.memory.size",
        description = "The amount of memory of the virtual machine.",
        priority = "1"
    ),
    printcolumn(
        name = "Need restart",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='AwaitingRestartToApplyConfiguration')].status",
        description = "A restart is required to apply configuration changes.",
        priority = "1"
    ),
    printcolumn(
        name = "Agent",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='AgentReady')].status",
        description = "The guest agent answers.",
        priority = "1"
    ),
    printcolumn(
        name = "Migratable",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Migratable')].status",
        description = "The virtual machine can be live-migrated.",
        priority = "1"
    ),
    printcolumn(
        name = "Node",
        type_ = "string",
        json_path = ".status.nodeName",
        description = "The node the virtual machine runs on."
    ),
    printcolumn(
        name = "IPAddress",
        type_ = "string",
        json_path = ".status.ipAddress",
        description = "The IP address of the virtual machine."
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp",
        description = "Time since creation."
    )
)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineSpec {
    /// Name of the VirtualMachineClass. A change needs a restart.
    #[schemars(length(min = 1))]
    pub virtual_machine_class_name: String,
    /// Start-up policy. A change applies at once.
    #[serde(default)]
    pub run_policy: RunPolicy,
    /// Processor. A change needs a restart.
    pub cpu: CpuSpec,
    /// Memory. A change needs a restart.
    pub memory: MemorySpec,
    /// Static block devices; the order of the list is the boot order. A change needs a restart.
    #[schemars(length(min = 1, max = 16))]
    pub block_device_refs: Vec<BlockDeviceRef>,
    /// Name of an existing VirtualMachineIPAddress; without it an address is created. A change
    /// needs a restart.
    #[serde(rename = "virtualMachineIPAddressName", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub virtual_machine_ip_address_name: Option<String>,
    /// First-boot configuration. A change needs a restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provisioning: Option<Provisioning>,
    /// Device set that suits the guest. A change needs a restart.
    #[serde(default)]
    pub os_type: OsType,
    /// Firmware. A change needs a restart.
    #[serde(default)]
    pub bootloader: Bootloader,
    /// virtio devices (true) or emulated ones (false). A change needs a restart.
    #[serde(default = "yes")]
    pub enable_paravirtualization: bool,
    /// Seconds between the shutdown signal and the kill. A change needs a restart.
    #[serde(default = "grace_period")]
    #[schemars(range(min = 0))]
    pub termination_grace_period_seconds: i64,
    /// How restarts that changes require are approved.
    #[serde(default)]
    pub disruptions: Disruptions,
    /// Throttling policy of live migrations. A change applies at once.
    #[serde(default)]
    pub live_migration_policy: LiveMigrationPolicy,
    /// Node labels the virtual machine requires, as in pods. A change applies at once, by moving
    /// the virtual machine if its node no longer fits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<BTreeMap<String, String>>,
    /// Affinity rules, as in pods with two renamed fields. A change applies at once, by moving the
    /// virtual machine if its node no longer fits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<VmAffinity>,
    /// Tolerations, as in pods. A change needs a restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tolerations: Option<Vec<Toleration>>,
    /// Spread over failure domains, as in pods. A change needs a restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topology_spread_constraints: Option<Vec<VmTopologySpreadConstraint>>,
    /// Priority class, as in pods. A change needs a restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub priority_class_name: Option<String>,
    /// Networks. Only the main network is served: leave empty or give one entry of type `Main`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1))]
    pub networks: Option<Vec<NetworkSpec>>,
}

impl Default for VirtualMachineSpec {
    fn default() -> Self {
        Self {
            virtual_machine_class_name: String::new(),
            run_policy: RunPolicy::default(),
            cpu: CpuSpec::default(),
            memory: MemorySpec::default(),
            block_device_refs: Vec::new(),
            virtual_machine_ip_address_name: None,
            provisioning: None,
            os_type: OsType::default(),
            bootloader: Bootloader::default(),
            enable_paravirtualization: yes(),
            termination_grace_period_seconds: grace_period(),
            disruptions: Disruptions::default(),
            live_migration_policy: LiveMigrationPolicy::default(),
            node_selector: None,
            affinity: None,
            tolerations: None,
            topology_spread_constraints: None,
            priority_class_name: None,
            networks: None,
        }
    }
}

fn yes() -> bool {
    true
}

fn grace_period() -> i64 {
    60
}

text_enum! {
    /// Start-up policy (api.md A1.4).
    pub enum RunPolicy {
        /// Always on, even after the guest powered off.
        AlwaysOn,
        /// Always off.
        AlwaysOff,
        /// Started and stopped by operations only.
        Manual,
        /// On, unless stopped by an operation or from inside the guest.
        #[default]
        AlwaysOnUnlessStoppedManually,
    }
}

text_enum! {
    /// Device set (api.md A1.6).
    pub enum OsType {
        /// Linux and others.
        #[default]
        Generic,
        /// Windows: TPM and Hyper-V enlightenments.
        Windows,
    }
}

text_enum! {
    /// Firmware.
    pub enum Bootloader {
        /// Legacy BIOS.
        #[default]
        BIOS,
        /// UEFI.
        EFI,
        /// UEFI with Secure Boot (system management mode, persistent variables).
        EFIWithSecureBoot,
    }
}

text_enum! {
    /// Throttling policy of live migrations (api.md A3.5).
    pub enum LiveMigrationPolicy {
        /// Never throttle.
        AlwaysSafe,
        /// Throttle only when an operation forces it.
        #[default]
        PreferSafe,
        /// Always throttle when needed.
        AlwaysForced,
        /// Throttle unless an operation forbids it.
        PreferForced,
    }
}

text_enum! {
    /// Who approves a restart that changes require.
    pub enum RestartApprovalMode {
        /// The user restarts.
        #[default]
        Manual,
        /// The platform restarts as soon as it is required.
        Automatic,
    }
}

text_enum! {
    /// Kind of a block device.
    pub enum BlockDeviceKind {
        /// A disk, read-write.
        #[default]
        VirtualDisk,
        /// An image of the namespace, read-only.
        VirtualImage,
        /// An image of the cluster, read-only.
        ClusterVirtualImage,
    }
}

text_enum! {
    /// Source of the first-boot configuration.
    pub enum ProvisioningType {
        /// Inline cloud-init.
        #[default]
        UserData,
        /// cloud-init in a Secret.
        UserDataRef,
        /// Windows answer file in a Secret.
        SysprepRef,
    }
}

text_enum! {
    /// Kind of object that holds first-boot data.
    pub enum SecretKind {
        /// A Secret in the same namespace.
        #[default]
        Secret,
    }
}

text_enum! {
    /// Type of a network.
    pub enum NetworkType {
        /// The main network.
        #[default]
        Main,
    }
}

/// Processor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CpuSpec {
    /// Number of cores: 1 to 16, 18 to 32 in steps of 2, 36 to 64 in steps of 4, 72 to 248 in
    /// steps of 8.
    #[schemars(range(min = 1, max = 248))]
    pub cores: i32,
    /// Guaranteed share of each core, such as `20%`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = PERCENT_PATTERN))]
    pub core_fraction: Option<String>,
}

/// Memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MemorySpec {
    /// Amount of memory, such as `2Gi`.
    #[schemars(schema_with = "crate::schema::quantity_text")]
    pub size: Quantity,
}

/// A reference to a block device.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BlockDeviceRef {
    /// Kind of the device.
    pub kind: BlockDeviceKind,
    /// Name of the device; disks and images of a namespace are looked up in the machine's own.
    #[schemars(length(min = 1))]
    pub name: String,
}

/// First-boot configuration; exactly the source that `type` names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "self.type != 'UserData' || (has(self.userData) && !has(self.userDataRef) && !has(self.sysprepRef))",
        "message": "type UserData requires userData and cannot be combined with userDataRef or sysprepRef",
    },
    {
        "rule": "self.type != 'UserDataRef' || (has(self.userDataRef) && !has(self.userData) && !has(self.sysprepRef))",
        "message": "type UserDataRef requires userDataRef and cannot be combined with userData or sysprepRef",
    },
    {
        "rule": "self.type != 'SysprepRef' || (has(self.sysprepRef) && !has(self.userData) && !has(self.userDataRef))",
        "message": "type SysprepRef requires sysprepRef and cannot be combined with userData or userDataRef",
    },
]))]
pub struct Provisioning {
    /// Which source is given.
    #[serde(rename = "type")]
    pub type_: ProvisioningType,
    /// Inline cloud-init, at most 2048 bytes; longer data belongs into a Secret (`userDataRef`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 2048),
        extend("x-kubernetes-validations" = [{
            "rule": "size(bytes(self)) <= 2048",
            "message": "inline user data is longer than 2048 bytes: put it into a Secret and use userDataRef",
        }])
    )]
    pub user_data: Option<String>,
    /// Secret of type `provisioning.virtualization.deckhouse.io/cloud-init` with key `userData`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data_ref: Option<SecretRef>,
    /// Secret of type `provisioning.virtualization.deckhouse.io/sysprep` with key `unattend.xml`
    /// or `autounattend.xml`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sysprep_ref: Option<SecretRef>,
}

/// A Secret in the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// Kind of the object.
    #[serde(default)]
    pub kind: SecretKind,
    /// Name of the Secret.
    #[schemars(length(min = 1))]
    pub name: String,
}

/// How restarts that changes require are approved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Disruptions {
    /// Who approves. A change applies at once.
    #[serde(default)]
    pub restart_approval_mode: RestartApprovalMode,
}

/// One network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkSpec {
    /// Type of the network.
    #[serde(rename = "type")]
    pub type_: NetworkType,
    /// Number of the network; 1 is the main one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1))]
    pub id: Option<i32>,
}
