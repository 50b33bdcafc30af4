//! Unix sockets in deep directories: a socket address holds 107 bytes, pod directories are longer.
//!
//! The directory is opened first and the address becomes `/proc/self/fd/<n>/<name>`.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::context;

/// Connects to the socket at `path`, however long it is.
///
/// # Errors
/// `NotFound` or `ConnectionRefused` when nobody listens there.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let (_dir, short) = shorten(path)?;
    context(UnixStream::connect(short), || format!("connect to {}", path.display()))
}

/// Listens at `path`, however long it is; a stale socket file is replaced.
///
/// # Errors
/// With the path.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    let (_dir, short) = shorten(path)?;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return context(Err(error), || format!("replace {}", path.display()));
        }
        _ => {}
    }
    context(UnixListener::bind(short), || format!("listen at {}", path.display()))
}

/// A short path to the same place, valid in this process while the descriptor lives.
///
/// # Errors
/// When the directory cannot be opened.
pub fn shorten(path: &Path) -> io::Result<(OwnedFd, PathBuf)> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let name = path.file_name().unwrap_or_default();
    let fd = context(
        rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()),
        || format!("open {}", dir.display()),
    )?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd())).join(name);
    Ok((fd, short))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn long_paths_work() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a".repeat(100)).join("b".repeat(100));
        std::fs::create_dir_all(&deep).unwrap();
        let path = deep.join("agent.sock");
        drop(bind(&path).unwrap());
        let listener = bind(&path).unwrap();
        let mut client = connect(&path).unwrap();
        client.write_all(b"x").unwrap();
        let mut one = [0];
        listener.accept().unwrap().0.read_exact(&mut one).unwrap();
        assert_eq!(&one, b"x");
        assert_eq!(connect(&deep.join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
