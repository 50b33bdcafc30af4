//! The Swagger document as protobuf `openapi.v2.Document`, which kubectl up to 1.28 reads. Only
//! the parts it looks at: paths with their patch parameters and extensions, definitions.

use serde_json::{Map, Value};

/// Writes protobuf fields; zero values are left out.
#[derive(Default)]
struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push(u8::try_from(value & 0x7f).unwrap_or_default() | 0x80);
            value >>= 7;
        }
        self.bytes.push(u8::try_from(value).unwrap_or_default());
    }

    fn block(&mut self, number: u64, bytes: &[u8]) {
        self.varint(number << 3 | 2);
        self.varint(bytes.len() as u64);
        self.bytes.extend_from_slice(bytes);
    }

    fn text(&mut self, number: u64, text: &str) {
        if !text.is_empty() {
            self.block(number, text.as_bytes());
        }
    }

    fn flag(&mut self, number: u64, value: bool) {
        if value {
            self.varint(number << 3);
            self.varint(1);
        }
    }

    fn message(&mut self, number: u64, fill: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        fill(&mut inner);
        self.block(number, &inner.bytes);
    }

    /// A `Named…` pair: name 1, value 2.
    fn named(&mut self, number: u64, name: &str, fill: impl FnOnce(&mut Self)) {
        self.message(number, |pair| {
            pair.text(1, name);
            pair.message(2, fill);
        });
    }

    /// `Any` with its YAML text (JSON is YAML).
    fn any(&mut self, number: u64, value: &Value) {
        self.message(number, |any| any.text(2, &format!("{value}\n")));
    }

    fn extensions(&mut self, number: u64, map: &Map<String, Value>) {
        for (name, value) in map.iter().filter(|(name, _)| name.starts_with("x-")) {
            self.message(number, |pair| {
                pair.text(1, name);
                pair.any(2, value);
            });
        }
    }
}

fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn members<'v>(value: &'v Value, name: &str) -> impl Iterator<Item = (&'v String, &'v Value)> {
    value.get(name).and_then(Value::as_object).into_iter().flatten()
}

fn elements<'v>(value: &'v Value, name: &str) -> impl Iterator<Item = &'v Value> {
    value.get(name).and_then(Value::as_array).into_iter().flatten()
}

/// Encodes a Swagger document.
pub(super) fn encode(document: &Value) -> Vec<u8> {
    let mut out = Writer::default();
    out.text(1, text(document, "swagger"));
    out.message(2, |info| {
        info.text(1, text(&document["info"], "title"));
        info.text(2, text(&document["info"], "version"));
    });
    out.message(8, |paths| {
        for (path, item) in members(document, "paths") {
            paths.named(2, path, |out| path_item(out, item));
        }
    });
    out.message(9, |definitions| {
        for (name, definition) in members(document, "definitions") {
            definitions.named(1, name, |out| schema(out, definition));
        }
    });
    out.bytes
}

fn path_item(out: &mut Writer, item: &Value) {
    for (method, number) in [("get", 2), ("put", 3), ("post", 4), ("delete", 5), ("patch", 8)] {
        if let Some(described) = item.get(method) {
            out.message(number, |out| operation(out, described));
        }
    }
}

fn operation(out: &mut Writer, described: &Value) {
    out.text(5, text(described, "operationId"));
    for ty in elements(described, "produces").filter_map(Value::as_str) {
        out.text(6, ty);
    }
    for ty in elements(described, "consumes").filter_map(Value::as_str) {
        out.text(7, ty);
    }
    for given in elements(described, "parameters") {
        out.message(8, |item| item.message(1, |out| parameter(out, given)));
    }
    out.message(9, |responses| {
        for (code, response) in members(described, "responses") {
            responses
                .named(1, code, |value| value.message(1, |out| out.text(1, text(response, "description"))));
        }
    });
    if let Some(map) = described.as_object() {
        out.extensions(13, map);
    }
}

fn parameter(out: &mut Writer, given: &Value) {
    if text(given, "in") == "body" {
        out.message(1, |body| {
            body.text(2, text(given, "name"));
            body.text(3, "body");
            body.flag(4, true);
            body.message(5, |out| schema(out, &given["schema"]));
        });
    } else {
        out.message(2, |other| {
            other.message(3, |query| {
                query.text(2, text(given, "in"));
                query.text(4, text(given, "name"));
                query.text(6, text(given, "type"));
            });
        });
    }
}

fn schema(out: &mut Writer, given: &Value) {
    out.text(1, text(given, "$ref"));
    out.text(2, text(given, "format"));
    out.text(4, text(given, "description"));
    for name in elements(given, "required").filter_map(Value::as_str) {
        out.text(19, name);
    }
    match given.get("additionalProperties") {
        Some(Value::Bool(flag)) => out.message(21, |item| item.flag(2, *flag)),
        Some(inner @ Value::Object(_)) => out.message(21, |item| item.message(1, |out| schema(out, inner))),
        _ => {}
    }
    if let Some(ty) = given.get("type").and_then(Value::as_str) {
        out.message(22, |item| item.text(1, ty));
    }
    if let Some(items) = given.get("items").filter(|items| items.is_object()) {
        out.message(23, |item| item.message(1, |out| schema(out, items)));
    }
    if given.get("properties").is_some() {
        out.message(25, |properties| {
            for (name, inner) in members(given, "properties") {
                properties.named(1, name, |out| schema(out, inner));
            }
        });
    }
    if let Some(map) = given.as_object() {
        out.extensions(31, map);
    }
}
