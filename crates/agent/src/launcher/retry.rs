//! The pauses between tries of one step.

use std::time::Duration;

use tokio::time::Instant;

/// Waits between tries of one step, from a tenth of a second to five seconds.
#[derive(Debug, Default)]
pub(super) struct Retry {
    /// Not before.
    pub(super) at: Option<Instant>,
    /// Tries so far.
    pub(super) count: u32,
}

impl Retry {
    pub(super) fn is_due(&self) -> bool {
        self.at.is_none_or(|at| at <= Instant::now())
    }

    pub(super) fn again(&mut self) {
        let pause = Duration::from_millis(100) * 2u32.saturating_pow(self.count.min(6));
        self.count += 1;
        self.at = Some(Instant::now() + pause.min(Duration::from_secs(5)));
    }
}
