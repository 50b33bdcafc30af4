//! Structural schemas, compiled once: pruning, defaulting, validation, list types. One compiled
//! form serves custom resources (from `openAPIV3Schema`) and built-in kinds (from the schemas of
//! their types plus the list-key tables in [`crate::builtin`]).

mod check;
mod compile;
mod default;
mod format;
mod logic;
mod prune;

use indexmap::IndexMap;
use serde_json::Value;

pub use compile::Definitions;
pub(crate) use logic::Logic;

use crate::{cel::Rule, field::FieldError};

/// Index of a node in its schema.
pub(crate) type NodeId = usize;

/// JSON type of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    /// Anything (preserve-unknown-fields without a type).
    Any,
    /// Object.
    Object,
    /// Array.
    Array,
    /// String.
    String,
    /// Integer.
    Integer,
    /// Number.
    Number,
    /// Boolean.
    Boolean,
    /// Integer or string.
    IntOrString,
}

/// How server-side apply merges a list.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) enum ListType {
    /// Replaced as a whole.
    #[default]
    Atomic,
    /// Unordered scalars.
    Set,
    /// Elements told apart by these keys.
    Map(Vec<String>),
}

/// How a strategic merge patch treats a list or object.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) enum Strategic {
    /// Lists are replaced, objects merged.
    #[default]
    Plain,
    /// Merged list of objects by key.
    MergeBy(String),
    /// As `MergeBy`; elements honour `$retainKeys`.
    MergeByRetainKeys(String),
    /// Merged list of primitives.
    MergePrimitives,
    /// An object that is replaced.
    Replace,
}

/// One node of a schema.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub ty: Type,
    pub nullable: bool,
    pub preserve: bool,
    pub embedded: bool,
    pub properties: IndexMap<String, NodeId>,
    pub additional: Option<NodeId>,
    pub items: Option<NodeId>,
    pub default: Option<Value>,
    pub list: ListType,
    pub atomic_map: bool,
    pub strategic: Strategic,
    pub format: String,
    /// A built-in resource quantity, kept in canonical form.
    pub quantity: bool,
    pub logic: Logic,
    pub rules: Vec<Rule>,
}

impl Node {
    fn new(ty: Type) -> Self {
        Self {
            ty,
            nullable: false,
            preserve: false,
            embedded: false,
            properties: IndexMap::new(),
            additional: None,
            items: None,
            default: None,
            list: ListType::Atomic,
            atomic_map: false,
            strategic: Strategic::Plain,
            format: String::new(),
            quantity: false,
            logic: Logic::default(),
            rules: Vec::new(),
        }
    }
}

/// A compiled schema of a whole kind.
#[derive(Debug)]
pub struct Schema {
    pub(crate) nodes: Vec<Node>,
    pub(crate) root: NodeId,
    /// The schema document it came from, for OpenAPI.
    pub(crate) document: Value,
}

impl Schema {
    /// The node of an id.
    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id]
    }

    /// The declared child of an object node, if any.
    pub(crate) fn child(&self, id: NodeId, name: &str) -> Option<NodeId> {
        let node = self.node(id);
        node.properties.get(name).copied().or(node.additional)
    }

    /// Whether a path of fields ends at a string, boolean or integer.
    pub(crate) fn is_scalar(&self, path: &[&str]) -> bool {
        let end = path.iter().try_fold(self.root, |id, name| self.node(id).properties.get(*name).copied());
        end.is_some_and(|id| matches!(self.node(id).ty, Type::String | Type::Boolean | Type::Integer))
    }

    /// Value validation, list types, then CEL; `old` switches on transition rules and ratcheting.
    #[must_use]
    pub fn validate(&self, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut errors = check::values(self, object, old);
        check::list_types(self, object, old, &mut errors);
        if errors.iter().any(check::blocks_rules) {
            errors.push(FieldError::invalid(
                "<nil>",
                &Value::Null,
                "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation",
            ));
        } else {
            crate::cel::validate(self, object, old, &mut errors);
        }
        errors
    }
}

/// Values of the map keys of a list-map element, missing keys taken from schema defaults.
pub(crate) fn element_keys(
    schema: &Schema,
    items: Option<NodeId>,
    keys: &[String],
    element: &Value,
) -> Option<Vec<(String, Value)>> {
    keys.iter()
        .map(|key| {
            let value =
                element.get(key).cloned().or_else(|| schema.node(schema.child(items?, key)?).default.clone());
            value.map(|value| (key.clone(), value))
        })
        .collect()
}

/// The element of an old list that corresponds to `element` of the new one: list-maps only.
pub(crate) fn correlated<'v>(
    schema: &Schema,
    node: &Node,
    old: Option<&'v Value>,
    element: &Value,
) -> Option<&'v Value> {
    let ListType::Map(keys) = &node.list else {
        return None;
    };
    let wanted = element_keys(schema, node.items, keys, element)?;
    old?.as_array()?
        .iter()
        .find(|candidate| element_keys(schema, node.items, keys, candidate).as_ref() == Some(&wanted))
}
