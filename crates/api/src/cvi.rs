//! ClusterVirtualImage (`cvi`), api.md A9: as VirtualImage, usable from every namespace.
//! Condition types are those of [`crate::vi`] (`DatasourceReady`, `Ready`, `InUse`).

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::source::{DataSource, DownloadSpeed, ImageSize, ImageUploadUrls};
use crate::vi::{ImagePhase, ImageTarget};

/// Desired image.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "virtualization.deckhouse.io",
    version = "v1alpha2",
    kind = "ClusterVirtualImage",
    plural = "clustervirtualimages",
    singular = "clustervirtualimage",
    shortname = "cvi",
    category = "virtualization-cluster",
    status = "ClusterVirtualImageStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "A read-only image usable from every namespace: source of disks, or a CD-ROM.",
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
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp",
        description = "Time since creation."
    )
)]
#[serde(rename_all = "camelCase")]
pub struct ClusterVirtualImageSpec {
    /// Source of the data.
    pub data_source: DataSource,
}

/// Observed state of a cluster image.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterVirtualImageStatus {
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
    /// Where the data is: a claim in the platform namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<ImageTarget>,
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
