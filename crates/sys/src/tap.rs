//! Tap devices (hypervisor.md §13.4), and the device through which packets come into a node once more.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use crate::{context, other};

/// Creates (or opens) the tap `name` in the network namespace of the calling thread and returns the
/// descriptor QEMU takes as `tap,fd=`.
///
/// Flags: TAP, no packet information, virtio-net header, one queue. Not persistent: the device is
/// gone when the last copy of the descriptor is closed. The descriptor is close-on-exec and
/// non-blocking.
///
/// # Errors
/// `InvalidInput` for a name that is empty or longer than 15 bytes; otherwise what the kernel says,
/// e.g. `PermissionDenied` when `/dev/net/tun` may not be opened, `ResourceBusy` when another
/// process holds the tap.
pub fn open(name: &str) -> io::Result<OwnedFd> {
    Ok(attach(request(name, libc::IFF_TAP)?).map_err(|e| described(e, "tap", name))?.0)
}

/// Creates a device for plain IP packets in the network namespace of the calling thread and returns
/// it with the name that the kernel chose: `prefix` and a number. What is written, each time a
/// virtio-net header and an IP packet, comes into the node as from a wire.
///
/// Otherwise as [`open`].
///
/// # Errors
/// As [`open`].
pub fn open_tun(prefix: &str) -> io::Result<(OwnedFd, String)> {
    let mut request = request(prefix, libc::IFF_TUN)?;
    // The kernel puts a number here.
    for (to, from) in request.ifr_name[prefix.len()..].iter_mut().zip(b"%d\0") {
        *to = from.cast_signed();
    }
    let (device, request) = attach(request).map_err(|e| described(e, "tun", prefix))?;
    let name = request.ifr_name.iter().map(|c| c.cast_unsigned()).take_while(|c| *c != 0).collect();
    Ok((device, String::from_utf8(name).map_err(other)?))
}

fn described(error: io::Error, kind: &str, name: &str) -> io::Error {
    io::Error::new(error.kind(), format!("create {kind} {name}: {error}"))
}

fn attach(mut request: libc::ifreq) -> io::Result<(OwnedFd, libc::ifreq)> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK)
        .open("/dev/net/tun");
    let file =
        context(file, || "open /dev/net/tun (root, or mode 0666 as udev sets it, is needed)".to_owned())?;
    // SAFETY: `file` is an open tun descriptor and `request` a complete `ifreq` that outlives the
    // call; the kernel writes back into it only.
    let code = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request) };
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok((OwnedFd::from(file), request)) }
}

fn request(name: &str, kind: i32) -> io::Result<libc::ifreq> {
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains(['/', '\0', '%']) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            other(format!("the name {name:?} is not 1 to 15 plain bytes")),
        ));
    }
    // SAFETY: `ifreq` is plain data of integers for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let flags = kind | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = i16::try_from(flags).expect("invariant: tun flags fit the field of ifreq");
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_names_are_refused_before_the_kernel_sees_them() {
        for name in ["", "a-name-longer-than-fifteen", "a/b", "tap%d"] {
            assert_eq!(open(name).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name}");
        }
    }

    #[test]
    fn tap_lives_as_long_as_its_descriptor() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        std::thread::spawn(|| {
            crate::namespace::unshare_network().unwrap();
            let exists = || std::fs::read_to_string("/proc/thread-self/net/dev").unwrap().contains("vmtest0");
            let tap = open("vmtest0").unwrap();
            assert!(exists());
            drop(tap);
            assert!(!exists());
        })
        .join()
        .unwrap();
    }
}
