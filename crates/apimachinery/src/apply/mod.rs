//! Server-side apply and managed fields (KS §9.6).

use serde_json::Value;

use crate::{
    kind::{Endpoint, Kind},
    status::Status,
};

/// Who writes.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    /// Field manager.
    pub manager: &'a str,
    /// Subresource name, empty for the main endpoint.
    pub subresource: &'a str,
    /// Endpoint, decides which fields are tracked.
    pub endpoint: Endpoint,
    /// Now, RFC 3339 seconds.
    pub now: &'a str,
}

/// Merges an applied configuration into the live object (or creates it). The result carries the
/// new managedFields; `Ok` with a value equal to `live` means "nothing to write". Defaulting,
/// `prepare_*` and validation come after.
///
/// # Errors
/// 400 for a body that may not be applied, 409 for conflicts.
pub fn apply(
    kind: &Kind,
    live: Option<&Value>,
    patch: &Value,
    writer: Writer<'_>,
    force: bool,
) -> Result<Value, Status> {
    let _ = (kind, live, patch, writer, force);
    todo!()
}

/// Records a non-apply write: `new` (after defaulting, admission and `prepare_*`) gets its
/// managedFields from those of `new` (if the client changed them) or `live`.
pub fn track(kind: &Kind, live: Option<&Value>, new: &mut Value, writer: Writer<'_>) {
    let _ = (kind, live, new, writer);
    todo!()
}
