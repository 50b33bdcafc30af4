//! The fronts: users' objects to Instances and back. A front talks neither to pods nor to QEMU.

pub mod deckhouse;
