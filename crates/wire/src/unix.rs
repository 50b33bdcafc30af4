//! Frames with file descriptors, over a unix stream socket or another [`FrameTransport`].

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bytes::{Buf, BytesMut};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::frame::{Error, decode, encode};
use crate::local::{BoxFuture, Chunk, FrameTransport};

/// Most descriptors that travel with one frame.
pub const MAX_FDS: usize = 4;

/// A connection that carries frames and descriptors. Use one reader and one writer at a time.
#[derive(Debug)]
pub struct Conn {
    transport: Box<dyn FrameTransport>,
    received: tokio::sync::Mutex<Received>,
    sending: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Received {
    bytes: BytesMut,
    fds: VecDeque<OwnedFd>,
}

impl Conn {
    /// Takes over a connected socket.
    pub fn new(stream: UnixStream) -> Self {
        Self::over(Box::new(stream))
    }

    /// A connection over any transport.
    pub fn over(transport: Box<dyn FrameTransport>) -> Self {
        Self { transport, received: tokio::sync::Mutex::default(), sending: tokio::sync::Mutex::default() }
    }

    /// Process id of the other end in this PID namespace, as far as it is known.
    pub fn peer_pid(&self) -> Option<u32> {
        self.transport.peer_pid()
    }

    /// Sends one frame with descriptors.
    ///
    /// Not cancel safe: a send that was dropped half way leaves the connection unusable.
    pub async fn send<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        assert!(fds.len() <= MAX_FDS, "a frame carries at most {MAX_FDS} descriptors");
        let _turn = self.sending.lock().await;
        let mut out = BytesMut::new();
        encode(message, &mut out)?;
        let mut fds = fds;
        while out.has_remaining() {
            let sent = self.transport.send(&out, fds).await?;
            out.advance(sent);
            // Descriptors travel with the first bytes only.
            fds = &[];
        }
        Ok(())
    }

    /// Receives one frame. `fds_of` says how many descriptors the message claims to carry.
    /// `None` at a clean end. Cancel safe.
    pub async fn receive<T: DeserializeOwned>(
        &self,
        fds_of: impl Fn(&T) -> usize,
    ) -> Result<Option<(T, Vec<OwnedFd>)>, Error> {
        let mut received = self.received.lock().await;
        loop {
            if let Some(message) = decode::<T>(&mut received.bytes)? {
                let count = fds_of(&message);
                if count > received.fds.len() {
                    return Err(io::Error::other("a frame announced descriptors that did not come").into());
                }
                let fds = received.fds.drain(..count).collect();
                return Ok(Some((message, fds)));
            }
            let Chunk { bytes, fds } = self.transport.receive().await?;
            received.fds.extend(fds);
            if bytes.is_empty() {
                return if received.bytes.is_empty() {
                    Ok(None)
                } else {
                    Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())
                };
            }
            received.bytes.extend_from_slice(&bytes);
        }
    }
}

impl FrameTransport for UnixStream {
    fn send<'a>(&'a self, bytes: &'a [u8], fds: &'a [BorrowedFd<'a>]) -> BoxFuture<'a, io::Result<usize>> {
        Box::pin(self.async_io(Interest::WRITABLE, move || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() {
                control.push(SendAncillaryMessage::ScmRights(fds));
            }
            Ok(sendmsg(self.as_fd(), &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
        }))
    }

    fn receive(&self) -> BoxFuture<'_, io::Result<Chunk>> {
        Box::pin(self.async_io(Interest::READABLE, || {
            let mut buffer = [0u8; 16 * 1024];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let got = recvmsg(
                self.as_fd(),
                &mut [IoSliceMut::new(&mut buffer)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            )?;
            let mut fds = vec![];
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    fds.extend(rights);
                }
            }
            Ok(Chunk { bytes: buffer[..got.bytes].to_vec(), fds })
        }))
    }

    fn peer_pid(&self) -> Option<u32> {
        let pid = self.peer_cred().ok()?.pid()?;
        u32::try_from(pid).ok().filter(|pid| *pid > 0)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[tokio::test]
    async fn descriptors_arrive_with_their_frame() {
        let (a, b) = UnixStream::pair().unwrap();
        let (a, b) = (Conn::new(a), Conn::new(b));
        let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        a.send(&("plain", 0), &[]).await.unwrap();
        a.send(&("with", 1), &[theirs.as_fd()]).await.unwrap();
        drop(theirs);
        let count = |m: &(String, usize)| m.1;
        let (first, none) = b.receive(count).await.unwrap().unwrap();
        assert_eq!((first.0.as_str(), none.len()), ("plain", 0));
        let (second, mut fds) = b.receive(count).await.unwrap().unwrap();
        assert_eq!(second.0, "with");
        let mut passed = std::os::unix::net::UnixStream::from(fds.remove(0));
        passed.write_all(b"x").unwrap();
        let mut got = [0];
        ours.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"x");
        drop(a);
        assert!(b.receive(count).await.unwrap().is_none());
    }
}
