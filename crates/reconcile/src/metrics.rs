//! Counters of all controllers, as Prometheus text.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

#[derive(Debug, Default)]
struct Series {
    help: &'static str,
    kind: &'static str,
    values: BTreeMap<String, f64>,
}

/// A small registry of counters and gauges. Cheap to clone; clones share the values.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    series: Arc<Mutex<BTreeMap<&'static str, Series>>>,
}

fn labels(pairs: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (index, (name, value)) in pairs.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        let escaped = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let _ = write!(text, "{comma}{name}=\"{escaped}\"");
    }
    text
}

impl Metrics {
    /// Adds to a counter.
    pub fn add(&self, name: &'static str, help: &'static str, pairs: &[(&str, &str)], by: f64) {
        let mut all = self.series.lock();
        let series = all.entry(name).or_insert_with(|| Series { help, kind: "counter", ..Series::default() });
        *series.values.entry(labels(pairs)).or_default() += by;
    }

    /// Sets a gauge.
    pub fn set(&self, name: &'static str, help: &'static str, pairs: &[(&str, &str)], to: f64) {
        let mut all = self.series.lock();
        let series = all.entry(name).or_insert_with(|| Series { help, kind: "gauge", ..Series::default() });
        series.values.insert(labels(pairs), to);
    }

    /// The value of a series, 0 if it was never touched.
    #[must_use]
    pub fn get(&self, name: &str, pairs: &[(&str, &str)]) -> f64 {
        self.series.lock().get(name).and_then(|s| s.values.get(&labels(pairs)).copied()).unwrap_or_default()
    }

    pub(crate) fn pass(&self, controller: &str, result: &str, took: Duration) {
        self.add(
            "holdfast_controller_passes_total",
            "Passes of a controller by result.",
            &[("controller", controller), ("result", result)],
            1.0,
        );
        self.add(
            "holdfast_controller_pass_seconds_total",
            "Time spent in passes of a controller.",
            &[("controller", controller)],
            took.as_secs_f64(),
        );
    }

    pub(crate) fn write(&self, controller: &str, verb: &str) {
        self.add(
            "holdfast_controller_writes_total",
            "Writes of a controller by verb.",
            &[("controller", controller), ("verb", verb)],
            1.0,
        );
    }

    /// All series in the Prometheus text format.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        for (name, series) in &*self.series.lock() {
            let _ = writeln!(out, "# HELP {name} {}", series.help);
            let _ = writeln!(out, "# TYPE {name} {}", series.kind);
            for (labels, value) in &series.values {
                let braces = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
                let _ = writeln!(out, "{name}{braces} {value}");
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_help_type_and_sorted_series() {
        let metrics = Metrics::default();
        metrics.add("holdfast_b_total", "B.", &[("x", "q\"")], 2.0);
        metrics.set("holdfast_a", "A.", &[], 1.0);
        let want = "# HELP holdfast_a A.\n# TYPE holdfast_a gauge\nholdfast_a 1\n\
                    # HELP holdfast_b_total B.\n# TYPE holdfast_b_total counter\nholdfast_b_total{x=\"q\\\"\"} 2\n";
        assert_eq!(metrics.text(), want);
    }
}
