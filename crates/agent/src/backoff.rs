//! Pauses between two tries of a broken watch. As in kube's own default they double and are spread, but
//! randomness and time are those of [`holdfast_env`] and of the runtime, so that a simulation repeats.

use std::time::Duration;

use kube::runtime::utils::Backoff;
use tokio::time::Instant;

const FIRST: Duration = Duration::from_millis(800);
const LAST: Duration = Duration::from_secs(30);
/// A watch that held this long begins anew with the first pause.
const HELD: Duration = Duration::from_secs(120);

/// Doubling pauses from 0.8 s to 30 s, each lengthened by up to its own length.
#[derive(Debug, Default)]
pub struct Pauses {
    tries: u32,
    last: Option<Instant>,
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let now = Instant::now();
        if self.last.replace(now).is_some_and(|last| now.duration_since(last) > HELD) {
            self.tries = 0;
        }
        let pause = (FIRST * 2u32.saturating_pow(self.tries.min(16))).min(LAST);
        self.tries += 1;
        let spread_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX).max(1);
        Some(pause + Duration::from_millis(holdfast_env::random_u64() % spread_ms))
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {
        // One good event of a watch that breaks again at once is no reason to hurry.
        if self.last.is_some_and(|last| last.elapsed() > HELD) {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_to_their_limit_and_shrink_after_a_quiet_time() {
        let mut pauses = Pauses::default();
        let first = pauses.next().unwrap();
        assert!((FIRST..2 * FIRST).contains(&first), "{first:?}");
        let tenth = pauses.nth(8).unwrap();
        assert!((LAST..2 * LAST).contains(&tenth), "{tenth:?}");
        pauses.reset();
        assert!(pauses.next().unwrap() >= LAST, "reset at once is not heeded");
        tokio::time::advance(HELD * 2).await;
        assert!(pauses.next().unwrap() < 2 * FIRST);
    }
}
