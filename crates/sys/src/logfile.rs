//! Log files of daemons: appended to, and set aside when they have grown too large.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use crate::context;

/// Size at which a log is set aside at the next opening.
pub const MAX_BYTES: u64 = 8 << 20;

/// Opens a log for appending, creating its directory. A log of more than [`MAX_BYTES`] becomes
/// `<name>.old` first, replacing the one before.
///
/// # Errors
/// With the path.
pub fn open(path: &Path) -> io::Result<File> {
    if let Some(dir) = path.parent() {
        context(std::fs::create_dir_all(dir), || format!("create {}", dir.display()))?;
    }
    if std::fs::metadata(path).is_ok_and(|metadata| metadata.len() > MAX_BYTES) {
        let mut old = path.as_os_str().to_owned();
        old.push(".old");
        context(std::fs::rename(path, old), || format!("set {} aside", path.display()))?;
    }
    context(OpenOptions::new().create(true).append(true).open(path), || {
        format!("open log {}", path.display())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn a_large_log_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("logs/a.log");
        open(&path).unwrap().write_all(b"one\n").unwrap();
        open(&path).unwrap().write_all(b"two\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"one\ntwo\n");
        File::options().write(true).open(&path).unwrap().set_len(MAX_BYTES + 1).unwrap();
        open(&path).unwrap().write_all(b"new\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new\n");
        assert!(dir.path().join("logs/a.log.old").exists());
    }
}
