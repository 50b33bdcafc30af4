//! Inspection and conversion by `qemu-img`, which is always told the format: it must not guess.

use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::Error;
use crate::format::Format;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    virtual_size: u64,
    #[serde(default)]
    backing_filename: Option<String>,
    #[serde(default)]
    full_backing_filename: Option<String>,
    #[serde(default)]
    encrypted: bool,
    #[serde(default)]
    format_specific: Option<FormatSpecific>,
}

#[derive(Debug, Deserialize)]
struct FormatSpecific {
    #[serde(default)]
    data: Option<serde_json::Value>,
}

/// Size that the guest sees.
///
/// # Errors
/// When the file is broken, encrypted, or refers to another file (it could name any file here).
pub fn inspect(path: &Path, format: Format) -> Result<u64, Error> {
    let output = Command::new("qemu-img")
        .args(["info", "--output=json", "-f", format.name()])
        .arg(path)
        .output()
        .map_err(Error::file("Starting qemu-img for", path))?;
    if !output.status.success() {
        return Err(broken(format, &output.stderr));
    }
    let info: Info = serde_json::from_slice(&output.stdout).map_err(|error| {
        Error::Unusable(format!("qemu-img describes the data in an unknown way: {error}."))
    })?;
    let data = info.format_specific.and_then(|specific| specific.data).unwrap_or_default();
    let outside = info.backing_filename.or(info.full_backing_filename).is_some()
        || data.get("data-file").is_some_and(|file| !file.is_null());
    if outside {
        return Err(Error::Unusable(
            "The image refers to another file (backing or data file): flatten it with qemu-img convert."
                .to_owned(),
        ));
    }
    if info.encrypted {
        return Err(Error::Unusable("The image is encrypted: decrypt it with qemu-img convert.".to_owned()));
    }
    Ok(info.virtual_size)
}

/// Converts to raw, without giving space to zeroes. `seen` is told the share done, in thousandths.
///
/// # Errors
/// When qemu-img cannot be started or fails.
pub fn convert(from: &Path, format: Format, to: &Path, mut seen: impl FnMut(u64)) -> Result<(), Error> {
    let mut child = Command::new("qemu-img")
        .args(["convert", "-p", "-S", "64k", "-f", format.name(), "-O", "raw"])
        .args([from, to])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(Error::file("Starting qemu-img for", from))?;
    if let Some(mut stdout) = child.stdout.take() {
        let (mut text, mut buffer) = (String::new(), [0; 256]);
        while let Ok(count @ 1..) = stdout.read(&mut buffer) {
            text.push_str(&String::from_utf8_lossy(&buffer[..count]));
            if let Some(thousandths) = last_share(&text) {
                seen(thousandths);
            }
            // A share is a few characters: only the end is looked at again.
            let drop = text.char_indices().nth_back(63).map_or(0, |(at, _)| at);
            text.drain(..drop);
        }
    }
    let output = child.wait_with_output().map_err(Error::file("Waiting for qemu-img on", from))?;
    if output.status.success() { Ok(()) } else { Err(broken(format, &output.stderr)) }
}

/// The last `(12.34/100%)` of the text, in thousandths.
fn last_share(text: &str) -> Option<u64> {
    let start = text.rfind('(').map(|at| at + 1)?;
    let number = text[start..].split_once('/')?.0;
    let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
    let tenth = part.chars().next().and_then(|digit| digit.to_digit(10)).unwrap_or(0);
    Some(whole.trim().parse::<u64>().ok()? * 10 + u64::from(tenth))
}

fn broken(format: Format, stderr: &[u8]) -> Error {
    let text = String::from_utf8_lossy(stderr);
    let last = text.trim().lines().last().unwrap_or("no reason given").trim_end_matches('.');
    Error::Unusable(format!("The data is not a usable {} image: {last}.", format.name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_of_qemu_img() {
        assert_eq!(last_share("    (0.00/100%)\r    (12.34/100%)\r"), Some(123));
        assert_eq!(last_share("    (100.00/100%)\r"), Some(1000));
        assert_eq!(last_share("    (12."), None);
    }
}
