//! What a process tells operators: counters and histograms that it keeps, and figures that are read from
//! its caches at the moment somebody asks. All in the Prometheus text format.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

/// Kind of a metric, as the text format names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Only grows.
    Counter,
    /// Any value.
    Gauge,
    /// Counts by upper bound.
    Histogram,
}

impl MetricKind {
    fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A page of metrics being written. Samples of a metric follow its heading at once.
#[derive(Debug, Default)]
pub struct Page {
    text: String,
    name: &'static str,
}

impl Page {
    /// Begins a metric.
    pub fn metric(&mut self, name: &'static str, kind: MetricKind, help: &str) -> &mut Self {
        self.name = name;
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {}", kind.word());
        self
    }

    /// Begins a gauge.
    pub fn gauge(&mut self, name: &'static str, help: &str) -> &mut Self {
        self.metric(name, MetricKind::Gauge, help)
    }

    /// A sample of the metric begun last.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: f64) -> &mut Self {
        let text = label_text(labels);
        self.line("", &text, value);
        self
    }

    /// A sample without a fraction of the metric begun last.
    #[expect(clippy::cast_precision_loss, reason = "counts and bytes are far below 2^52")]
    pub fn whole(&mut self, labels: &[(&str, &str)], value: i64) -> &mut Self {
        self.sample(labels, value as f64)
    }

    fn line(&mut self, suffix: &str, labels: &str, value: f64) {
        let name = self.name;
        let _ = match labels {
            "" => writeln!(self.text, "{name}{suffix} {value}"),
            labels => writeln!(self.text, "{name}{suffix}{{{labels}}} {value}"),
        };
    }

    /// The text so far.
    #[must_use]
    pub fn into_text(self) -> String {
        self.text
    }
}

/// Labels as they stand between the braces.
#[must_use]
pub fn label_text(pairs: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (index, (name, value)) in pairs.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        let escaped = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let _ = write!(text, "{comma}{name}=\"{escaped}\"");
    }
    text
}

#[derive(Debug)]
enum Value {
    Number(f64),
    /// How many values were at most each bound, their sum and their number.
    Histogram {
        bounds: &'static [f64],
        counts: Vec<u64>,
        sum: f64,
        count: u64,
    },
}

#[derive(Debug)]
struct Series {
    help: &'static str,
    kind: MetricKind,
    values: BTreeMap<String, Value>,
}

impl Series {
    fn new(help: &'static str, kind: MetricKind) -> Self {
        Self { help, kind, values: BTreeMap::new() }
    }
}

type Collector = Arc<dyn Fn(&mut Page) + Send + Sync>;

#[derive(Default)]
struct Registry {
    series: Mutex<BTreeMap<&'static str, Series>>,
    collectors: Mutex<BTreeMap<&'static str, Collector>>,
}

/// The metrics of a process. Cheap to clone; clones share the values.
#[derive(Clone, Default)]
pub struct Metrics {
    registry: Arc<Registry>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let collectors: Vec<_> = self.registry.collectors.lock().keys().copied().collect();
        f.debug_struct("Metrics")
            .field("series", &self.registry.series.lock().len())
            .field("collectors", &collectors)
            .finish()
    }
}

/// [`Metrics`] that a collector may hold without keeping them alive.
#[derive(Clone)]
pub struct WeakMetrics(Weak<Registry>);

impl fmt::Debug for WeakMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WeakMetrics")
    }
}

impl WeakMetrics {
    /// The metrics, if anybody else still holds them.
    #[must_use]
    pub fn upgrade(&self) -> Option<Metrics> {
        self.0.upgrade().map(|registry| Metrics { registry })
    }
}

impl Metrics {
    /// For collectors, which the metrics themselves hold.
    #[must_use]
    pub fn weak(&self) -> WeakMetrics {
        WeakMetrics(Arc::downgrade(&self.registry))
    }

    fn with<T>(
        &self,
        name: &'static str,
        help: &'static str,
        kind: MetricKind,
        change: impl FnOnce(&mut Series) -> T,
    ) -> T {
        change(self.registry.series.lock().entry(name).or_insert_with(|| Series::new(help, kind)))
    }

    /// Adds to a counter.
    pub fn add(&self, name: &'static str, help: &'static str, pairs: &[(&str, &str)], by: f64) {
        self.with(name, help, MetricKind::Counter, |series| {
            let value = series.values.entry(label_text(pairs)).or_insert(Value::Number(0.0));
            if let Value::Number(number) = value {
                *number += by;
            }
        });
    }

    /// Sets a gauge.
    pub fn set(&self, name: &'static str, help: &'static str, pairs: &[(&str, &str)], to: f64) {
        self.with(name, help, MetricKind::Gauge, |series| {
            series.values.insert(label_text(pairs), Value::Number(to));
        });
    }

    /// Counts a value in a histogram with these upper bounds.
    pub fn observe(
        &self,
        name: &'static str,
        help: &'static str,
        bounds: &'static [f64],
        pairs: &[(&str, &str)],
        seen: f64,
    ) {
        self.with(name, help, MetricKind::Histogram, |series| {
            let empty = || Value::Histogram { bounds, counts: vec![0; bounds.len()], sum: 0.0, count: 0 };
            let value = series.values.entry(label_text(pairs)).or_insert_with(empty);
            if let Value::Histogram { bounds, counts, sum, count } = value {
                for (bound, at_most) in bounds.iter().zip(counts) {
                    *at_most += u64::from(seen <= *bound);
                }
                *sum += seen;
                *count += 1;
            }
        });
    }

    /// Forgets the series of a metric whose labels ([`label_text`]) are not among `living`, so that a
    /// process that runs for long does not remember all it ever saw.
    pub fn keep(&self, name: &str, living: &BTreeSet<String>) {
        if let Some(series) = self.registry.series.lock().get_mut(name) {
            series.values.retain(|labels, _| living.contains(labels));
        }
    }

    /// Has `collector` add to every page; it replaces an earlier one of this name.
    pub fn collect(&self, name: &'static str, collector: impl Fn(&mut Page) + Send + Sync + 'static) {
        self.registry.collectors.lock().insert(name, Arc::new(collector));
    }

    /// The value of a counter or gauge, or how often a histogram was added to; 0 if never touched.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    pub fn get(&self, name: &str, pairs: &[(&str, &str)]) -> f64 {
        let all = self.registry.series.lock();
        match all.get(name).and_then(|series| series.values.get(&label_text(pairs))) {
            Some(Value::Number(number)) => *number,
            Some(Value::Histogram { count, .. }) => *count as f64,
            None => 0.0,
        }
    }

    /// Everything in the Prometheus text format.
    #[must_use]
    pub fn text(&self) -> String {
        let mut page = Page::default();
        // Collectors first: they may count what they find.
        let collectors: Vec<Collector> = self.registry.collectors.lock().values().cloned().collect();
        for collector in collectors {
            collector(&mut page);
        }
        for (name, series) in &*self.registry.series.lock() {
            page.metric(name, series.kind, series.help);
            for (labels, value) in &series.values {
                write_value(&mut page, labels, value);
            }
        }
        page.into_text()
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn write_value(page: &mut Page, labels: &str, value: &Value) {
    match value {
        Value::Number(number) => page.line("", labels, *number),
        Value::Histogram { bounds, counts, sum, count } => {
            let comma = if labels.is_empty() { "" } else { "," };
            for (bound, at_most) in bounds.iter().zip(counts) {
                page.line("_bucket", &format!("{labels}{comma}le=\"{bound}\""), *at_most as f64);
            }
            page.line("_bucket", &format!("{labels}{comma}le=\"+Inf\""), *count as f64);
            page.line("_sum", labels, *sum);
            page.line("_count", labels, *count as f64);
        }
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

    #[test]
    fn histograms_count_up_to_each_bound_and_forget_what_is_gone() {
        let metrics = Metrics::default();
        for (vm, seconds) in [("a", 0.05), ("a", 0.3), ("b", 7.0)] {
            metrics.observe("holdfast_h_seconds", "H.", &[0.1, 1.0], &[("vm", vm)], seconds);
        }
        let text = metrics.text();
        for line in [
            "# TYPE holdfast_h_seconds histogram",
            "holdfast_h_seconds_bucket{vm=\"a\",le=\"0.1\"} 1",
            "holdfast_h_seconds_bucket{vm=\"a\",le=\"1\"} 2",
            "holdfast_h_seconds_bucket{vm=\"a\",le=\"+Inf\"} 2",
            "holdfast_h_seconds_sum{vm=\"a\"} 0.35",
            "holdfast_h_seconds_bucket{vm=\"b\",le=\"1\"} 0",
            "holdfast_h_seconds_count{vm=\"b\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
        metrics.keep("holdfast_h_seconds", &BTreeSet::from([label_text(&[("vm", "b")])]));
        assert_eq!(metrics.get("holdfast_h_seconds", &[("vm", "a")]), 0.0);
        assert_eq!(metrics.get("holdfast_h_seconds", &[("vm", "b")]), 1.0);
    }

    #[test]
    fn a_collector_reads_when_asked_and_replaces_its_predecessor() {
        let metrics = Metrics::default();
        metrics.collect("one", |page| {
            page.gauge("holdfast_old", "Old.").whole(&[], 1);
        });
        metrics.collect("one", |page| {
            page.gauge("holdfast_new", "New.").whole(&[("a", "b")], 3);
        });
        let want = "# HELP holdfast_new New.\n# TYPE holdfast_new gauge\nholdfast_new{a=\"b\"} 3\n";
        assert_eq!(metrics.text(), want);
    }
}
