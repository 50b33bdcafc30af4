//! Query strings, read as the reference reads them: unknown and empty pairs are ignored.

use holdfast_apimachinery::{decode::FieldValidation, field::FieldError, status::Status};
use serde_json::Value;

/// Decoded pairs in order.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Splits and decodes a query string.
    pub fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key), decode(value))
        });
        Self(pairs.collect())
    }

    /// The first value of a key, unless empty.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str()).filter(|v| !v.is_empty())
    }

    /// All values of a key.
    pub fn all<'q>(&'q self, key: &'q str) -> impl Iterator<Item = &'q str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// Whether a flag is given (`1` or `true`).
    pub fn flag(&self, key: &str) -> bool {
        matches!(self.get(key), Some("1" | "true" | "True" | "t" | "T" | "TRUE"))
    }

    /// A number.
    ///
    /// # Errors
    /// 400 if the value is none.
    pub fn number(&self, key: &str) -> Result<Option<i64>, Status> {
        self.get(key)
            .map(|v| {
                v.parse().map_err(|_| {
                    Status::bad_request(format!("strconv.ParseInt: parsing \"{v}\": invalid syntax"))
                })
            })
            .transpose()
    }

    /// `dryRun`.
    ///
    /// # Errors
    /// 422 for anything but `All`. `kind` is the options kind the error names.
    pub fn dry_run(&self, kind: &str) -> Result<bool, Status> {
        let values: Vec<&str> = self.all("dryRun").filter(|v| !v.is_empty()).collect();
        match values.as_slice() {
            [] => Ok(false),
            ["All"] => Ok(true),
            other => {
                let shown = Value::from(other.iter().map(|v| Value::from(*v)).collect::<Vec<_>>());
                Err(Status::invalid(
                    "meta.k8s.io",
                    kind,
                    "",
                    &[FieldError::not_supported("dryRun", &shown, &["All"])],
                ))
            }
        }
    }

    /// `fieldValidation`.
    ///
    /// # Errors
    /// 422 for an unknown mode. `kind` is the options kind the error names.
    pub fn field_validation(&self, kind: &str) -> Result<FieldValidation, Status> {
        match self.get("fieldValidation") {
            None | Some("Warn") => Ok(FieldValidation::Warn),
            Some("Ignore") => Ok(FieldValidation::Ignore),
            Some("Strict") => Ok(FieldValidation::Strict),
            Some(other) => {
                let error = FieldError::not_supported(
                    "fieldValidation",
                    &Value::from(other),
                    &["Ignore", "Strict", "Warn"],
                );
                Err(Status::invalid("meta.k8s.io", kind, "", &[error]))
            }
        }
    }
}

/// Undoes percent encoding and `+`; broken escapes stay as they are.
pub fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let escaped = (bytes[i] == b'%')
            .then(|| text.get(i + 1..i + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok()))
            .flatten();
        match (bytes[i], escaped) {
            (_, Some(byte)) => {
                out.push(byte);
                i += 3;
            }
            (b'+', None) => {
                out.push(b' ');
                i += 1;
            }
            (byte, None) => {
                out.push(byte);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_pairs_and_escapes() {
        let query = Query::parse("&limit=1&&labelSelector=x%21%3Dy&a=b+c&watch=1");
        assert_eq!(query.get("limit"), Some("1"));
        assert_eq!(query.get("labelSelector"), Some("x!=y"));
        assert_eq!(query.get("a"), Some("b c"));
        assert!(query.flag("watch"));
        assert_eq!(decode("100%"), "100%");
    }
}
