//! One per home: makes the network, starts kubelith, controller and nodes, restarts what ends.
//!
//! Single-threaded poll loop without an async runtime. Its own death harms nothing: components go
//! on, and the next supervisor adopts them by pid and start time. Wishes about nodes are on disk.

use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use holdfast_sys::lock::FileLock;
use holdfast_sys::pidfd::PidFd;
use holdfast_sys::proc::{self, ProcessId};
use holdfast_sys::signals::{SignalFd, reap};
use holdfast_sys::{durable, unixat};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;

use crate::components::{self, Component};
use crate::control::{Answer, ComponentStatus, NodeAction, Request};
use crate::home::{Facts, Home, NodeFacts, Wish};
use crate::network;

/// Pause before what ended is started again.
const RESTART_AFTER: Duration = Duration::from_secs(1);
/// How long API server and controller may take to end.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// Added to the nodes' own grace period before they are killed.
const NODE_STOP_MARGIN: Duration = Duration::from_secs(2);
/// How long guests get to shut down at `down`.
pub const GUEST_GRACE: Duration = Duration::from_secs(20);

/// Runs the supervisor of a home until it is told to stop. With `stop`, only ends what runs.
///
/// # Errors
/// When the home is not usable, or another supervisor has it.
pub fn run(home: Home, stop: bool) -> anyhow::Result<()> {
    let Some(_lock) = FileLock::try_take(&home.supervisor_lock())? else {
        bail!("another supervisor runs in {}", home.path().display());
    };
    let facts = home.known_facts()?;
    let signals = SignalFd::new(&[Signal::CHILD, Signal::TERM, Signal::INT])?;
    let listener = unixat::bind(&home.control_socket())?;
    listener.set_nonblocking(true)?;
    let mut supervisor = Supervisor::new(home, facts);
    supervisor.adopt()?;
    if stop {
        supervisor.begin_stop(true);
    }
    log("supervisor ready");
    loop {
        supervisor.step();
        if supervisor.is_finished() {
            supervisor.leave()?;
            log("supervisor ends");
            return Ok(());
        }
        supervisor.wait(&signals, &listener)?;
    }
}

fn log(text: &str) {
    println!("{text}");
}

/// A component and its process.
struct Kept {
    component: Component,
    process: Option<(ProcessId, PidFd)>,
    due: Instant,
    starts: u32,
    problem: Option<String>,
}

#[derive(Debug, Clone, Copy)]
enum Mode {
    Keep,
    StopNodes { kill_at: Instant },
    StopRest { kill_at: Instant },
}

struct Supervisor {
    home: Home,
    facts: Facts,
    kept: Vec<Kept>,
    clients: Vec<UnixStream>,
    mode: Mode,
    host_ready: bool,
    host_due: Instant,
}

impl Supervisor {
    fn new(home: Home, facts: Facts) -> Self {
        let now = Instant::now();
        let kept = Component::all(&facts)
            .into_iter()
            .map(|component| Kept { component, process: None, due: now, starts: 0, problem: None })
            .collect();
        let mode = Mode::Keep;
        Self { home, facts, kept, clients: Vec::new(), mode, host_ready: false, host_due: now }
    }

    fn adopt(&mut self) -> anyhow::Result<()> {
        let processes = proc::list()?;
        for kept in &mut self.kept {
            let Some(id) = components::find(&self.home, &kept.component, &processes) else { continue };
            let Some(fd) = id.open() else { continue };
            log(&format!("adopted {} (pid {})", kept.component.name(), id.pid));
            durable::write(&self.home.pid_file(&kept.component.name()), &serde_json::to_vec(&id)?, 0o600)?;
            kept.process = Some((id, fd));
            kept.starts = 1;
        }
        Ok(())
    }

    fn step(&mut self) {
        let _ = reap_all();
        self.notice_ends();
        match self.mode {
            Mode::Keep => self.start_due(),
            Mode::StopNodes { kill_at } => {
                if Instant::now() >= kill_at {
                    self.signal(true, Signal::KILL);
                }
                if !self.any_running(true) {
                    self.mode = Mode::StopRest { kill_at: Instant::now() + STOP_LIMIT };
                    self.signal(false, Signal::TERM);
                }
            }
            Mode::StopRest { kill_at } => {
                if Instant::now() >= kill_at {
                    self.signal(false, Signal::KILL);
                }
            }
        }
    }

    fn notice_ends(&mut self) {
        for kept in &mut self.kept {
            if kept.process.as_ref().is_some_and(|(_, fd)| fd.has_ended()) {
                kept.process = None;
                kept.due = Instant::now() + RESTART_AFTER;
                let name = kept.component.name();
                if matches!(self.mode, Mode::Keep) {
                    log(&format!("{name} ended, starting it again"));
                }
                let _ = durable::remove(&self.home.pid_file(&name));
            }
        }
    }

    fn start_due(&mut self) {
        let now = Instant::now();
        if !self.host_ready {
            if self.host_due > now {
                return;
            }
            if let Err(error) = network::ensure_host(&self.facts) {
                let problem = format!("{error:#}");
                log(&problem);
                for kept in &mut self.kept {
                    kept.problem = Some(problem.clone());
                }
                self.host_due = now + RESTART_AFTER;
                return;
            }
            self.host_ready = true;
            self.reconnect_adopted();
        }
        for index in 0..self.kept.len() {
            let kept = &self.kept[index];
            if kept.process.is_some() || kept.due > now || !self.is_wanted(&kept.component) {
                continue;
            }
            let component = kept.component.clone();
            let started = self.start(&component);
            let kept = &mut self.kept[index];
            match started {
                Ok(process) => {
                    kept.process = Some(process);
                    kept.starts += 1;
                    kept.problem = None;
                }
                Err(error) => {
                    let problem = format!("{error:#}");
                    log(&format!("{}: {problem}", component.name()));
                    kept.problem = Some(problem);
                    kept.due = now + RESTART_AFTER;
                }
            }
        }
    }

    /// Somebody may have taken a bridge or link away while no supervisor looked.
    fn reconnect_adopted(&self) {
        for kept in &self.kept {
            if let (Component::Node(node), Some(_)) = (&kept.component, &kept.process) {
                let wish = self.wish(node);
                if let Err(error) = network::ensure_node(&self.facts, node, false, wish.link) {
                    log(&format!("{}: {error:#}", kept.component.name()));
                }
            }
        }
    }

    fn start(&self, component: &Component) -> anyhow::Result<(ProcessId, PidFd)> {
        if let Component::Node(node) = component {
            let dir = self.home.node(&node.name);
            std::fs::create_dir_all(dir.path())?;
            // A new boot: whoever compares boot ids sees that everything before is gone.
            let boot = uuid::Uuid::new_v4().to_string();
            durable::write(&dir.boot_id(), boot.as_bytes(), 0o644)?;
            network::ensure_node(&self.facts, node, true, self.wish(node).link)?;
        }
        let started = components::start(&self.home, &self.facts, component)?;
        log(&format!("started {} (pid {})", component.name(), started.0.pid));
        Ok(started)
    }

    fn wish(&self, node: &NodeFacts) -> Wish {
        Wish::load(&self.home.node_wish(&node.name))
    }

    fn is_wanted(&self, component: &Component) -> bool {
        match component {
            Component::Node(node) => self.wish(node).power,
            Component::Kubelith | Component::Controller => true,
        }
    }

    fn signal(&self, nodes: bool, signal: Signal) {
        for kept in &self.kept {
            if let (true, Some((_, fd))) =
                (matches!(kept.component, Component::Node(_)) == nodes, &kept.process)
            {
                let _ = fd.signal(signal);
            }
        }
    }

    fn any_running(&self, nodes: bool) -> bool {
        let of_sort = |kept: &&Kept| matches!(kept.component, Component::Node(_)) == nodes;
        self.kept.iter().filter(of_sort).any(|kept| kept.process.is_some())
    }

    fn begin_stop(&mut self, graceful: bool) {
        // Init takes SIGTERM as "shut down" and SIGINT as "at once".
        let (signal, grace) =
            if graceful { (Signal::TERM, GUEST_GRACE) } else { (Signal::INT, Duration::ZERO) };
        self.signal(true, signal);
        self.mode = Mode::StopNodes { kill_at: Instant::now() + grace + NODE_STOP_MARGIN };
    }

    fn is_finished(&self) -> bool {
        matches!(self.mode, Mode::StopRest { .. }) && !self.any_running(false)
    }

    fn leave(&self) -> anyhow::Result<()> {
        network::remove_host(&self.facts)?;
        let _ = std::fs::remove_file(self.home.control_socket());
        Ok(())
    }

    fn timeout(&self) -> Duration {
        let now = Instant::now();
        let next = match self.mode {
            Mode::StopNodes { kill_at } | Mode::StopRest { kill_at } => {
                // After the kill: look again soon.
                kill_at.max(now + Duration::from_millis(50))
            }
            Mode::Keep if !self.host_ready => self.host_due,
            Mode::Keep => {
                let due =
                    self.kept.iter().filter(|kept| kept.process.is_none() && self.is_wanted(&kept.component));
                due.map(|kept| kept.due).min().unwrap_or(now + Duration::from_secs(3600))
            }
        };
        next.saturating_duration_since(now) + Duration::from_millis(1)
    }

    fn wait(&mut self, signals: &SignalFd, listener: &UnixListener) -> anyhow::Result<()> {
        let mut fds: Vec<BorrowedFd<'_>> = vec![signals.as_fd(), listener.as_fd()];
        fds.extend(self.clients.iter().map(AsFd::as_fd));
        let clients = self.clients.len();
        fds.extend(self.kept.iter().filter_map(|kept| Some(kept.process.as_ref()?.1.as_fd())));
        let mut polled: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        let timeout = Timespec::try_from(self.timeout()).context("timeout")?;
        match poll(&mut polled, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(polled);
        drop(fds);
        if ready[0] && signals.take()?.iter().any(|signal| *signal != Signal::CHILD.as_raw()) {
            // Only the supervisor ends: components are adopted by the next one.
            log("supervisor ends on a signal; the platform goes on");
            std::process::exit(0);
        }
        let mut index = 0;
        self.clients_ready(&ready[2..2 + clients], &mut index);
        if ready[1] {
            while let Ok((stream, _)) = listener.accept() {
                self.clients.push(stream);
            }
        }
        Ok(())
    }

    fn clients_ready(&mut self, ready: &[bool], index: &mut usize) {
        let clients = std::mem::take(&mut self.clients);
        for stream in clients {
            let is_ready = ready.get(*index).copied().unwrap_or(false);
            *index += 1;
            if is_ready {
                let answer = match read_request(&stream) {
                    Ok(request) => self.answer(&request),
                    Err(error) => Answer::Failed { error: format!("{error:#}") },
                };
                let mut text = serde_json::to_vec(&answer).unwrap_or_default();
                text.push(b'\n');
                let _ = (&stream).write_all(&text);
            } else {
                self.clients.push(stream);
            }
        }
    }

    fn answer(&mut self, request: &Request) -> Answer {
        match request {
            Request::Status => Answer::Status { components: self.status() },
            Request::Stop { graceful } => {
                self.begin_stop(*graceful);
                Answer::Done { text: "stopping".to_owned() }
            }
            Request::Node { name, action } => match self.node(name, *action) {
                Ok(text) => Answer::Done { text },
                Err(error) => Answer::Failed { error: format!("{error:#}") },
            },
        }
    }

    fn status(&self) -> Vec<ComponentStatus> {
        let status = |kept: &Kept| ComponentStatus {
            name: kept.component.name(),
            pid: kept.process.as_ref().map(|(id, _)| id.pid),
            starts: kept.starts,
            problem: kept.problem.clone(),
            wish: match &kept.component {
                Component::Node(node) => Some(self.wish(node)),
                Component::Kubelith | Component::Controller => None,
            },
        };
        self.kept.iter().map(status).collect()
    }

    fn node(&mut self, name: &str, action: NodeAction) -> anyhow::Result<String> {
        if !matches!(self.mode, Mode::Keep) {
            bail!("the platform is stopping");
        }
        let node = self.facts.node(name)?.clone();
        let path = self.home.node_wish(name);
        let wish = Wish::load(&path);
        let index = self.kept.iter().position(|kept| kept.component == Component::Node(node.clone()));
        let index = index.context("invariant: every node is kept")?;
        match action {
            NodeAction::Kill => {
                Wish { power: false, ..wish }.save(&path)?;
                if let Some((_, fd)) = self.kept[index].process.take() {
                    fd.signal(Signal::KILL)?;
                    if !fd.wait(Duration::from_secs(10))? {
                        bail!("node {name}: its init does not die");
                    }
                }
                network::remove_node(&self.facts, &node)?;
                let _ = durable::remove(&self.home.pid_file(&self.kept[index].component.name()));
                Ok(format!("node {name} is off: everything in it ended at once"))
            }
            NodeAction::Start => {
                Wish { power: true, link: true }.save(&path)?;
                if self.kept[index].process.is_some() {
                    network::set_link(&self.facts, &node, true)?;
                    return Ok(format!("node {name} runs already"));
                }
                self.kept[index].due = Instant::now();
                Ok(format!("node {name} is starting"))
            }
            NodeAction::Cut | NodeAction::Heal => {
                let connected = action == NodeAction::Heal;
                if self.kept[index].process.is_none() {
                    bail!("node {name} is off: `holdfast node start {name}` first");
                }
                Wish { link: connected, ..wish }.save(&path)?;
                network::set_link(&self.facts, &node, connected)?;
                let state = if connected { "connected again" } else { "cut off from everything" };
                Ok(format!("node {name} is {state}"))
            }
        }
    }
}

fn reap_all() -> std::io::Result<()> {
    while reap()?.is_some() {}
    Ok(())
}

fn read_request(mut stream: &UnixStream) -> anyhow::Result<Request> {
    // Requests are one short write; a client that stalls must not stall the platform.
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_millis(200)))?;
    let mut bytes = Vec::new();
    let mut buffer = [0; 1024];
    while !bytes.ends_with(b"\n") && bytes.len() < 16 * 1024 {
        let n = stream.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        bytes.extend_from_slice(&buffer[..n]);
    }
    Ok(serde_json::from_slice(&bytes)?)
}
