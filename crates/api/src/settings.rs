//! ModuleConfig (`deckhouse.io/v1alpha1`): the platform's settings. The object named
//! `virtualization` holds Holdfast's own (failure-and-rebalancing.md §5.4, §5.5).

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// Settings of a module.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "deckhouse.io",
    version = "v1alpha1",
    kind = "ModuleConfig",
    plural = "moduleconfigs",
    singular = "moduleconfig",
    shortname = "mc",
    status = "ModuleConfigStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "Settings of a module of the platform.",
    printcolumn(
        name = "Enabled",
        type_ = "string",
        json_path = ".spec.enabled",
        description = "Whether the module is on."
    ),
    printcolumn(
        name = "Version",
        type_ = "string",
        json_path = ".spec.version",
        description = "Version of the settings."
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp",
        description = "Time since creation."
    )
)]
#[serde(rename_all = "camelCase")]
pub struct ModuleConfigSpec {
    /// True turns the module on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Version of the settings' form; only 1 is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<i64>,
    /// Settings of the module; their form depends on its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::free_object")]
    pub settings: Option<serde_json::Value>,
}

/// Observed state of a module's settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModuleConfigStatus {
    /// Version of the settings in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// What is wrong with them; absent if nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Settings of the ModuleConfig `virtualization`. Keys not in [`KNOWN_SETTINGS`] are not built yet
/// and are refused by admission.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VirtualizationSettings {
    /// Subnets of VM addresses, IPv4 in CIDR notation.
    #[serde(rename = "virtualMachineCIDRs", default)]
    pub virtual_machine_cidrs: Vec<String>,
    /// Seconds that a released address stays with its namespace; default [`LEASE_RETENTION_S`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address_retention_seconds: Option<i64>,
    /// Image of launchers, with the QEMU in it: the "firmware" of VMs. Default: the one of this release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub launcher_image: Option<String>,
    /// Whether VMs that run another launcher image are moved to the present one; default true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware_update: Option<bool>,
    /// Time limits of moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live_migration: Option<LiveMigrationSettings>,
}

/// How long moves may take, under the names that KubeVirt's configuration has. A move keeps the values
/// it was handed over with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LiveMigrationSettings {
    /// Seconds a whole move may take for each GiB of guest memory; default 800.
    #[serde(rename = "completionTimeoutPerGiB", default, skip_serializing_if = "Option::is_none")]
    pub completion_timeout_per_gib: Option<i64>,
    /// Seconds without a byte of progress after which a move is called off; default 150.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress_timeout: Option<i64>,
}

/// Keys of [`VirtualizationSettings`].
pub const KNOWN_SETTINGS: [&str; 5] =
    ["virtualMachineCIDRs", "addressRetentionSeconds", "launcherImage", "firmwareUpdate", "liveMigration"];

/// Seconds that a released address stays with its namespace, unless set otherwise (seed 004).
pub const LEASE_RETENTION_S: i64 = 600;

impl VirtualizationSettings {
    /// The settings among all ModuleConfigs; defaults where the object is absent or unreadable
    /// (admission lets no unreadable one in).
    pub fn find<'c>(configs: impl IntoIterator<Item = &'c ModuleConfig>) -> Self {
        let ours = configs
            .into_iter()
            .find(|config| config.metadata.name.as_deref() == Some(crate::names::MODULE_CONFIG));
        ours.and_then(|config| config.spec.settings.clone())
            .and_then(|settings| serde_json::from_value(settings).ok())
            .unwrap_or_default()
    }

    /// The subnets that can be read, in the order given.
    pub fn subnets(&self) -> Vec<Subnet> {
        self.virtual_machine_cidrs.iter().filter_map(|text| Subnet::parse(text).ok()).collect()
    }

    /// The image launchers shall run; `release` is the tag of this release's own.
    pub fn launcher_image(&self, release: &str) -> String {
        let own = || format!("{}:{release}", crate::names::object::LAUNCHER_IMAGE);
        self.launcher_image.clone().unwrap_or_else(own)
    }

    /// Seconds that a released address stays with its namespace.
    pub fn lease_retention_s(&self) -> i64 {
        self.address_retention_seconds.unwrap_or(LEASE_RETENTION_S).max(0)
    }
}

/// An IPv4 subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subnet {
    /// First address.
    pub network: Ipv4Addr,
    /// Number of leading bits that are fixed.
    pub prefix: u8,
}

/// Why a text is no usable subnet.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadSubnet {
    /// Not CIDR notation.
    #[error("{0:?} is not an IPv4 subnet in CIDR notation such as 10.66.10.0/24")]
    Form(String),
    /// Bits behind the prefix are set.
    #[error("{given:?} is not aligned to its mask: write {aligned}")]
    NotAligned {
        /// As written.
        given: String,
        /// As it should be.
        aligned: String,
    },
}

impl Subnet {
    /// Parses CIDR notation; refuses a subnet that is not aligned to its mask.
    pub fn parse(text: &str) -> Result<Self, BadSubnet> {
        let form = || BadSubnet::Form(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(form)?;
        let address: Ipv4Addr = address.parse().map_err(|_| form())?;
        let prefix: u8 = prefix.parse().ok().filter(|p| *p <= 32).ok_or_else(form)?;
        let network = Ipv4Addr::from(u32::from(address) & Self::mask(prefix));
        if network == address {
            return Ok(Self { network, prefix });
        }
        Err(BadSubnet::NotAligned { given: text.to_owned(), aligned: format!("{network}/{prefix}") })
    }

    const fn mask(prefix: u8) -> u32 {
        if prefix == 0 { 0 } else { u32::MAX << (32 - prefix as u32) }
    }

    /// Number of addresses, first and last included.
    pub const fn size(self) -> u64 {
        1u64 << (32 - self.prefix as u64)
    }

    /// True if the address lies in the subnet, first and last included.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & Self::mask(self.prefix) == u32::from(self.network)
    }

    /// True if a VM may have the address: inside, and neither the first nor the last. The one
    /// address of a /32 is usable (vm-lifecycle.md §9.1).
    pub fn is_usable(self, address: Ipv4Addr) -> bool {
        if self.prefix == 32 {
            return self.contains(address);
        }
        let offset = u64::from(u32::from(address)).wrapping_sub(u64::from(u32::from(self.network)));
        self.contains(address) && offset != 0 && offset + 1 != self.size()
    }

    /// Number of addresses VMs may have.
    pub const fn usable(self) -> u64 {
        if self.prefix == 32 { 1 } else { self.size().saturating_sub(2) }
    }

    /// True if the two have an address in common.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.network) || other.contains(self.network)
    }

    /// The `n`-th usable address, counted from 0; `None` beyond the end.
    pub fn nth_usable(self, n: u64) -> Option<Ipv4Addr> {
        if n >= self.usable() {
            return None;
        }
        let offset = if self.prefix == 32 { 0 } else { u32::try_from(n + 1).ok()? };
        u32::from(self.network).checked_add(offset).map(Ipv4Addr::from)
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usable_addresses_leave_out_first_and_last() {
        let net = Subnet::parse("10.66.10.0/24").unwrap();
        assert_eq!(net.usable(), 254);
        assert_eq!(net.nth_usable(0), Some(Ipv4Addr::new(10, 66, 10, 1)));
        assert_eq!(net.nth_usable(253), Some(Ipv4Addr::new(10, 66, 10, 254)));
        assert_eq!(net.nth_usable(254), None);
        for (address, usable) in [
            ("10.66.10.0", false),
            ("10.66.10.1", true),
            ("10.66.10.254", true),
            ("10.66.10.255", false),
            ("10.66.11.1", false),
        ] {
            assert_eq!(net.is_usable(address.parse().unwrap()), usable, "{address}");
        }
        assert_eq!(Subnet::parse("10.0.0.4/31").unwrap().usable(), 0);
        let one = Subnet::parse("10.0.0.4/32").unwrap();
        assert_eq!((one.usable(), one.nth_usable(0)), (1, Some(Ipv4Addr::new(10, 0, 0, 4))));
        assert!(one.is_usable(Ipv4Addr::new(10, 0, 0, 4)));
    }

    #[test]
    fn wrong_subnets_are_named() {
        for text in ["", "10.66.10.0", "10.66.10.0/33", "10.66.10/24", "fd00::/64"] {
            assert!(matches!(Subnet::parse(text), Err(BadSubnet::Form(_))), "{text}");
        }
        assert_eq!(
            Subnet::parse("10.66.10.7/24").unwrap_err().to_string(),
            "\"10.66.10.7/24\" is not aligned to its mask: write 10.66.10.0/24"
        );
    }
}
