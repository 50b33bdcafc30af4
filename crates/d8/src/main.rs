//! `d8`: the users' command line. `d8 k …` is kubectl with the right kubeconfig, `d8 v …` works on VMs.
//!
//! Here: the command tree and the exit codes. Not here: what the API server decides. Source: cli-and-console.md part I.

mod arguments;
mod connection;
mod console;
mod drain_plan;
mod kubectl;
mod lifecycle;
mod port_forward;
mod ssh;
mod target;
mod vnc;
mod websocket;

use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand};

use connection::ConnectionFlags;

#[derive(Parser)]
#[command(name = "d8", version, about = "Holdfast's command line", propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// kubectl with the kubeconfig of the platform
    #[command(visible_alias = "kubectl", disable_help_flag = true)]
    K {
        /// Arguments of kubectl, as they are
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, num_args = 0..)]
        args: Vec<String>,
    },
    /// Work on virtual machines
    #[command(visible_alias = "virtualization")]
    V(Box<V>),
}

#[derive(Args)]
struct V {
    #[command(flatten)]
    connection: ConnectionFlags,
    #[command(subcommand)]
    command: VCommand,
}

#[derive(Subcommand)]
enum VCommand {
    /// Open the serial console of a virtual machine
    Console(console::ConsoleArgs),
    /// Forward the screen (VNC) of a virtual machine to a local port
    Vnc(vnc::VncArgs),
    /// Open an SSH session to a virtual machine through the API server
    Ssh(ssh::SshArgs),
    /// Forward local ports to a virtual machine
    PortForward(port_forward::PortForwardArgs),
    /// Start a virtual machine
    Start(lifecycle::LifecycleArgs),
    /// Stop a virtual machine
    Stop(lifecycle::LifecycleArgs),
    /// Restart a virtual machine
    Restart(lifecycle::LifecycleArgs),
    /// Move a running virtual machine to another node
    Evict(lifecycle::LifecycleArgs),
    /// Say what a drain of a node would do, without touching anything
    DrainPlan(drain_plan::DrainPlanArgs),
    #[command(hide = true, disable_help_flag = true)]
    Scp(NotYet),
    #[command(hide = true, disable_help_flag = true)]
    Migrate(NotYet),
    #[command(hide = true, disable_help_flag = true)]
    AnsibleInventory(NotYet),
    #[command(hide = true, disable_help_flag = true)]
    CollectDebugInfo(NotYet),
}

#[derive(Args)]
struct NotYet {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, num_args = 0..)]
    _args: Vec<String>,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors; everything else is one, and one is the exit code (§2).
            match arguments::wrong_number(Cli::command(), std::env::args_os()) {
                Some(text) if error.use_stderr() => eprintln!("{text}"),
                _ => {
                    let _ = error.print();
                }
            }
            return if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    let done = match cli.command {
        Command::K { args } => kubectl::exec(args),
        Command::V(v) => virtualization(*v),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn virtualization(v: V) -> anyhow::Result<ExitCode> {
    let V { connection, command } = v;
    let not_yet = |verb: &str, instead: &str| anyhow::bail!("{verb} is not available yet{instead}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if let VCommand::Ssh(args) = command {
        let vm = runtime.block_on(ssh::identity(&connection, &args));
        return ssh::exec(&connection, &args, vm.as_deref());
    }
    let code = runtime.block_on(async {
        match command {
            VCommand::Console(args) => console::run(&connection, &args).await,
            VCommand::Vnc(args) => vnc::run(&connection, &args).await,
            VCommand::PortForward(args) => port_forward::run(&connection, &args).await,
            VCommand::Start(args) => lifecycle::run(&connection, lifecycle::Verb::Start, &args).await,
            VCommand::Stop(args) => lifecycle::run(&connection, lifecycle::Verb::Stop, &args).await,
            VCommand::Restart(args) => lifecycle::run(&connection, lifecycle::Verb::Restart, &args).await,
            VCommand::Evict(args) => lifecycle::run(&connection, lifecycle::Verb::Evict, &args).await,
            VCommand::DrainPlan(args) => drain_plan::run(&connection, &args).await,
            VCommand::Ssh(_) => unreachable!("invariant: handled above"),
            VCommand::Scp(_) => not_yet("scp", ": use d8 v port-forward NAME 2222:22 and scp -P 2222"),
            VCommand::Migrate(_) => not_yet("migrate", ": d8 v evict moves a virtual machine"),
            VCommand::AnsibleInventory(_) => not_yet("ansible-inventory", ""),
            VCommand::CollectDebugInfo(_) => not_yet("collect-debug-info", ""),
        }
    });
    // A thread may still sit in a read of the terminal: do not wait for it.
    runtime.shutdown_background();
    code
}
