//! Progress lines: counted by the workers, printed once a second by a thread of its own.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use holdfast_api::import::Progress;

/// Shared counters of one import.
#[derive(Debug, Default)]
pub struct Counter {
    /// Bytes received or copied.
    bytes: AtomicU64,
    /// Thousandths of the whole work.
    thousandths: AtomicU64,
    trouble: Mutex<Option<String>>,
    stop: AtomicBool,
}

impl Counter {
    /// Adds transferred bytes.
    pub fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes transferred so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Sets the share of the work that is done: `part` of `whole`, mapped to `from..to` percent.
    /// Never goes back.
    pub fn share(&self, part: u64, whole: Option<u64>, from: u64, to: u64) {
        let Some(whole) = whole.filter(|whole| *whole > 0) else { return };
        let span = (to - from) * 10;
        let done = u128::from(part.min(whole)) * u128::from(span) / u128::from(whole);
        let value = from * 10 + u64::try_from(done).unwrap_or(span);
        self.thousandths.fetch_max(value, Ordering::Relaxed);
    }

    /// Sets or clears what holds the work up.
    pub fn trouble(&self, text: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }

    fn line(&self, since_start: Duration, last_bytes: u64) -> Progress {
        let bytes = self.bytes();
        let average = u128::from(bytes) * 1000 / since_start.as_millis().max(1);
        Progress {
            // 100 is said by the result only.
            percent: u8::try_from(self.thousandths.load(Ordering::Relaxed) / 10).unwrap_or(99).min(99),
            transferred_bytes: bytes,
            average_bytes_per_second: u64::try_from(average).unwrap_or(u64::MAX),
            current_bytes_per_second: bytes.saturating_sub(last_bytes),
            trouble: self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

/// Prints the lines until dropped.
#[derive(Debug)]
pub struct Printer {
    wake: Option<mpsc::Sender<()>>,
    counter: Arc<Counter>,
    thread: Option<JoinHandle<()>>,
}

impl Printer {
    /// Starts printing.
    #[must_use]
    pub fn start(counter: Arc<Counter>) -> Self {
        let (wake, woken) = mpsc::channel();
        let shared = counter.clone();
        let thread = std::thread::spawn(move || {
            let started = Instant::now();
            let mut last = 0;
            while !shared.stop.load(Ordering::Relaxed) {
                let line = shared.line(started.elapsed(), last);
                last = line.transferred_bytes;
                println!("{}", serde_json::to_string(&line).unwrap_or_default());
                let _ = woken.recv_timeout(Duration::from_secs(1));
            }
        });
        Self { wake: Some(wake), counter, thread: Some(thread) }
    }
}

impl Drop for Printer {
    fn drop(&mut self) {
        self.counter.stop.store(true, Ordering::Relaxed);
        drop(self.wake.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_maps_to_its_span_and_never_goes_back() {
        let counter = Counter::default();
        let percent = || counter.line(Duration::from_secs(1), 0).percent;
        counter.share(50, Some(100), 0, 50);
        assert_eq!(percent(), 25);
        counter.share(10, Some(100), 0, 50);
        assert_eq!(percent(), 25);
        counter.share(1, Some(2), 50, 100);
        assert_eq!(percent(), 75);
        counter.share(9, Some(9), 0, 100);
        assert_eq!(percent(), 99, "100 % is the result, not a line");
        counter.share(1, None, 0, 100);
        assert_eq!(percent(), 99);
    }
}
