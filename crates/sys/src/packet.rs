//! Listening to the packets that leave a node through one link (`AF_PACKET`).

use std::io;
use std::mem::size_of;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::context;

/// Bytes of the virtio-net header in front of every frame.
pub const VNET_HEADER: usize = 10;
/// Bytes that may wait to be received.
const WAITING: libc::c_int = 4 << 20;

/// Begins to listen to the IPv4 packets for `destination` that leave through the link of this number, in the
/// network namespace of the calling thread. The descriptor is close-on-exec and non-blocking; see [`receive`].
///
/// # Errors
/// What the kernel says: the link is gone, or a privilege (`CAP_NET_RAW`) is missing.
pub fn listen(link: u32, destination: Ipv4Addr) -> io::Result<OwnedFd> {
    // No protocol yet: nothing is received before the filter is in place and the link is chosen.
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: plain integers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    if fd < 0 {
        return context(Err(io::Error::last_os_error()), || "open a packet socket".to_owned());
    }
    // SAFETY: the descriptor was just opened and belongs to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let filter = leaves_for(destination);
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).expect("invariant: the filter has a few lines"),
        filter: filter.as_ptr().cast_mut(),
    };
    set(&socket, libc::SOL_PACKET, libc::PACKET_VNET_HDR, &1i32)?;
    set(&socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, &1i32)?;
    set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &WAITING)?;
    // The kernel copies the program while the call lasts.
    set(&socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
    // SAFETY: `sockaddr_ll` is plain data of integers for which all zeroes is a valid value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET.try_into().expect("invariant: a small constant");
    // What leaves is shown to listeners of all protocols only.
    address.sll_protocol = u16::try_from(libc::ETH_P_ALL).expect("invariant: a small constant").to_be();
    address.sll_ifindex = link.try_into().map_err(io::Error::other)?;
    let length = size_of::<libc::sockaddr_ll>().try_into().expect("invariant: a small constant");
    // SAFETY: `address` is a complete `sockaddr_ll` of that length.
    let code = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if code < 0 {
        return context(Err(io::Error::last_os_error()), || format!("listen to link {link}"));
    }
    Ok(socket)
}

/// A filter of the kernel: whole packets that leave, are IPv4, and go to `destination`; nothing else.
fn leaves_for(destination: Ipv4Addr) -> [libc::sock_filter; 8] {
    const LOAD_WORD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const LOAD_HALF: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_ABS;
    const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    let line = |code: u32, on_no: u8, k: u32| libc::sock_filter {
        code: code.try_into().expect("invariant: codes are small"),
        jt: 0,
        jf: on_no,
        k,
    };
    let kind = (libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE).cast_unsigned();
    [
        line(LOAD_WORD, 0, kind),
        line(EQUAL, 5, u32::from(libc::PACKET_OUTGOING)),
        line(LOAD_HALF, 0, 12),
        line(EQUAL, 3, libc::ETH_P_IP.cast_unsigned()),
        line(LOAD_WORD, 0, 30),
        line(EQUAL, 1, u32::from(destination)),
        line(RETURN, 0, u32::MAX),
        line(RETURN, 0, 0),
    ]
}

fn set<T>(socket: &OwnedFd, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
    let length = size_of::<T>().try_into().expect("invariant: options are small");
    // SAFETY: the value is complete, of that length, and outlives the call.
    let code =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const *value).cast(), length) };
    if code < 0 {
        return context(Err(io::Error::last_os_error()), || {
            format!("set option {option} of a packet socket")
        });
    }
    Ok(())
}

/// Receives one packet: its length in `buffer`, where a virtio-net header and an Ethernet frame stand, and when
/// it left, Unix time in microseconds.
///
/// # Errors
/// `WouldBlock` when none waits; `InvalidData` for a packet longer than `buffer`, which is dropped; otherwise
/// what the kernel says, for example that the link has gone down.
pub fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<(usize, i64)> {
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // Aligned as the control messages in it need it.
    let mut control = [0u64; 16];
    // SAFETY: `msghdr` is plain data for which all zeroes is a valid value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: the message points to one buffer and to room for control messages, both alive and of the lengths
    // that it names.
    let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    let length = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    if message.msg_flags & libc::MSG_TRUNC != 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a packet is longer than the buffer"));
    }
    Ok((length, stamp(&message).unwrap_or_default()))
}

fn stamp(message: &libc::msghdr) -> Option<i64> {
    // SAFETY: the kernel filled the control messages and their total length; the macros stay inside of it.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while let Some(found) = header.as_ref() {
            if found.cmsg_level == libc::SOL_SOCKET && found.cmsg_type == libc::SCM_TIMESTAMPNS {
                let time = libc::CMSG_DATA(header).cast::<libc::timespec>().read_unaligned();
                return time.tv_sec.checked_mul(1_000_000)?.checked_add(time.tv_nsec / 1000);
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    None
}
