//! The processes of a home: their names, command lines, start, adoption.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::Context as _;
use holdfast_sys::namespace::Network;
use holdfast_sys::proc::{self, ProcessId};
use holdfast_sys::spawn::Command;
use holdfast_sys::{durable, logfile, pidfd::PidFd};

use crate::home::{Facts, Home, NodeFacts};

/// A process the supervisor keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Component {
    /// API server and control loops.
    Kubelith,
    /// Product controllers, host routes, image server.
    Controller,
    /// PID 1 of a node.
    Node(NodeFacts),
}

impl Component {
    /// All of a home.
    #[must_use]
    pub fn all(facts: &Facts) -> Vec<Self> {
        let nodes = facts.nodes.iter().cloned().map(Self::Node);
        [Self::Kubelith, Self::Controller].into_iter().chain(nodes).collect()
    }

    /// Name in files, logs and messages.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Kubelith => "kubelith".to_owned(),
            Self::Controller => "controller".to_owned(),
            Self::Node(node) => format!("node-{}", node.name),
        }
    }

    /// Arguments to the program; they identify the process in the process table.
    #[must_use]
    pub fn args(&self, home: &Home) -> Vec<String> {
        let path = home.path().to_string_lossy().into_owned();
        match self {
            Self::Kubelith => vec!["kubelith".to_owned(), "--home".to_owned(), path],
            Self::Controller => vec!["controller".to_owned(), "--home".to_owned(), path],
            Self::Node(node) => {
                ["node-init", "--home", &path, "--node", &node.name].map(str::to_owned).to_vec()
            }
        }
    }
}

/// Directory of the programs: the running one's, also after its file was replaced by a new build.
///
/// # Errors
/// When `/proc` is not mounted.
pub fn programs() -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe().context("find the running program")?;
    let path = path.parent().context("the running program has no directory")?;
    Ok(path.to_owned())
}

/// `holdfast`, with everything in it.
///
/// # Errors
/// When `/proc` is not mounted.
pub fn full_program() -> anyhow::Result<PathBuf> {
    Ok(programs()?.join("holdfast"))
}

/// `holdfast-keeper`: `supervise`, `node-init` and `pod-exec`.
///
/// # Errors
/// When `/proc` is not mounted.
pub fn keeper_program() -> anyhow::Result<PathBuf> {
    small_program("holdfast-keeper")
}

/// `holdfast-node`: `noderuntime` and `agent`.
///
/// # Errors
/// When `/proc` is not mounted.
pub fn node_program() -> anyhow::Result<PathBuf> {
    small_program("holdfast-node")
}

/// `holdfast-kubelith` or `holdfast-controller`.
fn plane_program(name: &str) -> anyhow::Result<PathBuf> {
    small_program(&format!("holdfast-{name}"))
}

/// One of the programs of [`crate::small`]. Without it `holdfast` does the same and weighs more.
fn small_program(name: &str) -> anyhow::Result<PathBuf> {
    let small = programs()?.join(name);
    if small.is_file() { Ok(small) } else { full_program() }
}

/// Starts a component, detached from the caller, and records its identity.
///
/// # Errors
/// Names the component.
pub fn start(home: &Home, facts: &Facts, component: &Component) -> anyhow::Result<(ProcessId, PidFd)> {
    let name = component.name();
    let program = match component {
        Component::Node(_) => keeper_program()?,
        Component::Kubelith | Component::Controller => plane_program(&name)?,
    };
    let mut command = command(home, &name, &program, &component.args(home))?;
    if let Component::Node(node) = component {
        command = command.network(Network::named(&facts.namespace(node))?).new_mounts().new_pid_namespace();
    }
    let child = command.spawn().with_context(|| format!("start {name}"))?;
    durable::write(&home.pid_file(&name), &serde_json::to_vec(&child.id)?, 0o600)?;
    Ok((child.id, child.pidfd))
}

/// A program with arguments, output appended to the log, in its own session.
///
/// # Errors
/// When the log cannot be opened.
pub fn command(home: &Home, log: &str, program: &Path, args: &[String]) -> anyhow::Result<Command> {
    let output = logfile::open(&home.log(log))?;
    Ok(Command::new(program)
        .args(args)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .new_session())
}

/// The component's process if it runs: by its recorded identity, else by its command line (a
/// supervisor that died between start and record).
#[must_use]
pub fn find(home: &Home, component: &Component, processes: &[ProcessId]) -> Option<ProcessId> {
    let args = component.args(home);
    let recorded = recorded(&home.pid_file(&component.name()));
    recorded.filter(|id| id.is_alive() && is(id, &args)).or_else(|| {
        // A child between fork and exec still has its parent's command line, which is another one.
        processes.iter().copied().find(|id| is(id, &args))
    })
}

fn recorded(path: &Path) -> Option<ProcessId> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

fn is(process: &ProcessId, args: &[String]) -> bool {
    let line = proc::command_line(process.pid);
    line.len() == args.len() + 1 && line[1..].iter().zip(args).all(|(one, other)| is_same(one, other))
}

/// Equal, or two spellings of one directory: a home may have been named by a link to it.
fn is_same(one: &str, other: &str) -> bool {
    let real = |text: &str| text.starts_with('/').then(|| std::fs::canonicalize(text).ok())?;
    one == other || real(one).is_some_and(|path| Some(path) == real(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_by_record_and_by_command_line_but_never_by_pid_alone() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::find(Some(dir.path())).unwrap();
        home.create().unwrap();
        let component = Component::Kubelith;
        let args = component.args(&home);
        // `sh -c` with the component's arguments as its own: argv is [sh, kubelith, --home, …].
        let script = dir.path().join("kubelith-stand-in");
        std::fs::write(&script, "#!/bin/sh\nsleep 60\n").unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let other = ProcessId::of(child.id()).unwrap();
        durable::write(&home.pid_file("kubelith"), &serde_json::to_vec(&other).unwrap(), 0o600).unwrap();
        assert_eq!(find(&home, &component, &proc::list().unwrap()), None, "another program has the pid");
        assert!(!is(&other, &args));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        assert!(is_same(link.to_str().unwrap(), dir.path().to_str().unwrap()), "one home, two spellings");
        assert!(!is_same("/", dir.path().to_str().unwrap()) && !is_same("kubelith", "agent"));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
