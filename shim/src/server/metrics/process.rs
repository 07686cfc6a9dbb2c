//! A container's processes, and what was asked for it.

use super::{
    family::{
        Family,
        Needs::{Controller, Nothing},
        Sample, one,
    },
    reading::Reading,
};

const NANOS: u64 = 1_000_000_000;

/// The kernel's CPU period, microseconds, for a container that asks for none.
const CPU_PERIOD: u64 = 100_000;

type Row = Family<Reading>;

pub(super) const ALL: &[Row] = &[
    Row::gauge("container_processes", "Processes in the container.", Nothing, |r| one(Some(r.processes))),
    Row::gauge("container_threads", "Threads in the container.", Controller("pids"), |r| {
        one(r.stats.pids_current)
    }),
    Row::gauge(
        "container_threads_max",
        "Most threads that the container may have, 0 without a limit.",
        Controller("pids"),
        |r| one(Some(r.stats.pids_max.unwrap_or_default())),
    ),
    Row::gauge("container_file_descriptors", "Open file descriptors.", Nothing, |r| one(Some(r.descriptors))),
    Row::gauge("container_sockets", "Open sockets.", Nothing, |r| one(Some(r.sockets))),
    Row::gauge("container_ulimits_soft", "Soft limits of the container's first process.", Nothing, |r| {
        let sample = |value| Sample { labels: vec!["max_open_files".to_owned()], value };
        r.soft_open_files.map(sample).into_iter().collect()
    })
    .by(&["ulimit"]),
    Row::gauge("container_start_time_seconds", "When it was started, since the epoch.", Nothing, |r| {
        one(seconds(r.started_nanos))
    }),
    Row::gauge("container_last_seen", "When this was read, since the epoch.", Nothing, |r| {
        one(seconds(r.now_nanos))
    }),
    Row::gauge("container_spec_cpu_period", "CPU period in microseconds.", Nothing, |r| {
        one(asked(r.resources.cpu_period).filter(|period| *period > 0).or(Some(CPU_PERIOD)))
    }),
    Row::gauge(
        "container_spec_cpu_quota",
        "CPU time in a period in microseconds, 0 without a limit.",
        Nothing,
        |r| one(asked(r.resources.cpu_quota)),
    ),
    Row::gauge("container_spec_cpu_shares", "CPU shares, 0 when none were asked for.", Nothing, |r| {
        one(asked(r.resources.cpu_shares))
    }),
    Row::gauge("container_spec_memory_limit_bytes", "Memory limit, 0 without one.", Nothing, |r| {
        one(asked(r.resources.memory_limit_in_bytes))
    }),
    Row::gauge(
        "container_spec_memory_swap_limit_bytes",
        "Limit of memory and swap together, 0 without one.",
        Nothing,
        |r| one(asked(r.resources.memory_swap_limit_in_bytes)),
    ),
];

fn seconds(nanos: i64) -> Option<u64> {
    u64::try_from(nanos).ok().map(|nanos| nanos / NANOS)
}

/// CRI's 0 and -1 both say that there is no limit.
fn asked(value: i64) -> Option<u64> {
    Some(u64::try_from(value).unwrap_or_default())
}
