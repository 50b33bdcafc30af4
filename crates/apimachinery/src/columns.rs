//! Table answers (KS §7.5).

use chrono::{DateTime, Utc};
use serde_json::Value;

use crate::kind::Kind;

/// One column definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnDef {
    /// Header.
    pub name: String,
    /// `string`, `integer`, `number`, `boolean`, `date`.
    pub kind: String,
    /// `name` for the first column, else empty or the CRD's.
    pub format: String,
    /// Description.
    pub description: String,
    /// 0 always shown, 1 only wide.
    pub priority: i64,
}

/// `includeObject` of a Table request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncludeObject {
    /// PartialObjectMetadata.
    #[default]
    Metadata,
    /// The full object.
    Object,
    /// Nothing.
    None,
}

/// A Table of `objects`; `metadata` is the list's (or `{resourceVersion}`). With `headers` false
/// (later events of a watch) `columnDefinitions` is null.
#[must_use]
pub fn table(
    kind: &Kind,
    objects: &[&Value],
    metadata: Value,
    include: IncludeObject,
    headers: bool,
    now: DateTime<Utc>,
) -> Value {
    let _ = (kind, objects, metadata, include, headers, now);
    todo!()
}

/// The Table of a BOOKMARK event; `object` is the bookmark object.
#[must_use]
pub fn bookmark_table(kind: &Kind, object: &Value, headers: bool) -> Value {
    let _ = (kind, object, headers);
    todo!()
}

/// `PartialObjectMetadata` of an object.
#[must_use]
pub fn partial_metadata(object: &Value) -> Value {
    let _ = object;
    todo!()
}
