//! A simulated process: an executor of its own whose time only the simulation moves.
//!
//! Everything a process does runs on its own single-threaded runtime without I/O. Dropping the
//! process is `kill -9`: every task ends at the await point at which it stands.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::{Builder, Runtime};

/// Tells the driver of a runtime that nothing is left to run.
#[derive(Default)]
struct Idle {
    reached: AtomicBool,
    driver: Mutex<Option<Waker>>,
}

/// Executors keep their tasks in as many lists as this at most, or a divisor of it, by the number of the task.
const TASK_LISTS: u64 = 64;

/// Lets the next task have a number that begins a round of an executor's lists. Tasks are numbered through the
/// whole OS process, and an executor that is dropped ends its tasks list by list: without this, what dies first
/// would depend on how many tasks earlier histories had.
///
/// # Panics
/// The machine has no memory left for an executor.
pub fn align_task_numbers() {
    let runtime = Builder::new_current_thread().build();
    let runtime = runtime.expect("invariant: an executor without I/O needs memory only");
    let last = |number: u64| number % TASK_LISTS == TASK_LISTS - 1;
    // The number is shown, not given; were it shown otherwise one day, `--twice` would tell.
    while runtime.spawn(async {}).id().to_string().parse().is_ok_and(|number| !last(number)) {}
}

/// A running process.
pub struct Process {
    runtime: Runtime,
    idle: Arc<Idle>,
    /// Time of the world up to which this process has lived.
    time: Duration,
}

impl Process {
    /// A process that does nothing yet, born at `time` of the world.
    ///
    /// # Panics
    /// The machine has no memory left for an executor.
    #[must_use]
    pub fn new(time: Duration) -> Self {
        let idle = Arc::new(Idle::default());
        let hook = idle.clone();
        let runtime = Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .on_thread_park(move || {
                hook.reached.store(true, Ordering::Relaxed);
                // Waking the driver also keeps the paused clock from jumping to the next timer.
                if let Some(driver) = hook.driver.lock().take() {
                    driver.wake();
                }
            })
            .build()
            .expect("invariant: an executor without I/O needs memory only");
        Self { runtime, idle, time }
    }

    /// Time of the world up to which it has lived.
    #[must_use]
    pub fn time(&self) -> Duration {
        self.time
    }

    /// Makes what is called until the guard is dropped part of the process.
    pub fn enter(&self) -> tokio::runtime::EnterGuard<'_> {
        self.runtime.enter()
    }

    /// Gives the process something to do.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(work);
    }

    /// Moves the process on to `time` of the world and runs it until it waits for something.
    pub fn run(&mut self, time: Duration) {
        let by = time.saturating_sub(self.time);
        self.time = self.time.max(time);
        let idle = self.idle.clone();
        self.runtime.block_on(async move {
            if !by.is_zero() {
                tokio::time::advance(by).await;
            }
            // Timers that are due fire when the executor parks, so only the second time says "idle".
            for _ in 0..2 {
                idle.reached.store(false, Ordering::Relaxed);
                std::future::poll_fn(|context| {
                    if idle.reached.load(Ordering::Relaxed) {
                        return Poll::Ready(());
                    }
                    *idle.driver.lock() = Some(context.waker().clone());
                    Poll::Pending
                })
                .await;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc;
    use tokio::time::{Instant, sleep};

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn time_stands_still_until_it_is_moved_and_timers_fire_in_order() {
        let mut process = Process::new(Duration::ZERO);
        let (sender, mut heard) = mpsc::unbounded_channel();
        process.spawn(async move {
            let began = Instant::now();
            for n in 1..=3 {
                sleep(SECOND).await;
                let _ = sender.send((n, began.elapsed()));
            }
        });
        process.run(Duration::ZERO);
        assert!(heard.try_recv().is_err());
        process.run(SECOND / 2);
        assert!(heard.try_recv().is_err());
        process.run(SECOND);
        assert_eq!(heard.try_recv(), Ok((1, SECOND)));
        process.run(SECOND);
        assert!(heard.try_recv().is_err());
        process.run(SECOND * 9);
        assert_eq!(heard.try_recv(), Ok((2, SECOND * 9)), "late, as on a machine that was busy");
    }

    #[test]
    fn a_message_from_outside_is_worked_off_in_one_run_including_what_it_causes() {
        let mut process = Process::new(Duration::ZERO);
        let (sender, mut inbox) = mpsc::unbounded_channel::<u32>();
        let (out, mut heard) = mpsc::unbounded_channel();
        process.spawn(async move {
            while let Some(n) = inbox.recv().await {
                let out = out.clone();
                tokio::spawn(async move {
                    tokio::task::yield_now().await;
                    let _ = out.send(n * 2);
                });
            }
        });
        process.run(Duration::ZERO);
        let _ = sender.send(4);
        process.run(Duration::ZERO);
        assert_eq!(heard.try_recv(), Ok(8));
        drop(process);
        assert!(sender.send(5).is_err(), "the process is gone");
    }
}
