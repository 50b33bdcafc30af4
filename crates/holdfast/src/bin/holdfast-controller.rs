//! The part of `holdfast` that is the product's controllers. Called by the supervisor only.

use std::process::ExitCode;

fn main() -> ExitCode {
    holdfast_platform::small::controller()
}
