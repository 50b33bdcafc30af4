//! The controllers on a real API server (kubelith). Scheduler, node runtime and agent are played by
//! the test through the API, each writing exactly the rows that are theirs.

mod moves;
mod power;
mod world;
