//! A VM from an image: phases, columns, address, cloud-init, agent, SSH, deletion without a trace.

use anyhow::{Result, ensure};
use holdfast_e2e::home::contains;
use holdfast_e2e::{Home, manifests, wait_for};

use crate::support::*;

const QUICKSTART: &str = include_str!("../../../../examples/quickstart.yaml");

// VL-L1 VL-N2 VL-G2 VL-X1 VL-L15
#[test]
fn quickstart_runs_and_leaves_nothing() -> Result<()> {
    let home = Home::up(2)?;
    let watch = Watch::begin(&home, &["get", "vm", "-w"])?;
    home.apply(QUICKSTART)?;
    let guest = wait_ready(&home, "linux-vm")?;

    let phases = watch.column("PHASE");
    let order: Vec<&str> = phases.iter().map(String::as_str).filter(|p| !p.is_empty()).collect();
    ensure!(
        order == ["Pending", "Starting", "Running"],
        "phases were {order:?}:\n{}",
        watch.lines().join("\n")
    );
    columns_are_the_seeds(&home)?;

    // VL-N2: automatic address, leased, attached.
    let address = guest.address.clone();
    ensure!(address.starts_with("10."), "{address} is not from virtualMachineCIDRs");
    let lease = home.field(&format!("vmipl ip-{}", address.replace('.', "-")), "/status/phase");
    ensure!(lease == "Bound", "the lease is {lease}");
    ensure!(guest.run("ip -4 addr show dev eth0")?.contains(&address), "the guest has another address");

    // Provisioning: hostname, files, commands, hashed password, sudo.
    ensure!(guest.run("hostname")? == "linux-vm");
    contains(&guest.run("cat /etc/motd")?, "This guest runs on Holdfast.")?;
    ensure!(!guest.run("cloud-init status --wait >/dev/null; sudo cat /var/log/first-boot")?.is_empty());

    // VL-G2 AP-14: the eight facts of the guest's system.
    let vm = home.get("vm linux-vm").unwrap_or_default();
    for key in
        ["id", "name", "prettyName", "version", "versionId", "kernelRelease", "kernelVersion", "machine"]
    {
        let value = &vm["status"]["guestOSInfo"][key];
        ensure!(value.as_str().is_some_and(|v| !v.is_empty()), "guestOSInfo.{key} is {value}");
    }
    // VL-X1
    ensure!(launchers(&home, "linux-vm")?.len() == 1);
    contains(&home.k(&["describe", "vm", "linux-vm"])?, "Phase:")?;
    events_tell_the_story(&home)?;

    // VL-L15: gone, and nothing of it is left on any node.
    ensure!(!home.pids(&["holdfast-launcher"]).is_empty(), "no launcher was seen");
    home.k(&["delete", "vm", "linux-vm"])?;
    wait_for("no launcher process is left", SOON, || {
        let left = home.pids(&["qemu-system-x86_64"]);
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })?;
    home.wait_condition("vd linux-vm-root", "InUse", "False", SOON)?;
    wait_for("the lease is released", SOON, || {
        match home.field(&format!("vmipl ip-{}", address.replace('.', "-")), "/status/phase").as_str() {
            "Released" => Ok(()),
            other => Err(other.to_owned()),
        }
    })?;
    home.k(&["delete", "vd,cvi", "--all"])?;
    wait_for("no volume is left", SOON, || {
        let left = std::fs::read_dir(home.path().join("storage/shared")).map(|d| d.count()).unwrap_or(0);
        if left == 0 { Ok(()) } else { Err(format!("{left} below storage/shared")) }
    })?;
    // Purging the home then leaves no process, link, namespace, table or mount: the harness checks it.
    home.end()
}

fn columns_are_the_seeds(home: &Home) -> Result<()> {
    let titles = |args: &[&str]| -> Result<Vec<String>> {
        let out = home.k(args)?;
        let head = out.lines().next().unwrap_or_default().split("   ").map(str::trim);
        Ok(head.filter(|t| !t.is_empty()).map(str::to_owned).collect())
    };
    ensure!(titles(&["get", "vm"])? == ["NAME", "PHASE", "NODE", "IPADDRESS", "AGE"]);
    let wide = titles(&["get", "vm", "-o", "wide"])?;
    let wanted = [
        "NAME",
        "PHASE",
        "CORES",
        "COREFRACTION",
        "MEMORY",
        "NEED RESTART",
        "AGENT",
        "MIGRATABLE",
        "NODE",
        "IPADDRESS",
        "AGE",
    ];
    ensure!(wide == wanted, "{wide:?}");
    ensure!(home.k(&["get", "vm", "linux-vm", "-o", "jsonpath={.status.phase}"])? == "Running");
    Ok(())
}

fn events_tell_the_story(home: &Home) -> Result<()> {
    let events = home.k(&["get", "events", "--field-selector", "involvedObject.name=linux-vm"])?;
    contains(&events, "Started")
}

// VL-L2 VL-L3
#[test]
fn a_vm_waits_for_its_disk_and_two_vms_reach_each_other() -> Result<()> {
    let home = Home::up(2)?;
    home.apply(&format!("{}{}", manifests::demo_image(), manifests::vm("a", "")))?;
    home.wait_condition("vm a", "BlockDevicesReady", "False", SOON)?;
    ensure!(home.field("vm a", "/status/phase") == "Pending");
    ensure!(launchers(&home, "a")?.is_empty(), "a launcher was created without a disk");
    home.apply(&manifests::disk("a-root"))?;
    let a = wait_ready(&home, "a")?;

    home.apply(&(manifests::disk("b-root") + &manifests::vm("b", "")))?;
    let b = wait_ready(&home, "b")?;
    ensure!(a.address != b.address);
    // SSH from one VM to the other, by key, without a person.
    a.run("dropbearkey -t ed25519 -f /tmp/key >/dev/null 2>&1")?;
    let key = a.run("dropbearkey -y -f /tmp/key | grep ^ssh-")?;
    b.run(&format!("mkdir -p ~/.ssh && chmod 700 ~/.ssh && echo '{key}' > ~/.ssh/authorized_keys"))?;
    let banner = a.run(&format!("(sleep 2) | nc -w 5 {} 22 | head -c 7", b.address))?;
    ensure!(banner == "SSH-2.0", "from a to b: {banner:?}");
    home.end()
}
