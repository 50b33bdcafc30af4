//! Crashes: every process killed with -9, also in the middle of a move; nodes without power or network.
//! Guests keep running or are started again exactly once.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use holdfast_e2e::guest::Counter;
use holdfast_e2e::home::contains;
use holdfast_e2e::{Guest, Home, manifests, s, wait_for};

use crate::support::*;

/// How long a process that was killed may take to come back.
const BACK: Duration = s(20);

fn phase_of(home: &Home, vmop: &str) -> String {
    home.field(&format!("vmop {vmop}"), "/status/phase")
}

/// The QEMU processes of a VM on this node.
fn qemus_on(home: &Home, vm: &str, node: &str) -> Vec<i32> {
    let of_node = format!("/{node}/");
    let is_there = |pid: &i32| {
        std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default().contains(&of_node)
    };
    qemus(home, vm).into_iter().filter(is_there).collect()
}

/// The one QEMU process of a VM that runs and is not moving.
fn the_qemu(home: &Home, vm: &str) -> Result<i32> {
    let all = qemus(home, vm);
    ensure!(all.len() == 1, "QEMU processes of vm {vm}: {all:?}");
    Ok(all[0])
}

/// The process of a component, `None` while there is none.
fn process(home: &Home, component: &[&str]) -> Option<i32> {
    let program = format!(" {} --home", component[0]);
    let words: Vec<&str> = [program.as_str()].into_iter().chain(component[1..].iter().copied()).collect();
    home.pids(&words).first().copied()
}

/// kill -9 of a component; gives the pid it had.
fn kill(home: &Home, component: &[&str]) -> Result<i32> {
    let pid = process(home, component).with_context(|| format!("no process of {component:?}"))?;
    home.kill9(pid)?;
    Ok(pid)
}

/// Waits until a component has another process than the killed one.
fn wait_back(home: &Home, component: &[&str], killed: i32) -> Result<()> {
    wait_for(&format!("{component:?} runs again"), BACK, || match process(home, component) {
        Some(pid) if pid != killed => Ok(()),
        other => Err(format!("{other:?}, killed was {killed}")),
    })
}

/// Waits until the controller acts on something new: it has come back and has seen what there is.
fn wait_controller_acts(home: &Home, name: &str) -> Result<()> {
    wait_for("the API server takes an object", BACK, || {
        home.apply(&manifests::vmop(name, "no-such-vm", "Stop")).map(drop).map_err(|e| format!("{e:#}"))
    })?;
    home.wait_field(&format!("vmop {name}"), "/status/phase", "Failed", BACK)
}

/// The guest as it was: same QEMU, same boot, the session goes on.
struct Undisturbed<'a> {
    home: &'a Home,
    guest: Guest,
    counter: Counter,
    boot: String,
    qemu: i32,
    pods: Vec<String>,
}

impl<'a> Undisturbed<'a> {
    fn start(home: &'a Home, vm: &str) -> Result<Self> {
        let guest = wait_ready(home, vm)?;
        let (boot, qemu, pods) = (guest.boot_id()?, the_qemu(home, vm)?, launchers(home, vm)?);
        let mut counter = guest.counter()?;
        counter.goes_on(5, SOON)?;
        Ok(Self { home, guest, counter, boot, qemu, pods })
    }

    fn check(&mut self, after: &str) -> Result<()> {
        self.counter.goes_on(5, s(20)).with_context(|| format!("after {after}"))?;
        let now = the_qemu(self.home, "v")?;
        ensure!(now == self.qemu, "after {after}: QEMU is {now}, was {}", self.qemu);
        ensure!(self.guest.boot_id()? == self.boot, "after {after}: another boot");
        let pods = launchers(self.home, "v")?;
        ensure!(pods == self.pods, "after {after}: the launcher pods are {pods:?}");
        ensure!(self.home.field("vm v", "/status/phase") == "Running", "after {after}: not Running");
        Ok(())
    }
}

/// Kills kubelith while somebody creates objects, and fails when an accepted one is missing afterwards.
fn nothing_accepted_is_lost(home: &Home) -> Result<()> {
    let stop = AtomicBool::new(false);
    let accepted = std::thread::scope(|scope| -> Result<Vec<String>> {
        let writer = scope.spawn(|| {
            let mut accepted = Vec::new();
            for n in 0.. {
                let name = format!("accepted-{n}");
                if stop.load(SeqCst) {
                    break;
                }
                if home.k(&["create", "configmap", &name, "--from-literal=a=b"]).is_ok() {
                    accepted.push(name);
                }
            }
            accepted
        });
        let killed = wait_for("an object was accepted", BACK, || {
            home.get("configmap accepted-0").map(drop).ok_or_else(|| "none".into())
        })
        .and_then(|()| kill(home, &["kubelith"]));
        let back = killed.and_then(|pid| wait_back(home, &["kubelith"], pid));
        stop.store(true, SeqCst);
        let accepted = writer.join().expect("the writer does not panic");
        back.map(|()| accepted)
    })?;
    let listed = wait_for("the API server answers", BACK, || {
        home.k(&["get", "configmap", "-o", "name"]).map_err(|e| format!("{e:#}"))
    })?;
    let there: BTreeSet<&str> = listed.lines().filter_map(|l| l.strip_prefix("configmap/")).collect();
    let lost: Vec<&String> = accepted.iter().filter(|name| !there.contains(name.as_str())).collect();
    ensure!(lost.is_empty(), "accepted and lost: {lost:?} of {}", accepted.len());
    Ok(())
}

/// What VL-L18 says does not change: conditions with their times, and the events of the VM.
fn facts(home: &Home) -> Result<(String, String)> {
    let conditions = home.field("vm v", "/status/conditions");
    let path = "jsonpath={range .items[*]}{.reason} {.count}{\"\\n\"}{end}";
    let events = home.k(&["get", "events", "--field-selector", "involvedObject.name=v", "-o", path])?;
    Ok((conditions, events))
}

// VL-L18
#[test]
fn guests_outlive_every_process_of_the_platform() -> Result<()> {
    let home = Home::up(2)?;
    create_vms(&home, &["v"], "")?;
    let mut guest = Undisturbed::start(&home, "v")?;
    let source = node_of(&home, "v");

    // INV-10
    for _ in 0..2 {
        nothing_accepted_is_lost(&home)?;
    }
    guest.check("kubelith")?;

    // VL-L18
    wait_controller_acts(&home, "before")?;
    let before = facts(&home)?;
    let killed = kill(&home, &["controller"])?;
    wait_back(&home, &["controller"], killed)?;
    wait_controller_acts(&home, "after")?;
    guest.check("the controller")?;
    let after = facts(&home)?;
    ensure!(after == before, "was {before:?}, is {after:?}");

    for node in ["virtlab-pt-1", "virtlab-pt-2"] {
        for part in ["agent", "noderuntime"] {
            let component = [part, "--node", node];
            let killed = kill(&home, &component)?;
            wait_back(&home, &component, killed)?;
            guest.check(&format!("{part} of {node}"))?;
        }
    }

    // Everything at once, the supervisor first so that it brings nothing back.
    let supervisor = home.pids(&["holdfast-keeper supervise --home"]);
    ensure!(supervisor.len() == 1, "supervisors: {supervisor:?}");
    home.kill9(supervisor[0])?;
    for part in ["kubelith", "controller"] {
        kill(&home, &[part])?;
    }
    for node in ["virtlab-pt-1", "virtlab-pt-2"] {
        for part in ["agent", "noderuntime"] {
            kill(&home, &[part, "--node", node])?;
        }
    }
    guest.counter.goes_on(5, s(20)).context("with all processes of the platform gone")?;
    home.start(2)?;
    guest.check("everything")?;
    ensure!(node_of(&home, "v") == source);

    // All of it still works: both nodes take part in a move.
    home.apply(&manifests::vmop("evict", "v", "Evict"))?;
    home.wait_field("vmop evict", "/status/phase", "Completed", BOOT)?;
    guest.counter.goes_on(5, s(20))?;
    ensure!(node_of(&home, "v") != source && guest.guest.boot_id()? == guest.boot);
    home.end()
}

/// One crash inside a move.
struct Round<'a> {
    home: &'a Home,
    vmop: &'static str,
    boot: String,
    source: String,
    target: String,
}

impl<'a> Round<'a> {
    /// Starts an Evict and waits until the VM is Migrating with a QEMU on each of two nodes.
    fn start(home: &'a Home, vmop: &'static str) -> Result<Self> {
        let guest = guest_of(home, "v")?;
        // Memory that takes a while to move: random, and written again all the time. Two names, so that
        // it survives that the guest is killed in the middle of a write.
        guest.run(
            "test -e /dev/shm/b || dd if=/dev/urandom of=/dev/shm/a bs=1M count=160 2>/dev/null; \
             test -e /dev/shm/b || (while :; do cp /dev/shm/a /dev/shm/b; done) >/dev/null 2>&1 &",
        )?;
        wait_for("the guest writes its memory", SOON, || {
            guest.run("test -e /dev/shm/b").map_err(|e| format!("{e:#}"))
        })?;
        let (boot, source) = (guest.boot_id()?, node_of(home, "v"));
        let target = if source == "virtlab-pt-1" { "virtlab-pt-2" } else { "virtlab-pt-1" }.to_owned();
        home.apply(&manifests::vmop(vmop, "v", "Evict"))?;
        wait_for("the move is under way", SOON, || {
            let is_over = ["Completed", "Failed"].contains(&phase_of(home, vmop).as_str());
            let is_moving = !qemus_on(home, "v", &target).is_empty()
                && home.field("vm v", "/status/phase") == "Migrating";
            if is_over || is_moving { Ok(()) } else { Err(home.field("vm v", "/status/phase")) }
        })?;
        Ok(Self { home, vmop, boot, source, target })
    }

    /// kill -9 of the VM's QEMU on a node; it may have ended just before.
    fn kill_qemu(&self, node: &str) {
        for pid in qemus_on(self.home, "v", node) {
            let _ = self.home.kill9(pid);
        }
    }

    /// Waits until the operation has ended and the VM runs exactly once; the operation's phase.
    fn end(&self) -> Result<String> {
        let vmop = self.vmop;
        let phase = wait_for(&format!("vmop {vmop} ends"), SOON, || match phase_of(self.home, vmop) {
            end if end == "Completed" || end == "Failed" => Ok(end),
            other => Err(other),
        })
        .with_context(|| self.home.explain("vm v"))?;
        wait_once(self.home).with_context(|| format!("{vmop}: {phase}"))?;
        eprintln!("{vmop}: {phase}, same boot: {}", self.is_same_boot()?);
        Ok(phase)
    }

    fn is_same_boot(&self) -> Result<bool> {
        Ok(guest_of(self.home, "v")?.boot_id()? == self.boot)
    }

    /// As MM-F3 and MM-F19: failed, and the guest runs where it was.
    fn stayed(&self) -> Result<()> {
        ensure!(self.is_same_boot()?, "{}: the guest has booted again", self.vmop);
        ensure!(node_of(self.home, "v") == self.source, "{}: not on {}", self.vmop, self.source);
        Ok(())
    }
}

/// Running, one launcher, one QEMU, on the node of the status, and it stays so.
fn wait_once(home: &Home) -> Result<()> {
    let mut since = Instant::now();
    wait_for("the VM runs exactly once", BOOT, || {
        let (all, phase) = (qemus(home, "v"), home.field("vm v", "/status/phase"));
        let there = qemus_on(home, "v", &node_of(home, "v"));
        let is_once = phase == "Running" && all.len() == 1 && there == all;
        if !is_once {
            since = Instant::now();
        }
        if is_once && since.elapsed() > s(2) { Ok(()) } else { Err(format!("{phase}, QEMU {all:?}")) }
    })
    .with_context(|| home.explain("vm v"))?;
    let pods = launchers(home, "v")?;
    ensure!(pods.len() == 1, "launchers: {pods:?}");
    guest_of(home, "v")?.wait_ssh(BOOT)
}

#[test]
fn crashes_inside_a_move_leave_one_guest() -> Result<()> {
    let home = Home::up(2)?;
    let vm = manifests::vm("v", "").replace("192Mi", "640Mi");
    home.apply(&(manifests::demo_image() + &manifests::disk("v-root") + &vm))?;
    wait_ready(&home, "v")?;

    // MM-F3
    let round = Round::start(&home, "target-qemu")?;
    round.kill_qemu(&round.target);
    if round.end()? == "Failed" {
        round.stayed()?;
    }

    // MM-F19
    let round = Round::start(&home, "source-agent")?;
    let component = ["agent", "--node", round.source.as_str()];
    let killed = kill(&home, &component)?;
    wait_back(&home, &component, killed)?;
    if round.end()? == "Failed" {
        round.stayed()?;
    }
    ensure!(round.is_same_boot()?, "the guest has booted again");

    // MM-F16
    let round = Round::start(&home, "controller")?;
    let killed = kill(&home, &["controller"])?;
    wait_back(&home, &["controller"], killed)?;
    ensure!(round.end()? == "Completed", "{}", home.explain("vmop controller"));
    ensure!(round.is_same_boot()? && node_of(&home, "v") == round.target);

    // MM-F12
    let round = Round::start(&home, "source-qemu")?;
    round.kill_qemu(&round.source);
    let phase = round.end()?;
    ensure!(round.is_same_boot()? == (phase == "Completed"), "{phase}");

    // MM-F19: and the next one completes.
    let boot = guest_of(&home, "v")?.boot_id()?;
    home.apply(&manifests::vmop("next", "v", "Evict"))?;
    home.wait_field("vmop next", "/status/phase", "Completed", BOOT)?;
    wait_once(&home)?;
    ensure!(guest_of(&home, "v")?.boot_id()? == boot);
    home.end()
}

#[test]
fn a_node_without_network_or_power() -> Result<()> {
    let home = Home::up(2)?;
    create_vms(&home, &["v"], "")?;
    let mut guest = Undisturbed::start(&home, "v")?;
    let node = node_of(&home, "v");

    // Without network the guest runs on, and is found as it was.
    home.holdfast(&["node", "cut", &node])?;
    let watched = Instant::now();
    while watched.elapsed() < s(8) {
        ensure!(qemus(&home, "v") == [guest.qemu], "with the network cut: {:?}", qemus(&home, "v"));
        std::thread::sleep(Duration::from_millis(100));
    }
    home.holdfast(&["node", "heal", &node])?;
    guest.check("the cut")?;
    drop(guest.counter);

    // VL L19, shortened: without power nothing proves that the guest does not run, so no second one starts.
    home.holdfast(&["node", "kill", &node])?;
    wait_for("no QEMU is left on the node", s(5), || match qemus(&home, "v") {
        all if all.is_empty() => Ok(()),
        all => Err(format!("{all:?}")),
    })?;
    let watched = Instant::now();
    while watched.elapsed() < s(20) {
        ensure!(qemus(&home, "v").is_empty(), "started elsewhere without a proof");
        let pods = launchers(&home, "v")?;
        ensure!(pods == guest.pods, "launchers: {pods:?}");
        let vm = home.get("vm v").context("vm v is gone")?;
        ensure!(vm["status"]["nodeName"] == node.as_str(), "{}", vm["status"]);
        std::thread::sleep(Duration::from_millis(100));
    }

    // Another boot of the node is a proof.
    home.holdfast(&["node", "start", &node])?;
    wait_for("the VM has ended and starts anew", SOON, || match launchers(&home, "v") {
        Ok(pods) if pods.len() == 1 && pods != guest.pods => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .with_context(|| home.explain("vm v"))?;
    wait_once(&home)?;
    ensure!(guest_of(&home, "v")?.boot_id()? != guest.boot);
    let events = home.k(&["get", "events", "--field-selector", "involvedObject.name=v"])?;
    contains(&events, "after the loss of the node")?;
    ensure!(guest_of(&home, "v")?.address == guest.guest.address);
    home.end()
}
