//! One write under the write lock.

use super::{Call, Core, view::TxnView};
use crate::admission::{AdmissionRequest, Operation};
use crate::registry::Served;
use crate::store::{Event, EventKind, Key, Object, Record};
use chrono::{DateTime, Utc};
use holdfast_apimachinery::{status::Status, time::rfc3339};
use parking_lot::MutexGuard;
use serde_json::Value;
use std::sync::Arc;

/// Holds the write lock; every write of the core goes through one of these.
pub(super) struct Txn<'a> {
    pub core: &'a Core,
    pub now: DateTime<Utc>,
    _lock: MutexGuard<'a, ()>,
}

impl<'a> Txn<'a> {
    pub fn new(core: &'a Core, lock: MutexGuard<'a, ()>) -> Self {
        Self { core, now: core.now(), _lock: lock }
    }

    /// Now as objects carry it.
    pub fn timestamp(&self) -> String {
        rfc3339(self.now)
    }

    /// The stored object.
    pub fn find(&self, served: &Served, namespace: &str, name: &str) -> Option<Arc<Object>> {
        self.core.state.read().get(&served.storage, &Key::new(namespace, name)).cloned()
    }

    /// The stored object or 404.
    pub fn get(&self, served: &Served, namespace: &str, name: &str) -> Result<Arc<Object>, Status> {
        self.find(served, namespace, name)
            .ok_or_else(|| Status::not_found(&served.kind.group_resource(), name))
    }

    /// All objects of a kind in a namespace (everywhere when `None`).
    pub fn list(&self, served: &Served, namespace: Option<&str>) -> Vec<Arc<Object>> {
        let state = self.core.state.read();
        state
            .collection(&served.storage)
            .map_or_else(Vec::new, |c| c.range(namespace, None).cloned().collect())
    }

    /// A kind that is always served.
    pub fn builtin(&self, group: &str, plural: &str) -> Result<Arc<Served>, Status> {
        let registry = self.core.registry();
        registry
            .preferred(group, plural)
            .cloned()
            .ok_or_else(|| Status::internal(&format!("{plural} are not served")))
    }

    /// Sixteen random bytes.
    pub fn random(&self) -> [u8; 16] {
        let mut stream = self.core.entropy.lock();
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&stream.next_u64().to_le_bytes());
        bytes[8..].copy_from_slice(&stream.next_u64().to_le_bytes());
        bytes
    }

    /// A random uid.
    pub fn uid(&self) -> String {
        uuid::Builder::from_random_bytes(self.random()).into_uuid().to_string()
    }

    /// Commits a new or changed object given in the endpoint's version; returns it as stored.
    pub fn put(&self, served: &Served, value: Value, previous: Option<&Arc<Object>>) -> Arc<Object> {
        let kind = if previous.is_some() { EventKind::Modified } else { EventKind::Added };
        let object = self.commit(served, kind, value, previous);
        self.after(served, previous, &object, false);
        object
    }

    /// Removes an object whose last state is `value`; returns that state with the revision of the removal.
    pub fn remove(&self, served: &Served, value: Value, previous: &Arc<Object>) -> Arc<Object> {
        let object = self.commit(served, EventKind::Deleted, value, Some(previous));
        self.after(served, Some(previous), &object, true);
        object
    }

    pub fn commit(
        &self,
        served: &Served,
        kind: EventKind,
        value: Value,
        previous: Option<&Arc<Object>>,
    ) -> Arc<Object> {
        let value = served.to_storage(value);
        let at = self.now.timestamp();
        let mut state = self.core.state.write();
        let object = Arc::new(Object::from_value(value, state.rev() + 1));
        state.apply(&served.storage, Event { kind, object: object.clone(), previous: previous.cloned(), at });
        drop(state);
        self.core.writer.append(Record {
            rev: object.rev,
            storage: served.storage.clone(),
            namespace: object.key.namespace.clone(),
            name: object.key.name.clone(),
            uid: object.uid.clone(),
            deleted: kind == EventKind::Deleted,
            prev_rev: previous.map_or(0, |p| p.rev),
            json: object.json.clone(),
            at,
        });
        object
    }

    /// Consequences inside the control plane of a committed change.
    fn after(&self, served: &Served, previous: Option<&Arc<Object>>, object: &Object, removed: bool) {
        if served.is("apiextensions.k8s.io", "customresourcedefinitions") {
            self.refresh_registry();
        }
        if removed && let Some(definition) = &served.definition {
            self.finish_definition(definition);
        }
        // It fails only where quotas are not served, and then there are none.
        let _ = self.account(served, previous, object, removed);
    }

    /// Builds the admission request of a write.
    pub fn admission(
        &self,
        call: Call<'_>,
        served: &Served,
        operation: Operation,
        subresource: &str,
        (namespace, name): (&str, &str),
    ) -> AdmissionRequest {
        AdmissionRequest {
            operation,
            group: served.kind.group.clone(),
            version: served.kind.version.clone(),
            resource: served.kind.plural.clone(),
            subresource: subresource.to_owned(),
            kind: served.kind.kind.clone(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            user: call.user.clone(),
            object: None,
            old_object: None,
            dry_run: call.dry_run,
        }
    }

    /// Whether any rule wants to see such a request.
    pub fn concerns(&self, request: &AdmissionRequest) -> bool {
        self.rules(request).next().is_some()
    }

    fn rules<'s>(
        &'s self,
        r: &'s AdmissionRequest,
    ) -> impl Iterator<Item = &'s Arc<dyn crate::admission::Admission>> {
        self.core
            .admission
            .iter()
            .filter(|rule| rule.concerns(r.operation, &r.group, &r.resource, &r.subresource))
    }

    /// Runs the mutating rules; the object in `request` is changed in place.
    pub fn mutate(&self, request: &mut AdmissionRequest) -> Result<Vec<String>, Status> {
        let mut warnings = Vec::new();
        let view = TxnView(self);
        let concerned: Vec<_> = self.rules(request).cloned().collect();
        for rule in concerned {
            warnings.extend(rule.mutate(request, &view)?);
        }
        Ok(warnings)
    }

    /// Runs the validating rules.
    pub fn validate(&self, request: &AdmissionRequest) -> Result<Vec<String>, Status> {
        let mut warnings = Vec::new();
        let view = TxnView(self);
        for rule in self.rules(request) {
            warnings.extend(rule.validate(request, &view)?);
        }
        Ok(warnings)
    }
}
