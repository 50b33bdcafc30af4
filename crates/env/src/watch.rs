//! A value that many tasks watch, woken in the order in which they began to wait.
//!
//! The same as `tokio::sync::watch`, but for that order: there it is random, and one seed would not give
//! one history of the simulation (docs/simulation.md). Only what the platform uses is here.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::{RwLock, RwLockReadGuard};
use tokio::sync::Notify;

#[derive(Debug)]
struct Shared<T> {
    value: RwLock<T>,
    /// Grows by one with every change.
    version: AtomicU64,
    senders: AtomicUsize,
    receivers: AtomicUsize,
    changed: Notify,
}

/// Changes the value. When the last one is dropped, receivers hear of it.
#[derive(Debug)]
pub struct Sender<T>(Arc<Shared<T>>);

/// Sees the value and waits for changes.
#[derive(Debug)]
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    seen: u64,
}

/// The value, borrowed: no change can happen while this is held, so it is held briefly.
#[derive(Debug)]
pub struct Ref<'a, T>(RwLockReadGuard<'a, T>);

impl<T> Deref for Ref<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// Every sender is gone: the value changes no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nobody can change the watched value any more")]
pub struct Closed;

/// Every receiver is gone; the value comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unwatched<T>(pub T);

/// A sender and a receiver that has seen the first value.
#[must_use]
pub fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
    let sender = Sender::new(value);
    let receiver = sender.subscribe();
    (sender, receiver)
}

impl<T> Sender<T> {
    /// A sender without receivers.
    #[must_use]
    pub fn new(value: T) -> Self {
        Self(Arc::new(Shared {
            value: RwLock::new(value),
            version: AtomicU64::new(0),
            senders: AtomicUsize::new(1),
            receivers: AtomicUsize::new(0),
            changed: Notify::new(),
        }))
    }

    /// A receiver that has seen the present value.
    #[must_use]
    pub fn subscribe(&self) -> Receiver<T> {
        self.0.receivers.fetch_add(1, Ordering::AcqRel);
        let seen = self.0.version.load(Ordering::Acquire);
        Receiver { shared: self.0.clone(), seen }
    }

    /// The value.
    #[must_use]
    pub fn borrow(&self) -> Ref<'_, T> {
        Ref(self.0.value.read())
    }

    /// Changes the value in place and wakes receivers if `change` says that it did.
    pub fn send_if_modified(&self, change: impl FnOnce(&mut T) -> bool) -> bool {
        {
            let mut value = self.0.value.write();
            if !change(&mut value) {
                return false;
            }
            // Under the lock, so that whoever sees the new version sees the new value.
            self.0.version.fetch_add(1, Ordering::Release);
        }
        self.0.changed.notify_waiters();
        true
    }

    /// Changes the value in place and wakes receivers.
    pub fn send_modify(&self, change: impl FnOnce(&mut T)) {
        self.send_if_modified(|value| {
            change(value);
            true
        });
    }

    /// Replaces the value, wakes receivers, gives the old value back.
    pub fn send_replace(&self, mut new: T) -> T {
        self.send_modify(|value| std::mem::swap(value, &mut new));
        new
    }

    /// Replaces the value if anybody watches it.
    ///
    /// # Errors
    /// Nobody does.
    pub fn send(&self, value: T) -> Result<(), Unwatched<T>> {
        if self.0.receivers.load(Ordering::Acquire) == 0 {
            return Err(Unwatched(value));
        }
        self.send_replace(value);
        Ok(())
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.senders.fetch_add(1, Ordering::AcqRel);
        Self(self.0.clone())
    }
}

impl<T: Default> Default for Sender<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if self.0.senders.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.changed.notify_waiters();
        }
    }
}

impl<T> Receiver<T> {
    /// The value.
    #[must_use]
    pub fn borrow(&self) -> Ref<'_, T> {
        Ref(self.shared.value.read())
    }

    /// The value, which counts as seen from now on.
    pub fn borrow_and_update(&mut self) -> Ref<'_, T> {
        let value = self.shared.value.read();
        self.seen = self.shared.version.load(Ordering::Acquire);
        Ref(value)
    }

    /// The present value counts as seen.
    pub fn mark_unchanged(&mut self) {
        self.seen = self.shared.version.load(Ordering::Acquire);
    }

    /// Waits until the value has changed since it was last seen, and sees it. Cancel safe.
    ///
    /// # Errors
    /// Every sender is gone, and the last value was seen.
    pub async fn changed(&mut self) -> Result<(), Closed> {
        loop {
            let notified = self.shared.changed.notified();
            tokio::pin!(notified);
            // From here on no change is missed.
            notified.as_mut().enable();
            let version = self.shared.version.load(Ordering::Acquire);
            if version != self.seen {
                self.seen = version;
                return Ok(());
            }
            if self.shared.senders.load(Ordering::Acquire) == 0 {
                return Err(Closed);
            }
            notified.await;
        }
    }

    /// Waits until the value is as wanted, and sees it. Cancel safe.
    ///
    /// # Errors
    /// Every sender is gone, and the last value is not as wanted.
    pub async fn wait_for(&mut self, mut is_wanted: impl FnMut(&T) -> bool) -> Result<Ref<'_, T>, Closed> {
        let mut closed = false;
        loop {
            self.mark_unchanged();
            if is_wanted(&self.shared.value.read()) {
                return Ok(self.borrow());
            }
            if closed {
                return Err(Closed);
            }
            closed = self.changed().await.is_err();
        }
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        self.shared.receivers.fetch_add(1, Ordering::AcqRel);
        Self { shared: self.shared.clone(), seen: self.seen }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.shared.receivers.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn a_change_is_seen_once_and_the_end_after_the_last_value() {
        let (sender, mut receiver) = channel(1);
        sender.send_replace(2);
        sender.send_replace(3);
        assert_eq!(receiver.changed().await, Ok(()));
        assert_eq!(*receiver.borrow_and_update(), 3);
        assert!(tokio::time::timeout(Duration::from_millis(10), receiver.changed()).await.is_err());
        assert!(!sender.send_if_modified(|_| false));
        sender.send_replace(4);
        drop(sender);
        assert_eq!(receiver.changed().await, Ok(()), "the last value is not lost");
        assert_eq!(receiver.changed().await, Err(Closed));
        assert!(receiver.wait_for(|value| *value == 4).await.is_ok());
        assert!(receiver.wait_for(|value| *value == 5).await.is_err());
    }

    #[tokio::test]
    async fn receivers_wake_in_the_order_in_which_they_wait() {
        let sender = Sender::new(0);
        let order = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for n in 0..20 {
            let (mut receiver, order) = (sender.subscribe(), order.clone());
            tasks.push(tokio::spawn(async move {
                receiver.changed().await.unwrap();
                order.lock().push(n);
            }));
        }
        tokio::task::yield_now().await;
        sender.send_replace(1);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.lock(), (0..20).collect::<Vec<_>>());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn nothing_is_missed_between_threads() {
        let sender = Arc::new(Sender::new(0_u32));
        let mut watchers = Vec::new();
        for _ in 0..4 {
            let mut receiver = sender.subscribe();
            watchers.push(tokio::spawn(async move {
                tokio::time::timeout(LIMIT, receiver.wait_for(|value| *value == 10_000))
                    .await
                    .unwrap()
                    .is_ok()
            }));
        }
        let feeder = sender.clone();
        tokio::task::spawn_blocking(move || {
            (1..=10_000).for_each(|n| feeder.send_modify(|value| *value = n))
        })
        .await
        .unwrap();
        for watcher in watchers {
            assert!(watcher.await.unwrap());
        }
        assert_eq!(sender.send(1), Err(Unwatched(1)), "nobody is left");
    }
}
