//! How a loop is driven: woken by caches or by its own timer, one pass at a time, errors with back-off.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use holdfast_env::work;
use tokio::sync::Notify;

/// Upper limit of the pause after failing passes.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// A pass that takes no longer than this is followed by no rest.
const LIGHT: Duration = Duration::from_millis(5);
/// Rest after a heavier pass, as a multiple of its time: a loop takes a fifth of a core at most.
const REST: u32 = 4;
/// Longest rest.
const REST_MAX: Duration = Duration::from_secs(5);

/// How long a loop rests after a pass that kept it busy for so long. A loop looks at the whole picture, which
/// in a large cluster takes a while; it must not do so for every change.
fn rest(busy: Duration) -> Duration {
    (busy.saturating_sub(LIGHT) * REST).min(REST_MAX)
}

/// One look at the world and the writes that follow from it.
pub(crate) trait Pass: Send {
    /// Does one pass; the result says after which time to look again when nothing changes.
    fn pass(&mut self) -> impl Future<Output = anyhow::Result<Duration>> + Send;
}

/// Drives `pass` for ever. `settle` is the pause between being woken and looking, so that a burst of
/// changes costs one pass.
pub(crate) async fn drive<P: Pass>(name: &'static str, wake: Arc<Notify>, settle: Duration, mut pass: P) {
    let mut failures = 0u32;
    loop {
        let (outcome, busy) = work::busy(pass.pass()).await;
        work::note("loop", name, busy);
        let idle = match outcome {
            Ok(idle) => {
                failures = 0;
                idle
            }
            Err(error) => {
                failures = failures.saturating_add(1);
                let pause =
                    (Duration::from_millis(100) * 2u32.saturating_pow(failures.min(10))).min(RETRY_MAX);
                tracing::warn!(controller = name, "{error:#}; again in {pause:?}");
                tokio::time::sleep(pause).await;
                continue;
            }
        };
        tokio::time::sleep(rest(busy)).await;
        tokio::select! {
            biased;
            () = wake.notified() => {
                if !settle.is_zero() {
                    tokio::time::sleep(settle).await;
                }
            }
            () = tokio::time::sleep(idle) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn light_passes_follow_each_other_at_once_and_heavy_ones_leave_room() {
        let ms = Duration::from_millis;
        let rests = [0, 5, 15, 105, 60_000].map(|busy| rest(ms(busy)));
        assert_eq!(rests, [ms(0), ms(0), ms(40), ms(400), REST_MAX]);
    }
}
