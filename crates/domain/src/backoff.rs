//! Delays that grow with failures (vm-lifecycle.md §1.1, migration-and-maintenance.md §1.8).

use holdfast_env::Timestamp;
use jiff::SignedDuration;

/// Longest delay between attempts, seconds.
pub const CAP_S: i64 = 300;

/// Delay before a start after `failures` starts in a row that never reached Running:
/// 10 s × n², cap 300 s, plus up to half of it (`jitter` in 0..=1000 thousandths of that half).
/// The jitter never lifts a delay over the cap.
#[must_use]
pub fn start_delay_s(failures: i32, jitter_thousandths: u64) -> i64 {
    if failures <= 0 {
        return 0;
    }
    let n = i64::from(failures.min(100));
    let base = (10 * n * n).min(CAP_S);
    let jitter = i64::try_from(jitter_thousandths.min(1000)).unwrap_or(1000);
    (base + base * jitter / 2000).min(CAP_S)
}

/// Delay before the next evacuation after the `failures`-th failure: min(300 s, 2 s × 2^(n-1)).
#[must_use]
pub fn evacuation_delay_s(failures: i32) -> i64 {
    if failures <= 0 {
        return 0;
    }
    (2_i64 << (failures.min(20) - 1)).min(CAP_S)
}

/// The instant `delay_s` seconds after `from`.
#[must_use]
pub fn after(from: Timestamp, delay_s: i64) -> Timestamp {
    from.checked_add(SignedDuration::from_secs(delay_s)).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_delays_grow_with_the_square_and_stay_below_the_cap() {
        let delays: Vec<i64> = (0..8).map(|n| start_delay_s(n, 0)).collect();
        assert_eq!(delays, [0, 10, 40, 90, 160, 250, 300, 300]);
        assert_eq!(start_delay_s(1, 1000), 15);
        assert_eq!(start_delay_s(6, 1000), 300);
    }

    #[test]
    fn evacuation_delays_double_from_two_seconds() {
        let delays: Vec<i64> = (0..11).map(evacuation_delay_s).collect();
        assert_eq!(delays, [0, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        assert_eq!(evacuation_delay_s(i32::MAX), 300);
    }
}
