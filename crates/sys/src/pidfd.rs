//! Process descriptors: wait for and signal processes without the danger of a reused pid.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::context;

/// A process, held by descriptor: never another process of the same pid. Readable once it has ended,
/// so it also works in `poll` and `tokio::io::unix::AsyncFd`.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// Opens a process of the caller's PID namespace; need not be a child.
    ///
    /// # Errors
    /// `NotFound` when there is no such process.
    pub fn open(pid: u32) -> io::Result<Self> {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let Some(raw) = raw else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{pid} is not a pid")));
        };
        match pidfd_open(raw, PidfdFlags::empty()) {
            Ok(fd) => Ok(Self(fd)),
            Err(rustix::io::Errno::SRCH) => {
                Err(io::Error::new(io::ErrorKind::NotFound, format!("no process {pid}")))
            }
            Err(error) => context(Err(error), || format!("open process {pid}")),
        }
    }

    /// Sends a signal. A process that has ended counts as success.
    ///
    /// # Errors
    /// `PermissionDenied`.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.0, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => context(Err(error), || "signal process".to_owned()),
        }
    }

    /// Whether the process has ended (a zombie has).
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.wait(Duration::ZERO).unwrap_or(false)
    }

    /// Waits until the process has ended; `false` when `limit` passed first.
    ///
    /// # Errors
    /// The kernel's.
    pub fn wait(&self, limit: Duration) -> io::Result<bool> {
        let deadline = std::time::Instant::now() + limit;
        loop {
            let rest = deadline.saturating_duration_since(std::time::Instant::now());
            let timeout = Timespec::try_from(rest).unwrap_or(Timespec { tv_sec: 3600, tv_nsec: 0 });
            let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
            match poll(&mut fds, Some(&timeout)) {
                Ok(0) => return Ok(false),
                Ok(_) => return Ok(true),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for PidFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_the_end_of_a_process() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let fd = PidFd::open(child.id()).unwrap();
        assert!(!fd.has_ended());
        fd.signal(Signal::KILL).unwrap();
        assert!(fd.wait(Duration::from_secs(5)).unwrap());
        child.wait().unwrap();
        fd.signal(Signal::KILL).unwrap();
    }

    #[test]
    fn missing_process_is_not_found() {
        assert_eq!(PidFd::open(i32::MAX as u32).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
