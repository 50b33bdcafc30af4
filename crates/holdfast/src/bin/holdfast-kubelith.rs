//! The part of `holdfast` that is the control plane: API server and control loops. Called by the supervisor
//! only.

use std::process::ExitCode;

fn main() -> ExitCode {
    holdfast_platform::small::kubelith()
}
