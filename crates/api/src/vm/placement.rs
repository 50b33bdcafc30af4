//! Placement of a VM: affinity and topology spread (api.md A1.2a, A1.2b). Same structure as in
//! pods; two fields are renamed because the terms match VMs and pods alike.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::macros::text_enum;

/// Affinity rules of a VM.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VmAffinity {
    /// Rules about nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_affinity: Option<core::NodeAffinity>,
    /// Rules that attract to VMs and pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_machine_and_pod_affinity: Option<VmPodAffinity>,
    /// Rules that keep away from VMs and pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_machine_and_pod_anti_affinity: Option<VmPodAffinity>,
}

/// Rules about the neighbourhood of other VMs and pods.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VmPodAffinity {
    /// Terms that must all hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub required_during_scheduling_ignored_during_execution: Option<Vec<core::PodAffinityTerm>>,
    /// Terms that are preferred.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preferred_during_scheduling_ignored_during_execution: Option<Vec<WeightedVmPodTerm>>,
}

/// A preferred term.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WeightedVmPodTerm {
    /// Weight, 1 to 100.
    #[schemars(range(min = 1, max = 100))]
    pub weight: i32,
    /// The term.
    pub virtual_machine_and_pod_affinity_term: core::PodAffinityTerm,
}

text_enum! {
    /// What happens when a spread constraint cannot be met.
    pub enum WhenUnsatisfiable {
        /// Wait.
        #[default]
        DoNotSchedule,
        /// Prefer nodes that meet it.
        ScheduleAnyway,
    }
}

/// Spread of VMs over failure domains.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VmTopologySpreadConstraint {
    /// Largest difference between domains, above 0.
    #[schemars(range(min = 1))]
    pub max_skew: i32,
    /// Node label whose values are the domains.
    #[schemars(length(min = 1))]
    pub topology_key: String,
    /// What happens when it cannot be met.
    pub when_unsatisfiable: WhenUnsatisfiable,
    /// Which VMs and pods are counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label_selector: Option<LabelSelector>,
}

impl VmAffinity {
    /// The same rules in the words of a pod.
    pub fn to_pod(&self) -> core::Affinity {
        core::Affinity {
            node_affinity: self.node_affinity.clone(),
            pod_affinity: self.virtual_machine_and_pod_affinity.as_ref().map(|a| core::PodAffinity {
                required_during_scheduling_ignored_during_execution: a
                    .required_during_scheduling_ignored_during_execution
                    .clone(),
                preferred_during_scheduling_ignored_during_execution: a.preferred_for_pods(),
            }),
            pod_anti_affinity: self.virtual_machine_and_pod_anti_affinity.as_ref().map(|a| {
                core::PodAntiAffinity {
                    required_during_scheduling_ignored_during_execution: a
                        .required_during_scheduling_ignored_during_execution
                        .clone(),
                    preferred_during_scheduling_ignored_during_execution: a.preferred_for_pods(),
                }
            }),
        }
    }
}

impl VmPodAffinity {
    fn preferred_for_pods(&self) -> Option<Vec<core::WeightedPodAffinityTerm>> {
        let terms = self.preferred_during_scheduling_ignored_during_execution.as_ref()?;
        Some(
            terms
                .iter()
                .map(|t| core::WeightedPodAffinityTerm {
                    weight: t.weight,
                    pod_affinity_term: t.virtual_machine_and_pod_affinity_term.clone(),
                })
                .collect(),
        )
    }
}

impl VmTopologySpreadConstraint {
    /// The same constraint in the words of a pod.
    pub fn to_pod(&self) -> core::TopologySpreadConstraint {
        core::TopologySpreadConstraint {
            max_skew: self.max_skew,
            topology_key: self.topology_key.clone(),
            when_unsatisfiable: self.when_unsatisfiable.to_string(),
            label_selector: self.label_selector.clone(),
            ..Default::default()
        }
    }
}
