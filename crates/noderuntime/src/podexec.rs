//! Turns the calling process into a container: cgroup, mount namespace with a small root of its own,
//! network, identity, then the program itself (same pid).
//!
//! Started by init as `holdfast pod-exec <launch file>`, single-threaded. The root is a tmpfs with
//! the machine's programs and libraries read-only, a few devices, and the pod's volumes: nothing of
//! the home, no other pod's files, no API credentials (INV-12).

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use holdfast_sys::cgroup::Hierarchies;
use holdfast_sys::spawn::Command;
use holdfast_sys::{context, mount, namespace};

use crate::launch::{Launch, PROGRAM_DIR};

/// Exit code when the container could not be set up; the reason is in its termination log.
pub const START_ERROR: i32 = 128;

/// Becomes the container described in `launch_file`. Returns only on failure, with the sentence
/// that was also put into the termination log.
#[must_use]
pub fn run(launch_file: &Path) -> anyhow::Error {
    let launch: Launch = match read(launch_file) {
        Ok(launch) => launch,
        Err(error) => return error.into(),
    };
    let log = launch.termination_log.0.clone();
    let error = match become_container(launch) {
        Ok(never) => match never {},
        Err(error) => anyhow::Error::from(error).context("container could not be set up"),
    };
    let _ = std::fs::write(log, format!("{error:#}"));
    error
}

fn read(path: &Path) -> io::Result<Launch> {
    let bytes = context(std::fs::read(path), || format!("read {}", path.display()))?;
    context(serde_json::from_slice(&bytes), || format!("parse {}", path.display()))
}

fn become_container(launch: Launch) -> io::Result<std::convert::Infallible> {
    join_cgroup(&launch)?;
    if launch.isolated_network {
        namespace::unshare_network()?;
    }
    namespace::unshare_mounts()?;
    mount::make_private(Path::new("/"))?;
    let program = build_root(&launch)?;
    mount::change_root(&launch.root)?;
    let mut command = Command::new(&program)
        .args(&launch.args)
        .env_clear()
        .current_dir(&launch.work_dir)
        .groups(&launch.groups)
        .gid(launch.gid)
        .uid(launch.uid)
        .drop_capabilities()
        .no_new_privs()
        .no_core_dump()
        .new_session();
    for (key, value) in &launch.env {
        command = command.env(key, value);
    }
    Err(command.exec())
}

fn join_cgroup(launch: &Launch) -> io::Result<()> {
    let hierarchies = Hierarchies::detect();
    if !hierarchies.is_usable() {
        return Ok(());
    }
    let group = hierarchies.create(&launch.cgroup)?;
    if let Some(milli) = launch.cpu_request_milli {
        let _ = group.set_cpu_request(milli);
    }
    if let Some(bytes) = launch.memory_max_bytes {
        let _ = group.set_memory_max(bytes);
    }
    group.add(std::process::id())
}

/// Top-level directories of the machine that programs and their libraries need.
const SYSTEM: [&str; 9] = ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "etc", "opt"];

/// Harmless devices; `kvm` is used where its permissions allow.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "kvm"];

/// Builds the root and returns the program's path inside.
fn build_root(launch: &Launch) -> io::Result<PathBuf> {
    let root = &launch.root;
    mount::tmpfs(root, 1 << 20, 0o755)?;
    for name in SYSTEM {
        show_system_dir(root, name)?;
    }
    for name in ["proc", "dev", "tmp", "run", "var", "sys"] {
        make_dir(&root.join(name))?;
    }
    mount::proc(&root.join("proc"), true)?;
    let _ = mount::bind(Path::new("/sys"), &root.join("sys"), true);
    for name in ["tmp", "run", "var"] {
        mount::tmpfs(&root.join(name), 64 << 20, 0o1777)?;
    }
    make_dir(&root.join("var/tmp"))?;
    std::fs::set_permissions(root.join("var/tmp"), PermissionsExt::from_mode(0o1777))?;
    for name in DEVICES {
        show_device(root, name)?;
    }
    for (name, target) in [("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0")] {
        std::os::unix::fs::symlink(target, root.join("dev").join(name))?;
    }
    // Volumes first, so that one of them may be a parent of the termination log.
    for volume in &launch.mounts {
        let target = inside(root, &volume.target)?;
        show(&volume.source, &target, volume.read_only)?;
    }
    let (host, target) = &launch.termination_log;
    show(host, &inside(root, target)?, false)?;
    let name = launch.program.file_name().unwrap_or_default();
    let program = Path::new(PROGRAM_DIR).join(name);
    show(&launch.program, &inside(root, &program)?, true)?;
    Ok(program)
}

fn show_system_dir(root: &Path, name: &str) -> io::Result<()> {
    let host = Path::new("/").join(name);
    let Ok(metadata) = std::fs::symlink_metadata(&host) else { return Ok(()) };
    let target = root.join(name);
    if metadata.is_symlink() {
        return std::os::unix::fs::symlink(std::fs::read_link(&host)?, target);
    }
    make_dir(&target)?;
    mount::bind(&host, &target, true)
}

fn show_device(root: &Path, name: &str) -> io::Result<()> {
    let host = Path::new("/dev").join(name);
    if !host.exists() {
        return Ok(());
    }
    let target = root.join("dev").join(name);
    std::fs::write(&target, b"")?;
    mount::bind(&host, &target, false)
}

/// Binds a file or directory, creating the place for it.
fn show(source: &Path, target: &Path, read_only: bool) -> io::Result<()> {
    let metadata = context(std::fs::metadata(source), || format!("look at {}", source.display()))?;
    if metadata.is_dir() {
        context(std::fs::create_dir_all(target), || format!("create {}", target.display()))?;
    } else {
        if let Some(parent) = target.parent() {
            context(std::fs::create_dir_all(parent), || format!("create {}", parent.display()))?;
        }
        if !target.exists() {
            context(std::fs::write(target, b""), || format!("create {}", target.display()))?;
        }
    }
    mount::bind(source, target, read_only)
}

fn make_dir(path: &Path) -> io::Result<()> {
    context(std::fs::create_dir(path), || format!("create {}", path.display()))
}

/// `target` below `root`; refuses what would lead out of it.
fn inside(root: &Path, target: &Path) -> io::Result<PathBuf> {
    let mut path = root.to_owned();
    for part in target.components() {
        match part {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => path.push(name),
            Component::ParentDir | Component::Prefix(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("mount path {} must be absolute and without ..", target.display()),
                ));
            }
        }
    }
    if path == root {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a volume cannot be the root"));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn mount_paths_cannot_leave_the_root() {
        let root = Path::new("/r");
        assert_eq!(inside(root, Path::new("/a/./b")).unwrap(), Path::new("/r/a/b"));
        assert!(inside(root, Path::new("/a/../../etc")).is_err());
        assert!(inside(root, Path::new("/")).is_err());
    }

    /// Runs a shell as a container in a forked test process and returns its log.
    #[test]
    fn container_sees_its_volumes_and_not_the_home() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("secret-of-the-home");
        std::fs::write(&secret, "x").unwrap();
        let volume = dir.path().join("volume");
        let root = dir.path().join("root");
        for path in [&volume, &root] {
            std::fs::create_dir(path).unwrap();
        }
        std::os::unix::fs::chown(&volume, Some(64_100), Some(64_100)).unwrap();
        let log = dir.path().join("termination-log");
        std::fs::write(&log, "").unwrap();
        std::fs::set_permissions(&log, PermissionsExt::from_mode(0o666)).unwrap();
        let script = format!(
            "id -u > /data/out; ls {} >> /data/out 2>&1; grep -c : /proc/net/dev >> /data/out; \
             ls /usr/bin/env >> /data/out; touch /usr/x 2>>/data/out; echo bye > /dev/termination-log",
            secret.display()
        );
        let launch = Launch {
            program: PathBuf::from("/bin/dash"),
            args: vec!["-c".to_owned(), script],
            env: BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]),
            work_dir: PathBuf::from("/"),
            uid: 64_100,
            gid: 64_100,
            groups: vec![],
            isolated_network: true,
            root,
            mounts: vec![crate::launch::Mount {
                source: volume.clone(),
                target: PathBuf::from("/data"),
                read_only: false,
            }],
            termination_log: (log.clone(), PathBuf::from("/dev/termination-log")),
            cgroup: format!("holdfast-test-{}", std::process::id()),
            cpu_request_milli: None,
            memory_max_bytes: None,
        };
        let file = dir.path().join("launch.json");
        std::fs::write(&file, serde_json::to_vec(&launch).unwrap()).unwrap();
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "podexec::tests::inner", "--nocapture"])
            .env("HOLDFAST_TEST_LAUNCH", &file)
            .spawn()
            .unwrap();
        child.wait().unwrap();
        let said = std::fs::read_to_string(&log).unwrap();
        assert_eq!(said, "bye\n");
        let out = std::fs::read_to_string(volume.join("out")).unwrap();
        let lines: Vec<&str> = out.lines().collect();
        assert_eq!(lines[0], "64100");
        assert!(lines[1].contains("No such file"), "{out}");
        assert_eq!(lines[2], "1", "only the loopback device: {out}");
        assert_eq!(lines[3], "/usr/bin/env");
        assert!(lines[4].contains("Read-only"), "{out}");
        if let Some(group) = Hierarchies::detect().open(&launch.cgroup) {
            group.remove().unwrap();
        }
    }

    /// Not a test of its own: the process that becomes the container.
    #[test]
    fn inner() {
        if let Some(file) = std::env::var_os("HOLDFAST_TEST_LAUNCH") {
            panic!("{:#}", run(Path::new(&file)));
        }
    }
}
