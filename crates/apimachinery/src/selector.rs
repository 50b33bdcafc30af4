//! Label and field selectors (KS §7.3, §7.4).

use serde_json::Value;

use crate::status::Status;

/// A parsed label selector.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {}

impl LabelSelector {
    /// Parses the query form.
    ///
    /// # Errors
    /// 400 `unable to parse requirement: …`.
    pub fn parse(text: &str) -> Result<Self, Status> {
        let _ = text;
        todo!()
    }

    /// From a LabelSelector object; `null` matches nothing, `{}` everything.
    ///
    /// # Errors
    /// The sentence of a bad operator or value.
    pub fn from_object(selector: &Value) -> Result<Self, String> {
        let _ = selector;
        todo!()
    }

    /// Whether everything matches.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        todo!()
    }

    /// Whether a labels map (`metadata.labels`, may be null) matches.
    #[must_use]
    pub fn matches(&self, labels: &Value) -> bool {
        let _ = labels;
        todo!()
    }
}

/// One requirement of a field selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldRequirement {
    /// Label, for example `spec.nodeName`.
    pub field: String,
    /// `=` (true) or `!=`.
    pub equals: bool,
    /// Value.
    pub value: String,
}

/// A parsed field selector: all requirements must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    /// Requirements.
    pub requirements: Vec<FieldRequirement>,
}

impl FieldSelector {
    /// Parses the query form.
    ///
    /// # Errors
    /// 400 with the reference's text.
    pub fn parse(text: &str) -> Result<Self, Status> {
        let _ = text;
        todo!()
    }

    /// Whether an object of `kind` matches (labels checked by [`crate::kind::Kind::check_field_labels`] before).
    #[must_use]
    pub fn matches(&self, kind: &crate::kind::Kind, object: &Value) -> bool {
        let _ = (kind, object);
        todo!()
    }

    /// The value of `metadata.name=…`, if it is one of the requirements (for RBAC and look-ups).
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        todo!()
    }
}
