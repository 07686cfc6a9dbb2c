//! Limits in the spelling of CRI and OCI (which is that of cgroup v1), written in the spelling of cgroup v2.
//!
//! Must not know: where the numbers come from.

use super::{CgroupError, files};
use crisp_sys::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;
use std::path::Path;

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
struct Setting {
    file: String,
    value: String,
    /// A missing file (the controller is there, this part of it is not) means that there is nothing to limit.
    optional: bool,
}

impl Setting {
    fn new(file: &str, value: impl Into<String>) -> Self {
        Self { file: file.to_owned(), value: value.into(), optional: false }
    }

    fn optional(file: &str, value: impl Into<String>) -> Self {
        Self { optional: true, ..Self::new(file, value) }
    }

    fn controller(&self) -> &str {
        self.file.split('.').next().unwrap_or_default()
    }
}

impl Resources {
    fn settings(&self) -> Result<Vec<Setting>, CgroupError> {
        let mut list = Vec::new();
        if let Some(weight) = weight(self.cpu_shares) {
            list.push(Setting::new("cpu.weight", weight.to_string()));
        }
        if self.cpu_quota != 0 || self.cpu_period != 0 {
            let quota = limit("cpu_quota", self.cpu_quota)?.unwrap_or_else(|| "max".to_owned());
            let period = if self.cpu_period == 0 { DEFAULT_PERIOD } else { self.cpu_period };
            list.push(Setting::new("cpu.max", format!("{quota} {period}")));
        }
        if !self.cpuset_cpus.is_empty() {
            list.push(Setting::new("cpuset.cpus", self.cpuset_cpus.as_str()));
        }
        if !self.cpuset_mems.is_empty() {
            list.push(Setting::new("cpuset.mems", self.cpuset_mems.as_str()));
        }
        self.memory(&mut list)?;
        if let Some(pids) = limit("pids", self.pids)? {
            list.push(Setting::new("pids.max", pids));
        }
        for (size, bytes) in &self.hugepages {
            if size.is_empty() || !size.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
                return Err(CgroupError::invalid("hugepages", format!("page size {size:?}")));
            }
            list.push(Setting::new(&format!("hugetlb.{size}.max"), bytes.to_string()));
            list.push(Setting::optional(&format!("hugetlb.{size}.rsvd.max"), bytes.to_string()));
        }
        self.unified(&mut list)?;
        Ok(list)
    }

    fn memory(&self, list: &mut Vec<Setting>) -> Result<(), CgroupError> {
        let memory = limit("memory_limit", self.memory_limit)?;
        match (self.memory_swap, self.memory_limit) {
            // Swap is not limited by itself in version 1, so a limit of memory is a limit of both.
            (0, 1..) => list.push(Setting::optional("memory.swap.max", "0")),
            (0, _) => {}
            (-1, _) => list.push(Setting::optional("memory.swap.max", "max")),
            (both, memory @ 1..) if both >= memory => {
                let swap = both - memory;
                let setting = if swap == 0 { Setting::optional } else { Setting::new };
                list.push(setting("memory.swap.max", swap.to_string()));
            }
            (both, 1..) => {
                return Err(CgroupError::invalid("memory_swap", format!("{both} is less than memory_limit")));
            }
            (both, _) => {
                return Err(CgroupError::invalid("memory_swap", format!("{both} without a memory_limit")));
            }
        }
        // After swap: what a lower limit pushes out has to know where it may go.
        if let Some(memory) = memory {
            list.push(Setting::new("memory.max", memory));
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
            // What was said about the same file above is overridden.
            list.retain(|setting| setting.file != *file);
            let lifts = file == "memory.swap.max" && matches!(value.trim(), "0" | "max");
            list.push(Setting { file: file.clone(), value: value.trim_end().to_owned(), optional: lifts });
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

/// Applies everything or nothing.
pub(super) fn apply(dir: BorrowedFd<'_>, location: &Path, resources: &Resources) -> Result<(), CgroupError> {
    let mut settings = resources.settings()?;
    if settings.is_empty() {
        return Ok(());
    }
    let available = files::words(dir, "cgroup.controllers")
        .map_err(|errno| CgroupError::sys("read", &location.join("cgroup.controllers"), errno))?;
    drop_unused_hugepages(&mut settings, &available);
    if let Some(setting) = settings.iter().find(|setting| !available.contains(setting.controller())) {
        let (controller, file) = (setting.controller().to_owned(), setting.file.clone());
        return Err(CgroupError::MissingController { controller, file });
    }
    let mut done: Vec<Setting> = Vec::new();
    for setting in &settings {
        if let Err((line, errno)) = change(dir, setting, &mut done) {
            for before in done.iter().rev() {
                // As good as it gets: the kernel accepted these values before.
                let _restored = files::write(dir, &before.file, &before.value);
            }
            return Err(CgroupError::Write { file: location.join(&setting.file), value: line, errno });
        }
    }
    Ok(())
}

/// kubelet names every page size, with 0 for those that a container does not use. Without the controller none can be
/// used by anybody, which is what was asked for.
fn drop_unused_hugepages(settings: &mut Vec<Setting>, available: &BTreeSet<String>) {
    let huge = |setting: &Setting| setting.controller() == "hugetlb";
    if !available.contains("hugetlb") && settings.iter().all(|setting| !huge(setting) || setting.value == "0")
    {
        settings.retain(|setting| !huge(setting));
    }
}

/// Writes one setting and notes in `done` how to undo it; an error carries the line that was refused.
fn change(dir: BorrowedFd<'_>, setting: &Setting, done: &mut Vec<Setting>) -> Result<(), (String, Errno)> {
    let whole = |errno| (setting.value.clone(), errno);
    let before = match files::read(dir, &setting.file) {
        Err(Errno::ENOENT) if setting.optional => return Ok(()),
        answer => answer.map_err(whole)?,
    };
    // A "nested keyed" file (io.max) takes one device a write; the others have a single line.
    for line in setting.value.lines().chain(setting.value.is_empty().then_some("")) {
        let key = line.split_ascii_whitespace().next().filter(|_| setting.file.starts_with("io."));
        let restore = match key {
            Some(key) => before
                .lines()
                .find(|old| old.split_ascii_whitespace().next() == Some(key))
                .map_or_else(|| default_of(&setting.file, key), str::to_owned),
            None => before.trim_end().to_owned(),
        };
        files::write(dir, &setting.file, line).map_err(|errno| (line.to_owned(), errno))?;
        done.push(Setting::new(&setting.file, restore));
    }
    Ok(())
}

/// The line that takes a device out of a file of the io controller.
fn default_of(file: &str, key: &str) -> String {
    match file {
        "io.max" => format!("{key} rbps=max wbps=max riops=max wiops=max"),
        "io.latency" => format!("{key} target=0"),
        _ => format!("{key} default"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(resources: &Resources) -> Vec<String> {
        let settings = resources.settings().unwrap();
        settings.into_iter().map(|setting| format!("{}={}", setting.file, setting.value)).collect()
    }

    fn refused(resources: &Resources) -> String {
        resources.settings().unwrap_err().to_string()
    }

    #[test]
    fn shares_become_weights_on_the_new_curve() {
        let weights: Vec<_> = [0, 1, 2, 3, 102, 1024, 2048, 262_143, 262_144, u64::MAX].map(weight).to_vec();
        let expected = [None, Some(1), Some(1), Some(2), Some(17), Some(100), Some(174), Some(10_000)];
        assert_eq!(weights[..8], expected);
        assert_eq!(weights[8..], [Some(10_000), Some(10_000)]);
    }

    #[test]
    fn cpu_quota_and_period_complete_each_other() {
        let cpu = |cpu_quota, cpu_period| Resources { cpu_quota, cpu_period, ..Resources::default() };
        assert_eq!(lines(&cpu(20_000, 0)), ["cpu.max=20000 100000"]);
        assert_eq!(lines(&cpu(-1, 50_000)), ["cpu.max=max 50000"]);
        assert_eq!(lines(&cpu(0, 50_000)), ["cpu.max=max 50000"]);
        assert!(lines(&cpu(0, 0)).is_empty());
        assert_eq!(refused(&cpu(-2, 0)), "cpu_quota: -2 is negative");
    }

    #[test]
    fn swap_is_what_is_left_of_the_sum() {
        let memory =
            |memory_limit, memory_swap| Resources { memory_limit, memory_swap, ..Resources::default() };
        assert_eq!(lines(&memory(100, 0)), ["memory.swap.max=0", "memory.max=100"]);
        assert_eq!(lines(&memory(100, 150)), ["memory.swap.max=50", "memory.max=100"]);
        assert_eq!(lines(&memory(100, -1)), ["memory.swap.max=max", "memory.max=100"]);
        assert_eq!(lines(&memory(-1, 0)), ["memory.max=max"]);
        assert_eq!(refused(&memory(100, 99)), "memory_swap: 99 is less than memory_limit");
        assert_eq!(refused(&memory(0, 99)), "memory_swap: 99 without a memory_limit");
    }

    #[test]
    fn unified_values_come_last_and_override() {
        let unified = BTreeMap::from([("memory.max".to_owned(), "7".to_owned())]);
        let resources = Resources { memory_limit: 100, pids: 5, unified, ..Resources::default() };
        assert_eq!(lines(&resources), ["memory.swap.max=0", "pids.max=5", "memory.max=7"]);
        for bad in ["memory", "../memory.max", "a/b.c", ".x", "cgroup.procs", "memory.max\n"] {
            let unified = BTreeMap::from([(bad.to_owned(), "1".to_owned())]);
            assert!(refused(&Resources { unified, ..Resources::default() }).starts_with("unified["), "{bad}");
        }
    }

    #[test]
    fn huge_pages_that_nobody_uses_need_no_controller() {
        let hugepages = vec![("2MB".to_owned(), 0), ("1GB".to_owned(), 0)];
        let mut settings = Resources { hugepages, ..Resources::default() }.settings().unwrap();
        assert_eq!(settings.len(), 4);
        drop_unused_hugepages(&mut settings, &BTreeSet::new());
        assert!(settings.is_empty());
    }
}
