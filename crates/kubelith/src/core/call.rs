//! What a write request carries, and what it gives back.

use crate::auth::UserInfo;
use crate::registry::Served;
use crate::store::Object;
use holdfast_apimachinery::decode::FieldValidation;
use serde_json::Value;
use std::sync::Arc;

pub use holdfast_apimachinery::decode::Body;

/// Circumstances of a write, the same for every verb.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// Who asks.
    pub user: &'a UserInfo,
    /// Field manager the write is credited to.
    pub manager: &'a str,
    /// Do everything but write.
    pub dry_run: bool,
    /// What to do about unknown and duplicate fields.
    pub validation: FieldValidation,
}

impl<'a> Call<'a> {
    /// A call of the control plane itself.
    pub fn internal(user: &'a UserInfo) -> Self {
        Self { user, manager: "kubelith", dry_run: false, validation: FieldValidation::Ignore }
    }
}

/// What a write leaves behind. A stored object already has its text, which is what most clients get.
#[derive(Clone, Debug)]
pub enum Shown {
    /// Stored so.
    Stored(Arc<Object>),
    /// Not stored (dry run): the object in the version of the endpoint.
    Value(Value),
}

impl Shown {
    /// The object as the endpoint shows it.
    pub fn value(self, served: &Served) -> Value {
        match self {
            Self::Stored(object) => served.read(&object),
            Self::Value(value) => value,
        }
    }
}

/// Result of a write.
#[derive(Clone, Debug)]
pub struct Written {
    /// The object.
    pub shown: Shown,
    /// Whether it is new (201 instead of 200).
    pub created: bool,
    /// Texts for `Warning` headers.
    pub warnings: Vec<String>,
}

/// Patch types (KS 9.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// Built-in kinds only.
    Strategic,
    /// Server-side apply; `force` takes over conflicting fields.
    Apply {
        /// Take over conflicting fields.
        force: bool,
    },
}

/// What happens to dependents (KS 10.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// Garbage collection removes them afterwards.
    Background,
    /// They go first.
    Foreground,
    /// They stay, without the owner reference.
    Orphan,
}

/// Options of DELETE.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// Seconds a pod may take to stop.
    pub grace_period_seconds: Option<i64>,
    /// Uid the object must have.
    pub uid: Option<String>,
    /// resourceVersion the object must have.
    pub resource_version: Option<String>,
    /// What happens to dependents.
    pub propagation: Option<Propagation>,
}

/// Result of DELETE.
#[derive(Clone, Debug)]
pub struct Deleted {
    /// The object as it is now or was at last.
    pub object: Value,
    /// Whether it is gone.
    pub gone: bool,
    /// Texts for `Warning` headers.
    pub warnings: Vec<String>,
}
