//! Everything a controller must not fetch by itself: time, randomness, names, faults.
//!
//! What lives here: [`Clock`] (now and timers), [`Entropy`] (a tree of named random streams),
//! [`derived_name`] (names of created objects), [`fault`] (named points at which tests kill or
//! delay a process), [`ambient`] (how a simulation takes over all of these on its thread), [`mutant!`]
//! (deliberate bugs that the simulation must find), [`watch`] (a watched value with a fixed order of waking), [`work`]
//! (what work costs). Each has a real form and a virtual one.
//!
//! What does not: rules (crate `domain`), I/O.
//!
//! Pure code never holds a clock: it gets `now` as a value (INV-9).

pub mod ambient;
mod clock;
mod entropy;
pub mod fault;
mod name;
pub mod watch;
pub mod work;

pub use ambient::{now, random_u64, simulated};
pub use clock::{Clock, Timestamp, VirtualClock};
pub use entropy::{Entropy, Stream};
pub use name::{derived_name, suffix};
