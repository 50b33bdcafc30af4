//! Files that are either the old or the new content after a crash, never half of one.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::{context, other};

/// Replaces `path` by `bytes`: temporary file, fsync, rename, fsync of the directory. When this
/// returns the content survives power loss. Mode 0600 unless `mode` says otherwise.
///
/// # Errors
/// With path and step; the old content is then still there.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let (dir, name) = split(path)?;
    let temporary = dir.join(format!(".{name}.{}.tmp", std::process::id()));
    let result = (|| {
        let mut file =
            OpenOptions::new().create(true).truncate(true).write(true).mode(mode).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        sync_dir(dir)
    })();
    if result.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    context(result, || format!("write {}", path.display()))
}

/// Removes `path` and makes the removal durable. A missing file is success.
///
/// # Errors
/// With path and step.
pub fn remove(path: &Path) -> io::Result<()> {
    let (dir, _) = split(path)?;
    match std::fs::remove_file(path) {
        Ok(()) => context(sync_dir(dir), || format!("remove {}", path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => context(Err(error), || format!("remove {}", path.display())),
    }
}

/// Flushes the entries of a directory to disk.
///
/// # Errors
/// The kernel's.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn split(path: &Path) -> io::Result<(&Path, &str)> {
    let name = path.file_name().and_then(|name| name.to_str());
    match (path.parent(), name) {
        (Some(dir), Some(name)) if !dir.as_os_str().is_empty() => Ok((dir, name)),
        _ => Err(other(format!("{} has no directory or no plain name", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_content_and_leaves_no_temporary_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        write(&path, b"one", 0o600).unwrap();
        write(&path, b"two", 0o600).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn error_names_the_path() {
        let error = write(Path::new("/no/such/dir/record"), b"", 0o600).unwrap_err();
        assert!(error.to_string().contains("/no/such/dir/record"));
    }
}
