//! VirtualImage (`vi`), api.md A8, and the status parts that [`crate::cvi`] shares.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::macros::{condition, text_enum};
use crate::source::{DataSource, DownloadSpeed, ImageSize, ImageUploadUrls};

/// Desired image.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "virtualization.deckhouse.io",
    version = "v1alpha2",
    kind = "VirtualImage",
    plural = "virtualimages",
    singular = "virtualimage",
    shortname = "vi",
    category = "virtualization",
    namespaced,
    status = "VirtualImageStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "A read-only image of the namespace: source of disks, or a CD-ROM.",
    printcolumn(
        name = "Phase",
        type_ = "string",
        json_path = ".status.phase",
        description = "The phase of the image."
    ),
    printcolumn(
        name = "CDROM",
        type_ = "boolean",
        json_path = ".status.cdrom",
        description = "Whether the image is a CD-ROM."
    ),
    printcolumn(
        name = "Progress",
        type_ = "string",
        json_path = ".status.progress",
        description = "Progress of the import."
    ),
    printcolumn(
        name = "StoredSize",
        type_ = "string",
        json_path = ".status.size.stored",
        description = "The space the image takes.",
        priority = "1"
    ),
    printcolumn(
        name = "UnpackedSize",
        type_ = "string",
        json_path = ".status.size.unpacked",
        description = "The size the guest sees.",
        priority = "1"
    ),
    printcolumn(
        name = "Registry URL",
        type_ = "string",
        json_path = ".status.target.registryURL",
        description = "Where the image is in the registry.",
        priority = "1"
    ),
    printcolumn(
        name = "TargetPVC",
        type_ = "string",
        json_path = ".status.target.persistentVolumeClaimName",
        description = "The claim that holds the image.",
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
pub struct VirtualImageSpec {
    /// Where the image is kept.
    #[serde(default)]
    pub storage: ImageStorage,
    /// Storage class, for storage PersistentVolumeClaim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<ImageClaim>,
    /// Source of the data.
    pub data_source: DataSource,
}

/// Storage class of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageClaim {
    /// Storage class; default: the cluster's default class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub storage_class_name: Option<String>,
}

text_enum! {
    /// Where an image is kept.
    pub enum ImageStorage {
        /// The platform's image store.
        #[default]
        ContainerRegistry,
        /// A claim of the chosen storage class.
        PersistentVolumeClaim,
        /// Deprecated name of PersistentVolumeClaim.
        Kubernetes,
    }
}

text_enum! {
    /// Phase of an image.
    pub enum ImagePhase {
        /// Waiting for source or storage class.
        #[default]
        Pending,
        /// Being filled.
        Provisioning,
        /// Waiting for an upload.
        WaitForUserUpload,
        /// Usable.
        Ready,
        /// Provisioning failed.
        Failed,
        /// Being deleted.
        Terminating,
        /// Claim or volume is missing.
        PVCLost,
        /// The image is missing from its store.
        ImageLost,
    }
}

/// Observed state of an image.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualImageStatus {
    /// Phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<ImagePhase>,
    /// Format of the source: qcow2, raw, iso, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// True if it must be mounted as a CD-ROM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cdrom: Option<bool>,
    /// Size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<ImageSize>,
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
    pub target: Option<ImageTarget>,
    /// Storage class in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_class_name: Option<String>,
    /// Uid of the objectRef source.
    #[serde(rename = "sourceUID", default, skip_serializing_if = "Option::is_none")]
    pub source_uid: Option<String>,
    /// Conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::condition::list_schema")]
    pub conditions: Vec<Condition>,
    /// Generation the status speaks about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// Where an image's data is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageTarget {
    /// Address in the registry; empty where there is none.
    #[serde(rename = "registryURL", default, skip_serializing_if = "Option::is_none")]
    pub registry_url: Option<String>,
    /// The claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim_name: Option<String>,
}

condition! {
    /// The source is usable.
    DatasourceReady as "DatasourceReady" {
        /// It is.
        Ready = True "DatasourceReady",
        /// The registry's Secret is missing.
        ContainerRegistrySecretNotFound = False,
        /// The image is not ready or missing.
        ImageNotReady = False,
        /// The cluster image is not ready or missing.
        ClusterImageNotReady = False,
        /// The disk is not ready or missing.
        VirtualDiskNotReady = False,
        /// The disk is ready, but used for something else.
        VirtualDiskNotReadyForUse = False,
        /// A VM has the disk.
        VirtualDiskAttachedToVirtualMachine = False,
        /// The snapshot is not ready.
        VirtualDiskSnapshotNotReady = False,
    }
}

condition! {
    /// The image is usable.
    Ready as "Ready" {
        /// It is.
        Ready = True,
        /// Waiting for an upload.
        WaitForUserUpload = False,
        /// No upload came.
        WaitForUserUploadTimeout = False,
        /// Being filled.
        Provisioning = False,
        /// Not begun.
        ProvisioningNotStarted = False,
        /// Failed, retried.
        ProvisioningFailed = False,
        /// Failed for good.
        ProvisioningFailedTerminally = False,
        /// The storage class is not ready.
        StorageClassNotReady = False,
        /// The quota is exhausted.
        QuotaExceeded = False,
        /// The importer's image cannot be pulled.
        ImagePullFailed = False,
        /// The source is not ready.
        DatasourceNotReady = False,
        /// The image is missing from its store.
        ImageLost = False,
        /// Claim or volume is missing.
        PVCLost = False,
    }
}

condition! {
    /// The storage class is usable.
    StorageClassReady as "StorageClassReady" {
        /// It is.
        Ready = True "StorageClassReady",
        /// Missing, or no default.
        NotFound = False "StorageClassNotFound",
        /// The image is kept in the platform's store.
        DvcrTypeUsed = False "DVCRTypeUsed",
    }
}

condition! {
    /// Somebody uses the image.
    InUse as "InUse" {
        /// A VM.
        AttachedToVirtualMachine = True,
        /// Nobody.
        NotInUse = False,
    }
}
