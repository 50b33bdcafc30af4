//! Timestamps and the age texts kubectl shows (KS §7.5).

use chrono::{DateTime, Utc};

/// `2026-11-20T11:47:16Z`.
#[must_use]
pub fn rfc3339(time: DateTime<Utc>) -> String {
    time.format("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// `2026-11-20T11:47:16.123456Z`.
#[must_use]
pub fn rfc3339_micros(time: DateTime<Utc>) -> String {
    time.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

/// Parses RFC 3339.
#[must_use]
pub fn parse(text: &str) -> Option<DateTime<Utc>> {
    DateTime::parse_from_rfc3339(text).ok().map(|time| time.with_timezone(&Utc))
}

/// Age of a timestamp string: `<unknown>` when absent, `<invalid>` when unparsable.
#[must_use]
pub fn age(text: Option<&str>, now: DateTime<Utc>) -> String {
    match text {
        None | Some("") => "<unknown>".to_owned(),
        Some(text) => parse(text)
            .map_or_else(|| "<invalid>".to_owned(), |time| duration_text((now - time).num_seconds())),
    }
}

/// The short duration text: `75s`, `5m3s`, `3h7m`, `3d4h`, `6y325d`. More than one second in the
/// future is `<invalid>`.
#[must_use]
pub fn duration_text(seconds: i64) -> String {
    if seconds < -1 {
        return "<invalid>".to_owned();
    }
    if seconds < 0 {
        return "0s".to_owned();
    }
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let (days, years) = (hours / 24, hours / 24 / 365);
    let pair = |a: i64, unit_a: &str, b: i64, unit_b: &str| {
        if b == 0 { format!("{a}{unit_a}") } else { format!("{a}{unit_a}{b}{unit_b}") }
    };
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => pair(minutes, "m", seconds % 60, "s"),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => pair(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if hours < 192 => pair(days, "d", hours % 24, "h"),
        () if hours < 24 * 365 * 2 => format!("{days}d"),
        () if hours < 24 * 365 * 8 => pair(years, "y", days % 365, "d"),
        () => format!("{years}y"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duration_texts_follow_kubectl() {
        for (seconds, text) in [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (75, "75s"),
            (119, "119s"),
            (120, "2m"),
            (303, "5m3s"),
            (300, "5m"),
            (2520, "42m"),
            (3 * 3600 + 7 * 60, "3h7m"),
            (30 * 3600, "30h"),
            (3 * 86400 + 4 * 3600, "3d4h"),
            (8 * 86400, "8d"),
            (400 * 86400, "400d"),
            ((6 * 365 + 325) * 86400, "6y325d"),
            (9 * 365 * 86400, "9y"),
        ] {
            assert_eq!(duration_text(seconds), text, "{seconds}");
        }
    }
}
