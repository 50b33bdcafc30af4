//! VirtualMachineClass (`vmclass`, `vmc`), api.md A2.

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::macros::{condition, text_enum};
use crate::quantity::Quantity;

/// Desired configuration of a class.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "virtualization.deckhouse.io",
    version = "v1alpha2",
    kind = "VirtualMachineClass",
    plural = "virtualmachineclasses",
    singular = "virtualmachineclass",
    shortname = "vmc",
    shortname = "vmclass",
    category = "virtualization-cluster",
    status = "VirtualMachineClassStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "A class of virtual machines: processor type, eligible nodes and allowed sizes.",
    printcolumn(
        name = "Phase",
        type_ = "string",
        json_path = ".status.phase",
        description = "The phase of the class."
    ),
    printcolumn(
        name = "IsDefault",
        type_ = "string",
        json_path = r".metadata.annotations.virtualmachineclass\.virtualization\.deckhouse\.io\/is-default-class",
        description = "Whether the class is the default one."
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp",
        description = "Time since creation."
    )
)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineClassSpec {
    /// Processor; cannot be changed.
    pub cpu: ClassCpu,
    /// Nodes where VMs of the class may run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<ClassNodeSelector>,
    /// Tolerations, appended after the VM's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tolerations: Option<Vec<Toleration>>,
    /// Allowed sizes; absent means no restriction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub sizing_policies: Option<Vec<SizingPolicy>>,
}

text_enum! {
    /// Processor type (api.md A2.3).
    pub enum CpuType {
        /// The model closest to the node.
        #[default]
        Host,
        /// The node's processor unchanged.
        HostPassthrough,
        /// What the selected nodes have in common.
        Discovery,
        /// A named model.
        Model,
        /// A base model plus features.
        Features,
    }
}

/// Processor of a class.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "self == oldSelf", "message": "the CPU section of a class cannot be changed: create another class"},
    {
        "rule": "!(self.type in ['Host', 'HostPassthrough']) || (!has(self.model) && !has(self.features) && !has(self.discovery))",
        "message": "types Host and HostPassthrough take no model, features or discovery",
    },
    {
        "rule": "self.type != 'Discovery' || (!has(self.model) && !has(self.features))",
        "message": "type Discovery takes no model or features",
    },
    {
        "rule": "self.type != 'Model' || (has(self.model) && !has(self.features) && !has(self.discovery))",
        "message": "type Model requires model and takes no features or discovery",
    },
    {
        "rule": "self.type != 'Features' || (has(self.features) && !has(self.model) && !has(self.discovery))",
        "message": "type Features requires features and takes no model or discovery",
    },
]))]
pub struct ClassCpu {
    /// Processor type.
    #[serde(rename = "type")]
    pub type_: CpuType,
    /// Model name, for type Model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub model: Option<String>,
    /// Required features, for type Features.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub features: Option<Vec<String>>,
    /// Where features are discovered, for type Discovery.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discovery: Option<CpuDiscovery>,
}

/// Where features are discovered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CpuDiscovery {
    /// Nodes to intersect; empty means all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<LabelSelector>,
}

/// Nodes where VMs of a class may run; both parts must hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClassNodeSelector {
    /// Labels a node must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub match_labels: Option<BTreeMap<String, String>>,
    /// Expressions a node must satisfy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub match_expressions: Option<Vec<NodeSelectorRequirement>>,
}

/// Allowed sizes for a range of cores (api.md A2.4).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SizingPolicy {
    /// The range of cores the policy is for. Required at creation (admission says so readably).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cores: Option<SizingCores>,
    /// Allowed memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<SizingMemory>,
    /// Allowed fractions in percent; empty means any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(range(min = 1, max = 100)))]
    pub core_fractions: Vec<i32>,
    /// Fraction of VMs that give none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub default_core_fraction: Option<i32>,
    /// Stored, not enforced: the VM parameter it limits does not exist.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dedicated_cores: Vec<bool>,
}

/// A range of cores.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "self.max > self.min", "message": "max must be greater than min"},
    {"rule": "!has(self.step) || self.max > self.step", "message": "max must be greater than step"},
]))]
pub struct SizingCores {
    /// Smallest number, inclusive.
    #[schemars(range(min = 1))]
    pub min: i32,
    /// Largest number, inclusive.
    #[schemars(range(max = 1024))]
    pub max: i32,
    /// Grid: min, min + step, … and always max.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub step: Option<i32>,
}

/// Allowed memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SizingMemory {
    /// Smallest total, inclusive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::quantity")]
    pub min: Option<Quantity>,
    /// Largest total, inclusive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::quantity")]
    pub max: Option<Quantity>,
    /// Grid; used only with max.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::quantity")]
    pub step: Option<Quantity>,
    /// Allowed memory per core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_core: Option<SizingPerCore>,
}

/// Allowed memory per core.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SizingPerCore {
    /// Smallest, inclusive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::quantity")]
    pub min: Option<Quantity>,
    /// Largest, inclusive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::quantity")]
    pub max: Option<Quantity>,
}

text_enum! {
    /// Phase of a class.
    pub enum VmClassPhase {
        /// Not usable yet.
        #[default]
        Pending,
        /// Usable.
        Ready,
        /// Being deleted.
        Terminating,
    }
}

/// Observed state of a class.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineClassStatus {
    /// Phase.
    pub phase: VmClassPhase,
    /// Nodes VMs of the class can use, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub available_nodes: Vec<String>,
    /// Per resource, the maximum over the available nodes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub max_allocatable_resources: BTreeMap<String, Quantity>,
    /// Features, for types Discovery and Features.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_features: Option<CpuFeatures>,
    /// Conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::condition::list_schema")]
    pub conditions: Vec<Condition>,
    /// Generation the status speaks about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// Features of a class.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CpuFeatures {
    /// Enabled ones, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub enabled: Vec<String>,
    /// Common to all available nodes but not enabled, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_enabled_common: Vec<String>,
}

condition! {
    /// VMs of the class can run.
    Ready as "Ready" {
        /// Nodes were found.
        SuitableNodesFound = True,
        /// No node fits.
        NoSuitableNodesFound = False,
        /// No feature is enabled.
        NoCpuFeaturesEnabled = False,
    }
}

condition! {
    /// Features were discovered.
    Discovered as "Discovered" {
        /// They were.
        DiscoverySucceeded = True,
        /// They were not.
        DiscoveryFailed = False,
        /// The type needs no discovery.
        DiscoverySkip = False,
    }
}

condition! {
    /// Deletion waits for VMs of the class.
    InUse as "InUse" {
        /// VMs name the class.
        VirtualMachineClassInUse = True,
    }
}
