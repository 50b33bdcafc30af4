//! What makes an API server the platform's control plane: definitions, first objects, admission rules
//! and the identities of its processes. One source for the embedded plane and for the simulation.
//!
//! What does not live here: files, listeners, processes (crate `holdfast`), and what the rules say
//! (crate `domain`).

mod contents;
mod eviction;
mod rules;
mod users;

use std::sync::Arc;

use holdfast_kubelith::Admission;

pub use contents::contents;
pub use eviction::EvictionHook;
pub use rules::UserRules;
pub use users::Identity;

/// The rules asked on every write, in order.
#[must_use]
pub fn admission() -> Vec<Arc<dyn Admission>> {
    vec![Arc::new(EvictionHook), Arc::new(UserRules)]
}
