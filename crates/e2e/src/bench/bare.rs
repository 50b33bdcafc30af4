//! QEMU without Holdfast, started with the arguments of a running guest: what the figures are compared with.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::home::ok;
use crate::s;

/// Arguments and files of a guest, so that it can be started again without the platform.
#[derive(Debug)]
pub struct Template {
    argv: Vec<String>,
    /// Small files of its working directory: provisioning image, UEFI variables.
    files: Vec<(String, Vec<u8>)>,
    /// Disks, held open: their paths are seen in the launcher's mount namespace only.
    disks: Vec<(String, File)>,
}

impl Template {
    /// Reads a running QEMU. Its disks are copied later, by [`Template::machine`], once it is gone.
    pub fn of(pid: i32) -> Result<Self> {
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let raw = std::fs::read(proc.join("cmdline")).context("QEMU is gone")?;
        let argv: Vec<String> =
            raw.split(|b| *b == 0).map(|a| String::from_utf8_lossy(a).into_owned()).collect();
        let mut template =
            Self { argv: argv[..argv.len() - 1].to_vec(), files: Vec::new(), disks: Vec::new() };
        for entry in std::fs::read_dir(proc.join("cwd"))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.file_type()?.is_file() && template.argv.iter().any(|a| a.ends_with(&format!("/{name}")))
            {
                template.files.push((name, std::fs::read(entry.path())?));
            }
        }
        for argument in &template.argv {
            let path = argument.split_once("filename=/").and_then(|(_, rest)| rest.split(',').next());
            // Read-only ones are firmware of the host.
            if let Some(path) = path.filter(|_| !argument.contains("read-only=on")) {
                let file = File::open(proc.join("root").join(path)).with_context(|| format!("/{path}"))?;
                template.disks.push((format!("/{path}"), file));
            }
        }
        ensure!(!template.disks.is_empty(), "no disk in {:?}", template.argv);
        Ok(template)
    }

    /// Value behind an option, such as `-accel`.
    pub fn option(&self, name: &str) -> &str {
        let at = self.argv.iter().position(|a| a == name);
        at.and_then(|i| self.argv.get(i + 1)).map_or("", String::as_str)
    }

    /// Copies the disks into `dir` and rewrites the arguments for the host.
    pub fn machine(self, dir: &Path) -> Result<Machine> {
        let mut argv = self.argv;
        for (n, (path, file)) in self.disks.iter().enumerate() {
            let copy = dir.join(format!("disk-{n}.img"));
            let from = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
            ok(Command::new("cp").arg("--sparse=always").arg("-L").arg(from).arg(&copy))?;
            for argument in &mut argv {
                *argument = argument
                    .replace(&format!("filename={path}"), &format!("filename={}", copy.to_string_lossy()));
            }
        }
        // Only the launcher needs the guest stopped at first; each start says itself whether it is a target.
        argv.retain(|a| a != "-S");
        if let Some(at) = argv.iter().position(|a| a == "-incoming") {
            argv.drain(at..at + 2);
        }
        for argument in argv.iter_mut().filter(|a| a.starts_with("tap,id=")) {
            let id = argument["tap,id=".len()..].split(',').next().unwrap_or("net0").to_owned();
            *argument = format!("user,id={id},restrict=on");
        }
        Ok(Machine { argv, files: self.files, dir: dir.to_owned(), started: 0.into() })
    }
}

/// A machine that can be started on the host.
#[derive(Debug)]
pub struct Machine {
    argv: Vec<String>,
    files: Vec<(String, Vec<u8>)>,
    dir: PathBuf,
    started: std::cell::Cell<u32>,
}

impl Machine {
    /// Starts QEMU and connects to its monitor.
    pub fn start(&self, incoming: bool) -> Result<Bare> {
        let n = self.started.get();
        self.started.set(n + 1);
        let dir = self.dir.join(format!("run-{n}"));
        std::fs::create_dir(&dir)?;
        for (name, content) in &self.files {
            std::fs::write(dir.join(name), content)?;
        }
        let log = dir.join("log");
        let mut command = Command::new(&self.argv[0]);
        command.args(&self.argv[1..]).current_dir(&dir).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(&log)?);
        // scripts/bench ends by it what an interrupted run left.
        command.args(["-pidfile", "pid"]);
        if incoming {
            command.args(["-incoming", "defer"]);
        }
        let begun = Instant::now();
        let child = command.spawn().with_context(|| format!("cannot start {}", self.argv[0]))?;
        let mut bare = Bare { child, qmp: None, begun, log };
        bare.connect(&dir.join("qmp.sock"))?;
        Ok(bare)
    }
}

/// A running QEMU; killed when dropped.
#[derive(Debug)]
pub struct Bare {
    child: Child,
    qmp: Option<BufReader<UnixStream>>,
    begun: Instant,
    log: PathBuf,
}

impl Bare {
    fn connect(&mut self, socket: &Path) -> Result<()> {
        let stream = loop {
            if let Ok(stream) = UnixStream::connect(socket) {
                break stream;
            }
            ensure!(self.child.try_wait()?.is_none(), "bare QEMU ended: {}", self.said());
            ensure!(self.begun.elapsed() < s(30), "bare QEMU opens no monitor: {}", self.said());
            std::thread::sleep(Duration::from_millis(1));
        };
        stream.set_read_timeout(Some(s(120)))?;
        self.qmp = Some(BufReader::new(stream));
        self.line()?;
        self.execute("qmp_capabilities", json!({}))?;
        Ok(())
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn line(&mut self) -> Result<Value> {
        let mut text = String::new();
        let qmp = self.qmp.as_mut().context("not connected")?;
        let read = qmp.read_line(&mut text);
        match read {
            Ok(n) if n > 0 => Ok(serde_json::from_str(&text)?),
            other => bail!("the monitor of bare QEMU is silent ({other:?}): {}", self.said()),
        }
    }

    /// Runs a QMP command; its `return`.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let mut text = json!({ "execute": command, "arguments": arguments }).to_string();
        text.push('\n');
        self.qmp.as_mut().context("not connected")?.get_mut().write_all(text.as_bytes())?;
        loop {
            let mut line = self.line()?;
            if let Some(error) = line.get("error") {
                bail!("{command}: {error}");
            }
            if line.get("return").is_some() {
                return Ok(line["return"].take());
            }
        }
    }

    /// Waits until `query-status` says running; time since QEMU was started.
    pub fn wait_running(&mut self) -> Result<Duration> {
        while self.execute("query-status", json!({}))?["status"] != "running" {
            ensure!(self.begun.elapsed() < s(120), "bare QEMU does not run");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(self.begun.elapsed())
    }

    /// Waits until the guest's agent has opened its port: the guest has booted.
    pub fn wait_agent(&mut self) -> Result<()> {
        loop {
            let event = self.line()?;
            if event["event"] == "VSERPORT_CHANGE" && event["data"]["open"] == true {
                return Ok(());
            }
        }
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a bare migration took.
#[derive(Clone, Copy, Debug)]
pub struct Moved {
    /// From `migrate` until the source says completed and the target runs.
    pub copy: Duration,
    /// The same, with the start of the target's QEMU before it.
    pub whole: Duration,
    /// Stop of the guest as QEMU measured it, milliseconds.
    pub downtime_ms: f64,
    /// Memory sent, bytes.
    pub sent_bytes: u64,
}

/// Moves the guest to a new QEMU over loopback TCP, with the capabilities and limits that Holdfast sets.
pub fn migrate(machine: &Machine, source: Bare, limits: &Value) -> Result<(Bare, Moved)> {
    let mut source = source;
    let begun = Instant::now();
    let mut target = machine.start(true)?;
    let converge = limits["autoConverge"] == true;
    target.execute("migrate-set-capabilities", capabilities(false, false))?;
    target.execute("migrate-incoming", json!({ "uri": "tcp:127.0.0.1:0" }))?;
    let port = target.execute("query-migrate", json!({}))?["socket-address"][0]["port"].clone();
    let port = port.as_str().context("the target tells no port")?.to_owned();
    source.execute("migrate-set-capabilities", capabilities(true, converge))?;
    let parameters = json!({ "max-bandwidth": limits["bandwidth"], "downtime-limit": limits["downtimeMs"] });
    source.execute("migrate-set-parameters", parameters)?;
    let copying = Instant::now();
    source.execute("migrate", json!({ "uri": format!("tcp:127.0.0.1:{port}") }))?;
    let mut continued = false;
    let end = loop {
        let now = source.execute("query-migrate", json!({}))?;
        match now["status"].as_str().unwrap_or_default() {
            "completed" => break now,
            "pre-switchover" if !continued => {
                continued = true;
                source.execute("migrate-continue", json!({ "state": "pre-switchover" }))?;
            }
            "failed" | "cancelled" => bail!("the bare migration failed: {now}; {}", target.said()),
            _ => std::thread::sleep(Duration::from_millis(1)),
        }
        ensure!(copying.elapsed() < s(120), "the bare migration does not end: {now}");
    };
    target.wait_running()?;
    let moved = Moved {
        copy: copying.elapsed(),
        whole: begun.elapsed(),
        downtime_ms: end["downtime"].as_f64().unwrap_or(f64::NAN),
        sent_bytes: end["ram"]["transferred"].as_u64().unwrap_or_default(),
    };
    Ok((target, moved))
}

fn capabilities(source: bool, converge: bool) -> Value {
    let on = |name: &str, state: bool| json!({ "capability": name, "state": state });
    json!({ "capabilities": [
        on("events", true),
        on("return-path", true),
        on("late-block-activate", true),
        on("pause-before-switchover", source),
        on("auto-converge", source && converge),
    ]})
}
