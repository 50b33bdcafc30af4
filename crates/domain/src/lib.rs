//! Pure rules that two or more parts share. No I/O, no clock, no randomness: everything comes in
//! as a value.
//!
//! One file per rule; each begins with the section of the spec it implements. Admission rules are
//! in `admission`, everything else is used by controllers, agent and launcher.

pub mod admission;
pub mod backoff;
pub mod changes;
pub mod eviction;
pub mod exit;
pub mod identity;
pub mod launcher;
pub mod migration;
pub mod neighbours;
pub mod placement;
pub mod power;
pub mod refusal;
pub mod sizing;
pub mod topology;
pub mod user_data;
