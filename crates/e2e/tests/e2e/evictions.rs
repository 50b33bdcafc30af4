//! What evictions are answered, and what holds a drain up or calls it off. With VMs without a guest.

use std::process::{Child, Output};

use anyhow::{Context, Result, ensure};
use holdfast_e2e::home::contains;
use holdfast_e2e::{Home, manifests, s, wait_for};

use crate::support::*;

const ONE: &str = NODES[0];
const TWO: &str = NODES[1];

/// The seeds' first form of a drain, in the background.
fn drain(home: &Home, node: &str, more: &[&str]) -> Result<Child> {
    home.k_spawn(&[&["drain", node, "--ignore-daemonsets", "--delete-emptydir-data"], more].concat())
}

/// As Ctrl+C: the client ends, whatever it had asked for.
fn interrupt(mut drain: Child) -> Result<()> {
    drain.kill()?;
    drain.wait()?;
    Ok(())
}

fn drained(drain: Child) -> Result<Output> {
    let output = drain.wait_with_output()?;
    ensure!(output.status.success(), "{output:?}");
    Ok(output)
}

fn launcher(home: &Home, vm: &str) -> Result<String> {
    let mut all = launchers(home, vm)?;
    ensure!(all.len() == 1, "launchers of {vm}: {all:?}");
    all.pop().context("a launcher")
}

/// The operation that evacuates, once there is one: name and uid.
fn evacuation(home: &Home) -> Result<(String, String)> {
    wait_for("an evacuation", SOON, || {
        let path = "jsonpath={range .items[*]}{.metadata.name} {.metadata.uid}{\"\\n\"}{end}";
        let all = home.k(&["get", "vmop", "-o", path]).map_err(|e| format!("{e:#}"))?;
        let found = all.lines().find(|line| line.starts_with("evacuation-"));
        let (name, uid) = found.and_then(|line| line.split_once(' ')).ok_or(all.clone())?;
        Ok((name.to_owned(), uid.to_owned()))
    })
}

fn operations(home: &Home) -> Result<Vec<String>> {
    let names = home.k(&["get", "vmop", "-o", "jsonpath={.items[*].metadata.name}"])?;
    Ok(names.split_whitespace().map(str::to_owned).collect())
}

#[test]
fn drains_are_held_up_called_off_and_asked_again() -> Result<()> {
    let home = Home::up(3)?;
    open_zone(&home, ONE)?;
    home.apply(&manifests::blank_vm("v", &pinned()))?;
    home.wait_phase("v", "Running", SOON)?;
    let pod = launcher(&home, "v")?;
    let mark = || home.field("instance v", "/status/evacuationNodeName");

    // MM-D5
    let first = "TooManyRequests): Eviction triggered evacuation of VMI \"default/v\"";
    let dry = evict_pod(&home, &pod, "?dryRun=All").expect_err("a launcher").to_string();
    contains(&dry, first)?;
    ensure!(mark().is_empty() && operations(&home)?.is_empty(), "a dry run left a mark");
    // MM-D3
    contains(&evict_pod(&home, &pod, "").expect_err("a launcher").to_string(), first)?;
    ensure!(mark() == ONE && home.field(&format!("pod {pod}"), "/status/phase") == "Running");
    // MM-D4
    let again = evict_pod(&home, &pod, "").expect_err("a launcher").to_string();
    contains(&again, "TooManyRequests): Evacuation in progress: ")?;

    // MM-D13: the drain asks again, so it comes back; other by its uid.
    let client = drain(&home, ONE, &[])?;
    let (name, uid) = evacuation(&home)?;
    home.k(&["delete", "vmop", &name])?;
    wait_for("another evacuation", s(12), || match evacuation(&home) {
        Ok((_, new)) if new != uid => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    // MM-D14: nobody asks any more. Nothing to wait for: a drain would have asked again after 5 s.
    interrupt(client)?;
    home.k(&["delete", "vmop", &evacuation(&home)?.0])?;
    let until = std::time::Instant::now() + s(8);
    while std::time::Instant::now() < until {
        ensure!(operations(&home)?.is_empty(), "{:?}", operations(&home)?);
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    wait_for("the target pod is gone", SOON, || match launchers(&home, "v") {
        Ok(all) if all == [pod.as_str()] => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    ensure!(home.field("vm v", "/status/phase") == "Running");

    // MM-D22: the client gives up, the evacuation does not.
    let output = drain(&home, ONE, &["--timeout=1s"])?.wait_with_output()?;
    ensure!(!output.status.success(), "{output:?}");
    contains(&String::from_utf8_lossy(&output.stderr), "global timeout reached: 1s")?;
    let (name, _) = evacuation(&home)?;
    open_zone(&home, TWO)?;
    vmop_phase(&home, &name, "Completed")?;
    ensure!(node_of(&home, "v") == TWO);
    home.wait_field("instance v", "/status/evacuationNodeName", "", SOON)?;
    home.k(&["uncordon", ONE])?;
    home.k(&["delete", "vmop", "--all"])?;

    // MM-D15: the user was faster; the drain ends with the user's move.
    close_zone(&home, ONE)?;
    home.apply(&manifests::vmop("users", "v", "Evict"))?;
    wait_reason(&home, "vmop users", "Completed", "False/TargetUnschedulable")?;
    let client = drain(&home, TWO, &[])?;
    home.wait_field("node virtlab-pt-2", "/spec/unschedulable", "true", SOON)?;
    open_zone(&home, ONE)?;
    vmop_phase(&home, "users", "Completed")?;
    drained(client)?;
    ensure!(node_of(&home, "v") == ONE && operations(&home)? == ["users"], "{:?}", operations(&home)?);
    home.k(&["uncordon", TWO])?;
    home.end()
}

#[test]
fn a_vm_that_cannot_move_blocks_its_node_until_it_stops() -> Result<()> {
    let home = Home::up(2)?;
    let local = manifests::blank_vm("v", "").replace("size: 4Mi", "size: 4Mi, storageClassName: local");
    home.apply(&local)?;
    home.wait_phase("v", "Running", SOON)?;
    let (pod, node, qemu) = (launcher(&home, "v")?, node_of(&home, "v"), qemus(&home, "v"));
    // VL-D15
    wait_reason(&home, "vm v", "Migratable", "False/VirtualMachineDisksNotMigratable")?;
    let wide = home.k(&["get", "vm", "v", "-o", "wide"])?;
    let (head, row) = wide.split_once('\n').context("two lines")?;
    let at = head.find("MIGRATABLE").context("a column")?;
    ensure!(row.get(at..).is_some_and(|cell| cell.starts_with("False")), "{wide}");
    // MM-O7
    home.apply(&manifests::vmop("evict", "v", "Evict"))?;
    vmop_phase(&home, "evict", "Failed")?;
    ensure!(completed_reason(&home, "evict") == "OperationFailed");
    let message = condition(&home, "vmop evict", "Completed")["message"].to_string();
    contains(&message, "not migratable")?;

    // VL-X3: each try is refused with the reason, nothing happens to the VM. Parts of row D8.
    let client = drain(&home, &node, &["--timeout=11s"])?;
    let output = client.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    let refusal = "(will retry after 5s): VMI default/v is configured with an eviction strategy but is not live-migratable";
    ensure!(!output.status.success() && said.matches(refusal).count() >= 2, "{said}");
    ensure!(home.field("vm v", "/status/phase") == "Running" && launcher(&home, "v")? == pod);
    ensure!(qemus(&home, "v") == qemu && operations(&home)? == ["evict"]);

    // MM-D9
    let client = drain(&home, &node, &[])?;
    wait_for("the node is cordoned again and the eviction refused", SOON, || {
        evict_pod(&home, &pod, "").map_err(drop).err().ok_or_else(|| "evicted".to_owned())
    })?;
    home.d8(&["v", "stop", "v", "--wait"])?;
    let stopped = std::time::Instant::now();
    drained(client)?;
    ensure!(stopped.elapsed() < s(15), "{:?}", stopped.elapsed());

    // MM-D7: a launcher that is over and still there, kept by somebody's finalizer.
    home.k(&["uncordon", &node])?;
    home.d8(&["v", "start", "v", "--wait"])?;
    let pod = launcher(&home, "v")?;
    let keep = r#"[{"op":"add","path":"/metadata/finalizers/-","value":"test/keep"}]"#;
    home.k(&["patch", "pod", &pod, "--type=json", "-p", keep])?;
    home.d8(&["v", "stop", "v", "--wait"])?;
    home.wait_field(&format!("pod {pod}"), "/status/phase", "Succeeded", SOON)?;
    contains(&evict_pod(&home, &pod, "")?, "\"code\":201")?;
    home.k(&["patch", "pod", &pod, "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#])?;
    home.wait_gone(&format!("pod {pod}"), SOON)?;
    home.end()
}
