//! Maintenance: the seeds' drains, uncordon, one move out of a node at a time.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use holdfast_e2e::home::contains;
use holdfast_e2e::{Home, manifests, wait_for};

use crate::support::*;

/// Starts the VMs on one node, the only one that is open meanwhile, and gives its name.
fn gather(home: &Home, names: &[&str], others: &[&str]) -> Result<String> {
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

// MM-D16. Parts of rows D1 and L1 (two VMs instead of three and five).
#[test]
fn drain_empties_a_node_one_move_at_a_time() -> Result<()> {
    let home = Home::up(3)?;
    let node = gather(&home, &["a", "b"], &["virtlab-pt-2", "virtlab-pt-3"])?;
    let boots: Vec<String> =
        ["a", "b"].iter().map(|v| guest_of(&home, v)?.boot_id()).collect::<Result<_>>()?;
    let ops = Watch::start(&home, &["get", "vmop", "-w"]);
    let out = home.k(&["drain", &node, "--ignore-daemonsets", "--delete-emptydir-data"])?;
    contains(&out, &format!("node/{node} cordoned"))?;
    contains(&out, &format!("node/{node} drained"))?;
    for (vm, boot) in ["a", "b"].iter().zip(&boots) {
        let now = node_of(&home, vm);
        ensure!(now != node && !now.is_empty(), "vm {vm} is on {now:?}");
        ensure!(guest_of(&home, vm)?.boot_id()? == *boot, "vm {vm} has booted again");
    }
    // The two moves out of the node did not overlap; both are named as the seeds say.
    let all: serde_json::Value = serde_json::from_str(&home.k(&["get", "vmop", "-o", "json"])?)?;
    let mut spans = Vec::new();
    for op in all["items"].as_array().into_iter().flatten() {
        let name = op["metadata"]["name"].as_str().unwrap_or_default();
        ensure!(name.starts_with("evacuation-"), "{name}");
        ensure!(op["status"]["phase"] == "Completed", "{op}");
        let vm = op["spec"]["virtualMachineName"].as_str().unwrap_or_default().to_owned();
        let state = home.get(&format!("vm {vm}")).unwrap_or_default()["status"]["migrationState"].clone();
        spans.push((
            state["startTimestamp"].as_str().unwrap_or("").to_owned(),
            state["endTimestamp"].as_str().unwrap_or("").to_owned(),
        ));
    }
    spans.sort();
    ensure!(spans.len() == 2 && spans[0].1 <= spans[1].0, "moves overlapped: {spans:?}");
    drop(ops);

    // Nothing new lands on a cordoned node; uncordon brings it back.
    home.apply(
        &(manifests::disk("c-root")
            + &manifests::vm("c", &format!("  nodeSelector: {{kubernetes.io/hostname: {node}}}"))),
    )?;
    home.wait_phase("c", "Starting", SOON)?;
    ensure!(node_of(&home, "c").is_empty());
    home.k(&["uncordon", &node])?;
    home.wait_phase("c", "Running", BOOT)?;
    ensure!(node_of(&home, "c") == node);
    let nodes: BTreeSet<String> = ["a", "b"].iter().map(|v| node_of(&home, v)).collect();
    ensure!(!nodes.contains(&node), "a VM came back by itself");
    Ok(())
}

// Parts of rows D2 and D12 (one VM; no other pods on the node).
#[test]
fn drain_by_selector_and_uncordon_calls_off() -> Result<()> {
    let home = Home::up(2)?;
    let node = gather(&home, &["a"], &["virtlab-pt-2"])?;
    let selector = "vm.kubevirt.internal.virtualization.deckhouse.io/name";
    // The only other node is closed: the drain must wait, say why, and be called off.
    home.k(&["cordon", "virtlab-pt-2"])?;
    let mut drain = home.k_spawn(&["drain", &node, "--pod-selector", selector, "--delete-emptydir-data"])?;
    home.wait_condition("vm a", "EvictionRequired", "True", SOON)
        .or_else(|_| home.wait_field("instance a", "/status/evacuationNodeName", &node, SOON))?;
    ensure!(drain.try_wait()?.is_none(), "the drain ended although the VM cannot move");
    drain.kill()?;
    drain.wait()?;
    home.k(&["uncordon", &node])?;
    wait_for("the mark is cleared and no operation is left under way", SOON, || {
        let mark = home.field("instance a", "/status/evacuationNodeName");
        let ops = home.k(&["get", "vmop", "-o", "jsonpath={.items[*].status.phase}"]).unwrap_or_default();
        let open = ops.split(' ').any(|p| p == "Pending" || p == "InProgress");
        if mark.is_empty() && !open { Ok(()) } else { Err(format!("mark {mark:?}, operations {ops:?}")) }
    })?;
    ensure!(home.field("vm a", "/status/phase") == "Running" && node_of(&home, "a") == node);

    // With room, the same command ends.
    home.k(&["uncordon", "virtlab-pt-2"])?;
    let out = home.k(&["drain", &node, "--pod-selector", selector, "--delete-emptydir-data"])?;
    contains(&out, &format!("node/{node} drained"))?;
    ensure!(node_of(&home, "a") == "virtlab-pt-2");
    home.k(&["uncordon", &node])?;
    Ok(())
}
