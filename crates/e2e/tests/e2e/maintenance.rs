//! NodeMaintenance: a node is emptied by an object, as OpenShift's document does it.

use anyhow::{Context, Result, ensure};
use holdfast_e2e::home::contains;
use holdfast_e2e::{Home, manifests, wait_for};

use crate::drain::{gather, other_pods};
use crate::support::*;

const ONE: &str = NODES[0];
const NM: &str = "nodemaintenance node-1";
const LEASE: &str = "lease node-virtlab-pt-1 -n medik8s-leases";

fn manifest(name: &str, node: &str) -> String {
    format!(
        "apiVersion: nodemaintenance.medik8s.io/v1beta1
kind: NodeMaintenance
metadata: {{name: {name}}}
spec: {{nodeName: {node}, reason: \"new memory\"}}
"
    )
}

fn phase(home: &Home, wanted: &str) -> Result<()> {
    home.wait_field(NM, "/status/phase", wanted, BOOT)
}

/// Cordon, both taints, label and lease: all there.
fn is_closed(home: &Home) -> Result<()> {
    let node = home.get(&format!("node {ONE}")).context("the node")?;
    ensure!(node["spec"]["unschedulable"] == true, "{}", node["spec"]);
    for key in ["medik8s.io/drain", "node.kubernetes.io/unschedulable"] {
        let all = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
        ensure!(all.iter().any(|t| t["key"] == key && t["effect"] == "NoSchedule"), "{}", node["spec"]);
    }
    let label = &node["metadata"]["labels"]["remediation.medik8s.io/exclude-from-remediation"];
    ensure!(label == "true", "{label}");
    ensure!(home.field(LEASE, "/spec/holderIdentity") == "node-maintenance");
    Ok(())
}

/// Nothing of a maintenance is left.
fn is_open(home: &Home) -> Result<()> {
    let node = home.get(&format!("node {ONE}")).context("the node")?;
    ensure!(node["spec"]["unschedulable"] != true && node["spec"]["taints"].is_null(), "{}", node["spec"]);
    let labels = node["metadata"]["labels"].to_string();
    ensure!(!labels.contains("exclude-from-remediation"), "{labels}");
    ensure!(home.get(LEASE).is_none(), "the lease is there still");
    Ok(())
}

/// What the status said while the node was emptied.
fn progress_rises(watch: &Watch) -> Result<()> {
    let (mut progress, mut written) = (Vec::new(), Vec::new());
    for line in watch.lines() {
        let cells: Vec<&str> = line.split(' ').collect();
        let [_, percent, total, evicted, at, pending] = cells[..] else { continue };
        let number = |cell: &str| cell.parse::<usize>().unwrap_or_default();
        // ["a","b"]; nothing when empty.
        let pending = pending.matches("\",\"").count() + usize::from(!pending.is_empty());
        ensure!(number(total) >= number(evicted) && number(evicted) >= pending, "{line}");
        progress.push(number(percent));
        written.push(at.to_owned());
    }
    progress.dedup();
    ensure!(progress.is_sorted() && progress.len() > 1 && progress.last() == Some(&100), "{progress:?}");
    ensure!(written.is_sorted() && written.first() < written.last(), "{written:?}");
    Ok(())
}

#[test]
fn an_object_puts_a_node_into_maintenance() -> Result<()> {
    let home = Home::up(3)?;
    let vms = ["a", "b"];
    gather(&home, &vms, &NODES[1..])?;
    let boots: Vec<String> = vms.iter().map(|v| guest_of(&home, v)?.boot_id()).collect::<Result<_>>()?;
    other_pods(&home, ONE, &["ConfigMap", "DaemonSet"])?;

    // MM-M3
    let refused = home.apply(&manifest("node-9", "virtlab-pt-9")).expect_err("there is no such node");
    contains(&format!("{refused:#}"), "invalid nodeName, no node with name virtlab-pt-9 found")?;

    // MM-M1 MM-M2
    home.apply(&manifest("node-1", ONE))?;
    let fields = "{.status.phase} {.status.drainProgress} {.status.totalpods} {.status.evictionPods} \
                  {.status.lastUpdate} {.status.pendingPods}";
    let path = format!("jsonpath={fields}{{\"\\n\"}}");
    let watch = Watch::start(&home, &["get", "nodemaintenance", "node-1", "-w", "-o", &path])?;
    phase(&home, "Succeeded")?;
    is_closed(&home)?;
    progress_rises(&watch)?;
    drop(watch);
    let status = home.get(NM).unwrap_or_default()["status"].clone();
    ensure!(status["drainProgress"] == 100 && status["pendingPods"].is_null(), "{status}");
    ensure!(status["lastError"].is_null(), "{status}");
    for (vm, boot) in vms.iter().zip(&boots) {
        let now = node_of(&home, vm);
        ensure!(now != ONE && !now.is_empty(), "vm {vm} is on {now:?}");
        ensure!(guest_of(&home, vm)?.boot_id()? == *boot, "vm {vm} has booted again");
    }
    ensure!(home.get("pod configmap").is_none(), "a pod of the node is still there");
    ensure!(home.field("pod daemonset", "/spec/nodeName") == ONE, "the pod of a DaemonSet left");
    for name in ["nodemaintenance", "nodemaintenances", "nm"] {
        let table = home.k(&["get", name])?;
        let mut lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        ensure!(lines.next() == Some(vec!["NAME", "AGE"]), "{table}");
        ensure!(lines.next().is_some_and(|row| row[0] == "node-1" && row.len() == 2), "{table}");
    }

    // MM-M4
    let refused = home.apply(&manifest("again", ONE)).expect_err("there is one");
    contains(
        &format!("{refused:#}"),
        "invalid nodeName, a NodeMaintenance for node virtlab-pt-1 already exists",
    )?;
    // MM-M5
    let other = r#"{"spec":{"nodeName":"virtlab-pt-2"}}"#;
    let refused = home.k(&["patch", "nm", "node-1", "--type=merge", "-p", other]).expect_err("immutable");
    contains(&format!("{refused:#}"), "updating spec.NodeName isn't allowed")?;

    // MM-M9
    home.k(&["delete", "nodemaintenance", "node-1"])?;
    is_open(&home)?;
    wait_for("the events", SOON, || {
        let events = home.k(&["get", "events"]).map_err(|e| format!("{e:#}"))?;
        let wanted = ["BeginMaintenance", "SucceedMaintenance", "UncordonNode", "RemovedMaintenance"];
        if wanted.iter().all(|reason| events.contains(reason)) { Ok(()) } else { Err(events) }
    })?;
    for vm in vms {
        ensure!(node_of(&home, vm) != ONE, "vm {vm} came back by itself");
        home.k(&["delete", "vm", vm])?;
    }
    a_vm_that_cannot_move(&home)?;
    home.end()
}

fn a_vm_that_cannot_move(home: &Home) -> Result<()> {
    // The node takes VMs again; this one is bound to it by its disk.
    let here = format!("  nodeSelector: {{kubernetes.io/hostname: {ONE}}}");
    let local = manifests::blank_vm("v", &here).replace("size: 4Mi", "size: 4Mi, storageClassName: local");
    home.apply(&local)?;
    home.wait_phase("v", "Running", SOON)?;
    let launcher = launchers(home, "v")?.pop().context("a launcher")?;
    home.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: bare}}
spec: {{nodeName: {ONE}, containers: [{{name: c, image: none}}]}}
"
    ))?;

    // MM-M7
    home.apply(&manifest("node-1", ONE))?;
    wait_for("only the VM is left", SOON, || {
        let status = home.get(NM).unwrap_or_default()["status"].clone();
        let left = status["pendingPods"] == serde_json::json!([launcher]);
        if left && status["lastError"].is_string() { Ok(()) } else { Err(status.to_string()) }
    })?;
    let status = home.get(NM).unwrap_or_default()["status"].clone();
    ensure!(status["phase"] == "Running", "{status}");
    contains(&status["lastError"].to_string(), "is not live-migratable")?;
    ensure!(home.get("pod bare").is_none(), "the other pod is there still");
    ensure!(home.field("vm v", "/status/phase") == "Running");
    is_closed(home)?;

    // MM-M8
    home.d8(&["v", "stop", "v", "--wait"])?;
    phase(home, "Succeeded")?;
    home.k(&["delete", "nm", "node-1"])?;
    is_open(home)
}
