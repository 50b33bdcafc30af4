//! The entries of `metadata.managedFields`.

use serde_json::{Map, Value, json};

use super::set::FieldSet;

/// Most Update entries kept; older ones merge into one.
const UPDATES_MAX: usize = 10;
/// Manager of merged old entries.
const ANCIENT: &str = "ancient-changes";

/// Apply or anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Operation {
    Apply,
    Update,
}

/// What tells entries apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub manager: String,
    pub operation: Operation,
    pub api_version: String,
    pub subresource: String,
}

impl Identity {
    /// As conflicts name it: `"m1"`, `"upd" using v1`.
    pub fn shown(&self) -> String {
        let mut out = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            out.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if self.operation == Operation::Update {
            out.push_str(&format!(" using {}", self.api_version));
        }
        out
    }
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub identity: Identity,
    pub time: String,
    pub set: FieldSet,
}

/// All entries of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Managed {
    pub entries: Vec<Entry>,
}

impl Managed {
    /// Reads `metadata.managedFields`; `None` if any entry cannot be read.
    pub fn of(object: &Value) -> Option<Self> {
        let mut entries = Vec::new();
        for entry in object["metadata"]["managedFields"].as_array().into_iter().flatten() {
            let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
            let operation = match entry["operation"].as_str() {
                Some("Apply") => Operation::Apply,
                Some("Update") => Operation::Update,
                _ => return None,
            };
            let identity = Identity {
                manager: text("manager"),
                operation,
                api_version: text("apiVersion"),
                subresource: text("subresource"),
            };
            entries.push(Entry {
                identity,
                time: text("time"),
                set: FieldSet::from_value(&entry["fieldsV1"])?,
            });
        }
        Some(Self { entries })
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn get(&self, identity: &Identity) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.identity == *identity)
    }

    /// Sets an entry's fields; an empty set removes it. The time moves only if the set changed or
    /// `touched`.
    pub fn put(&mut self, identity: Identity, set: FieldSet, now: &str, touched: bool) {
        let position = self.entries.iter().position(|entry| entry.identity == identity);
        match position {
            Some(position) if set.is_empty() => {
                self.entries.remove(position);
            }
            Some(position) => {
                let entry = &mut self.entries[position];
                if touched || entry.set != set {
                    now.clone_into(&mut entry.time);
                }
                entry.set = set;
            }
            None if set.is_empty() => {}
            None => self.entries.push(Entry { identity, time: now.to_owned(), set }),
        }
    }

    /// Takes fields away from every entry but one; entries left empty disappear.
    pub fn take(&mut self, except: &Identity, fields: &FieldSet) {
        for entry in self.entries.iter_mut().filter(|entry| entry.identity != *except) {
            entry.set = entry.set.difference(fields);
        }
        self.entries.retain(|entry| !entry.set.is_empty() || entry.identity == *except);
    }

    /// Merges the oldest Update entries when there are too many.
    pub fn cap(&mut self) {
        let mut updates: Vec<usize> = (0..self.entries.len())
            .filter(|i| self.entries[*i].identity.operation == Operation::Update)
            .collect();
        if updates.len() <= UPDATES_MAX {
            return;
        }
        updates.sort_by(|a, b| self.entries[*a].time.cmp(&self.entries[*b].time));
        // One slot stays for the merged entry of each version.
        let old = &updates[..updates.len() - (UPDATES_MAX - 1)];
        let mut merged: Vec<Entry> = Vec::new();
        for index in old {
            let entry = &self.entries[*index];
            let identity = Identity {
                manager: ANCIENT.into(),
                operation: Operation::Update,
                api_version: entry.identity.api_version.clone(),
                subresource: String::new(),
            };
            match merged.iter_mut().find(|m| m.identity == identity) {
                Some(target) => {
                    target.set = std::mem::take(&mut target.set).union(&entry.set);
                    target.time.clone_from(&entry.time);
                }
                None => merged.push(Entry { identity, ..entry.clone() }),
            }
        }
        let mut position = 0;
        self.entries.retain(|_| {
            position += 1;
            !old.contains(&(position - 1))
        });
        self.entries.extend(merged);
    }

    /// Writes the entries in their output order.
    pub fn write(mut self, object: &mut Value) {
        self.entries.sort_by(|a, b| {
            let key = |e: &Entry| {
                (
                    e.identity.operation,
                    e.time.clone(),
                    e.identity.manager.clone(),
                    e.identity.api_version.clone(),
                    e.identity.subresource.clone(),
                )
            };
            key(a).cmp(&key(b))
        });
        let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else {
            return;
        };
        if self.entries.is_empty() {
            metadata.shift_remove("managedFields");
        } else {
            metadata.insert(
                "managedFields".into(),
                Value::Array(self.entries.iter().map(Entry::to_value).collect()),
            );
        }
    }
}

impl Entry {
    fn to_value(&self) -> Value {
        let mut out = Map::new();
        out.insert("manager".into(), json!(self.identity.manager));
        out.insert(
            "operation".into(),
            json!(if self.identity.operation == Operation::Apply { "Apply" } else { "Update" }),
        );
        out.insert("apiVersion".into(), json!(self.identity.api_version));
        if !self.time.is_empty() {
            out.insert("time".into(), json!(self.time));
        }
        out.insert("fieldsType".into(), json!("FieldsV1"));
        out.insert("fieldsV1".into(), self.set.to_value());
        if !self.identity.subresource.is_empty() {
            out.insert("subresource".into(), json!(self.identity.subresource));
        }
        Value::Object(out)
    }
}
