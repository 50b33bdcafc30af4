//! Live moves: same guest, same address, same connections; call-offs; one at a time.

use anyhow::{Result, ensure};
use holdfast_e2e::{Home, manifests, s, wait_for};

use crate::support::*;

/// What a node has of a VM: names of QEMU processes, taps, sockets of a move, and mounts of its pods.
fn traces(home: &Home, node: &str) -> Result<Vec<String>> {
    let facts = home.facts()?;
    let space = format!("hf-{}-{node}", facts["id"].as_str().unwrap_or_default());
    let links = holdfast_e2e::home::ok(
        std::process::Command::new("ip").args(["-netns", &space, "-o", "link", "show", "type", "tun"]),
    )?;
    let mut found: Vec<String> = links.lines().map(str::to_owned).collect();
    let pods = home.path().join(format!("nodes/{node}/pods"));
    let mut below = vec![pods];
    while let Some(dir) = below.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.contains("sock") || name.starts_with("memory") || name.starts_with("control") {
                found.push(entry.path().display().to_string());
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                below.push(entry.path());
            }
        }
    }
    let words = format!("/{node}/pods/");
    found.extend(home.pids(&[&words]).iter().map(|pid| format!("process {pid}")));
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    found.extend(mounts.lines().filter(|line| line.contains(&words)).map(str::to_owned));
    Ok(found)
}

// MM-O1 MM-O27 MM-S2 MM-O21 MM-S6. Parts of row O13.
#[test]
fn evict_moves_a_guest_that_does_not_notice() -> Result<()> {
    let home = Home::up(3)?;
    create_vms(&home, &["linux-vm"], "")?;
    let guest = wait_ready(&home, "linux-vm")?;
    let boot = guest.boot_id()?;
    guest.run("dd if=/dev/urandom of=/dev/shm/memory bs=1M count=32 2>/dev/null")?;
    let sum = guest.run("sha256sum /dev/shm/memory")?;
    let mut counter = guest.counter()?;
    counter.goes_on(5, SOON)?;

    let source = node_of(&home, "linux-vm");
    let watch = Watch::start(&home, &["get", "vm", "-w"])?;
    home.apply(&manifests::vmop("migrate-linux-vm-1", "linux-vm", "Evict"))?;
    vmop_phase(&home, "migrate-linux-vm-1", "Completed")?;
    let target = node_of(&home, "linux-vm");
    ensure!(target != source && !target.is_empty(), "from {source} to {target}");

    // The session lives on: no number lost, none twice.
    counter.goes_on(20, s(20))?;
    ensure!(guest.boot_id()? == boot, "the guest has booted again");
    ensure!(guest.run("sha256sum /dev/shm/memory")? == sum, "memory differs");
    ensure!(guest.run("sudo sh -c 'echo still > /root/f && sync && cat /root/f'")? == "still", "disk");

    // The seeds' output: Running (old), Migrating (old), Running (new), one address.
    wait_for("the watch shows the new node", SOON, || {
        let lines = watch.lines();
        if lines.last().is_some_and(|l| l.contains("Running") && l.contains(&target)) {
            Ok(())
        } else {
            Err(lines.join("\n"))
        }
    })?;
    let lines: Vec<String> = watch.lines().split_off(1);
    ensure!(lines.iter().all(|l| l.contains(&guest.address)), "an address changed:\n{}", lines.join("\n"));
    let phases = watch.column("PHASE");
    ensure!(phases == ["Running", "Migrating", "Running"], "{phases:?}");
    let migrating = lines.iter().filter(|l| l.contains("Migrating"));
    ensure!(migrating.clone().count() >= 1 && migrating.clone().all(|l| l.contains(&source)));

    // Nothing runs on the source any more: one QEMU in all, and nothing of the VM is left there.
    wait_for("one QEMU", SOON, || {
        let all = home.pids(&["qemu-system-x86_64"]);
        if all.len() == 1 { Ok(()) } else { Err(format!("{all:?}")) }
    })?;
    ensure!(!traces(&home, &target)?.is_empty(), "the target has traces of the VM");
    wait_for("no trace of the VM on its source", SOON, || match traces(&home, &source) {
        Ok(all) if all.is_empty() => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    let state = home.get("vm linux-vm").unwrap_or_default()["status"]["migrationState"].clone();
    ensure!(state["result"] == "Succeeded" && state["source"]["node"] == source.as_str(), "{state}");

    // MM-O21, then MM-O2: by command, back or on.
    home.k(&["delete", "vmop", "migrate-linux-vm-1"])?;
    ensure!(node_of(&home, "linux-vm") == target);
    home.d8(&["v", "evict", "linux-vm", "--wait"])?;
    ensure!(node_of(&home, "linux-vm") != target);
    counter.goes_on(20, s(20))?;
    ensure!(guest.boot_id()? == boot);
    home.end()
}

// The guest may have its provisioning disk open: it stays as it was at the start, on every node.
#[test]
fn a_guest_moves_after_its_cloud_init_secret_was_edited() -> Result<()> {
    let home = Home::up(2)?;
    let secret = |user_data: &str| {
        let text: String = user_data.lines().map(|line| format!("    {line}\n")).collect();
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: seed}}\n\
             type: provisioning.virtualization.deckhouse.io/cloud-init\n\
             stringData:\n  userData: |\n{text}"
        )
    };
    home.apply(&secret(manifests::USER_DATA))?;
    let vm = manifests::vm("v", "");
    let inline = vm.find("    type: UserData").zip(vm.find("  cpu: ")).expect("the manifest's provisioning");
    let by_reference = "    type: UserDataRef\n    userDataRef: {kind: Secret, name: seed}\n";
    let vm = format!("{}{by_reference}{}", &vm[..inline.0], &vm[inline.1..]);
    home.apply(&(manifests::demo_image() + &manifests::disk("v-root") + &vm))?;
    let guest = wait_ready(&home, "v")?;
    let boot = guest.boot_id()?;
    // The read-only one: the guest's kernel looks for disks in parallel and may name either of them sdb.
    let read = "sudo sh -c 'echo 3 > /proc/sys/vm/drop_caches; for disk in /sys/block/sd*; do \
                [ $(cat $disk/ro) = 0 ] || sha256sum /dev/${disk##*/}; done'";
    let (source, disk) = (node_of(&home, "v"), guest.run(read)?);
    ensure!(disk.lines().count() == 1, "not one read-only disk: {disk:?}");

    home.apply(&secret(&format!("{}hostname: edited\n", manifests::USER_DATA)))?;
    home.apply(&manifests::vmop("evict-v", "v", "Evict"))?;
    vmop_phase(&home, "evict-v", "Completed")?;
    ensure!(node_of(&home, "v") != source);
    ensure!(guest.boot_id()? == boot, "the guest has booted again");
    let now = guest.run(read)?;
    ensure!(now == disk, "the provisioning disk differs: {disk:?}, then {now:?}");
    home.end()
}

// MM-O16 MM-O17 MM-O25
#[test]
fn deleting_the_operation_calls_the_move_off() -> Result<()> {
    let home = Home::up(2)?;
    create_vms(&home, &["v"], "")?;
    let guest = wait_ready(&home, "v")?;
    let boot = guest.boot_id()?;
    let source = node_of(&home, "v");
    let mut counter = guest.counter()?;
    for round in 0..3 {
        let name = format!("evict-{round}");
        home.apply(&manifests::vmop(&name, "v", "Evict"))?;
        // Each round a little later in the move.
        let reached = ["Pending", "InProgress", "InProgress"][round];
        let _ = wait_for("the move has begun", s(5), || {
            let now = home.field(&format!("vmop {name}"), "/status/phase");
            if now == reached || now == "Completed" { Ok(()) } else { Err(now) }
        });
        if round == 2 {
            let _ = home.wait_phase("v", "Migrating", s(5));
        }
        home.k(&["delete", "vmop", &name])?;
        home.wait_gone(&format!("vmop {name}"), SOON)?;
        home.wait_phase("v", "Running", SOON)?;
        counter.goes_on(10, s(20))?;
        ensure!(guest.boot_id()? == boot);
        if node_of(&home, "v") != source {
            // It was over before the call-off: that is allowed (row O20), and the guest is unharmed.
            return Ok(());
        }
        wait_for("one launcher", SOON, || match launchers(&home, "v") {
            Ok(l) if l.len() == 1 => Ok(()),
            other => Err(format!("{other:?}")),
        })?;
    }
    home.apply(&manifests::vmop("evict-last", "v", "Evict"))?;
    vmop_phase(&home, "evict-last", "Completed")?;
    ensure!(guest.boot_id()? == boot && node_of(&home, "v") != source);
    home.end()
}
