//! `holdfast-launcher`: see the library of the same crate.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use holdfast_hypervisor::qemu::Qemu;
use holdfast_launcher::{Config, Outside};
use holdfast_wire::Id;
use holdfast_wire::launcher::Cause;

/// Runs one virtual machine inside its pod, told by the node's agent over a unix socket.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Uid of the Instance this pod belongs to.
    #[arg(long, env = "HOLDFAST_INSTANCE_UID")]
    instance_uid: String,
    /// Number of the power-on this pod belongs to.
    #[arg(long, env = "HOLDFAST_EPOCH")]
    epoch: i64,
    /// Uid of this pod.
    #[arg(long, env = "HOLDFAST_POD_UID")]
    pod_uid: String,
    /// The pod's `run` volume: sockets and records.
    #[arg(long, env = "HOLDFAST_RUN_DIR", default_value = "/var/run/holdfast/run")]
    run_dir: PathBuf,
    /// Seconds the guest gets to power off after SIGTERM.
    #[arg(long, env = "HOLDFAST_GRACE_PERIOD_SECONDS", default_value_t = 60)]
    grace_period_seconds: u64,
    /// The QEMU program.
    #[arg(long, env = "HOLDFAST_QEMU", default_value = "/usr/bin/qemu-system-x86_64")]
    qemu: PathBuf,
    /// The container's termination log; nothing is written where it does not exist.
    #[arg(long, env = "HOLDFAST_TERMINATION_LOG", default_value = "/dev/termination-log")]
    termination_log: PathBuf,
    /// Log level: error, warn, info, debug or trace.
    #[arg(long, env = "HOLDFAST_LOG", default_value = "info")]
    log: tracing::Level,
}

fn main() -> ExitCode {
    holdfast_sys::memory::stay_small();
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_max_level(arguments.log)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .init();
    match serve(arguments) {
        Ok(code) => code,
        Err(e) => {
            tracing::error!("{e:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let Arguments {
        instance_uid,
        epoch,
        pod_uid,
        run_dir,
        grace_period_seconds,
        qemu,
        termination_log,
        log: _,
    } = arguments;
    // Socket addresses hold 107 bytes, run directories are longer: everything is named relative to it.
    std::env::set_current_dir(&run_dir).with_context(|| format!("entering {}", run_dir.display()))?;
    let config = Config {
        id: Id { instance_uid, epoch, pod_uid },
        run_dir: ".".into(),
        grace_s: grace_period_seconds,
        sandbox: true,
        qemu_version: String::new(),
        termination_log,
        outside: Outside::default(),
    };
    tracing::info!(id = %config.id, run_dir = %run_dir.display(), "launcher");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let record = runtime.block_on(async {
        let config = Config { qemu_version: holdfast_hypervisor::qemu::installed_version(&qemu)?, ..config };
        holdfast_launcher::run(config, Qemu { program: qemu }).await.context("serving the agent")
    })?;
    Ok(match record.map(|r| r.cause) {
        Some(Cause::Crash | Cause::StartFailed) | None => ExitCode::FAILURE,
        Some(_) => ExitCode::SUCCESS,
    })
}
