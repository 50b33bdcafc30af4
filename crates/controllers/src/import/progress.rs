//! How progress looks in a status.

use holdfast_api::import::Progress;
use holdfast_api::source::DownloadSpeed;
use holdfast_env::Timestamp;

/// `status.progress`.
#[must_use]
pub fn percent(progress: Option<&Progress>) -> String {
    format!("{}%", progress.map_or(0, |progress| progress.percent.min(100)))
}

/// `status.downloadSpeed`.
#[must_use]
pub fn speed(progress: &Progress) -> DownloadSpeed {
    let (average, current) = (progress.average_bytes_per_second, progress.current_bytes_per_second);
    DownloadSpeed {
        avg: Some(format!("{}/s", human(average))),
        avg_bytes: Some(average.to_string()),
        current: Some(format!("{}/s", human(current))),
        current_bytes: Some(current.to_string()),
    }
}

/// Bytes for people: three digits and a unit, such as `199M` or `1.5G` (powers of 1024).
#[must_use]
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "K", "M", "G", "T", "P"];
    let mut unit = 0;
    let mut tenths = u128::from(bytes) * 10;
    while tenths >= 10 * 1000 && unit + 1 < UNITS.len() {
        tenths = tenths.div_ceil(1024);
        unit += 1;
    }
    if unit == 0 || tenths >= 100 || tenths % 10 == 0 {
        return format!("{}{}", tenths.div_ceil(10), UNITS[unit]);
    }
    format!("{}.{}{}", tenths / 10, tenths % 10, UNITS[unit])
}

/// Duration text such as `1m5s`, whole seconds.
#[must_use]
pub fn duration(from: Timestamp, to: Timestamp) -> String {
    let seconds = to.duration_since(from).as_secs().max(0);
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, m, s) => format!("{h}h{m}m{s}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_for_people() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1024, "1K"),
            (1536, "1.5K"),
            (199 << 20, "199M"),
            (1 << 30, "1G"),
            (2590 << 20, "2.6G"),
        ] {
            assert_eq!(human(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn durations() {
        let at = |s| Timestamp::from_second(s).unwrap();
        assert_eq!(duration(at(0), at(5)), "5s");
        assert_eq!(duration(at(0), at(65)), "1m5s");
        assert_eq!(duration(at(0), at(7322)), "2h2m2s");
    }
}
