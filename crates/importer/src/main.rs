//! `holdfast-importer --request <json>`: the program of importer pods. Prints one JSON progress line
//! a second; leaves its result as the pod's termination message.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use holdfast_api::import::{Outcome, Request, SCRATCH_DIR};
use holdfast_importer::task;

/// Fills a volume with a disk or image.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// What to do, as JSON.
    #[arg(long)]
    request: String,
    /// Where to leave the result.
    #[arg(long, env = "HOLDFAST_TERMINATION_LOG", default_value = "/dev/termination-log")]
    termination_log: PathBuf,
    /// Directory for temporary files.
    #[arg(long, env = "HOLDFAST_SCRATCH", default_value = SCRATCH_DIR)]
    scratch: PathBuf,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = match serde_json::from_str::<Request>(&args.request) {
        Ok(request) => match task::run(&request, &args.scratch) {
            Ok(facts) => Outcome::Done(facts),
            Err(error) => Outcome::Failed { message: error.to_string() },
        },
        Err(error) => {
            Outcome::Failed { message: format!("The importer does not understand its request: {error}.") }
        }
    };
    report(&outcome, &args.termination_log);
    match outcome {
        Outcome::Done(_) => ExitCode::SUCCESS,
        Outcome::Failed { .. } => ExitCode::FAILURE,
    }
}

/// Leaves the result; where even that fails it is at least in the log.
fn report(outcome: &Outcome, log: &Path) {
    let text = serde_json::to_string(outcome).unwrap_or_default();
    if let Outcome::Failed { message } = outcome {
        eprintln!("{message}");
    }
    let written = std::fs::OpenOptions::new().write(true).create(true).truncate(true).open(log);
    if let Err(error) = written.and_then(|mut file| file.write_all(text.as_bytes())) {
        eprintln!("writing the result to {} failed: {error}; it is: {text}", log.display());
    }
}
