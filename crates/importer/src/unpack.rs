//! Undoes gz and xz, recognised by content, never by name.

use std::io::{BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use liblzma::bufread::XzDecoder;

/// Bytes looked at to recognise the packing.
const LOOK: usize = 64 << 10;

/// How the data is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// Not at all.
    Plain,
    /// gzip.
    Gz,
    /// xz.
    Xz,
}

impl Packing {
    /// The packing of data that begins with `head`.
    #[must_use]
    pub fn of(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, 0x08, ..] => Self::Gz,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            _ => Self::Plain,
        }
    }
}

/// The unpacked data of `source`, and how it was packed.
///
/// # Errors
/// When the first bytes cannot be read.
pub fn unpack<'r, R: Read + 'r>(source: R) -> std::io::Result<(Packing, Box<dyn Read + 'r>)> {
    let mut source = BufReader::with_capacity(LOOK, source);
    let packing = Packing::of(source.fill_buf()?);
    let reader: Box<dyn Read + 'r> = match packing {
        Packing::Plain => Box::new(source),
        Packing::Gz => Box::new(MultiGzDecoder::new(source)),
        Packing::Xz => Box::new(XzDecoder::new_multi_decoder(source)),
    };
    Ok((packing, reader))
}

/// Reads until the buffer is full or the data ends; returns the bytes read.
///
/// # Errors
/// When reading fails.
pub fn read_full(reader: &mut dyn Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => (),
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn packings_are_recognised_and_undone() {
        let data = b"some data".repeat(1000);
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&data).unwrap();
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(&data).unwrap();
        for (expected, packed) in [
            (Packing::Plain, data.clone()),
            (Packing::Gz, gz.finish().unwrap()),
            (Packing::Xz, xz.finish().unwrap()),
        ] {
            let (packing, mut reader) = unpack(&packed[..]).unwrap();
            let mut out = Vec::new();
            reader.read_to_end(&mut out).unwrap();
            assert_eq!((packing, out == data), (expected, true));
        }
    }
}
