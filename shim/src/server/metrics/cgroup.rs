//! What the kernel counts for a container: CPU time, memory, and time lost to waiting for either.

use crisp_runtime::cgroup::{CpuStat, MemoryEvents, MemoryStat, Pressure, PressureLine};

use super::{
    family::{
        Family,
        Needs::{self, Controller, Nothing},
        Sample, one,
    },
    reading::Reading,
};

const MICROS: u64 = 1_000_000;
const CPU: Needs = Controller("cpu");
const MEMORY: Needs = Controller("memory");
const STALLS: Needs = Needs::Pressure;

type Row = Family<Reading>;

pub(super) const ALL: &[Row] = &[
    Row::counter("container_cpu_usage_seconds_total", "CPU time in seconds.", Nothing, |r| {
        let sample = |value| Sample { labels: vec!["total".to_owned()], value };
        r.stats.cpu.map(|cpu| sample(cpu.usage_usec / MICROS)).into_iter().collect()
    })
    .by(&["cpu"]),
    Row::counter("container_cpu_user_seconds_total", "CPU time in user mode in seconds.", Nothing, |r| {
        cpu(r, |cpu| cpu.user_usec / MICROS)
    }),
    Row::counter("container_cpu_system_seconds_total", "CPU time in the kernel in seconds.", Nothing, |r| {
        cpu(r, |cpu| cpu.system_usec / MICROS)
    }),
    Row::counter("container_cpu_cfs_periods_total", "Periods in which it ran under a quota.", CPU, |r| {
        cpu(r, |cpu| cpu.nr_periods)
    }),
    Row::counter("container_cpu_cfs_throttled_periods_total", "Periods whose quota it used up.", CPU, |r| {
        cpu(r, |cpu| cpu.nr_throttled)
    }),
    Row::counter(
        "container_cpu_cfs_throttled_seconds_total",
        "Time that it waited for the next period in seconds.",
        CPU,
        |r| cpu(r, |cpu| cpu.throttled_usec / MICROS),
    ),
    Row::gauge("container_memory_usage_bytes", "Memory in use, with all caches.", MEMORY, |r| {
        one(r.stats.memory_current)
    }),
    Row::gauge("container_memory_max_usage_bytes", "Most memory that was in use.", MEMORY, |r| {
        one(r.stats.memory_peak)
    }),
    Row::gauge(
        "container_memory_working_set_bytes",
        "Memory in use without inactive page cache.",
        MEMORY,
        |r| {
            let inactive = r.stats.memory.map_or(0, |memory| memory.inactive_file);
            one(r.stats.memory_current.map(|current| current.saturating_sub(inactive)))
        },
    ),
    Row::gauge("container_memory_cache", "Page cache in bytes.", MEMORY, |r| memory(r, |memory| memory.file)),
    Row::gauge("container_memory_rss", "Anonymous memory in bytes.", MEMORY, |r| {
        memory(r, |memory| memory.anon)
    }),
    Row::gauge("container_memory_mapped_file", "Mapped files in bytes.", MEMORY, |r| {
        memory(r, |memory| memory.file_mapped)
    }),
    Row::gauge("container_memory_kernel_usage", "Memory of the kernel's own in bytes.", MEMORY, |r| {
        memory(r, |memory| memory.kernel)
    }),
    // A kernel without swap has no such file, and nothing is swapped out.
    Row::gauge("container_memory_swap", "Swap in use in bytes.", MEMORY, |r| {
        one(Some(r.stats.swap_current.unwrap_or_default()))
    }),
    Row::counter("container_memory_failcnt", "How often it was at its memory limit.", MEMORY, |r| {
        events(r, |events| events.max)
    }),
    Row::counter("container_oom_events_total", "Processes killed for want of memory.", MEMORY, |r| {
        events(r, |events| events.oom_kill)
    }),
    Row::counter("container_memory_failures_total", "Page faults.", MEMORY, faults)
        .by(&["failure_type", "scope"]),
    Row::counter(
        "container_pressure_cpu_waiting_seconds_total",
        "Time in which some of its tasks waited for a CPU in seconds.",
        STALLS,
        |r| some(r.stats.cpu_pressure.as_ref()),
    ),
    Row::counter(
        "container_pressure_cpu_stalled_seconds_total",
        "Time in which all of its tasks waited for a CPU in seconds.",
        STALLS,
        |r| full(r.stats.cpu_pressure.as_ref()),
    ),
    Row::counter(
        "container_pressure_memory_waiting_seconds_total",
        "Time in which some of its tasks waited for memory in seconds.",
        STALLS,
        |r| some(r.stats.memory_pressure.as_ref()),
    ),
    Row::counter(
        "container_pressure_memory_stalled_seconds_total",
        "Time in which all of its tasks waited for memory in seconds.",
        STALLS,
        |r| full(r.stats.memory_pressure.as_ref()),
    ),
    Row::counter(
        "container_pressure_io_waiting_seconds_total",
        "Time in which some of its tasks waited for I/O in seconds.",
        STALLS,
        |r| some(r.stats.io_pressure.as_ref()),
    ),
    Row::counter(
        "container_pressure_io_stalled_seconds_total",
        "Time in which all of its tasks waited for I/O in seconds.",
        STALLS,
        |r| full(r.stats.io_pressure.as_ref()),
    ),
];

fn cpu(reading: &Reading, value: fn(CpuStat) -> u64) -> Vec<Sample> {
    one(reading.stats.cpu.map(value))
}

fn memory(reading: &Reading, value: fn(MemoryStat) -> u64) -> Vec<Sample> {
    one(reading.stats.memory.map(value))
}

fn events(reading: &Reading, value: fn(MemoryEvents) -> u64) -> Vec<Sample> {
    one(reading.stats.memory_events.map(value))
}

/// cgroup v2 counts a cgroup with those below it only, so both scopes are the same number.
fn faults(reading: &Reading) -> Vec<Sample> {
    let Some(memory) = reading.stats.memory else { return Vec::new() };
    let kinds = [("pgfault", memory.pgfault), ("pgmajfault", memory.pgmajfault)];
    let scopes = |(kind, value): (&str, u64)| {
        ["container", "hierarchy"]
            .map(|scope| Sample { labels: vec![kind.to_owned(), scope.to_owned()], value })
    };
    kinds.into_iter().flat_map(scopes).collect()
}

fn some(pressure: Option<&Pressure>) -> Vec<Sample> {
    one(pressure.map(|pressure| stalled(&pressure.some)))
}

fn full(pressure: Option<&Pressure>) -> Vec<Sample> {
    one(pressure.and_then(|pressure| pressure.full.as_ref()).map(stalled))
}

fn stalled(line: &PressureLine) -> u64 {
    line.total_usec / MICROS
}
