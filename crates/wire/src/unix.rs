//! Frames with file descriptors over a unix stream socket.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
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

/// Most descriptors that travel with one frame.
pub const MAX_FDS: usize = 4;

/// A connection that carries frames and descriptors. Use one reader and one writer at a time.
#[derive(Debug)]
pub struct Conn {
    stream: UnixStream,
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
        Self { stream, received: tokio::sync::Mutex::default(), sending: tokio::sync::Mutex::default() }
    }

    /// Credentials of the process at the other end.
    pub fn peer(&self) -> std::io::Result<tokio::net::unix::UCred> {
        self.stream.peer_cred()
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
            let sent = self.stream.async_io(Interest::WRITABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                if !fds.is_empty() {
                    control.push(SendAncillaryMessage::ScmRights(fds));
                }
                Ok(sendmsg(self.stream.as_fd(), &[IoSlice::new(&out)], &mut control, SendFlags::NOSIGNAL)?)
            });
            out.advance(sent.await?);
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
                    return Err(
                        std::io::Error::other("a frame announced descriptors that did not come").into()
                    );
                }
                let fds = received.fds.drain(..count).collect();
                return Ok(Some((message, fds)));
            }
            let mut buffer = [0u8; 16 * 1024];
            let mut fds = Vec::new();
            let read = self
                .stream
                .async_io(Interest::READABLE, || {
                    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
                    let mut control = RecvAncillaryBuffer::new(&mut space);
                    let got = recvmsg(
                        self.stream.as_fd(),
                        &mut [IoSliceMut::new(&mut buffer)],
                        &mut control,
                        RecvFlags::CMSG_CLOEXEC,
                    )?;
                    for message in control.drain() {
                        if let RecvAncillaryMessage::ScmRights(rights) = message {
                            fds.extend(rights);
                        }
                    }
                    Ok(got.bytes)
                })
                .await?;
            received.fds.extend(fds);
            if read == 0 {
                return if received.bytes.is_empty() {
                    Ok(None)
                } else {
                    Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into())
                };
            }
            received.bytes.extend_from_slice(&buffer[..read]);
        }
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
