//! Limits in the spelling of CRI and OCI (which is that of cgroup v1), written in the spelling of cgroup v2.
//!
//! Must not know: where the numbers come from.

use super::{CONTROLLERS, CgroupError};
use std::collections::BTreeMap;

/// What the CPU period is when only a quota is given, in microseconds (the kernel's default).
const DEFAULT_PERIOD: u64 = 100_000;

/// Limits of a cgroup. Zero, empty and `None` leave a limit as it is; -1 lifts it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// Relative CPU weight as cgroup v1 counts it, 2 to 262144; see [`weight`].
    pub cpu_shares: u64,
    /// CPU time in a period, in microseconds.
    pub cpu_quota: i64,
    /// Length of a period, in microseconds.
    pub cpu_period: u64,
    /// Memory, in bytes.
    pub memory_limit: i64,
    /// Memory and swap together, in bytes. 0 with a memory limit: no swap.
    pub memory_swap: i64,
    /// Number of processes and threads.
    pub pids: i64,
    /// CPUs, as `0-3,7`.
    pub cpuset_cpus: String,
    /// NUMA nodes, as `0-1`.
    pub cpuset_mems: String,
    /// Files of cgroup v2 and their values, written last and as they are.
    pub unified: BTreeMap<String, String>,
    /// Huge pages: page size as `2MB` or `1GB`, and bytes.
    pub hugepages: Vec<(String, u64)>,
}

/// `cpu.weight` for a number of CPU shares; `None` for 0 (unset).
///
/// The curve goes through 2 -> 1, 1024 -> 100 and 262144 -> 10000, so that the defaults of both versions meet (the
/// conversion of runc 1.3.2 and crun 1.23; the older linear one gave 39 for 1024).
pub fn weight(shares: u64) -> Option<u64> {
    match shares {
        0 => None,
        1..=2 => Some(1),
        262_144.. => Some(10_000),
        _ => {
            let l = (shares as f64).log2();
            let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
            Some(10f64.powf(exponent).ceil() as u64)
        }
    }
}

/// One value for one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    /// What it was asked for with, for messages: CRI's name.
    pub(super) field: String,
    pub(super) file: String,
    pub(super) value: String,
    /// A missing file (the controller is there, this part of it is not) means that there is nothing to limit.
    pub(super) optional: bool,
}

impl Setting {
    fn new(field: &str, file: &str, value: impl Into<String>) -> Self {
        Self { field: field.to_owned(), file: file.to_owned(), value: value.into(), optional: false }
    }

    fn optional(field: &str, file: &str, value: impl Into<String>) -> Self {
        Self { optional: true, ..Self::new(field, file, value) }
    }

    pub(super) fn controller(&self) -> &str {
        self.file.split('.').next().unwrap_or_default()
    }
}

impl Resources {
    /// Which file of cgroup v2 each limit is written to, and what, in the order of writing.
    ///
    /// # Errors
    /// [`CgroupError::Invalid`].
    pub fn files(&self) -> Result<Vec<(String, String)>, CgroupError> {
        Ok(self.settings()?.into_iter().map(|setting| (setting.file, setting.value)).collect())
    }

    pub(super) fn settings(&self) -> Result<Vec<Setting>, CgroupError> {
        let mut list = Vec::new();
        if let Some(weight) = weight(self.cpu_shares) {
            list.push(Setting::new("cpu_shares", "cpu.weight", weight.to_string()));
        }
        if self.cpu_quota != 0 || self.cpu_period != 0 {
            let quota = limit("cpu_quota", self.cpu_quota)?.unwrap_or_else(|| "max".to_owned());
            let period = if self.cpu_period == 0 { DEFAULT_PERIOD } else { self.cpu_period };
            let field = if self.cpu_quota == 0 { "cpu_period" } else { "cpu_quota" };
            list.push(Setting::new(field, "cpu.max", format!("{quota} {period}")));
        }
        if !self.cpuset_cpus.is_empty() {
            list.push(Setting::new("cpuset_cpus", "cpuset.cpus", self.cpuset_cpus.as_str()));
        }
        if !self.cpuset_mems.is_empty() {
            list.push(Setting::new("cpuset_mems", "cpuset.mems", self.cpuset_mems.as_str()));
        }
        self.memory(&mut list)?;
        if let Some(pids) = limit("pids", self.pids)? {
            list.push(Setting::new("pids", "pids.max", pids));
        }
        for (size, bytes) in &self.hugepages {
            let field = format!("hugepage_limits[{size:?}]");
            if size.is_empty() || !size.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
                return Err(CgroupError::invalid(&field, "not a page size such as 2MB"));
            }
            list.push(Setting::new(&field, &format!("hugetlb.{size}.max"), bytes.to_string()));
            list.push(Setting::optional(&field, &format!("hugetlb.{size}.rsvd.max"), bytes.to_string()));
        }
        self.unified(&mut list)?;
        Ok(list)
    }

    fn memory(&self, list: &mut Vec<Setting>) -> Result<(), CgroupError> {
        const FILE: &str = "memory.swap.max";
        const BOTH: &str = "memory_swap_limit_in_bytes";
        const MEMORY: &str = "memory_limit_in_bytes";
        let memory = limit(MEMORY, self.memory_limit)?;
        match (self.memory_swap, self.memory_limit) {
            // Swap is not limited by itself in version 1, so a limit of memory is a limit of both.
            (0, 1..) => list.push(Setting::optional(MEMORY, FILE, "0")),
            (0, _) => {}
            (-1, _) => list.push(Setting::optional(BOTH, FILE, "max")),
            (both, memory @ 1..) if both >= memory => {
                let swap = both - memory;
                let setting = if swap == 0 { Setting::optional } else { Setting::new };
                list.push(setting(BOTH, FILE, swap.to_string()));
            }
            (both, 1..) => {
                return Err(CgroupError::invalid(BOTH, format!("{both} is less than {MEMORY}")));
            }
            (both, _) => return Err(CgroupError::invalid(BOTH, format!("{both} without {MEMORY}"))),
        }
        // After swap: what a lower limit pushes out has to know where it may go.
        if let Some(memory) = memory {
            list.push(Setting::new(MEMORY, "memory.max", memory));
        }
        Ok(())
    }

    fn unified(&self, list: &mut Vec<Setting>) -> Result<(), CgroupError> {
        for (file, value) in &self.unified {
            let field = format!("unified[{file:?}]");
            let safe = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
            if !file.contains('.') || file.starts_with('.') || !file.bytes().all(safe) {
                return Err(CgroupError::invalid(&field, "not of the form controller.parameter"));
            }
            if file.starts_with("cgroup.") {
                return Err(CgroupError::invalid(&field, "moves or kills processes, it is no limit"));
            }
            let controller = file.split('.').next().unwrap_or_default();
            if !CONTROLLERS.contains(&controller) {
                let reason = format!("{controller:?} is no controller; there are {}", CONTROLLERS.join(", "));
                return Err(CgroupError::invalid(&field, reason));
            }
            // One value: a second line would be one that nobody has looked at.
            let value = value.trim_end_matches('\n');
            if value.chars().any(char::is_control) {
                return Err(CgroupError::invalid(&field, format!("{value:?} holds control characters")));
            }
            // What was said about the same file above is overridden.
            list.retain(|setting| setting.file != *file);
            let lifts = file == "memory.swap.max" && matches!(value.trim(), "0" | "max");
            list.push(Setting { optional: lifts, ..Setting::new(&field, file, value) });
        }
        Ok(())
    }
}

/// A limit as the kernel spells it; `None`: leave it.
fn limit(field: &str, value: i64) -> Result<Option<String>, CgroupError> {
    match value {
        0 => Ok(None),
        -1 => Ok(Some("max".to_owned())),
        1.. => Ok(Some(value.to_string())),
        _ => Err(CgroupError::invalid(field, format!("{value} is negative"))),
    }
}

#[cfg(test)]
mod tests;
