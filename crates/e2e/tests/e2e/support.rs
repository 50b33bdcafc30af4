//! What several chapters need: VMs that run, watches of `get vm -w`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::Child;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use holdfast_e2e::{Guest, Home, manifests, s, wait_for};
use serde_json::Value;

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

/// Label of nodes that [`pinned`] VMs may run on.
const ZONE: &str = "test/zone";

/// Lines of a VM's spec: it may run on nodes that were [`open_zone`]d only.
pub fn pinned() -> String {
    format!("  nodeSelector: {{{ZONE}: open}}")
}

/// Lets pinned VMs onto a node.
pub fn open_zone(home: &Home, node: &str) -> Result<()> {
    home.k(&["label", "node", node, &format!("{ZONE}=open")]).map(drop)
}

/// Keeps further pinned VMs off a node.
pub fn close_zone(home: &Home, node: &str) -> Result<()> {
    home.k(&["label", "node", node, &format!("{ZONE}-")]).map(drop)
}

/// Starts blank VMs on a node, the only one that is schedulable meanwhile.
pub fn blank_vms_on(home: &Home, node: &str, names: &[&str], extra: &str) -> Result<()> {
    let others: Vec<&str> = NODES.into_iter().filter(|other| *other != node).collect();
    home.k(&[&["cordon"], &others[..]].concat())?;
    home.apply(&names.iter().map(|name| manifests::blank_vm(name, extra)).collect::<String>())?;
    for name in names {
        home.wait_phase(name, "Running", SOON)?;
        ensure!(node_of(home, name) == node, "vm {name} is on {}", node_of(home, name));
    }
    home.k(&[&["uncordon"], &others[..]].concat()).map(drop)
}

/// Nodes of a home of three.
pub const NODES: [&str; 3] = ["virtlab-pt-1", "virtlab-pt-2", "virtlab-pt-3"];

/// Waits until an operation is in this phase.
pub fn vmop_phase(home: &Home, name: &str, wanted: &str) -> Result<()> {
    home.wait_field(&format!("vmop {name}"), "/status/phase", wanted, BOOT)
}

/// A condition of an object; null when it has none of that type.
pub fn condition(home: &Home, object: &str, kind: &str) -> Value {
    let object = home.get(object).unwrap_or_default();
    let list = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    list.into_iter().find(|c| c["type"] == kind).unwrap_or_default()
}

/// Waits until a condition has this status and reason.
pub fn wait_reason(home: &Home, object: &str, kind: &str, wanted: &str) -> Result<()> {
    wait_for(&format!("{object} {kind}={wanted}"), SOON, || {
        let now = condition(home, object, kind);
        let text = format!("{}/{}", text(&now["status"]), text(&now["reason"]));
        if text == wanted { Ok(()) } else { Err(now.to_string()) }
    })
    .with_context(|| home.explain(object))
}

/// Reason of an operation's condition `Completed`.
pub fn completed_reason(home: &Home, vmop: &str) -> String {
    text(&condition(home, &format!("vmop {vmop}"), "Completed")["reason"]).to_owned()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Asks for the eviction of a pod, as a drain does; `query` may make it a dry run.
pub fn evict_pod(home: &Home, pod: &str, query: &str) -> Result<String> {
    let body = serde_json::json!({
        "apiVersion": "policy/v1", "kind": "Eviction",
        "metadata": {"name": pod, "namespace": "default"},
    });
    let path = format!("/api/v1/namespaces/default/pods/{pod}/eviction{query}");
    home.k_stdin(&["create", "--raw", &path, "-f", "-"], &body.to_string())
}

/// Processes of a VM's QEMU.
pub fn qemus(home: &Home, vm: &str) -> Vec<i32> {
    home.pids(&["qemu-system-x86_64", &format!("guest=default_{vm},")])
}

/// Every state that the Migrations of a home went through, in the order of the API server's watch.
pub struct Moves {
    child: Child,
    events: Arc<Mutex<Vec<Value>>>,
}

/// What counts against the limits at one instant: source and target of each move that has a slot.
pub type Slots = Vec<(String, String)>;

impl Moves {
    /// Starts recording.
    pub fn record(home: &Home) -> Result<Self> {
        let mut child = home.k_spawn(&["get", "migrations", "-w", "-o", "json", "--output-watch-events"])?;
        let out = child.stdout.take().context("no stdout")?;
        let events = Arc::new(Mutex::new(Vec::new()));
        let sink = events.clone();
        std::thread::spawn(move || {
            let objects = serde_json::Deserializer::from_reader(BufReader::new(out)).into_iter::<Value>();
            for event in objects.map_while(Result::ok) {
                sink.lock().expect("not poisoned").push(event);
            }
        });
        Ok(Self { child, events })
    }

    /// The slots in use after each event.
    pub fn slots(&self) -> Vec<Slots> {
        let mut moves: BTreeMap<String, Value> = BTreeMap::new();
        let mut all = Vec::new();
        for event in self.events.lock().expect("not poisoned").iter() {
            let object = &event["object"];
            let name = text(&object["metadata"]["name"]).to_owned();
            match event["type"] == "DELETED" {
                true => drop(moves.remove(&name)),
                false => drop(moves.insert(name, object["status"].clone())),
            }
            let has_slot = |status: &&Value| {
                ["Placing", "Preparing", "Copying", "Switching"].contains(&text(&status["state"]))
            };
            let ends = |status: &Value| {
                (text(&status["source"]["node"]).to_owned(), text(&status["target"]["node"]).to_owned())
            };
            all.push(moves.values().filter(has_slot).map(ends).collect());
        }
        all
    }

    /// Fails when more moves than this had a slot at once, or two of them shared a source or a target.
    pub fn check(&self, limit: usize) -> Result<()> {
        let all = self.slots();
        ensure!(all.iter().any(|slots| !slots.is_empty()), "nothing moved");
        for slots in &all {
            let unique = |nodes: Vec<&String>| {
                let known: Vec<&&String> = nodes.iter().filter(|node| !node.is_empty()).collect();
                known.len() == known.iter().collect::<BTreeSet<_>>().len()
            };
            ensure!(slots.len() <= limit, "{} at once: {slots:?}", slots.len());
            ensure!(unique(slots.iter().map(|s| &s.0).collect()), "two out of one node: {slots:?}");
            ensure!(unique(slots.iter().map(|s| &s.1).collect()), "two into one node: {slots:?}");
        }
        Ok(())
    }
}

impl Drop for Moves {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `d8 k get … -w` in the background.
pub struct Watch {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Watch {
    /// Starts it and waits for its first line.
    pub fn start(home: &Home, args: &[&str]) -> Result<Self> {
        let watch = Self::begin(home, args)?;
        wait_for("the first line of a watch", SOON, || {
            if watch.lines().is_empty() { Err("nothing".into()) } else { Ok(()) }
        })?;
        Ok(watch)
    }

    /// Starts it before there is anything to see.
    pub fn begin(home: &Home, args: &[&str]) -> Result<Self> {
        let mut child = home.k_spawn(args)?;
        let out = child.stdout.take().context("no stdout")?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        let sink = lines.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                sink.lock().expect("not poisoned").push(line);
            }
        });
        Ok(Self { child, lines })
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
