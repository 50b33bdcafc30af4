//! What crosses nodes: agent to agent, gateway to agent. Over TLS with client certificates on the agent's port.
//!
//! A connection begins with one [`Open`] frame and one [`Opened`] frame back; after `Opened::Stream`
//! the connection is raw bytes, after `Opened::Done` or a refusal it ends (or another Open follows).

use serde::{Deserialize, Serialize};

use crate::Id;
use crate::launcher::SeedFiles;

/// TCP port of every agent on its node's address.
pub const PORT: u16 = 4130;

/// First frame of a connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Opening {
    /// Version in which this came, [`Open::since`].
    pub v: u32,
    /// What is wanted.
    pub open: Open,
}

impl Opening {
    /// The frame for what is wanted.
    #[must_use]
    pub fn of(open: Open) -> Self {
        Self { v: open.since(), open }
    }
}

/// What a connection is for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Open {
    /// Source agent: the control stream of a move, to the target launcher.
    Control {
        /// Uid of the Migration.
        migration_uid: String,
        /// The target launcher.
        target: Id,
    },
    /// Source agent: the memory stream of a move, to the target's QEMU.
    Memory {
        /// Uid of the Migration.
        migration_uid: String,
        /// The target launcher.
        target: Id,
    },
    /// From now on `address` is reached through `node`. An older generation is ignored.
    Route(Route),
    /// What is certain about a launcher on this node: answered with [`Opened::Records`].
    AskLauncher {
        /// The launcher.
        id: Id,
    },
    /// Target agent: the provisioning files that the source of a move was started with, where they cannot
    /// be had from the API any more. Only for the node the move goes to; answered with [`Opened::Seed`].
    Seed {
        /// Uid of the Migration.
        migration_uid: String,
        /// The source launcher.
        source: Id,
    },
    /// Gateway: measure how fast a guest on this node dirties memory; answered with [`Opened::DirtyRate`].
    DirtyRate {
        /// `metadata.uid` of the Instance.
        vm_uid: String,
        /// How long, 1 to 60.
        seconds: u32,
    },
    /// Gateway: a byte stream to a guest on this node.
    Stream {
        /// `metadata.uid` of the Instance.
        vm_uid: String,
        /// Which.
        kind: StreamTo,
    },
}

impl Open {
    /// The version in which it came: only an agent that speaks at least this one knows it.
    #[must_use]
    pub fn since(&self) -> u32 {
        match self {
            Self::Seed { .. } | Self::DirtyRate { .. } => 2,
            Self::Control { .. }
            | Self::Memory { .. }
            | Self::Route(_)
            | Self::AskLauncher { .. }
            | Self::Stream { .. } => 1,
        }
    }
}

/// A VM's address and the node behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The VM's IPv4 address.
    pub address: String,
    /// Name of the node.
    pub node: String,
    /// Address of the node.
    pub node_address: String,
    /// Grows with every switch of this address: (epoch, number of the move).
    pub generation: (i64, i64),
}

/// Streams the gateway may open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StreamTo {
    /// Serial console.
    Console,
    /// RFB.
    Vnc,
    /// A TCP port of the guest.
    Port(u16),
}

/// Answer to [`Open`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Opened {
    /// Raw bytes follow.
    Stream,
    /// It is done.
    Done,
    /// To AskLauncher.
    Records(Records),
    /// To Seed.
    Seed(SeedFiles),
    /// To DirtyRate.
    DirtyRate {
        /// Bytes a second.
        bytes_s: i64,
    },
    /// No; `why` is a sentence for people.
    Refused {
        /// What stood against it.
        why: String,
    },
}

/// What is certain about a launcher.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Records {
    /// No process of it is left, and none will be started.
    pub ended: bool,
    /// Its record says that it began to continue the guest.
    pub continued: bool,
    /// Its record says that it gave up the right to run.
    pub gave_up: bool,
    /// Its volume was found; when false nothing is certain but what `ended` says.
    pub found: bool,
}
