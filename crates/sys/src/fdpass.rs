//! Passing open descriptors between processes over a Unix stream or seqpacket socket (`SCM_RIGHTS`).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// Most descriptors in one message.
pub const MAX_FDS: usize = 8;

/// Sends `bytes` with `fds` attached to their first byte; returns how many bytes went out.
///
/// On a stream socket the rest of a short write is to be sent without descriptors.
///
/// # Errors
/// The socket's error; `InvalidInput` for no bytes (a stream socket would lose the descriptors) or
/// more than [`MAX_FDS`].
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    if bytes.is_empty() || fds.len() > MAX_FDS {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("descriptor passing needs 1 byte and at most {MAX_FDS} descriptors"),
        ));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        let fits = control.push(SendAncillaryMessage::ScmRights(fds));
        assert!(fits, "invariant: the buffer holds MAX_FDS descriptors");
    }
    Ok(sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
}

/// Receives up to `buffer.len()` bytes and the descriptors that came with them (close-on-exec).
///
/// `Ok((0, _))` is the end of the stream.
///
/// # Errors
/// The socket's error; `WouldBlock` on a non-blocking socket without data.
pub fn recv(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    Ok((got.bytes, fds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn descriptor_arrives_and_works() {
        let (a, b) = UnixStream::pair().unwrap();
        let (mut passed, inner) = UnixStream::pair().unwrap();
        assert_eq!(send(&a, b"tap", &[inner.as_fd()]).unwrap(), 3);
        drop(inner);
        let mut buffer = [0; 16];
        let (n, fds) = recv(&b, &mut buffer).unwrap();
        assert_eq!(&buffer[..n], b"tap");
        assert_eq!(fds.len(), 1);
        UnixStream::from(fds.into_iter().next().unwrap()).write_all(b"x").unwrap();
        let mut one = [0];
        passed.read_exact(&mut one).unwrap();
        assert_eq!(&one, b"x");
    }

    #[test]
    fn too_many_or_no_bytes_are_refused() {
        let (a, _b) = UnixStream::pair().unwrap();
        assert_eq!(send(&a, b"", &[]).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        let many = vec![a.as_fd(); MAX_FDS + 1];
        assert_eq!(send(&a, b"x", &many).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn end_of_stream_is_zero_bytes() {
        let (a, b) = UnixStream::pair().unwrap();
        drop(a);
        assert_eq!(recv(&b, &mut [0; 4]).unwrap().0, 0);
    }
}
