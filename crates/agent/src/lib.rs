//! The agent: one per node. It plugs VMs into the network, lets launchers start their guests once the
//! API says they may, moves guests between nodes, and reports what it sees.

pub mod accelerator;
pub mod authorise;
pub mod cluster;
pub mod config;
pub mod definition;
pub mod fence;
pub mod launcher;
pub mod network;
pub mod node;
pub mod records;
pub mod report;
