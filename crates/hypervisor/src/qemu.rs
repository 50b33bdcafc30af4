//! The driver of real QEMU processes.
//!
//! QEMU is a child of the calling thread and dies with it (`PR_SET_PDEATHSIG`), so call
//! [`Hypervisor::start`] from a thread that lives as long as the guest shall: in the launcher, the main
//! thread (spec hypervisor.md §8).

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use holdfast_sys::pidfd::PidFd;
use holdfast_sys::spawn::{Child, Command};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::argv::{self, MONITOR_OOB_SOCKET, MONITOR_SOCKET, Runtime};
use crate::definition::Definition;
use crate::port::{
    Event, Hypervisor, Machine, MigrateParams, MigrationInfo, MigrationStatus, ProcessExit, RunState,
    StartError, Started,
};
use crate::qmp::{self, Qmp, QmpError, RawEvent};

/// How long a new process may take until its monitors answer; 45..130 ms are usual.
const READY_LIMIT: Duration = Duration::from_secs(20);

/// How much of QEMU's standard error is kept for messages, lines.
const LAST_WORDS_LINES: usize = 12;

/// Starts QEMU processes.
#[derive(Debug, Clone)]
pub struct Qemu {
    /// The program, such as `/usr/bin/qemu-system-x86_64`.
    pub program: PathBuf,
}

/// A running QEMU process.
#[derive(Clone)]
pub struct QemuMachine {
    pid: u32,
    pidfd: Arc<PidFd>,
    words: Words,
    monitor: Qmp,
    emergency: Qmp,
}

impl Hypervisor for Qemu {
    type Machine = QemuMachine;

    async fn start(
        &self,
        d: &Definition,
        rt: &Runtime,
        tap: Option<OwnedFd>,
    ) -> Result<Started<QemuMachine>, StartError> {
        for socket in
            [MONITOR_SOCKET, MONITOR_OOB_SOCKET, argv::SERIAL_SOCKET, argv::AGENT_SOCKET, argv::VNC_SOCKET]
        {
            // A stale socket of an earlier attempt would be connected to instead of the new one.
            let _ = std::fs::remove_file(rt.run_dir.join(socket));
        }
        let rt = Runtime { tap_fd: tap.as_ref().map(AsRawFd::as_raw_fd), ..rt.clone() };
        let mut command = Command::new(&self.program)
            .args(argv::argv(d, &rt)?)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .no_new_privs()
            .no_core_dump()
            .death_signal(Signal::KILL);
        if let Some(tap) = tap {
            command.inherit(tap);
        }
        let spawn_error = |source| StartError::Spawn { program: self.program.display().to_string(), source };
        let mut process = Process::new(command.spawn().map_err(spawn_error)?).map_err(spawn_error)?;
        let connected = tokio::select! {
            biased;
            exit = process.ended() => return Err(StartError::Exited(exit)),
            connected = connect(&rt) => connected,
        };
        let (monitor, raw, emergency) = match connected {
            Ok(connected) => connected,
            Err(e) => {
                // Usually the monitor closed because QEMU ends: then its own words are the reason.
                let ended = tokio::time::timeout(Duration::from_secs(1), process.ended()).await;
                return Err(match ended {
                    Ok(exit) => StartError::Exited(exit),
                    Err(_) => StartError::NotReady(e.to_string()),
                });
            }
        };
        let (events_tx, events) = mpsc::unbounded_channel();
        let machine = QemuMachine {
            pid: process.pid,
            pidfd: process.pidfd.clone(),
            words: process.words.clone(),
            monitor,
            emergency,
        };
        tokio::spawn(forward(raw, events_tx, process));
        Ok(Started { machine, events })
    }
}

/// A QEMU process from spawn to reaping. Dropping it kills the process.
struct Process {
    pid: u32,
    pidfd: Arc<PidFd>,
    child: std::process::Child,
    words: Words,
    reader: Option<tokio::task::JoinHandle<()>>,
}

impl Process {
    fn new(child: Child) -> std::io::Result<Process> {
        let Child { id, pidfd, std: mut child } = child;
        let words = Words::default();
        let reader = match child.stderr.take() {
            Some(stderr) => {
                let stderr = pipe::Receiver::from_owned_fd(stderr.into())?;
                Some(tokio::spawn(words.clone().collect(stderr)))
            }
            None => None,
        };
        Ok(Process { pid: id.pid, pidfd: Arc::new(pidfd), child, words, reader })
    }

    fn kill(&self) {
        // It cannot fail: the process is our own child.
        let _ = self.pidfd.signal(Signal::KILL);
    }

    /// Waits for the end and reaps. Cancel safe.
    async fn ended(&mut self) -> ProcessExit {
        use std::os::unix::process::ExitStatusExt as _;
        // Asked only while QEMU starts and after it closed its monitor, so this polls for moments.
        while !self.pidfd.has_ended() {
            tokio::time::sleep(Duration::from_millis(4)).await;
        }
        let status = self.child.wait().ok();
        if let Some(reader) = self.reader.as_mut() {
            let _ = tokio::time::timeout(Duration::from_millis(500), reader).await;
        }
        ProcessExit {
            code: status.and_then(|s| s.code()),
            signal: status.and_then(|s| s.signal()),
            last_words: self.words.text(),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn connect(rt: &Runtime) -> std::io::Result<(Qmp, mpsc::UnboundedReceiver<RawEvent>, Qmp)> {
    let deadline = Instant::now() + READY_LIMIT;
    let (monitor, raw) = Qmp::connect(&rt.run_dir.join(MONITOR_SOCKET), deadline).await?;
    let (emergency, _) = Qmp::connect(&rt.run_dir.join(MONITOR_OOB_SOCKET), deadline).await?;
    Ok((monitor, raw, emergency))
}

/// The last lines of QEMU's standard error.
#[derive(Clone, Default)]
struct Words(Arc<Mutex<VecDeque<String>>>);

impl Words {
    async fn collect(self, stderr: pipe::Receiver) {
        let mut lines = BufReader::with_capacity(1 << 10, stderr).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            tracing::warn!(target: "qemu", "{line}");
            let mut kept = self.0.lock().expect("invariant: no panic while the lines are locked");
            if kept.len() == LAST_WORDS_LINES {
                kept.pop_front();
            }
            kept.push_back(strip_stamp(&line).to_owned());
        }
    }

    fn text(&self) -> String {
        let kept = self.0.lock().expect("invariant: no panic while the lines are locked");
        kept.iter().map(String::as_str).collect::<Vec<_>>().join("; ")
    }
}

/// Drops what QEMU puts in front of its messages: time stamp, program name, the argument at fault.
fn strip_stamp(line: &str) -> &str {
    let text = line.split_once("qemu-system-x86_64: ").map_or(line, |(_, text)| text);
    match text.split_once(": ") {
        Some((argument, rest)) if argument.starts_with('-') => rest,
        _ => text,
    }
}

async fn forward(
    mut raw: mpsc::UnboundedReceiver<RawEvent>,
    events: mpsc::UnboundedSender<Event>,
    mut process: Process,
) {
    // The monitor ends before or with the process; its last events must not be overtaken by the end.
    while let Some(event) = raw.recv().await {
        if let Some(event) = typed(&event) {
            let _ = events.send(event);
        }
    }
    let exit = process.ended().await;
    let _ = events.send(Event::Ended(exit));
}

/// Reads an event; those Holdfast has no use for are dropped.
fn typed(e: &RawEvent) -> Option<Event> {
    let text = |field: &str| e.data.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let flag = |field: &str| e.data.get(field).and_then(Value::as_bool).unwrap_or_default();
    Some(match e.name.as_str() {
        "SHUTDOWN" => Event::Shutdown { guest: flag("guest"), reason: text("reason") },
        "RESET" => Event::Reset { guest: flag("guest"), reason: text("reason") },
        "STOP" => Event::Stopped { at_us: e.at_us },
        "RESUME" => Event::Resumed,
        "GUEST_PANICKED" => Event::Panicked,
        "BLOCK_IO_ERROR" => Event::DiskError { reason: text("reason"), stopped: text("action") == "stop" },
        "VSERPORT_CHANGE" if text("id") == "agentport0" => Event::AgentPort { open: flag("open") },
        "MIGRATION" => Event::Migration(MigrationStatus::from_qemu(&text("status"))),
        "MIGRATION_PASS" => {
            Event::MigrationPass(e.data.get("pass").and_then(Value::as_u64).unwrap_or_default())
        }
        _ => return None,
    })
}

/// Capabilities that Holdfast sets explicitly before every move, because they persist in the process.
fn capabilities(auto_converge: bool, source: bool) -> Value {
    let on = |name: &str, state: bool| json!({ "capability": name, "state": state });
    json!({ "capabilities": [
        on("events", true),
        on("return-path", true),
        on("late-block-activate", true),
        on("pause-before-switchover", source),
        on("auto-converge", source && auto_converge),
        on("multifd", false),
        on("xbzrle", false),
        on("postcopy-ram", false),
    ]})
}

impl QemuMachine {
    async fn tell(&self, command: &str, arguments: Value) -> Result<(), QmpError> {
        self.monitor.execute(command, arguments).await.map(drop)
    }

    /// Runs any command on the first monitor: for tools and tests.
    pub async fn execute(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.monitor.execute(command, arguments).await
    }
}

impl Machine for QemuMachine {
    fn pid(&self) -> u32 {
        self.pid
    }

    fn version(&self) -> String {
        self.monitor.version().to_string()
    }

    fn last_words(&self) -> String {
        self.words.text()
    }

    async fn status(&self) -> Result<RunState, QmpError> {
        let reply = self.monitor.execute("query-status", Value::Null).await?;
        Ok(RunState::from_qemu(qmp::str_field("query-status", &reply, "status")?))
    }

    async fn run(&self) -> Result<(), QmpError> {
        self.tell("cont", Value::Null).await
    }

    async fn pause(&self) -> Result<(), QmpError> {
        self.tell("stop", Value::Null).await
    }

    async fn end_on_reboot(&self) -> Result<(), QmpError> {
        self.tell("set-action", json!({ "reboot": "shutdown" })).await
    }

    async fn press_power_button(&self) -> Result<(), QmpError> {
        self.tell("system_powerdown", Value::Null).await
    }

    async fn quit(&self) -> Result<(), QmpError> {
        match self.tell("quit", Value::Null).await {
            // The connection is often reset before the reply arrives.
            Ok(()) | Err(QmpError::Gone { .. }) => Ok(()),
            Err(e) => Err(e),
        }
    }

    fn kill(&self) {
        // It cannot fail: the process is our own child.
        let _ = self.pidfd.signal(Signal::KILL);
    }

    async fn announce(&self) -> Result<(), QmpError> {
        self.tell("announce-self", json!({ "initial": 50, "max": 550, "rounds": 5, "step": 100 })).await
    }

    async fn migrate_in(&self, socket: &str) -> Result<(), QmpError> {
        self.tell("migrate-set-capabilities", capabilities(false, false)).await?;
        let mut arguments = json!({ "uri": format!("unix:{socket}") });
        if self.monitor.version().major >= 9 {
            // Keeps the process after a failure, so that its reason can be read.
            arguments["exit-on-error"] = json!(false);
        }
        self.tell("migrate-incoming", arguments).await
    }

    async fn migrate_out(&self, socket: &str, p: &MigrateParams) -> Result<(), QmpError> {
        self.tell("migrate-set-capabilities", capabilities(p.auto_converge, true)).await?;
        let parameters = json!({
            "max-bandwidth": p.bandwidth,
            "downtime-limit": p.downtime_ms,
            "cpu-throttle-initial": 20,
            "cpu-throttle-increment": 10,
            "max-cpu-throttle": 99,
            "throttle-trigger-threshold": 50,
        });
        self.tell("migrate-set-parameters", parameters).await?;
        let blocked = self.migration().await?.blocked;
        if !blocked.is_empty() {
            let (command, class) = ("migrate".to_owned(), "Blocked".to_owned());
            return Err(QmpError::Refused { command, class, desc: blocked.join("; ") });
        }
        self.tell("migrate", json!({ "uri": format!("unix:{socket}") })).await
    }

    async fn migrate_continue(&self) -> Result<(), QmpError> {
        self.tell("migrate-continue", json!({ "state": "pre-switchover" })).await
    }

    async fn migrate_cancel(&self) -> Result<(), QmpError> {
        self.tell("migrate_cancel", Value::Null).await
    }

    async fn migrate_cut(&self) -> Result<(), QmpError> {
        self.emergency.execute_oob("yank", json!({ "instances": [{ "type": "migration" }] })).await.map(drop)
    }

    async fn migrate_limits(&self, bandwidth: u64, downtime_ms: u64) -> Result<(), QmpError> {
        self.tell(
            "migrate-set-parameters",
            json!({ "max-bandwidth": bandwidth, "downtime-limit": downtime_ms }),
        )
        .await
    }

    async fn migration(&self) -> Result<MigrationInfo, QmpError> {
        // Short: during the device stage a hung target blocks QEMU's main loop.
        let limit = Duration::from_secs(2);
        let reply = self.monitor.execute_within("query-migrate", Value::Null, limit).await?;
        Ok(migration_info(&reply))
    }

    async fn measure_dirty_rate(&self, seconds: u32) -> Result<(), QmpError> {
        self.tell("calc-dirty-rate", json!({ "calc-time": seconds })).await
    }

    async fn dirty_rate(&self) -> Result<Option<u64>, QmpError> {
        let reply = self.execute("query-dirty-rate", Value::Null).await?;
        Ok(dirty_rate(&reply))
    }
}

/// QEMU tells the rate in MiB a second, and only once it is measured.
fn dirty_rate(reply: &Value) -> Option<u64> {
    let measured = reply.get("status").and_then(Value::as_str) == Some("measured");
    measured.then(|| reply.get("dirty-rate").and_then(Value::as_u64).unwrap_or_default() << 20)
}

fn migration_info(reply: &Value) -> MigrationInfo {
    let number = |path: &str| reply.pointer(path).and_then(Value::as_u64).unwrap_or_default();
    let status = reply.get("status").and_then(Value::as_str).unwrap_or("none");
    let blocked = reply.get("blocked-reasons").and_then(Value::as_array);
    MigrationInfo {
        status: MigrationStatus::from_qemu(status),
        error: reply.get("error-desc").and_then(Value::as_str).map(str::to_owned),
        blocked: blocked.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect(),
        total_bytes: number("/ram/total"),
        remaining_bytes: number("/ram/remaining"),
        transferred_bytes: number("/ram/transferred"),
        dirty_bytes_per_s: number("/ram/dirty-pages-rate") * number("/ram/page-size"),
        rate_bytes_per_s: rate_bytes(reply.pointer("/ram/mbps").and_then(Value::as_f64)),
        passes: number("/ram/dirty-sync-count"),
        throttle_pct: u32::try_from(number("/cpu-throttle-percentage")).unwrap_or(u32::MAX),
        downtime_ms: reply.get("downtime").and_then(Value::as_u64),
    }
}

/// QEMU tells the speed in millions of bits a second.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to what a link can do")]
fn rate_bytes(mbps: Option<f64>) -> u64 {
    (mbps.unwrap_or_default().clamp(0.0, 1e9) * 125_000.0) as u64
}

/// Version of a QEMU program, such as `10.0.2`, as `--version` tells it. Takes about 20 ms.
pub fn installed_version(program: &std::path::Path) -> std::io::Result<String> {
    let output = std::process::Command::new(program).arg("--version").stdin(Stdio::null()).output();
    let output = output.map_err(|e| {
        std::io::Error::new(
            e.kind(),
            format!("{}: {e}; install the package qemu-system-x86", program.display()),
        )
    })?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.split_whitespace().skip_while(|w| *w != "version").nth(1);
    version
        .map(str::to_owned)
        .ok_or_else(|| std::io::Error::other(format!("{} did not tell its version", program.display())))
}
