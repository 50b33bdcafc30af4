//! Table answers (KS §7.5).

use chrono::{DateTime, Utc};
use serde_json::{Map, Value, json};

use crate::{jsonpath::JsonPath, kind::Kind, time};

/// One column definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnDef {
    /// Header.
    pub name: String,
    /// `string`, `integer`, `number`, `boolean`, `date`.
    pub kind: String,
    /// `name` for the first column, else empty or the CRD's.
    pub format: String,
    /// Description.
    pub description: String,
    /// 0 always shown, 1 only wide.
    pub priority: i64,
}

/// `includeObject` of a Table request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncludeObject {
    /// PartialObjectMetadata.
    #[default]
    Metadata,
    /// The full object.
    Object,
    /// Nothing.
    None,
}

/// A Table of `objects`; `metadata` is the list's (or `{resourceVersion}`). With `headers` false
/// (later events of a watch) `columnDefinitions` is null.
#[must_use]
pub fn table(
    kind: &Kind,
    objects: &[&Value],
    metadata: Value,
    include: IncludeObject,
    headers: bool,
    now: DateTime<Utc>,
) -> Value {
    let rows = objects.iter().map(|object| row(kind, object, include, now)).collect();
    document(kind, metadata, headers, rows)
}

fn document(kind: &Kind, metadata: Value, headers: bool, rows: Vec<Value>) -> Value {
    let columns = if headers {
        Value::Array(kind.columns().iter().map(ColumnDef::to_value).collect())
    } else {
        Value::Null
    };
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "columnDefinitions": columns, "rows": rows})
}

fn row(kind: &Kind, object: &Value, include: IncludeObject, now: DateTime<Utc>) -> Value {
    let mut row = Map::new();
    row.insert("cells".into(), Value::Array(kind.cells(object, now)));
    if let Some(conditions) = kind.row_conditions(object) {
        row.insert("conditions".into(), conditions);
    }
    match include {
        IncludeObject::Metadata => row.insert("object".into(), partial_metadata(object)),
        IncludeObject::Object => row.insert("object".into(), object.clone()),
        IncludeObject::None => None,
    };
    Value::Object(row)
}

/// The Table of a BOOKMARK event; `object` is the bookmark object.
#[must_use]
pub fn bookmark_table(kind: &Kind, object: &Value, headers: bool) -> Value {
    let cells: Vec<Value> = kind
        .columns()
        .iter()
        .enumerate()
        .map(|(i, _)| if i == 0 { json!("") } else { Value::Null })
        .collect();
    let metadata = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
    document(kind, metadata, headers, vec![json!({"cells": cells, "object": partial_metadata(object)})])
}

/// `PartialObjectMetadata` of an object.
#[must_use]
pub fn partial_metadata(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

impl ColumnDef {
    fn to_value(&self) -> Value {
        json!({"name": self.name, "type": self.kind, "format": self.format, "description": self.description, "priority": self.priority})
    }

    /// The `Name` column.
    pub(crate) fn name_column() -> Self {
        Self {
            name: "Name".into(),
            kind: "string".into(),
            format: "name".into(),
            description: "Name must be unique within a namespace.".into(),
            priority: 0,
        }
    }

    /// The column of CRDs that declare none.
    pub(crate) fn age_column() -> Self {
        Self {
            name: "Age".into(),
            kind: "date".into(),
            format: String::new(),
            description:
                "CreationTimestamp is a timestamp representing the server time when this object was created."
                    .into(),
            priority: 0,
        }
    }

    /// Cell of a custom column: the first result of its path, rendered by the column's type.
    pub(crate) fn cell(&self, path: &JsonPath, object: &Value, now: DateTime<Utc>) -> Value {
        let Some(value) = path.first(object) else {
            return Value::Null;
        };
        match self.kind.as_str() {
            "string" => match value {
                Value::Null | Value::String(_) => value.clone(),
                other => json!(other.to_string()),
            },
            "integer" => value.as_i64().or_else(|| whole(value)).map_or(Value::Null, Value::from),
            "number" => value.as_f64().map_or(Value::Null, Value::from),
            "boolean" => value.as_bool().map_or(Value::Null, Value::from),
            "date" => match value {
                Value::String(text) => json!(time::age(Some(text), now)),
                Value::Null => Value::Null,
                _ => json!("<invalid>"),
            },
            _ => Value::Null,
        }
    }
}

#[allow(clippy::cast_possible_truncation)] // only whole numbers within range pass the test
fn whole(value: &Value) -> Option<i64> {
    value.as_f64().filter(|f| f.fract() == 0.0 && f.abs() < 9e15).map(|f| f as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    // KS-A16
    #[test]
    fn cells_follow_the_column_type() {
        let now = time::parse("2026-11-20T12:00:00Z").unwrap();
        let object = json!({"s": "x", "n": 7, "b": true, "o": {"a": 1}, "t": "2026-11-20T11:59:00Z", "bad": "soon", "f": 1.5, "z": null});
        for (kind, path, expected) in [
            ("string", ".s", json!("x")),
            ("string", ".n", json!("7")),
            ("string", ".o", json!("{\"a\":1}")),
            ("string", ".missing", Value::Null),
            ("string", ".z", Value::Null),
            ("integer", ".n", json!(7)),
            ("integer", ".s", Value::Null),
            ("number", ".f", json!(1.5)),
            ("boolean", ".b", json!(true)),
            ("boolean", ".s", Value::Null),
            ("date", ".t", json!("60s")),
            ("date", ".bad", json!("<invalid>")),
            ("date", ".missing", Value::Null),
        ] {
            let column = ColumnDef { kind: kind.into(), ..ColumnDef::age_column() };
            assert_eq!(column.cell(&JsonPath::parse(path).unwrap(), &object, now), expected, "{kind} {path}");
        }
    }

    // AP-8
    #[test]
    fn ages_are_the_seeds() {
        let now = time::parse("2026-11-20T12:00:00Z").unwrap();
        let minutes = |n: i64| n * 60;
        let hours = |n: i64| n * 3600;
        for (seconds, expected) in [
            (75, "75s"),
            (minutes(3) + 7, "3m7s"),
            (minutes(79), "79m"),
            (minutes(148), "148m"),
            (hours(12), "12h"),
            (hours(5 * 24 + 21), "5d21h"),
        ] {
            let born = (now - chrono::Duration::seconds(seconds)).to_rfc3339();
            let object = json!({"metadata": {"creationTimestamp": born}});
            let path = JsonPath::parse(".metadata.creationTimestamp").unwrap();
            assert_eq!(ColumnDef::age_column().cell(&path, &object, now), json!(expected));
        }
    }
}
