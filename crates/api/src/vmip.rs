//! VirtualMachineIPAddress (`vmip`), api.md A5.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::macros::{condition, text_enum};

/// Desired address.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "virtualization.deckhouse.io",
    version = "v1alpha2",
    kind = "VirtualMachineIPAddress",
    plural = "virtualmachineipaddresses",
    singular = "virtualmachineipaddress",
    shortname = "vmip",
    category = "virtualization",
    namespaced,
    status = "VirtualMachineIPAddressStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "An IP address for a virtual machine.",
    printcolumn(
        name = "Address",
        type_ = "string",
        json_path = ".status.address",
        description = "The assigned address."
    ),
    printcolumn(
        name = "Status",
        type_ = "string",
        json_path = ".status.phase",
        description = "The phase of the address."
    ),
    printcolumn(
        name = "VM",
        type_ = "string",
        json_path = ".status.virtualMachineName",
        description = "The virtual machine that uses the address."
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp",
        description = "Time since creation."
    )
)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineIPAddressSpec {
    /// How the address is chosen.
    #[serde(rename = "type")]
    pub type_: IpAddressType,
    /// The address, for type Static; it must lie in one of the configured subnets.
    #[serde(rename = "staticIP", default, skip_serializing_if = "Option::is_none")]
    pub static_ip: Option<String>,
}

text_enum! {
    /// How an address is chosen.
    pub enum IpAddressType {
        /// A random free one.
        #[default]
        Auto,
        /// The given one.
        Static,
    }
}

text_enum! {
    /// Phase of an address.
    pub enum VmipPhase {
        /// No lease yet.
        #[default]
        Pending,
        /// Leased, not used.
        Bound,
        /// Leased and used by a VM.
        Attached,
    }
}

/// Observed state of an address.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineIPAddressStatus {
    /// The assigned address; never changes afterwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The VM that uses it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_machine_name: Option<String>,
    /// Phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<VmipPhase>,
    /// Conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::condition::list_schema")]
    pub conditions: Vec<Condition>,
    /// Generation the status speaks about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

condition! {
    /// The address is leased.
    Bound as "Bound" {
        /// It is.
        Bound = True,
        /// The lease is being made, held by another address, or in another namespace.
        LeaseNotReady = False "VirtualMachineIPAddressLeaseNotReady",
        /// The address belongs to an existing lease.
        LeaseAlreadyExists = False "VirtualMachineIPAddressLeaseAlreadyExists",
        /// The address is known, its lease is gone.
        LeaseLost = False "VirtualMachineIPAddressLeaseLost",
        /// Creating the lease raced.
        LeaseNotFound = False "VirtualMachineIPAddressLeaseNotFound",
        /// Outside all subnets.
        OutOfRange = False "VirtualMachineIPAddressIsOutOfTheValidRange",
    }
}

condition! {
    /// A VM uses the address.
    Attached as "Attached" {
        /// One does.
        Attached = True,
        /// None does.
        VirtualMachineNotFound = False,
    }
}
