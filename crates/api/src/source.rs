//! Data sources of disks and images and what their statuses share (api.md A7.1, A7.3, A8).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::macros::text_enum;
use crate::schema::URL_PATTERN;

text_enum! {
    /// Where data comes from.
    pub enum DataSourceType {
        /// Downloaded from a URL.
        #[default]
        HTTP,
        /// Taken from a container registry.
        ContainerImage,
        /// Copied from another object.
        ObjectRef,
        /// Uploaded by the user.
        Upload,
    }
}

/// Where data comes from: exactly the field that `type` names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "self.type != 'HTTP' || (has(self.http) && !has(self.containerImage) && !has(self.objectRef))",
        "message": "type HTTP requires http and cannot be combined with containerImage or objectRef",
    },
    {
        "rule": "self.type != 'ContainerImage' || (has(self.containerImage) && !has(self.http) && !has(self.objectRef))",
        "message": "type ContainerImage requires containerImage and cannot be combined with http or objectRef",
    },
    {
        "rule": "self.type != 'ObjectRef' || (has(self.objectRef) && !has(self.http) && !has(self.containerImage))",
        "message": "type ObjectRef requires objectRef and cannot be combined with http or containerImage",
    },
    {
        "rule": "self.type != 'Upload' || (!has(self.http) && !has(self.containerImage) && !has(self.objectRef))",
        "message": "type Upload cannot be combined with http, containerImage or objectRef",
    },
]))]
pub struct DataSource {
    /// Which source is given.
    #[serde(rename = "type")]
    pub type_: DataSourceType,
    /// Download.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpSource>,
    /// Container registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_image: Option<ContainerImageSource>,
    /// Another object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object_ref: Option<ObjectRefSource>,
}

/// A download. Formats: qcow2, raw, vmdk, vdi, iso; packed with gz or xz.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpSource {
    /// http or https address.
    #[schemars(regex(pattern = URL_PATTERN))]
    pub url: String,
    /// Certificates to trust, PEM in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "byte"))]
    pub ca_bundle: Option<String>,
    /// Checksums of the downloaded file; all given ones must match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksum: Option<Checksum>,
}

/// Checksums in hexadecimal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Checksum {
    /// MD5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 32, max = 32), regex(pattern = "^[0-9a-fA-F]{32}$"))]
    pub md5: Option<String>,
    /// SHA-256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 64, max = 64), regex(pattern = "^[0-9a-fA-F]{64}$"))]
    pub sha256: Option<String>,
}

/// An image in a container registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ContainerImageSource {
    /// Image reference.
    #[schemars(length(min = 1))]
    pub image: String,
    /// Secret with the registry's credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_pull_secret: Option<ImagePullSecret>,
    /// Certificates to trust, PEM in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "byte"))]
    pub ca_bundle: Option<String>,
}

/// A Secret with a registry's credentials.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImagePullSecret {
    /// Name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Namespace; cluster images only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

text_enum! {
    /// Kind of an object to copy from.
    pub enum ObjectRefKind {
        /// An image of the namespace.
        #[default]
        VirtualImage,
        /// An image of the cluster.
        ClusterVirtualImage,
        /// A disk (not as the source of a disk).
        VirtualDisk,
        /// A snapshot of a disk.
        VirtualDiskSnapshot,
    }
}

/// An object to copy from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ObjectRefSource {
    /// Kind.
    pub kind: ObjectRefKind,
    /// Name.
    #[schemars(length(min = 1))]
    pub name: String,
    /// Namespace; cluster images only, for every kind but ClusterVirtualImage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub namespace: Option<String>,
}

/// Speed of a download.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DownloadSpeed {
    /// Average, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub avg: Option<String>,
    /// Average in bytes per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub avg_bytes: Option<String>,
    /// Current, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    /// Current in bytes per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_bytes: Option<String>,
}

/// Where to upload to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageUploadUrls {
    /// From outside the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<String>,
    /// From inside the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_cluster: Option<String>,
}

/// Size of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageSize {
    /// Space it takes, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored: Option<String>,
    /// Space it takes, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored_bytes: Option<String>,
    /// Size the guest sees, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unpacked: Option<String>,
    /// Size the guest sees, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unpacked_bytes: Option<String>,
}
