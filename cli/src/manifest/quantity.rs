//! Kubernetes quantities: a decimal number with a suffix (`200m`, `64Mi`, `1.5G`, `1e3`). Exact, no floating point.
//!
//! Source: apimachinery's resource.Quantity. Values are rounded up to a thousandth, as there.

use serde_json::Value;

use super::read::Read;

/// A quantity in thousandths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Quantity(i128);

impl Quantity {
    /// In thousandths, such as millicores; limited to the range of the type.
    pub(crate) fn milli(self) -> i64 {
        i64::try_from(self.0).unwrap_or(i64::MAX)
    }

    /// In whole units, such as bytes, rounded up; limited to the range of the type.
    pub(crate) fn units(self) -> i64 {
        i64::try_from((self.0 + 999).div_euclid(1000)).unwrap_or(i64::MAX)
    }

    /// Reads a quantity.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let number = text.find(|c: char| !matches!(c, '0'..='9' | '.' | '+' | '-')).unwrap_or(text.len());
        let (number, suffix) = text.split_at(number);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let negative = whole.starts_with('-');
        let whole = whole.strip_prefix(['-', '+']).unwrap_or(whole);
        let digits = format!("{whole}{fraction}");
        if digits.is_empty() || digits.len() > 24 || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let (factor, exponent) = scale(suffix)?;
        let mantissa: i128 = digits.parse().ok()?;
        // In thousandths; the fraction's digits have been moved in front of the point.
        let exponent = exponent + 3 - i32::try_from(fraction.len()).ok()?;
        let mut value = mantissa.checked_mul(factor)?;
        if exponent >= 0 {
            value = value.checked_mul(10_i128.checked_pow(exponent.unsigned_abs())?)?;
        } else {
            let divisor = 10_i128.checked_pow(exponent.unsigned_abs())?;
            value = value / divisor + i128::from(value % divisor != 0);
        }
        Some(Self(if negative { -value } else { value }))
    }
}

/// Factor and power of ten of a suffix.
fn scale(suffix: &str) -> Option<(i128, i32)> {
    let binary = |power: u32| Some((1_i128 << (10 * power), 0));
    match suffix {
        "" => Some((1, 0)),
        "n" => Some((1, -9)),
        "u" => Some((1, -6)),
        "m" => Some((1, -3)),
        "k" => Some((1, 3)),
        "M" => Some((1, 6)),
        "G" => Some((1, 9)),
        "T" => Some((1, 12)),
        "P" => Some((1, 15)),
        "E" => Some((1, 18)),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            (-30..=18).contains(&exponent).then_some((1, exponent))
        }
    }
}

impl Read for Quantity {
    fn read(value: &Value, path: &str, problems: &mut Vec<String>) -> Self {
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            other => other.to_string(),
        };
        match Self::parse(&text) {
            Some(quantity) if quantity >= Self(0) => quantity,
            Some(_) => {
                problems.push(format!("{path}: {text:?} is negative"));
                Self(0)
            }
            None => {
                problems.push(format!("{path}: {text:?} is no quantity such as 200m, 0.5, 64Mi or 1G"));
                Self(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_exact() {
        for (text, milli) in [
            ("0", 0),
            ("1", 1000),
            ("200m", 200),
            ("0.5", 500),
            (".5", 500),
            ("1.", 1000),
            ("+2", 2000),
            ("-1", -1000),
            ("1e3", 1_000_000),
            ("1E-3", 1),
            ("2E", 2_000_000_000_000_000_000_000),
            ("64Mi", 64 * 1024 * 1024 * 1000),
            ("1.5G", 1_500_000_000_000),
            ("0.1Ki", 102_400),
            ("1n", 1),
            ("100u", 1),
            ("0.0001", 1),
        ] {
            assert_eq!(Quantity::parse(text), Some(Quantity(milli)), "{text}");
        }
    }

    #[test]
    fn other_text_is_no_quantity() {
        for text in ["", "Mi", "lots", "1 Mi", "1mi", "1.2.3", "--1", "1e", "1e99", "0x10", "1KiB", "-", "."]
        {
            assert_eq!(Quantity::parse(text), None, "{text}");
        }
    }

    #[test]
    fn units_round_up_and_stay_in_range() {
        assert_eq!(Quantity::parse("1500m").map(Quantity::units), Some(2));
        assert_eq!(Quantity::parse("99E").map(Quantity::units), Some(i64::MAX));
        assert_eq!(Quantity::parse("64Mi").map(Quantity::units), Some(64 << 20));
    }
}
