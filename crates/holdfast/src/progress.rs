//! Lines that say what is being done and how long it has taken.

use std::io::{IsTerminal as _, Write as _};
use std::time::Instant;

/// Writes `[ 1.2s] text` lines; on a terminal the present line moves until it is done.
#[derive(Debug)]
pub struct Progress {
    started: Instant,
    moving: bool,
    shown: String,
}

impl Progress {
    /// Starts the clock.
    #[must_use]
    pub fn start() -> Self {
        Self { started: Instant::now(), moving: std::io::stdout().is_terminal(), shown: String::new() }
    }

    /// What is going on now. Off a terminal only changes are written.
    pub fn now(&mut self, text: &str) {
        if self.moving {
            print!("\r\x1b[K{}", self.stamp(text));
            let _ = std::io::stdout().flush();
        } else if text != self.shown {
            println!("{}", self.stamp(text));
        }
        text.clone_into(&mut self.shown);
    }

    /// A finished step.
    pub fn done(&mut self, text: &str) {
        let lead = if self.moving { "\r\x1b[K" } else { "" };
        println!("{lead}{}", self.stamp(text));
        self.shown.clear();
    }

    /// Time since the start.
    #[must_use]
    pub fn elapsed(&self) -> std::time::Duration {
        self.started.elapsed()
    }

    fn stamp(&self, text: &str) -> String {
        format!("[{:5.1}s] {text}", self.started.elapsed().as_secs_f64())
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.moving && !self.shown.is_empty() {
            println!();
        }
    }
}
