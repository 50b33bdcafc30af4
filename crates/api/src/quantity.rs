//! Quantities: text such as `512Mi`, `1500m` or `10Gi`, with exact conversion to bytes and
//! thousandths. Accepts an integer in JSON as Kubernetes does; writes text.

use serde::{Deserialize, Deserializer, Serialize};

/// A Kubernetes quantity as the user wrote it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Quantity(pub String);

/// The text is not a Kubernetes quantity.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a quantity: write a number with an optional suffix such as 512Mi, 10Gi or 500m")]
pub struct NotAQuantity(pub String);

const NANO: i128 = 1_000_000_000;

impl Quantity {
    /// Value in thousandths, rounded up (cores × 1000 for CPU).
    pub fn milli(&self) -> Result<i64, NotAQuantity> {
        let nano = self.nano()?;
        narrow(div_up(nano, NANO / 1000), &self.0)
    }

    /// Value in whole units, rounded up (bytes for memory and storage).
    pub fn value(&self) -> Result<i64, NotAQuantity> {
        let nano = self.nano()?;
        narrow(div_up(nano, NANO), &self.0)
    }

    /// A number of bytes in the shortest binary suffix that is exact.
    pub fn from_bytes(bytes: i64) -> Self {
        const SUFFIXES: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
        let (mut n, mut i) = (bytes, 0);
        while n != 0 && n % 1024 == 0 && i + 1 < SUFFIXES.len() {
            n /= 1024;
            i += 1;
        }
        Self(format!("{n}{}", SUFFIXES[i]))
    }

    /// A number of thousandths: whole numbers without suffix, others as `Nm`.
    pub fn from_milli(milli: i64) -> Self {
        if milli % 1000 == 0 { Self((milli / 1000).to_string()) } else { Self(format!("{milli}m")) }
    }

    fn nano(&self) -> Result<i128, NotAQuantity> {
        parse_nano(&self.0).ok_or_else(|| NotAQuantity(self.0.clone()))
    }
}

fn narrow(value: i128, text: &str) -> Result<i64, NotAQuantity> {
    i64::try_from(value).map_err(|_| NotAQuantity(text.to_owned()))
}

fn div_up(value: i128, by: i128) -> i128 {
    value.div_euclid(by) + i128::from(value.rem_euclid(by) != 0)
}

/// Parses to billionths; digits beyond that are rounded up, as Kubernetes does.
fn parse_nano(text: &str) -> Option<i128> {
    let (negative, rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    let (number, suffix) = rest.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.len() + fraction.len() == 0 || fraction.contains('.') {
        return None;
    }
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let (base, power) = scale(suffix)?;
    let scaled = digits.checked_mul(base.checked_pow(u32::try_from(power.max(0)).ok()?)?)?;
    // value = scaled / 10^(fraction digits) / base^(-power)
    let mut divisor = 10i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    if power < 0 {
        divisor = divisor.checked_mul(base.checked_pow(u32::try_from(-power).ok()?)?)?;
    }
    let nano = div_up(scaled.checked_mul(NANO)?, divisor);
    Some(if negative { -nano } else { nano })
}

fn scale(suffix: &str) -> Option<(i128, i32)> {
    Some(match suffix {
        "" => (10, 0),
        "n" => (10, -9),
        "u" => (10, -6),
        "m" => (10, -3),
        "k" => (10, 3),
        "M" => (10, 6),
        "G" => (10, 9),
        "T" => (10, 12),
        "P" => (10, 15),
        "E" => (10, 18),
        "Ki" => (2, 10),
        "Mi" => (2, 20),
        "Gi" => (2, 30),
        "Ti" => (2, 40),
        "Pi" => (2, 50),
        "Ei" => (2, 60),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            (10, exponent.parse::<i32>().ok().filter(|e| (-30..=18).contains(e))?)
        }
    })
}

impl std::fmt::Display for Quantity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for Quantity {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl From<Quantity> for k8s_openapi::apimachinery::pkg::api::resource::Quantity {
    fn from(q: Quantity) -> Self {
        Self(q.0)
    }
}

impl From<k8s_openapi::apimachinery::pkg::api::resource::Quantity> for Quantity {
    fn from(q: k8s_openapi::apimachinery::pkg::api::resource::Quantity) -> Self {
        Self(q.0)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum TextOrNumber {
            Text(String),
            Integer(i64),
            Number(f64),
        }
        Ok(Self(match TextOrNumber::deserialize(deserializer)? {
            TextOrNumber::Text(text) => text,
            TextOrNumber::Integer(n) => n.to_string(),
            TextOrNumber::Number(n) => n.to_string(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        for (text, value, milli) in [
            ("1", 1, 1000),
            ("1500m", 2, 1500),
            ("100m", 1, 100),
            ("0", 0, 0),
            ("1Ki", 1024, 1_024_000),
            ("1.5Gi", 1_610_612_736, 1_610_612_736_000),
            ("2G", 2_000_000_000, 2_000_000_000_000),
            ("12e6", 12_000_000, 12_000_000_000),
            ("1n", 1, 1),
            (".5", 1, 500),
            ("-1", -1, -1000),
        ] {
            assert_eq!(Quantity::from(text).value(), Ok(value), "{text}");
            assert_eq!(Quantity::from(text).milli(), Ok(milli), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity() {
        for text in ["", "Gi", "1.2.3", "1gb", "1 Gi", "1e", "0x10", "-", "99999999999999Ei"] {
            assert!(Quantity::from(text).value().is_err(), "{text}");
        }
    }

    #[test]
    fn shortest_exact_text() {
        for (bytes, text) in [(0, "0"), (1, "1"), (1024, "1Ki"), (1536, "1536"), (5 << 30, "5Gi")] {
            assert_eq!(Quantity::from_bytes(bytes).0, text);
        }
        assert_eq!(Quantity::from_milli(100).0, "100m");
        assert_eq!(Quantity::from_milli(3000).0, "3");
    }

    #[test]
    fn json_takes_integers() {
        let q: Quantity = serde_json::from_str("10").unwrap();
        assert_eq!(q.0, "10");
        let q: Quantity = serde_json::from_str("\"10Gi\"").unwrap();
        assert_eq!(serde_json::to_string(&q).unwrap(), "\"10Gi\"");
    }
}
