//! What Linux offers and safe Rust does not: namespaces, child processes with dropped privileges,
//! process identity, descriptor passing, taps, cgroups, mounts, durable files.
//!
//! The only crate of the workspace with `unsafe`. Every function here is safe to call; what a caller
//! has to know (threads, order, privileges) stands at the function. Errors are `std::io::Error` with
//! the failing step in the text (see [`context`]).
#![allow(unsafe_code)]
#![cfg(target_os = "linux")]

pub mod asyncfd;
pub mod cgroup;
pub mod durable;
pub mod fdpass;
pub mod kvm;
pub mod lock;
pub mod logfile;
pub mod memory;
pub mod mount;
pub mod namespace;
pub mod packet;
pub mod pidfd;
pub mod proc;
pub mod signals;
pub mod spawn;
pub mod tap;
pub mod unixat;

use std::fmt::Display;
use std::io;

/// Adds the failing step to an I/O error: `what: why`. The kind and thereby the meaning stay.
///
/// # Errors
/// Only the error of `result`, reworded.
pub fn context<T, E: Into<io::Error>>(result: Result<T, E>, what: impl FnOnce() -> String) -> io::Result<T> {
    result.map_err(|error| {
        let error: io::Error = error.into();
        io::Error::new(error.kind(), format!("{}: {error}", what()))
    })
}

/// Builds an error of kind `Other` from a sentence.
pub(crate) fn other(text: impl Display) -> io::Error {
    io::Error::other(text.to_string())
}
