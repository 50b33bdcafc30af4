//! Parts of the bench: bare QEMU to compare with, a TCP ping, a drain, requests, memory of processes, the report.
//!
//! Not here: what is measured in which order; that is the program `holdfast-bench`.

pub mod bare;
pub mod drain;
pub mod memory;
pub mod ping;
pub mod report;
pub mod requests;
pub mod simulation;
pub mod watch;
