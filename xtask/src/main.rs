//! Workspace chores: `cargo run -p xtask -- <chore>`.
//!
//! `codegen` writes what is generated from the types, `tidy` checks the rules of the tree that no
//! compiler knows, `acceptance` counts the rows of the specs' acceptance tables that a test cites.

mod codegen;

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
}

fn main() -> anyhow::Result<()> {
    match Args::parse().chore {
        Chore::Codegen => codegen::write(),
    }
}

/// Root folder of the workspace.
fn root() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("invariant: xtask lies in the workspace root")
        .to_path_buf()
}
