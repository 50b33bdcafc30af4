//! A stored object: its identity and labels beside its compact JSON text.
//!
//! Objects are kept as text, not as trees: a list or a watch then answers without serialising, and the
//! memory of a thousand objects stays a few MiB. Writers parse the one object they change.

use bytes::Bytes;
use serde_json::Value;
use std::sync::Arc;

/// Namespace (empty for cluster-scoped kinds) and name; ordered as lists are: by namespace, then name, bytewise.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Namespace, empty for cluster-scoped kinds.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl Key {
    /// Builds a key.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

/// One version of one object. Immutable; shared by the collection, the watch history and readers.
#[derive(Debug)]
pub struct Object {
    /// Namespace and name.
    pub key: Key,
    /// `metadata.uid`.
    pub uid: Arc<str>,
    /// Revision of the write that made this version (`metadata.resourceVersion`).
    pub rev: u64,
    /// `metadata.labels` (null if absent), for selectors without parsing the object.
    pub labels: Value,
    /// `spec.nodeName`, by which every node runtime selects its pods.
    pub node: Option<Arc<str>>,
    /// The complete object as compact JSON, in the storage version, with its resourceVersion.
    pub json: Bytes,
}

impl Object {
    /// Builds the stored form of `value`, whose resourceVersion becomes `rev`.
    pub fn from_value(mut value: Value, rev: u64) -> Self {
        value["metadata"]["resourceVersion"] = Value::String(rev.to_string());
        let json =
            Bytes::from(serde_json::to_vec(&value).expect("invariant: a JSON value always serialises"));
        Self::indexed(&value, rev, json)
    }

    /// Rebuilds the stored form from its own text, read from disk.
    ///
    /// # Errors
    /// The text is not JSON.
    pub fn from_json(json: Bytes, rev: u64) -> Result<Self, serde_json::Error> {
        let value: Value = serde_json::from_slice(&json)?;
        Ok(Self::indexed(&value, rev, json))
    }

    fn indexed(value: &Value, rev: u64, json: Bytes) -> Self {
        let text = |field: &str| value["metadata"][field].as_str().unwrap_or("").to_owned();
        Self {
            key: Key::new(&text("namespace"), &text("name")),
            uid: text("uid").into(),
            rev,
            labels: value["metadata"]["labels"].clone(),
            node: value["spec"]["nodeName"].as_str().map(Into::into),
            json,
        }
    }

    /// The object as a tree. Costs a parse.
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.json).expect("invariant: the store holds only JSON it wrote")
    }
}
