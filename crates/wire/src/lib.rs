//! Versioned messages between agent and launcher, launcher and launcher, agent and agent, gateway and agent.
//!
//! Here: the messages, their framing, and the connection types. Not here: TLS, who may send what when.
//! Start at [`launcher`] for the pod side, [`peer`] for what crosses nodes, [`frame`] for the bytes,
//! [`local`] for what carries them inside a node.
//! A frame is a 4-byte big-endian length and JSON. Programs of two releases meet: launchers outlive the update of
//! their agent. A message therefore bears the version in which it came (`since`), and what the other side is too
//! old for is not sent.
//! Source: design/first-slice.md §4.3, migration-and-maintenance.md §2.4.

pub mod frame;
pub mod launcher;
pub mod local;
pub mod memory;
pub mod peer;
pub mod unix;

use serde::{Deserialize, Serialize};

/// Version of the messages that this build speaks. 2: provisioning files and dirty rate can be asked for.
pub const VERSION: u32 = 2;
/// Oldest version this build accepts.
pub const OLDEST: u32 = 1;

/// Whom a message is about: one power-on in one pod. A receiver refuses a message that bears another id.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Id {
    /// `metadata.uid` of the Instance.
    pub instance_uid: String,
    /// `spec.epoch` of the Instance.
    pub epoch: i64,
    /// Uid of the launcher pod.
    pub pod_uid: String,
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "instance {} epoch {} pod {}", self.instance_uid, self.epoch, self.pod_uid)
    }
}
