//! From schema documents to [`Schema`]: structural rules for custom resources, references and the
//! list-key overlay for built-in kinds.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{ListType, Logic, Node, NodeId, Schema, Strategic, Type, logic::type_of};
use crate::{cel, field::FieldError};

/// Named schemas that refer to each other (`#/components/schemas/<name>`), of built-in types.
#[derive(Clone, Debug, Default)]
pub struct Definitions {
    /// Schema by component name.
    pub schemas: BTreeMap<String, Value>,
}

/// Where a node stands, for the texts of missing types.
#[derive(Clone, Copy)]
enum Level {
    Root,
    Field,
    Item,
}

impl Level {
    fn missing_type(self) -> &'static str {
        match self {
            Self::Root => "must not be empty at the root",
            Self::Field => "must not be empty for specified object fields",
            Self::Item => "must not be empty for specified array items",
        }
    }
}

struct Compiler<'d> {
    nodes: Vec<Node>,
    errors: Vec<FieldError>,
    /// Present for built-in types: no structural rules, `$ref` allowed.
    definitions: Option<&'d Definitions>,
    /// Node of each referenced definition.
    known: BTreeMap<String, NodeId>,
    /// Where the nodes with defaults stand.
    defaults: Vec<(NodeId, String)>,
}

impl Schema {
    /// Compiles `openAPIV3Schema` of a CRD version.
    ///
    /// # Errors
    /// Every structural fault with its path below `path`.
    pub fn compile(schema: &Value, path: &str) -> Result<Self, Vec<FieldError>> {
        let mut compiler = Compiler {
            nodes: Vec::new(),
            errors: Vec::new(),
            definitions: None,
            known: BTreeMap::new(),
            defaults: Vec::new(),
        };
        let root = compiler.node(schema, path, Level::Root, false);
        compiler.resource_root(root, schema);
        cel::compile_rules(&mut compiler.nodes, root, schema, path, &mut compiler.errors);
        compiler.check_defaults();
        if compiler.errors.is_empty() {
            Ok(Self { nodes: compiler.nodes, root, document: schema.clone() })
        } else {
            Err(compiler.errors)
        }
    }

    /// Compiles a built-in type by its component name.
    #[must_use]
    pub fn builtin(definitions: &Definitions, name: &str) -> Self {
        let mut compiler = Compiler {
            nodes: Vec::new(),
            errors: Vec::new(),
            definitions: Some(definitions),
            known: BTreeMap::new(),
            defaults: Vec::new(),
        };
        let root = compiler.reference(name);
        Self {
            nodes: compiler.nodes,
            root,
            document: definitions.schemas.get(name).cloned().unwrap_or_default(),
        }
    }
}

impl Compiler<'_> {
    fn push(&mut self, node: Node) -> NodeId {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    /// The node of a named definition; recursion ends at the placeholder.
    fn reference(&mut self, name: &str) -> NodeId {
        if let Some(id) = self.known.get(name) {
            return *id;
        }
        let id = self.push(Node::new(Type::Any));
        self.known.insert(name.to_owned(), id);
        let schema = self.definitions.and_then(|d| d.schemas.get(name)).cloned().unwrap_or_else(|| json!({}));
        let compiled = self.node(&schema, name, Level::Root, false);
        self.nodes[id] = self.nodes[compiled].clone();
        self.nodes[id].quantity = name.ends_with("api.resource.Quantity");
        id
    }

    fn builtin_reference(&mut self, schema: &Value) -> Option<NodeId> {
        let definitions = self.definitions?;
        let single = |s: &Value| {
            s.get("$ref").and_then(Value::as_str).and_then(|r| r.rsplit('/').next()).map(str::to_owned)
        };
        // Annotations beside a reference arrive as `allOf: [{$ref}]`.
        let name = single(schema).or_else(|| {
            schema.get("allOf").and_then(Value::as_array).and_then(|list| list.first()).and_then(single)
        })?;
        if !definitions.schemas.contains_key(&name) {
            return None;
        }
        let id = self.reference(&name);
        let strategic = strategic_of(schema);
        let atomic = schema.get("x-kubernetes-map-type").and_then(Value::as_str) == Some("atomic");
        if strategic == Strategic::Plain && !atomic {
            return Some(id);
        }
        let mut node = self.nodes[id].clone();
        node.strategic = strategic;
        node.atomic_map |= atomic;
        Some(self.push(node))
    }

    fn node(&mut self, schema: &Value, path: &str, level: Level, embedded_child: bool) -> NodeId {
        if let Some(id) = self.builtin_reference(schema) {
            return id;
        }
        let flag = |name: &str| schema.get(name).and_then(Value::as_bool).unwrap_or(false);
        let preserve = flag("x-kubernetes-preserve-unknown-fields");
        let int_or_string = flag("x-kubernetes-int-or-string");
        let ty = match type_of(single_type(schema)) {
            _ if int_or_string => Type::IntOrString,
            Some(ty) => ty,
            None if preserve || self.definitions.is_some() || embedded_child => Type::Any,
            None => {
                self.errors.push(FieldError::required(format!("{path}.type"), level.missing_type()));
                Type::Any
            }
        };
        let mut node = Node::new(ty);
        node.nullable = flag("nullable");
        node.embedded = flag("x-kubernetes-embedded-resource");
        node.default = schema.get("default").filter(|d| !d.is_null()).cloned();
        node.format = schema.get("format").and_then(Value::as_str).unwrap_or_default().to_owned();
        node.preserve = preserve || (self.definitions.is_some() && is_free_form(schema, ty));
        node.atomic_map = schema.get("x-kubernetes-map-type").and_then(Value::as_str) == Some("atomic");
        node.strategic = strategic_of(schema);
        if self.definitions.is_none() {
            self.structural_rules(schema, path, &node);
            // The anyOf of an int-or-string only repeats its types.
            node.logic = Logic::compile(schema, path, false, &mut self.errors);
        }
        node.list = self.list_type(schema, path);
        self.children(schema, path, &mut node);
        self.check_list_keys(&node, path);
        let defaulted = node.default.is_some();
        let id = self.push(node);
        if defaulted {
            self.defaults.push((id, format!("{path}.default")));
        }
        id
    }

    fn children(&mut self, schema: &Value, path: &str, node: &mut Node) {
        for (name, child) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            let implied = (matches!(path.rsplit('.').next(), Some("openAPIV3Schema")) || node.embedded)
                && matches!(name.as_str(), "metadata" | "apiVersion" | "kind");
            let id = self.node(child, &format!("{path}.properties[{name}]"), Level::Field, implied);
            node.properties.insert(name.clone(), id);
        }
        match schema.get("additionalProperties") {
            Some(Value::Bool(true)) => node.preserve = true,
            Some(child @ Value::Object(_)) => {
                node.additional =
                    Some(self.node(child, &format!("{path}.additionalProperties"), Level::Field, false))
            }
            _ => {}
        }
        match schema.get("items") {
            Some(child @ Value::Object(_)) => {
                node.items = Some(self.node(child, &format!("{path}.items"), Level::Item, false))
            }
            Some(Value::Array(_)) => self.errors.push(FieldError::forbidden(
                format!("{path}.items"),
                "items must be a schema object and not an array",
            )),
            _ if node.ty == Type::Array && !node.preserve && self.definitions.is_none() => {
                self.errors.push(FieldError::required(format!("{path}.items"), "must be specified"));
            }
            _ => {}
        }
    }

    fn structural_rules(&mut self, schema: &Value, path: &str, node: &Node) {
        let has = |name: &str| schema.get(name).is_some_and(|v| !v.is_null());
        if has("properties") && has("additionalProperties") {
            self.errors.push(FieldError::forbidden(
                format!("{path}.additionalProperties"),
                "additionalProperties and properties are mutual exclusive",
            ));
        }
        if schema.get("additionalProperties") == Some(&Value::Bool(false)) {
            self.errors.push(FieldError::forbidden(
                format!("{path}.additionalProperties"),
                "additionalProperties cannot be set to false",
            ));
        }
        if schema.get("uniqueItems").and_then(Value::as_bool) == Some(true) {
            self.errors.push(FieldError::forbidden(
                format!("{path}.uniqueItems"),
                "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
            ));
        }
        for name in ["$ref", "definitions", "dependencies", "patternProperties", "id", "$schema"] {
            if has(name) {
                self.errors.push(FieldError::forbidden(
                    format!("{path}.{name}"),
                    format!("{name} is not supported"),
                ));
            }
        }
        for junctor in ["allOf", "anyOf", "oneOf"] {
            for (position, member) in
                schema.get(junctor).and_then(Value::as_array).into_iter().flatten().enumerate()
            {
                self.junctor_rules(
                    member,
                    &format!("{path}.{junctor}[{position}]"),
                    node.ty == Type::IntOrString,
                );
            }
        }
        if let Some(member) = schema.get("not").filter(|m| m.is_object()) {
            self.junctor_rules(member, &format!("{path}.not"), false);
        }
    }

    /// Below a junctor there is value validation only.
    fn junctor_rules(&mut self, schema: &Value, path: &str, int_or_string: bool) {
        const FORBIDDEN: [&str; 9] = [
            "additionalProperties",
            "default",
            "nullable",
            "x-kubernetes-preserve-unknown-fields",
            "x-kubernetes-embedded-resource",
            "x-kubernetes-int-or-string",
            "x-kubernetes-list-type",
            "x-kubernetes-list-map-keys",
            "x-kubernetes-validations",
        ];
        for name in FORBIDDEN {
            if schema.get(name).is_some_and(|v| *v != Value::Bool(false) && !v.is_null()) {
                self.errors.push(FieldError::forbidden(
                    format!("{path}.{name}"),
                    "must not be set inside of allOf, anyOf, oneOf or not to be structural",
                ));
            }
        }
        if schema.get("type").is_some() && !int_or_string {
            self.errors.push(FieldError::forbidden(format!("{path}.type"), "must be empty to be structural"));
        }
        for (name, child) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            self.junctor_rules(child, &format!("{path}.properties[{name}]"), false);
        }
        if let Some(child) = schema.get("items").filter(|i| i.is_object()) {
            self.junctor_rules(child, &format!("{path}.items"), false);
        }
    }

    fn list_type(&mut self, schema: &Value, path: &str) -> ListType {
        let keys: Vec<String> = schema
            .get("x-kubernetes-list-map-keys")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|k| k.as_str().map(str::to_owned))
            .collect();
        match schema.get("x-kubernetes-list-type").and_then(Value::as_str) {
            None | Some("atomic") => ListType::Atomic,
            Some("set") => ListType::Set,
            Some("map") => {
                if keys.is_empty() {
                    self.errors.push(FieldError::required(
                        format!("{path}.x-kubernetes-list-map-keys"),
                        "must not be empty if x-kubernetes-list-type is map",
                    ));
                }
                ListType::Map(keys)
            }
            Some(other) => {
                self.errors.push(FieldError::not_supported(
                    format!("{path}.x-kubernetes-list-type"),
                    &json!(other),
                    &["atomic", "set", "map"],
                ));
                ListType::Atomic
            }
        }
    }

    /// List-map keys must be required or defaulted scalars; set items must be comparable.
    fn check_list_keys(&mut self, node: &Node, path: &str) {
        if self.definitions.is_some() {
            return;
        }
        let Some(items) = node.items.map(|id| self.nodes[id].clone()) else {
            return;
        };
        match &node.list {
            ListType::Atomic => {}
            ListType::Set => {
                let comparable = match items.ty {
                    Type::Object => items.atomic_map,
                    Type::Array => items.list == ListType::Atomic,
                    Type::Any => false,
                    Type::String | Type::Integer | Type::Number | Type::Boolean | Type::IntOrString => true,
                };
                if !comparable {
                    let detail =
                        "items must be atomic, granular map, or scalar if x-kubernetes-list-type is set";
                    self.errors.push(FieldError::invalid(
                        format!("{path}.items.x-kubernetes-map-type"),
                        &Value::Null,
                        detail,
                    ));
                }
            }
            ListType::Map(keys) => {
                for (position, key) in keys.iter().enumerate() {
                    let field = format!("{path}.x-kubernetes-list-map-keys[{position}]");
                    match items.properties.get(key).map(|id| &self.nodes[*id]) {
                        None => self.errors.push(FieldError::invalid(
                            field,
                            &json!(key),
                            "entries must all be names of item properties",
                        )),
                        Some(property) if matches!(property.ty, Type::Object | Type::Array | Type::Any) => {
                            let field = format!("{path}.items.properties[{key}].type");
                            self.errors.push(FieldError::invalid(
                                field,
                                &Value::Null,
                                "must be a scalar type if parent array's x-kubernetes-list-type is map",
                            ));
                        }
                        Some(property)
                            if property.default.is_none() && !items.logic.required().contains(key) =>
                        {
                            let field = format!("{path}.items.properties[{key}].default");
                            self.errors.push(FieldError::required(field, "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property"));
                        }
                        Some(_) => {}
                    }
                }
            }
        }
    }

    /// Defaults must be valid and pruned against their own schema.
    fn check_defaults(&mut self) {
        if !self.errors.is_empty() {
            return;
        }
        let schema = Schema { nodes: std::mem::take(&mut self.nodes), root: 0, document: Value::Null };
        for (id, path) in &self.defaults {
            let Some(default) = &schema.nodes[*id].default else {
                continue;
            };
            for error in super::check::values_at(&schema, *id, default) {
                let field =
                    if error.field == "<nil>" { path.clone() } else { format!("{path}.{}", error.field) };
                self.errors.push(FieldError { field, ..error });
            }
            if !schema.prune_at(*id, &mut default.clone()).is_empty() {
                self.errors.push(FieldError::invalid(path.clone(), default, "must not have unknown fields"));
            }
        }
        self.nodes = schema.nodes;
    }

    /// The fields every custom resource has: type and metadata, whatever its schema says.
    fn resource_root(&mut self, root: NodeId, schema: &Value) {
        let metadata = crate::builtin::object_meta();
        let offset = self.nodes.len();
        self.nodes.extend(metadata.nodes.iter().cloned().map(|mut node| {
            node.shift(offset);
            node
        }));
        let grafted = metadata.root + offset;
        // A CRD may restrict the name.
        for name in ["name", "generateName"] {
            if let Some(restriction) = schema.pointer(&format!("/properties/metadata/properties/{name}")) {
                let logic = Logic::compile(restriction, name, false, &mut self.errors);
                let mut node = Node::new(Type::String);
                node.logic = logic;
                let id = self.push(node);
                self.nodes[grafted].properties.insert(name.to_owned(), id);
            }
        }
        self.nodes[root].properties.insert("metadata".to_owned(), grafted);
        for name in ["apiVersion", "kind"] {
            let id = self.push(Node::new(Type::String));
            self.nodes[root].properties.insert(name.to_owned(), id);
        }
    }
}

impl Node {
    fn shift(&mut self, offset: usize) {
        for id in self.properties.values_mut().chain(self.additional.as_mut()).chain(self.items.as_mut()) {
            *id += offset;
        }
    }
}

/// `type: ["string", "null"]` of generated schemas counts as its first member.
fn single_type(schema: &Value) -> Option<&str> {
    match schema.get("type") {
        Some(Value::String(name)) => Some(name),
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).find(|name| *name != "null"),
        _ => None,
    }
}

/// A built-in `object` (or untyped node) that declares nothing holds anything.
fn is_free_form(schema: &Value, ty: Type) -> bool {
    matches!(ty, Type::Object | Type::Any)
        && schema.get("properties").is_none()
        && schema.get("additionalProperties").is_none()
}

fn strategic_of(schema: &Value) -> Strategic {
    let text = |name: &str| schema.get(name).and_then(Value::as_str);
    let strategy = text("x-kubernetes-patch-strategy").unwrap_or_default();
    match (strategy, text("x-kubernetes-patch-merge-key")) {
        ("merge,retainKeys", Some(key)) => Strategic::MergeByRetainKeys(key.to_owned()),
        ("merge", Some(key)) => Strategic::MergeBy(key.to_owned()),
        ("merge", None) => Strategic::MergePrimitives,
        ("replace", _) => Strategic::Replace,
        _ => Strategic::Plain,
    }
}
