//! What controllers count of themselves.

use std::time::Duration;

use holdfast_metrics::Metrics;

/// A pass of a controller has ended.
pub(crate) fn pass(metrics: &Metrics, controller: &str, result: &str, took: Duration) {
    metrics.add(
        "holdfast_controller_passes_total",
        "Passes of a controller by result.",
        &[("controller", controller), ("result", result)],
        1.0,
    );
    metrics.add(
        "holdfast_controller_pass_seconds_total",
        "Time spent in passes of a controller.",
        &[("controller", controller)],
        took.as_secs_f64(),
    );
}

/// A controller has looked at its caches and decided.
pub(crate) fn decided(metrics: &Metrics, controller: &str, took: Duration) {
    metrics.add(
        "holdfast_controller_decision_seconds_total",
        "Time that a controller's decisions took: looking at the caches and planning.",
        &[("controller", controller)],
        took.as_secs_f64(),
    );
}

/// A controller has written.
pub(crate) fn write(metrics: &Metrics, controller: &str, verb: &str) {
    metrics.add(
        "holdfast_controller_writes_total",
        "Writes of a controller by verb.",
        &[("controller", controller), ("verb", verb)],
        1.0,
    );
}
