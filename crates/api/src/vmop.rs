//! VirtualMachineOperation (`vmop`), api.md A3.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::macros::{condition, text_enum};

/// What to do with a VM; cannot be changed.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "virtualization.deckhouse.io",
    version = "v1alpha2",
    kind = "VirtualMachineOperation",
    plural = "virtualmachineoperations",
    singular = "virtualmachineoperation",
    shortname = "vmop",
    category = "virtualization",
    namespaced,
    status = "VirtualMachineOperationStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "One operation on a virtual machine: start, stop, restart or live migration.",
    printcolumn(
        name = "Phase",
        type_ = "string",
        json_path = ".status.phase",
        description = "The phase of the operation."
    ),
    printcolumn(
        name = "Progress",
        type_ = "string",
        json_path = ".status.progress",
        description = "Progress of a migration.",
        priority = "1"
    ),
    printcolumn(
        name = "Type",
        type_ = "string",
        json_path = ".spec.type",
        description = "The type of the operation."
    ),
    printcolumn(
        name = "VirtualMachine",
        type_ = "string",
        json_path = ".spec.virtualMachineName",
        description = "The virtual machine."
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp",
        description = "Time since creation."
    )
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "self == oldSelf", "message": "spec is immutable: create another operation"},
    {
        "rule": "self.type != 'Start' || !has(self.force) || !self.force",
        "message": "an operation of type Start cannot be forced",
    },
    {
        "rule": "self.type == 'Migrate' || !has(self.migrate)",
        "message": "migrate can be given for type Migrate only",
    },
]))]
pub struct VirtualMachineOperationSpec {
    /// What to do.
    #[serde(rename = "type")]
    pub type_: VmopType,
    /// VM in the same namespace.
    #[schemars(length(min = 1))]
    pub virtual_machine_name: String,
    /// Stop, Restart: without the graceful phase. Evict, Migrate: true throttles the guest if
    /// needed, false never does, absent leaves it to the VM's policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub force: Option<bool>,
    /// Options of type Migrate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migrate: Option<MigrateOptions>,
}

text_enum! {
    /// Type of an operation.
    pub enum VmopType {
        /// Start the VM.
        #[default]
        Start,
        /// Stop it.
        Stop,
        /// Restart it.
        Restart,
        /// Move it to any other fitting node.
        Evict,
        /// Move it, optionally to a chosen node.
        Migrate,
    }
}

impl VmopType {
    /// True for the types that move the VM.
    pub const fn is_migration(self) -> bool {
        match self {
            Self::Evict | Self::Migrate => true,
            Self::Start | Self::Stop | Self::Restart => false,
        }
    }
}

/// Options of type Migrate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MigrateOptions {
    /// Labels the target node must have, in addition to the VM's own rules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<BTreeMap<String, String>>,
}

text_enum! {
    /// Phase of an operation.
    pub enum VmopPhase {
        /// Accepted, not executing.
        #[default]
        Pending,
        /// Executing.
        InProgress,
        /// Done.
        Completed,
        /// Failed; never retried.
        Failed,
        /// Being deleted.
        Terminating,
        /// Replaced by a later operation.
        Superseded,
    }
}

impl VmopPhase {
    /// True for the phases an operation never leaves (INV-7).
    pub const fn is_final(self) -> bool {
        match self {
            Self::Completed | Self::Failed | Self::Superseded => true,
            Self::Pending | Self::InProgress | Self::Terminating => false,
        }
    }
}

/// Observed state of an operation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineOperationStatus {
    /// Phase.
    pub phase: VmopPhase,
    /// Progress of a migration, `N%`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    /// Conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::condition::list_schema")]
    pub conditions: Vec<Condition>,
    /// Generation the status speaks about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

condition! {
    /// The request was handed to the VM.
    SignalSent as "SignalSent" {
        /// It was.
        SignalSentSuccess = True,
        /// It could not be.
        SignalSentError = False,
    }
}

condition! {
    /// The operation is done.
    Completed as "Completed" {
        /// A power operation is done.
        OperationCompleted = True,
        /// A migration is done.
        Completed = True,
        /// Replaced by a later operation.
        Superseded = True,
        /// Starting.
        StartInProgress = False,
        /// Stopping.
        StopInProgress = False,
        /// Restarting.
        RestartInProgress = False,
        /// No such VM.
        VirtualMachineNotFound = False,
        /// The run policy forbids it.
        NotApplicableForVirtualMachineRunPolicy = False,
        /// The VM's phase forbids it.
        NotApplicableForVirtualMachinePhase = False,
        /// The migration policy forbids it.
        NotApplicableForLiveMigrationPolicy = False,
        /// Another operation of the VM is unfinished.
        NotReadyToBeExecuted = False,
        /// Another migration of the VM runs.
        OtherMigrationInProgress = False,
        /// The quota is exhausted.
        QuotaExceeded = False,
        /// The VM cannot be migrated yet.
        WaitingForVirtualMachineToBeReadyToMigrate = False,
        /// Queued or waiting for a slot.
        MigrationPending = False,
        /// The target pod is being placed.
        TargetScheduling = False,
        /// The target is being prepared.
        TargetPreparing = False,
        /// Memory is being copied.
        Syncing = False,
        /// The source is suspended.
        SourceSuspended = False,
        /// The target runs.
        TargetResumed = False,
        /// The target is ready, the source node is busy.
        WaitingForSyncSlot = False,
        /// The target pod cannot be placed.
        TargetUnschedulable = False,
        /// A volume fails on the target.
        TargetDiskError = False,
        /// Data left does not shrink.
        NotConverging = False,
        /// Called off.
        Aborted = False,
        /// The migration failed.
        Failed = False,
        /// The operation failed.
        OperationFailed = False,
        /// A hot-plugged disk is not shared.
        HotplugDisksNotShared = False,
        /// The migration network does not work.
        MigrationNetworkUnavailable = False,
    }
}
