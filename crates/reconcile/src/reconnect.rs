//! Pauses between attempts to watch again.

use std::time::Duration;

use kube::runtime::utils::Backoff;

/// Pause after a failed watch: doubling from the first to the longest, each cut by up to a quarter at
/// random, so that many watchers of a server that comes back do not all ask in the same instant. kube's
/// own back-off draws from the thread's generator, which no simulation can repeat.
#[derive(Clone, Debug)]
pub struct Reconnect {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Reconnect {
    /// From 50 ms to 1 s: for a server on this machine, on whose return everything waits.
    #[must_use]
    pub fn local() -> Self {
        Self { first: Duration::from_millis(50), longest: Duration::from_secs(1), failures: 0 }
    }

    /// From 800 ms to 30 s, the times of Kubernetes' own clients.
    #[must_use]
    pub fn remote() -> Self {
        Self { first: Duration::from_millis(800), longest: Duration::from_secs(30), failures: 0 }
    }
}

impl Iterator for Reconnect {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let grown = self.first.saturating_mul(2u32.saturating_pow(self.failures)).min(self.longest);
        self.failures = self.failures.saturating_add(1);
        let cut = u32::try_from(holdfast_env::random_u64() % 256).unwrap_or(0);
        Some(grown - grown / 4 * cut / 256)
    }
}

impl Backoff for Reconnect {
    fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_anew() {
        let mut pauses = Reconnect::local();
        let within = |pause: Option<Duration>, most_ms: u64| {
            let pause = pause.unwrap().as_micros();
            let most = u128::from(most_ms) * 1000;
            assert!(pause <= most && pause >= most * 3 / 4, "{pause} µs of {most_ms} ms");
        };
        for most in [50, 100, 200, 400, 800, 1000, 1000] {
            within(pauses.next(), most);
        }
        for _ in 0..100 {
            within(pauses.next(), 1000);
        }
        pauses.reset();
        within(pauses.next(), 50);
    }
}
