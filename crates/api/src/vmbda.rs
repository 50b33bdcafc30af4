//! VirtualMachineBlockDeviceAttachment (`vmbda`), api.md A4. Served and validated; attaching is
//! not built yet, creation is refused by admission.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::macros::{condition, text_enum};
use crate::vm::BlockDeviceRef;

/// Which device to attach to which VM; cannot be changed.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "virtualization.deckhouse.io",
    version = "v1alpha2",
    kind = "VirtualMachineBlockDeviceAttachment",
    plural = "virtualmachineblockdeviceattachments",
    singular = "virtualmachineblockdeviceattachment",
    shortname = "vmbda",
    category = "virtualization",
    namespaced,
    status = "VirtualMachineBlockDeviceAttachmentStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "Attaches a block device to a running virtual machine.",
    printcolumn(
        name = "PHASE",
        type_ = "string",
        json_path = ".status.phase",
        description = "The phase of the attachment."
    ),
    printcolumn(
        name = "BLOCKDEVICE KIND",
        type_ = "string",
        json_path = ".spec.blockDeviceRef.kind",
        description = "The kind of the device.",
        priority = "1"
    ),
    printcolumn(
        name = "BLOCKDEVICE NAME",
        type_ = "string",
        json_path = ".spec.blockDeviceRef.name",
        description = "The name of the device.",
        priority = "1"
    ),
    printcolumn(
        name = "VIRTUAL MACHINE NAME",
        type_ = "string",
        json_path = ".status.virtualMachineName",
        description = "The virtual machine the device is attached to."
    ),
    printcolumn(
        name = "AGE",
        type_ = "date",
        json_path = ".metadata.creationTimestamp",
        description = "Time since creation."
    )
)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineBlockDeviceAttachmentSpec {
    /// VM in the same namespace.
    #[schemars(length(min = 1))]
    pub virtual_machine_name: String,
    /// The device.
    pub block_device_ref: BlockDeviceRef,
}

text_enum! {
    /// Phase of an attachment.
    pub enum VmbdaPhase {
        /// Waiting for device, VM or capacity.
        #[default]
        Pending,
        /// Being attached.
        InProgress,
        /// In the guest.
        Attached,
        /// Conflict, or not reachable from the node.
        Failed,
        /// Being detached.
        Terminating,
    }
}

/// Observed state of an attachment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineBlockDeviceAttachmentStatus {
    /// Phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<VmbdaPhase>,
    /// The VM, once attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_machine_name: Option<String>,
    /// Conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::condition::list_schema")]
    pub conditions: Vec<Condition>,
    /// Generation the status speaks about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

condition! {
    /// The device can be attached.
    BlockDeviceReady as "BlockDeviceReady" {
        /// It can.
        Ready = True "BlockDeviceReady",
        /// It cannot.
        NotReady = False "BlockDeviceNotReady",
    }
}

condition! {
    /// The VM can take the device.
    VirtualMachineReady as "VirtualMachineReady" {
        /// It can.
        Ready = True "VirtualMachineReady",
        /// It cannot.
        NotReady = False "VirtualMachineNotReady",
        /// It does not run.
        NotAttached = False,
    }
}

condition! {
    /// The device is in the guest.
    Attached as "Attached" {
        /// It is.
        Attached = True,
        /// It is not.
        NotAttached = False,
        /// Asked for.
        AttachmentRequestSent = False,
        /// Used elsewhere.
        Conflict = False,
        /// The volume is not reachable from the node.
        DeviceNotAvailableOnNode = False,
    }
}

condition! {
    /// The VM has room for the device.
    DiskAttachmentCapacityAvailable as "DiskAttachmentCapacityAvailableType" {
        /// It has.
        CapacityAvailable = True,
        /// It has not.
        CapacityReached = False,
        /// Not known.
        CapacityUnknown = Unknown,
    }
}
