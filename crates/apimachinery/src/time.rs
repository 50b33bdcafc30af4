//! Timestamps and the age texts kubectl shows (KS §7.5).

use chrono::{DateTime, Utc};

/// `2026-11-20T11:47:16Z`.
#[must_use]
pub fn rfc3339(time: DateTime<Utc>) -> String {
    time.format("%Y-%m-%dT%H:%M:%SZ").to_string()
}
