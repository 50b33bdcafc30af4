//! Defaulting: a default applies where the key is absent, or null on a field that is not nullable;
//! other nulls of such fields are dropped (KS §11.3).

use serde_json::Value;

use super::{NodeId, Schema};
use crate::quantity::Quantity;

impl Schema {
    /// Fills defaults and drops nulls that the schema does not allow.
    pub fn default(&self, object: &mut Value) {
        self.default_node(self.root, object);
    }

    fn default_node(&self, id: NodeId, value: &mut Value) {
        let node = self.node(id);
        match value {
            Value::Object(map) => {
                for (name, child) in &node.properties {
                    let field = self.node(*child);
                    let missing = map.get(name).is_none_or(|v| v.is_null() && !field.nullable);
                    if !missing {
                        continue;
                    }
                    match &field.default {
                        Some(default) => {
                            map.insert(name.clone(), default.clone());
                        }
                        None => {
                            map.shift_remove(name);
                        }
                    }
                }
                for (name, value) in map.iter_mut() {
                    if let Some(child) = self.child(id, name) {
                        self.default_element(child, value);
                    }
                }
            }
            Value::Array(list) => {
                if let Some(items) = node.items {
                    for value in list {
                        self.default_element(items, value);
                    }
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    /// Rewrites quantities of a built-in kind in their canonical form (`1024Mi` is `1Gi`, `1` is
    /// `"1"`); what is no quantity stays for the type check.
    pub(crate) fn canonical_quantities(&self, object: &mut Value) {
        self.canonical(self.root, object);
    }

    fn canonical(&self, id: NodeId, value: &mut Value) {
        let node = self.node(id);
        match value {
            Value::Object(map) => {
                for (name, value) in map {
                    if let Some(child) = self.child(id, name) {
                        self.canonical(child, value);
                    }
                }
            }
            Value::Array(list) => {
                for value in list {
                    if let Some(items) = node.items {
                        self.canonical(items, value);
                    }
                }
            }
            Value::String(_) | Value::Number(_) if node.quantity => {
                if let Ok(quantity) = Quantity::from_value(value) {
                    *value = Value::String(quantity.to_string());
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    fn default_element(&self, id: NodeId, value: &mut Value) {
        let node = self.node(id);
        if let (true, false, Some(default)) = (value.is_null(), node.nullable, &node.default) {
            *value = default.clone();
        }
        self.default_node(id, value);
    }
}
