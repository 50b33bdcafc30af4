//! The provisioning disk: a small FAT volume labelled `CIDATA` that cloud-init's NoCloud source reads.
//!
//! The same files give the same bytes, always: the target of a migration rebuilds the image and the guest
//! may have it open (spec hypervisor.md §5, vm-lifecycle.md §6.2).

use std::collections::BTreeMap;
use std::io::{Cursor, Write};

use fatfs::{Date, DateTime, FileSystem, FormatVolumeOptions, FsOptions, Time, TimeProvider};
use serde_json::json;
use sha2::{Digest, Sha256};

/// The smallest image, bytes: guests show it as `1M`.
const SIZE_MIN: usize = 1 << 20;
/// Space for tables and for the last, partly used cluster of each file, bytes.
const OVERHEAD: usize = 256 << 10;
/// Volume serial number: any fixed value.
const VOLUME_ID: u32 = 0x4846_5344;

/// Why no image could be built.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// A name that is not one plain file name.
    #[error("provisioning file {0:?}: the name must be a plain file name")]
    Name(String),
    /// The file system could not be written.
    #[error("building the provisioning disk: {0}")]
    Write(#[from] std::io::Error),
}

/// The files of a cloud-init seed. `meta-data` is JSON, which cloud-init reads as YAML. No
/// `network-config`: the guest uses DHCP.
pub fn nocloud(user_data: &str, instance_id: &str, hostname: &str) -> BTreeMap<String, String> {
    let meta = json!({ "instance-id": instance_id, "local-hostname": hostname }).to_string();
    BTreeMap::from([("user-data".to_owned(), user_data.to_owned()), ("meta-data".to_owned(), meta)])
}

/// Builds the image.
pub fn build(files: &BTreeMap<String, String>) -> Result<Vec<u8>, SeedError> {
    let content: usize = files.values().map(|f| f.len().next_multiple_of(4096)).sum();
    let size = (content + OVERHEAD).max(SIZE_MIN).next_multiple_of(SIZE_MIN);
    let mut image = vec![0; size];
    let options = FormatVolumeOptions::new().volume_label(*b"CIDATA     ").volume_id(VOLUME_ID);
    fatfs::format_volume(Cursor::new(&mut image[..]), options)?;
    let options = FsOptions::new().time_provider(&EPOCH).update_accessed_date(false);
    let volume = FileSystem::new(Cursor::new(&mut image[..]), options)?;
    for (name, text) in files {
        if name.is_empty() || name.contains(['/', '\\', '\0']) || name.starts_with('.') {
            return Err(SeedError::Name(name.clone()));
        }
        let mut file = volume.root_dir().create_file(name)?;
        file.truncate()?;
        file.write_all(text.as_bytes())?;
        file.flush()?;
    }
    volume.unmount()?;
    Ok(image)
}

/// SHA-256 of an image, lower-case hex, as a definition states it.
pub fn sha256(image: &[u8]) -> String {
    crate::definition::hex(&Sha256::digest(image))
}

/// Every time stamp is 1980-01-01, so that bytes do not depend on when the image is built.
#[derive(Debug)]
struct Epoch;

static EPOCH: Epoch = Epoch;

impl TimeProvider for Epoch {
    fn get_current_date(&self) -> Date {
        Date { year: 1980, month: 1, day: 1 }
    }

    fn get_current_date_time(&self) -> DateTime {
        DateTime { date: self.get_current_date(), time: Time { hour: 0, min: 0, sec: 0, millis: 0 } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(image: Vec<u8>, name: &str) -> String {
        use std::io::Read as _;
        let volume = FileSystem::new(Cursor::new(image), FsOptions::new()).unwrap();
        assert_eq!(volume.volume_label(), "CIDATA");
        let mut text = String::new();
        volume.root_dir().open_file(name).unwrap().read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn the_same_files_give_the_same_bytes() {
        let files = nocloud("#cloud-config\n", "i-1", "linux-vm");
        let first = build(&files).unwrap();
        assert_eq!(first.len(), 1 << 20);
        // FAT stamps count in steps of 2 s; a clock in the image would show within the digest below.
        assert_eq!(sha256(&first), sha256(&build(&files).unwrap()));
        assert_eq!(sha256(&first), "6606e0c4e31b2c0729655673579c1c662717f7b7962455cc35da23d57a9b0a65");
    }

    #[test]
    fn files_read_back() {
        let image = build(&nocloud("#cloud-config\nusers: []\n", "i-1", "linux-vm")).unwrap();
        assert_eq!(read(image.clone(), "user-data"), "#cloud-config\nusers: []\n");
        assert_eq!(read(image, "meta-data"), r#"{"instance-id":"i-1","local-hostname":"linux-vm"}"#);
    }

    #[test]
    fn large_user_data_grows_the_image() {
        let text = "x".repeat(3 << 20);
        let image = build(&nocloud(&text, "i", "h")).unwrap();
        assert_eq!(image.len(), 4 << 20);
        assert_eq!(read(image, "user-data"), text);
    }

    #[test]
    fn names_cannot_leave_the_root_directory() {
        for name in ["", "../x", "a/b", ".hidden"] {
            let files = BTreeMap::from([(name.to_owned(), String::new())]);
            assert!(matches!(build(&files), Err(SeedError::Name(_))), "{name}");
        }
    }
}
