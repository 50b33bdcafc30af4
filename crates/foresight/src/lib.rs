//! What would happen: the plan of a drain, told before anything is touched.
//!
//! Nothing here decides anew. Where a VM lands is asked of the scheduler's own functions
//! (`holdfast_kubelith_loops::forecast`), with the very pod that the engine would make; who may move, and
//! how many at once, of the rules in `holdfast_domain` and of the decider of slots. Start at [`plan()`].

mod cures;
mod observe;
mod plan;
#[cfg(test)]
mod tests;

pub use observe::{Observed, observe};
pub use plan::{OVERHEAD_S, plan};
