//! Escaping of property names, and the compile-time check that rules select declared fields.

use cel::{Program, common::ast::Expr};

use super::is_open;
use crate::schema::{Node, NodeId};

/// Words CEL reserves; as property names they are written `__word__`.
const RESERVED: [&str; 19] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
];

/// A property name as CEL sees it; `None` if it cannot be written.
pub(super) fn escape(name: &str) -> Option<String> {
    if RESERVED.contains(&name) || matches!(name, "void" | "while") {
        return Some(format!("__{name}__"));
    }
    let mut out = String::new();
    let mut rest = name;
    while let Some(c) = rest.chars().next() {
        let (piece, taken) = match c {
            '_' if rest.starts_with("__") => ("__underscores__", 2),
            '.' => ("__dot__", 1),
            '-' => ("__dash__", 1),
            '/' => ("__slash__", 1),
            c if c.is_ascii_alphanumeric() || c == '_' => (&rest[..1], 1),
            _ => return None,
        };
        out.push_str(piece);
        rest = &rest[taken..];
    }
    (!out.is_empty() && !out.starts_with(|c: char| c.is_ascii_digit())).then_some(out)
}

/// The first selected field that no node declares: `ERROR: <input>:1:5: undefined field 'nope'`.
pub(super) fn undefined(nodes: &[Node], root: NodeId, source: &str, program: &Program) -> Option<String> {
    let mut search = Search { nodes, root, source, program, fault: None };
    search.visit(program.expression());
    search.fault
}

struct Search<'p> {
    nodes: &'p [Node],
    root: NodeId,
    source: &'p str,
    program: &'p Program,
    fault: Option<String>,
}

impl Search<'_> {
    /// Returns the node an expression denotes where that is known.
    fn visit(&mut self, expression: &cel::IdedExpr) -> Option<NodeId> {
        match &expression.expr {
            Expr::Ident(name) if name == "self" || name == "oldSelf" => Some(self.root),
            Expr::Select(select) => {
                let id = self.visit(&select.operand)?;
                let node = &self.nodes[id];
                if is_open(node) {
                    return None;
                }
                if let Some((_, id)) =
                    node.properties.iter().find(|(name, _)| escape(name).as_deref() == Some(&select.field))
                {
                    return Some(*id);
                }
                if node.additional.is_none() && self.fault.is_none() && !self.optional_chain(expression) {
                    let (line, column) = self.position(expression.id);
                    self.fault =
                        Some(format!("ERROR: <input>:{line}:{column}: undefined field '{}'", select.field));
                }
                node.additional
            }
            Expr::Call(call) => {
                if let Some(target) = &call.target {
                    self.visit(target);
                }
                for argument in &call.args {
                    self.visit(argument);
                }
                None
            }
            Expr::Comprehension(comprehension) => {
                self.visit(&comprehension.iter_range);
                self.visit(&comprehension.accu_init);
                self.visit(&comprehension.loop_cond);
                self.visit(&comprehension.loop_step);
                self.visit(&comprehension.result);
                None
            }
            Expr::List(list) => {
                for element in &list.elements {
                    self.visit(element);
                }
                None
            }
            _ => None,
        }
    }

    /// Line and column of a node, from 1.
    fn position(&self, id: u64) -> (usize, usize) {
        let start = self.program.source_info().offset_for(id).map_or(0, |(start, _)| start);
        let before: String = self.source.chars().take(usize::try_from(start).unwrap_or_default()).collect();
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |last| last.chars().count()) + 1;
        (line, column)
    }

    /// `oldSelf` may be an optional, whose methods are calls, not fields: nothing to allow here,
    /// but selections on anything unknown are left to run time.
    fn optional_chain(&self, expression: &cel::IdedExpr) -> bool {
        matches!(&expression.expr, Expr::Select(select) if matches!(&select.operand.expr, Expr::Ident(name) if name == "oldSelf") && select.field == "value")
    }
}

#[cfg(test)]
mod tests {
    use super::escape;

    #[test]
    fn property_names_are_escaped() {
        for (name, escaped) in [
            ("namespace", Some("__namespace__")),
            ("a_b", Some("a_b")),
            ("a__b", Some("a__underscores__b")),
            ("a.b-c/d", Some("a__dot__b__dash__c__slash__d")),
            ("a b", None),
            ("1a", None),
        ] {
            assert_eq!(escape(name).as_deref(), escaped, "{name}");
        }
    }
}
