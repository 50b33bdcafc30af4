//! Figures with their goals: a table for people, JSON for machines.

use serde_json::{Map, Value, json};

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// `ms`, `s` or `MiB`.
    pub unit: &'static str,
    /// Each run.
    pub runs: Vec<f64>,
    /// Not more than this.
    pub goal: Option<f64>,
    /// What the goal comes from, or what else is to be known.
    pub note: String,
}

impl Figure {
    /// A figure without a goal.
    pub fn new(name: impl Into<String>, unit: &'static str, runs: Vec<f64>) -> Self {
        Self { name: name.into(), unit, runs, goal: None, note: String::new() }
    }

    /// With a goal.
    pub fn goal(mut self, goal: f64, note: impl Into<String>) -> Self {
        self.goal = Some(goal);
        self.note = note.into();
        self
    }

    /// With a remark.
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    /// The median of the runs; the upper one of two.
    pub fn median(&self) -> f64 {
        median(&self.runs)
    }

    /// Whether the goal is kept, if there is one.
    pub fn kept(&self) -> Option<bool> {
        self.goal.map(|goal| self.median() <= goal)
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name, "unit": self.unit, "median": self.median(), "runs": self.runs,
            "goal": self.goal, "kept": self.kept(), "note": self.note,
        })
    }
}

/// The middle one; the upper of two. NaN of nothing.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The table.
pub fn table(figures: &[Figure]) -> String {
    let mut out = format!("{:<46} {:>11} {:>11}        {}\n", "FIGURE", "MEDIAN", "GOAL", "NOTE");
    for f in figures {
        let goal = f.goal.map(|g| format!("≤ {}", with_unit(g, f.unit))).unwrap_or_else(|| "–".into());
        let verdict = f.kept().map_or("", |kept| if kept { "kept" } else { "MISSED" });
        out += &format!(
            "{:<46} {:>11} {:>11} {verdict:<6} {}\n",
            f.name,
            with_unit(f.median(), f.unit),
            goal,
            f.note
        );
    }
    out
}

fn with_unit(value: f64, unit: &str) -> String {
    if unit == "ms" { format!("{value:.0} {unit}") } else { format!("{value:.1} {unit}") }
}

/// The JSON document.
pub fn document(machine: Value, figures: &[Figure], details: Map<String, Value>) -> Value {
    let figures: Vec<Value> = figures.iter().map(Figure::json).collect();
    json!({ "machine": machine, "figures": figures, "details": details })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_misses() {
        assert!(median(&[]).is_nan());
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[1.0, 2.0]), 2.0);
        let figure = Figure::new("x", "ms", vec![5.0, 9.0, 7.0]).goal(6.0, "why");
        assert_eq!(figure.kept(), Some(false));
        assert_eq!(Figure::new("x", "ms", vec![5.0]).kept(), None);
        assert!(table(&[figure]).contains("MISSED why"));
    }
}
