//! What a launcher touches outside of its memory besides QEMU and its records: the sockets of its pod,
//! signals, and files of the node that it only reads. Production uses [`System`]; a simulation puts its
//! own [`Host`] and sockets into [`crate::Config`].

use std::fmt::Debug;
use std::io;
use std::path::Path;
use std::sync::Arc;

use holdfast_wire::local::{LocalSockets, Unix};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// The machine around a launcher.
pub trait Host: Debug + Send + Sync {
    /// Each message says: the pod is being terminated. Asked for once, before anything else is done.
    ///
    /// # Errors
    /// They cannot be heard.
    fn terminations(&self) -> io::Result<mpsc::UnboundedReceiver<()>>;

    /// Whether the disk image at `path` can boot under BIOS.
    ///
    /// # Errors
    /// It cannot be read.
    fn has_boot_sector(&self, path: &Path) -> io::Result<bool>;

    /// A file that belongs to the node's installation, such as the template of UEFI variables.
    ///
    /// # Errors
    /// It cannot be read.
    fn installed_file(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// Whether one of the VM's volumes has this file.
    fn is_there(&self, path: &Path) -> bool;

    /// Makes a file on one of the VM's volumes: whole or, after a crash, not at all.
    ///
    /// # Errors
    /// It cannot be written.
    fn keep(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;
}

/// The machine this process runs on.
#[derive(Clone, Copy, Debug, Default)]
pub struct System;

impl Host for System {
    fn terminations(&self) -> io::Result<mpsc::UnboundedReceiver<()>> {
        let mut signals = signal(SignalKind::terminate())?;
        let (sender, receiver) = mpsc::unbounded_channel();
        tokio::spawn(async move { while signals.recv().await.is_some() && sender.send(()).is_ok() {} });
        Ok(receiver)
    }

    fn has_boot_sector(&self, path: &Path) -> io::Result<bool> {
        holdfast_hypervisor::bootsector::has_boot_signature(path)
    }

    fn installed_file(&self, path: &Path) -> io::Result<Vec<u8>> {
        std::fs::read(path)
    }

    fn is_there(&self, path: &Path) -> bool {
        path.exists()
    }

    fn keep(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        holdfast_sys::durable::write(path, bytes, 0o660)
    }
}

/// Everything outside of a launcher's memory but QEMU and the records. The default is the real thing.
#[derive(Clone, Debug)]
pub struct Outside {
    /// The sockets in the pod's `run` volume.
    pub sockets: Arc<dyn LocalSockets>,
    /// Everything else.
    pub host: Arc<dyn Host>,
}

impl Default for Outside {
    fn default() -> Self {
        Self { sockets: Arc::new(Unix), host: Arc::new(System) }
    }
}
