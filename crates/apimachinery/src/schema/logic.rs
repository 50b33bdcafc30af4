//! Value validations of one node: ranges, patterns, enums and the logical junctors.

use regex::Regex;
use serde_json::{Number, Value};

use super::{Type, format};
use crate::field::{FieldError, child, index};

/// A compiled pattern and its text.
#[derive(Clone, Debug)]
pub(crate) struct Pattern {
    text: String,
    regex: Regex,
}

/// Value validations; below junctors also of nested fields.
#[derive(Clone, Debug, Default)]
pub(crate) struct Logic {
    /// Types allowed inside a junctor; nodes carry their type themselves.
    ty: Option<Type>,
    required: Vec<String>,
    enumeration: Vec<Value>,
    pattern: Option<Pattern>,
    min_length: Option<u64>,
    max_length: Option<u64>,
    minimum: Option<Number>,
    maximum: Option<Number>,
    exclusive_minimum: bool,
    exclusive_maximum: bool,
    multiple_of: Option<f64>,
    min_items: Option<u64>,
    max_items: Option<u64>,
    min_properties: Option<u64>,
    max_properties: Option<u64>,
    format: String,
    all_of: Vec<Logic>,
    any_of: Vec<Logic>,
    one_of: Vec<Logic>,
    not: Option<Box<Logic>>,
    properties: Vec<(String, Logic)>,
    items: Option<Box<Logic>>,
    additional: Option<Box<Logic>>,
}

impl Logic {
    /// Compiles the validations of a schema node; `nested` also takes type, properties and items,
    /// which only junctors carry here.
    pub(super) fn compile(schema: &Value, path: &str, nested: bool, errors: &mut Vec<FieldError>) -> Self {
        let count = |name: &str| schema.get(name).and_then(Value::as_u64);
        let number = |name: &str| schema.get(name).and_then(Value::as_number).cloned();
        let flag = |name: &str| schema.get(name).and_then(Value::as_bool).unwrap_or(false);
        let mut list = |name: &str| -> Vec<Self> {
            let members = schema.get(name).and_then(Value::as_array).into_iter().flatten().enumerate();
            members.map(|(i, s)| Self::compile(s, &index(&child(path, name), i), true, errors)).collect()
        };
        let (all_of, any_of, one_of) = (list("allOf"), list("anyOf"), list("oneOf"));
        let mut one = |name: &str| -> Option<Box<Self>> {
            schema
                .get(name)
                .filter(|s| s.is_object())
                .map(|s| Box::new(Self::compile(s, &child(path, name), true, errors)))
        };
        let not = one("not");
        let (items, additional) =
            if nested { (one("items"), one("additionalProperties")) } else { (None, None) };
        let mut properties = Vec::new();
        if nested {
            for (name, schema) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
                properties.push((
                    name.clone(),
                    Self::compile(schema, &format!("{path}.properties[{name}]"), true, errors),
                ));
            }
        }
        let text = |name: &str| schema.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let pattern = match schema.get("pattern").and_then(Value::as_str).filter(|p| !p.is_empty()) {
            None => None,
            Some(text) => match Regex::new(text) {
                Ok(regex) => Some(Pattern { text: text.to_owned(), regex }),
                Err(error) => {
                    let detail = format!("must be a valid regular expression, but isn't: {error}");
                    errors.push(FieldError::invalid(
                        child(path, "pattern"),
                        &Value::String(text.to_owned()),
                        detail,
                    ));
                    None
                }
            },
        };
        Self {
            ty: if nested { type_of(schema.get("type").and_then(Value::as_str)) } else { None },
            required: schema
                .get("required")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(|v| v.as_str().map(str::to_owned))
                .collect(),
            enumeration: schema.get("enum").and_then(Value::as_array).cloned().unwrap_or_default(),
            pattern,
            min_length: count("minLength"),
            max_length: count("maxLength"),
            minimum: number("minimum"),
            maximum: number("maximum"),
            exclusive_minimum: flag("exclusiveMinimum"),
            exclusive_maximum: flag("exclusiveMaximum"),
            multiple_of: schema.get("multipleOf").and_then(Value::as_f64),
            min_items: count("minItems"),
            max_items: count("maxItems"),
            min_properties: count("minProperties"),
            max_properties: count("maxProperties"),
            format: text("format"),
            all_of,
            any_of,
            one_of,
            not,
            properties,
            items,
            additional,
        }
    }

    /// Names of required fields.
    pub(super) fn required(&self) -> &[String] {
        &self.required
    }

    /// Checks a value that has the right type.
    pub(super) fn check(&self, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
        self.check_junctors(value, path, errors);
        match value {
            Value::String(text) => self.check_string(text, value, path, errors),
            Value::Number(number) => self.check_number(number, value, path, errors),
            Value::Array(list) => self.check_array(list, value, path, errors),
            Value::Object(map) => self.check_object(map, value, path, errors),
            Value::Null | Value::Bool(_) => {}
        }
        if !self.enumeration.is_empty() && !self.enumeration.iter().any(|allowed| same(allowed, value)) {
            let supported: Vec<String> = self
                .enumeration
                .iter()
                .map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned))
                .collect();
            errors.push(FieldError::not_supported(path_or_nil(path), value, &supported));
        }
    }

    /// Checks a value below a junctor, type included.
    fn check_nested(&self, value: &Value, path: &str) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if let Some(ty) = self.ty
            && !ty.holds(value)
        {
            errors.push(type_error(ty, value, path));
        }
        self.check(value, path, &mut errors);
        if let Value::Object(map) = value {
            for (name, logic) in &self.properties {
                if let Some(value) = map.get(name) {
                    errors.extend(logic.check_nested(value, &child(path, name)));
                }
            }
            if let Some(logic) = &self.additional {
                for (name, value) in
                    map.iter().filter(|(name, _)| !self.properties.iter().any(|(p, _)| p == *name))
                {
                    errors.extend(logic.check_nested(value, &child(path, name)));
                }
            }
        }
        if let (Value::Array(list), Some(logic)) = (value, &self.items) {
            for (position, value) in list.iter().enumerate() {
                errors.extend(logic.check_nested(value, &index(path, position)));
            }
        }
        errors
    }

    fn check_junctors(&self, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
        let whole = |text: String| FieldError::invalid("<nil>", &Value::String(String::new()), text);
        if !self.any_of.is_empty() {
            let results: Vec<Vec<FieldError>> =
                self.any_of.iter().map(|l| l.check_nested(value, path)).collect();
            if results.iter().all(|r| !r.is_empty()) {
                errors.push(whole(format!("\"{path}\" must validate at least one schema (anyOf)")));
                errors.extend(results.into_iter().min_by_key(Vec::len).unwrap_or_default());
            }
        }
        if !self.one_of.is_empty() {
            let results: Vec<Vec<FieldError>> =
                self.one_of.iter().map(|l| l.check_nested(value, path)).collect();
            let valid = results.iter().filter(|r| r.is_empty()).count();
            if valid != 1 {
                let found = if valid == 0 {
                    "Found none valid".to_owned()
                } else {
                    format!("Found {valid} valid alternatives")
                };
                errors.push(whole(format!(
                    "\"{path}\" must validate one and only one schema (oneOf). {found}"
                )));
                if valid == 0 {
                    errors.extend(results.into_iter().min_by_key(Vec::len).unwrap_or_default());
                }
            }
        }
        if !self.all_of.is_empty() {
            let results: Vec<Vec<FieldError>> =
                self.all_of.iter().map(|l| l.check_nested(value, path)).collect();
            let valid = results.iter().filter(|r| r.is_empty()).count();
            if valid != results.len() {
                let none = if valid == 0 { ". None validated" } else { "" };
                errors.push(whole(format!("\"{path}\" must validate all the schemas (allOf){none}")));
            }
            errors.extend(results.into_iter().flatten());
        }
        if let Some(not) = &self.not
            && not.check_nested(value, path).is_empty()
        {
            errors.push(whole(format!("\"{path}\" must not validate the schema (not)")));
        }
    }

    fn check_string(&self, text: &str, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
        let at = path_or_nil(path);
        let length = text.chars().count() as u64;
        if let Some(max) = self.max_length.filter(|max| length > *max) {
            errors.push(FieldError::too_long(at, usize::try_from(max).unwrap_or(usize::MAX)));
        }
        if let Some(min) = self.min_length.filter(|min| length < *min) {
            errors.push(FieldError::invalid(
                at,
                value,
                format!("{path} in body should be at least {min} chars long"),
            ));
        }
        if let Some(pattern) = self.pattern.as_ref().filter(|p| !p.regex.is_match(text)) {
            errors.push(FieldError::invalid(
                at,
                value,
                format!("{path} in body should match '{}'", pattern.text),
            ));
        }
        if !self.format.is_empty() && !format::string_fits(&self.format, text) {
            errors.push(FieldError::type_invalid(
                at,
                value,
                format!("{path} in body must be of type {}: {}", self.format, crate::field::quote(text)),
            ));
        }
    }

    fn check_number(&self, number: &Number, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
        let at = path_or_nil(path);
        let shown = number.as_f64().unwrap_or_default();
        if let Some(factor) = self.multiple_of.filter(|f| *f > 0.0) {
            let quotient = shown / factor;
            if (quotient - quotient.round()).abs() > 1e-9 {
                errors.push(FieldError::invalid(
                    at,
                    value,
                    format!("{path} in body should be a multiple of {factor}"),
                ));
            }
        }
        if let Some(max) = &self.maximum {
            let order = compare(number, max);
            if order.is_gt() || (self.exclusive_maximum && order.is_eq()) {
                let words = if self.exclusive_maximum { "less than" } else { "less than or equal to" };
                errors.push(FieldError::invalid(
                    at,
                    value,
                    format!("{path} in body should be {words} {}", plain(max)),
                ));
            }
        }
        if let Some(min) = &self.minimum {
            let order = compare(number, min);
            if order.is_lt() || (self.exclusive_minimum && order.is_eq()) {
                let words = if self.exclusive_minimum { "greater than" } else { "greater than or equal to" };
                errors.push(FieldError::invalid(
                    at,
                    value,
                    format!("{path} in body should be {words} {}", plain(min)),
                ));
            }
        }
        if number.as_i64().is_some_and(|n| !format::integer_fits(&self.format, n)) {
            errors.push(FieldError::type_invalid(
                at,
                value,
                format!("{path} in body must be of type {}: \"{number}\"", self.format),
            ));
        }
    }

    fn check_array(&self, list: &[Value], value: &Value, path: &str, errors: &mut Vec<FieldError>) {
        let at = path_or_nil(path);
        let length = list.len() as u64;
        if let Some(min) = self.min_items.filter(|min| length < *min) {
            errors.push(FieldError::invalid(
                at,
                value,
                format!("{path} in body should have at least {min} items"),
            ));
        }
        if let Some(max) = self.max_items.filter(|max| length > *max) {
            errors.push(FieldError::too_many(at, list.len(), usize::try_from(max).unwrap_or(usize::MAX)));
        }
    }

    fn check_object(
        &self,
        map: &serde_json::Map<String, Value>,
        value: &Value,
        path: &str,
        errors: &mut Vec<FieldError>,
    ) {
        let at = path_or_nil(path);
        let length = map.len() as u64;
        if let Some(min) = self.min_properties.filter(|min| length < *min) {
            errors.push(FieldError::invalid(
                at,
                value,
                format!("{path} in body should have at least {min} properties"),
            ));
        }
        if let Some(max) = self.max_properties.filter(|max| length > *max) {
            errors.push(FieldError::invalid(
                at,
                value,
                format!("{path} in body should have at most {max} properties"),
            ));
        }
        for name in self.required.iter().filter(|name| !map.contains_key(name.as_str())) {
            errors.push(FieldError::required(child(path, name), ""));
        }
    }
}

impl Type {
    /// Whether a value has this type.
    pub(super) fn holds(self, value: &Value) -> bool {
        match self {
            Self::Any => true,
            Self::Object => value.is_object(),
            Self::Array => value.is_array(),
            Self::String => value.is_string(),
            Self::Boolean => value.is_boolean(),
            Self::Number => value.is_number(),
            Self::Integer => is_integer(value),
            Self::IntOrString => value.is_string() || is_integer(value),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::Object => "object",
            Self::Array => "array",
            Self::String => "string",
            Self::Boolean => "boolean",
            Self::Number => "number",
            Self::Integer => "integer",
            Self::IntOrString => "integer,string",
        }
    }
}

/// Parses the `type` keyword.
pub(super) fn type_of(name: Option<&str>) -> Option<Type> {
    match name? {
        "object" => Some(Type::Object),
        "array" => Some(Type::Array),
        "string" => Some(Type::String),
        "boolean" => Some(Type::Boolean),
        "number" => Some(Type::Number),
        "integer" => Some(Type::Integer),
        _ => None,
    }
}

/// `Invalid value: "integer": spec.mode in body must be of type string: "integer"`.
pub(super) fn type_error(ty: Type, value: &Value, path: &str) -> FieldError {
    let actual = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) if is_integer(value) => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let detail = format!("{path} in body must be of type {}: \"{actual}\"", ty.name());
    FieldError::type_invalid(path_or_nil(path), &Value::String(actual.to_owned()), detail)
}

fn is_integer(value: &Value) -> bool {
    value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|f| f.fract() == 0.0 && f.abs() < 9.2e18)
}

fn compare(a: &Number, b: &Number) -> std::cmp::Ordering {
    match (a.as_i64(), b.as_i64()) {
        (Some(a), Some(b)) => a.cmp(&b),
        _ => a.as_f64().partial_cmp(&b.as_f64()).unwrap_or(std::cmp::Ordering::Equal),
    }
}

/// A bound as Go prints it: no trailing `.0`.
fn plain(number: &Number) -> String {
    let text = number.to_string();
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

/// Equality in which `1` and `1.0` are the same number.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => compare(a, b).is_eq(),
        _ => a == b,
    }
}

/// The root path prints as `<nil>`.
pub(super) fn path_or_nil(path: &str) -> &str {
    if path.is_empty() { "<nil>" } else { path }
}
