//! The front of group `virtualization.deckhouse.io`.

pub mod vm;
pub mod vmop;
