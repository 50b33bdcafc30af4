//! How a loop is driven: woken by caches or by its own timer, one pass at a time, errors with back-off.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

/// Upper limit of the pause after failing passes.
const RETRY_MAX: Duration = Duration::from_secs(5);

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
        let idle = match pass.pass().await {
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
