//! The JSONPath subset of printer columns, scale paths and selectable fields: dotted names,
//! `['x']`, `[n]`, `[-1]`, `[a:b]`, `[*]`, `..name` and filters `[?(@.type=='Ready')]`. It is
//! Kubernetes JSONPath, not RFC 9535.

use serde_json::Value;

/// A parsed path.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonPath {
    steps: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    Slice(Option<i64>, Option<i64>),
    All,
    Recursive,
    Filter(Box<Filter>),
}

#[derive(Clone, Debug, PartialEq)]
struct Filter {
    left: Operand,
    test: Option<(Comparison, Operand)>,
}

#[derive(Clone, Debug, PartialEq)]
enum Operand {
    Path(JsonPath),
    Literal(Value),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

impl JsonPath {
    /// Parses `.spec.x`, `.status.conditions[?(@.type=='Ready')].status`, with or without braces.
    ///
    /// # Errors
    /// A sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let inner = text.trim();
        let inner = inner.strip_prefix('{').and_then(|t| t.strip_suffix('}')).unwrap_or(inner);
        let inner = inner.strip_prefix(['$', '@']).unwrap_or(inner);
        let mut steps = Vec::new();
        let mut rest = inner;
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix("..") {
                steps.push(Step::Recursive);
                rest = after;
                if !rest.starts_with('[') {
                    rest = field_step(rest, text, &mut steps)?;
                }
            } else if let Some(after) = rest.strip_prefix('.') {
                // A lone dot is the root.
                if after.is_empty() && steps.is_empty() {
                    break;
                }
                rest = if after.starts_with('[') { after } else { field_step(after, text, &mut steps)? };
            } else if rest.starts_with('[') {
                let end = closing(rest).ok_or_else(|| format!("unterminated array in {text:?}"))?;
                steps.push(bracket(&rest[1..end], text)?);
                rest = &rest[end + 1..];
            } else if steps.is_empty() {
                rest = field_step(rest, text, &mut steps)?;
            } else {
                return Err(format!("unexpected {rest:?} in {text:?}"));
            }
        }
        Ok(Self { steps })
    }

    /// All results, in document order.
    #[must_use]
    pub fn find<'v>(&self, value: &'v Value) -> Vec<&'v Value> {
        let mut current = vec![value];
        for step in &self.steps {
            let mut next = Vec::new();
            for value in current {
                step.walk(value, &mut next);
            }
            current = next;
        }
        current
    }

    /// The first result.
    #[must_use]
    pub fn first<'v>(&self, value: &'v Value) -> Option<&'v Value> {
        self.find(value).into_iter().next()
    }

    /// The names of a path of plain fields (`.spec.replicas`), or `None` if it is anything else.
    #[must_use]
    pub fn fields(&self) -> Option<Vec<&str>> {
        self.steps
            .iter()
            .map(|step| if let Step::Field(name) = step { Some(name.as_str()) } else { None })
            .collect()
    }
}

fn field_step<'t>(rest: &'t str, whole: &str, steps: &mut Vec<Step>) -> Result<&'t str, String> {
    let mut name = String::new();
    let mut chars = rest.char_indices();
    let mut end = rest.len();
    while let Some((at, c)) = chars.next() {
        match c {
            // `\.` is a dot inside a name.
            '\\' => name.extend(chars.next().map(|(_, c)| c)),
            '.' | '[' => {
                end = at;
                break;
            }
            c if c.is_whitespace() || "{}()=!<>'\"".contains(c) => {
                return Err(format!("unexpected {c:?} in {whole:?}"));
            }
            c => name.push(c),
        }
    }
    match name.as_str() {
        "" => return Err(format!("empty field name in {whole:?}")),
        "*" => steps.push(Step::All),
        _ => steps.push(Step::Field(name)),
    }
    Ok(&rest[end..])
}

/// Position of the bracket that closes the one at 0, respecting quotes.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0;
    let mut quote = None;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(q), c) if q == c => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '[') => depth += 1,
            (None, ']') => {
                depth -= 1;
                if depth == 0 {
                    return Some(at);
                }
            }
            (None, _) => {}
        }
    }
    None
}

fn unquote(text: &str) -> Option<&str> {
    ['\'', '"'].into_iter().find_map(|q| text.strip_prefix(q).and_then(|t| t.strip_suffix(q)))
}

fn bracket(inner: &str, whole: &str) -> Result<Step, String> {
    let inner = inner.trim();
    if inner == "*" {
        return Ok(Step::All);
    }
    if let Some(name) = unquote(inner) {
        return Ok(Step::Field(name.to_owned()));
    }
    if let Some(filter) = inner.strip_prefix("?(").and_then(|t| t.strip_suffix(')')) {
        return Ok(Step::Filter(Box::new(filter_of(filter, whole)?)));
    }
    let number = |t: &str| -> Result<Option<i64>, String> {
        if t.is_empty() {
            Ok(None)
        } else {
            t.parse().map(Some).map_err(|_| format!("invalid array index {inner:?} in {whole:?}"))
        }
    };
    match inner.split_once(':') {
        Some((from, to)) => Ok(Step::Slice(number(from)?, number(to)?)),
        None => Ok(Step::Index(number(inner)?.ok_or_else(|| format!("empty array index in {whole:?}"))?)),
    }
}

fn filter_of(text: &str, whole: &str) -> Result<Filter, String> {
    const OPERATORS: [(&str, Comparison); 6] = [
        ("==", Comparison::Equal),
        ("!=", Comparison::NotEqual),
        ("<=", Comparison::LessEqual),
        (">=", Comparison::GreaterEqual),
        ("<", Comparison::Less),
        (">", Comparison::Greater),
    ];
    let mut quote = None;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(q), c) if q == c => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, _) => {
                if let Some((symbol, comparison)) =
                    OPERATORS.into_iter().find(|(symbol, _)| text[at..].starts_with(symbol))
                {
                    let left = operand(&text[..at], whole)?;
                    let right = operand(&text[at + symbol.len()..], whole)?;
                    return Ok(Filter { left, test: Some((comparison, right)) });
                }
            }
        }
    }
    Ok(Filter { left: operand(text, whole)?, test: None })
}

fn operand(text: &str, whole: &str) -> Result<Operand, String> {
    let text = text.trim();
    if let Some(literal) = unquote(text) {
        return Ok(Operand::Literal(Value::String(literal.to_owned())));
    }
    if text.starts_with(['@', '$', '.']) {
        return Ok(Operand::Path(JsonPath::parse(text)?));
    }
    serde_json::from_str(text)
        .map(Operand::Literal)
        .map_err(|_| format!("unrecognized filter operand {text:?} in {whole:?}"))
}

impl Step {
    fn walk<'v>(&self, value: &'v Value, out: &mut Vec<&'v Value>) {
        match self {
            Self::Field(name) => out.extend(value.get(name.as_str())),
            Self::Index(index) => {
                if let Some(list) = value.as_array() {
                    out.extend(at(*index, list.len()).and_then(|i| list.get(i)));
                }
            }
            Self::Slice(from, to) => {
                if let Some(list) = value.as_array() {
                    let start = from.map_or(Some(0), |i| at(i, list.len())).unwrap_or(list.len());
                    let end = to
                        .map_or(Some(list.len()), |i| at(i, list.len()))
                        .unwrap_or(list.len())
                        .min(list.len());
                    out.extend(list.iter().take(end).skip(start));
                }
            }
            Self::All => match value {
                Value::Array(list) => out.extend(list),
                Value::Object(map) => out.extend(map.values()),
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
            },
            Self::Recursive => {
                out.push(value);
                match value {
                    Value::Array(list) => list.iter().for_each(|v| self.walk(v, out)),
                    Value::Object(map) => map.values().for_each(|v| self.walk(v, out)),
                    Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
                }
            }
            Self::Filter(filter) => {
                if let Some(list) = value.as_array() {
                    out.extend(list.iter().filter(|item| filter.holds(item)));
                }
            }
        }
    }
}

fn at(index: i64, length: usize) -> Option<usize> {
    if index >= 0 { usize::try_from(index).ok() } else { length.checked_sub(usize::try_from(-index).ok()?) }
}

impl Filter {
    fn holds(&self, item: &Value) -> bool {
        let resolve = |operand: &Operand| -> Option<Value> {
            match operand {
                Operand::Path(path) => path.first(item).cloned(),
                Operand::Literal(value) => Some(value.clone()),
            }
        };
        let left = resolve(&self.left);
        match &self.test {
            None => left.is_some(),
            Some((comparison, right)) => match (left, resolve(right)) {
                (Some(left), Some(right)) => comparison.holds(&left, &right),
                _ => false,
            },
        }
    }
}

impl Comparison {
    fn holds(self, left: &Value, right: &Value) -> bool {
        let order = match (left, right) {
            (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
            (Value::Number(a), Value::Number(b)) => a.as_f64().partial_cmp(&b.as_f64()),
            _ => None,
        };
        match self {
            Self::Equal => left == right,
            Self::NotEqual => left != right,
            Self::Less => order.is_some_and(|o| o.is_lt()),
            Self::LessEqual => order.is_some_and(|o| o.is_le()),
            Self::Greater => order.is_some_and(|o| o.is_gt()),
            Self::GreaterEqual => order.is_some_and(|o| o.is_ge()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    // KS-A16
    #[test]
    fn paths_of_printer_columns() {
        let object = json!({
            "spec": {"cpu": {"cores": 2}, "a.b": 1},
            "status": {"conditions": [{"type": "Ready", "status": "True", "n": 3}, {"type": "Agent", "status": "False", "n": 9}], "ips": ["10.0.0.1", "10.0.0.2"]}
        });
        for (path, expected) in [
            (".spec.cpu.cores", vec![json!(2)]),
            ("{.spec.cpu.cores}", vec![json!(2)]),
            ("spec.cpu.cores", vec![json!(2)]),
            (".spec['a.b']", vec![json!(1)]),
            (r".spec.a\.b", vec![json!(1)]),
            (".status.conditions[?(@.type=='Agent')].status", vec![json!("False")]),
            (r#".status.conditions[?(@.type == "Ready")].status"#, vec![json!("True")]),
            (".status.conditions[?(@.n>3)].type", vec![json!("Agent")]),
            (".status.conditions[?(@.type=='None')].status", vec![]),
            (".status.ips[0]", vec![json!("10.0.0.1")]),
            (".status.ips[-1]", vec![json!("10.0.0.2")]),
            (".status.ips[*]", vec![json!("10.0.0.1"), json!("10.0.0.2")]),
            (".status.conditions[*].type", vec![json!("Ready"), json!("Agent")]),
            ("..cores", vec![json!(2)]),
            (".missing.x", vec![]),
        ] {
            let parsed = JsonPath::parse(path).unwrap();
            assert_eq!(parsed.find(&object).into_iter().cloned().collect::<Vec<_>>(), expected, "{path}");
        }
        for bad in [".a[", ".a[x]", ".a..", ".a b", ".a[?(@.b==c)]"] {
            assert!(JsonPath::parse(bad).is_err(), "{bad}");
        }
    }
}
