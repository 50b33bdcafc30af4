//! `/openapi/v3` and `/openapi/v2` documents generated from the served kinds (KS §5).

use std::sync::Arc;

use serde_json::Value;

use crate::kind::Kind;

/// The v3 document of one group-version.
#[must_use]
pub fn v3(group: &str, version: &str, kinds: &[Arc<Kind>]) -> Value {
    let _ = (group, version, kinds);
    todo!()
}

/// Root of `/openapi/v3`: `(path such as "apis/g/v", hash)` pairs.
#[must_use]
pub fn v3_root(documents: &[(String, String)]) -> Value {
    let _ = documents;
    todo!()
}

/// Hash used in `?hash=` and as ETag.
#[must_use]
pub fn hash(document: &[u8]) -> String {
    let _ = document;
    todo!()
}

/// Swagger 2.0 of all served kinds.
#[must_use]
pub fn v2(kinds: &[Arc<Kind>], git_version: &str) -> Value {
    let _ = (kinds, git_version);
    todo!()
}

/// The v2 document as gnostic protobuf for kubectl 1.28.
#[must_use]
pub fn v2_protobuf(kinds: &[Arc<Kind>], git_version: &str) -> Vec<u8> {
    let _ = (kinds, git_version);
    todo!()
}
