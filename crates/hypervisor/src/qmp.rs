//! The QMP client: one connection to one QEMU monitor.
//!
//! Typed only where Holdfast reads something; everything else stays [`serde_json::Value`], because closed
//! enums break between QEMU versions (spec hypervisor.md §9). A reader task routes replies by id and
//! events to one receiver. End of file, `ECONNRESET` and `EPIPE` mean the same thing: QEMU is gone.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// How long a command may take before the caller is told so. QEMU answers in under 10 ms unless its main
/// loop is blocked (spec migration-and-maintenance.md §5.8).
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest line accepted from QEMU, bytes. The longest real one (`query-cpu-definitions`) is below 200 KB.
const LINE_MAX_BYTES: usize = 4 << 20;

/// Why a QMP command brought no result.
#[derive(Debug, Clone, thiserror::Error)]
pub enum QmpError {
    /// The connection ended: look at the process for the reason.
    #[error("QEMU closed its monitor during {command}")]
    Gone {
        /// The command that was waiting.
        command: String,
    },
    /// QEMU did not answer in time; its main loop is blocked or the process is stopped.
    #[error("QEMU did not answer {command} within {after_ms} ms")]
    Timeout {
        /// The command that was waiting.
        command: String,
        /// The limit that passed, milliseconds.
        after_ms: u64,
    },
    /// QEMU answered with an error.
    #[error("QEMU refused {command}: {desc}")]
    Refused {
        /// The command that was refused.
        command: String,
        /// QEMU's error class, such as `GenericError`.
        class: String,
        /// QEMU's text.
        desc: String,
    },
    /// A reply lacks what we read from it.
    #[error("QEMU's reply to {command} is not understood: {why}")]
    Malformed {
        /// The command whose reply is wrong.
        command: String,
        /// What is missing or of the wrong type.
        why: String,
    },
}

/// An event as QEMU sent it.
#[derive(Debug, Clone, PartialEq)]
pub struct RawEvent {
    /// For example `SHUTDOWN`.
    pub name: String,
    /// The `data` member; `Null` when absent.
    pub data: Value,
    /// Unix time, microseconds. QEMU says -1 where it cannot tell.
    pub at_us: Option<i64>,
}

/// QEMU's version as the greeting states it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct QemuVersion {
    /// For example 10.
    pub major: u32,
    /// For example 0.
    pub minor: u32,
    /// For example 2.
    pub micro: u32,
}

impl std::fmt::Display for QemuVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

impl std::str::FromStr for QemuVersion {
    type Err = std::num::ParseIntError;

    /// Reads `10.0.2`; what is missing is 0, what follows a space or a bracket is ignored.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let mut numbers = text[..end].split('.');
        let mut next = || numbers.next().map_or(Ok(0), str::parse);
        Ok(QemuVersion { major: next()?, minor: next()?, micro: next()? })
    }
}

type Waiting = Arc<Mutex<Option<BTreeMap<u64, oneshot::Sender<Result<Value, (String, String)>>>>>>;

/// A connected, negotiated monitor. Clones share the connection.
#[derive(Clone)]
pub struct Qmp {
    writer: Arc<tokio::sync::Mutex<OwnedWriteHalf>>,
    waiting: Waiting,
    next_id: Arc<std::sync::atomic::AtomicU64>,
    version: QemuVersion,
    oob: bool,
}

#[derive(Deserialize)]
struct Greeting {
    #[serde(rename = "QMP")]
    qmp: GreetingBody,
}

#[derive(Deserialize)]
struct GreetingBody {
    version: GreetingVersion,
    #[serde(default)]
    capabilities: Vec<Value>,
}

#[derive(Deserialize)]
struct GreetingVersion {
    qemu: GreetingQemu,
}

#[derive(Deserialize)]
struct GreetingQemu {
    major: u32,
    minor: u32,
    micro: u32,
}

impl Qmp {
    /// Connects to the monitor socket, retrying until `deadline` while it does not exist yet, reads the
    /// greeting and negotiates capabilities (out-of-band execution where offered).
    pub async fn connect(
        path: &Path,
        deadline: Instant,
    ) -> io::Result<(Qmp, mpsc::UnboundedReceiver<RawEvent>)> {
        let stream = connect_retrying(path, deadline).await?;
        let negotiated = tokio::time::timeout_at(deadline, Self::negotiate(stream)).await;
        negotiated.map_err(|_| {
            io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no QMP greeting on {}: another client is attached or QEMU hangs", path.display()),
            )
        })?
    }

    async fn negotiate(stream: UnixStream) -> io::Result<(Qmp, mpsc::UnboundedReceiver<RawEvent>)> {
        let (read, write) = stream.into_split();
        let mut read = BufReader::with_capacity(8 << 10, read);
        let greeting: Greeting = serde_json::from_slice(&read_line(&mut read).await?)?;
        let oob = greeting.qmp.capabilities.iter().any(|c| c == "oob");
        let version = greeting.qmp.version.qemu;
        let waiting: Waiting = Arc::new(Mutex::new(Some(BTreeMap::new())));
        let (events_tx, events_rx) = mpsc::unbounded_channel();
        let qmp = Qmp {
            writer: Arc::new(tokio::sync::Mutex::new(write)),
            waiting: waiting.clone(),
            next_id: Arc::new(std::sync::atomic::AtomicU64::new(1)),
            version: QemuVersion { major: version.major, minor: version.minor, micro: version.micro },
            oob,
        };
        tokio::spawn(read_loop(read, waiting, events_tx));
        let enable: Vec<&str> = if oob { vec!["oob"] } else { vec![] };
        qmp.execute("qmp_capabilities", json!({ "enable": enable })).await.map_err(io::Error::other)?;
        Ok((qmp, events_rx))
    }

    /// The version of the QEMU at the other end.
    pub fn version(&self) -> QemuVersion {
        self.version
    }

    /// Runs a command with the usual time limit.
    pub async fn execute(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.execute_within(command, arguments, COMMAND_TIMEOUT).await
    }

    /// Runs a command with the given time limit.
    pub async fn execute_within(
        &self,
        command: &str,
        arguments: Value,
        limit: Duration,
    ) -> Result<Value, QmpError> {
        self.send("execute", command, arguments, limit).await
    }

    /// Runs a command out of band: it is answered even while QEMU's main loop is blocked. Only commands
    /// that QEMU allows so (`yank`, `migrate-pause`) can be run this way.
    pub async fn execute_oob(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let verb = if self.oob { "exec-oob" } else { "execute" };
        self.send(verb, command, arguments, Duration::from_secs(2)).await
    }

    async fn send(
        &self,
        verb: &str,
        command: &str,
        arguments: Value,
        limit: Duration,
    ) -> Result<Value, QmpError> {
        let gone = || QmpError::Gone { command: command.to_owned() };
        let id = self.next_id.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (reply_tx, reply_rx) = oneshot::channel();
        match self.waiting.lock().expect("invariant: no panic while the map is locked").as_mut() {
            Some(map) => map.insert(id, reply_tx),
            None => return Err(gone()),
        };
        let mut line = match arguments {
            Value::Null => json!({ verb: command, "id": id }),
            arguments => json!({ verb: command, "id": id, "arguments": arguments }),
        }
        .to_string();
        line.push('\n');
        let exchange = async {
            self.writer.lock().await.write_all(line.as_bytes()).await.map_err(|_| gone())?;
            match reply_rx.await {
                Ok(Ok(value)) => Ok(value),
                Ok(Err((class, desc))) => Err(QmpError::Refused { command: command.to_owned(), class, desc }),
                Err(_) => Err(gone()),
            }
        };
        match tokio::time::timeout(limit, exchange).await {
            Ok(result) => result,
            Err(_) => {
                if let Some(map) =
                    self.waiting.lock().expect("invariant: no panic while the map is locked").as_mut()
                {
                    map.remove(&id);
                }
                let after_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
                Err(QmpError::Timeout { command: command.to_owned(), after_ms })
            }
        }
    }
}

/// Reads `field` of a reply as a string.
pub fn str_field<'a>(command: &str, reply: &'a Value, field: &str) -> Result<&'a str, QmpError> {
    reply.get(field).and_then(Value::as_str).ok_or_else(|| QmpError::Malformed {
        command: command.to_owned(),
        why: format!("no string {field:?} in {reply}"),
    })
}

/// Connects to a unix socket that may not exist yet.
pub async fn connect_retrying(path: &Path, deadline: Instant) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(path).await {
            Ok(stream) => return Ok(stream),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                if Instant::now() >= deadline {
                    let text = format!("socket {} did not appear: {e}", path.display());
                    return Err(io::Error::new(io::ErrorKind::TimedOut, text));
                }
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
            Err(e) => return Err(e),
        }
    }
}

async fn read_line(read: &mut BufReader<OwnedReadHalf>) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    loop {
        let available = read.fill_buf().await?;
        if available.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (take, done) = match available.iter().position(|b| *b == b'\n') {
            Some(at) => (at + 1, true),
            None => (available.len(), false),
        };
        line.extend_from_slice(&available[..take]);
        read.consume(take);
        if done {
            return Ok(line);
        }
        if line.len() > LINE_MAX_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "QMP line is too long"));
        }
    }
}

fn at_us(message: &Value) -> Option<i64> {
    let part = |name: &str| message.get("timestamp")?.get(name)?.as_i64().filter(|n| *n >= 0);
    part("seconds")?.checked_mul(1_000_000)?.checked_add(part("microseconds")?)
}

async fn read_loop(
    mut read: BufReader<OwnedReadHalf>,
    waiting: Waiting,
    events: mpsc::UnboundedSender<RawEvent>,
) {
    while let Ok(line) = read_line(&mut read).await {
        let Ok(mut message) = serde_json::from_slice::<Value>(&line) else {
            tracing::warn!(line = %String::from_utf8_lossy(&line), "QMP line is not JSON, ignored");
            continue;
        };
        if let Some(name) = message.get("event").and_then(Value::as_str) {
            let name = name.to_owned();
            let data = message.get_mut("data").map(Value::take).unwrap_or(Value::Null);
            // The receiver may be dropped by a caller that only asks questions.
            let at_us = at_us(&message);
            let _ = events.send(RawEvent { name, data, at_us });
            continue;
        }
        let Some(id) = message.get("id").and_then(Value::as_u64) else { continue };
        let waiter = waiting
            .lock()
            .expect("invariant: no panic while the map is locked")
            .as_mut()
            .and_then(|map| map.remove(&id));
        let Some(waiter) = waiter else { continue };
        let text = |e: &Value, f: &str| e.get(f).and_then(Value::as_str).unwrap_or_default().to_owned();
        let reply = match message.get("error") {
            Some(e) => Err((text(e, "class"), text(e, "desc"))),
            None => Ok(message.get_mut("return").map(Value::take).unwrap_or(Value::Null)),
        };
        let _ = waiter.send(reply);
    }
    // Dropping the senders wakes every waiter with "gone"; dropping `events` ends the event stream.
    waiting.lock().expect("invariant: no panic while the map is locked").take();
}
