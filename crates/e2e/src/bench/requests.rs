//! What the API server counted between two moments.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use crate::Home;

/// Requests by what was asked for: `PATCH virtualmachines/status`.
pub type Requests = BTreeMap<String, u64>;

/// Verbs that change something.
const WRITES: [&str; 6] = ["POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION"];

/// Requests answered since the API server was started.
pub fn all(home: &Home) -> Result<Requests> {
    parse(&home.k(&["get", "--raw", "/metrics"])?)
}

fn parse(page: &str) -> Result<Requests> {
    let mut requests = Requests::new();
    for line in page.lines() {
        let Some(rest) = line.strip_prefix("apiserver_request_total{") else { continue };
        let (labels, count) = rest.rsplit_once("} ").with_context(|| format!("no sample: {line}"))?;
        let label = |name: &str| {
            labels
                .split(',')
                .find_map(|l| l.strip_prefix(name)?.strip_prefix('='))
                .map(|l| l.trim_matches('"'))
        };
        let (verb, resource) = (label("verb").unwrap_or(""), label("resource").unwrap_or(""));
        let sub = label("subresource").filter(|sub| !sub.is_empty()).map(|sub| format!("/{sub}"));
        let count: f64 = count.parse().with_context(|| format!("no number: {line}"))?;
        *requests.entry(format!("{verb} {resource}{}", sub.unwrap_or_default())).or_default() += count as u64;
    }
    Ok(requests)
}

/// Writes between two counts. Without what goes on all the time (leases, heartbeats of nodes), and without
/// what a drain's own client sends (evictions, the cordon).
pub fn writes(before: &Requests, after: &Requests) -> Requests {
    let is_write = |what: &str| WRITES.contains(&what.split(' ').next().unwrap_or(""));
    let others = ["leases", "nodes", "nodes/status", "pods/eviction"];
    let counts = after.iter().filter(|(what, _)| is_write(what));
    counts
        .filter(|(what, _)| !others.contains(&what.split(' ').nth(1).unwrap_or("")))
        .map(|(what, n)| (what.clone(), n - before.get(what).copied().unwrap_or(0)))
        .filter(|(_, n)| *n > 0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_and_compared() {
        let page = |n: u32| {
            format!(
                "# HELP apiserver_request_total x\n\
                 apiserver_request_total{{code=\"200\",dry_run=\"\",resource=\"vms\",subresource=\"status\",verb=\"PATCH\"}} {n}\n\
                 apiserver_request_total{{code=\"409\",dry_run=\"\",resource=\"vms\",subresource=\"status\",verb=\"PATCH\"}} 1\n\
                 apiserver_request_total{{code=\"200\",resource=\"leases\",subresource=\"\",verb=\"PUT\"}} {n}\n\
                 apiserver_request_total{{code=\"200\",resource=\"vms\",subresource=\"\",verb=\"GET\"}} {n}\n"
            )
        };
        let (before, after) = (parse(&page(2)).unwrap(), parse(&page(7)).unwrap());
        assert_eq!(before["PATCH vms/status"], 3);
        assert_eq!(writes(&before, &after), Requests::from([("PATCH vms/status".to_owned(), 5)]));
    }
}
