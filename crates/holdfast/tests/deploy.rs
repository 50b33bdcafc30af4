//! What is in `deploy/` for operators speaks of metrics that are really exported.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Names of metrics in a text, without the suffixes of histograms' series.
fn names(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c: char| !is_part(c));
    let ours = ["apiserver_", "d8_virtualization_", "kubevirt_vmi_", "holdfast_"];
    words
        .filter(|word| ours.iter().any(|prefix| word.starts_with(prefix)))
        .map(|word| word.trim_end_matches("_bucket").to_owned())
        .collect()
}

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy")
}

fn exported() -> BTreeSet<String> {
    let others = holdfast_agent::metrics::NAMES.iter().chain(holdfast_kubelith::http::metrics::NAMES);
    holdfast_controllers::metrics::NAMES.iter().chain(others).map(|&name| name.to_owned()).collect()
}

#[test]
fn every_metric_of_dashboards_and_alerts_is_exported() {
    let exported = exported();
    let mut seen = BTreeSet::new();
    for folder in ["grafana", "prometheus"] {
        for entry in std::fs::read_dir(deploy().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            for name in names(&text) {
                assert!(exported.contains(&name), "{}: {name} is not exported", path.display());
                seen.insert(name);
            }
        }
    }
    assert!(seen.len() > 15, "{seen:?}");
}

#[test]
fn the_documentation_lists_every_metric() {
    let path = deploy().join("../docs/observability.md");
    let documented = names(&std::fs::read_to_string(&path).unwrap());
    let missing: Vec<_> = exported().into_iter().filter(|name| !documented.contains(name)).collect();
    assert!(missing.is_empty(), "{} does not speak of {missing:?}", path.display());
}
