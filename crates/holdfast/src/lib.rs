//! `holdfast`: the platform on one machine. Commands of users (`up`, `down`, `status`, …) and the
//! processes that `up` starts (`supervise`, `kubelith`, `controller`, `node-init`, `noderuntime`,
//! `agent`, `pod-exec`), in one program. Those of which many run also come as small programs.
//!
//! | Module | Part |
//! |---|---|
//! | [`home`], [`choose`] | the home directory, and the facts chosen for it |
//! | [`network`] | bridge, links, namespaces, masquerade |
//! | [`supervisor`], [`components`], [`control`] | what runs, and talking about it |
//! | [`small`] | the programs beside `holdfast` |
//! | [`daemons`], [`identity`], [`hooks`], [`images`] | the processes and what they are given |
//! | [`up`], [`commands`], [`progress`] | what people type |

pub mod choose;
pub mod commands;
pub mod components;
pub mod control;
pub mod daemons;
pub mod home;
pub mod hooks;
pub mod identity;
pub mod images;
pub mod metrics;
pub mod network;
pub mod progress;
pub mod small;
pub mod supervisor;
pub mod up;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ipnet::Ipv4Net;

use crate::control::NodeAction;
use crate::home::Home;

/// Run virtual machines on Kubernetes: the whole platform on this machine.
#[derive(Debug, Parser)]
#[command(name = "holdfast", version, max_term_width = 100)]
struct Cli {
    /// Directory of the platform's state.
    #[arg(long, global = true, env = "HOLDFAST_HOME", value_name = "DIR")]
    home: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the platform in the background and wait until all nodes are Ready. Repairs and
    /// continues after a crash; a second call finds everything running.
    Up {
        /// Number of nodes (default 3, or what the home has).
        #[arg(long, value_name = "N")]
        nodes: Option<usize>,
        /// Network for VM addresses; may be given several times. Default 10.66.10.0/24 and
        /// 10.66.20.0/24, or the next free ones.
        #[arg(long, value_name = "CIDR")]
        vm_cidr: Vec<Ipv4Net>,
        /// Names of the nodes, separated by commas (default virtlab-pt-1, virtlab-pt-2, …).
        #[arg(long, value_name = "NAMES", value_delimiter = ',')]
        node_names: Vec<String>,
    },
    /// Stop the platform; its state is kept. Guests are shut down.
    Down {
        /// Also delete the state: VMs, disks, everything in the home that the platform made.
        #[arg(long)]
        purge: bool,
    },
    /// Show what runs.
    Status,
    /// Print the path of the kubeconfig.
    Kubeconfig,
    /// Show the log of a component, or the names of all logs.
    Logs {
        /// Name of the component, e.g. controller.
        component: Option<String>,
        /// Only the last lines.
        #[arg(long, default_value_t = 200, value_name = "LINES")]
        tail: usize,
        /// Go on as the log grows.
        #[arg(short, long)]
        follow: bool,
    },
    /// Make a node fail, and undo it: power off (everything in it dies at once), cut its network.
    Node {
        /// What to do.
        action: NodeAction,
        /// Name of the node.
        name: String,
    },
    /// Keeper of the platform's processes.
    #[command(hide = true)]
    Supervise {
        /// Only end what runs.
        #[arg(long)]
        stop: bool,
    },
    /// API server and control loops.
    #[command(hide = true)]
    Kubelith,
    /// Product controllers.
    #[command(hide = true)]
    Controller,
    /// PID 1 of a node.
    #[command(hide = true)]
    NodeInit(NodeArg),
    /// Pods of a node.
    #[command(hide = true)]
    Noderuntime(NodeArg),
    /// VMs of a node.
    #[command(hide = true)]
    Agent(NodeArg),
    /// Become a container.
    #[command(hide = true)]
    PodExec {
        /// What to become.
        launch: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
struct NodeArg {
    /// Name of the node.
    #[arg(long)]
    node: String,
}

/// Parses the command line and does it.
#[must_use]
pub fn main() -> ExitCode {
    holdfast_sys::memory::stay_small();
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("holdfast: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    if let Command::PodExec { launch } = &cli.command {
        eprintln!("{:#}", holdfast_noderuntime::podexec::run(launch));
        return Ok(ExitCode::from(128));
    }
    let home = Home::find(cli.home.as_deref())?;
    if matches!(cli.command, Command::Status | Command::Kubeconfig | Command::Logs { .. }) {
        holdfast_sys::signals::end_with_the_reader();
    }
    match cli.command {
        Command::Up { nodes, vm_cidr, node_names } => {
            up::run(&home, &up::Options { nodes, vm_cidr, node_names })?;
        }
        Command::Down { purge } => commands::down(&home, purge)?,
        Command::Status => commands::status(&home)?,
        Command::Kubeconfig => commands::kubeconfig(&home)?,
        Command::Logs { component, tail, follow } => {
            commands::logs(&home, component.as_deref(), tail, follow)?;
        }
        Command::Node { action, name } => commands::node(&home, &name, action)?,
        Command::Supervise { stop } => supervisor::run(home, stop)?,
        Command::Kubelith => daemon(KUBELITH_THREADS, daemons::kubelith(home))?,
        Command::Controller => daemon(1, daemons::controller(home))?,
        Command::NodeInit(arg) => daemons::node_init(&home, &arg.node)?,
        Command::Noderuntime(arg) => daemon(1, daemons::noderuntime(home, &arg.node))?,
        Command::Agent(arg) => daemon(1, daemons::agent(home, &arg.node))?,
        Command::PodExec { .. } => unreachable!("invariant: handled above"),
    }
    Ok(ExitCode::SUCCESS)
}

/// The API server answers while it computes.
pub(crate) const KUBELITH_THREADS: usize = 2;

/// Runs a daemon's future: logging to standard error, a small runtime, one line for the end.
pub(crate) fn daemon(threads: usize, future: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_env("HOLDFAST_LOG").unwrap_or_else(|_| {
        tracing_subscriber::EnvFilter::new(
            "info,kube_client=off,kube_runtime=error,netlink_packet_route=error,hyper=warn,tower=warn",
        )
    });
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr).init();
    // Two crates of the tree could choose; the choice is made once, here.
    let _ = rustls::crypto::ring::default_provider().install_default();
    block_on(threads, future)
}

pub(crate) fn block_on<T>(threads: usize, future: impl Future<Output = T>) -> T {
    let mut builder = if threads > 1 {
        tokio::runtime::Builder::new_multi_thread()
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    if threads > 1 {
        builder.worker_threads(threads);
    }
    builder
        .enable_all()
        .thread_stack_size(8 << 20)
        .max_blocking_threads(8)
        .build()
        .expect("invariant: a process that just started may make a runtime")
        .block_on(future)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn components_are_called_as_the_command_line_reads_them() {
        let home = Home::find(Some(std::path::Path::new("/h"))).unwrap();
        for component in components::Component::all(&home::tests::facts()) {
            let args = component.args(&home);
            Cli::try_parse_from(std::iter::once("holdfast".to_owned()).chain(args)).unwrap();
        }
    }
}
