//! The part of `holdfast` that must be small, because one runs for each home and node: supervisor, node
//! init, and what becomes a container. Called by `holdfast` only.

use std::process::ExitCode;

fn main() -> ExitCode {
    holdfast_platform::small::keeper()
}
