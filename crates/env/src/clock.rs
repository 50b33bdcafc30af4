//! Time as a value: the real clock and one that tests move by hand.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

/// An instant in UTC, the type Kubernetes objects carry.
pub type Timestamp = jiff::Timestamp;

/// Where `now` comes from. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// The clock of this machine, or the one of the simulation on this thread ([`crate::ambient`]).
    #[default]
    Real,
    /// A clock that stands still until a test moves it.
    Virtual(VirtualClock),
}

impl Clock {
    /// The current instant.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        match self {
            Clock::Real => crate::now(),
            Clock::Virtual(clock) => clock.now(),
        }
    }

    /// Returns when the clock shows `at` or later.
    pub async fn sleep_until(&self, at: Timestamp) {
        match self {
            Clock::Real => {
                let left = Duration::try_from(at.duration_since(crate::now()));
                // A negative rest means that the instant has passed.
                if let Ok(left) = left {
                    tokio::time::sleep(left).await;
                }
            }
            Clock::Virtual(clock) => clock.reach(at).await,
        }
    }
}

/// A clock moved by hand; all clones share one time.
#[derive(Clone, Debug)]
pub struct VirtualClock {
    inner: Arc<Mutex<watch::Sender<Timestamp>>>,
}

impl VirtualClock {
    /// A clock that shows `start`.
    #[must_use]
    pub fn new(start: Timestamp) -> Self {
        Self { inner: Arc::new(Mutex::new(watch::Sender::new(start))) }
    }

    /// The instant shown now.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        *self.inner.lock().borrow()
    }

    /// Moves the clock on and wakes whoever waited for the instants passed.
    pub fn advance(&self, by: Duration) {
        let by = jiff::SignedDuration::try_from(by).unwrap_or(jiff::SignedDuration::MAX);
        self.inner.lock().send_modify(|now| {
            *now = now.checked_add(by).unwrap_or(Timestamp::MAX);
        });
    }

    async fn reach(&self, at: Timestamp) {
        let mut seen = self.inner.lock().subscribe();
        // The sender lives in `self`, so the wait cannot fail while we hold it.
        let _ = seen.wait_for(|now| *now >= at).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_sleeper_wakes_when_the_virtual_clock_reaches_its_instant() {
        let clock = VirtualClock::new(Timestamp::UNIX_EPOCH);
        let at = Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_secs(10);
        let sleeper = tokio::spawn({
            let clock = Clock::Virtual(clock.clone());
            async move {
                clock.sleep_until(at).await;
                clock.now()
            }
        });
        clock.advance(Duration::from_secs(4));
        tokio::task::yield_now().await;
        assert!(!sleeper.is_finished());
        clock.advance(Duration::from_secs(6));
        assert_eq!(sleeper.await.unwrap(), at);
    }

    #[tokio::test]
    async fn an_instant_in_the_past_does_not_wait() {
        Clock::Real.sleep_until(Timestamp::UNIX_EPOCH).await;
    }
}
