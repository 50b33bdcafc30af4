//! What controllers and the importer program agree on: the request in its arguments, the progress
//! lines on its standard output, the result in its termination message (vm-lifecycle.md §8.3).

use serde::{Deserialize, Serialize};

/// Where the volume to fill is mounted.
pub const TARGET_DIR: &str = "/target";
/// Where the volume to copy from is mounted, read-only.
pub const SOURCE_DIR: &str = "/source";
/// Where scratch space is mounted.
pub const SCRATCH_DIR: &str = "/scratch";
/// Name of the argument that carries a [`Request`] as JSON.
pub const REQUEST_ARGUMENT: &str = "--request";
/// Label on helper objects: generation of the owner they were made for.
pub const GENERATION_LABEL: &str = "internal.virtualization.deckhouse.io/import-generation";
/// Label on importer pods: [`TASK_PROBE`] or [`TASK_IMPORT`].
pub const TASK_LABEL: &str = "internal.virtualization.deckhouse.io/import-task";
/// Finds out size and format only.
pub const TASK_PROBE: &str = "probe";
/// Fills the volume.
pub const TASK_IMPORT: &str = "import";

/// What an importer shall do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Request {
    /// Where the data comes from.
    pub source: Source,
    /// File to write, raw and sparse; absent: only find out size and format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Size of the disk in bytes; absent: as large as the data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<i64>,
    /// The target is an image: ISO 9660 is allowed.
    #[serde(default)]
    pub image: bool,
}

/// Where the data comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "type")]
pub enum Source {
    /// Nothing: a blank disk of the given size.
    Blank,
    /// A download.
    Http {
        /// Address.
        url: String,
        /// Certificates to trust besides the system's, PEM.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ca_bundle: Option<String>,
        /// MD5 of the bytes received, hexadecimal.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        md5: Option<String>,
        /// SHA-256 of the bytes received, hexadecimal.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sha256: Option<String>,
    },
    /// A raw file of another volume.
    File {
        /// Path.
        path: String,
    },
}

/// One progress line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// 0..100.
    pub percent: u8,
    /// Bytes received or copied so far.
    pub transferred_bytes: u64,
    /// Average rate, bytes a second.
    pub average_bytes_per_second: u64,
    /// Rate of the last second, bytes a second.
    pub current_bytes_per_second: u64,
    /// What holds it up, a sentence; absent while all is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// How an importer ended: its termination message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "result")]
pub enum Outcome {
    /// Done.
    Done(Facts),
    /// Failed; nothing is left behind.
    Failed {
        /// A sentence for the user.
        message: String,
    },
}

/// What is known about the data.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Facts {
    /// Format of the source: `qcow2`, `raw`, `vmdk`, `vdi`, `iso`, …
    pub format: String,
    /// Size that the guest sees, bytes.
    pub virtual_size_bytes: u64,
    /// Space taken, bytes: of the target where there is one, else of the source.
    pub stored_bytes: u64,
}

impl Facts {
    /// True if the data must be mounted as a CD-ROM.
    pub fn is_cdrom(&self) -> bool {
        self.format == "iso"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_their_text_form() {
        let request = Request {
            source: Source::Http {
                url: "https://h/i".into(),
                ca_bundle: None,
                md5: None,
                sha256: Some("ab".into()),
            },
            target: Some("/target/disk.img".into()),
            size_bytes: Some(1),
            image: false,
        };
        let text = serde_json::to_string(&request).unwrap();
        assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), request);
        let outcome = Outcome::Done(Facts { format: "raw".into(), virtual_size_bytes: 1, stored_bytes: 2 });
        let text = serde_json::to_string(&outcome).unwrap();
        assert_eq!(text, r#"{"result":"done","format":"raw","virtualSizeBytes":1,"storedBytes":2}"#);
        assert_eq!(serde_json::from_str::<Outcome>(&text).unwrap(), outcome);
    }
}
