//! The shape of every controller: observe, plan, apply (style.md §7).
//!
//! ```text
//! observe (reads caches, may fail) -> plan (pure, cannot fail) -> apply (writes, may fail)
//!   Observed: plain data               Plan: status, effects,       one interpreter for all
//!   with `now` and entropy inside      wake, why                    controllers
//! ```
//!
//! A controller author learns these words:
//!
//! - [`Cache`]: a watched kind, shared by all controllers; sorted, with its own writes visible at
//!   once ([`Caches::cache`] opens it). An [`Index`] finds its objects by what is written in them.
//! - [`Controller`]: `name`, `watches`, `observe`, `plan`.
//! - [`Plan`]: at most one status change of the controller's own object, then effects in order,
//!   then an instant at which to look again, and the reasons ([`Why`]).
//! - [`Effect`]: create, patch, delete, evict, event. Every one is guarded and idempotent.
//! - [`Answers`]: what was answered to our evictions and creations ([`Caches::evictions`], [`Caches::creations`]).
//! - [`Conditions`]: conditions whose transition time moves only when status or reason
//!   changes.
//! - [`Runtime`]: runs controllers while this process is the leader ([`lease`]).
//!
//! Rules: `plan` sees no clock, no client, no randomness (INV-9). Status is written first, it is
//! the recorded intent; the first failing effect ends the pass and the next pass plans anew.
//! Planning twice on the settled world yields [`Plan::is_empty`].

mod answers;
mod apply;
mod cache;
mod conditions;
mod error;
mod event;
mod index;
pub mod lease;
mod metrics;
mod plan;
mod queue;
mod reconnect;
mod run;

pub use answers::{Answer, Answers};
pub use cache::{Cache, Caches, Key, Kind};
pub use conditions::{Conditions, Tri, condition, is_true};
pub use error::{Class, Error};
pub use holdfast_metrics::{MetricKind, Metrics, Page, WeakMetrics, label_text};
pub use index::{Index, Terms};
pub use plan::{
    Create, Effect, Note, NoteKind, Object, Patch, Plan, Ref, Why, controller_of, merge_difference,
    owner_reference,
};
pub use reconnect::Reconnect;
pub use run::{Controller, Pass, Runtime, Watches};
