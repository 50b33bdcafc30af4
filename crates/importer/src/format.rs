//! Recognises disk formats from the first bytes, and reads the size that a guest sees.

/// Bytes needed to recognise every format (ISO 9660 has its signature at 32769).
pub const HEAD: usize = 36 << 10;

/// A disk format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Sectors as they are.
    Raw,
    /// A CD or DVD image.
    Iso,
    /// QEMU's.
    Qcow2,
    /// VMware's, single file.
    Vmdk,
    /// VirtualBox's.
    Vdi,
}

impl Format {
    /// Its name, as QEMU and the API have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Iso => "iso",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vdi => "vdi",
        }
    }

    /// Whether the bytes are the disk as they are.
    #[must_use]
    pub fn is_plain(self) -> bool {
        match self {
            Self::Raw | Self::Iso => true,
            Self::Qcow2 | Self::Vmdk | Self::Vdi => false,
        }
    }
}

/// The format of data that begins with `head`.
///
/// # Errors
/// A sentence: the format is known and not supported.
pub fn of(head: &[u8]) -> Result<Format, String> {
    let at = |offset: usize, signature: &[u8]| head.get(offset..offset + signature.len()) == Some(signature);
    if at(0, b"QFI\xfb") {
        return Ok(Format::Qcow2);
    }
    if at(0, b"KDMV") {
        return Ok(Format::Vmdk);
    }
    if at(0x40, &0xbeda_107f_u32.to_le_bytes()) {
        return Ok(Format::Vdi);
    }
    if at(32769, b"CD001") {
        return Ok(Format::Iso);
    }
    if is_web_page(head) {
        return Err("The data is a web page, not a disk image: check the URL.".to_owned());
    }
    let refused = if at(0, b"# Disk DescriptorFile") || at(0, b"COWD") {
        "vmdk in several files"
    } else if at(0, b"conectix") {
        "vhd"
    } else if at(0, b"vhdxfile") {
        "vhdx"
    } else {
        return Ok(Format::Raw);
    };
    Err(format!("The format {refused} is not supported: use qcow2, raw, vmdk in one file, vdi or iso."))
}

/// What servers send, with a good status, in the place of a file that they do not have.
fn is_web_page(head: &[u8]) -> bool {
    let begins = |with: &str| {
        let text = head.trim_ascii_start();
        text.get(..with.len()).is_some_and(|beginning| beginning.eq_ignore_ascii_case(with.as_bytes()))
    };
    begins("<!doctype") || begins("<html") || begins("<?xml")
}

/// Size that the guest sees, where the header says it.
#[must_use]
pub fn virtual_size(format: Format, head: &[u8]) -> Option<u64> {
    let eight = |offset: usize| head.get(offset..offset + 8).and_then(|bytes| bytes.try_into().ok());
    match format {
        Format::Raw | Format::Iso => None,
        Format::Qcow2 => eight(24).map(u64::from_be_bytes),
        Format::Vmdk => eight(12).map(u64::from_le_bytes).and_then(|sectors| sectors.checked_mul(512)),
        Format::Vdi => eight(0x170).map(u64::from_le_bytes),
    }
    .filter(|size| *size > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(offset: usize, signature: &[u8]) -> Vec<u8> {
        let mut head = vec![0; HEAD];
        head[offset..offset + signature.len()].copy_from_slice(signature);
        head
    }

    #[test]
    fn formats_by_signature() {
        assert_eq!(of(&head(0, b"QFI\xfb")), Ok(Format::Qcow2));
        assert_eq!(of(&head(0, b"KDMV")), Ok(Format::Vmdk));
        assert_eq!(of(&head(0x40, &[0x7f, 0x10, 0xda, 0xbe])), Ok(Format::Vdi));
        assert_eq!(of(&head(32769, b"CD001")), Ok(Format::Iso));
        assert_eq!(of(&head(510, &[0x55, 0xaa])), Ok(Format::Raw));
        assert_eq!(of(b""), Ok(Format::Raw));
        assert!(of(b"\n <!DOCTYPE html><html>").unwrap_err().contains("a web page"));
        assert!(of(&head(0, b"vhdxfile")).unwrap_err().contains("vhdx"));
    }

    #[test]
    fn sizes_from_headers() {
        let qcow2 = head(24, &(5u64 << 30).to_be_bytes());
        assert_eq!(virtual_size(Format::Qcow2, &qcow2), Some(5 << 30));
        let vmdk = head(12, &2048u64.to_le_bytes());
        assert_eq!(virtual_size(Format::Vmdk, &vmdk), Some(1 << 20));
        assert_eq!(virtual_size(Format::Raw, &qcow2), None);
    }
}
