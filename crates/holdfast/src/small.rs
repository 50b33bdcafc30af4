//! Entry points of the programs beside `holdfast`. What they do, `holdfast` does too; they exist because
//! memory of processes is mostly the code around what they use, and one program for all has a lot of it.
//!
//! | Program | Processes |
//! |---|---|
//! | `holdfast-keeper` | supervisor, PID 1 of a node, start of a container: no Kubernetes client, no async runtime |
//! | `holdfast-node` | node runtime and agent, one each a node |
//! | `holdfast-kubelith`, `holdfast-controller` | one each |
//!
//! Command lines are made by this crate, never typed, and are the same as those of `holdfast`; they are
//! parsed by hand, since a parser for people weighs more than some of these processes.

use std::path::Path;
use std::process::ExitCode;

use crate::home::Home;
use crate::{KUBELITH_THREADS, daemon, daemons, supervisor};

/// Entry of `holdfast-keeper`.
#[must_use]
pub fn keeper() -> ExitCode {
    run("holdfast-keeper", |args| match *args {
        ["pod-exec", launch] => {
            eprintln!("{:#}", holdfast_noderuntime::podexec::run(Path::new(launch)));
            Ok(ExitCode::from(128))
        }
        ["supervise", "--home", path] => done(supervisor::run(home(path)?, false)),
        ["supervise", "--home", path, "--stop"] => done(supervisor::run(home(path)?, true)),
        ["node-init", "--home", path, "--node", node] => done(daemons::node_init(&home(path)?, node)),
        _ => unknown(),
    })
}

/// Entry of `holdfast-node`.
#[must_use]
pub fn node() -> ExitCode {
    run("holdfast-node", |args| match *args {
        ["noderuntime", "--home", path, "--node", node] => {
            done(daemon(1, daemons::noderuntime(home(path)?, node)))
        }
        ["agent", "--home", path, "--node", node] => done(daemon(1, daemons::agent(home(path)?, node))),
        _ => unknown(),
    })
}

/// Entry of `holdfast-kubelith`.
#[must_use]
pub fn kubelith() -> ExitCode {
    run("holdfast-kubelith", |args| match *args {
        ["kubelith", "--home", path] => done(daemon(KUBELITH_THREADS, daemons::kubelith(home(path)?))),
        _ => unknown(),
    })
}

/// Entry of `holdfast-controller`.
#[must_use]
pub fn controller() -> ExitCode {
    run("holdfast-controller", |args| match *args {
        ["controller", "--home", path] => done(daemon(1, daemons::controller(home(path)?))),
        _ => unknown(),
    })
}

fn run(program: &str, body: impl FnOnce(&[&str]) -> anyhow::Result<ExitCode>) -> ExitCode {
    holdfast_sys::memory::stay_small();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    body(&args).unwrap_or_else(|error| {
        eprintln!("{program}: {error:#}");
        ExitCode::FAILURE
    })
}

fn home(path: &str) -> anyhow::Result<Home> {
    Home::find(Some(Path::new(path)))
}

fn done(result: anyhow::Result<()>) -> anyhow::Result<ExitCode> {
    result.map(|()| ExitCode::SUCCESS)
}

fn unknown() -> anyhow::Result<ExitCode> {
    anyhow::bail!("this program is started by `holdfast up`, not by hand")
}
