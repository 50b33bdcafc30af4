//! Moves over links that are slow, fall silent or go away, with a guest that keeps a ledger of its life.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use holdfast_e2e::guest::Ledger;
use holdfast_e2e::home::contains;
use holdfast_e2e::probe::{Build, Cap, Monitor, set};
use holdfast_e2e::{Guest, Home, manifests, s, wait_for};
use serde_json::json;

use crate::support::*;

const ONE: &str = "virtlab-pt-1";
const TWO: &str = "virtlab-pt-2";
/// What the links of these tests carry, bytes a second: a fraction of what the guest writes.
const SLOW: u64 = 8_000_000;

/// The VM of these tests, and where it is.
struct Stage<'a> {
    home: &'a Home,
    guest: Guest,
    ledger: Ledger,
}

impl<'a> Stage<'a> {
    fn set(home: &'a Home) -> Result<Self> {
        Build::install(home)?;
        let vm = manifests::vm("v", "").replace("192Mi", "1Gi");
        home.apply(&(manifests::demo_image() + &manifests::disk("v-root") + &vm))?;
        let guest = wait_ready(home, "v")?;
        let ledger = Ledger::start(&guest)?;
        // Something to carry: the copy takes some seconds over the slow link.
        guest.run("dd if=/dev/urandom of=/dev/shm/ballast bs=1M count=32 2>/dev/null")?;
        Ok(Self { home, guest, ledger })
    }

    fn source(&self) -> String {
        node_of(self.home, "v")
    }

    fn target(&self) -> &'static str {
        if self.source() == ONE { TWO } else { ONE }
    }

    fn qemu(&self) -> Result<i32> {
        let all = qemus(self.home, "v");
        ensure!(all.len() == 1, "QEMU processes: {all:?}");
        Ok(all[0])
    }

    /// Starts an Evict and waits until memory is being copied.
    fn begin(&self, vmop: &str, more: &str) -> Result<()> {
        self.home.apply(&manifests::vmop(vmop, "v", &format!("Evict{more}")))?;
        wait_for("memory is being copied", SOON, || {
            let state = self.home.field(&format!("migration vmop-{vmop}"), "/status/state");
            if state == "Copying" { Ok(()) } else { Err(state) }
        })
        .with_context(|| self.home.explain(&format!("vmop {vmop}")))
    }

    /// The operation failed for this reason (any if empty), and the guest is where and as it was.
    fn stayed(&mut self, vmop: &str, reason: &str, before: &(String, i32)) -> Result<()> {
        vmop_phase(self.home, vmop, "Failed").with_context(|| self.home.explain(&format!("vmop {vmop}")))?;
        let now = completed_reason(self.home, vmop);
        ensure!(
            reason.is_empty() || now == reason,
            "{}",
            condition(self.home, &format!("vmop {vmop}"), "Completed")
        );
        self.home.wait_phase("v", "Running", SOON)?;
        ensure!(self.source() == before.0, "it is on {}", self.source());
        wait_for("the target is gone", SOON, || match qemus(self.home, "v") {
            all if all == [before.1] => Ok(()),
            all => Err(format!("{all:?}")),
        })?;
        self.ledger.check()
    }

    fn before(&self) -> Result<(String, i32)> {
        Ok((self.source(), self.qemu()?))
    }

    /// Waits for the end of a move that goes through.
    fn arrived(&mut self, vmop: &str, from: &str) -> Result<()> {
        vmop_phase(self.home, vmop, "Completed")
            .with_context(|| self.home.explain(&format!("vmop {vmop}")))?;
        ensure!(self.source() != from, "it is still on {from}");
        wait_for("the source is gone", SOON, || self.qemu().map(drop).map_err(|e| e.to_string()))?;
        self.ledger.check()
    }
}

fn wait_waiting(home: &Home) -> Result<()> {
    wait_for("the API server answers", SOON, || {
        home.k(&["get", "ns"]).map(drop).map_err(|e| format!("{e:#}"))
    })
}

#[test]
fn moves_over_links_that_fall_silent() -> Result<()> {
    let home = Home::up(2)?;
    let mut v = Stage::set(&home)?;

    // MM-F22
    let (before, target) = (v.before()?, v.target());
    let cap = Cap::set(&home, target, SLOW)?;
    set(&home, &json!({ "liveMigration": { "progressTimeout": 8 } }))?;
    v.begin("silence", "")?;
    home.holdfast(&["node", "cut", target])?;
    vmop_phase(&home, "silence", "Failed")?;
    home.holdfast(&["node", "heal", target])?;
    v.stayed("silence", "NotConverging", &before)?;
    let message = condition(&home, "vmop silence", "Completed")["message"].to_string();
    contains(&message, "made no progress")?;
    set(&home, &json!({ "liveMigration": null }))?;

    // MM-F21
    v.begin("pause", "")?;
    home.holdfast(&["node", "cut", target])?;
    let healed = Instant::now() + s(3);
    while Instant::now() < healed {
        std::thread::sleep(Duration::from_millis(50));
    }
    home.holdfast(&["node", "heal", target])?;
    v.arrived("pause", &before.0)?;
    drop(cap);

    // MM-F20: told to end, the agent stays until the move is over.
    let (source, target) = (v.source(), v.target());
    let cap = Cap::set(&home, target, SLOW)?;
    let words = format!(" agent --home {} --node {source}", home.path().display());
    let agent = home.pids(&[&words]);
    ensure!(agent.len() == 1, "agents: {agent:?}");
    v.begin("termination", "")?;
    holdfast_e2e::home::ok(std::process::Command::new("kill").args(["-TERM", &agent[0].to_string()]))?;
    while home.field("vmop termination", "/status/phase") == "InProgress" {
        let is_there = home.pids(&[&words]).contains(&agent[0]);
        let state = home.field("migration vmop-termination", "/status/state");
        ensure!(is_there || state == "Done" || state == "Switching", "the agent left a move that is {state}");
    }
    v.arrived("termination", &source)?;
    wait_for("another agent", SOON, || match home.pids(&[&words]) {
        now if now.len() == 1 && now != agent => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    drop(cap);

    // MM-F18
    let (source, target) = (v.source(), v.target());
    let cap = Cap::set(&home, target, SLOW)?;
    v.begin("no-api", "")?;
    let api = home.pids(&[" kubelith --home"]);
    ensure!(api.len() == 1, "API servers: {api:?}");
    let signal = |name: &str| {
        holdfast_e2e::home::ok(std::process::Command::new("kill").args([name, &api[0].to_string()])).map(drop)
    };
    signal("-STOP")?;
    let until = Instant::now() + s(60);
    wait_for("the source has ended", s(55), || v.qemu().map(drop).map_err(|e| e.to_string()))?;
    while Instant::now() < until {
        std::thread::sleep(Duration::from_millis(200));
    }
    signal("-CONT")?;
    wait_waiting(&home)?;
    v.arrived("no-api", &source)?;
    drop(cap);

    // MM-F15: the end of the connection may be told by the dying node, or be found out.
    let (before, target) = (v.before()?, v.target());
    let cap = Cap::set(&home, target, SLOW)?;
    set(&home, &json!({ "liveMigration": { "progressTimeout": 8 } }))?;
    v.begin("power-off", "")?;
    home.holdfast(&["node", "kill", target])?;
    drop(cap);
    v.stayed("power-off", "", &before)
}

/// Turns that the guest's writer makes in the best second of a few.
fn pace(guest: &Guest) -> Result<i64> {
    let read = || -> Result<i64> { Ok(guest.run("cat /dev/shm/turns")?.parse()?) };
    let mut best = 0;
    for _ in 0..4 {
        let (from, began) = (read()?, Instant::now());
        std::thread::sleep(s(2));
        let turns = read()? - from;
        best = best.max(turns * 1000 / i64::try_from(began.elapsed().as_millis())?);
    }
    Ok(best)
}

#[test]
fn a_guest_that_writes_faster_than_the_link() -> Result<()> {
    let home = Home::up(2)?;
    let mut v = Stage::set(&home)?;
    let (before, target) = (v.before()?, v.target());

    // MM-L11: a megabyte a second, twenty seconds for the one GiB.
    let cap = Cap::set(&home, target, 1_000_000)?;
    set(&home, &json!({ "liveMigration": { "completionTimeoutPerGiB": 20 } }))?;
    v.begin("too-slow", "")?;
    v.stayed("too-slow", "NotConverging", &before)?;
    let status = home.get("migration vmop-too-slow").unwrap_or_default()["status"].clone();
    let at = |pointer: &str| -> Result<i64> {
        let text = status.pointer(pointer).and_then(|v| v.as_str()).context("a time")?.to_owned();
        Ok(v.guest.run(&format!("date -u -d '{}' +%s", text[..19].replace('T', " ")))?.parse()?)
    };
    let took = at("/finishedAt")? - at("/source/startedAt")?;
    ensure!((18..=22).contains(&took), "{took} s: {status}");
    drop(cap);

    // Twenty-four megabytes, none of them zero, over and over, as fast as it can: three seconds of the link.
    v.guest.run(
        "cat > write <<'EOF'\n\
         n=0; while :; do dd if=/dev/shm/ballast of=/dev/shm/w bs=64k count=384 conv=notrunc 2>/dev/null; \
         n=$((n+1)); echo $n > /dev/shm/turns; done\n\
         EOF\n\
         (setsid sh write > /dev/null 2>&1 < /dev/null &)",
    )?;
    wait_for("the guest writes", SOON, || v.guest.run("cat /dev/shm/turns").map_err(|e| format!("{e:#}")))?;
    let usual = pace(&v.guest)?;
    let mut monitor = Monitor::connect(v.qemu()?)?;

    // MM-L4
    let _cap = Cap::set(&home, target, SLOW)?;
    set(&home, &json!({ "liveMigration": { "completionTimeoutPerGiB": 75 } }))?;
    v.begin("spared", "")?;
    let parameters = monitor.ask("query-migrate-parameters")?;
    ensure!(
        parameters["max-bandwidth"] == 625_000_000 && parameters["downtime-limit"] == 100,
        "{parameters}"
    );

    // MM-P13
    wait_reason(&home, "vmop spared", "Completed", "False/NotConverging")?;
    let message = condition(&home, "vmop spared", "Completed")["message"].to_string();
    contains(&message, "create one with force: true")?;
    let during = pace(&v.guest)?;
    ensure!(during * 2 >= usual, "{usual} turns a second before, {during} during the move");
    ensure!(monitor.throttle()? == 0 && monitor.told("STOP") == 0, "the guest was slowed down");
    v.stayed("spared", "NotConverging", &before)?;

    // MM-O18: called off under load; the guest is not stopped for a moment.
    set(&home, &json!({ "liveMigration": null }))?;
    v.begin("called-off", "")?;
    home.k(&["delete", "vmop", "called-off"])?;
    ensure!(home.get("vmop called-off").is_none());
    home.wait_field("vm v", "/status/migrationState/result", "Failed", SOON)?;
    ensure!(monitor.status()? == "running" && monitor.told("STOP") == 0, "the guest was stopped");
    home.wait_phase("v", "Running", SOON)?;
    ensure!(v.before()? == before, "it has moved");
    v.guest.run("pidof sh > /dev/null && test -e /dev/shm/turns")?;
    ensure!(pace(&v.guest)? > 0, "the load has ended");
    v.ledger.check()?;

    // MM-P14
    v.begin("forced", ", force: true")?;
    let mut throttles: Vec<u64> = Vec::new();
    while home.field("vmop forced", "/status/phase") == "InProgress" {
        // The source's QEMU ends with the move.
        let Ok(now) = monitor.throttle() else { break };
        if now > 0 && throttles.last() != Some(&now) {
            throttles.push(now);
        }
    }
    v.arrived("forced", &before.0)?;
    ensure!(throttles.starts_with(&[20, 30, 40]), "{throttles:?}");
    ensure!(throttles.windows(2).all(|pair| pair[1] > pair[0]), "{throttles:?}");
    ensure!(Monitor::connect(v.qemu()?)?.throttle()? == 0, "it is slowed down at the target");
    let after = pace(&v.guest)?;
    ensure!(after * 2 >= usual, "{usual} turns a second before, {after} after the move");
    v.ledger.check()
}
