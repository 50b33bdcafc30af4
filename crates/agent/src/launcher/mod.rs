//! The launchers of this node: one driver each, from the moment the pod's socket appears until the
//! pod is gone.

pub mod conversation;
pub mod plan;
