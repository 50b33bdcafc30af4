//! Starting programs: identity, privileges, death signal, namespaces, cgroup, descriptors.
//!
//! The order in the child is fixed: session, cgroup, namespaces, groups, gid, uid, capabilities,
//! no-new-privs, death signal (changing credentials would clear it, hypervisor.md §8), descriptors,
//! signal mask, exec.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc;

use rustix::process::Signal;

use crate::context;
use crate::namespace::Network;
use crate::pidfd::PidFd;
use crate::proc::ProcessId;

/// A program to start. Like [`std::process::Command`], plus what this module's header lists.
#[derive(Debug)]
pub struct Command {
    inner: std::process::Command,
    setup: Setup,
    new_pid_namespace: bool,
}

/// What the child does between fork and exec. Plain data: nothing here may allocate there.
#[derive(Debug, Default)]
struct Setup {
    uid: Option<u32>,
    gid: Option<u32>,
    groups: Option<Vec<u32>>,
    no_new_privs: bool,
    drop_capabilities: bool,
    death_signal: Option<Signal>,
    new_session: bool,
    new_network: bool,
    new_mounts: bool,
    network: Option<Network>,
    cgroups: Vec<File>,
    inherit: Vec<OwnedFd>,
    no_core: bool,
}

/// A started child. Dropping it neither kills nor waits.
#[derive(Debug)]
pub struct Child {
    /// Identity in the caller's PID namespace.
    pub id: ProcessId,
    /// Readable once the child has ended.
    pub pidfd: PidFd,
    /// For `wait`, and the piped standard streams.
    pub std: std::process::Child,
}

impl Command {
    /// A program by path or by name on `PATH`, with the caller's environment and standard streams.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self { inner: std::process::Command::new(program), setup: Setup::default(), new_pid_namespace: false }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.inner.arg(arg);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.inner.args(args);
        self
    }

    /// Starts from an empty environment.
    #[must_use]
    pub fn env_clear(mut self) -> Self {
        self.inner.env_clear();
        self
    }

    /// Sets one variable.
    #[must_use]
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.inner.env(key, value);
        self
    }

    /// Working directory.
    #[must_use]
    pub fn current_dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.inner.current_dir(dir);
        self
    }

    /// Standard input.
    #[must_use]
    pub fn stdin(mut self, stdio: impl Into<Stdio>) -> Self {
        self.inner.stdin(stdio);
        self
    }

    /// Standard output.
    #[must_use]
    pub fn stdout(mut self, stdio: impl Into<Stdio>) -> Self {
        self.inner.stdout(stdio);
        self
    }

    /// Standard error.
    #[must_use]
    pub fn stderr(mut self, stdio: impl Into<Stdio>) -> Self {
        self.inner.stderr(stdio);
        self
    }

    /// Runs as this user; leaving root drops all capabilities.
    #[must_use]
    pub fn uid(mut self, uid: u32) -> Self {
        self.setup.uid = Some(uid);
        self
    }

    /// Runs with this group; supplementary groups are emptied unless [`Self::groups`] is used.
    #[must_use]
    pub fn gid(mut self, gid: u32) -> Self {
        self.setup.gid = Some(gid);
        self.setup.groups.get_or_insert_default();
        self
    }

    /// Supplementary groups.
    #[must_use]
    pub fn groups(mut self, groups: &[u32]) -> Self {
        self.setup.groups = Some(groups.to_vec());
        self
    }

    /// Neither set-id programs nor file capabilities give anything any more.
    #[must_use]
    pub fn no_new_privs(mut self) -> Self {
        self.setup.no_new_privs = true;
        self
    }

    /// Empties the bounding and ambient capability sets (with [`Self::uid`] nothing is left).
    #[must_use]
    pub fn drop_capabilities(mut self) -> Self {
        self.setup.drop_capabilities = true;
        self
    }

    /// The child gets this signal when the **thread** that called [`Self::spawn`] ends. Spawn from a
    /// thread that lives as long as the process: its main thread or a [`Spawner`].
    #[must_use]
    pub fn death_signal(mut self, signal: Signal) -> Self {
        self.setup.death_signal = Some(signal);
        self
    }

    /// Own session: terminal signals to the caller do not reach it.
    #[must_use]
    pub fn new_session(mut self) -> Self {
        self.setup.new_session = true;
        self
    }

    /// Own, empty network namespace (loopback down).
    #[must_use]
    pub fn new_network(mut self) -> Self {
        self.setup.new_network = true;
        self
    }

    /// Runs in this network namespace.
    #[must_use]
    pub fn network(mut self, network: Network) -> Self {
        self.setup.network = Some(network);
        self
    }

    /// Own copy of the mount table (private propagation is left to the program).
    #[must_use]
    pub fn new_mounts(mut self) -> Self {
        self.setup.new_mounts = true;
        self
    }

    /// The child is PID 1 of a new PID namespace. The calling process must be single-threaded.
    #[must_use]
    pub fn new_pid_namespace(mut self) -> Self {
        self.new_pid_namespace = true;
        self
    }

    /// Joins a cgroup before exec, so that all its memory is charged there. May be given several
    /// times (one per v1 hierarchy). See [`crate::cgroup::Cgroup::entrances`].
    #[must_use]
    pub fn cgroup(mut self, procs_file: File) -> Self {
        self.setup.cgroups.push(procs_file);
        self
    }

    /// Lets the child inherit `fd` under the number returned; no other child gets it.
    pub fn inherit(&mut self, fd: OwnedFd) -> RawFd {
        let number = fd.as_raw_fd();
        self.setup.inherit.push(fd);
        number
    }

    /// Writes no core file (guest memory must not land on disk).
    #[must_use]
    pub fn no_core_dump(mut self) -> Self {
        self.setup.no_core = true;
        self
    }

    /// Starts the program.
    ///
    /// # Errors
    /// Names the program; includes failures of the set-up in the child (the first failing step's
    /// error number).
    pub fn spawn(mut self) -> io::Result<Child> {
        let program = self.inner.get_program().to_owned();
        let step = || format!("start {}", program.display());
        let namespace = if self.new_pid_namespace {
            Some(context(crate::namespace::new_pid_namespace_for_children(), step)?)
        } else {
            None
        };
        self.prepare();
        let child = context(self.inner.spawn(), step);
        drop(namespace);
        let child = child?;
        // A child is not reaped before someone waits for it, so its pid is still its own here.
        let pidfd = context(PidFd::open(child.id()), step)?;
        let start_time = crate::proc::stat(child.id()).map(|stat| stat.start_time);
        let id = ProcessId { pid: child.id(), start_time: start_time.unwrap_or(0) };
        Ok(Child { id, pidfd, std: child })
    }

    /// Replaces the calling process by the program (same pid). Returns only on failure.
    #[must_use]
    pub fn exec(mut self) -> io::Error {
        let program = self.inner.get_program().to_owned();
        self.prepare();
        let error = self.inner.exec();
        io::Error::new(error.kind(), format!("execute {}: {error}", program.display()))
    }

    /// The program and its arguments, for logs.
    #[must_use]
    pub fn command_line(&self) -> Vec<OsString> {
        let args = self.inner.get_args().map(OsStr::to_owned);
        std::iter::once(self.inner.get_program().to_owned()).chain(args).collect()
    }

    fn prepare(&mut self) {
        let setup = std::mem::take(&mut self.setup);
        // The parent is this process unless `exec` is used, where a death signal is refused below.
        let parent = std::process::id();
        // SAFETY: the closure runs between fork and exec and makes system calls only: no
        // allocation, no locks, no panics (`apply` is written for that).
        unsafe {
            self.inner.pre_exec(move || setup.apply(parent));
        }
    }
}

impl Setup {
    /// Runs in the child between fork and exec: system calls only.
    fn apply(&self, parent: u32) -> io::Result<()> {
        if self.new_session {
            rustix::process::setsid()?;
        }
        for cgroup in &self.cgroups {
            rustix::io::write(cgroup, b"0")?;
        }
        if let Some(network) = &self.network {
            network.enter()?;
        }
        let mut flags = rustix::thread::UnshareFlags::empty();
        if self.new_network {
            flags |= rustix::thread::UnshareFlags::NEWNET;
        }
        if self.new_mounts {
            flags |= rustix::thread::UnshareFlags::NEWNS;
        }
        if !flags.is_empty() {
            // SAFETY: the descriptor table is not unshared.
            unsafe { rustix::thread::unshare_unsafe(flags) }?;
        }
        if self.no_core {
            let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
            rustix::process::setrlimit(rustix::process::Resource::Core, none)?;
        }
        self.drop_privileges()?;
        if let Some(signal) = self.death_signal {
            rustix::process::set_parent_process_death_signal(Some(signal))?;
            // The parent may have died before the line above; then nobody would signal us.
            let now = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
            if now.unsigned_abs() != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
        }
        for fd in &self.inherit {
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
        }
        unblock_signals();
        Ok(())
    }

    fn drop_privileges(&self) -> io::Result<()> {
        if self.drop_capabilities {
            drop_bounding_set()?;
        }
        if let Some(groups) = &self.groups {
            // SAFETY: pointer and length are of one live slice; plain system call.
            check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })?;
        }
        if let Some(gid) = self.gid {
            // SAFETY: plain system call on integers; the child has one thread.
            check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })?;
        }
        if let Some(uid) = self.uid {
            // SAFETY: as above.
            check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) })?;
        }
        if self.drop_capabilities {
            rustix::thread::clear_ambient_capability_set()?;
        }
        if self.no_new_privs {
            rustix::thread::set_no_new_privs(true)?;
        }
        Ok(())
    }
}

fn check(code: libc::c_long) -> io::Result<()> {
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn drop_bounding_set() -> io::Result<()> {
    for capability in 0..64 {
        // SAFETY: plain prctl on integers.
        let code = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        if code < 0 {
            let error = io::Error::last_os_error();
            // Beyond the last capability this kernel knows.
            if error.raw_os_error() == Some(libc::EINVAL) {
                return Ok(());
            }
            return Err(error);
        }
    }
    Ok(())
}

fn unblock_signals() {
    // SAFETY: `set` is initialised by `sigemptyset`; async-signal-safe calls only.
    unsafe {
        let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(set.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut());
    }
}

/// A thread that lives as long as this handle and starts programs on request, so that death signals
/// and async runtimes get along. Drop it last: its end sends the death signals.
#[derive(Debug)]
pub struct Spawner {
    requests: mpsc::Sender<(Command, mpsc::Sender<io::Result<Child>>)>,
}

impl Spawner {
    /// Starts the thread.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start() -> io::Result<Self> {
        let (requests, inbox) = mpsc::channel::<(Command, mpsc::Sender<io::Result<Child>>)>();
        std::thread::Builder::new().name("spawner".to_owned()).stack_size(64 * 1024).spawn(move || {
            for (command, answer) in inbox {
                let _ = answer.send(command.spawn());
            }
        })?;
        Ok(Self { requests })
    }

    /// [`Command::spawn`] on the spawner's thread; blocks for the time of a fork and exec.
    ///
    /// # Errors
    /// As [`Command::spawn`].
    pub fn spawn(&self, command: Command) -> io::Result<Child> {
        let (answer, result) = mpsc::channel();
        let gone = || crate::other("the spawner thread is gone");
        self.requests.send((command, answer)).map_err(|_| gone())?;
        result.recv().map_err(|_| gone())?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn root() -> bool {
        rustix::process::geteuid().is_root()
    }

    fn output(command: Command) -> String {
        let child = command.stdout(Stdio::piped()).spawn().unwrap();
        String::from_utf8(child.std.wait_with_output().unwrap().stdout).unwrap()
    }

    #[test]
    fn identity_and_privileges_are_dropped() {
        if !root() {
            return;
        }
        let status = output(
            Command::new("cat")
                .arg("/proc/self/status")
                .uid(64_000)
                .gid(64_001)
                .drop_capabilities()
                .no_new_privs(),
        );
        let line = |key: &str| {
            let line = status.lines().find(|line| line.starts_with(key)).unwrap();
            line[key.len()..].split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(line("Uid:"), "64000 64000 64000 64000");
        assert_eq!(line("Gid:"), "64001 64001 64001 64001");
        assert_eq!(line("Groups:"), "");
        assert_eq!(line("CapEff:"), "0000000000000000");
        assert_eq!(line("CapBnd:"), "0000000000000000");
        assert_eq!(line("NoNewPrivs:"), "1");
    }

    #[test]
    fn death_signal_follows_the_spawning_thread() {
        let command = Command::new("sleep").arg("60").death_signal(Signal::KILL);
        let spawner = Spawner::start().unwrap();
        let mut child = spawner.spawn(command).unwrap();
        assert!(!child.pidfd.wait(Duration::from_millis(50)).unwrap());
        drop(spawner);
        assert!(child.pidfd.wait(Duration::from_secs(5)).unwrap());
        child.std.wait().unwrap();
    }

    #[test]
    fn only_named_descriptors_are_inherited() {
        let (a, _b) = std::os::unix::net::UnixStream::pair().unwrap();
        let (hidden, _c) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut command = Command::new("ls").arg("/proc/self/fd");
        let number = command.inherit(OwnedFd::from(a));
        let listed = output(command);
        let numbers: Vec<&str> = listed.split_whitespace().collect();
        assert!(numbers.contains(&number.to_string().as_str()));
        assert!(!numbers.contains(&hidden.as_raw_fd().to_string().as_str()));
    }

    #[test]
    fn failure_names_the_program() {
        let error = Command::new("/no/such/program").spawn().unwrap_err();
        assert!(error.to_string().contains("/no/such/program"), "{error}");
    }
}
