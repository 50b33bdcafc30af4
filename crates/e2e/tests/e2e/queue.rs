//! Operations that wait for each other: limits, order, call-offs, policies. With VMs that have no guest
//! in them: they run and move at once. A move is held where it is by a target that no node fits.

use anyhow::{Context, Result, ensure};
use holdfast_e2e::home::contains;
use holdfast_e2e::{Home, manifests, wait_for};

use crate::support::*;

const ONE: &str = NODES[0];
const TWO: &str = NODES[1];
const THREE: &str = NODES[2];

fn evict(home: &Home, vmop: &str, vm: &str) -> Result<()> {
    home.apply(&manifests::vmop(vmop, vm, "Evict")).map(drop)
}

/// All launcher pods of a VM, also those that are over.
fn all_pods(home: &Home, vm: &str) -> Result<Vec<String>> {
    let selector = format!("vm.kubevirt.internal.virtualization.deckhouse.io/name={vm}");
    let out = home.k(&["get", "pods", "-l", &selector, "-o", "jsonpath={.items[*].metadata.name}"])?;
    Ok(out.split_whitespace().map(str::to_owned).collect())
}

/// Starts an Evict of a pinned VM and waits until it holds the slots of its node; the target pod.
fn hold(home: &Home, vmop: &str, vm: &str) -> Result<String> {
    let before = all_pods(home, vm)?;
    evict(home, vmop, vm)?;
    vmop_phase(home, vmop, "InProgress")?;
    wait_reason(home, &format!("vmop {vmop}"), "Completed", "False/TargetUnschedulable")?;
    let mut new = all_pods(home, vm)?.into_iter().filter(|pod| !before.contains(pod));
    new.next().context("no target pod")
}

/// What does not change when nothing happens to a VM: its QEMU process and launcher.
fn identity(home: &Home, vm: &str) -> Result<(Vec<i32>, Vec<String>, String)> {
    Ok((qemus(home, vm), launchers(home, vm)?, node_of(home, vm)))
}

#[test]
fn a_held_slot_keeps_others_of_its_node_waiting() -> Result<()> {
    let home = Home::up(3)?;
    open_zone(&home, ONE)?;
    home.apply(&manifests::blank_vm("held", &pinned()))?;
    blank_vms_on(&home, ONE, &["b", "c"], "")?;
    blank_vms_on(&home, TWO, &["a"], "")?;
    home.wait_phase("held", "Running", SOON)?;
    let before = identity(&home, "held")?;
    let moves = Moves::record(&home)?;
    let target = hold(&home, "hold-1", "held")?;

    // MM-S5 (during): the source is active.
    let pods = home.get("vm held").unwrap_or_default()["status"]["virtualMachinePods"].clone();
    let active = |pods: &serde_json::Value| -> Vec<String> {
        let all = pods.as_array().into_iter().flatten().filter(|p| p["active"] == true);
        all.filter_map(|p| p["name"].as_str().map(str::to_owned)).collect()
    };
    ensure!(pods.as_array().map(Vec::len) == Some(2) && active(&pods) == before.1, "{pods}");
    // MM-O8
    let second = evict(&home, "second", "held").expect_err("a second operation").to_string();
    contains(&second, "\"hold-1\" (Evict) of virtual machine \"held\" must finish first")?;
    ensure!(home.field("vmop hold-1", "/status/phase") == "InProgress");
    // MM-D6
    let refused = evict_pod(&home, &target, "").expect_err("a target pod").to_string();
    contains(&refused, "TooManyRequests): Eviction request for target Pod")?;
    ensure!(home.field("vmop hold-1", "/status/phase") == "InProgress");

    // MM-L12 MM-S13
    evict(&home, "wait-b", "b")?;
    vmop_phase(&home, "wait-b", "Pending")?;
    wait_reason(&home, "vmop wait-b", "Completed", "False/MigrationPending")?;
    let message = condition(&home, "vmop wait-b", "Completed")["message"].clone();
    ensure!(
        message == format!("Waiting for a free migration slot: outbound slot on source node \"{ONE}\"."),
        "{message}"
    );
    wait_reason(&home, "vm b", "Migrating", "False/Pending")?;
    ensure!(home.field("vm b", "/status/phase") == "Running");
    // MM-L5: created after one that waits.
    evict(&home, "other-node", "a")?;
    vmop_phase(&home, "other-node", "Completed")?;
    ensure!(home.field("vmop wait-b", "/status/phase") == "Pending");
    // MM-O15
    let queued = identity(&home, "b")?;
    home.k(&["delete", "vmop", "wait-b"])?;
    ensure!(home.get("vmop wait-b").is_none());
    ensure!(identity(&home, "b")? == queued && home.field("vm b", "/status/phase") == "Running");
    ensure!(all_pods(&home, "b")? == queued.1, "it had a target pod");

    // MM-L10: the slot stays with its holder while another controller takes over.
    evict(&home, "queue-b", "b")?;
    evict(&home, "queue-c", "c")?;
    vmop_phase(&home, "queue-c", "Pending")?;
    let controller = home.pids(&[" controller --home"]);
    home.kill9(controller[0])?;
    evict(&home, "after-restart", "a")?;
    vmop_phase(&home, "after-restart", "Completed")?;
    let phases =
        ["hold-1", "queue-b", "queue-c"].map(|op| home.field(&format!("vmop {op}"), "/status/phase"));
    ensure!(phases == ["InProgress", "Pending", "Pending"], "{phases:?}");

    // MM-F1: the target pod is deleted before it has a node; the others get the slot, one after the other.
    home.k(&["delete", "pod", &target])?;
    vmop_phase(&home, "hold-1", "Failed")?;
    ensure!(identity(&home, "held")? == before, "vm held was disturbed");
    ensure!(home.field("vm held", "/status/phase") == "Running");
    for op in ["queue-b", "queue-c"] {
        vmop_phase(&home, op, "Completed")?;
    }
    moves.check(3)?;

    // MM-O16: called off before the target is placed.
    let target = hold(&home, "hold-2", "held")?;
    home.k(&["delete", "vmop", "hold-2"])?;
    home.wait_gone(&format!("pod {target}"), SOON)?;
    ensure!(home.get("vmop hold-2").is_none());
    ensure!(identity(&home, "held")? == before && home.field("vm held", "/status/phase") == "Running");

    // MM-P16 and the end of MM-S5: what waited moves when there is a place, under the policy of that moment.
    hold(&home, "hold-3", "held")?;
    blank_vms_on(&home, ONE, &["p"], "  liveMigrationPolicy: AlwaysSafe")?;
    evict(&home, "policy", "p")?;
    vmop_phase(&home, "policy", "Pending")?;
    set_policy(&home, "p", "AlwaysForced")?;
    open_zone(&home, THREE)?;
    vmop_phase(&home, "hold-3", "Completed")?;
    ensure!(node_of(&home, "held") == THREE);
    wait_for("one pod is left", SOON, || {
        let pods = home.get("vm held").unwrap_or_default()["status"]["virtualMachinePods"].clone();
        let names = launchers(&home, "held").map_err(|e| e.to_string())?;
        let is_one = pods.as_array().map(Vec::len) == Some(1) && active(&pods) == names;
        if is_one { Ok(()) } else { Err(pods.to_string()) }
    })?;
    vmop_phase(&home, "policy", "Completed")?;
    ensure!(converges(&home, "policy")? == "true");

    // MM-O22: the VM is deleted while it moves.
    close_zone(&home, ONE)?;
    hold(&home, "hold-4", "held")?;
    home.k(&["delete", "vm", "held"])?;
    ensure!(all_pods(&home, "held")?.is_empty() && qemus(&home, "held").is_empty());
    home.wait_condition("vd held-root", "InUse", "False", SOON)?;
    home.wait_gone("vmop hold-4", SOON).or_else(|_| vmop_phase(&home, "hold-4", "Failed"))?;
    home.end()
}

fn set_policy(home: &Home, vm: &str, policy: &str) -> Result<()> {
    let patch = format!("{{\"spec\":{{\"liveMigrationPolicy\":\"{policy}\"}}}}");
    home.k(&["patch", "vm", vm, "--type=merge", "-p", &patch]).map(drop)
}

/// Whether the move of an operation was allowed to slow the guest down.
fn converges(home: &Home, vmop: &str) -> Result<String> {
    let all: serde_json::Value = serde_json::from_str(&home.k(&["get", "migrations", "-o", "json"])?)?;
    let mut items = all["items"].as_array().into_iter().flatten();
    let name = format!("vmop-{vmop}");
    let found = items.find(|m| m["metadata"]["name"] == name.as_str()).context("no Migration")?;
    Ok(found["status"]["config"]["autoConverge"].to_string())
}

// MM-P1 MM-P2 MM-P3 MM-P4 MM-P5 MM-P6 MM-P7 MM-P8 MM-P9 MM-P10 MM-P11 MM-P12
#[test]
fn policies_and_refused_operations() -> Result<()> {
    let home = Home::up(3)?;
    home.apply(&(manifests::blank_vm("v", "") + &manifests::blank_vm("gone", "")))?;
    home.wait_phase("v", "Running", SOON)?;
    let refused = "refused";
    for (policy, outcomes) in [
        ("AlwaysSafe", ["false", "false", refused]),
        ("PreferSafe", ["false", "false", "true"]),
        ("AlwaysForced", ["true", refused, "true"]),
        ("PreferForced", ["true", "false", "true"]),
    ] {
        set_policy(&home, "v", policy)?;
        for (force, wanted) in ["", ", force: false", ", force: true"].into_iter().zip(outcomes) {
            let name = format!("{}{}", policy.to_lowercase(), force.replace(", force: ", "-"));
            let before = all_pods(&home, "v")?;
            let type_and_force = format!("Evict{force}");
            home.apply(&manifests::vmop(&name, "v", &type_and_force))?;
            if wanted == refused {
                vmop_phase(&home, &name, "Failed")?;
                ensure!(completed_reason(&home, &name) == "NotApplicableForLiveMigrationPolicy", "{name}");
                ensure!(all_pods(&home, "v")? == before, "{name}: a target pod");
            } else {
                vmop_phase(&home, &name, "Completed")?;
                ensure!(converges(&home, &name)? == wanted, "{name}");
            }
        }
    }

    // MM-O13
    let vmop = home.get("vmop preferforced").unwrap_or_default();
    let conditions = ["Completed", "SignalSent"].map(|kind| home.condition("vmop preferforced", kind));
    ensure!(vmop["status"]["phase"] == "Completed" && conditions == ["True", "True"], "{vmop}");
    // The VM tells about its last move.
    let state = home.get("vm v").unwrap_or_default()["status"]["migrationState"].clone();
    ensure!(state["result"] == "Succeeded", "{state}");
    for field in ["/source/node", "/source/pod", "/target/node", "/target/pod"] {
        ensure!(
            state.pointer(field).and_then(|v| v.as_str()).is_some_and(|v| !v.is_empty()),
            "{field}: {state}"
        );
    }
    for field in ["startTimestamp", "endTimestamp"] {
        ensure!(state[field].is_string(), "{field}: {state}");
    }
    // MM-S11
    home.d8(&["v", "restart", "v", "--force", "--wait"])?;
    home.wait_phase("v", "Running", SOON)?;
    home.wait_field("vm v", "/status/migrationState", "", SOON)?;

    // MM-O10 MM-O11 AP-20 AP-21
    let patch = |json: &str| home.k(&["patch", "vmop", "preferforced", "--type=merge", "-p", json]);
    for json in [
        "{\"spec\":{\"force\":true}}",
        "{\"spec\":{\"type\":\"Stop\"}}",
        "{\"spec\":{\"virtualMachineName\":\"x\"}}",
    ] {
        contains(&patch(json).expect_err("the spec is fixed").to_string(), "immutable")?;
    }
    let forced = home.apply(&manifests::vmop("forced-start", "v", "Start, force: true"));
    contains(&forced.expect_err("Start has no force").to_string(), "force")?;
    let mixed = home.apply(&manifests::vmop("mixed", "v", "Evict, migrate: {}"));
    contains(&mixed.expect_err("Evict has no migrate").to_string(), "migrate")?;

    // MM-O3: with one other node open the VM lands there, never where it is.
    for _ in 0..2 {
        let source = node_of(&home, "v");
        let closed = NODES.into_iter().find(|node| *node != source).context("another node")?;
        home.k(&["cordon", closed])?;
        let name = format!("only-{source}");
        evict(&home, &name, "v")?;
        vmop_phase(&home, &name, "Completed")?;
        let open = NODES.into_iter().find(|node| *node != source && *node != closed);
        ensure!(open == Some(node_of(&home, "v").as_str()), "{}", node_of(&home, "v"));
        home.k(&["uncordon", closed])?;
    }

    // MM-F26: an agent with the right names in a certificate of nobody's authority.
    let before = identity(&home, "v")?;
    let repair = falsify_certificate(&home, &before.2)?;
    evict(&home, "impostor", "v")?;
    vmop_phase(&home, "impostor", "Failed")?;
    let message = condition(&home, "vmop impostor", "Completed")["message"].to_string();
    contains(&message, "certificate")?;
    contains(&message, "connection to the agent of virtlab-pt-")?;
    ensure!(identity(&home, "v")?.0 == before.0 && home.field("vm v", "/status/phase") == "Running");
    repair()?;
    evict(&home, "repaired", "v")?;
    vmop_phase(&home, "repaired", "Completed")?;
    home.end()
}

/// Gives the agent of a node a certificate that it signed itself; the result undoes it.
fn falsify_certificate<'a>(home: &'a Home, node: &str) -> Result<impl FnOnce() -> Result<()> + use<'a>> {
    let nodes = home.facts()?["nodes"].as_array().cloned().unwrap_or_default();
    let facts = nodes.into_iter().find(|n| n["name"] == node).context("the node")?;
    let name = format!("agent-{node}");
    let files = ["crt", "key"].map(|end| home.path().join(format!("pki/{name}.{end}")));
    let right = [std::fs::read(&files[0])?, std::fs::read(&files[1])?];
    let names = format!("subjectAltName=DNS:{node},IP:{}", facts["address"].as_str().unwrap_or_default());
    let mut openssl = std::process::Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]);
    openssl.args([
        "-days",
        "2",
        "-subj",
        &format!("/O=system:holdfast:agents/CN=system:holdfast:agent:{node}"),
    ]);
    openssl.args(["-addext", &names]).arg("-out").arg(&files[0]).arg("-keyout").arg(&files[1]);
    holdfast_e2e::home::ok(&mut openssl)?;
    let words = format!(" agent --home {} --node {node}", home.path().display());
    let restart = move || -> Result<()> {
        let agent = home.pids(&[&words]);
        ensure!(agent.len() == 1, "agents: {agent:?}");
        home.kill9(agent[0])?;
        wait_for("another agent", SOON, || match home.pids(&[&words]) {
            now if now.len() == 1 && now != agent => Ok(()),
            other => Err(format!("{other:?}")),
        })
    };
    restart()?;
    Ok(move || {
        std::fs::write(&files[0], &right[0])?;
        std::fs::write(&files[1], &right[1])?;
        restart()
    })
}

#[test]
fn limits_hold_whatever_is_asked_for() -> Result<()> {
    let home = Home::up(3)?;
    let names: Vec<String> = (1..=9).map(|n| format!("v{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for (node, three) in NODES.into_iter().zip(names.chunks(3)) {
        blank_vms_on(&home, node, three, "")?;
    }
    let on = |node: &str| names.iter().filter(|vm| node_of(&home, vm) == node).count();
    let evict_all = |prefix: &str, vms: &[&str]| -> Result<()> {
        let moves = Moves::record(&home)?;
        let ops = vms.iter().map(|vm| manifests::vmop(&format!("{prefix}-{vm}"), vm, "Evict") + "---\n");
        home.apply(&ops.collect::<String>())?;
        for vm in vms {
            vmop_phase(&home, &format!("{prefix}-{vm}"), "Completed")?;
        }
        moves.check(3)
    };

    // MM-L2
    evict_all("all", &names)?;

    // MM-D17
    // Three on each node again, wherever the moves have put them.
    while let Some(wanted) = NODES.into_iter().find(|node| on(node) < 3) {
        let crowded = NODES.into_iter().find(|node| on(node) > 3).context("invariant: nine VMs")?;
        let vm = names.iter().find(|vm| node_of(&home, vm) == crowded).context("a VM there")?;
        let others: Vec<&str> = NODES.into_iter().filter(|node| *node != wanted).collect();
        home.k(&[&["cordon"], &others[..]].concat())?;
        home.d8(&["v", "evict", vm, "--wait"])?;
        home.k(&[&["uncordon"], &others[..]].concat())?;
    }
    let moves = Moves::record(&home)?;
    let drain = |node: &str| home.k_spawn(&["drain", node, "--ignore-daemonsets", "--delete-emptydir-data"]);
    for child in [drain(ONE)?, drain(TWO)?] {
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "{output:?}");
    }
    ensure!(on(THREE) == 9, "{} of 9 on {THREE}", on(THREE));
    moves.check(3)?;
    let targets = moves.slots().into_iter().flatten().map(|(_, target)| target).filter(|t| !t.is_empty());
    ensure!(targets.clone().count() > 0 && targets.clone().all(|t| t == THREE), "moved onto a drained node");
    home.k(&["uncordon", ONE, TWO])?;

    // MM-L1
    evict_all("five", &names[..5])?;
    ensure!(on(THREE) == 4);

    // MM-D25: a cordon alone.
    home.k(&["cordon", ONE])?;
    let untouched: Vec<&str> = names.iter().copied().filter(|vm| node_of(&home, vm) == ONE).collect();
    let before = untouched.iter().map(|vm| identity(&home, vm)).collect::<Result<Vec<_>>>()?;
    ensure!(before.len() > 1, "VMs on {ONE}: {untouched:?}");
    home.apply(&["n1", "n2", "n3"].map(|name| manifests::blank_vm(name, "")).concat())?;
    for name in ["n1", "n2", "n3"] {
        home.wait_phase(name, "Running", SOON)?;
        ensure!(node_of(&home, name) != ONE);
    }
    home.d8(&["v", "restart", untouched[0], "--force", "--wait"])?;
    home.wait_phase(untouched[0], "Running", SOON)?;
    ensure!(node_of(&home, untouched[0]) != ONE);
    let of_two =
        names.iter().copied().find(|vm| node_of(&home, vm) == TWO).context("a VM on the second node")?;
    evict_all("away", &[of_two])?;
    ensure!(node_of(&home, of_two) == THREE);
    for (vm, before) in untouched.iter().zip(before).skip(1) {
        ensure!(identity(&home, vm)? == before, "vm {vm} was disturbed");
    }
    // Nothing is on its way.
    let open = home.k(&["get", "vmop", "-o", "jsonpath={.items[*].status.phase}"])?;
    ensure!(open.split(' ').all(|phase| phase == "Completed"), "{open}");
    home.end()
}
