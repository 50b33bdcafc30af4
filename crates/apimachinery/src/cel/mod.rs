//! `x-kubernetes-validations` on the `cel` crate (KS §11.4): compilation with a check of field
//! names, evaluation along the schema with correlated old values.

mod functions;
mod names;
mod value;

use cel::{Context, Program, Value as Cel, objects::OptionalValue};
use serde_json::{Value, json};
use std::sync::Arc;

use crate::{
    field::{ErrorType, FieldError, child, index, key},
    schema::{Node, NodeId, Schema, Type, correlated},
};

/// One compiled rule.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    text: String,
    program: Arc<Program>,
    message: String,
    message_expression: Option<Arc<Program>>,
    reason: ErrorType,
    field_path: String,
    uses_old: bool,
    optional_old: bool,
}

/// Compiles the rules of every node; `nodes` was built from `schema`.
pub(crate) fn compile_rules(
    nodes: &mut [Node],
    root: NodeId,
    schema: &Value,
    path: &str,
    errors: &mut Vec<FieldError>,
) {
    let rules = schema.get("x-kubernetes-validations").and_then(Value::as_array);
    for (position, rule) in rules.into_iter().flatten().enumerate() {
        let at = index(&child(path, "x-kubernetes-validations"), position);
        if let Some(rule) = compile_rule(nodes, root, rule, &at, errors) {
            nodes[root].rules.push(rule);
        }
    }
    for (name, schema) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        if let Some(id) = nodes[root].properties.get(name).copied() {
            compile_rules(nodes, id, schema, &format!("{path}.properties[{name}]"), errors);
        }
    }
    if let (Some(id), Some(schema)) = (nodes[root].additional, schema.get("additionalProperties")) {
        compile_rules(nodes, id, schema, &child(path, "additionalProperties"), errors);
    }
    if let (Some(id), Some(schema)) = (nodes[root].items, schema.get("items")) {
        compile_rules(nodes, id, schema, &child(path, "items"), errors);
    }
}

fn compile_rule(
    nodes: &[Node],
    id: NodeId,
    rule: &Value,
    at: &str,
    errors: &mut Vec<FieldError>,
) -> Option<Rule> {
    let text = |name: &str| rule.get(name).and_then(Value::as_str).unwrap_or_default();
    let source = text("rule").trim();
    if source.is_empty() {
        errors.push(FieldError::required(child(at, "rule"), "rule is not specified"));
        return None;
    }
    let program = compile_text(nodes, id, source, &child(at, "rule"), errors)?;
    let message = text("message").trim();
    if message.contains('\n') {
        errors.push(FieldError::invalid(
            child(at, "message"),
            &json!(message),
            "message must not contain line breaks",
        ));
    }
    if source.contains('\n') && message.is_empty() && text("messageExpression").is_empty() {
        errors.push(FieldError::required(
            child(at, "message"),
            "message must be specified if rule contains line breaks",
        ));
    }
    let message_expression = match text("messageExpression").trim() {
        "" => None,
        expression => compile_text(nodes, id, expression, &child(at, "messageExpression"), errors),
    };
    const REASONS: [(&str, ErrorType); 4] = [
        ("FieldValueInvalid", ErrorType::Invalid),
        ("FieldValueForbidden", ErrorType::Forbidden),
        ("FieldValueRequired", ErrorType::Required),
        ("FieldValueDuplicate", ErrorType::Duplicate),
    ];
    let reason = match text("reason") {
        "" => ErrorType::Invalid,
        name => match REASONS.iter().find(|(known, _)| *known == name) {
            Some((_, reason)) => *reason,
            None => {
                let known: Vec<&str> = REASONS.iter().map(|(name, _)| *name).collect();
                errors.push(FieldError::not_supported(child(at, "reason"), &json!(name), &known));
                ErrorType::Invalid
            }
        },
    };
    let uses_old = program.references().has_variable("oldSelf");
    Some(Rule {
        text: source.to_owned(),
        program,
        message: message.to_owned(),
        message_expression,
        reason,
        field_path: text("fieldPath").to_owned(),
        uses_old,
        optional_old: rule.get("optionalOldSelf").and_then(Value::as_bool).unwrap_or(false),
    })
}

fn compile_text(
    nodes: &[Node],
    id: NodeId,
    source: &str,
    at: &str,
    errors: &mut Vec<FieldError>,
) -> Option<Arc<Program>> {
    match functions::environment().compile(source) {
        Err(error) => {
            errors.push(FieldError::invalid(at, &json!(source), format!("compilation failed: {error}")));
            None
        }
        Ok(program) => {
            if let Some(fault) = names::undefined(nodes, id, source, &program) {
                errors.push(FieldError::invalid(
                    at,
                    &json!(source),
                    format!("compilation failed: {fault}\n | {source}"),
                ));
                return None;
            }
            Some(Arc::new(program))
        }
    }
}

/// Runs every rule that applies; `old` is the stored object on updates.
pub(crate) fn validate(schema: &Schema, object: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    let mut run = Run { schema, context: None, errors };
    run.visit(schema.root, object, old, "");
}

struct Run<'s, 'e> {
    schema: &'s Schema,
    /// Built when the first rule is met.
    context: Option<Context<'static, 'static>>,
    errors: &'e mut Vec<FieldError>,
}

impl Run<'_, '_> {
    fn visit(&mut self, id: NodeId, value: &Value, old: Option<&Value>, path: &str) {
        let node = self.schema.node(id);
        for rule in &node.rules {
            self.rule(id, rule, value, old, path);
        }
        match value {
            Value::Object(map) => {
                for (name, value) in map {
                    if let Some(child_id) = self.schema.child(id, name) {
                        let at = if node.properties.contains_key(name) {
                            child(path, name)
                        } else {
                            key(path, name)
                        };
                        // Atomic maps correlate as a whole only.
                        let old = if node.atomic_map { None } else { old.and_then(|o| o.get(name)) };
                        self.visit(child_id, value, old, &at);
                    }
                }
            }
            Value::Array(list) => {
                if let Some(items) = node.items {
                    for (position, value) in list.iter().enumerate() {
                        let old = correlated(self.schema, node, old, value);
                        self.visit(items, value, old, &index(path, position));
                    }
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    fn rule(&mut self, id: NodeId, rule: &Rule, value: &Value, old: Option<&Value>, path: &str) {
        let transition = rule.uses_old && !rule.optional_old;
        if value.is_null() || (transition && old.is_none()) {
            return;
        }
        // Ratcheting: an unchanged value keeps what it was stored with.
        if !rule.uses_old && old == Some(value) {
            return;
        }
        let schema = self.schema;
        let context = self.context.get_or_insert_with(functions::context);
        let mut scope = context.new_inner_scope();
        scope.add_variable_from_value("self", value::convert(schema, id, value));
        let old = old.map(|old| value::convert(schema, id, old));
        if rule.optional_old {
            let optional = old.map_or_else(OptionalValue::none, OptionalValue::of);
            scope.add_variable_from_value("oldSelf", Cel::Opaque(Arc::new(optional)));
        } else if let Some(old) = old {
            scope.add_variable_from_value("oldSelf", old);
        }
        let outcome = rule.program.execute(&scope);
        let error = match outcome {
            Ok(Cel::Bool(true)) => return,
            Ok(Cel::Bool(false)) => {
                let text = rule.text_of_failure(&scope);
                rule.error(value, path, &text)
            }
            Ok(other) => FieldError::invalid(
                at_or_nil(path),
                &shown(value),
                format!(
                    "cel expression evaluated to {other:?} instead of a boolean, evaluating rule: {}",
                    rule.label()
                ),
            ),
            Err(error) => FieldError::invalid(
                at_or_nil(path),
                &shown(value),
                format!("{} evaluating rule: {}", functions::error_text(&error), rule.label()),
            ),
        };
        self.errors.push(error);
    }
}

impl Rule {
    /// What names the rule in evaluation errors.
    fn label(&self) -> &str {
        if self.message.is_empty() { &self.text } else { &self.message }
    }

    fn text_of_failure(&self, scope: &Context<'_, '_>) -> String {
        let computed = self.message_expression.as_ref().and_then(|program| program.execute(scope).ok());
        match computed {
            Some(Cel::String(text)) if !text.trim().is_empty() && !text.contains('\n') => {
                text.trim().to_owned()
            }
            _ if self.message.is_empty() => format!("failed rule: {}", self.text),
            _ => self.message.clone(),
        }
    }

    fn error(&self, value: &Value, path: &str, text: &str) -> FieldError {
        let field = format!("{path}{}", self.field_path);
        let field = at_or_nil(field.trim_start_matches('.')).to_owned();
        match self.reason {
            ErrorType::Forbidden => FieldError::forbidden(field, text),
            ErrorType::Required => FieldError::required(field, text),
            ErrorType::Duplicate => FieldError::duplicate(field, &shown(value)),
            _ => FieldError::invalid(field, &shown(value), text),
        }
    }
}

/// Objects and lists are shown by their type only.
fn shown(value: &Value) -> Value {
    match value {
        Value::Object(_) => json!("object"),
        Value::Array(_) => json!("array"),
        scalar => scalar.clone(),
    }
}

fn at_or_nil(path: &str) -> &str {
    if path.is_empty() { "<nil>" } else { path }
}

/// Whether rules of a node may look at undeclared fields.
fn is_open(node: &Node) -> bool {
    node.preserve || node.ty == Type::Any || node.ty == Type::IntOrString || node.embedded
}

#[cfg(test)]
mod tests;
