//! `tidy`: the rules of the tree that no compiler knows.
//!
//! Crates depend only downwards, as the table in ARCHITECTURE.md says; files stay within a sitting; a module says
//! what lives in it; `plan` files touch no clock, no client and no randomness (INV-9); what runs in the
//! simulation leaves nothing to chance; no path of a machine is named.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Lines of a file without its tests, at most; more needs a line with a reason in `tidy.toml`.
const FILE_LINES_MAX: usize = 500;

/// What a pure file may not name.
const IMPURE: &[&str] = &[
    "SystemTime::now",
    "Instant::now",
    "Utc::now",
    "Timestamp::now",
    "kube::Client",
    "kube::Api",
    "std::fs",
    "tokio::",
    "rand::",
    "async fn",
];

/// Crates whose code runs in the simulation: one seed must give one history, bit for bit.
const SIMULATED: &[&str] = &[
    "agent",
    "controllers",
    "domain",
    "hypervisor",
    "kubelith",
    "kubelith-loops",
    "launcher",
    "plane",
    "reconcile",
    "sim",
    "wire",
];

/// What gives two runs of one seed different histories, and what to use instead.
const CHANCE: &[(&str, &str)] = &[
    ("use std::time::Instant", "tokio::time::Instant"),
    ("SystemTime::now", "holdfast_env::now"),
    ("Timestamp::now", "holdfast_env::now"),
    ("Utc::now", "holdfast_env::now"),
    ("rand::random", "holdfast_env::random_u64 or an Entropy"),
    ("rand::rng", "holdfast_env::random_u64 or an Entropy"),
    ("new_v4", "holdfast_env::random_u64 or an Entropy"),
    ("tokio::sync::watch", "holdfast_env::watch, whose receivers wake in order"),
    ("tokio::sync::broadcast", "holdfast_env::watch"),
    ("futures::select!", "tokio::select! with `biased;`"),
    ("HashSet<", "BTreeSet: no hash order may decide"),
];

/// Files of these crates that run with real sockets and files only.
const REAL_ONLY: &[&str] =
    &["crates/kubelith/src/auth/pki.rs", "crates/kubelith/src/http/server.rs", "crates/sim/src/main.rs"];

/// Fails with everything that is not tidy.
pub fn check() -> Result<()> {
    let mut problems = Vec::new();
    problems.extend(crate_levels()?);
    let long = exceptions()?;
    for (path, text) in crate::sources()? {
        problems.extend(file_problems(&path, &text, &long));
    }
    if !problems.is_empty() {
        bail!("not tidy:\n  {}", problems.join("\n  "));
    }
    println!("tidy: ok");
    Ok(())
}

fn file_problems(path: &str, text: &str, long: &BTreeSet<String>) -> Vec<String> {
    let mut problems = Vec::new();
    let product = text.split("#[cfg(test)]\nmod ").next().unwrap_or(text);
    let lines = product.lines().count();
    let is_test = path.contains("/tests/") || path.ends_with("tests.rs");
    if lines > FILE_LINES_MAX && !long.contains(path) && !is_test {
        problems.push(format!(
            "{path}: {lines} lines, at most {FILE_LINES_MAX}: split it, or give a reason in tidy.toml"
        ));
    }
    if !text.starts_with("//!") && !is_test {
        problems.push(format!("{path}: the module does not say what lives in it (//! on the first line)"));
    }
    let name = path.rsplit('/').next().unwrap_or(path);
    if name == "plan.rs" && path.contains("/controllers/") {
        for word in IMPURE.iter().filter(|w| product.contains(**w)) {
            problems.push(format!("{path}: a plan file names {word} (INV-9)"));
        }
    }
    problems.extend(chances(path, product));
    problems
}

/// What in a file of the simulated crates lets chance decide.
fn chances(path: &str, product: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let of = path.strip_prefix("crates/").and_then(|rest| rest.split_once("/src/"));
    let is_test = path.ends_with("tests.rs");
    if is_test || REAL_ONLY.contains(&path) || !of.is_some_and(|(name, _)| SIMULATED.contains(&name)) {
        return problems;
    }
    for (word, instead) in CHANCE.iter().filter(|(word, _)| product.contains(word)) {
        problems.push(format!("{path}: names {word}, which no simulation controls: use {instead}"));
    }
    let mut lines = product.lines().map(str::trim);
    while let Some(line) = lines.next() {
        let opens = line.ends_with("select! {");
        if opens && lines.find(|line| !line.starts_with("//")) != Some("biased;") {
            problems
                .push(format!("{path}: a select! without `biased;` lets chance decide (docs/simulation.md)"));
        }
    }
    problems
}

/// Paths that may be long, from `tidy.toml`: lines `path = "reason"`.
fn exceptions() -> Result<BTreeSet<String>> {
    let path = crate::root().join("tidy.toml");
    let text = fs::read_to_string(&path).unwrap_or_default();
    let mut found = BTreeSet::new();
    for line in
        text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#') && !l.starts_with('['))
    {
        let (file, reason) =
            line.split_once('=').with_context(|| format!("tidy.toml: {line:?} is no `path = \"reason\"`"))?;
        let file = file.trim().trim_matches('"').to_owned();
        ensure!(reason.trim().len() > 10, "tidy.toml: {file} has no reason");
        ensure!(crate::root().join(&file).exists(), "tidy.toml: {file} does not exist");
        found.insert(file);
    }
    Ok(found)
}

/// Crates that a crate may use; `None`: all of a lower level.
type Allowed = Option<BTreeSet<String>>;

/// The table of ARCHITECTURE.md: crate → (level, what it may depend on; None = everything below).
fn table() -> Result<BTreeMap<String, (u32, Allowed)>> {
    let text = fs::read_to_string(crate::root().join("ARCHITECTURE.md"))?;
    let mut table = BTreeMap::new();
    for line in text.lines().filter(|l| l.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [name, level, _, depends] = cells[..] else { continue };
        let Ok(level) = level.parse() else { continue };
        let depends = match depends {
            "all" => None,
            "–" => Some(BTreeSet::new()),
            list => Some(list.split(',').map(|d| d.trim().to_owned()).collect()),
        };
        table.insert(name.trim_matches('`').to_owned(), (level, depends));
    }
    ensure!(!table.is_empty(), "ARCHITECTURE.md has no table of crates");
    Ok(table)
}

fn crate_levels() -> Result<Vec<String>> {
    let table = table()?;
    let output = Command::new("cargo")
        .args(["metadata", "--format-version", "1", "--no-deps", "--locked"])
        .output()?;
    ensure!(output.status.success(), "cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let mut problems = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = short(package["name"].as_str().unwrap_or_default());
        let Some((level, allowed)) = table.get(&name) else {
            problems.push(format!("crate {name} is not in the table of ARCHITECTURE.md"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            // Tests may use anything; the path marks the workspace's own crates.
            if dependency["path"].is_null() || dependency["kind"] == "dev" {
                continue;
            }
            let on = short(dependency["name"].as_str().unwrap_or_default());
            let below = table.get(&on).is_some_and(|(l, _)| l < level || (*level == 4));
            if !below || allowed.as_ref().is_some_and(|a| !a.contains(&on)) {
                problems.push(format!("crate {name} depends on {on}: not in the table of ARCHITECTURE.md (a new arrow is an ADR)"));
            }
        }
    }
    Ok(problems)
}

fn short(name: &str) -> String {
    match name {
        "holdfast" | "holdfast-platform" => "holdfast".to_owned(),
        other => other.trim_start_matches("holdfast-").to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // INV-9
    #[test]
    fn plan_is_pure() {
        let text = "//! Plan.\nfn plan() { let _ = std::time::SystemTime::now(); }\n";
        let problems = file_problems("crates/controllers/src/x/plan.rs", text, &BTreeSet::new());
        assert_eq!(problems.iter().filter(|problem| problem.contains("INV-9")).count(), 1, "{problems:?}");
        for (path, text) in crate::sources().unwrap() {
            let problems = file_problems(&path, &text, &BTreeSet::from([path.clone()]));
            assert!(problems.iter().all(|p| !p.contains("INV-9")), "{problems:?}");
        }
    }

    #[test]
    fn what_runs_in_the_simulation_leaves_nothing_to_chance() {
        let text = "//! A.\nlet x = tokio::select! {\n    // Why.\n    biased;\n    a => {}\n};\n";
        assert!(file_problems("crates/agent/src/a.rs", text, &BTreeSet::new()).is_empty());
        let text = text.replace("    biased;\n", "");
        assert_eq!(file_problems("crates/agent/src/a.rs", &text, &BTreeSet::new()).len(), 1);
        assert!(file_problems("crates/gateway/src/a.rs", &text, &BTreeSet::new()).is_empty());
        let text = "//! A.\nuse tokio::sync::watch;\n";
        assert_eq!(file_problems("crates/launcher/src/a.rs", text, &BTreeSet::new()).len(), 1);
    }

    #[test]
    fn the_table_is_read() {
        let table = table().unwrap();
        assert_eq!(table["api"].0, 0);
        assert!(table["launcher"].1.as_ref().unwrap().contains("hypervisor"));
        assert!(table["holdfast"].1.is_none());
    }
}
