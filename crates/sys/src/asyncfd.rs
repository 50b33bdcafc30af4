//! Descriptors in an async runtime: the safe door to [`AsyncFd`], whose own constructor leaves it to
//! the caller that the descriptor stays the same.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

use crate::pidfd::PidFd;

/// Registers an owned descriptor with the current runtime. It should be non-blocking.
///
/// # Errors
/// The runtime's, e.g. for regular files.
pub fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is one open descriptor for as long as it exists and `AsyncFd` owns it.
    unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)
}

/// Registers a process; readable once it has ended.
///
/// # Errors
/// The runtime's.
pub fn register_process(process: PidFd) -> io::Result<AsyncFd<PidFd>> {
    // SAFETY: a `PidFd` owns one descriptor, never changes it, and `AsyncFd` owns the `PidFd`.
    unsafe { AsyncFd::register(process) }.map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_of_a_process_wakes_the_task() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = register_process(PidFd::open(child.id()).unwrap()).unwrap();
        process.get_ref().signal(rustix::process::Signal::KILL).unwrap();
        let limit = std::time::Duration::from_secs(5);
        tokio::time::timeout(limit, process.readable()).await.unwrap().unwrap().retain_ready();
        child.wait().unwrap();
    }
}
