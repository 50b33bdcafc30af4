//! CustomResourceDefinitions at work: names, the registry, and clean-up of their objects (KS 11.1).

use super::delete::DEFINITION_FINALIZER;
use super::pods::set_condition;
use super::txn::Txn;
use super::{Call, DeleteOptions};
use crate::auth::UserInfo;
use crate::registry::{Definition, Registry, Served};
use crate::store::{Key, Object};
use holdfast_apimachinery::{
    crd::{self, TakenNames},
    status::Status,
};
use serde_json::{Value, json};
use std::sync::Arc;

const STORAGE: &str = "customresourcedefinitions.apiextensions.k8s.io";

impl Txn<'_> {
    /// Accepts the names of new definitions and rebuilds what is served.
    pub fn refresh_registry(&self) {
        self.accept_names();
        let mut definitions: Vec<Arc<Definition>> = Vec::new();
        // Compiling a schema costs milliseconds: what has not changed since the last time is kept.
        let mut compiled = self.core.compiled.lock();
        let known = std::mem::take(&mut *compiled);
        for object in self.definitions() {
            if let Some(same) = known.iter().find(|k| k.name == object.key.name && k.rev == object.rev) {
                definitions.push(same.clone());
                continue;
            }
            let value = object.value();
            if !has_condition(&value, "Established") {
                continue;
            }
            match crd::compile(&value) {
                Ok(compiled) => {
                    let name = object.key.name.clone();
                    definitions.push(Arc::new(Definition { name, rev: object.rev, compiled }));
                }
                // Validation let it pass, so this is a defect of ours: serve the rest and say so.
                Err(errors) => {
                    tracing::error!(definition = %object.key.name, ?errors, "definition cannot be served")
                }
            }
        }
        let generation = self.core.registry().generation + 1;
        self.core.registry.send_replace(Arc::new(Registry::build(generation, &definitions)));
        *compiled = definitions;
    }

    fn definitions(&self) -> Vec<Arc<Object>> {
        let state = self.core.state.read();
        state.collection(STORAGE).map_or_else(Vec::new, |c| c.range(None, None).cloned().collect())
    }

    /// The naming loop: gives each definition the status its names deserve.
    fn accept_names(&self) {
        let Ok(served) = self.builtin("apiextensions.k8s.io", "customresourcedefinitions") else { return };
        let all: Vec<(Arc<Object>, Value)> = self
            .definitions()
            .into_iter()
            .map(|o| {
                let v = o.value();
                (o, v)
            })
            .collect();
        for (i, (object, value)) in all.iter().enumerate() {
            let taken =
                taken_names(value, all.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, (_, v))| v));
            let status = crd::accept_names(value, &taken, &self.timestamp());
            if status != value["status"] {
                let mut after = value.clone();
                after["status"] = status;
                self.put_quietly(&served, after, object);
            }
        }
    }

    /// Marks a definition whose deletion begins.
    pub fn mark_definition(&self, definition: &mut Value) {
        let condition = json!({
            "type": "Terminating", "status": "True", "reason": "InstanceDeletionPending",
            "message": "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
            "lastTransitionTime": self.timestamp(),
        });
        set_condition(definition, condition);
    }

    /// Deletes all objects of a definition that is being deleted.
    pub fn empty_definition(&self, definition: &Object) -> Result<(), Status> {
        let user = UserInfo::kubelith();
        let registry = self.core.registry();
        let served =
            registry.kinds().find(|s| s.definition.as_deref() == Some(&*definition.key.name)).cloned();
        if let Some(served) = served {
            for object in self.list(&served, None) {
                // An object removed meanwhile by the clean-up of another needs nothing more.
                if let Some(object) = self.find(&served, &object.key.namespace, &object.key.name) {
                    self.delete(Call::internal(&user), &served, &object, &DeleteOptions::default())?;
                }
            }
        }
        self.finish_definition(&definition.key.name);
        Ok(())
    }

    /// Removes a terminating definition once its last object is gone.
    pub fn finish_definition(&self, name: &str) {
        let Ok(served) = self.builtin("apiextensions.k8s.io", "customresourcedefinitions") else { return };
        let Some(object) = self.find(&served, "", name) else { return };
        let mut value = object.value();
        if !value["metadata"]["deletionTimestamp"].is_string() || !self.is_empty(name, &value) {
            return;
        }
        let mut finalizers = value["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
        let before = finalizers.len();
        finalizers.retain(|f| f != DEFINITION_FINALIZER);
        if finalizers.len() == before {
            return;
        }
        value["metadata"]["finalizers"] = json!(finalizers);
        if finalizers.is_empty() {
            self.remove(&served, value, &object);
        } else {
            self.put(&served, value, Some(&object));
        }
    }

    fn is_empty(&self, name: &str, definition: &Value) -> bool {
        let state = self.core.state.read();
        let group = definition["spec"]["group"].as_str().unwrap_or("");
        let plural = definition["spec"]["names"]["plural"].as_str().unwrap_or("");
        debug_assert_eq!(name, format!("{plural}.{group}"));
        state.collection(&format!("{plural}.{group}")).is_none_or(crate::store::Collection::is_empty)
    }

    /// Commits the status of a definition without starting the naming loop again.
    fn put_quietly(&self, served: &Served, value: Value, old: &Arc<Object>) {
        self.commit(served, crate::store::EventKind::Modified, value, Some(old));
        debug_assert!(self.core.state.read().get(STORAGE, &Key::new("", &old.key.name)).is_some());
    }
}

fn has_condition(definition: &Value, kind: &str) -> bool {
    definition["status"]["conditions"]
        .as_array()
        .is_some_and(|list| list.iter().any(|c| c["type"] == kind && c["status"] == "True"))
}

/// Names other definitions of the same group have been given.
fn taken_names<'v>(definition: &Value, others: impl Iterator<Item = &'v Value>) -> TakenNames {
    let mut taken = TakenNames::default();
    for other in others.filter(|o| o["spec"]["group"] == definition["spec"]["group"]) {
        let names = &other["status"]["acceptedNames"];
        for field in ["plural", "singular"] {
            taken.resources.extend(names[field].as_str().filter(|n| !n.is_empty()).map(str::to_owned));
        }
        for short in names["shortNames"].as_array().into_iter().flatten() {
            taken.resources.extend(short.as_str().map(str::to_owned));
        }
        for field in ["kind", "listKind"] {
            taken.kinds.extend(names[field].as_str().filter(|n| !n.is_empty()).map(str::to_owned));
        }
    }
    taken
}
