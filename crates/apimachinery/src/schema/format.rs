//! String formats of schemas (KS §11.3); unknown formats are accepted.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    sync::LazyLock,
};

use base64::Engine;
use regex::Regex;

static MAC: LazyLock<Regex> = LazyLock::new(|| fixed(r"^([0-9A-Fa-f]{2}[:-]){5}([0-9A-Fa-f]{2})$"));
static UUID: LazyLock<Regex> =
    LazyLock::new(|| fixed(r"(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$"));
static HOSTNAME: LazyLock<Regex> = LazyLock::new(|| {
    fixed(
        r"^([a-zA-Z0-9\p{L}_]([a-zA-Z0-9-\p{L}]{0,61}[a-zA-Z0-9\p{L}])?)(\.[a-zA-Z0-9\p{L}]([a-zA-Z0-9-\p{L}]{0,61}[a-zA-Z0-9\p{L}])?)*$",
    )
});
static EMAIL: LazyLock<Regex> = LazyLock::new(|| fixed(r"^[^@\s]+@[^@\s]+$"));
static URI: LazyLock<Regex> = LazyLock::new(|| fixed(r"^([A-Za-z][A-Za-z0-9+.-]*:\S+|/\S*)$"));
static DURATION: LazyLock<Regex> = LazyLock::new(|| {
    fixed(
        r"^[-+]?((\d+(\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h))+$|^0$|^\d+\s*(ns|nanos|nano|us|µs|micros|micro|ms|millis|milli|s|sec|second|seconds|m|min|minute|minutes|h|hr|hour|hours|d|day|days|w|week|weeks)$",
    )
});

fn fixed(pattern: &str) -> Regex {
    Regex::new(pattern).expect("invariant: the pattern is a constant of this module")
}

/// Whether a string fits a format.
pub(super) fn string_fits(format: &str, text: &str) -> bool {
    match format {
        "date-time" | "datetime" => chrono::DateTime::parse_from_rfc3339(text).is_ok(),
        "date" => chrono::NaiveDate::parse_from_str(text, "%Y-%m-%d").is_ok() && text.len() == 10,
        "duration" => DURATION.is_match(text),
        "byte" => base64::engine::general_purpose::STANDARD.decode(text.replace(['\n', '\r'], "")).is_ok(),
        "uuid" | "uuid3" | "uuid4" | "uuid5" => UUID.is_match(text),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "ip" => text.parse::<std::net::IpAddr>().is_ok(),
        "cidr" => is_cidr(text),
        "hostname" => text.len() <= 255 && HOSTNAME.is_match(text),
        "email" => EMAIL.is_match(text),
        "uri" => URI.is_match(text),
        "mac" => MAC.is_match(text),
        _ => true,
    }
}

/// Whether an integer fits `int32`; other formats hold all integers.
pub(super) fn integer_fits(format: &str, value: i64) -> bool {
    format != "int32" || i32::try_from(value).is_ok()
}

fn is_cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else {
        return false;
    };
    let Ok(bits) = bits.parse::<u8>() else {
        return false;
    };
    (address.parse::<Ipv4Addr>().is_ok() && bits <= 32)
        || (address.parse::<Ipv6Addr>().is_ok() && bits <= 128)
}
