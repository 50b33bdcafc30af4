//! Dropping what the schema does not declare.

use serde_json::Value;

use super::{NodeId, Schema};
use crate::field::{child, index};

/// Fields every object (and embedded resource) has besides its schema.
const RESOURCE_FIELDS: [&str; 3] = ["apiVersion", "kind", "metadata"];

impl Schema {
    /// Drops undeclared fields, returns their paths in document order.
    pub fn prune(&self, object: &mut Value) -> Vec<String> {
        let mut unknown = Vec::new();
        self.prune_node(Some(self.root), true, object, "", &mut unknown);
        unknown
    }

    /// Prunes a value below the root.
    pub(super) fn prune_at(&self, id: NodeId, value: &mut Value) -> Vec<String> {
        let mut unknown = Vec::new();
        self.prune_node(Some(id), false, value, "", &mut unknown);
        unknown
    }

    fn prune_node(
        &self,
        id: Option<NodeId>,
        resource: bool,
        value: &mut Value,
        path: &str,
        unknown: &mut Vec<String>,
    ) {
        let node = id.map(|id| self.node(id));
        match value {
            Value::Object(map) => {
                let resource = resource || node.is_some_and(|n| n.embedded);
                let keep_all = node.is_some_and(|n| n.preserve);
                let keys: Vec<String> = map.keys().cloned().collect();
                for key in keys {
                    let declared = id.and_then(|id| self.child(id, &key));
                    if declared.is_none() {
                        if keep_all || (resource && RESOURCE_FIELDS.contains(&key.as_str())) {
                            continue;
                        }
                        unknown.push(child(path, &key));
                        map.shift_remove(&key);
                    } else if let Some(value) = map.get_mut(&key) {
                        self.prune_node(declared, false, value, &child(path, &key), unknown);
                    }
                }
            }
            Value::Array(list) => {
                if node.is_some_and(|n| n.preserve && n.items.is_none()) {
                    return;
                }
                let items = node.and_then(|n| n.items);
                for (position, value) in list.iter_mut().enumerate() {
                    self.prune_node(items, false, value, &index(path, position), unknown);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
}
