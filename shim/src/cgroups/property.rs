//! Limits as systemd's properties (systemd.resource-control(5)).
//!
//! The files of the cgroup are written as well, and are what holds. Of what is told to systemd, too, it knows that it
//! is meant: it writes its own idea of a limit whenever it looks after the unit, and would undo what it has not heard
//! of.

use crisp_runtime::cgroup::Resources;

use crate::{
    error::RequestError,
    systemd::{Property, Value},
};

/// systemd's word for no limit.
const INFINITY: u64 = u64::MAX;
/// Length of a period when none is given, microseconds: systemd's, and the kernel's.
const PERIOD: u64 = 100_000;
/// systemd counts quotas in per cent of a CPU; so a share of a second is rounded up to this, microseconds.
const PER_CENT: u64 = 10_000;
/// Most CPUs or memory nodes that a list can name: the kernel's own limit is below (`CONFIG_NR_CPUS`).
const BITS_MAX: usize = 8192;

/// The properties for these limits. What systemd has no word for is left to the files alone.
///
/// # Errors
/// `Invalid`: a value that no property can have.
pub(super) fn properties(resources: &Resources) -> Result<Vec<Property>, RequestError> {
    let mut list = Vec::new();
    for (file, value) in resources.files().map_err(|error| RequestError::invalid(error.to_string()))? {
        let wrong = || RequestError::invalid(format!("{file}: {value:?} is not possible"));
        match file.as_str() {
            "cpu.max" => cpu_max(&value, &mut list).ok_or_else(wrong)?,
            "cpuset.cpus" => list.push(("AllowedCPUs", Value::Bits(bits(&value).ok_or_else(wrong)?))),
            "cpuset.mems" => list.push(("AllowedMemoryNodes", Value::Bits(bits(&value).ok_or_else(wrong)?))),
            other => {
                if let Some(name) = number_property(other) {
                    list.push((name, Value::Number(number(&value).ok_or_else(wrong)?)));
                }
            }
        }
    }
    Ok(list)
}

fn number_property(file: &str) -> Option<&'static str> {
    Some(match file {
        "cpu.weight" => "CPUWeight",
        "memory.min" => "MemoryMin",
        "memory.low" => "MemoryLow",
        "memory.high" => "MemoryHigh",
        "memory.max" => "MemoryMax",
        "memory.swap.max" => "MemorySwapMax",
        "pids.max" => "TasksMax",
        "io.weight" => "IOWeight",
        _ => return None,
    })
}

fn number(value: &str) -> Option<u64> {
    match value.trim() {
        "max" => Some(INFINITY),
        // "default 100" is how io.weight is read.
        text => text.strip_prefix("default ").unwrap_or(text).trim().parse().ok(),
    }
}

fn cpu_max(value: &str, list: &mut Vec<Property>) -> Option<()> {
    let mut words = value.split_ascii_whitespace();
    let quota = number(words.next()?)?;
    let period = words.next().map_or(Some(PERIOD), |word| word.parse().ok()).filter(|period| *period > 0)?;
    let per_second = match quota {
        INFINITY => INFINITY,
        quota => quota.checked_mul(1_000_000)?.div_ceil(period).next_multiple_of(PER_CENT),
    };
    list.push(("CPUQuotaPerSecUSec", Value::Number(per_second)));
    list.push(("CPUQuotaPeriodUSec", Value::Number(period)));
    Some(())
}

/// `0-2,5` as bits, the lowest byte first.
fn bits(list: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= BITS_MAX {
            return None;
        }
        bytes.resize(bytes.len().max(last / 8 + 1), 0);
        for bit in first..=last {
            bytes[bit / 8] |= 1 << (bit % 8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn limits_are_told_in_systemds_words() {
        let resources = Resources {
            cpu_shares: 1024,
            cpu_quota: 12_345,
            memory_limit: 1 << 20,
            memory_swap: -1,
            cpuset_cpus: "0-2,9".to_owned(),
            pids: -1,
            unified: BTreeMap::from([
                ("memory.high".to_owned(), "500".to_owned()),
                ("memory.oom.group".to_owned(), "1".to_owned()),
            ]),
            ..Resources::default()
        };
        let number = Value::Number;
        let expected = [
            ("CPUWeight", number(100)),
            // 12.345 % of a CPU
            ("CPUQuotaPerSecUSec", number(130_000)),
            ("CPUQuotaPeriodUSec", number(100_000)),
            ("AllowedCPUs", Value::Bits(vec![0b111, 0b10])),
            ("MemorySwapMax", number(INFINITY)),
            ("MemoryMax", number(1 << 20)),
            ("TasksMax", number(INFINITY)),
            ("MemoryHigh", number(500)),
        ];
        assert_eq!(properties(&resources).unwrap(), expected);
        assert!(properties(&Resources::default()).unwrap().is_empty());
    }

    #[test]
    fn c14_lists_that_name_no_cpu_are_refused() {
        for bad in ["a", "3-1", "0-99999", "0-18446744073709551615", "-1", "1-2-3"] {
            let resources = Resources { cpuset_cpus: bad.to_owned(), ..Resources::default() };
            let error = properties(&resources).unwrap_err();
            assert!(error.text.contains("cpuset.cpus"), "{bad}: {}", error.text);
        }
        assert_eq!(bits(""), Some(vec![]));
    }
}
