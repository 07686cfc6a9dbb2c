//! Kubernetes' annotations for the bandwidth of a pod, as the `bandwidth` capability of CNI plugins.

use std::collections::HashMap;

use serde_json::{Value, json};

use crate::error::RequestError;

const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// Bits that may go at once: as many as the plugin takes, which is what other runtimes ask for.
const BURST: u64 = u32::MAX as u64;
/// Least and most that is taken, bits per second: what Kubernetes allows.
const RATE: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;

/// The capability's value; `None`: no limit is asked for.
pub(super) fn capability(annotations: &HashMap<String, String>) -> Result<Option<Value>, RequestError> {
    let mut limits = serde_json::Map::new();
    for (annotation, direction) in [(INGRESS, "ingress"), (EGRESS, "egress")] {
        let Some(text) = annotations.get(annotation) else { continue };
        let rate = bits(text).filter(|rate| RATE.contains(rate)).ok_or_else(|| {
            RequestError::invalid(format!("annotation {annotation} {text:?} is no quantity from 1k to 1P"))
        })?;
        limits.insert(format!("{direction}Rate"), json!(rate));
        limits.insert(format!("{direction}Burst"), json!(BURST));
    }
    Ok((!limits.is_empty()).then_some(Value::Object(limits)))
}

/// A Kubernetes quantity as a whole number: digits, with a fraction perhaps, and a decimal or binary unit.
fn bits(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor: u128 = match unit {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "P" => 1_000_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "Pi" => 1 << 50,
        exponent => {
            let power: u32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            10_u128.checked_pow(power)?
        }
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.len() + fraction.len() == 0 || fraction.len() > 9 || fraction.contains('.') {
        return None;
    }
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    u64::try_from(digits.checked_mul(factor)?.div_ceil(scale)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_those_of_kubernetes() {
        for (text, wanted) in [
            ("1000", Some(1000)),
            ("10M", Some(10_000_000)),
            ("1.5k", Some(1500)),
            ("1Ki", Some(1024)),
            ("2e6", Some(2_000_000)),
            ("", None),
            ("M", None),
            ("-1", None),
            ("1m", None),
            ("1.2.3k", None),
            ("99999999999999999999999999999999999999999", None),
            ("1e99", None),
        ] {
            assert_eq!(bits(text), wanted, "{text}");
        }
    }

    #[test]
    fn a_limit_is_asked_for_by_annotation_only() {
        let of = |pairs: &[(&str, &str)]| {
            let owned = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
            capability(&owned.collect())
        };
        assert_eq!(of(&[]), Ok(None));
        let value = of(&[(EGRESS, "10M")]).unwrap().unwrap();
        assert_eq!(value, json!({ "egressRate": 10_000_000, "egressBurst": u32::MAX }));
        for bad in ["1", "2P", "much"] {
            assert!(of(&[(INGRESS, bad)]).unwrap_err().text.contains(INGRESS));
        }
    }
}
