//! End-to-end tests: one file per chapter of what users do. Each test has a platform of its own.

mod cli;
mod crash;
mod disks;
mod drain;
mod evictions;
mod firmware;
mod first_light;
mod handover;
mod links;
mod maintenance;
mod migration;
mod power;
mod queue;
mod resources;
mod support;
mod uefi;
mod waiting;
