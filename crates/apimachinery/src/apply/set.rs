//! Sets of field paths and their wire form FieldsV1.

use std::{collections::BTreeMap, fmt};

use serde_json::{Map, Value};

/// One step of a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    /// `f:<name>`: field of a struct or key of a map.
    Field(String),
    /// `k:<keys>`: list-map element, keys as sorted compact JSON.
    Key(String),
    /// `v:<value>`: set element, value as JSON.
    Value(String),
    /// `i:<index>`: only ever read.
    Index(u64),
}

impl Step {
    /// List-map element by its keys.
    pub fn key(pairs: &[(String, Value)]) -> Self {
        let sorted: BTreeMap<&String, &Value> = pairs.iter().map(|(k, v)| (k, v)).collect();
        Self::Key(serde_json::to_string(&sorted).unwrap_or_default())
    }

    fn encode(&self) -> String {
        match self {
            Self::Field(name) => format!("f:{name}"),
            Self::Key(keys) => format!("k:{keys}"),
            Self::Value(value) => format!("v:{value}"),
            Self::Index(index) => format!("i:{index}"),
        }
    }

    fn decode(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once(':')?;
        match kind {
            "f" => Some(Self::Field(rest.to_owned())),
            "k" => {
                let keys: BTreeMap<String, Value> = serde_json::from_str(rest).ok()?;
                Some(Self::Key(serde_json::to_string(&keys).ok()?))
            }
            "v" => Some(Self::Value(serde_json::from_str::<Value>(rest).ok()?.to_string())),
            "i" => rest.parse().ok().map(Self::Index),
            _ => None,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => write!(f, ".{name}"),
            Self::Key(keys) => {
                let pairs: BTreeMap<String, Value> = serde_json::from_str(keys).unwrap_or_default();
                let texts: Vec<String> = pairs.iter().map(|(k, v)| format!("{k}={v}")).collect();
                write!(f, "[{}]", texts.join(","))
            }
            Self::Value(value) => write!(f, "[={value}]"),
            Self::Index(index) => write!(f, "[{index}]"),
        }
    }
}

/// A set of paths: a node may itself be a member, and have members below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FieldSet {
    member: bool,
    children: BTreeMap<Step, FieldSet>,
}

impl FieldSet {
    pub fn is_empty(&self) -> bool {
        !self.member && self.children.values().all(Self::is_empty)
    }

    /// Makes a path a member.
    pub fn insert(&mut self, path: &[Step]) {
        match path {
            [] => self.member = true,
            [first, rest @ ..] => self.children.entry(first.clone()).or_default().insert(rest),
        }
    }

    /// Whether a path is a member or has members below it.
    pub fn touches(&self, path: &[Step]) -> bool {
        match path {
            [] => !self.is_empty(),
            [first, rest @ ..] => self.children.get(first).is_some_and(|child| child.touches(rest)),
        }
    }

    pub fn union(mut self, other: &Self) -> Self {
        self.member |= other.member;
        for (step, child) in &other.children {
            let merged = self.children.remove(step).unwrap_or_default().union(child);
            self.children.insert(step.clone(), merged);
        }
        self
    }

    pub fn intersection(&self, other: &Self) -> Self {
        let children = self.children.iter().filter_map(|(step, child)| {
            let both = child.intersection(other.children.get(step)?);
            (!both.is_empty()).then(|| (step.clone(), both))
        });
        Self { member: self.member && other.member, children: children.collect() }
    }

    pub fn difference(&self, other: &Self) -> Self {
        let children = self.children.iter().filter_map(|(step, child)| {
            let left = other.children.get(step).map_or_else(|| child.clone(), |o| child.difference(o));
            (!left.is_empty()).then(|| (step.clone(), left))
        });
        Self { member: self.member && !other.member, children: children.collect() }
    }

    /// All member paths, parents before their children.
    pub fn paths(&self) -> Vec<Vec<Step>> {
        let mut out = Vec::new();
        self.collect(&mut Vec::new(), &mut out);
        out
    }

    fn collect(&self, at: &mut Vec<Step>, out: &mut Vec<Vec<Step>>) {
        if self.member {
            out.push(at.clone());
        }
        for (step, child) in &self.children {
            at.push(step.clone());
            child.collect(at, out);
            at.pop();
        }
    }

    /// The FieldsV1 form.
    pub fn to_value(&self) -> Value {
        let mut out = Map::new();
        for (step, child) in &self.children {
            if child.is_empty() {
                continue;
            }
            let mut value = child.to_value();
            if let (true, Value::Object(map)) = (child.member && !child.children.is_empty(), &mut value) {
                let mut with_self = Map::new();
                with_self.insert(".".into(), Value::Object(Map::new()));
                with_self.append(map);
                *map = with_self;
            }
            out.insert(step.encode(), value);
        }
        Value::Object(out)
    }

    /// Reads FieldsV1; `None` if it is not.
    pub fn from_value(value: &Value) -> Option<Self> {
        let map = value.as_object()?;
        let mut set = Self::default();
        for (name, child) in map {
            if name == "." {
                set.member = true;
                continue;
            }
            let mut below = Self::from_value(child)?;
            // `{}` is a leaf.
            below.member |= below.children.is_empty();
            set.children.insert(Step::decode(name)?, below);
        }
        Some(set)
    }
}

/// A path as conflicts show it: `.spec.containers[name="a"].image`.
pub(super) fn path_text(path: &[Step]) -> String {
    path.iter().map(Step::to_string).collect()
}
