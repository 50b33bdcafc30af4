//! Packets in flight while a guest moves.
//!
//! From the stop of the guest until the routes point to the target (hypervisor.md §13.3), packets still come to
//! the tap of the source, where nobody takes them any more. A lost one costs its connection a
//! retransmission timeout, 200 ms at least, several times what the guest itself misses. So they are noted on
//! their way into the tap, and sent once more when the routes have been switched.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;

use holdfast_sys::packet::{self, VNET_HEADER};
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

/// Prefix of the device through which packets come into the node once more.
pub const DEVICE_PREFIX: &str = "hfagain";

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
/// Longest packet with its headers: TCP hands over up to 64 KiB at once.
const LONGEST: usize = (64 << 10) + ETHERNET + VNET_HEADER;
/// Packets that are kept, as many as a tap queues.
const KEPT: usize = 1000;
/// Bytes that are kept.
const KEPT_BYTES: usize = 4 << 20;

/// The packets to one guest, noted on their way into its tap. Dropping it ends that.
pub struct InFlight {
    pass_on: Option<oneshot::Sender<i64>>,
    task: AbortHandle,
}

impl fmt::Debug for InFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InFlight").finish_non_exhaustive()
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl InFlight {
    /// Notes what `tap` is given ([`packet::listen`]); `again` ([`holdfast_sys::tap::open_tun`]) takes what is sent
    /// once more.
    ///
    /// # Errors
    /// The runtime's.
    pub fn note(tap: OwnedFd, again: OwnedFd) -> io::Result<Self> {
        let (pass_on, since) = oneshot::channel();
        let tap = holdfast_sys::asyncfd::register(tap)?;
        let task = tokio::spawn(follow(tap, File::from(again), since)).abort_handle();
        Ok(Self { pass_on: Some(pass_on), task })
    }

    /// The routes have been switched: sends on what has come since then (Unix time, microseconds), and whatever
    /// comes yet.
    pub fn pass_on(&mut self, since_us: i64) {
        if let Some(pass_on) = self.pass_on.take() {
            // The task is gone when the tap is.
            let _ = pass_on.send(since_us);
        }
    }
}

/// A virtio-net header and an IP packet.
struct Packet {
    at_us: i64,
    bytes: Vec<u8>,
}

#[derive(Default)]
struct Kept {
    packets: VecDeque<Packet>,
    bytes: usize,
}

impl Kept {
    fn push(&mut self, packet: Packet) {
        self.bytes += packet.bytes.len();
        self.packets.push_back(packet);
        while self.packets.len() > KEPT || self.bytes > KEPT_BYTES {
            let Some(oldest) = self.packets.pop_front() else { return };
            self.bytes -= oldest.bytes.len();
        }
    }
}

async fn follow(tap: AsyncFd<OwnedFd>, mut again: File, mut since: oneshot::Receiver<i64>) {
    let mut kept = Kept::default();
    let mut buffer = vec![0; LONGEST];
    let since_us = loop {
        tokio::select! {
            biased;
            since = &mut since => match since {
                Ok(since) => break since,
                Err(_) => return,
            },
            packet = next(&tap, &mut buffer) => match packet {
                Some(packet) => kept.push(packet),
                None => return,
            },
        }
    };
    let mut count = 0;
    for packet in kept.packets {
        count += send(&mut again, &packet, since_us);
    }
    tracing::debug!(count, "packets that came after the guest had stopped were sent on");
    while let Some(packet) = next(&tap, &mut buffer).await {
        send(&mut again, &packet, since_us);
    }
}

fn send(again: &mut File, packet: &Packet, since_us: i64) -> usize {
    if packet.at_us < since_us {
        return 0;
    }
    match again.write_all(&packet.bytes) {
        Ok(()) => 1,
        Err(error) => {
            tracing::debug!(%error, "a packet could not be sent on");
            0
        }
    }
}

/// The next packet; none when the tap is gone.
async fn next(tap: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> Option<Packet> {
    loop {
        let mut ready = tap.readable().await.ok()?;
        match packet::receive(tap.get_ref(), buffer) {
            Ok((length, at_us)) => {
                if let Some(bytes) = without_ethernet(&buffer[..length]) {
                    return Some(Packet { at_us, bytes });
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
            Err(_) => return None,
        }
    }
}

/// The same packet without its Ethernet header: the offsets in the virtio-net header count from behind it.
fn without_ethernet(frame: &[u8]) -> Option<Vec<u8>> {
    /// Where `hdr_len` and `csum_start` stand in `struct virtio_net_hdr`: flags, gso_type, hdr_len, gso_size,
    /// csum_start, csum_offset.
    const OFFSETS: [usize; 2] = [2, 6];
    let packet = frame.get(VNET_HEADER + ETHERNET..)?;
    let mut bytes = Vec::with_capacity(VNET_HEADER + packet.len());
    bytes.extend_from_slice(&frame[..VNET_HEADER]);
    for at in OFFSETS {
        let offset = u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let shorter = offset.saturating_sub(ETHERNET.try_into().expect("invariant: a small constant"));
        bytes[at..at + 2].copy_from_slice(&shorter.to_ne_bytes());
    }
    bytes.extend_from_slice(packet);
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_count_from_the_ip_header() {
        let mut frame = vec![1, 1, 66, 0, 0xb4, 5, 34, 0, 16, 0];
        frame.extend([0xee; ETHERNET]);
        frame.extend([0x45, 0, 0, 1]);
        assert_eq!(without_ethernet(&frame).unwrap(), [1, 1, 52, 0, 0xb4, 5, 20, 0, 16, 0, 0x45, 0, 0, 1]);
        assert_eq!(without_ethernet(&frame[..20]), None);
    }

    #[test]
    fn the_newest_are_kept() {
        let mut kept = Kept::default();
        for at_us in 0..3000 {
            kept.push(Packet { at_us, bytes: vec![0; 100] });
        }
        assert_eq!((kept.packets.len(), kept.bytes, kept.packets[0].at_us), (KEPT, KEPT * 100, 2000));
        for at_us in 0..100 {
            kept.push(Packet { at_us, bytes: vec![0; 64 << 10] });
        }
        assert!(kept.bytes <= KEPT_BYTES && kept.packets.len() == 64, "{}", kept.packets.len());
    }
}
