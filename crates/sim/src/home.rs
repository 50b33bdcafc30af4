//! The directory of a history. Simulated processes see it under a path that is the same in every history, in
//! whatever directory and process it runs: paths get into objects, records and hashes.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

/// Number of the open directory: above what a process has open otherwise.
const NUMBER: i32 = 200;

/// The files of a history; they go when it is dropped.
#[derive(Debug)]
pub struct Home {
    path: PathBuf,
    _open: OwnedFd,
    _directory: tempfile::TempDir,
}

impl Home {
    /// An empty directory, in memory where there is room for it.
    ///
    /// # Errors
    /// It cannot be made or opened.
    pub fn new() -> io::Result<Self> {
        let memory = Path::new("/dev/shm");
        let base = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let directory = tempfile::Builder::new().prefix("holdfast-sim-").tempdir_in(base)?;
        let open = rustix::io::fcntl_dupfd_cloexec(std::fs::File::open(directory.path())?, NUMBER)?;
        if open.as_raw_fd() != NUMBER {
            let what = format!("file number {NUMBER} is taken: this process has too many files open");
            return Err(io::Error::other(what));
        }
        let path = PathBuf::from(format!("/proc/self/fd/{NUMBER}"));
        Ok(Self { path, _open: open, _directory: directory })
    }

    /// Its path, the same in every history.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_says_nothing_of_the_directory_and_the_files_go_with_it() {
        let home = Home::new().unwrap();
        let (real, seen) = (std::fs::read_link(home.path()).unwrap(), home.path().to_owned());
        std::fs::create_dir_all(seen.join("a/b")).unwrap();
        std::fs::write(seen.join("a/b/c"), "x").unwrap();
        assert_eq!(std::fs::read(real.join("a/b/c")).unwrap(), b"x");
        std::fs::remove_dir_all(seen.join("a")).unwrap();
        drop(home);
        assert!(!real.exists());
        assert_eq!(Home::new().unwrap().path(), seen);
    }
}
