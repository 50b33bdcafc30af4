//! Maintenance: the seeds' drains, uncordon, one move out of a node at a time.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use holdfast_e2e::home::contains;
use holdfast_e2e::probe::Cap;
use holdfast_e2e::{Home, manifests, wait_for};

use crate::support::*;

/// Starts the VMs on one node, the only one that is open meanwhile, and gives its name.
pub fn gather(home: &Home, names: &[&str], others: &[&str]) -> Result<String> {
    let node = "virtlab-pt-1";
    for other in others {
        home.k(&["cordon", other])?;
    }
    create_vms(home, names, "")?;
    for name in names {
        wait_ready(home, name)?;
        ensure!(node_of(home, name) == node, "vm {name} is on {}", node_of(home, name));
    }
    for other in others {
        home.k(&["uncordon", other])?;
    }
    Ok(node.into())
}

// MM-D16 CC-31. Parts of rows D1 (the client finds the pods gone when it asks again) and L1.
#[test]
fn drain_empties_a_node_one_move_at_a_time() -> Result<()> {
    let home = Home::up(3)?;
    let vms = ["a", "b", "c"];
    let node = gather(&home, &vms, &["virtlab-pt-2", "virtlab-pt-3"])?;
    other_pods(&home, &node, &["ConfigMap"])?;
    let boots: Vec<String> = vms.iter().map(|v| guest_of(&home, v)?.boot_id()).collect::<Result<_>>()?;
    let moves = Moves::record(&home)?;
    let output = home.d8_raw(&["k", "drain", &node, "--ignore-daemonsets", "--delete-emptydir-data"])?;
    ensure!(output.status.success(), "{output:?}");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    contains(&out, &format!("node/{node} cordoned"))?;
    contains(&out, &format!("node/{node} drained"))?;
    contains(&err, "(will retry after 5s): Eviction triggered evacuation of VMI")?;
    moves.check(1)?;
    for (vm, boot) in vms.iter().zip(&boots) {
        let now = node_of(&home, vm);
        ensure!(now != node && !now.is_empty(), "vm {vm} is on {now:?}");
        ensure!(guest_of(&home, vm)?.boot_id()? == *boot, "vm {vm} has booted again");
    }
    ensure!(home.get("pod configmap").is_none(), "another pod of the node is still there");
    // One operation each, named as the seeds say.
    let all: serde_json::Value = serde_json::from_str(&home.k(&["get", "vmop", "-o", "json"])?)?;
    let all = all["items"].as_array().cloned().unwrap_or_default();
    ensure!(all.len() == 3);
    for op in all {
        ensure!(op["metadata"]["name"].as_str().is_some_and(|name| name.starts_with("evacuation-")), "{op}");
        ensure!(op["status"]["phase"] == "Completed", "{op}");
    }

    // Nothing new lands on a cordoned node; uncordon brings it back.
    let here = format!("  nodeSelector: {{kubernetes.io/hostname: {node}}}");
    home.apply(&manifests::blank_vm("d", &here))?;
    home.wait_phase("d", "Starting", SOON)?;
    ensure!(node_of(&home, "d").is_empty());
    home.k(&["uncordon", &node])?;
    home.wait_phase("d", "Running", BOOT)?;
    ensure!(node_of(&home, "d") == node);
    let nodes: BTreeSet<String> = vms.iter().map(|v| node_of(&home, v)).collect();
    ensure!(!nodes.contains(&node), "a VM came back by itself");
    home.end()
}

/// Pods that are none of ours, on a node: one of each kind of controller.
pub fn other_pods(home: &Home, node: &str, kinds: &[&str]) -> Result<()> {
    home.k(&["create", "configmap", "owner"])?;
    let uid = home.field("configmap owner", "/metadata/uid");
    for kind in kinds {
        let group = if *kind == "ConfigMap" { "v1" } else { "apps/v1" };
        let name = kind.to_lowercase();
        home.apply(&format!(
            "apiVersion: v1
kind: Pod
metadata:
  name: {name}
  ownerReferences: [{{apiVersion: {group}, kind: {kind}, name: owner, uid: {uid}, controller: true}}]
spec: {{nodeName: {node}, containers: [{{name: c, image: none}}]}}
"
        ))?;
    }
    Ok(())
}

/// Makes a move of the VM take some seconds: random memory, written again all the time.
fn keep_busy(home: &Home, vm: &str) -> Result<()> {
    let guest = guest_of(home, vm)?;
    guest.run(
        "dd if=/dev/urandom of=/dev/shm/a bs=1M count=160 2>/dev/null; \
         (while :; do cp /dev/shm/a /dev/shm/b; done) >/dev/null 2>&1 &",
    )?;
    wait_for("the guest writes its memory", SOON, || {
        guest.run("test -e /dev/shm/b").map(drop).map_err(|e| format!("{e:#}"))
    })
}

#[test]
fn drain_by_selector_and_uncordon_calls_off() -> Result<()> {
    let home = Home::up(3)?;
    let node = NODES[0];
    let selector = "vm.kubevirt.internal.virtualization.deckhouse.io/name";
    let drain = ["drain", node, "--pod-selector", selector, "--delete-emptydir-data"];

    // MM-D2 CC-32 VL-X2
    blank_vms_on(&home, node, &["b", "c"], "")?;
    other_pods(&home, node, &["ConfigMap", "DaemonSet"])?;
    let phases = Watch::start(&home, &["get", "vm", "-w"])?;
    let output = home.d8_raw(&[&["k"], &drain[..]].concat())?;
    ensure!(output.status.success(), "{output:?}");
    contains(&String::from_utf8_lossy(&output.stdout), &format!("node/{node} drained"))?;
    contains(&String::from_utf8_lossy(&output.stderr), "(will retry after 5s): Eviction triggered")?;
    for vm in ["b", "c"] {
        ensure!(node_of(&home, vm) != node && home.field(&format!("vm {vm}"), "/status/phase") == "Running");
    }
    let phases = phases.column("PHASE");
    ensure!(phases.iter().all(|phase| phase == "Running" || phase == "Migrating"), "{phases:?}");
    for pod in ["configmap", "daemonset"] {
        ensure!(home.field(&format!("pod {pod}"), "/spec/nodeName") == node, "pod {pod} left");
    }
    home.k(&["uncordon", node])?;

    // MM-D19: a launcher that nobody owns stops a drain before it begins; so every launcher has an owner.
    let label = "vm.kubevirt.internal.virtualization.deckhouse.io/name";
    home.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: orphan, labels: {{{label}: orphan}}}}\n\
         spec: {{nodeName: {node}, containers: [{{name: c, image: none}}]}}\n"
    ))?;
    let output = home.d8_raw(&[&["k"], &drain[..]].concat())?;
    ensure!(!output.status.success(), "{output:?}");
    contains(
        &String::from_utf8_lossy(&output.stderr),
        "declare no controller (use --force to override): default/orphan",
    )?;
    home.k(&["delete", "pod", "orphan", "--grace-period=0", "--force"])?;
    home.k(&["uncordon", node])?;
    let owners =
        "jsonpath={range .items[*]}{.metadata.ownerReferences[?(@.controller==true)].kind}{\"\\n\"}{end}";
    let owners = home.k(&["get", "pods", "-l", label, "-o", owners])?;
    ensure!(owners.lines().count() >= 2 && owners.lines().all(|owner| owner == "Instance"), "{owners:?}");

    // Three VMs on the node, the first one of them with a long way.
    let busy = manifests::vm("a", "  liveMigrationPolicy: AlwaysForced").replace("192Mi", "640Mi");
    let others: Vec<&str> = NODES[1..].to_vec();
    home.k(&[&["cordon"], &others[..]].concat())?;
    home.apply(&(manifests::demo_image() + &manifests::disk("a-root") + &busy))?;
    let guest = wait_ready(&home, "a")?;
    for vm in ["b", "c"] {
        home.d8(&["v", "evict", vm, "--wait"])?;
    }
    home.k(&[&["uncordon"], &others[..]].concat())?;
    home.k(&["delete", "vmop", "--all"])?;
    keep_busy(&home, "a")?;
    let boot = guest.boot_id()?;
    // Its copy takes longer than what is looked at meanwhile, on any machine.
    let slow = others.iter().map(|node| Cap::set(&home, node, 40_000_000)).collect::<Result<Vec<_>>>()?;

    // MM-D12 CC-33
    // Asked for first, so that it has the slot when the drain asks for all.
    let pod = launchers(&home, "a")?.pop().context("a launcher")?;
    evict_pod(&home, &pod, "").expect_err("a launcher moves first");
    wait_for("memory is being copied", SOON, || {
        let states =
            home.k(&["get", "migrations", "-o", "jsonpath={.items[*].status.state}"]).unwrap_or_default();
        if states.contains("Copying") { Ok(()) } else { Err(states) }
    })?;
    // MM-O28
    let status = home.get("vm a").unwrap_or_default()["status"].clone();
    let migrating = condition(&home, "vm a", "Migrating");
    ensure!(migrating["status"] == "True" && migrating["reason"] == "InProgress", "{migrating}");
    let state = &status["migrationState"];
    ensure!(state["source"]["node"] == node && state["startTimestamp"].is_string(), "{state}");
    ensure!(state["target"]["node"].as_str().is_some_and(|target| !target.is_empty()), "{state}");
    let mut client = home.k_spawn(&drain)?;
    wait_for("two more wait for their turn", SOON, || {
        let ops = home.k(&["get", "vmop", "-o", "jsonpath={.items[*].status.phase}"]).unwrap_or_default();
        if ops.matches("Pending").count() == 2 { Ok(()) } else { Err(ops) }
    })?;
    ensure!(home.field("vm a", "/status/phase") == "Migrating", "it was too fast for this test");
    client.kill()?;
    client.wait()?;
    home.k(&["uncordon", node])?;
    drop(slow);
    home.wait_phase("a", "Running", BOOT)?;
    ensure!(node_of(&home, "a") != node && guest.boot_id()? == boot);
    wait_for("the marks are cleared and no operation is left under way", SOON, || {
        let marks = home.k(&["get", "instances", "-o", "jsonpath={.items[*].status.evacuationNodeName}"]);
        let ops = home.k(&["get", "vmop", "-o", "jsonpath={.items[*].status.phase}"]).unwrap_or_default();
        let now = (marks.unwrap_or_default().trim().to_owned(), ops);
        if now == (String::new(), "Completed".to_owned()) { Ok(()) } else { Err(format!("{now:?}")) }
    })?;
    for vm in ["b", "c"] {
        ensure!(node_of(&home, vm) == node && home.field(&format!("vm {vm}"), "/status/phase") == "Running");
    }
    ensure!(home.field(&format!("node {node}"), "/spec/unschedulable").is_empty());

    // MM-P15: the policy lets the drain slow the guest down without being asked.
    let all: serde_json::Value = serde_json::from_str(&home.k(&["get", "vmop,migrations", "-o", "json"])?)?;
    let of_a = |item: &&serde_json::Value| {
        item["spec"]["virtualMachineName"] == "a" || item["spec"]["instance"]["name"] == "a"
    };
    let items: Vec<&serde_json::Value> = all["items"].as_array().into_iter().flatten().filter(of_a).collect();
    ensure!(items.len() == 2 && items.iter().all(|item| item["spec"]["force"].is_null()), "{items:?}");
    let config = items.iter().find_map(|item| item.pointer("/status/config/autoConverge"));
    ensure!(config == Some(&true.into()), "{items:?}");
    home.end()
}
