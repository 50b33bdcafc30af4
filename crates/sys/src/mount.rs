//! Mounts of the calling thread's mount namespace.

use std::io;
use std::path::Path;

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount as mount_new, mount_bind_recursive, mount_change,
    mount_remount, unmount,
};

use crate::context;

/// Stops mounts made here from reaching other namespaces; theirs still arrive here.
///
/// # Errors
/// The kernel's, with the path.
pub fn make_slave(path: &Path) -> io::Result<()> {
    context(mount_change(path, MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC), || {
        format!("make mounts below {} private", path.display())
    })
}

/// Cuts all propagation below `path`.
///
/// # Errors
/// The kernel's, with the path.
pub fn make_private(path: &Path) -> io::Result<()> {
    context(mount_change(path, MountPropagationFlags::PRIVATE | MountPropagationFlags::REC), || {
        format!("make mounts below {} private", path.display())
    })
}

/// Shows the file or directory `source` at `target` too. `target` must exist and be of the same sort.
///
/// # Errors
/// The kernel's, with both paths.
pub fn bind(source: &Path, target: &Path, read_only: bool) -> io::Result<()> {
    let what = || format!("bind {} to {}", source.display(), target.display());
    context(mount_bind_recursive(source, target), what)?;
    if read_only {
        let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        context(mount_remount(target, flags, ""), what)?;
    }
    Ok(())
}

/// Mounts a tmpfs of at most `size_bytes` (pages are used only when written) with directory mode
/// `mode`.
///
/// # Errors
/// The kernel's, with the path.
pub fn tmpfs(target: &Path, size_bytes: u64, mode: u32) -> io::Result<()> {
    let options = std::ffi::CString::new(format!("size={size_bytes},mode={mode:o}"))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    context(mount_new("tmpfs", target, "tmpfs", flags, options.as_c_str()), || {
        format!("mount a tmpfs at {}", target.display())
    })
}

/// Mounts the processes of the current PID namespace; `hide_others` shows a plain user only its own
/// (falls back to showing all where the kernel lacks the option).
///
/// # Errors
/// The kernel's, with the path.
pub fn proc(target: &Path, hide_others: bool) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    if hide_others && mount_new("proc", target, "proc", flags, c"hidepid=invisible").is_ok() {
        return Ok(());
    }
    context(mount_new("proc", target, "proc", flags, None), || format!("mount proc at {}", target.display()))
}

/// Makes `root` (a mount point) the root directory and detaches the old one.
///
/// # Errors
/// The kernel's, with the step.
pub fn change_root(root: &Path) -> io::Result<()> {
    let what = || format!("change root to {}", root.display());
    context(rustix::process::chdir(root), what)?;
    // Old root stacked onto the new one, then detached: needs no directory to put it.
    context(rustix::process::pivot_root(".", "."), what)?;
    context(unmount(".", UnmountFlags::DETACH), what)?;
    context(rustix::process::chdir("/"), what)
}

/// Takes the mount at `target` away, at once for new users, in truth when the last one is gone.
/// Nothing mounted there is success.
///
/// # Errors
/// The kernel's, with the path.
pub fn detach(target: &Path) -> io::Result<()> {
    match unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => context(Err(error), || format!("unmount {}", target.display())),
    }
}
