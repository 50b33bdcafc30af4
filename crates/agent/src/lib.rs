//! The agent: one per node. It plugs VMs into the network, lets launchers start their guests once the
//! API says they may, moves guests between nodes, and reports what it sees.

pub mod network;
