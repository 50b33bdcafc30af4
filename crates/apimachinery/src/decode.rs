//! Request bodies: JSON and YAML into values, duplicate keys, the `fieldValidation` rule.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::{
    field::{child, index},
    protobuf,
    status::Status,
};

/// A decoded body.
#[derive(Clone, Debug, PartialEq)]
pub struct Body {
    /// The value; the last of duplicate keys wins.
    pub value: Value,
    /// Paths of duplicate keys in document order.
    pub duplicates: Vec<String>,
}

/// `fieldValidation` of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    /// Drop silently.
    Ignore,
    /// Drop with a warning (the default).
    #[default]
    Warn,
    /// Refuse.
    Strict,
}

/// Builds a value and notes duplicate keys.
struct Seed<'d> {
    path: String,
    duplicates: &'d mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = access
            .next_element_seed(Seed { path: index(&self.path, list.len()), duplicates: self.duplicates })?
        {
            list.push(value);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            let path = child(&self.path, &key);
            if map.contains_key(&key) {
                self.duplicates.push(path.clone());
            }
            let value = access.next_value_seed(Seed { path, duplicates: self.duplicates })?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

/// Decodes a JSON body.
///
/// # Errors
/// The parser's text.
pub fn json(bytes: &[u8]) -> Result<Body, String> {
    let mut duplicates = Vec::new();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Seed { path: String::new(), duplicates: &mut duplicates }
        .deserialize(&mut deserializer)
        .map_err(|e| e.to_string())?;
    deserializer.end().map_err(|e| e.to_string())?;
    Ok(Body { value, duplicates })
}

/// Decodes a YAML (or JSON) body of one document. Duplicate keys of YAML are an error of the
/// parser.
///
/// # Errors
/// The parser's text.
pub fn yaml(bytes: &[u8]) -> Result<Body, String> {
    // Clients mostly send JSON here, which is YAML too but faster to read as itself.
    if bytes.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{') {
        return json(bytes);
    }
    let text = std::str::from_utf8(bytes).map_err(|e| e.to_string())?;
    let value: Value = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
    Ok(Body { value, duplicates: Vec::new() })
}

/// Decodes by content type (`application/json`, `application/yaml`, protobuf; empty = JSON).
/// `type_name` is what the object must be (`Pod`), for the error text.
///
/// # Errors
/// 400 for a malformed body, 415 for another type.
pub fn body(content_type: &str, bytes: &[u8], type_name: &str) -> Result<Body, Status> {
    let unreadable = |error: String| {
        Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {type_name}): couldn't get version/kind; json parse error: {error}"
        ))
    };
    match content_type.split(';').next().unwrap_or_default().trim() {
        "" | "application/json" => json(bytes).map_err(unreadable),
        "application/yaml" => yaml(bytes).map_err(unreadable),
        "application/vnd.kubernetes.protobuf" => {
            protobuf::decode(bytes).map(|value| Body { value, duplicates: Vec::new() })
        }
        _ => Err(Status::unsupported_media_type(&[
            "application/json",
            "application/yaml",
            "application/vnd.kubernetes.protobuf",
        ])),
    }
}

/// Applies the rule to unknown and duplicate fields: warnings to send, or the 400 of Strict.
///
/// # Errors
/// 400 naming every field.
pub fn field_validation(
    mode: FieldValidation,
    kind: &str,
    version: &str,
    unknown: &[String],
    duplicates: &[String],
) -> Result<Vec<String>, Status> {
    let duplicates = duplicates.iter().map(|field| format!("duplicate field \"{field}\""));
    let unknown = unknown.iter().map(|field| format!("unknown field \"{field}\""));
    let texts: Vec<String> = duplicates.chain(unknown).collect();
    match mode {
        FieldValidation::Ignore => Ok(Vec::new()),
        FieldValidation::Warn => Ok(texts),
        FieldValidation::Strict if texts.is_empty() => Ok(texts),
        FieldValidation::Strict => Err(Status::bad_request(format!(
            "{kind} in version \"{version}\" cannot be handled as a {kind}: strict decoding error: {}",
            texts.join(", ")
        ))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    // KS-A38
    #[test]
    fn duplicates_are_found_and_the_last_wins() {
        let body = super::json(br#"{"a":1,"b":[{"x":1,"x":2}],"a":3}"#).unwrap();
        assert_eq!(body.value, json!({"a": 3, "b": [{"x": 2}]}));
        assert_eq!(body.duplicates, ["b[0].x", "a"]);
        let strict =
            field_validation(FieldValidation::Strict, "Pod", "v1", &["spec.foo".into()], &["a".into()])
                .unwrap_err();
        assert_eq!(
            strict.message,
            "Pod in version \"v1\" cannot be handled as a Pod: strict decoding error: duplicate field \"a\", unknown field \"spec.foo\""
        );
        assert_eq!(
            field_validation(FieldValidation::Warn, "Pod", "v1", &["spec.foo".into()], &[]).unwrap(),
            ["unknown field \"spec.foo\""]
        );
        assert!(
            field_validation(FieldValidation::Ignore, "Pod", "v1", &["x".into()], &[]).unwrap().is_empty()
        );
    }

    #[test]
    fn yaml_bodies() {
        assert_eq!(yaml(b"a: 1\nb:\n- x: 'y'\n").unwrap().value, json!({"a": 1, "b": [{"x": "y"}]}));
        assert_eq!(yaml(br#"{"a": "1"}"#).unwrap().value, json!({"a": "1"}));
        assert!(yaml(b"a: 1\na: 2\n").is_err());
        assert_eq!(body("text/plain", b"", "Pod").unwrap_err().code, 415);
        assert_eq!(body("application/json", b"{", "Pod").unwrap_err().code, 400);
    }
}
