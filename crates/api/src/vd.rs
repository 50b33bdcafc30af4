//! VirtualDisk (`vd`), api.md A7.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::macros::{condition, text_enum};
use crate::quantity::Quantity;
use crate::source::{DataSource, DownloadSpeed, ImageUploadUrls};

/// Desired disk.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "virtualization.deckhouse.io",
    version = "v1alpha2",
    kind = "VirtualDisk",
    plural = "virtualdisks",
    singular = "virtualdisk",
    shortname = "vd",
    category = "virtualization",
    namespaced,
    status = "VirtualDiskStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "A disk for virtual machines: blank, or filled from a source.",
    printcolumn(
        name = "Phase",
        type_ = "string",
        json_path = ".status.phase",
        description = "The phase of the disk."
    ),
    printcolumn(
        name = "Capacity",
        type_ = "string",
        json_path = ".status.capacity",
        description = "The size of the disk."
    ),
    printcolumn(
        name = "InUse",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='InUse')].status",
        description = "Whether the disk is in use.",
        priority = "1"
    ),
    printcolumn(
        name = "VirtualMachine",
        type_ = "string",
        json_path = ".status.attachedToVirtualMachines[?(@.mounted==true)].name",
        description = "The virtual machine that has the disk."
    ),
    printcolumn(
        name = "Progress",
        type_ = "string",
        json_path = ".status.progress",
        description = "Progress of the import.",
        priority = "1"
    ),
    printcolumn(
        name = "StorageClass",
        type_ = "string",
        json_path = ".status.storageClassName",
        description = "The storage class in use.",
        priority = "1"
    ),
    printcolumn(
        name = "TargetPVC",
        type_ = "string",
        json_path = ".status.target.persistentVolumeClaimName",
        description = "The claim that holds the disk.",
        priority = "1"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp",
        description = "Time since creation."
    )
)]
#[serde(rename_all = "camelCase")]
pub struct VirtualDiskSpec {
    /// Source of the data; absent means a blank disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_source: Option<DataSource>,
    /// Size and storage class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<DiskClaim>,
}

/// Size and storage class of a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DiskClaim {
    /// Size; required without a source. It may only grow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::quantity")]
    pub size: Option<Quantity>,
    /// Storage class; default: the cluster's default class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub storage_class_name: Option<String>,
}

text_enum! {
    /// Phase of a disk.
    pub enum VdPhase {
        /// Waiting for source or storage class.
        #[default]
        Pending,
        /// Being created or filled.
        Provisioning,
        /// Waiting for an upload.
        WaitForUserUpload,
        /// Waiting for a scheduled VM.
        WaitForFirstConsumer,
        /// Usable.
        Ready,
        /// Growing.
        Resizing,
        /// Provisioning failed.
        Failed,
        /// Claim or volume is missing.
        PVCLost,
        /// Being exported.
        Exporting,
        /// Being moved to other storage.
        Migrating,
        /// Being deleted.
        Terminating,
    }
}

/// Observed state of a disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualDiskStatus {
    /// Phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<VdPhase>,
    /// Capacity of the bound claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<String>,
    /// Progress of the import, `N%`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    /// Speed of the import.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub download_speed: Option<DownloadSpeed>,
    /// Where to upload to.
    #[serde(rename = "imageUploadURLs", default, skip_serializing_if = "Option::is_none")]
    pub image_upload_urls: Option<ImageUploadUrls>,
    /// Deprecated form of imageUploadURLs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload_command: Option<String>,
    /// Where the data is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<DiskTarget>,
    /// Storage class in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_class_name: Option<String>,
    /// Uid of the objectRef source.
    #[serde(rename = "sourceUID", default, skip_serializing_if = "Option::is_none")]
    pub source_uid: Option<String>,
    /// VMs that refer to the disk; at most one mounts it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attached_to_virtual_machines: Vec<AttachedVm>,
    /// How long creation took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stats: Option<DiskStats>,
    /// Conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::condition::list_schema")]
    pub conditions: Vec<Condition>,
    /// Generation the status speaks about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// Where a disk's data is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DiskTarget {
    /// The claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim_name: Option<String>,
}

/// A VM that refers to a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AttachedVm {
    /// Name of the VM.
    pub name: String,
    /// True if it has the disk.
    #[serde(default)]
    pub mounted: bool,
}

/// How long creation took.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DiskStats {
    /// Durations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation_duration: Option<CreationDuration>,
}

/// Durations as text such as `12.5s`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CreationDuration {
    /// Until everything it depends on was there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::nullable_text")]
    pub waiting_for_dependencies: Option<String>,
    /// In the image store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::nullable_text")]
    pub dvcr_provisioning: Option<String>,
    /// Altogether.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::nullable_text")]
    pub total_provisioning: Option<String>,
}

condition! {
    /// The source is usable.
    DatasourceReady as "DatasourceReady" {
        /// It is.
        Ready = True "DatasourceReady",
        /// The registry's Secret is missing.
        ContainerRegistrySecretNotFound = False,
        /// The image is not ready.
        ImageNotReady = False,
        /// The cluster image is not ready.
        ClusterImageNotReady = False,
        /// The snapshot is not ready.
        VirtualDiskSnapshot = False,
        /// The image is missing.
        ImageNotFound = False,
        /// The cluster image is missing.
        ClusterImageNotFound = False,
    }
}

condition! {
    /// The disk is usable.
    Ready as "Ready" {
        /// It is.
        Ready = True,
        /// Waiting for an upload.
        WaitForUserUpload = False,
        /// No upload came.
        WaitForUserUploadTimeout = False,
        /// Being created or filled.
        Provisioning = False,
        /// Not begun.
        ProvisioningNotStarted = False,
        /// Waiting for a scheduled VM.
        WaitingForFirstConsumer = False,
        /// Failed, retried.
        ProvisioningFailed = False,
        /// Failed for good.
        ProvisioningFailedTerminally = False,
        /// Claim or volume is missing.
        PVCLost = False,
        /// Being exported.
        Exporting = False,
        /// The quota is exhausted.
        QuotaExceeded = False,
        /// The importer's image cannot be pulled.
        ImagePullFailed = False,
        /// The source is not ready.
        DatasourceIsNotReady = False,
        /// The source is missing.
        DatasourceIsNotFound = False,
        /// The storage class is not ready.
        StorageClassIsNotReady = False,
        /// Source and storage class belong to different provisioners.
        StorageClassProvisionerMismatch = False,
    }
}

condition! {
    /// The storage class is usable.
    StorageClassReady as "StorageClassReady" {
        /// It is.
        Ready = True "StorageClassReady",
        /// Missing, being deleted, or no default.
        NotReady = False "StorageClassNotReady",
    }
}

condition! {
    /// Somebody uses the disk.
    InUse as "InUse" {
        /// A VM.
        AttachedToVirtualMachine = True,
        /// An image is made from it.
        UsedForImageCreation = True,
        /// It is exported.
        UsedForDataExport = True,
        /// Nobody.
        NotInUse = False,
    }
}

condition! {
    /// The disk grows.
    Resizing as "Resizing" {
        /// Under way.
        InProgress = True,
        /// Not possible now.
        NotAvailable = False,
    }
}

condition! {
    /// A snapshot of the disk is being taken.
    Snapshotting as "Snapshotting" {
        /// Under way.
        Snapshotting = True,
        /// Not possible now.
        NotAvailable = False,
    }
}
