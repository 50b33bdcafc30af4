//! Migration: one live move of an Instance (migration-and-maintenance.md §2).
//!
//! ```text
//!  Queued --slot--> Placing --target ready--> Preparing --copy--> Copying --stop--> Switching --flip--> Done
//!    |                |   (slots controller)      |                  |                  |
//!    |                |                           +--- abort, then settled by the source +--> Failed, Aborted
//!    +----------------+------------------------------------------------------------------> Failed, Aborted
//! ```
//!
//! Before the hand-off nothing has happened on any node: a move fails or is called off by one write.
//! After it only the source's agent can say that the guest goes on at the source, and only the flip
//! that it runs at the target; the controller waits for either (INV-1). Slots and hand-offs are
//! granted in `engine/slots`, by one decider.

mod events;
mod observe;
mod plan;
pub mod target_pod;

pub use observe::{MigrationController, Observed, migration_uid};
pub use plan::plan;
