//! The part of `holdfast` that runs on every node beside its init: node runtime and agent. Called by
//! `holdfast-keeper` only.

use std::process::ExitCode;

fn main() -> ExitCode {
    holdfast_platform::small::node()
}
