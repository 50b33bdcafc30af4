//! Stop, start, restart: by operation, by command, from inside, by accident, by policy.

use anyhow::{Context, Result, ensure};
use holdfast_e2e::home::contains;
use holdfast_e2e::{Home, manifests, wait_for};

use crate::support::*;

#[test]
fn operations_and_guest_power() -> Result<()> {
    let home = Home::up(2)?;
    create_vms(&home, &["v"], "")?;
    let guest = wait_ready(&home, "v")?;
    let first_pod = launchers(&home, "v")?;

    // VL-P12
    home.apply(&manifests::vmop("start-running", "v", "Start"))?;
    vmop_phase(&home, "start-running", "Failed")?;
    ensure!(completed_reason(&home, "start-running") == "NotApplicableForVirtualMachinePhase");
    // VL-P14 MM-O4
    home.apply(&manifests::vmop("nobody", "no-such-vm", "Stop"))?;
    vmop_phase(&home, "nobody", "Failed")?;
    ensure!(completed_reason(&home, "nobody") == "VirtualMachineNotFound");

    // VL-C4: a change that waits for a restart.
    home.k(&["patch", "vm", "v", "--type=merge", "-p", r#"{"spec":{"cpu":{"cores":2}}}"#])?;
    home.wait_condition("vm v", "AwaitingRestartToApplyConfiguration", "True", SOON)?;
    ensure!(guest.run("nproc")? == "1");

    // VL-L10: reboot from inside is a new start with the same address; never Stopped.
    let boot = guest.boot_id()?;
    let watch = Watch::start(&home, &["get", "vm", "v", "-w"])?;
    // The connection ends with the guest.
    let _ = guest.run("sudo reboot");
    wait_for("another boot", BOOT, || match guest.boot_id() {
        Ok(now) if now != boot => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    home.wait_phase("v", "Running", BOOT)?;
    ensure!(!watch.column("PHASE").contains(&"Stopped".to_owned()), "{:?}", watch.lines());
    ensure!(guest_of(&home, "v")?.address == guest.address);
    ensure!(launchers(&home, "v")? != first_pod, "the launcher pod is still {first_pod:?}");
    drop(watch);
    // VL-C4
    ensure!(guest.run("nproc")? == "2");
    home.wait_condition("vm v", "AwaitingRestartToApplyConfiguration", "False", SOON)?;

    // VL-L11: QEMU killed.
    let boot = guest.boot_id()?;
    let qemu = home.pids(&["qemu-system-x86_64"]);
    ensure!(qemu.len() == 1, "QEMU processes: {qemu:?}");
    home.kill9(qemu[0])?;
    wait_for("a boot after the kill", BOOT, || match guest.boot_id() {
        Ok(now) if now != boot => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    home.wait_phase("v", "Running", BOOT)?;

    // VL-P8
    home.apply(&manifests::vmop("stop-1", "v", "Stop"))?;
    vmop_phase(&home, "stop-1", "Completed")?;
    home.wait_phase("v", "Stopped", SOON)?;
    ensure!(launchers(&home, "v")?.is_empty());
    ensure!(node_of(&home, "v").is_empty(), "a stopped VM has no node");
    // VL-P13 MM-O5
    home.apply(&manifests::vmop("evict-stopped", "v", "Evict"))?;
    vmop_phase(&home, "evict-stopped", "Failed")?;
    ensure!(completed_reason(&home, "evict-stopped") == "NotApplicableForVirtualMachinePhase");
    // VL-G5
    ensure!(home.condition("vm v", "AgentReady").is_empty());
    // VL-P10
    home.apply(&manifests::vmop("start-1", "v", "Start"))?;
    vmop_phase(&home, "start-1", "Completed")?;
    ensure!(home.field("vm v", "/status/phase") == "Running");
    wait_ready(&home, "v")?;

    // VL-L9 VL-X5: poweroff from inside; its pod is kept by somebody's finalizer, to be looked at.
    let pod = launchers(&home, "v")?.pop().context("a launcher")?;
    let keep = r#"[{"op":"add","path":"/metadata/finalizers/-","value":"test/keep"}]"#;
    home.k(&["patch", "pod", &pod, "--type=json", "-p", keep])?;
    let _ = guest.run("sudo poweroff");
    home.wait_phase("v", "Stopped", SOON)?;
    let events = home.k(&["get", "events", "--field-selector", "involvedObject.name=v"])?;
    contains(&events, "Stopped")?;
    contains(&events, "inside the guest")?;
    ensure!(launchers(&home, "v")?.is_empty() && node_of(&home, "v").is_empty());
    let kept = wait_for("our finalizer is the last one", SOON, || {
        let pod = home.get(&format!("pod {pod}")).ok_or("it is gone")?;
        let left = pod["metadata"]["finalizers"].to_string();
        if left == r#"["test/keep"]"# { Ok(pod) } else { Err(left) }
    })?;
    let message = kept.pointer("/status/containerStatuses/0/state/terminated/message");
    contains(&message.map(ToString::to_string).unwrap_or_default(), "guest-shutdown")?;
    home.k(&["patch", "pod", &pod, "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#])?;

    // The commands, and VL-P11: a restart is complete when a new instance runs.
    home.d8(&["v", "start", "v"])?;
    wait_ready(&home, "v")?;
    let before = launchers(&home, "v")?;
    home.apply(&manifests::vmop("restart-1", "v", "Restart"))?;
    vmop_phase(&home, "restart-1", "Completed")?;
    ensure!(home.field("vm v", "/status/phase") == "Running" && launchers(&home, "v")? != before);
    // VL-N3: whatever happened, and now a move.
    home.apply(&manifests::vmop("evict-1", "v", "Evict"))?;
    vmop_phase(&home, "evict-1", "Completed")?;
    ensure!(guest_of(&home, "v")?.address == guest.address);
    home.d8(&["v", "stop", "v"])?;
    home.wait_phase("v", "Stopped", BOOT)?;
    ensure!(home.field("vm v", "/status/ipAddress") == guest.address);
    home.end()
}

#[test]
fn policies() -> Result<()> {
    let home = Home::up(1)?;
    home.apply(&(manifests::demo_image() + &manifests::disk("m-root") + &manifests::disk("never-root")))?;
    // VL-P1 VL-P2
    home.apply(&manifests::vm("m", "  runPolicy: Manual"))?;
    home.apply(&manifests::vm("never", "  runPolicy: AlwaysOff"))?;
    home.wait_phase("m", "Stopped", SOON)?;
    home.wait_phase("never", "Stopped", SOON)?;
    ensure!(launchers(&home, "m")?.is_empty() && launchers(&home, "never")?.is_empty());
    // VL-P5
    home.apply(&manifests::vmop("never-start", "never", "Start"))?;
    vmop_phase(&home, "never-start", "Failed")?;
    ensure!(completed_reason(&home, "never-start") == "NotApplicableForVirtualMachineRunPolicy");

    home.d8(&["v", "start", "m"])?;
    wait_ready(&home, "m")?;
    // Part of row L12: it stays off until somebody wants it on.
    let qemu = home.pids(&["qemu-system-x86_64"]);
    ensure!(qemu.len() == 1, "QEMU processes: {qemu:?}");
    home.kill9(qemu[0])?;
    home.wait_phase("m", "Stopped", SOON)?;
    // VL-P19
    let on = r#"{"spec":{"runPolicy":"AlwaysOn"}}"#;
    home.k(&["patch", "vm", "m", "--type=merge", "-p", on])?;
    let guest = wait_ready(&home, "m")?;
    // VL-P4
    home.apply(&manifests::vmop("on-stop", "m", "Stop"))?;
    vmop_phase(&home, "on-stop", "Failed")?;
    ensure!(completed_reason(&home, "on-stop") == "NotApplicableForVirtualMachineRunPolicy");
    // VL-P3
    let boot = guest.boot_id()?;
    let _ = guest.run("sudo poweroff");
    wait_for("a boot after the poweroff", BOOT, || match guest.boot_id() {
        Ok(now) if now != boot => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    home.end()
}
