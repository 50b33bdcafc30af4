//! Label and field selectors (KS §7.3, §7.4).

use serde_json::Value;

use crate::{kind::Kind, names, status::Status};

/// One condition on a label.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    /// Value is one of.
    In(String, Vec<String>),
    /// Absent, or none of.
    NotIn(String, Vec<String>),
    /// Present.
    Exists(String),
    /// Absent.
    Absent(String),
    /// Integer greater than.
    Greater(String, i64),
    /// Integer less than.
    Less(String, i64),
}

/// A parsed label selector: all requirements must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl LabelSelector {
    /// Parses the query form.
    ///
    /// # Errors
    /// 400 `unable to parse requirement: …`.
    pub fn parse(text: &str) -> Result<Self, Status> {
        Parser::new(text)
            .selector()
            .map(|requirements| Self { requirements, nothing: false })
            .map_err(|message| Status::bad_request(format!("unable to parse requirement: {message}")))
    }

    /// From a LabelSelector object; `null` matches nothing, `{}` everything.
    ///
    /// # Errors
    /// The sentence of a bad operator or value.
    pub fn from_object(selector: &Value) -> Result<Self, String> {
        let Some(object) = selector.as_object() else {
            return Ok(Self { requirements: Vec::new(), nothing: true });
        };
        let mut requirements = Vec::new();
        for (key, value) in object.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
            requirements
                .push(Requirement::In(key.clone(), vec![value.as_str().unwrap_or_default().to_owned()]));
        }
        for expression in object.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            requirements.push(expression_requirement(expression)?);
        }
        Ok(Self { requirements, nothing: false })
    }

    /// Whether everything matches.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }

    /// Whether a labels map (`metadata.labels`, may be null) matches.
    #[must_use]
    pub fn matches(&self, labels: &Value) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(labels))
    }
}

/// One element of `matchExpressions` or of a node selector term.
fn expression_requirement(expression: &Value) -> Result<Requirement, String> {
    let key = expression["key"].as_str().unwrap_or_default().to_owned();
    let values: Vec<String> = expression["values"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|v| v.as_str().map(str::to_owned))
        .collect();
    let operator = expression["operator"].as_str().unwrap_or_default();
    match operator {
        "In" | "NotIn" if values.is_empty() => {
            Err("values: Required value: must be specified when `operator` is 'In' or 'NotIn'".to_owned())
        }
        "In" => Ok(Requirement::In(key, values)),
        "NotIn" => Ok(Requirement::NotIn(key, values)),
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            Err("values: Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
                .to_owned())
        }
        "Exists" => Ok(Requirement::Exists(key)),
        "DoesNotExist" => Ok(Requirement::Absent(key)),
        "Gt" | "Lt" => {
            let bound = match values.as_slice() {
                [one] => one
                    .parse()
                    .map_err(|_| format!("values[0]: Invalid value: \"{one}\": must be an integer"))?,
                _ => return Err(
                    "values: Required value: must be specified single value when `operator` is 'Lt' or 'Gt'"
                        .to_owned(),
                ),
            };
            Ok(if operator == "Gt" {
                Requirement::Greater(key, bound)
            } else {
                Requirement::Less(key, bound)
            })
        }
        other => Err(format!("operator: Invalid value: \"{other}\": not a valid selector operator")),
    }
}

/// Whether labels satisfy `matchExpressions` (node selector terms use the same operators).
///
/// # Errors
/// The sentence of a bad operator or value.
pub fn matches_expressions(expressions: &Value, labels: &Value) -> Result<bool, String> {
    for expression in expressions.as_array().into_iter().flatten() {
        if !expression_requirement(expression)?.matches(labels) {
            return Ok(false);
        }
    }
    Ok(true)
}

impl Requirement {
    fn matches(&self, labels: &Value) -> bool {
        let label = |key: &str| labels.get(key).and_then(Value::as_str);
        match self {
            Self::In(key, values) => label(key).is_some_and(|v| values.iter().any(|x| x == v)),
            Self::NotIn(key, values) => label(key).is_none_or(|v| values.iter().all(|x| x != v)),
            Self::Exists(key) => label(key).is_some(),
            Self::Absent(key) => label(key).is_none(),
            Self::Greater(key, bound) => {
                label(key).and_then(|v| v.parse::<i64>().ok()).is_some_and(|v| v > *bound)
            }
            Self::Less(key, bound) => {
                label(key).and_then(|v| v.parse::<i64>().ok()).is_some_and(|v| v < *bound)
            }
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Symbol(&'static str),
    End,
}

impl Token {
    fn text(&self) -> &str {
        match self {
            Self::Word(word) => word,
            Self::Symbol(symbol) => symbol,
            Self::End => "",
        }
    }
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn new(text: &str) -> Self {
        let mut tokens = Vec::new();
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            if first.is_whitespace() {
                rest = &rest[first.len_utf8()..];
            } else if let Some(symbol) =
                ["==", "!=", "=", "!", "(", ")", ",", ">", "<"].into_iter().find(|s| rest.starts_with(s))
            {
                tokens.push(Token::Symbol(symbol));
                rest = &rest[symbol.len()..];
            } else {
                let end =
                    rest.find(|c: char| c.is_whitespace() || "=!(),<>".contains(c)).unwrap_or(rest.len());
                tokens.push(Token::Word(rest[..end].to_owned()));
                rest = &rest[end..];
            }
        }
        Self { tokens, at: 0 }
    }

    fn peek(&self) -> Token {
        self.tokens.get(self.at).cloned().unwrap_or(Token::End)
    }

    fn next(&mut self) -> Token {
        let token = self.peek();
        self.at += 1;
        token
    }

    fn selector(&mut self) -> Result<Vec<Requirement>, String> {
        let mut out = Vec::new();
        if self.peek() == Token::End {
            return Ok(out);
        }
        loop {
            out.push(self.requirement()?);
            match self.next() {
                Token::End => return Ok(out),
                Token::Symbol(",") => {
                    if matches!(self.peek(), Token::End) {
                        return Err("found '', expected: identifier after ','".to_owned());
                    }
                }
                other => return Err(format!("found '{}', expected: ',' or 'end of string'", other.text())),
            }
        }
    }

    fn key(&mut self) -> Result<String, String> {
        match self.next() {
            Token::Word(word) => {
                let faults = names::qualified_name(&word);
                if faults.is_empty() {
                    Ok(word)
                } else {
                    Err(format!("<nil>: Invalid value: \"{word}\": {}", faults.join("; ")))
                }
            }
            other => Err(format!("found '{}', expected: identifier", other.text())),
        }
    }

    fn value(&mut self) -> Result<String, String> {
        let word = match self.peek() {
            Token::Word(word) => {
                self.at += 1;
                word
            }
            Token::End | Token::Symbol("," | ")") => String::new(),
            Token::Symbol(other) => return Err(format!("found '{other}', expected: identifier")),
        };
        let faults = names::label_value(&word);
        if faults.is_empty() {
            Ok(word)
        } else {
            Err(format!("values[0][key]: Invalid value: \"{word}\": {}", faults.join("; ")))
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        if self.peek() == Token::Symbol("!") {
            self.at += 1;
            return Ok(Requirement::Absent(self.key()?));
        }
        let key = self.key()?;
        match self.peek() {
            Token::End | Token::Symbol(",") => Ok(Requirement::Exists(key)),
            Token::Symbol("=" | "==") => {
                self.at += 1;
                Ok(Requirement::In(key, vec![self.value()?]))
            }
            Token::Symbol("!=") => {
                self.at += 1;
                Ok(Requirement::NotIn(key, vec![self.value()?]))
            }
            Token::Symbol(order @ (">" | "<")) => {
                self.at += 1;
                let text = self.value()?;
                let bound = text.parse().map_err(|_| format!("values[0]: Invalid value: \"{text}\": for 'Gt', 'Lt' operators, the value must be an integer"))?;
                Ok(if order == ">" {
                    Requirement::Greater(key, bound)
                } else {
                    Requirement::Less(key, bound)
                })
            }
            Token::Word(word) if word == "in" || word == "notin" => {
                self.at += 1;
                let values = self.list()?;
                Ok(if word == "in" { Requirement::In(key, values) } else { Requirement::NotIn(key, values) })
            }
            other => Err(format!("found '{}', expected: in, notin, =, ==, !=, gt, lt", other.text())),
        }
    }

    fn list(&mut self) -> Result<Vec<String>, String> {
        match self.next() {
            Token::Symbol("(") => {}
            other => return Err(format!("found '{}' expected: '('", other.text())),
        }
        let mut values = Vec::new();
        loop {
            values.push(self.value()?);
            match self.next() {
                Token::Symbol(",") => {}
                Token::Symbol(")") => return Ok(values),
                other => return Err(format!("found '{}', expected: ',' or ')'", other.text())),
            }
        }
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
        let mut requirements = Vec::new();
        for term in split_escaped(text) {
            if term.is_empty() {
                continue;
            }
            let Some((at, operator)) = find_operator(&term) else {
                return Err(Status::bad_request(format!(
                    "invalid selector: '{text}'; can't understand '{term}'"
                )));
            };
            let value = unescape(&term[at + operator.len()..]).ok_or_else(|| {
                Status::bad_request(format!("invalid field selector: invalid escape sequence in '{term}'"))
            })?;
            requirements.push(FieldRequirement {
                field: term[..at].to_owned(),
                equals: operator != "!=",
                value,
            });
        }
        Ok(Self { requirements })
    }

    /// Whether an object of `kind` matches (labels checked by [`Kind::check_field_labels`] before).
    #[must_use]
    pub fn matches(&self, kind: &Kind, object: &Value) -> bool {
        self.requirements
            .iter()
            .all(|r| kind.field(object, &r.field).is_ok_and(|value| (value == r.value) == r.equals))
    }

    /// The value of `metadata.name=…`, if it is one of the requirements (for RBAC and look-ups).
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.requirements.iter().find(|r| r.equals && r.field == "metadata.name").map(|r| r.value.as_str())
    }
}

fn split_escaped(text: &str) -> Vec<String> {
    let mut out = vec![String::new()];
    let mut escaped = false;
    for c in text.chars() {
        if c == ',' && !escaped {
            out.push(String::new());
            continue;
        }
        escaped = c == '\\' && !escaped;
        if let Some(last) = out.last_mut() {
            last.push(c);
        }
    }
    out
}

fn find_operator(term: &str) -> Option<(usize, &'static str)> {
    let mut escaped = false;
    for (at, c) in term.char_indices() {
        if escaped {
            escaped = false;
            continue;
        }
        if c == '\\' {
            escaped = true;
            continue;
        }
        if let Some(operator) = ["!=", "==", "="].into_iter().find(|o| term[at..].starts_with(o)) {
            return Some((at, operator));
        }
    }
    None
}

fn unescape(text: &str) -> Option<String> {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c == '\\' {
            match chars.next() {
                Some(next @ ('\\' | ',' | '=')) => out.push(next),
                _ => return None,
            }
        } else {
            out.push(c);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    // KS-A19
    #[test]
    fn label_selector_grammar() {
        let labels = json!({"app": "vm", "tier": "a", "n": "7"});
        for (text, expected) in [
            ("", true),
            ("app=vm", true),
            ("app==vm", true),
            ("app!=vm", false),
            ("missing!=x", true),
            ("app in (vm, x)", true),
            ("app in (x)", false),
            ("app notin (x)", true),
            ("missing notin (x)", true),
            ("app", true),
            ("!app", false),
            ("!missing", true),
            ("n>5", true),
            ("n<5", false),
            ("missing>5", false),
            (" app = vm , tier in (a,b) ", true),
            ("app=vm,tier=b", false),
            ("app=", false),
            ("missing=", false),
        ] {
            assert_eq!(LabelSelector::parse(text).map(|s| s.matches(&labels)), Ok(expected), "{text}");
        }
        for bad in ["app in vm", "a b", "=x", "app in (vm", "app=vm,", "n>x", "a=b=c", "a^"] {
            let error = LabelSelector::parse(bad).unwrap_err();
            assert_eq!(
                (error.code, error.message.starts_with("unable to parse requirement: ")),
                (400, true),
                "{bad}"
            );
        }
    }

    #[test]
    fn label_selector_objects() {
        let labels = json!({"app": "vm"});
        assert!(!LabelSelector::from_object(&Value::Null).unwrap().matches(&labels));
        assert!(LabelSelector::from_object(&json!({})).unwrap().matches(&labels));
        let selector = json!({"matchLabels": {"app": "vm"}, "matchExpressions": [{"key": "x", "operator": "DoesNotExist"}]});
        assert!(LabelSelector::from_object(&selector).unwrap().matches(&labels));
        assert!(
            LabelSelector::from_object(&json!({"matchExpressions": [{"key": "x", "operator": "Is"}]}))
                .is_err()
        );
    }

    #[test]
    fn field_selector_grammar() {
        let parsed =
            FieldSelector::parse(r"metadata.name=a\,b,status.phase!=Failed,spec.nodeName==n1").unwrap();
        let flat: Vec<(&str, bool, &str)> =
            parsed.requirements.iter().map(|r| (r.field.as_str(), r.equals, r.value.as_str())).collect();
        assert_eq!(
            flat,
            [
                ("metadata.name", true, "a,b"),
                ("status.phase", false, "Failed"),
                ("spec.nodeName", true, "n1")
            ]
        );
        assert_eq!(parsed.name(), Some("a,b"));
        assert_eq!(FieldSelector::parse("foo").unwrap_err().code, 400);
    }
}
