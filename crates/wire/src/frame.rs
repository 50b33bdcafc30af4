//! Framing: a 4-byte big-endian length, then that many bytes of JSON.

use bytes::{Buf, BufMut, BytesMut};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Largest frame, bytes. A definition with provisioning data is far below it.
pub const MAX_BYTES: usize = 4 << 20;

/// What can go wrong with a frame.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The transport failed or ended in the middle of a frame.
    #[error("reading or writing a frame")]
    Io(#[from] std::io::Error),
    /// The other side announced a frame over [`MAX_BYTES`].
    #[error("frame of {0} bytes announced, at most {MAX_BYTES} are accepted")]
    TooLarge(usize),
    /// The bytes are not a message this build knows.
    #[error("frame is not a known message")]
    Json(#[from] serde_json::Error),
}

/// Appends `message` to `out` as one frame.
pub fn encode<T: Serialize>(message: &T, out: &mut BytesMut) -> Result<(), Error> {
    let body = serde_json::to_vec(message)?;
    if body.len() > MAX_BYTES {
        return Err(Error::TooLarge(body.len()));
    }
    out.put_u32(body.len() as u32);
    out.extend_from_slice(&body);
    Ok(())
}

/// Takes one frame off the front of `input`; `None` when it is not complete yet.
pub fn decode<T: DeserializeOwned>(input: &mut BytesMut) -> Result<Option<T>, Error> {
    let Some(head) = input.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(*head) as usize;
    if length > MAX_BYTES {
        return Err(Error::TooLarge(length));
    }
    if input.len() < 4 + length {
        return Ok(None);
    }
    input.advance(4);
    let body = input.split_to(length);
    Ok(Some(serde_json::from_slice(&body)?))
}

/// Reads exactly one frame and not a byte more, so that raw bytes may follow. `None` at a clean end.
pub async fn read<T: DeserializeOwned>(from: &mut (impl AsyncRead + Unpin)) -> Result<Option<T>, Error> {
    let mut head = [0u8; 4];
    match from.read_exact(&mut head[..1]).await {
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(e.into()),
    }
    from.read_exact(&mut head[1..]).await?;
    let length = u32::from_be_bytes(head) as usize;
    if length > MAX_BYTES {
        return Err(Error::TooLarge(length));
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body).await?;
    Ok(Some(serde_json::from_slice(&body)?))
}

/// Writes one frame and flushes.
pub async fn write<T: Serialize>(to: &mut (impl AsyncWrite + Unpin), message: &T) -> Result<(), Error> {
    let mut out = BytesMut::new();
    encode(message, &mut out)?;
    to.write_all(&out).await?;
    to.flush().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_in_pieces_is_one_message() {
        let mut whole = BytesMut::new();
        encode(&"hello", &mut whole).unwrap();
        encode(&"again", &mut whole).unwrap();
        let mut got = BytesMut::new();
        let mut out = Vec::new();
        for byte in whole {
            got.put_u8(byte);
            while let Some(m) = decode::<String>(&mut got).unwrap() {
                out.push(m);
            }
        }
        assert_eq!(out, ["hello", "again"]);
    }

    #[test]
    fn an_oversized_announcement_is_refused_before_it_is_read() {
        let mut input = BytesMut::from(&u32::MAX.to_be_bytes()[..]);
        assert!(matches!(decode::<String>(&mut input), Err(Error::TooLarge(_))));
    }
}
