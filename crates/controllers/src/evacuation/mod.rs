//! Evacuation: a VM that shall leave its node gets `evacuation-*` operations until it has left
//! (migration-and-maintenance.md §1.8, §6.5 to §6.7).
//!
//! The eviction handler marks the Instance (`status.evacuationNodeName`, and in which version of the node a drain had
//! closed it); the flip of the move clears the mark. This controller does what lies between: creates operations, one at a time, with a
//! growing delay after failures; calls off what has not begun when the node is uncordoned; takes a
//! deleted operation as the wish to stay. Start at `plan.rs`, `RETRY` is `domain::backoff`.

mod observe;
mod plan;

pub use observe::{EvacuationController, NodeSeen, Observed};
pub use plan::plan;
