//! Instance: one power-on of a VM after the other, as a launcher pod each (vm-lifecycle.md §10,
//! first-slice.md §4.1).
//!
//! ```text
//!            retry_at                pod bound, fence lease             agent reports
//!  Waiting ----------> Placing ----------------------------> Booting ---------------> Running <-> Paused
//!     |                   |          (claim is written)          |                       |
//!     | power Off         | power Off                            | power Off, pod deleted, VM deleted
//!     v                   v                                      v                       v
//!   Ended <------------ Ended                                 Stopping -------------> Ended
//!         no claim: nothing ever started                         agent's report with an empty cgroup,
//!                                                                or the node came back under another boot id
//! ```
//!
//! The claim is the lock (INV-1, INV-3): no launcher starts QEMU unless `status.claim` names its
//! pod, and no epoch ends without a proof once a claim was written. A pod that is missing, a phase
//! set by pod garbage collection or a missing Node prove nothing.
//!
//! Start at `plan.rs`. The pod itself is in `launcher_pod.rs`.

pub mod launcher_pod;
mod observe;
mod plan;

pub use observe::{InstanceController, Observed, fence_holder, launcher_pods, node_lost_since};
pub use plan::{container_waiting, plan, reason};
