//! The tasks: probe (size and format) and import (fill the target).

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_api::import::{Facts, Request, Source};

use crate::Error;
use crate::fetch::{Checksums, Download};
use crate::format::{self, Format, HEAD};
use crate::progress::{Counter, Printer};
use crate::{qemu, sparse, unpack};

/// Disks are read and written by launchers, each under an id of its own; what keeps others out is
/// that a pod sees only its own volumes.
const DISK_MODE: u32 = 0o666;
/// Images are never written again.
const IMAGE_MODE: u32 = 0o444;
/// Disks are made of sectors.
const SECTOR: u64 = 512;

/// Carries out a request, printing progress.
///
/// # Errors
/// With a sentence for the user; nothing half-made is left behind.
pub fn run(request: &Request, scratch: &Path) -> Result<Facts, Error> {
    let counter = Arc::new(Counter::default());
    let _printer = Printer::start(counter.clone());
    match &request.target {
        None => probe(&request.source, &counter),
        Some(target) => import(request, Path::new(target), scratch, &counter),
    }
}

fn refuse_iso(format: Format, request: &Request) -> Result<(), Error> {
    if format == Format::Iso && !request.image {
        return Err(Error::Unusable(
            "Creating a virtual disk from an ISO image is not supported: use it as an image.".to_owned(),
        ));
    }
    Ok(())
}

/// Unpacked data: what it is, how it begins, and all of it as a reader.
type Looked<'r> = (Format, Vec<u8>, Box<dyn Read + 'r>);

/// Reads the beginning of unpacked data without losing it.
fn look(mut data: Box<dyn Read + '_>) -> Result<Looked<'_>, Error> {
    let mut head = vec![0; HEAD];
    let count = unpack::read_full(&mut *data, &mut head).map_err(unreadable)?;
    head.truncate(count);
    let format = format::of(&head).map_err(Error::Unusable)?;
    let again = std::io::Cursor::new(head.clone()).chain(data);
    Ok((format, head, Box::new(again)))
}

/// An error of a reader chain: the download's own text if it was that, else the unpacker's.
fn unreadable(error: std::io::Error) -> Error {
    if error.get_ref().is_some_and(|inner| inner.is::<Error>()) {
        let inner = error.into_inner().and_then(|inner| inner.downcast::<Error>().ok());
        return inner.map_or_else(|| Error::Unusable("The data cannot be read.".to_owned()), |inner| *inner);
    }
    Error::Unusable(format!("Unpacking or storing the data failed: {error}."))
}

fn probe(source: &Source, counter: &Arc<Counter>) -> Result<Facts, Error> {
    match source {
        Source::Blank => {
            Err(Error::Unusable("A blank disk has no data to look at: give its size.".to_owned()))
        }
        Source::File { path } => {
            let path = Path::new(path);
            let metadata = std::fs::metadata(path).map_err(Error::file("Looking at", path))?;
            Ok(Facts {
                format: "raw".into(),
                virtual_size_bytes: metadata.len(),
                stored_bytes: metadata.len(),
            })
        }
        Source::Http { url, ca_bundle, .. } => {
            let mut download = Download::open(url, ca_bundle.as_deref(), counter.clone())?;
            let total = download.total();
            let (packing, data) = unpack::unpack(&mut download).map_err(unreadable)?;
            let (format, head, mut data) = look(data)?;
            let known = format::virtual_size(format, &head)
                .or(total.filter(|_| format.is_plain() && packing == unpack::Packing::Plain));
            let size = match known {
                Some(size) => size,
                None => std::io::copy(&mut data, &mut std::io::sink()).map_err(unreadable)?,
            };
            drop(data);
            something(size)?;
            let stored_bytes = total.unwrap_or_else(|| download.position());
            Ok(Facts { format: format.name().into(), virtual_size_bytes: whole_sectors(size), stored_bytes })
        }
    }
}

fn whole_sectors(bytes: u64) -> u64 {
    bytes.div_ceil(SECTOR) * SECTOR
}

/// A file being made beside its final place; removed unless finished.
struct Part {
    path: PathBuf,
    target: PathBuf,
    file: File,
    finished: bool,
}

impl Part {
    fn create(target: &Path) -> Result<Self, Error> {
        let mut name = target.as_os_str().to_owned();
        name.push(".part");
        let path = PathBuf::from(name);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(DISK_MODE)
            .open(&path)
            .map_err(Error::file("Creating", &path))?;
        Ok(Self { path, target: target.to_owned(), file, finished: false })
    }

    /// Sets size and mode, makes it durable, gives it its name.
    fn finish(mut self, size: u64, mode: u32) -> Result<u64, Error> {
        let path = self.path.clone();
        self.file.set_len(size).map_err(Error::file("Resizing", &path))?;
        let permissions = std::fs::Permissions::from_mode(mode);
        self.file.set_permissions(permissions).map_err(Error::file("Setting permissions of", &path))?;
        self.file.sync_all().map_err(Error::file("Flushing", &path))?;
        let stored = sparse::stored(&self.file).map_err(Error::file("Looking at", &path))?;
        std::fs::rename(&path, &self.target).map_err(Error::file("Renaming", &path))?;
        self.finished = true;
        let folder = self.target.parent().unwrap_or(Path::new("/"));
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(Error::file("Flushing the folder of", &self.target))?;
        Ok(stored)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.finished {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// A scratch file, removed at the end in any case.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn import(request: &Request, target: &Path, scratch: &Path, counter: &Arc<Counter>) -> Result<Facts, Error> {
    let mut part = Part::create(target)?;
    let (format, size) = match &request.source {
        Source::Blank => (Format::Raw, 0),
        Source::File { path } => (Format::Raw, copy_file(Path::new(path), &mut part, counter)?),
        Source::Http { url, ca_bundle, md5, sha256 } => {
            let download = Download::open(url, ca_bundle.as_deref(), counter.clone())?;
            let checksums = Checksums { md5: md5.clone(), sha256: sha256.clone() };
            fill(request, download, &checksums, &mut part, scratch, counter)?
        }
    };
    let wanted = request.size_bytes.and_then(|bytes| u64::try_from(bytes).ok());
    if let Some(wanted) = wanted {
        enough(wanted, size)?;
    }
    if !matches!(request.source, Source::Blank) {
        something(size)?;
    }
    let virtual_size_bytes = whole_sectors(wanted.unwrap_or(size));
    let mode = if request.image { IMAGE_MODE } else { DISK_MODE };
    let stored_bytes = part.finish(virtual_size_bytes, mode)?;
    Ok(Facts { format: format.name().into(), virtual_size_bytes, stored_bytes })
}

fn something(size: u64) -> Result<(), Error> {
    if size == 0 {
        return Err(Error::Unusable("The data is empty: there is no disk image in it.".to_owned()));
    }
    Ok(())
}

fn enough(wanted: u64, needed: u64) -> Result<(), Error> {
    if wanted >= needed {
        return Ok(());
    }
    let text = |bytes: u64| holdfast_api::Quantity::from_bytes(i64::try_from(bytes).unwrap_or(i64::MAX));
    Err(Error::Unusable(format!(
        "The specified pvc size is insufficient: {} < {}.",
        text(wanted),
        text(whole_sectors(needed))
    )))
}

fn copy_file(path: &Path, part: &mut Part, counter: &Counter) -> Result<u64, Error> {
    let mut from = File::open(path).map_err(Error::file("Opening", path))?;
    let whole = from.metadata().map_err(Error::file("Looking at", path))?.len();
    let mut before = 0;
    let copied = sparse::copy(&mut from, &mut part.file, |position| {
        counter.add(position - before);
        before = position;
        counter.share(position, Some(whole), 0, 100);
    });
    copied.map_err(Error::file("Copying", path))
}

/// Downloads into the part: directly where the bytes are the disk, else by way of a scratch file.
fn fill(
    request: &Request,
    mut download: Download,
    checksums: &Checksums,
    part: &mut Part,
    scratch: &Path,
    counter: &Counter,
) -> Result<(Format, u64), Error> {
    let total = download.total();
    let (_, data) = unpack::unpack(&mut download).map_err(unreadable)?;
    let (format, head, mut data) = look(data)?;
    refuse_iso(format, request)?;
    let wanted = request.size_bytes.and_then(|bytes| u64::try_from(bytes).ok());
    if let (Some(wanted), Some(size)) = (wanted, format::virtual_size(format, &head)) {
        // Said before gigabytes are moved for nothing.
        enough(wanted, size)?;
    }
    if format.is_plain() {
        let seen = |_| counter.share(counter.bytes(), total, 0, 100);
        let size = sparse::write(&mut part.file, &mut *data, seen).map_err(unreadable)?;
        drop(data);
        download.finish(checksums)?;
        return Ok((format, size));
    }
    let scratch = Scratch(scratch.join("download"));
    let path = &scratch.0;
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(Error::file("Creating", path))?;
    let seen = |_| counter.share(counter.bytes(), total, 0, 50);
    sparse::write(&mut file, &mut *data, seen).map_err(unreadable)?;
    drop(data);
    download.finish(checksums)?;
    let size = qemu::inspect(path, format)?;
    if let Some(wanted) = wanted {
        enough(wanted, size)?;
    }
    qemu::convert(path, format, &part.path, |share| counter.share(share, Some(1000), 50, 100))?;
    Ok((format, size))
}
