//! The simulation: the platform's real processes on one thread, with everything outside of them modelled.
//!
//! One seed gives one history, bit for bit. Start at [`run`]; the world is [`world`], what travels between
//! processes [`net`], what must never happen [`check`]. docs/simulation.md explains how to add a fault, an
//! invariant, a mutant, a controller.

pub mod api;
pub mod check;
pub mod containers;
pub mod deed;
pub mod fault;
pub mod guest_agent;
pub mod guests;
pub mod home;
pub mod kept;
pub mod kubelet;
pub mod liveness;
pub mod mutants;
pub mod net;
pub mod page;
pub mod panics;
pub mod peers;
pub mod plot;
pub mod plots;
pub mod process;
pub mod promises;
pub mod random;
pub mod run;
pub mod scale;
pub mod shrink;
pub mod sockets;
pub mod start;
pub mod surroundings;
pub mod swarm;
pub mod timeline;
pub mod trace;
pub mod truth;
pub mod user;
pub mod world;
