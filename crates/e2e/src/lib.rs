//! The harness of the end-to-end tests: a platform of its own per test, driven only through what users have.
//!
//! Here: [`Home`] (a running platform), waiting with deadlines, guests over SSH and TCP, the leak check.
//! [`probe`] has the few ways in that users do not have.
//! Not here: the tests, one file per chapter of the issue, in `tests/`. Nothing of the product is linked in.

pub mod bench;
pub mod guest;
pub mod home;
pub mod leaks;
pub mod manifests;
pub mod probe;

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

pub use guest::Guest;
pub use home::Home;

/// A probe is often a kubectl, which computes longer than what it asks for; guests need the processors, too. What
/// comes soon is looked for often, what takes its time less so.
fn pause(waited: Duration, probe: Duration) -> Duration {
    const SOON: Duration = Duration::from_secs(3);
    if waited < SOON { Duration::from_millis(50) } else { (probe * 3).max(Duration::from_millis(50)) }
}

/// Tries `probe` until it gives a value; fails with `what` and the last answer after `limit`.
pub fn wait_for<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Result<T, String>) -> Result<T> {
    let start = Instant::now();
    loop {
        let asked = Instant::now();
        match probe() {
            Ok(value) => return Ok(value),
            Err(last) if start.elapsed() > limit => {
                bail!("{what}: not after {:.0?}; last seen: {last}", start.elapsed())
            }
            Err(_) => std::thread::sleep(pause(start.elapsed(), asked.elapsed())),
        }
    }
}

/// Seconds, for readable limits in tests.
pub const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
