//! Fills a volume with a disk or image: downloads, verifies, unpacks and converts to one raw, sparse
//! file (vm-lifecycle.md §8.3). What is asked for and what is answered: `holdfast_api::import`.
//!
//! The target appears only when it is complete and on disk: all work happens in a file beside it
//! that is renamed at the end and removed on failure.
//!
//! Start at `task.rs`. `fetch` downloads and resumes, `cause` says what
//! went wrong on the way, `unpack` undoes gz and xz, `format` recognises
//! what it is, `sparse` writes, `qemu` converts what is neither raw nor ISO.

pub mod cause;
pub mod fetch;
pub mod format;
pub mod progress;
pub mod qemu;
pub mod sparse;
pub mod task;
pub mod unpack;

/// Why an import failed: every text is a sentence for the user.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server or the way to it.
    #[error("Downloading {url} failed: {why}.")]
    Download {
        /// Address.
        url: String,
        /// Cause.
        why: String,
    },
    /// The bytes received are not the expected ones.
    #[error("The {kind} checksum of the download is {actual}, not {expected} as demanded.")]
    Checksum {
        /// `md5` or `sha256`.
        kind: &'static str,
        /// As given.
        expected: String,
        /// As computed.
        actual: String,
    },
    /// The data cannot be used.
    #[error("{0}")]
    Unusable(String),
    /// Reading or writing a file failed.
    #[error("{step} {path} failed: {source}.")]
    File {
        /// What was done.
        step: &'static str,
        /// The file.
        path: String,
        /// Cause.
        source: std::io::Error,
    },
}

impl Error {
    /// Wraps a failure of a file operation.
    pub fn file(step: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.display().to_string();
        move |source| Self::File { step, path, source }
    }
}
