//! Values along their schema: field sets, comparison, merge and removal.

use serde_json::{Map, Value};

use super::set::{FieldSet, Step};
use crate::schema::{ListType, NodeId, Schema, element_keys};

/// How a value is owned.
enum Shape<'v> {
    /// Fields are owned one by one.
    Map(&'v Map<String, Value>),
    /// Elements are owned one by one.
    List(&'v [Value]),
    /// Owned as a whole.
    Leaf,
}

/// What changed between two objects.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    pub added: FieldSet,
    pub modified: FieldSet,
    pub removed: FieldSet,
}

impl Comparison {
    pub fn is_same(&self) -> bool {
        self.added.is_empty() && self.modified.is_empty() && self.removed.is_empty()
    }
}

/// A schema to walk along.
#[derive(Clone, Copy)]
pub(super) struct Typed<'s> {
    pub schema: &'s Schema,
}

impl Typed<'_> {
    fn shape<'v>(&self, id: Option<NodeId>, value: &'v Value) -> Shape<'v> {
        let node = id.map(|id| self.schema.node(id));
        match value {
            Value::Object(map) if !node.is_some_and(|n| n.atomic_map) => Shape::Map(map),
            Value::Array(list) if node.is_some_and(|n| n.list != ListType::Atomic) => Shape::List(list),
            _ => Shape::Leaf,
        }
    }

    fn child(&self, id: Option<NodeId>, name: &str) -> Option<NodeId> {
        self.schema.child(id?, name)
    }

    /// Whether a key is a field of a struct (not an entry of a map).
    fn is_field(&self, id: Option<NodeId>, name: &str) -> bool {
        id.is_some_and(|id| self.schema.node(id).properties.contains_key(name))
    }

    /// The step of a list element; `None` if its keys are missing.
    fn step(&self, id: Option<NodeId>, element: &Value) -> Option<Step> {
        let node = self.schema.node(id?);
        match &node.list {
            ListType::Map(keys) => {
                element_keys(self.schema, node.items, keys, element).map(|pairs| Step::key(&pairs))
            }
            ListType::Set => Some(Step::Value(element.to_string())),
            ListType::Atomic => None,
        }
    }

    fn items(&self, id: Option<NodeId>) -> Option<NodeId> {
        id.and_then(|id| self.schema.node(id).items)
    }

    /// Paths an applied configuration owns.
    pub fn field_set(&self, value: &Value) -> FieldSet {
        let mut set = FieldSet::default();
        self.collect(Some(self.schema.root), value, &mut Vec::new(), &mut set);
        set
    }

    fn collect(&self, id: Option<NodeId>, value: &Value, at: &mut Vec<Step>, set: &mut FieldSet) {
        match self.shape(id, value) {
            Shape::Leaf => set.insert(at),
            Shape::Map(map) => {
                for (name, value) in map {
                    at.push(Step::Field(name.clone()));
                    self.collect(self.child(id, name), value, at, set);
                    let empty = value.as_object().is_some_and(Map::is_empty);
                    if value.is_null() || empty || !self.is_field(id, name) {
                        set.insert(at);
                    }
                    at.pop();
                }
            }
            Shape::List(list) => {
                for element in list {
                    let Some(step) = self.step(id, element) else {
                        continue;
                    };
                    at.push(step);
                    self.collect(self.items(id), element, at, set);
                    set.insert(at);
                    at.pop();
                }
            }
        }
    }

    /// The first list-map or set of a configuration that names an element twice.
    pub fn duplicate(&self, value: &Value) -> Option<String> {
        self.find_duplicate(Some(self.schema.root), value, &mut Vec::new())
    }

    fn find_duplicate(&self, id: Option<NodeId>, value: &Value, at: &mut Vec<Step>) -> Option<String> {
        match self.shape(id, value) {
            Shape::Leaf => None,
            Shape::Map(map) => map.iter().find_map(|(name, value)| {
                at.push(Step::Field(name.clone()));
                let found = self.find_duplicate(self.child(id, name), value, at);
                at.pop();
                found
            }),
            Shape::List(list) => {
                let mut seen: Vec<Step> = Vec::new();
                for element in list {
                    let step = self.step(id, element)?;
                    if seen.contains(&step) {
                        return Some(format!(
                            "{}: duplicate entries for key {step}",
                            super::set::path_text(at)
                        ));
                    }
                    at.push(step.clone());
                    let found = self.find_duplicate(self.items(id), element, at);
                    at.pop();
                    if found.is_some() {
                        return found;
                    }
                    seen.push(step);
                }
                None
            }
        }
    }

    /// What a write changed.
    pub fn compare(&self, old: &Value, new: &Value) -> Comparison {
        let mut out = Comparison::default();
        self.walk(Some(self.schema.root), Some(old), Some(new), &mut Vec::new(), &mut out);
        out
    }

    fn walk(
        &self,
        id: Option<NodeId>,
        old: Option<&Value>,
        new: Option<&Value>,
        at: &mut Vec<Step>,
        out: &mut Comparison,
    ) {
        if old == new {
            return;
        }
        match (old.map(|v| self.shape(id, v)), new.map(|v| self.shape(id, v))) {
            (Some(Shape::Map(a)), Some(Shape::Map(b))) if !(a.is_empty() && b.is_empty()) => {
                self.walk_maps(id, Some(a), Some(b), at, out)
            }
            (None, Some(Shape::Map(b))) if !b.is_empty() => {
                self.walk_maps(id, None, Some(b), at, out);
                out.added.insert(at);
            }
            (Some(Shape::Map(a)), None) if !a.is_empty() => {
                self.walk_maps(id, Some(a), None, at, out);
                out.removed.insert(at);
            }
            (Some(Shape::List(a)), Some(Shape::List(b))) => self.walk_lists(id, a, b, at, out),
            (None, Some(Shape::List(b))) => {
                self.walk_lists(id, &[], b, at, out);
                out.added.insert(at);
            }
            (Some(Shape::List(a)), None) => {
                self.walk_lists(id, a, &[], at, out);
                out.removed.insert(at);
            }
            (None, Some(_)) => out.added.insert(at),
            (Some(_), None) => out.removed.insert(at),
            (Some(_), Some(_)) => out.modified.insert(at),
            (None, None) => {}
        }
    }

    fn walk_maps(
        &self,
        id: Option<NodeId>,
        old: Option<&Map<String, Value>>,
        new: Option<&Map<String, Value>>,
        at: &mut Vec<Step>,
        out: &mut Comparison,
    ) {
        let names = old.into_iter().flat_map(Map::keys).chain(
            new.into_iter().flat_map(Map::keys).filter(|name| old.is_none_or(|o| !o.contains_key(*name))),
        );
        for name in names {
            at.push(Step::Field(name.clone()));
            self.walk(
                self.child(id, name),
                old.and_then(|o| o.get(name)),
                new.and_then(|n| n.get(name)),
                at,
                out,
            );
            at.pop();
        }
    }

    fn walk_lists(
        &self,
        id: Option<NodeId>,
        old: &[Value],
        new: &[Value],
        at: &mut Vec<Step>,
        out: &mut Comparison,
    ) {
        let find = |list: &'_ [Value], step: &Step| {
            list.iter().position(|element| self.step(id, element).as_ref() == Some(step))
        };
        let mut done: Vec<Step> = Vec::new();
        for element in old.iter().chain(new) {
            let Some(step) = self.step(id, element).filter(|step| !done.contains(step)) else {
                continue;
            };
            at.push(step.clone());
            self.walk(
                self.items(id),
                find(old, &step).map(|i| &old[i]),
                find(new, &step).map(|i| &new[i]),
                at,
                out,
            );
            at.pop();
            done.push(step);
        }
    }

    /// The live object with the configuration laid over it.
    pub fn merge(&self, live: &Value, patch: &Value) -> Value {
        self.merge_at(Some(self.schema.root), Some(live), patch)
    }

    fn merge_at(&self, id: Option<NodeId>, live: Option<&Value>, patch: &Value) -> Value {
        match (live.map(|live| self.shape(id, live)), self.shape(id, patch)) {
            (Some(Shape::Map(live)), Shape::Map(patch)) => {
                let mut out = live.clone();
                for (name, value) in patch {
                    let merged = self.merge_at(self.child(id, name), live.get(name), value);
                    out.insert(name.clone(), merged);
                }
                Value::Object(out)
            }
            (Some(Shape::List(live)), Shape::List(patch)) => Value::Array(self.merge_lists(id, live, patch)),
            _ => patch.clone(),
        }
    }

    /// Elements the configuration names stand in its order; the others keep their place among
    /// their live neighbours.
    fn merge_lists(&self, id: Option<NodeId>, live: &[Value], patch: &[Value]) -> Vec<Value> {
        let steps = |list: &[Value]| -> Vec<Option<Step>> {
            list.iter().map(|element| self.step(id, element)).collect()
        };
        let (live_steps, patch_steps) = (steps(live), steps(patch));
        let in_patch = |step: &Option<Step>| step.is_some() && patch_steps.contains(step);
        let shared: Vec<&Option<Step>> =
            patch_steps.iter().filter(|step| live_steps.contains(step)).collect();
        let mut next_shared = shared.into_iter().peekable();
        let mut out = Vec::new();
        let (mut l, mut r) = (0, 0);
        let merged = |r: usize| {
            let partner = live_steps.iter().position(|step| *step == patch_steps[r]).map(|i| &live[i]);
            self.merge_at(self.items(id), partner, &patch[r])
        };
        while l < live.len() || r < patch.len() {
            if l < live.len() && r < patch.len() {
                if live_steps[l] == patch_steps[r] {
                    out.push(merged(r));
                    l += 1;
                    r += 1;
                    next_shared.next();
                    continue;
                }
                if in_patch(&live_steps[l]) && next_shared.peek().is_some_and(|next| **next != live_steps[l])
                {
                    // Shared, but its turn comes later.
                    l += 1;
                    continue;
                }
            }
            if l < live.len() && !in_patch(&live_steps[l]) {
                out.push(live[l].clone());
                l += 1;
            } else if r < patch.len() {
                out.push(merged(r));
                if next_shared.peek().is_some_and(|next| **next == patch_steps[r]) {
                    next_shared.next();
                }
                r += 1;
            } else {
                l += 1;
            }
        }
        out
    }

    /// Removes a path; containers that become empty go with it.
    pub fn remove(&self, object: &mut Value, path: &[Step]) {
        self.remove_at(Some(self.schema.root), object, path);
    }

    fn remove_at(&self, id: Option<NodeId>, value: &mut Value, path: &[Step]) {
        let Some((first, rest)) = path.split_first() else {
            return;
        };
        match (first, value) {
            (Step::Field(name), Value::Object(map)) => {
                let child = self.child(id, name);
                if rest.is_empty() {
                    map.shift_remove(name);
                } else if let Some(value) = map.get_mut(name) {
                    self.remove_at(child, value, rest);
                    if is_bare(value) {
                        map.shift_remove(name);
                    }
                }
            }
            (step, Value::Array(list)) => {
                let Some(position) =
                    list.iter().position(|element| self.step(id, element).as_ref() == Some(step))
                else {
                    return;
                };
                if rest.is_empty() {
                    list.remove(position);
                } else {
                    self.remove_at(self.items(id), &mut list[position], rest);
                }
            }
            _ => {}
        }
    }
}

fn is_bare(value: &Value) -> bool {
    value.as_object().is_some_and(Map::is_empty) || value.as_array().is_some_and(Vec::is_empty)
}
