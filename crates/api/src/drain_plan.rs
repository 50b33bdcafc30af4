//! `DrainPlan`: what a drain of a node would do. An answer, not an object: it is computed when asked for
//! (`nodes/NODE/drainplan` of the subresource group) and never stored.

use serde::{Deserialize, Serialize};

/// What a drain of a node would do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DrainPlan {
    /// `DrainPlan`.
    pub kind: String,
    /// The node.
    pub node: String,
    /// Whether the drain would come to its end.
    pub goes_through: bool,
    /// The node is cordoned already.
    pub cordoned: bool,
    /// Moves, in the order in which they are expected.
    pub moves: Vec<PlannedMove>,
    /// VMs that shut down instead of moving.
    pub stops: Vec<PlannedStop>,
    /// VMs for which the drain would wait.
    pub blocked: Vec<Blocked>,
    /// The limits the estimate counts with.
    pub limits: Limits,
    /// Seconds from the drain's begin to the end of its last move.
    pub total_seconds: f64,
}

/// Limits on moves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Moves in the cluster at once.
    pub cluster: i64,
    /// Moves of other nodes' VMs that are under way.
    pub taken: i64,
    /// Moves out of the node at once.
    pub outbound: i64,
    /// Bytes a second of one move.
    pub bandwidth: i64,
}

/// A VM that would move.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedMove {
    /// Namespace of the VM.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Where it would land.
    pub target: String,
    /// Other nodes that are as good for the scheduler.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alternatives: Vec<String>,
    /// The move has begun already.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub under_way: bool,
    /// Guest memory, bytes.
    pub memory_bytes: i64,
    /// Measured rate at which the guest dirties memory, bytes a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dirty_bytes_per_second: Option<i64>,
    /// Whether the guest may be slowed down.
    pub may_slow_down: bool,
    /// Seconds from the drain's begin to the begin of this move.
    pub starts_after_seconds: f64,
    /// Seconds the move takes.
    pub seconds: f64,
    /// What else is to be known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// A VM that would be shut down.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedStop {
    /// Namespace of the VM.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Why.
    pub message: String,
}

/// A VM for which the drain would wait.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Blocked {
    /// Namespace of the VM.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `NotMigratable`, `NoNode`, `NotRunning`, `NotConverging`, `External`.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
    /// Why each node refuses it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<NodeRefusal>,
    /// What would unblock it; any of these.
    pub cures: Vec<String>,
}

/// Why a node refuses a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeRefusal {
    /// The node.
    pub node: String,
    /// Reasons, in the scheduler's words.
    pub reasons: Vec<String>,
}
