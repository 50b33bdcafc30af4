//! The JSONPath subset of printer columns and scale paths.

use serde_json::Value;

/// A parsed path.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonPath {}

impl JsonPath {
    /// Parses `.spec.x`, `.status.conditions[?(@.type=='Ready')].status`, with or without braces.
    ///
    /// # Errors
    /// A sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let _ = text;
        todo!()
    }

    /// All results, in document order.
    #[must_use]
    pub fn find<'v>(&self, value: &'v Value) -> Vec<&'v Value> {
        let _ = value;
        todo!()
    }
}
