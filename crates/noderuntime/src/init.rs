//! PID 1 of a node: starts containers for the node runtime, keeps the node's daemons running, reaps.
//!
//! Single-threaded poll loop without an async runtime: it must outlive everything else on the node
//! and weigh nothing. A container's parent is this process, so the node runtime and the agent may
//! die at any instant without touching a guest, and no exit code is lost: it is on disk before
//! anybody is told. When init dies the kernel ends everything in the node.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use holdfast_sys::proc::ProcessId;
use holdfast_sys::signals::{Exit, SignalFd, reap};
use holdfast_sys::spawn::Command;
use holdfast_sys::{durable, logfile, unixat};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;

use crate::launch::{Answer, ExitRecord, Request, StartKey};
use crate::paths::NodeDir;

/// Time between the end of a daemon and its next start.
pub const RESTART_AFTER: Duration = Duration::from_secs(1);
/// Longest request line: paths, a uid, a name.
const MAX_LINE: usize = 64 * 1024;

/// What init is told at its start.
#[derive(Debug, Clone)]
pub struct Config {
    /// Directory of the node.
    pub node_dir: NodeDir,
    /// The program of the daemons.
    pub binary: PathBuf,
    /// The program that becomes containers; called as `<pod_exec> pod-exec <launch file>`.
    pub pod_exec: PathBuf,
    /// Daemons to keep running.
    pub daemons: Vec<Daemon>,
    /// How long containers may take to end on SIGTERM to init.
    pub stop_grace: Duration,
}

/// A daemon of the node.
#[derive(Debug, Clone)]
pub struct Daemon {
    /// Name in messages.
    pub name: String,
    /// Arguments to the program of the daemons.
    pub args: Vec<String>,
    /// File its output is appended to.
    pub log: PathBuf,
}

/// Runs until SIGTERM (ends daemons at once and containers within the grace period) or SIGINT (ends
/// everything at once).
/// The process must be single-threaded and PID 1 of its PID namespace.
///
/// # Errors
/// When the socket cannot be made; after that it does not give up.
pub fn run(config: Config) -> io::Result<()> {
    let signals = SignalFd::new(&[Signal::CHILD, Signal::TERM, Signal::INT])?;
    std::fs::create_dir_all(config.node_dir.exits())?;
    std::fs::create_dir_all(config.node_dir.pods())?;
    let listener = unixat::bind(&config.node_dir.init_socket())?;
    listener.set_nonblocking(true)?;
    let daemons = config.daemons.iter().map(|_| DaemonState::due_now()).collect();
    let mut init = Init { config, daemons, starts: BTreeMap::new(), clients: Vec::new(), ending: None };
    loop {
        init.start_due_daemons();
        if init.is_finished() {
            return Ok(());
        }
        let timeout = init.timeout();
        let ready = wait(&signals, &listener, &init.clients, timeout)?;
        if ready.signals {
            let got = signals.take()?;
            if got.contains(&Signal::TERM.as_raw()) {
                init.begin_end(init.config.stop_grace);
            }
            if got.contains(&Signal::INT.as_raw()) {
                init.begin_end(Duration::ZERO);
            }
        }
        // Before any answer, so that an answer never says "running" of what has been seen to end.
        init.reap_all();
        init.end_late();
        if ready.listener {
            init.accept(&listener);
        }
        init.serve(&ready.clients);
    }
}

struct Init {
    config: Config,
    daemons: Vec<DaemonState>,
    starts: BTreeMap<StartKey, Started>,
    clients: Vec<Client>,
    /// Set once init was told to end: when containers are killed.
    ending: Option<Instant>,
}

struct DaemonState {
    process: Option<ProcessId>,
    due: Instant,
}

impl DaemonState {
    fn due_now() -> Self {
        Self { process: None, due: Instant::now() }
    }
}

enum Started {
    Running(ProcessId),
    Exited(ExitRecord),
}

struct Client {
    stream: UnixStream,
    input: Vec<u8>,
}

struct Ready {
    signals: bool,
    listener: bool,
    clients: Vec<bool>,
}

fn wait(
    signals: &SignalFd,
    listener: &UnixListener,
    clients: &[Client],
    timeout: Option<Duration>,
) -> io::Result<Ready> {
    let fds: Vec<BorrowedFd<'_>> = [signals.as_fd(), listener.as_fd()]
        .into_iter()
        .chain(clients.iter().map(|client| client.stream.as_fd()))
        .collect();
    let mut polled: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    let timeout = timeout.and_then(|limit| Timespec::try_from(limit).ok());
    match poll(&mut polled, timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let ready: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
    Ok(Ready { signals: ready[0], listener: ready[1], clients: ready[2..].to_vec() })
}

impl Init {
    fn timeout(&self) -> Option<Duration> {
        let now = Instant::now();
        let daemons = self.daemons.iter().filter(|d| d.process.is_none()).map(|d| d.due);
        let next = if self.ending.is_some() { self.ending } else { daemons.min() };
        next.map(|at| at.saturating_duration_since(now) + Duration::from_millis(1))
    }

    fn start_due_daemons(&mut self) {
        if self.ending.is_some() {
            return;
        }
        let now = Instant::now();
        for (daemon, state) in self.config.daemons.iter().zip(&mut self.daemons) {
            if state.process.is_some() || state.due > now {
                continue;
            }
            match start_daemon(&self.config.binary, daemon) {
                Ok(process) => state.process = Some(process),
                Err(error) => {
                    eprintln!("init: daemon {}: {error}", daemon.name);
                    state.due = now + RESTART_AFTER;
                }
            }
        }
    }

    fn reap_all(&mut self) {
        loop {
            match reap() {
                Ok(Some((pid, exit))) => self.ended(pid, exit),
                Ok(None) => return,
                Err(error) => {
                    eprintln!("init: reap: {error}");
                    return;
                }
            }
        }
    }

    fn ended(&mut self, pid: u32, exit: Exit) {
        for (daemon, state) in self.config.daemons.iter().zip(&mut self.daemons) {
            if state.process.is_some_and(|process| process.pid == pid) {
                if self.ending.is_none() {
                    eprintln!("init: daemon {} ended ({exit:?}), starting it again", daemon.name);
                }
                state.process = None;
                state.due = Instant::now() + RESTART_AFTER;
                return;
            }
        }
        let found = self
            .starts
            .iter_mut()
            .find(|(_, started)| matches!(started, Started::Running(process) if process.pid == pid));
        // Others are orphans that landed here, e.g. what a container left behind.
        let Some((key, started)) = found else { return };
        let record = exit_record(exit);
        let path = self.config.node_dir.exits().join(key.file_name());
        if let Err(error) = save(&path, &record) {
            // The answer to a query still has it; only a power cut right now would lose it.
            eprintln!("init: {key}: {error}");
        }
        *started = Started::Exited(record);
    }

    fn accept(&mut self, listener: &UnixListener) {
        while let Ok((stream, _)) = listener.accept() {
            if stream.set_nonblocking(true).is_ok() {
                self.clients.push(Client { stream, input: Vec::new() });
            }
        }
    }

    fn serve(&mut self, ready: &[bool]) {
        let clients = std::mem::take(&mut self.clients);
        for (index, mut client) in clients.into_iter().enumerate() {
            // Clients accepted in this round are looked at in the next one.
            let keep = !ready.get(index).copied().unwrap_or(false) || self.serve_one(&mut client);
            if keep {
                self.clients.push(client);
            }
        }
    }

    /// Reads what is there and answers complete lines; `false` closes the connection.
    fn serve_one(&mut self, client: &mut Client) -> bool {
        let mut buffer = [0; 4096];
        loop {
            match client.stream.read(&mut buffer) {
                Ok(0) => return false,
                Ok(n) => client.input.extend_from_slice(&buffer[..n]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        while let Some(end) = client.input.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = client.input.drain(..=end).collect();
            let answer = match serde_json::from_slice(&line) {
                Ok(request) => self.answer(request),
                Err(error) => Answer::Failed { error: format!("not a request: {error}") },
            };
            let mut text = serde_json::to_vec(&answer).unwrap_or_default();
            text.push(b'\n');
            // Answers are far smaller than a socket buffer: a client that does not read is gone.
            if client.stream.write_all(&text).is_err() {
                return false;
            }
        }
        client.input.len() <= MAX_LINE
    }

    fn answer(&mut self, request: Request) -> Answer {
        match request {
            Request::Query { key } => self.look_up(&key).unwrap_or(Answer::Unknown),
            Request::Forget { key } => {
                if matches!(self.starts.get(&key), Some(Started::Exited(_))) {
                    self.starts.remove(&key);
                }
                let path = self.config.node_dir.exits().join(key.file_name());
                match std::fs::remove_file(path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        Answer::Failed { error: error.to_string() }
                    }
                    _ => Answer::Done,
                }
            }
            Request::Start { key, launch, log } => {
                if let Some(known) = self.look_up(&key) {
                    return known;
                }
                if self.ending.is_some() {
                    return Answer::Failed { error: "the node is shutting down".to_owned() };
                }
                match start_container(&self.config.pod_exec, &launch, &log) {
                    Ok(process) => {
                        self.starts.insert(key, Started::Running(process));
                        Answer::Running { process }
                    }
                    Err(error) => Answer::Failed { error: error.to_string() },
                }
            }
        }
    }

    fn look_up(&self, key: &StartKey) -> Option<Answer> {
        Some(match self.starts.get(key)? {
            Started::Running(process) => Answer::Running { process: *process },
            Started::Exited(exit) => Answer::Exited { exit: exit.clone() },
        })
    }

    /// Daemons first: nobody may see a half-stopped node as a crash of its guests.
    fn begin_end(&mut self, grace: Duration) {
        let at = Instant::now() + grace;
        if self.ending.is_some_and(|ending| ending <= at) {
            return;
        }
        self.ending = Some(at);
        for state in &self.daemons {
            signal(state.process, Signal::KILL);
        }
        for started in self.starts.values() {
            if let Started::Running(process) = started {
                signal(Some(*process), Signal::TERM);
            }
        }
    }

    fn end_late(&mut self) {
        if self.ending.is_some_and(|at| at <= Instant::now()) {
            for started in self.starts.values() {
                if let Started::Running(process) = started {
                    signal(Some(*process), Signal::KILL);
                }
            }
            self.ending = Some(Instant::now() + Duration::from_millis(100));
        }
    }

    fn is_finished(&self) -> bool {
        self.ending.is_some()
            && self.daemons.iter().all(|state| state.process.is_none())
            && !self.starts.values().any(|started| matches!(started, Started::Running(_)))
    }
}

fn signal(process: Option<ProcessId>, signal: Signal) {
    if let Some(fd) = process.and_then(|process| process.open()) {
        let _ = fd.signal(signal);
    }
}

fn start_daemon(binary: &std::path::Path, daemon: &Daemon) -> io::Result<ProcessId> {
    let log = logfile::open(&daemon.log)?;
    let child = Command::new(binary)
        .args(&daemon.args)
        .stdin(std::process::Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .new_session()
        .spawn()?;
    Ok(child.id)
}

fn start_container(
    binary: &std::path::Path,
    launch: &std::path::Path,
    log: &std::path::Path,
) -> io::Result<ProcessId> {
    let log = logfile::open(log)?;
    let child = Command::new(binary)
        .arg("pod-exec")
        .arg(launch)
        .env_clear()
        .stdin(std::process::Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    Ok(child.id)
}

fn exit_record(exit: Exit) -> ExitRecord {
    let (code, signal) = match exit {
        Exit::Code(code) => (code, None),
        Exit::Signal(signal) => (128 + signal, Some(signal)),
    };
    ExitRecord { code, signal, finished_at: crate::time::now() }
}

fn save(path: &std::path::Path, record: &ExitRecord) -> io::Result<()> {
    durable::write(path, &serde_json::to_vec(record)?, 0o600)
}

/// The runtime's side of the socket. One connection, made again when init was restarted.
#[derive(Debug)]
pub struct InitClient {
    path: PathBuf,
    connection: tokio::sync::Mutex<Option<tokio::io::BufReader<tokio::net::UnixStream>>>,
}

impl InitClient {
    /// Connects lazily.
    #[must_use]
    pub fn new(node_dir: &NodeDir) -> Self {
        Self { path: node_dir.init_socket(), connection: tokio::sync::Mutex::new(None) }
    }

    /// Asks init. Every request may be repeated, so a lost answer is no harm.
    ///
    /// # Errors
    /// When init cannot be reached.
    pub async fn ask(&self, request: &Request) -> io::Result<Answer> {
        let mut connection = self.connection.lock().await;
        // Taken out while in use: a cancelled call leaves no half-read answer behind.
        let stream = match connection.take() {
            Some(stream) => stream,
            None => {
                let stream = unixat::connect(&self.path)?;
                stream.set_nonblocking(true)?;
                tokio::io::BufReader::new(tokio::net::UnixStream::from_std(stream)?)
            }
        };
        let (stream, answer) = exchange(stream, request).await?;
        *connection = Some(stream);
        Ok(answer)
    }
}

async fn exchange(
    mut stream: tokio::io::BufReader<tokio::net::UnixStream>,
    request: &Request,
) -> io::Result<(tokio::io::BufReader<tokio::net::UnixStream>, Answer)> {
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _};
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.get_mut().write_all(&line).await?;
    let mut answer = String::new();
    if stream.read_line(&mut answer).await? == 0 {
        return Err(io::Error::new(io::ErrorKind::ConnectionReset, "the node's init hung up"));
    }
    Ok((stream, serde_json::from_str(&answer)?))
}
