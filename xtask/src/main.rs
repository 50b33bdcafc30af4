//! Workspace chores: `cargo run -p xtask -- <chore>`.
//!
//! `codegen` writes what is generated from the types, `tidy` checks the rules of the tree that no
//! compiler knows, `licences` those of the dependencies, `acceptance` counts the rows of the specs' acceptance tables
//! that a test cites.

mod acceptance;
mod codegen;
mod licences;
mod tidy;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

/// Workspace chores.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Writes `deploy/crds/*.yaml` from the types of the crate `api`.
    Codegen,
    /// Checks crate levels, file sizes, module headers and the purity of plans.
    Tidy,
    /// Checks the licences of all dependencies.
    Licences,
    /// Runs histories of the simulation; arguments are passed on (see docs/simulation.md).
    Sim {
        /// For `holdfast-sim`, such as `--seed 42`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Counts acceptance rows with a test; V=1 lists those without.
    Acceptance,
}

fn main() -> Result<()> {
    match Args::parse().chore {
        Chore::Codegen => codegen::write(),
        Chore::Tidy => tidy::check(),
        Chore::Licences => licences::check(),
        Chore::Sim { arguments } => sim(&arguments),
        Chore::Acceptance => acceptance::report(),
    }
}

/// The simulation is a program of its own, built with its feature for deliberate bugs: chores stay quick.
fn sim(arguments: &[String]) -> Result<()> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let build = ["build", "--quiet", "--release", "--workspace", "--bin", "holdfast-sim"];
    let build = ["--config", "crates/sim/fast.toml"].into_iter().chain(build);
    let built = std::process::Command::new(cargo).args(build).current_dir(root()).status();
    anyhow::ensure!(
        built.context("cargo could not be started")?.success(),
        "the simulation does not compile, see above"
    );
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), Into::into);
    let program = target.join("release/holdfast-sim");
    let status = std::process::Command::new(program).args(arguments).current_dir(root()).status();
    anyhow::ensure!(
        status.context("the simulation could not be started")?.success(),
        "the simulation has found something, see above"
    );
    Ok(())
}

/// Root folder of the workspace.
fn root() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("invariant: xtask lies in the workspace root")
        .to_path_buf()
}

/// Every Rust file of the workspace: path relative to the root, and text.
fn sources() -> Result<Vec<(String, String)>> {
    let root = root();
    let mut folders = vec![root.join("crates"), root.join("xtask")];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in
            std::fs::read_dir(&folder).with_context(|| format!("{} could not be read", folder.display()))?
        {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let relative = path.strip_prefix(&root).unwrap_or(&path).to_string_lossy().into_owned();
                files.push((relative, std::fs::read_to_string(&path)?));
            }
        }
    }
    files.sort();
    Ok(files)
}
