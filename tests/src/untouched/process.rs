//! What one process of crisp's holds: identity, descriptors, threads, memory.
//!
//! Must not know: what the process is for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::wait_until_none;

/// How much more memory a process may have had at its peak, KiB. There to catch what grows with hostile input, not what
/// an allocator keeps.
const PEAK_KIB: u64 = 64 << 10;
/// System calls that a thread with nothing to do waits in: futex, `epoll_wait` and its newer forms (x86-64).
const IDLE_CALLS: [&str; 4] = ["202", "232", "281", "441"];
/// Netlink sockets that the daemon keeps for its next conversations with the kernel, after a time with many at once.
const NETLINK_KEPT: usize = 8;
/// How [`descriptors`] calls them.
const NETLINK: &str = "netlink socket";
/// Names of threads that a pool starts and ends as it likes.
const POOL: &str = "tokio-r";

/// A process at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footprint {
    pid: i32,
    start_ticks: u64,
    descriptors: BTreeMap<String, usize>,
    threads: BTreeMap<String, usize>,
    /// `VmRSS` in KiB.
    pub resident_kib: u64,
}

impl Footprint {
    /// Looks at a process, and lets the kernel forget its peak.
    ///
    /// # Errors
    /// It does not run.
    pub fn of(pid: i32) -> Result<Self> {
        // 5: the peak becomes what it holds now (proc_pid_clear_refs(5)).
        fs::write(proc(pid).join("clear_refs"), "5").with_context(|| format!("clear the peak of {pid}"))?;
        Self::look(pid)
    }

    fn look(pid: i32) -> Result<Self> {
        Ok(Self {
            pid,
            start_ticks: start_ticks(pid)?,
            descriptors: descriptors(pid)?,
            threads: threads(pid)?.into_iter().fold(BTreeMap::new(), |mut count, (name, _)| {
                *count.entry(name).or_default() += 1;
                count
            }),
            resident_kib: memory(pid, "VmRSS:")?,
        })
    }

    /// Waits until the process holds no more than it did, with no thread at work.
    ///
    /// # Errors
    /// It is another process, or holds more.
    pub fn wait_for_return(&self, pid: i32) -> Result<()> {
        ensure!(
            pid == self.pid && start_ticks(pid)? == self.start_ticks,
            "process {} was replaced by {pid}",
            self.pid
        );
        let peak = memory(pid, "VmHWM:")?;
        ensure!(
            peak <= self.resident_kib + PEAK_KIB,
            "memory: {} KiB, then {peak} KiB at the peak",
            self.resident_kib
        );
        wait_until_none("a process to hold what it did before", || {
            let now = Self::look(pid)?;
            let mut more = growth("descriptor", &self.descriptors, &now.descriptors);
            more.extend(growth("thread", &self.threads, &now.threads));
            more.extend(busy(pid)?);
            Ok(more)
        })
    }
}

/// The most memory that a process has held since the footprint was taken, KiB.
///
/// # Errors
/// It does not run.
pub fn peak_kib(pid: i32) -> Result<u64> {
    memory(pid, "VmHWM:")
}

fn proc(pid: i32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}"))
}

fn start_ticks(pid: i32) -> Result<u64> {
    let stat = fs::read_to_string(proc(pid).join("stat")).with_context(|| format!("process {pid}"))?;
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    rest.split_whitespace().nth(19).and_then(|word| word.parse().ok()).context("no start time in stat")
}

fn memory(pid: i32, field: &str) -> Result<u64> {
    let status = fs::read_to_string(proc(pid).join("status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
        .with_context(|| format!("no {field} of process {pid}"))
}

/// How many descriptors there are of each kind. Sockets and pipes have numbers that say nothing.
fn descriptors(pid: i32) -> Result<BTreeMap<String, usize>> {
    // The last column is the socket's number.
    let table = fs::read_to_string(proc(pid).join("net/netlink")).context("list netlink sockets")?;
    let netlink: BTreeSet<_> = table.lines().filter_map(|line| line.split_whitespace().last()).collect();
    let mut kinds = BTreeMap::new();
    let folder = proc(pid).join("fd");
    for entry in fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))? {
        // It may be closed while it is looked at.
        let Ok(target) = fs::read_link(entry?.path()) else { continue };
        let text = target.display().to_string();
        let kind = match text.split_once(":[") {
            Some(("socket", number)) if netlink.contains(number.trim_end_matches(']')) => NETLINK.to_owned(),
            Some((kind @ ("socket" | "pipe"), _)) => kind.to_owned(),
            _ => text,
        };
        *kinds.entry(kind).or_default() += 1;
    }
    Ok(kinds)
}

/// Name and folder of each thread that does not belong to a pool.
fn threads(pid: i32) -> Result<Vec<(String, PathBuf)>> {
    Ok(all_threads(pid)?.into_iter().filter(|(name, _)| !name.starts_with(POOL)).collect())
}

fn all_threads(pid: i32) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(proc(pid).join("task"))? {
        let path = entry?.path();
        if let Ok(name) = fs::read_to_string(path.join("comm")) {
            found.push((name.trim_end().to_owned(), path));
        }
    }
    Ok(found)
}

/// Threads that do something, or wait for something that may never come.
fn busy(pid: i32) -> Result<Vec<String>> {
    let call = |path: &Path| fs::read_to_string(path.join("syscall")).unwrap_or_default();
    let mut found = Vec::new();
    for (name, path) in all_threads(pid)? {
        let call = call(&path);
        let number = call.split_whitespace().next().unwrap_or_default();
        // Empty: it has ended meanwhile.
        if !number.is_empty() && !IDLE_CALLS.contains(&number) {
            found.push(format!("thread {name} in system call {}", call.trim_end()));
        }
    }
    Ok(found)
}

fn growth(what: &str, before: &BTreeMap<String, usize>, now: &BTreeMap<String, usize>) -> Vec<String> {
    let kept = |kind: &str| if kind == NETLINK { NETLINK_KEPT } else { 0 };
    let allowed = |kind: &str| before.get(kind).copied().unwrap_or_default().max(kept(kind));
    let more = now.iter().filter(|(kind, count)| allowed(kind) < **count);
    more.map(|(kind, count)| format!("{what} {kind}: {}, then {count}", before.get(kind).unwrap_or(&0)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_further_descriptor_shows_and_its_end_too() {
        let own = i32::try_from(std::process::id()).unwrap();
        let before = descriptors(own).unwrap();
        let open = fs::File::open("/proc/self/limits").unwrap();
        assert!(growth("x", &before, &descriptors(own).unwrap()).iter().any(|line| line.contains("limits")));
        drop(open);
        assert!(!growth("x", &before, &descriptors(own).unwrap()).iter().any(|line| line.contains("limits")));
    }
}
