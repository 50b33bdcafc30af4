//! The work queue of one controller: each key at most once in the queue and at most once in
//! work; a key touched while in work comes again afterwards; one timer per key.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use holdfast_env::{Clock, Timestamp};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::Key;

#[derive(Debug, Default)]
struct State {
    ready: VecDeque<Key>,
    queued: BTreeSet<Key>,
    working: BTreeSet<Key>,
    again: BTreeSet<Key>,
    timers: BTreeSet<(Timestamp, Key)>,
    timer_of: BTreeMap<Key, Timestamp>,
}

impl State {
    fn push(&mut self, key: Key) {
        if self.working.contains(&key) {
            self.again.insert(key);
        } else if self.queued.insert(key.clone()) {
            self.ready.push_back(key);
        }
    }

    fn clear_timer(&mut self, key: &Key) {
        if let Some(at) = self.timer_of.remove(key) {
            self.timers.remove(&(at, key.clone()));
        }
    }

    fn fire(&mut self, now: Timestamp) {
        while let Some((at, key)) = self.timers.first().cloned() {
            if at > now {
                return;
            }
            self.clear_timer(&key);
            self.push(key);
        }
    }
}

/// Shared by the watchers that push and the dispatcher that takes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Queue {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

impl Queue {
    pub(crate) fn push(&self, key: Key) {
        self.state.lock().push(key);
        self.changed.notify_one();
    }

    /// Takes the next key, waiting for one; the key counts as in work until [`Queue::done`].
    pub(crate) async fn take(&self, clock: &Clock) -> Key {
        loop {
            let next_timer = {
                let mut state = self.state.lock();
                state.fire(clock.now());
                if let Some(key) = state.ready.pop_front() {
                    state.queued.remove(&key);
                    state.working.insert(key.clone());
                    return key;
                }
                state.timers.first().map(|(at, _)| *at)
            };
            match next_timer {
                Some(at) => tokio::select! {
                    biased;
                    () = self.changed.notified() => {}
                    () = clock.sleep_until(at) => {}
                },
                None => self.changed.notified().await,
            }
        }
    }

    /// Ends the work on a key; `wake` replaces the key's timer.
    pub(crate) fn done(&self, key: &Key, wake: Option<Timestamp>) {
        let mut state = self.state.lock();
        state.working.remove(key);
        state.clear_timer(key);
        if let Some(at) = wake {
            state.timers.insert((at, key.clone()));
            state.timer_of.insert(key.clone(), at);
        }
        if state.again.remove(key) {
            state.push(key.clone());
        }
        drop(state);
        self.changed.notify_one();
    }

    pub(crate) fn len(&self) -> usize {
        self.state.lock().ready.len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use holdfast_env::VirtualClock;

    use super::*;

    fn key(name: &str) -> Key {
        Key::new("ns", name)
    }

    #[tokio::test]
    async fn a_key_touched_while_in_work_comes_again_once() {
        let (queue, clock) = (Queue::default(), Clock::Real);
        queue.push(key("a"));
        queue.push(key("a"));
        let taken = queue.take(&clock).await;
        queue.push(key("a"));
        queue.push(key("a"));
        assert_eq!(queue.len(), 0, "not while it is in work");
        queue.done(&taken, None);
        assert_eq!(queue.take(&clock).await, key("a"));
        queue.done(&key("a"), None);
        assert_eq!(queue.len(), 0);
    }

    #[tokio::test]
    async fn a_timer_fires_at_its_instant_and_the_last_one_set_counts() {
        let virtual_clock = VirtualClock::new(Timestamp::UNIX_EPOCH);
        let clock = Clock::Virtual(virtual_clock.clone());
        let queue = Queue::default();
        let at = |s| Timestamp::from_second(s).unwrap();
        queue.done(&key("a"), Some(at(5)));
        queue.done(&key("a"), Some(at(10)));
        let waiting = tokio::spawn({
            let (queue, clock) = (queue.clone(), clock.clone());
            async move { (queue.take(&clock).await, clock.now()) }
        });
        tokio::task::yield_now().await;
        virtual_clock.advance(Duration::from_secs(6));
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        virtual_clock.advance(Duration::from_secs(4));
        assert_eq!(waiting.await.unwrap(), (key("a"), at(10)));
    }
}
