//! VirtualMachine: its dependencies, its Instance, its status (vm-lifecycle.md §1 to §3).
//!
//! ```text
//!  observe -> devices, dependencies (conditions) -> power (start? stop?) -> desire (Instance.spec)
//!                                                                      -> project (status, phase)
//! ```
//!
//! Start at `plan.rs`. What decides about starting and stopping is in `power.rs`; what the guest
//! gets is in `desire.rs`; what users see is in `project.rs` and `phase.rs`.

mod dependencies;
mod desire;
mod devices;
mod observe;
mod phase;
mod plan;
mod power;
mod project;

pub use devices::Device;
pub(crate) use observe::secret_name;
pub use observe::{Observed, VmController};
pub use plan::plan;
pub use power::tag;

/// Annotation on an Instance: what begot its present epoch (`policy`, `changes`, `vmop/<name>/<uid>`).
pub const STARTED_BY: &str = "internal.virtualization.deckhouse.io/started-by";

/// Prefix of `spec.stop.by` when a start shall follow the stop.
pub const RESTART: &str = "restart:";
