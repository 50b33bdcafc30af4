//! NodeMaintenance: a node is leased, cordoned and drained as long as the object exists
//! (migration-and-maintenance.md §8).
//!
//! Pods leave through the eviction API only. VMs therefore move as in any drain: the eviction handler
//! marks the Instance and refuses until the VM has left (`evacuation`). What was refused is asked for
//! again every five seconds, without end, and shown in the status. Start at `plan.rs`; who else may hold
//! the node is in `lease.rs`, what has to leave in `drain.rs`, what a closed node looks like in `closing.rs`.

mod closing;
mod drain;
mod lease;
mod observe;
mod plan;

pub use observe::{NodeMaintenanceController, Observed};
pub use plan::plan;
