//! Defaulting: a default applies where the key is absent, or null on a field that is not nullable;
//! other nulls of such fields are dropped (KS §11.3).

use serde_json::Value;

use super::{NodeId, Schema};

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

    fn default_element(&self, id: NodeId, value: &mut Value) {
        let node = self.node(id);
        if let (true, false, Some(default)) = (value.is_null(), node.nullable, &node.default) {
            *value = default.clone();
        }
        self.default_node(id, value);
    }
}
