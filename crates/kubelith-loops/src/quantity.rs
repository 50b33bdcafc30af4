//! Kubernetes quantities as integers: exact, no floating point.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Thousandths, rounded up; `None` when the text is no quantity or overflows.
pub(crate) fn milli(quantity: &Quantity) -> Option<i128> {
    let nano = nano(&quantity.0)?;
    Some(nano.div_euclid(1_000_000) + i128::from(nano.rem_euclid(1_000_000) != 0))
}

/// Thousandths, or 0 for what is no quantity (the API server has validated it).
pub(crate) fn milli_or_zero(quantity: &Quantity) -> i128 {
    milli(quantity).unwrap_or(0)
}

fn nano(text: &str) -> Option<i128> {
    let text = text.trim();
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = digits.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(digits.len());
    let (number, suffix) = digits.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let mantissa: i128 = format!("{whole}{fraction}").parse().ok()?;
    let scale = -i32::try_from(fraction.len()).ok()?;
    let (exponent, factor) = multiplier(suffix)?;
    let value = mantissa.checked_mul(factor)?;
    let exponent = 9 + exponent + scale;
    let nano = if exponent >= 0 {
        value.checked_mul(10i128.checked_pow(exponent.unsigned_abs())?)?
    } else {
        let divisor = 10i128.checked_pow(exponent.unsigned_abs())?;
        value.div_euclid(divisor) + i128::from(value.rem_euclid(divisor) != 0)
    };
    Some(if negative { -nano } else { nano })
}

/// Power of ten and plain factor of a suffix.
fn multiplier(suffix: &str) -> Option<(i32, i128)> {
    Some(match suffix {
        "" => (0, 1),
        "n" => (-9, 1),
        "u" => (-6, 1),
        "m" => (-3, 1),
        "k" => (3, 1),
        "M" => (6, 1),
        "G" => (9, 1),
        "T" => (12, 1),
        "P" => (15, 1),
        "E" => (18, 1),
        "Ki" => (0, 1 << 10),
        "Mi" => (0, 1 << 20),
        "Gi" => (0, 1 << 30),
        "Ti" => (0, 1 << 40),
        "Pi" => (0, 1 << 50),
        "Ei" => (0, 1 << 60),
        _ => (suffix.strip_prefix(['e', 'E'])?.parse().ok()?, 1),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_exact() {
        for (text, want) in [
            ("1", Some(1000)),
            ("100m", Some(100)),
            ("0.1", Some(100)),
            ("1.5Gi", Some(1_610_612_736_000)),
            ("1Gi", Some(1_073_741_824_000)),
            ("1e3", Some(1_000_000)),
            ("12E", Some(12_000_000_000_000_000_000_000)),
            ("1u", Some(1)),
            ("-5", Some(-5000)),
            ("2k", Some(2_000_000)),
            ("", None),
            ("Mi", None),
            ("1Q", None),
        ] {
            assert_eq!(milli(&Quantity(text.to_owned())), want, "{text}");
        }
    }
}
