//! VirtualMachineIPAddressLease (`vmipl`), api.md A6. Created by the platform only. Named `ip-`
//! and the IPv4 address with dashes.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

use crate::macros::{condition, text_enum};

/// Who holds the lease.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "virtualization.deckhouse.io",
    version = "v1alpha2",
    kind = "VirtualMachineIPAddressLease",
    plural = "virtualmachineipaddressleases",
    singular = "virtualmachineipaddresslease",
    shortname = "vmipl",
    shortname = "vmiplease",
    category = "virtualization-cluster",
    status = "VirtualMachineIPAddressLeaseStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "The reservation of one IP address in the whole cluster.",
    printcolumn(
        name = "VirtualMachineIPAddress",
        type_ = "string",
        json_path = ".spec.virtualMachineIPAddressRef",
        description = "The address object that holds the lease."
    ),
    printcolumn(
        name = "Status",
        type_ = "string",
        json_path = ".status.phase",
        description = "The phase of the lease."
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp",
        description = "Time since creation."
    )
)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineIPAddressLeaseSpec {
    /// The VirtualMachineIPAddress; after release the name is empty, the namespace stays.
    #[serde(rename = "virtualMachineIPAddressRef", default, skip_serializing_if = "Option::is_none")]
    pub virtual_machine_ip_address_ref: Option<IpAddressRef>,
}

/// Reference to a VirtualMachineIPAddress.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IpAddressRef {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
}

text_enum! {
    /// Phase of a lease.
    pub enum VmiplPhase {
        /// Held.
        #[default]
        Bound,
        /// Not held; kept for its retention time.
        Released,
    }
}

/// Observed state of a lease.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineIPAddressLeaseStatus {
    /// Phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<VmiplPhase>,
    /// Conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::condition::list_schema")]
    pub conditions: Vec<Condition>,
    /// Generation the status speaks about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

condition! {
    /// The lease is held.
    Bound as "Bound" {
        /// It is.
        Bound = True,
        /// It is not.
        Released = False,
    }
}

/// Name of the lease of an address: `ip-10-66-10-14`.
pub fn lease_name(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("ip-{a}-{b}-{c}-{d}")
}

/// The address a lease name stands for; `None` if the name is not one of [`lease_name`].
pub fn lease_address(name: &str) -> Option<Ipv4Addr> {
    let address: Ipv4Addr = name.strip_prefix("ip-")?.replace('-', ".").parse().ok()?;
    (lease_name(address) == name).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lease_names_and_addresses_match() {
        assert_eq!(lease_name(Ipv4Addr::new(10, 66, 10, 14)), "ip-10-66-10-14");
        assert_eq!(lease_address("ip-10-66-10-14"), Some(Ipv4Addr::new(10, 66, 10, 14)));
        for name in ["ip-10-66-10", "ip-10-66-10-256", "10-66-10-14", "ip-10.66.10.14", "ip-1-2-3-04"] {
            assert_eq!(lease_address(name), None, "{name}");
        }
    }
}
