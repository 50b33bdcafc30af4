//! Writes raw files without giving space to zeroes, and copies raw files cheaply.

use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};

use crate::unpack::read_full;

/// Unit in which zeroes are left out.
const BLOCK: usize = 64 << 10;

/// Writes everything that `reader` gives to the start of `file`; blocks of zeroes become holes.
/// `seen` is told the bytes handled so far. Returns the number of bytes.
///
/// # Errors
/// When reading or writing fails.
pub fn write(file: &mut File, reader: &mut dyn Read, mut seen: impl FnMut(u64)) -> io::Result<u64> {
    let mut block = vec![0; BLOCK];
    let mut position = 0u64;
    loop {
        let count = read_full(reader, &mut block)?;
        if count == 0 {
            break;
        }
        if block[..count].iter().any(|byte| *byte != 0) {
            file.seek(SeekFrom::Start(position))?;
            file.write_all(&block[..count])?;
        }
        position += count as u64;
        seen(position);
    }
    file.set_len(position)?;
    Ok(position)
}

/// Copies a raw file: shares its blocks where the filesystem can, else copies without zeroes.
///
/// # Errors
/// When reading or writing fails.
pub fn copy(from: &mut File, to: &mut File, seen: impl FnMut(u64)) -> io::Result<u64> {
    if rustix::fs::ioctl_ficlone(&*to, &*from).is_ok() {
        return Ok(to.metadata()?.len());
    }
    write(to, from, seen)
}

/// Bytes that a file takes.
///
/// # Errors
/// When the file cannot be looked at.
pub fn stored(file: &File) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    Ok(file.metadata()?.blocks() * 512)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroes_take_no_space_and_content_is_kept() {
        let mut data = vec![0; 4 << 20];
        data[1_000_000] = 7;
        *data.last_mut().unwrap() = 9;
        data.push(1);
        let mut file = tempfile::tempfile().unwrap();
        let mut last = 0;
        assert_eq!(write(&mut file, &mut &data[..], |n| last = n).unwrap(), data.len() as u64);
        assert_eq!(last, data.len() as u64);
        let mut back = Vec::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_end(&mut back).unwrap();
        assert!(back == data);
        assert!(stored(&file).unwrap() < 1 << 20);
        let mut copied = tempfile::tempfile().unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        copy(&mut file, &mut copied, |_| ()).unwrap();
        back.clear();
        copied.seek(SeekFrom::Start(0)).unwrap();
        copied.read_to_end(&mut back).unwrap();
        assert!(back == data);
    }
}
