//! The moments of a move in which a guest changes hands, held open: what is called off, cut off, killed or
//! switched off there, and who runs the guest afterwards. The guest keeps a ledger of its life.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use holdfast_e2e::guest::Ledger;
use holdfast_e2e::home::ok;
use holdfast_e2e::probe::{Build, Monitor, Point};
use holdfast_e2e::{Guest, Home, manifests, s, wait_for};

use crate::support::*;

const ONE: &str = "virtlab-pt-1";
const TWO: &str = "virtlab-pt-2";

/// The QEMU processes of the VM on this node.
fn qemus_on(home: &Home, node: &str) -> Vec<i32> {
    let of_node = format!("/{node}/");
    let is_there = |pid: &i32| {
        std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default().contains(&of_node)
    };
    qemus(home, "v").into_iter().filter(is_there).collect()
}

/// The QEMU process of the VM on this node, once there is one.
fn qemu_on(home: &Home, node: &str) -> Result<i32> {
    wait_for(&format!("a QEMU on {node}"), SOON, || match qemus_on(home, node)[..] {
        [pid] => Ok(pid),
        ref other => Err(format!("{other:?}")),
    })
}

struct Stage<'a> {
    home: &'a Home,
    build: Build,
    guest: Guest,
    ledger: Ledger,
}

impl<'a> Stage<'a> {
    fn set(home: &'a Home, armed: &str) -> Result<Self> {
        let build = Build::install(home)?;
        build.arm(armed)?;
        create_vms(home, &["v"], "  runPolicy: AlwaysOn")?;
        let guest = wait_ready(home, "v")?;
        let ledger = Ledger::start(&guest)?;
        Ok(Self { home, build, guest, ledger })
    }

    fn source(&self) -> String {
        node_of(self.home, "v")
    }

    fn target(&self) -> &'static str {
        if self.source() == ONE { TWO } else { ONE }
    }

    /// Starts an Evict whose target waits at these points.
    fn evict(&self, vmop: &str, armed: &str) -> Result<()> {
        self.build.arm(armed)?;
        self.home.apply(&manifests::vmop(vmop, "v", "Evict")).map(drop)
    }

    /// Running on this node, one QEMU in all, the same boot with an unbroken ledger.
    fn runs_on(&mut self, node: &str) -> Result<()> {
        wait_for(&format!("the VM runs on {node}, once"), SOON, || {
            let now = (self.home.field("vm v", "/status/phase"), self.source(), qemus(self.home, "v").len());
            let is =
                now == ("Running".to_owned(), node.to_owned(), 1) && qemus_on(self.home, node).len() == 1;
            if is { Ok(()) } else { Err(format!("{now:?}")) }
        })
        .with_context(|| self.home.explain("vm v"))?;
        self.ledger.check()
    }

    fn ends(&self, vmop: &str, phase: &str) -> Result<()> {
        vmop_phase(self.home, vmop, phase).with_context(|| self.home.explain(&format!("vmop {vmop}")))
    }

    /// Moves to the other node without trouble; the launcher there waits at these points later.
    fn hop(&mut self, vmop: &str, armed: &str) -> Result<()> {
        let target = self.target();
        self.evict(vmop, armed)?;
        self.ends(vmop, "Completed")?;
        self.runs_on(target)
    }
}

fn signal(pid: i32, name: &str) -> Result<()> {
    ok(std::process::Command::new("kill").args([name, &pid.to_string()])).map(drop)
}

/// Holds for this long.
fn stays(what: &str, time: Duration, mut is: impl FnMut() -> Result<()>) -> Result<()> {
    let until = Instant::now() + time;
    while Instant::now() < until {
        is().with_context(|| what.to_owned())?;
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

#[test]
fn a_move_is_called_off_at_its_turning_points() -> Result<()> {
    let home = Home::up(2)?;
    let mut v = Stage::set(&home, "suspended=pause")?;

    // MM-F2: the source's agent stands still, so that nothing begins when the target listens.
    let (source, target) = (v.source(), v.target());
    let words = format!(" agent --home {} --node {source}", home.path().display());
    let agent = *home.pids(&[&words]).first().context("the source's agent")?;
    signal(agent, "-STOP")?;
    v.evict("listening", "")?;
    home.wait_field("migration vmop-listening", "/status/target/listening", "true", SOON)?;
    home.kill9(qemu_on(&home, target)?)?;
    signal(agent, "-CONT")?;
    v.ends("listening", "Failed")?;
    v.runs_on(&source)?;

    // MM-O19: the guest stands still on its source, and the operation is deleted.
    let qemu = qemu_on(&home, &source)?;
    let point = Point::of(qemu, "suspended")?;
    let mut monitor = Monitor::connect(qemu)?;
    v.evict("suspended", "")?;
    point.reached(SOON)?;
    ensure!(monitor.status()? == "finish-migrate", "{}", monitor.status()?);
    home.k(&["delete", "vmop", "suspended", "--wait=false"])?;
    wait_for("the call-off is known", SOON, || {
        let abort = home.field("migration vmop-suspended", "/status/abort/reason");
        if abort.is_empty() { Err(home.field("migration vmop-suspended", "/status")) } else { Ok(()) }
    })?;
    let released = Instant::now();
    point.pass()?;
    wait_for("the guest goes on", SOON, || match monitor.status() {
        Ok(now) if now == "running" => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    ensure!(released.elapsed() < s(1), "it stood still for {:?} more", released.elapsed());
    home.wait_gone("vmop suspended", SOON)?;
    v.runs_on(&source)?;
    ensure!(qemu_on(&home, &source)? == qemu);

    // MM-O20: too late, the right is given up; the deletion waits for the end.
    v.hop("hop-1", "gave_up=pause")?;
    let point = Point::of(qemu_on(&home, target)?, "gave_up")?;
    v.evict("too-late", "")?;
    point.reached(SOON)?;
    home.k(&["delete", "vmop", "too-late", "--wait=false"])?;
    stays("the deletion waits", s(3), || {
        ensure!(home.get("vmop too-late").is_some(), "the operation is gone");
        Ok(())
    })?;
    point.pass()?;
    home.wait_gone("vmop too-late", SOON)?;
    v.runs_on(&source)?;

    // MM-F28: the new QEMU dies a second after the target has taken over.
    let (boot, old) = (v.guest.boot_id()?, qemu_on(&home, &source)?);
    v.evict("crash", "")?;
    wait_for("the source has ended", SOON, || {
        if qemus(&home, "v").contains(&old) { Err("it is there".into()) } else { Ok(()) }
    })?;
    std::thread::sleep(s(1));
    home.kill9(qemu_on(&home, target)?)?;
    v.ends("crash", "Completed")?;
    let guest = wait_ready(&home, "v")?;
    ensure!(guest.boot_id()? != boot && qemus(&home, "v").len() == 1);
    Ok(())
}

#[test]
fn a_node_is_lost_while_a_guest_changes_hands() -> Result<()> {
    let home = Home::up(2)?;
    let mut v = Stage::set(&home, "")?;

    // MM-F8: COMMIT has arrived; before the target's word can go back its node is cut off for a minute.
    let (source, target) = (v.source(), v.target());
    v.evict("cut", "continuing=pause,completed=pause")?;
    let point = Point::of(qemu_on(&home, target)?, "continuing")?;
    point.reached(SOON)?;
    home.holdfast(&["node", "cut", target])?;
    point.pass()?;
    let old = qemu_on(&home, &source)?;
    let mut left = Monitor::connect(old)?;
    let mut arrived = Monitor::connect(qemu_on(&home, target)?)?;
    wait_for("the guest goes on at the target", SOON, || match arrived.status() {
        Ok(now) if now == "running" => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    stays("with the target cut off", s(60), || {
        ensure!(left.status()? == "postmigrate" && left.told("RESUME") == 0, "the source runs again");
        ensure!(arrived.status()? == "running", "the target does not run");
        ensure!(qemus(&home, "v").len() == 2, "{:?}", qemus(&home, "v"));
        ensure!(
            home.field("vm v", "/status/phase") == "Migrating",
            "{}",
            home.field("vm v", "/status/phase")
        );
        Ok(())
    })?;
    home.holdfast(&["node", "heal", target])?;
    v.ends("cut", "Completed")?;
    v.runs_on(target)?;

    // MM F14, as far as there is no fencing: all is loaded and no COMMIT has left when the source's node
    // loses its power. Nothing runs until that node is back under another boot id, which is the proof.
    let boot = v.guest.boot_id()?;
    let (lost, other) = (target, source.as_str());
    let point = Point::of(qemu_on(&home, lost)?, "completed")?;
    v.evict("power", "")?;
    point.reached(SOON)?;
    home.holdfast(&["node", "kill", lost])?;
    let mut loaded = Monitor::connect(qemu_on(&home, other)?)?;
    stays("without a proof", s(20), || {
        ensure!(qemus(&home, "v").len() == 1, "{:?}", qemus(&home, "v"));
        ensure!(loaded.status()? == "paused" && loaded.told("RESUME") == 0, "the target runs");
        Ok(())
    })?;
    home.holdfast(&["node", "start", lost])?;
    v.ends("power", "Failed")?;
    ensure!(loaded.told("RESUME") == 0, "the target ran");
    let guest = wait_ready(&home, "v")?;
    ensure!(guest.boot_id()? != boot && qemus(&home, "v").len() == 1, "{:?}", qemus(&home, "v"));
    v.ledger = Ledger::start(&guest)?;
    v.guest = guest;

    // MM-F31: COMMIT has arrived, nothing is written yet, and the source's node loses its power.
    let (source, target) = (v.source(), v.target());
    v.evict("arrived", "continuing=pause")?;
    let point = Point::of(qemu_on(&home, target)?, "continuing")?;
    point.reached(SOON)?;
    home.holdfast(&["node", "kill", &source])?;
    point.pass()?;
    v.ends("arrived", "Completed")?;
    v.runs_on(target)?;
    stays("no second copy is started", s(15), || {
        let pods = launchers(&home, "v")?;
        ensure!(qemus(&home, "v").len() == 1, "{:?}, {pods:?}", qemus(&home, "v"));
        Ok(())
    })?;
    home.holdfast(&["node", "start", &source])?;
    v.runs_on(target)
}
