//! Instants as Kubernetes writes them.

use chrono::{DateTime, SecondsFormat, Utc};

fn now_utc() -> DateTime<Utc> {
    let now = holdfast_env::now();
    let nanos = u32::try_from(now.subsec_nanosecond()).unwrap_or(0);
    DateTime::from_timestamp(now.as_second(), nanos).unwrap_or_default()
}

/// Now, RFC 3339, whole seconds: the form of `metav1.Time`.
#[must_use]
pub fn now() -> String {
    now_utc().to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// Now, RFC 3339 with microseconds: the form of `metav1.MicroTime`.
#[must_use]
pub fn now_micro() -> String {
    now_utc().to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// Milliseconds since 1970.
#[must_use]
pub fn now_ms() -> i64 {
    now_utc().timestamp_millis()
}

/// Milliseconds since 1970 of an RFC 3339 instant; `None` if it is none.
#[must_use]
pub fn parse_ms(text: &str) -> Option<i64> {
    DateTime::parse_from_rfc3339(text).ok().map(|time| time.timestamp_millis())
}
