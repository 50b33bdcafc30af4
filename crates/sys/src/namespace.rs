//! Network, mount, PID and UTS namespaces of the calling **thread**.
//!
//! Linux keeps namespaces per thread. Call these on a thread of your own (or in a single-threaded
//! process), never on a thread of an async runtime that runs other tasks.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use crate::context;

fn unshare(flags: UnshareFlags, what: &str) -> io::Result<()> {
    // SAFETY: none of the flags used in this module (new network, mount, UTS or PID namespace)
    // unshares the descriptor table, which is what makes `unshare` unsafe.
    let result = unsafe { rustix::thread::unshare_unsafe(flags) };
    context(result, || format!("create a {what} namespace (root is needed)"))
}

/// Moves the calling thread into a new, empty network namespace.
///
/// # Errors
/// The kernel's, with the step.
pub fn unshare_network() -> io::Result<()> {
    unshare(UnshareFlags::NEWNET, "network")
}

/// Gives the calling thread its own copy of the mount table and stops propagation to the outside
/// (mounts made outside still appear inside). Also unshares the working directory from the process's
/// other threads, as the kernel demands.
///
/// # Errors
/// The kernel's, with the step.
pub fn unshare_mounts() -> io::Result<()> {
    unshare(UnshareFlags::NEWNS, "mount")?;
    crate::mount::make_slave(Path::new("/"))
}

/// Moves the calling thread into a new UTS namespace (own host name).
///
/// # Errors
/// The kernel's, with the step.
pub fn unshare_uts() -> io::Result<()> {
    unshare(UnshareFlags::NEWUTS, "UTS")
}

/// Sets the host name of the thread's UTS namespace.
///
/// # Errors
/// The kernel's.
pub fn set_hostname(name: &str) -> io::Result<()> {
    context(rustix::system::sethostname(name.as_bytes()), || format!("set host name {name}"))
}

/// A namespace kept alive by an open descriptor.
#[derive(Debug)]
pub struct Network(OwnedFd);

impl Network {
    /// The network namespace of the calling thread.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn current() -> io::Result<Self> {
        Self::at(Path::new("/proc/thread-self/ns/net"))
    }

    /// The network namespace of a process.
    ///
    /// # Errors
    /// `NotFound` when the process is gone.
    pub fn of_process(pid: u32) -> io::Result<Self> {
        Self::at(Path::new(&format!("/proc/{pid}/ns/net")))
    }

    /// The namespace named as `ip netns` does (`/run/netns/<name>`).
    ///
    /// # Errors
    /// `NotFound` when there is none.
    pub fn named(name: &str) -> io::Result<Self> {
        Self::at(&Path::new("/run/netns").join(name))
    }

    fn at(path: &Path) -> io::Result<Self> {
        let file = context(File::open(path), || format!("open namespace {}", path.display()))?;
        Ok(Self(OwnedFd::from(file)))
    }

    /// Moves the calling thread into this namespace.
    ///
    /// # Errors
    /// The kernel's, e.g. `PermissionDenied` without root.
    pub fn enter(&self) -> io::Result<()> {
        context(move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network)), || {
            "enter network namespace (root is needed)".to_owned()
        })
    }

    /// Runs `work` on a new thread inside this namespace and returns its result. Sockets and taps
    /// opened by `work` stay in the namespace wherever they are used afterwards.
    ///
    /// # Errors
    /// When the namespace cannot be entered; a panic of `work` is passed on.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                self.enter()?;
                Ok(work())
            });
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// Makes children of the calling process be born in a new PID namespace until the guard is dropped;
/// the first child is its PID 1. The process itself stays where it is.
///
/// # Errors
/// `InvalidInput` from the kernel when the process has more than one thread; needs root.
pub(crate) fn new_pid_namespace_for_children() -> io::Result<ChildPidNamespace> {
    let own = context(File::open("/proc/self/ns/pid"), || "open own PID namespace".to_owned())?;
    unshare(UnshareFlags::NEWPID, "PID")?;
    Ok(ChildPidNamespace(OwnedFd::from(own)))
}

/// See [`new_pid_namespace_for_children`].
pub(crate) struct ChildPidNamespace(OwnedFd);

impl Drop for ChildPidNamespace {
    fn drop(&mut self) {
        // Going back to one's own namespace cannot fail for a process that just left it; if it did,
        // the next `fork` would fail loudly once the first child is gone.
        let _ = move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::ProcessID));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> bool {
        rustix::process::geteuid().is_root()
    }

    #[test]
    fn work_runs_inside_and_the_caller_stays_outside() {
        if !root() {
            return;
        }
        let id = || std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let before = id();
        let (namespace, inside) = std::thread::spawn(move || {
            unshare_network().unwrap();
            (Network::current().unwrap(), id())
        })
        .join()
        .unwrap();
        assert_ne!(before, inside);
        assert_eq!(namespace.run(id).unwrap(), inside);
        assert_eq!(id(), before);
    }

    #[test]
    fn missing_name_is_named_in_the_error() {
        let error = Network::named("no-such-namespace-here").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains("no-such-namespace-here"));
    }
}
