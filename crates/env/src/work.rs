//! What work costs: how long it kept a thread busy, waiting left out.
//!
//! A simulation whose histories must be the same each time lets all work cost nothing; one that measures
//! shows the real cost ([`crate::ambient::Ambient::stopwatch`]).

use std::future::Future;
use std::pin::pin;
use std::time::{Duration, Instant};

use crate::ambient;

/// Runs from the moment it is made.
#[derive(Clone, Copy, Debug)]
pub enum Stopwatch {
    /// By the machine's clock.
    Real(Instant),
    /// By a simulation's.
    Simulated(Duration),
}

impl Stopwatch {
    /// Starts one.
    #[must_use]
    pub fn start() -> Self {
        ambient::stopwatch().map_or_else(|| Self::Real(Instant::now()), Self::Simulated)
    }

    /// Time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        match self {
            Self::Real(began) => began.elapsed(),
            Self::Simulated(began) => ambient::stopwatch().unwrap_or_default().saturating_sub(*began),
        }
    }
}

/// Finishes `task` and tells how long it kept the thread busy: what it waited for does not count.
pub async fn busy<F: Future>(task: F) -> (F::Output, Duration) {
    let mut task = pin!(task);
    let mut sum = Duration::ZERO;
    let output = std::future::poll_fn(|context| {
        let stopwatch = Stopwatch::start();
        let poll = task.as_mut().poll(context);
        sum += stopwatch.elapsed();
        poll
    });
    (output.await, sum)
}

/// Tells a simulation that measures what a piece of work, such as the decision of a controller, has cost.
pub fn note(kind: &str, name: &str, took: Duration) {
    ambient::note_work(kind, name, took);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waiting_is_no_work() {
        let ((), took) = busy(tokio::time::sleep(Duration::from_secs(3600))).await;
        assert!(took < Duration::from_secs(60));
        let ((), took) = busy(async { std::thread::sleep(Duration::from_millis(5)) }).await;
        assert!(took >= Duration::from_millis(5));
    }
}
