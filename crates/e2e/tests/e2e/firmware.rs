//! Firmware updates: running VMs are brought to another launcher image, with another build of QEMU, and
//! back. The other build's program is named by `HOLDFAST_OTHER_QEMU` (`scripts/get-qemu`).

use std::path::Path;

use anyhow::{Context, Result, ensure};
use holdfast_e2e::home::contains;
use holdfast_e2e::{Home, manifests, wait_for};

use crate::support::*;

const FIRMWARE: &str = "FirmwareUpToDate";

/// Changes settings of the platform; `null` takes one away.
fn set(home: &Home, settings: &str) -> Result<()> {
    let patch = format!("{{\"spec\": {{\"settings\": {settings}}}}}");
    home.k(&["patch", "moduleconfig", "virtualization", "--type=merge", "-p", &patch]).map(drop)
}

fn qemu_of(home: &Home, vm: &str) -> String {
    home.field(&format!("vm {vm}"), "/status/versions/qemu")
}

fn updates(home: &Home) -> Result<Vec<String>> {
    let names = home.k(&["get", "vmop", "-o", "jsonpath={range .items[*]}{.metadata.name}{\"\\n\"}{end}"])?;
    Ok(names.lines().filter(|name| name.starts_with("firmware-update-")).map(str::to_owned).collect())
}

/// Waits until the VM is up to date and its launcher has this QEMU.
fn wait_updated(home: &Home, vm: &str, qemu: &str) -> Result<()> {
    wait_for(&format!("vm {vm} runs QEMU {qemu}"), BOOT, || {
        let now = (qemu_of(home, vm), condition(home, &format!("vm {vm}"), FIRMWARE));
        if now.0 == qemu && now.1.is_null() { Ok(()) } else { Err(format!("{now:?}")) }
    })
    .with_context(|| home.explain(&format!("vm {vm}")))
}

// MM-W1 MM-W2 MM-W3 MM-W6 MM-O29
#[test]
fn running_vms_move_to_another_firmware() -> Result<()> {
    let Ok(other) = std::env::var("HOLDFAST_OTHER_QEMU") else {
        eprintln!("skipped: HOLDFAST_OTHER_QEMU names no second QEMU (scripts/get-qemu unpacks one)");
        return Ok(());
    };
    let home = Home::up(3)?;
    let other = Path::new(&other).parent().context("HOLDFAST_OTHER_QEMU names a file in a directory")?;
    std::fs::create_dir_all(home.path().join("firmware"))?;
    std::os::unix::fs::symlink(other, home.path().join("firmware/other"))?;
    let moved = ["v", "b"];
    let all = ["v", "b", "restarted", "pinned"];

    let refused = set(&home, "{\"launcherImage\": \"holdfast/launcher\"}").unwrap_err();
    contains(&format!("{refused:#}"), "is not an image with a tag")?;
    set(&home, "{\"launcherImage\": \"holdfast/launcher:other\"}")?;
    create_vms(&home, &["v"], "")?;
    let pinned = manifests::blank_vm("pinned", "").replace("size: 4Mi", "size: 4Mi, storageClassName: local");
    // A CPU that is the same under both.
    let class = "apiVersion: virtualization.deckhouse.io/v1alpha2\nkind: VirtualMachineClass\n\
                 metadata: {name: plain}\nspec: {cpu: {type: Model, model: Nehalem}}\n---\n";
    let plain = manifests::blank_vm("b", "").replace("ClassName: host", "ClassName: plain");
    home.apply(&(class.to_owned() + &plain + &manifests::blank_vm("restarted", "") + &pinned))?;
    let guest = wait_ready(&home, "v")?;
    for vm in all {
        home.wait_phase(vm, "Running", BOOT)?;
    }
    let (boot, old) = (guest.boot_id()?, qemu_of(&home, "v"));
    ensure!(condition(&home, "vm v", FIRMWARE).is_null());

    // Off: said, and nothing is moved; a start takes the new one.
    set(&home, "{\"launcherImage\": null, \"firmwareUpdate\": false}")?;
    for vm in all {
        wait_reason(&home, &format!("vm {vm}"), FIRMWARE, "False/FirmwareOutOfDate")?;
    }
    home.d8(&["v", "restart", "restarted", "--wait"])?;
    wait_for("the restarted VM has another QEMU", SOON, || {
        let now = qemu_of(&home, "restarted");
        if now.is_empty() || now == old { Err(now) } else { Ok(()) }
    })?;
    let new = qemu_of(&home, "restarted");
    ensure!(updates(&home)?.is_empty(), "updates are off");

    // On: one move for each VM that can move.
    let moves = Moves::record(&home)?;
    set(&home, "{\"firmwareUpdate\": true}")?;
    for vm in moved {
        wait_updated(&home, vm, &new)?;
    }
    moves.check(3)?;
    ensure!(guest.boot_id()? == boot, "the guest has booted again");
    let names = updates(&home)?;
    ensure!(names.len() == moved.len(), "{names:?}");
    for name in &names {
        vmop_phase(&home, name, "Completed")?;
    }
    let table = home.k(&["get", "vmop"])?;
    let columns: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    ensure!(columns[0] == ["NAME", "PHASE", "TYPE", "VIRTUALMACHINE", "AGE"], "{table}");
    let row = columns.iter().find(|row| row[0] == names[0]).context("no row")?;
    ensure!(row[1..3] == ["Completed", "Evict"] && moved.contains(&row[3]), "{table}");

    // What cannot move says so until it is restarted.
    wait_reason(&home, "vm pinned", FIRMWARE, "False/FirmwareOutOfDate")?;
    home.d8(&["v", "restart", "pinned", "--wait"])?;
    wait_updated(&home, "pinned", &new)?;

    // Back: what the other QEMU cannot run stays where it is, and its operation says why.
    set(&home, "{\"launcherImage\": \"holdfast/launcher:other\"}")?;
    wait_updated(&home, "b", &old)?;
    for (vm, why) in [("restarted", "is newer than QEMU"), ("v", "CPU model max may have less")] {
        contains(&failed_update(&home, vm)?, why)?;
        ensure!(qemu_of(&home, vm) == new && home.field(&format!("vm {vm}"), "/status/phase") == "Running");
    }
    ensure!(guest.boot_id()? == boot, "the guest has booted again");
    home.end()
}

/// Waits until an operation of the VM has failed; the operation as text.
fn failed_update(home: &Home, vm: &str) -> Result<String> {
    wait_for(&format!("an update of {vm} fails"), BOOT, || {
        let all = home.k(&["get", "vmop", "-o", "json"]).map_err(|e| format!("{e:#}"))?;
        let all: serde_json::Value = serde_json::from_str(&all).map_err(|e| e.to_string())?;
        let items = all["items"].as_array().cloned().unwrap_or_default();
        let failed = |op: &&serde_json::Value| {
            op["spec"]["virtualMachineName"] == vm && op["status"]["phase"] == "Failed"
        };
        items.iter().find(failed).map(serde_json::Value::to_string).ok_or_else(|| all.to_string())
    })
}
