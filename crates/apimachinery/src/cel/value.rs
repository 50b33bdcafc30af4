//! JSON values as CEL values, typed by the schema.

use std::{collections::HashMap, sync::Arc};

use base64::Engine;
use cel::{
    Value as Cel,
    objects::{Key, Map},
};
use serde_json::Value;

use super::names::escape;
use crate::schema::{NodeId, Schema, Type};

/// The value at a node as CEL sees it: declared names escaped, formats as their CEL types.
pub(super) fn convert(schema: &Schema, id: NodeId, value: &Value) -> Cel {
    let node = schema.node(id);
    match value {
        Value::Object(map) => {
            let mut out: HashMap<Key, Cel> = HashMap::with_capacity(map.len());
            for (name, value) in map {
                if id == schema.root && name == "metadata" {
                    out.insert(name.clone().into(), metadata(value));
                } else if let Some(child) = node.properties.get(name) {
                    if let (Some(escaped), false) =
                        (escape(name), value.is_null() && !schema.node(*child).nullable)
                    {
                        out.insert(escaped.into(), convert(schema, *child, value));
                    }
                } else if let Some(child) = node.additional {
                    out.insert(name.clone().into(), convert(schema, child, value));
                } else {
                    out.insert(name.clone().into(), plain(value));
                }
            }
            Cel::Map(Map { map: Arc::new(out) })
        }
        Value::Array(list) => Cel::List(Arc::new(
            list.iter()
                .map(|v| node.items.map_or_else(|| plain(v), |items| convert(schema, items, v)))
                .collect(),
        )),
        Value::String(text) if node.ty == Type::String => formatted(&node.format, text),
        #[allow(clippy::cast_precision_loss)] // a number is a double in CEL
        Value::Number(number) if node.ty == Type::Number => Cel::Float(number.as_f64().unwrap_or_default()),
        other => plain(other),
    }
}

/// Only the name is visible of metadata.
fn metadata(value: &Value) -> Cel {
    let mut out: HashMap<Key, Cel> = HashMap::new();
    for name in ["name", "generateName"] {
        if let Some(text) = value.get(name).and_then(Value::as_str) {
            out.insert(name.to_owned().into(), Cel::String(Arc::new(text.to_owned())));
        }
    }
    Cel::Map(Map { map: Arc::new(out) })
}

fn formatted(format: &str, text: &str) -> Cel {
    let string = || Cel::String(Arc::new(text.to_owned()));
    match format {
        "date-time" | "datetime" => {
            chrono::DateTime::parse_from_rfc3339(text).map_or_else(|_| string(), Cel::Timestamp)
        }
        "date" => chrono::DateTime::parse_from_rfc3339(&format!("{text}T00:00:00Z"))
            .map_or_else(|_| string(), Cel::Timestamp),
        "duration" => duration(text).map_or_else(string, Cel::Duration),
        "byte" => base64::engine::general_purpose::STANDARD
            .decode(text)
            .map_or_else(|_| string(), |bytes| Cel::Bytes(Arc::new(bytes))),
        _ => string(),
    }
}

/// A Go duration (`1h30m`, `-1.5s`).
pub(super) fn duration(text: &str) -> Option<chrono::Duration> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(chrono::Duration::zero());
    }
    let mut nanos = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let (unit, factor) =
            [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 6e10), ("h", 3.6e12)]
                .into_iter()
                .find(|(unit, _)| {
                    rest.strip_prefix(unit).is_some_and(|after| {
                        after.is_empty() || after.starts_with(|c: char| c.is_ascii_digit() || c == '.')
                    })
                })?;
        nanos += number * factor;
        rest = &rest[unit.len()..];
    }
    #[allow(clippy::cast_possible_truncation)] // saturates, which is what a far duration means
    Some(chrono::Duration::nanoseconds((sign * nanos) as i64))
}

/// A value without a schema.
fn plain(value: &Value) -> Cel {
    match value {
        Value::Null => Cel::Null,
        Value::Bool(flag) => Cel::Bool(*flag),
        Value::Number(number) => {
            number.as_i64().map_or_else(|| whole(number.as_f64().unwrap_or_default()), Cel::Int)
        }
        Value::String(text) => Cel::String(Arc::new(text.clone())),
        Value::Array(list) => Cel::List(Arc::new(list.iter().map(plain).collect())),
        Value::Object(map) => {
            let out: HashMap<Key, Cel> =
                map.iter().map(|(name, value)| (name.clone().into(), plain(value))).collect();
            Cel::Map(Map { map: Arc::new(out) })
        }
    }
}

fn whole(number: f64) -> Cel {
    Cel::Float(number)
}
