//! VirtualMachineOperation: checks, execution, result (vm-lifecycle.md §2.2, §2.3,
//! migration-and-maintenance.md §1).
//!
//! ```text
//!  Pending --checks--> InProgress --done--> Completed          power: the VM controller acts on an
//!     |                    |                                   operation that is InProgress
//!     +------> Failed <----+                                   migration: a Migration object acts
//! ```
//!
//! A finished operation never changes again (INV-7); it is removed after a day, or when ten newer
//! ones of its VM are finished. Start at `plan.rs`; `power.rs` and `migration.rs` are its two halves.

mod migration;
mod observe;
mod plan;
mod power;

/// Annotation on an unfinished operation: a later one overtakes it (`vmop/<name>/<uid>`). It is called
/// off and ends Superseded; the later one waits for that.
pub const SUPERSEDED_BY: &str = "internal.virtualization.deckhouse.io/superseded-by";

pub use migration::migration_name;
pub use observe::{Observed, VmopController};
pub use plan::plan;
