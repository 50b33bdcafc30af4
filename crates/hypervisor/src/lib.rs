//! From a resolved machine to a running QEMU.
//!
//! Start at [`definition`] for what a machine is, [`argv`] for how QEMU is told, [`port`] for what may be
//! asked of a running one, [`qemu`] and [`fake`] for the two things that answer, [`monitor`] for the
//! decisions of a live migration. Not here: who may start a machine and when (crate `launcher`).
//! Source: spec hypervisor.md.

pub mod argv;
pub mod bootsector;
pub mod compat;
pub mod definition;
pub mod fake;
pub mod monitor;
pub mod port;
pub mod qemu;
pub mod qga;
pub mod qmp;
pub mod seed;
