//! What the kernel counts in a cgroup.
//!
//! Must not know: CRI's stats messages.

use super::{CgroupError, files};
use std::os::fd::BorrowedFd;
use std::path::Path;

/// Everything that is counted. `None`: the file is not there.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CgroupStats {
    /// `cpu.stat`.
    pub cpu: Option<CpuStat>,
    /// `memory.current`, bytes.
    pub memory_current: Option<u64>,
    /// `memory.peak`, bytes (Linux 5.19).
    pub memory_peak: Option<u64>,
    /// `memory.max`, bytes; `None` also when there is no limit.
    pub memory_max: Option<u64>,
    /// `memory.swap.current`, bytes.
    pub swap_current: Option<u64>,
    /// `memory.swap.max`, bytes; `None` also when there is no limit.
    pub swap_max: Option<u64>,
    /// `memory.stat`.
    pub memory: Option<MemoryStat>,
    /// `memory.events`.
    pub memory_events: Option<MemoryEvents>,
    /// `pids.current`.
    pub pids_current: Option<u64>,
    /// `pids.max`; `None` also when there is no limit.
    pub pids_max: Option<u64>,
    /// `io.stat`, one entry a device.
    pub io: Option<Vec<IoStat>>,
    /// `cpu.pressure`.
    pub cpu_pressure: Option<Pressure>,
    /// `memory.pressure`.
    pub memory_pressure: Option<Pressure>,
    /// `io.pressure`.
    pub io_pressure: Option<Pressure>,
}

/// `cpu.stat`. Without the cpu controller only the first three count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuStat {
    /// CPU time, microseconds.
    pub usage_usec: u64,
    /// Of it in user mode.
    pub user_usec: u64,
    /// Of it in the kernel.
    pub system_usec: u64,
    /// Periods in which something ran under a quota.
    pub nr_periods: u64,
    /// Of them used up.
    pub nr_throttled: u64,
    /// Time spent waiting for the next period, microseconds.
    pub throttled_usec: u64,
}

/// The part of `memory.stat` that somebody shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryStat {
    /// Anonymous memory, bytes.
    pub anon: u64,
    /// Page cache, bytes.
    pub file: u64,
    /// Of it not used lately, bytes: what "working set" leaves out.
    pub inactive_file: u64,
    /// Of it used lately, bytes.
    pub active_file: u64,
    /// Kernel memory, bytes.
    pub kernel: u64,
    /// Slab caches, bytes.
    pub slab: u64,
    /// tmpfs and shared memory, bytes.
    pub shmem: u64,
    /// Mapped page cache, bytes.
    pub file_mapped: u64,
    /// Page faults.
    pub pgfault: u64,
    /// Of them with I/O.
    pub pgmajfault: u64,
}

/// The part of `memory.events` that somebody shows. Counts the cgroups below, too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryEvents {
    /// How often an allocation was about to go over `memory.max`.
    pub max: u64,
    /// Processes that the OOM killer has killed.
    pub oom_kill: u64,
}

/// One line of `io.stat`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IoStat {
    /// Device, major number.
    pub major: u32,
    /// Device, minor number.
    pub minor: u32,
    /// Bytes read.
    pub rbytes: u64,
    /// Bytes written.
    pub wbytes: u64,
    /// Read requests.
    pub rios: u64,
    /// Write requests.
    pub wios: u64,
}

/// Pressure stall information (Documentation/accounting/psi.rst).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    /// Some task waited.
    pub some: PressureLine,
    /// All tasks waited. Not counted for the CPU before Linux 5.13.
    pub full: Option<PressureLine>,
}

/// Shares of time spent waiting.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PressureLine {
    /// Of the last 10 seconds, per cent.
    pub avg10: f64,
    /// Of the last 60 seconds, per cent.
    pub avg60: f64,
    /// Of the last 300 seconds, per cent.
    pub avg300: f64,
    /// Ever, microseconds.
    pub total_usec: u64,
}

/// Reads all files.
pub(super) fn read(dir: BorrowedFd<'_>, location: &Path) -> Result<CgroupStats, CgroupError> {
    let text = |name: &str| {
        files::read_optional(dir, name).map_err(|errno| CgroupError::sys("read", &location.join(name), errno))
    };
    // "max" is no number, and so no limit.
    let number = |name: &str| Ok::<_, CgroupError>(text(name)?.and_then(|text| text.trim().parse().ok()));
    let pressure = |name: &str| Ok::<_, CgroupError>(text(name)?.as_deref().and_then(pressure));
    Ok(CgroupStats {
        cpu: text("cpu.stat")?.as_deref().map(cpu),
        memory_current: number("memory.current")?,
        memory_peak: number("memory.peak")?,
        memory_max: number("memory.max")?,
        swap_current: number("memory.swap.current")?,
        swap_max: number("memory.swap.max")?,
        memory: text("memory.stat")?.as_deref().map(memory),
        memory_events: text("memory.events")?.as_deref().map(memory_events),
        pids_current: number("pids.current")?,
        pids_max: number("pids.max")?,
        io: text("io.stat")?.as_deref().map(io),
        cpu_pressure: pressure("cpu.pressure")?,
        memory_pressure: pressure("memory.pressure")?,
        io_pressure: pressure("io.pressure")?,
    })
}

fn cpu(text: &str) -> CpuStat {
    let value = |key| files::value(text, key).unwrap_or_default();
    CpuStat {
        usage_usec: value("usage_usec"),
        user_usec: value("user_usec"),
        system_usec: value("system_usec"),
        nr_periods: value("nr_periods"),
        nr_throttled: value("nr_throttled"),
        throttled_usec: value("throttled_usec"),
    }
}

fn memory(text: &str) -> MemoryStat {
    let value = |key| files::value(text, key).unwrap_or_default();
    MemoryStat {
        anon: value("anon"),
        file: value("file"),
        inactive_file: value("inactive_file"),
        active_file: value("active_file"),
        kernel: value("kernel"),
        slab: value("slab"),
        shmem: value("shmem"),
        file_mapped: value("file_mapped"),
        pgfault: value("pgfault"),
        pgmajfault: value("pgmajfault"),
    }
}

fn memory_events(text: &str) -> MemoryEvents {
    let value = |key| files::value(text, key).unwrap_or_default();
    MemoryEvents { max: value("max"), oom_kill: value("oom_kill") }
}

fn io(text: &str) -> Vec<IoStat> {
    text.lines().filter_map(io_line).collect()
}

fn io_line(line: &str) -> Option<IoStat> {
    let mut words = line.split_ascii_whitespace();
    let (major, minor) = words.next()?.split_once(':')?;
    let mut stat = IoStat { major: major.parse().ok()?, minor: minor.parse().ok()?, ..IoStat::default() };
    for (key, value) in words.filter_map(|word| word.split_once('=')) {
        let Ok(value) = value.parse() else { continue };
        match key {
            "rbytes" => stat.rbytes = value,
            "wbytes" => stat.wbytes = value,
            "rios" => stat.rios = value,
            "wios" => stat.wios = value,
            // Discards, and keys of controllers that are not shown.
            _ => {}
        }
    }
    Some(stat)
}

fn pressure(text: &str) -> Option<Pressure> {
    let line = |kind: &str| text.lines().find_map(|line| pressure_line(line.strip_prefix(kind)?));
    Some(Pressure { some: line("some ")?, full: line("full ") })
}

fn pressure_line(line: &str) -> Option<PressureLine> {
    let value =
        |key: &str| line.split_ascii_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
    Some(PressureLine {
        avg10: value("avg10")?.parse().ok()?,
        avg60: value("avg60")?.parse().ok()?,
        avg300: value("avg300")?.parse().ok()?,
        total_usec: value("total")?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_has_two_lines() {
        let text = "some avg10=1.50 avg60=0.20 avg300=0.05 total=12345\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        let read = pressure(text).unwrap();
        assert_eq!((read.some.avg10, read.some.total_usec), (1.5, 12_345));
        assert_eq!(read.full.unwrap().total_usec, 7);
        assert_eq!(pressure(""), None);
    }

    #[test]
    fn devices_are_told_apart() {
        let text = "8:0 rbytes=1024 wbytes=4096 rios=2 wios=3 dbytes=0 dios=0\n253:1 rbytes=1\n\n";
        let stats = io(text);
        assert_eq!(stats.len(), 2);
        assert_eq!((stats[0].wbytes, stats[0].wios, stats[1].major), (4096, 3, 253));
    }

    #[test]
    fn an_oom_kill_is_not_an_oom() {
        let events = memory_events("low 0\nhigh 0\nmax 3\noom 2\noom_kill 1\noom_group_kill 7\n");
        assert_eq!(events, MemoryEvents { max: 3, oom_kill: 1 });
    }

    #[test]
    fn keys_are_matched_whole() {
        let stat = memory("anon 5\nanon_thp 7\nfile 9\nfile_mapped 11\n");
        assert_eq!((stat.anon, stat.file, stat.file_mapped), (5, 9, 11));
    }
}
