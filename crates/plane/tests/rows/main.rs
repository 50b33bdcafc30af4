//! Rows of the acceptance tables that the control plane alone decides, on the whole of it: API server
//! with admission, control loops, all controllers, in one thread on a paused clock. Node runtimes and
//! agents are played (`nodes.rs`): they write exactly the rows of the API that are theirs. Hours pass
//! in seconds; no guest runs.

mod config;
mod drain;
mod firmware;
mod foresight;
mod maintenance;
mod moves;
mod nodes;
mod operators;
mod queue;
mod quota;
mod tables;
mod vm;
mod world;
