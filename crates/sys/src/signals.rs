//! Signals as a readable descriptor, for single-threaded poll loops (supervisor, node init).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::process::Signal;

/// Lets the program end silently when the reader of its output does (`… | head`), as other programs do; Rust's
/// own way is a panic. For commands that only print.
pub fn end_with_the_reader() {
    // SAFETY: the default action is no code of ours; called before threads are started.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}

/// Signals that arrive as data instead of interrupting. The signals stay blocked in this thread and
/// in threads started later; [`crate::spawn::Command`] unblocks all in the program it starts.
#[derive(Debug)]
pub struct SignalFd(OwnedFd);

impl SignalFd {
    /// Takes over the given signals. Call before any thread is started.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(signals: &[Signal]) -> io::Result<Self> {
        // SAFETY: `set` is initialised by `sigemptyset` before use; all pointers are to live locals;
        // the returned descriptor is new and owned by nobody else.
        unsafe {
            let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
            libc::sigemptyset(set.as_mut_ptr());
            let mut set = set.assume_init();
            for signal in signals {
                libc::sigaddset(&mut set, signal.as_raw());
            }
            if libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            let fd = libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Self(OwnedFd::from_raw_fd(fd)))
        }
    }

    /// The signals that arrived since the last call (raw numbers), oldest first.
    ///
    /// # Errors
    /// The kernel's.
    pub fn take(&self) -> io::Result<Vec<i32>> {
        let mut got = Vec::new();
        loop {
            let mut info = std::mem::MaybeUninit::<libc::signalfd_siginfo>::uninit();
            let size = size_of::<libc::signalfd_siginfo>();
            // SAFETY: the buffer is `size` bytes of writable memory; it is read only after the
            // kernel filled all of it.
            let n = unsafe { libc::read(self.0.as_raw_fd(), info.as_mut_ptr().cast(), size) };
            if n == size.cast_signed() {
                // SAFETY: the kernel wrote a complete record.
                let info = unsafe { info.assume_init() };
                got.push(info.ssi_signo.cast_signed());
                continue;
            }
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock => Ok(got),
                io::ErrorKind::Interrupted => continue,
                _ => Err(error),
            };
        }
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It returned this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

/// Reaps one ended child of the calling process, whichever; `None` when there is none (left).
///
/// # Errors
/// The kernel's.
pub fn reap() -> io::Result<Option<(u32, Exit)>> {
    use rustix::process::{WaitOptions, wait};
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(None) | Err(rustix::io::Errno::CHILD) => return Ok(None),
            Ok(Some((pid, status))) => {
                let pid = pid.as_raw_nonzero().get().unsigned_abs();
                if let Some(code) = status.exit_status() {
                    return Ok(Some((pid, Exit::Code(code))));
                }
                if let Some(signal) = status.terminating_signal() {
                    return Ok(Some((pid, Exit::Signal(signal))));
                }
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
