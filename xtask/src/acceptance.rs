//! `acceptance`: how many rows of each spec's acceptance table a test cites. `V=1` lists the others.
//!
//! A test cites a row that it wholly shows by its prefixed ID in a comment: `// VL-D8 MM-O1`. One that shows a part of a
//! row names it without the hyphen (`VL D8`), which does not count.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result};
use regex::Regex;

/// Spec file (without extension) and prefix of its rows.
const SPECS: &[(&str, &str)] = &[
    ("api", "AP"),
    ("vm-lifecycle", "VL"),
    ("migration-and-maintenance", "MM"),
    ("failure-and-rebalancing", "FR"),
    ("kubernetes-surface", "KS"),
    ("cli-and-console", "CC"),
    ("openshift", "OS"),
];

/// Prints one line a spec.
pub fn report() -> Result<()> {
    let cited = cited()?;
    let verbose = std::env::var("V").is_ok_and(|v| v == "1");
    for (spec, prefix) in SPECS {
        let path = crate::root().join("docs/spec").join(format!("{spec}.md"));
        let text =
            fs::read_to_string(&path).with_context(|| format!("{} could not be read", path.display()))?;
        let rows = rows(&text);
        let covered = rows.iter().filter(|r| cited.contains(&format!("{prefix}-{r}"))).count();
        println!("{spec}: {covered} of {} rows have a test", rows.len());
        if verbose {
            let open: Vec<&String> =
                rows.iter().filter(|r| !cited.contains(&format!("{prefix}-{r}"))).collect();
            for line in open.chunks(20) {
                println!("  {}", line.iter().map(|r| format!("{prefix}-{r}")).collect::<Vec<_>>().join(" "));
            }
        }
    }
    let invariants: BTreeSet<&String> = cited.iter().filter(|c| c.starts_with("INV-")).collect();
    println!("invariants: {} of 12 have a test", invariants.len());
    Ok(())
}

/// IDs of the rows in the acceptance section of a spec, in order, each once.
fn rows(text: &str) -> Vec<String> {
    let row = Regex::new(r"^\| ([A-Z]{0,2}[0-9]{1,3}[a-z]?) \|").expect("invariant: a constant pattern");
    let mut found = Vec::new();
    let mut level = None;
    for line in text.lines() {
        if let Some(depth) = heading(line) {
            match level {
                None if line.contains("Acceptance table") => level = Some(depth),
                Some(own) if depth <= own => break,
                _ => {}
            }
        }
        if level.is_none() {
            continue;
        }
        if let Some(id) = row.captures(line).map(|c| c[1].to_owned()).filter(|id| !found.contains(id)) {
            found.push(id);
        }
    }
    found
}

fn heading(line: &str) -> Option<usize> {
    let depth = line.chars().take_while(|c| *c == '#').count();
    (depth > 0 && line[depth..].starts_with(' ')).then_some(depth)
}

/// Every ID in a comment of a Rust file, from the file's first test on: product code before it only refers to rows.
fn cited() -> Result<BTreeSet<String>> {
    let id = Regex::new(r"\b(?:AP|VL|MM|FR|KS|CC|OS|INV)-[A-Z]{0,2}[0-9]{1,3}[a-z]?\b")
        .expect("invariant: a constant pattern");
    let mut cited = BTreeSet::new();
    for (path, text) in crate::sources()? {
        let tests = if path.contains("/tests/") || path.ends_with("tests.rs") {
            Some(0)
        } else {
            text.find("#[cfg(test)]")
        };
        let Some(start) = tests else { continue };
        for line in
            text[start..].lines().map(str::trim).filter(|l| l.starts_with("//") && !l.starts_with("//!"))
        {
            cited.extend(id.find_iter(line).map(|m| m.as_str().to_owned()));
        }
    }
    Ok(cited)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spec_has_an_acceptance_table() {
        for (spec, _) in SPECS {
            let text =
                fs::read_to_string(crate::root().join("docs/spec").join(format!("{spec}.md"))).unwrap();
            let rows = rows(&text);
            assert!(rows.len() > 20, "{spec} has {} rows", rows.len());
        }
    }

    #[test]
    fn rows_outside_the_section_do_not_count() {
        let text = "| 1 | x |\n## 2. Acceptance table\n### 2.1 A\n| A1 | y |\n| A2 | z |\n| # | h |\n## 3. Next\n| A3 | n |\n";
        assert_eq!(rows(text), ["A1", "A2"]);
    }
}
