//! The engine: what both fronts share. It knows Instances, Migrations, pods and nodes, and nothing
//! of users' objects.

pub mod instance;
pub mod migration;
pub mod slots;
