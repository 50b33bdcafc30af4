//! What several chapters need: VMs that run, watches of `get vm -w`.

use std::io::{BufRead, BufReader};
use std::process::Child;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use holdfast_e2e::{Guest, Home, manifests, s, wait_for};

/// How long a guest may take to boot here: emulated, on a machine that builds and tests at the same time.
pub const BOOT: Duration = s(240);
/// How long anything without a boot in it may take.
pub const SOON: Duration = s(90);

/// Applies the demo image and this many VMs `vm-1`…, each with a disk of its own.
pub fn create_vms(home: &Home, names: &[&str], extra: &str) -> Result<()> {
    let mut all = manifests::demo_image();
    for name in names {
        all += &manifests::disk(&format!("{name}-root"));
        all += &manifests::vm(name, extra);
    }
    home.apply(&all)?;
    Ok(())
}

/// Waits until the VM runs and its guest agent answers.
pub fn wait_ready(home: &Home, vm: &str) -> Result<Guest> {
    home.wait_phase(vm, "Running", BOOT)?;
    home.wait_condition(&format!("vm {vm}"), "AgentReady", "True", BOOT)?;
    let guest = guest_of(home, vm)?;
    guest.wait_ssh(BOOT)?;
    Ok(guest)
}

/// The guest at the address in the VM's status.
pub fn guest_of(home: &Home, vm: &str) -> Result<Guest> {
    let address = home.field(&format!("vm {vm}"), "/status/ipAddress");
    ensure!(!address.is_empty(), "vm {vm} has no address");
    Ok(Guest { address })
}

/// Node in the VM's status.
pub fn node_of(home: &Home, vm: &str) -> String {
    home.field(&format!("vm {vm}"), "/status/nodeName")
}

/// Names of the VM's launcher pods that are not final.
pub fn launchers(home: &Home, vm: &str) -> Result<Vec<String>> {
    let selector = format!("vm.kubevirt.internal.virtualization.deckhouse.io/name={vm}");
    let path = "jsonpath={range .items[*]}{.metadata.name} {.status.phase}{\"\\n\"}{end}";
    let out = home.k(&["get", "pods", "-l", &selector, "-o", path])?;
    let live = out.lines().filter(|l| !l.ends_with("Succeeded") && !l.ends_with("Failed"));
    Ok(live.filter_map(|l| l.split(' ').next()).map(str::to_owned).collect())
}

/// `d8 k get … -w` in the background.
pub struct Watch {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Watch {
    /// Starts it and waits for its first line.
    pub fn start(home: &Home, args: &[&str]) -> Result<Self> {
        let mut child = home.k_spawn(args)?;
        let out = child.stdout.take().context("no stdout")?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        let sink = lines.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                sink.lock().expect("not poisoned").push(line);
            }
        });
        let watch = Self { child, lines };
        wait_for("the first line of a watch", SOON, || {
            if watch.lines().is_empty() { Err("nothing".into()) } else { Ok(()) }
        })?;
        Ok(watch)
    }

    /// What it printed so far.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().expect("not poisoned").clone()
    }

    /// One column of all lines but the header, repeats removed.
    pub fn column(&self, title: &str) -> Vec<String> {
        let lines = self.lines();
        let Some(at) = lines.first().and_then(|h| h.find(title)) else { return vec![] };
        let mut cells: Vec<String> = lines[1..]
            .iter()
            .map(|l| l.get(at..).and_then(|rest| rest.split("   ").next()).unwrap_or("").trim().to_owned())
            .collect();
        cells.dedup();
        cells
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
