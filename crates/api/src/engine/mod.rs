//! The engine's internal kinds: `Instance` (one a VM) and `Migration` (one live move of an Instance).
//!
//! Group `internal.virtualization.deckhouse.io/v1alpha1`. Fronts create and delete these objects,
//! engine controllers and agents write their status. Who writes which field stands on the field;
//! nobody else may. Source: design/first-slice.md §4.1 and §4.2.

mod instance;
mod instance_status;
mod migration;

pub use instance::*;
pub use instance_status::*;
pub use migration::*;

use schemars::{Schema, SchemaGenerator, json_schema};

/// API group of the engine's kinds.
pub const GROUP: &str = "internal.virtualization.deckhouse.io";
/// Version of the engine's kinds.
pub const VERSION: &str = "v1alpha1";
/// Finalizer that keeps an Instance until every launcher pod of it is gone.
pub const INSTANCE_CLEANUP: &str = "internal.virtualization.deckhouse.io/instance-cleanup";
/// Finalizer that keeps a Migration until its abort has been settled. Deleting a Migration aborts it.
pub const MIGRATION_CLEANUP: &str = "internal.virtualization.deckhouse.io/migration-cleanup";

/// Schema of a field that holds another API's object as it was given.
fn any_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
}

/// Schema of a list that holds another API's objects as they were given.
fn any_objects(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "items": { "type": "object", "x-kubernetes-preserve-unknown-fields": true }
    })
}
