//! Resource quantities: `500m`, `1.5Gi`, `2e3`. Exact in nano units, as the reference rounds up to.

use std::{cmp::Ordering, fmt, iter::Sum, ops::Add, ops::Sub, str::FromStr};

use serde_json::Value;

/// Suffix family, kept so that the canonical form stays in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `m`, `k`, `M` …
    DecimalSi,
    /// `Ki`, `Mi` …
    BinarySi,
    /// `e3`, `E6` …
    DecimalExponent,
}

/// A quantity, exact in nano units (10⁻⁹).
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// Text that is no quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
pub struct ParseQuantityError;

const NANO: i128 = 1_000_000_000;
/// Magnitudes beyond 2⁶³−1 are capped, as the reference does.
const CAP: i128 = i64::MAX as i128 * NANO;

const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];
const BINARY: [(&str, u32); 6] = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];

impl Quantity {
    /// Zero.
    pub const ZERO: Self = Self { nanos: 0, format: Format::DecimalSi };

    /// A whole number in a suffix family.
    #[must_use]
    pub fn whole(value: i64, format: Format) -> Self {
        Self { nanos: i128::from(value) * NANO, format }
    }

    /// Thousandths (CPU).
    #[must_use]
    pub fn from_millis(millis: i64) -> Self {
        Self { nanos: i128::from(millis) * 1_000_000, format: Format::DecimalSi }
    }

    /// From a JSON string or number; anything else is an error.
    ///
    /// # Errors
    /// [`ParseQuantityError`].
    pub fn from_value(value: &Value) -> Result<Self, ParseQuantityError> {
        match value {
            Value::String(text) => text.parse(),
            Value::Number(number) => number.to_string().parse(),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => Err(ParseQuantityError),
        }
    }

    /// Whole units, rounded up.
    #[must_use]
    pub fn value(self) -> i64 {
        i64::try_from(ceil_div(self.nanos, NANO)).unwrap_or(i64::MAX)
    }

    /// Thousandths, rounded up, saturating.
    #[must_use]
    pub fn millis(self) -> i64 {
        i64::try_from(ceil_div(self.nanos, 1_000_000)).unwrap_or(i64::MAX)
    }

    /// Thousandths, rounded up.
    #[must_use]
    pub fn exact_millis(self) -> i128 {
        ceil_div(self.nanos, 1_000_000)
    }

    /// Whether it is a whole number.
    #[must_use]
    pub fn is_integer(self) -> bool {
        self.nanos % NANO == 0
    }

    /// As a float, for CEL.
    #[must_use]
    #[allow(clippy::cast_precision_loss)] // an approximation by contract
    pub fn as_f64(self) -> f64 {
        self.nanos as f64 / NANO as f64
    }

    /// −1, 0, 1.
    #[must_use]
    pub fn signum(self) -> i32 {
        i32::try_from(self.nanos.signum()).unwrap_or(0)
    }

    /// The suffix family.
    #[must_use]
    pub fn format(self) -> Format {
        self.format
    }
}

fn ceil_div(value: i128, by: i128) -> i128 {
    let floor = value.div_euclid(by);
    if value.rem_euclid(by) == 0 { floor } else { floor + 1 }
}

impl FromStr for Quantity {
    type Err = ParseQuantityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            Some(_) => (false, text),
            None => return Err(ParseQuantityError),
        };
        let split = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(split);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
            return Err(ParseQuantityError);
        }
        let (format, scale10, shift) = suffix_of(suffix)?;
        let nanos = scaled(whole, fraction, scale10, shift)?.min(CAP);
        Ok(Self { nanos: if negative { -nanos } else { nanos }, format })
    }
}

/// Family, power of ten, power of two of a suffix.
fn suffix_of(suffix: &str) -> Result<(Format, i32, u32), ParseQuantityError> {
    if let Some((_, power)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
        return Ok((Format::DecimalSi, *power, 0));
    }
    if let Some((_, power)) = BINARY.iter().find(|(name, _)| *name == suffix) {
        return Ok((Format::BinarySi, 0, *power));
    }
    match suffix.strip_prefix(['e', 'E']) {
        Some(digits) if !digits.is_empty() => {
            let power: i32 = digits.parse().map_err(|_| ParseQuantityError)?;
            Ok((Format::DecimalExponent, power.clamp(-60, 60), 0))
        }
        _ => Err(ParseQuantityError),
    }
}

/// `whole.fraction × 10^scale10 × 2^shift` in nanos, rounded up, saturating.
fn scaled(whole: &str, fraction: &str, scale10: i32, shift: u32) -> Result<i128, ParseQuantityError> {
    // Digits beyond what the cap or the nano can show are cut; a non-zero cut rounds up.
    let digits: String = whole.chars().chain(fraction.chars()).collect();
    let digits = digits.trim_start_matches('0');
    let mut power = scale10 + 9 - i32::try_from(fraction.len()).map_err(|_| ParseQuantityError)?;
    let (kept, cut) = if digits.len() > 30 { digits.split_at(30) } else { (digits, "") };
    power += i32::try_from(cut.len()).map_err(|_| ParseQuantityError)?;
    let mut value: i128 = if kept.is_empty() { 0 } else { kept.parse().map_err(|_| ParseQuantityError)? };
    if value == 0 {
        return Ok(0);
    }
    if cut.bytes().any(|b| b != b'0') {
        value += 1;
    }
    value = match 1_i128.checked_shl(shift).and_then(|factor| value.checked_mul(factor)) {
        Some(value) => value,
        None => return Ok(CAP),
    };
    while power > 0 {
        value = match value.checked_mul(10) {
            Some(value) => value,
            None => return Ok(CAP),
        };
        power -= 1;
    }
    while power < 0 {
        value = ceil_div(value, 10);
        power += 1;
    }
    Ok(value)
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let sign = if self.nanos < 0 { "-" } else { "" };
        let nanos = self.nanos.abs();
        if self.format == Format::BinarySi && nanos % NANO == 0 && nanos / NANO >= 1024 {
            let mut value = nanos / NANO;
            let mut suffix = "";
            for (name, _) in BINARY {
                if value % 1024 != 0 {
                    break;
                }
                value /= 1024;
                suffix = name;
            }
            return write!(f, "{sign}{value}{suffix}");
        }
        // Decimal: the largest power of 1000 that leaves a whole number.
        let mut value = nanos;
        let mut power = -9;
        while value % 1000 == 0 && power < 18 {
            value /= 1000;
            power += 3;
        }
        if self.format == Format::DecimalExponent {
            return if power == 0 { write!(f, "{sign}{value}") } else { write!(f, "{sign}{value}e{power}") };
        }
        let suffix = DECIMAL.iter().find(|(_, p)| *p == power).map_or("", |(name, _)| name);
        write!(f, "{sign}{value}{suffix}")
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl Add for Quantity {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let format = if self.nanos == 0 { other.format } else { self.format };
        Self { nanos: (self.nanos + other.nanos).clamp(-CAP, CAP), format }
    }
}

impl Sub for Quantity {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        let format = if self.nanos == 0 { other.format } else { self.format };
        Self { nanos: (self.nanos - other.nanos).clamp(-CAP, CAP), format }
    }
}

impl Sum for Quantity {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, Add::add)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn canonical_forms() {
        for (text, canonical) in [
            ("1.5", "1500m"),
            ("1.5Gi", "1536Mi"),
            ("1024Mi", "1Gi"),
            ("0.1m", "100u"),
            ("100m", "100m"),
            ("1000m", "1"),
            ("1000", "1k"),
            ("2e3", "2e3"),
            ("1000e3", "1e6"),
            ("12E", "9223372036854775807"),
            ("0", "0"),
            ("-1Ki", "-1Ki"),
            ("1Ki", "1Ki"),
            ("512", "512"),
            ("0.5Ki", "512"),
            (".5", "500m"),
            ("4096Mi", "4Gi"),
        ] {
            assert_eq!(text.parse::<Quantity>().map(|q| q.to_string()), Ok(canonical.to_owned()), "{text}");
        }
    }

    #[test]
    fn refused_texts() {
        for text in ["", "abc", "1.2.3", "1 Gi", "1gi", "--1", "e3", "1e", "1Kii", "."] {
            assert!(text.parse::<Quantity>().is_err(), "{text}");
        }
    }

    #[test]
    fn order_is_by_value() {
        let parsed: Vec<Quantity> =
            ["100m", "1", "1k", "1Ki", "1M", "1Mi", "1G"].iter().map(|t| t.parse().unwrap()).collect();
        assert!(parsed.windows(2).all(|w| w[0] < w[1]));
        assert_eq!("1000m".parse::<Quantity>(), "1".parse::<Quantity>());
    }

    proptest! {
        #[test]
        fn canonical_form_is_stable(value in -1_000_000_000_000_i64..1_000_000_000_000, suffix in "(|m|k|M|Ki|Mi|Gi)") {
            let text = format!("{value}{suffix}");
            let once: Quantity = text.parse().unwrap();
            let again: Quantity = once.to_string().parse().unwrap();
            prop_assert_eq!(once, again);
            prop_assert_eq!(once.to_string(), again.to_string());
        }

        #[test]
        fn sum_is_the_sum(a in 0_i64..1 << 40, b in 0_i64..1 << 40) {
            let sum = Quantity::from_millis(a) + Quantity::from_millis(b);
            prop_assert_eq!(sum.millis(), a + b);
        }
    }
}
