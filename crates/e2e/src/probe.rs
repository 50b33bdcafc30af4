//! Ways into a move that users do not have: a launcher that waits at named points, a second monitor of each
//! QEMU, a link that carries less or nothing. All of it from outside: the platform under test is the usual one.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::home::{Home, ok, programs};
use crate::{s, wait_for};

/// Tag of the launcher image that [`Build::install`] makes.
const TAG: &str = "probed";

/// A build of the launcher that reads its fault points from a file, with a QEMU that has one more monitor.
#[derive(Debug)]
pub struct Build {
    dir: PathBuf,
}

impl Build {
    /// Puts it into the home and makes it what VMs start with.
    pub fn install(home: &Home) -> Result<Self> {
        let dir = home.path().join("firmware").join(TAG);
        std::fs::create_dir_all(&dir)?;
        std::fs::copy(programs().join("holdfast-launcher"), dir.join("launcher"))?;
        let scripts = [
            (
                "holdfast-launcher",
                "HOLDFAST_FAULTS=$(cat /build/faults) HOLDFAST_FAULTS_DIR=/var/run/holdfast/run \
                 exec /build/launcher \"$@\"",
            ),
            (
                "qemu-system-x86_64",
                "exec /usr/bin/qemu-system-x86_64 \"$@\" \
                 -qmp unix:/var/run/holdfast/run/probe.sock,server=on,wait=off",
            ),
        ];
        for (name, line) in scripts {
            let path = dir.join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{line}\n"))?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
        }
        let build = Self { dir };
        build.arm("")?;
        set(home, &json!({ "launcherImage": format!("holdfast/launcher:{TAG}") }))?;
        Ok(build)
    }

    /// Sets the fault points of launchers that start from now on: `gave_up=pause`.
    pub fn arm(&self, faults: &str) -> Result<()> {
        Ok(std::fs::write(self.dir.join("faults"), faults)?)
    }
}

/// Changes settings of the platform; null takes one away.
pub fn set(home: &Home, settings: &Value) -> Result<()> {
    let patch = json!({ "spec": { "settings": settings } }).to_string();
    home.k(&["patch", "moduleconfig", "virtualization", "--type=merge", "-p", &patch]).map(drop)
}

/// The `run` volume of the launcher that has this QEMU, as this machine sees it.
fn run_dir(qemu: i32) -> PathBuf {
    PathBuf::from(format!("/proc/{qemu}/root/var/run/holdfast/run"))
}

/// A launcher that waits at a named point.
#[derive(Debug)]
pub struct Point {
    run: PathBuf,
    name: &'static str,
    /// Keeps the way open when QEMU is gone.
    _dir: std::fs::File,
}

impl Point {
    /// The point of the launcher with this QEMU.
    pub fn of(qemu: i32, name: &'static str) -> Result<Self> {
        use std::os::fd::AsRawFd;
        let dir = std::fs::File::open(run_dir(qemu)).context("the launcher's directory")?;
        let run = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
        Ok(Self { run, name, _dir: dir })
    }

    /// Waits until the launcher is there.
    pub fn reached(&self, limit: Duration) -> Result<()> {
        let file = self.run.join(format!("{}.reached", self.name));
        wait_for(&format!("the launcher is at {}", self.name), limit, || {
            if file.exists() { Ok(()) } else { Err("not yet".into()) }
        })
    }

    /// Lets it go on.
    pub fn pass(&self) -> Result<()> {
        Ok(std::fs::write(self.run.join(format!("{}.go", self.name)), "")?)
    }

    /// Whether the launcher has written this record.
    pub fn has_record(&self, name: &str) -> bool {
        self.run.join(name).exists()
    }
}

/// The second monitor of a QEMU.
#[derive(Debug)]
pub struct Monitor {
    stream: BufReader<UnixStream>,
    events: Vec<Value>,
}

impl Monitor {
    /// Connects; one client at a time.
    pub fn connect(qemu: i32) -> Result<Self> {
        // The path through /proc may be longer than a socket's address: enter by the directory.
        use std::os::fd::AsRawFd;
        let dir = std::fs::File::open(run_dir(qemu)).context("the launcher's directory")?;
        let path = format!("/proc/self/fd/{}/probe.sock", dir.as_raw_fd());
        let stream = UnixStream::connect(Path::new(&path)).context("QEMU's second monitor")?;
        stream.set_read_timeout(Some(s(60)))?;
        let mut monitor = Self { stream: BufReader::new(stream), events: Vec::new() };
        monitor.read()?;
        monitor.ask("qmp_capabilities")?;
        Ok(monitor)
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        ensure!(self.stream.read_line(&mut line)? > 0, "QEMU has ended");
        Ok(serde_json::from_str(&line)?)
    }

    /// Runs a command without arguments.
    pub fn ask(&mut self, command: &str) -> Result<Value> {
        writeln!(self.stream.get_mut(), "{}", json!({ "execute": command }))?;
        loop {
            let said = self.read()?;
            match said.get("event") {
                Some(_) => self.events.push(said),
                None => {
                    ensure!(said.get("return").is_some(), "{command}: {said}");
                    return Ok(said["return"].clone());
                }
            }
        }
    }

    /// How often QEMU has told of this since the connection, as far as answers have brought it.
    pub fn told(&self, event: &str) -> usize {
        self.events.iter().filter(|e| e["event"] == event).count()
    }

    /// `query-status`.
    pub fn status(&mut self) -> Result<String> {
        Ok(self.ask("query-status")?["status"].as_str().unwrap_or_default().to_owned())
    }

    /// How much the guest is slowed down, percent.
    pub fn throttle(&mut self) -> Result<u64> {
        Ok(self.ask("query-migrate")?["cpu-throttle-percentage"].as_u64().unwrap_or_default())
    }
}

/// The link into a node, with less than the usual rate. Dropping it lifts the cap.
#[derive(Debug)]
pub struct Cap {
    link: String,
}

impl Cap {
    /// Lets this many bytes a second into the node.
    pub fn set(home: &Home, node: &str, bytes_s: u64) -> Result<Self> {
        let facts = home.facts()?;
        let nodes = facts["nodes"].as_array().cloned().unwrap_or_default();
        let index = nodes.iter().find(|n| n["name"] == node).context("no such node")?["index"].clone();
        let link = format!("hf{}n{index}", facts["id"].as_str().unwrap_or_default());
        let rate = format!("{}bit", bytes_s * 8);
        let words = ["qdisc", "replace", "dev", &link, "root", "tbf", "rate", &rate, "burst", "64kb"];
        ok(Command::new("tc").args(words).args(["latency", "100ms"]))?;
        Ok(Self { link })
    }
}

impl Drop for Cap {
    fn drop(&mut self) {
        // The link goes with its node.
        let _ = Command::new("tc").args(["qdisc", "del", "dev", &self.link, "root"]).output();
    }
}
