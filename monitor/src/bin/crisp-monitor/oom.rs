//! OOM kills in a container's cgroup, seen as they happen, and whose limit was the cause.
//!
//! `memory.events` of the container's cgroup counts its victims (`oom_kill`). The cgroup whose limit was reached counts
//! the event itself (`oom`) in its own `memory.events.local`, and only there: the nearest one upwards that has counted
//! since the last look is the cause; when none has, the machine was out of memory (kernel doc: cgroup-v2, "Memory
//! Interface Files").

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crisp_monitor::wire::{OomKills, OomLevel};

use crate::cgroup;

/// How far up is looked: deeper than any node's tree.
const LEVELS_MAX: usize = 32;

/// See the module.
#[derive(Debug)]
pub(crate) struct OomWatch {
    /// `memory.events`: can be waited on (`EPOLLPRI`); every read arms the next notification.
    events: OwnedFd,
    /// `oom_kill` at the beginning, and at the last look.
    first: u64,
    kills: u64,
    /// `oom` at the last look: of the container's cgroup, its parent's, and so on.
    ooms: Vec<u64>,
    level: OomLevel,
}

impl OomWatch {
    /// Begins to count. `None` without the memory controller.
    pub(crate) fn begin(cgroup: BorrowedFd<'_>) -> Option<Self> {
        let events = cgroup::open(cgroup, "memory.events").ok()?;
        let first = cgroup::read_key(events.as_fd(), b"oom_kill")?;
        Some(Self { events, first, kills: first, ooms: ooms(cgroup), level: OomLevel::Unknown })
    }

    /// Looks again; whether there are more kills than at the last look. A cgroup that is gone counts no more.
    pub(crate) fn look(&mut self, cgroup: BorrowedFd<'_>) -> bool {
        let kills = cgroup::read_key(self.events.as_fd(), b"oom_kill").unwrap_or(self.kills);
        let ooms = ooms(cgroup);
        let more = kills > self.kills;
        if more {
            self.level = level(&self.ooms, &ooms);
        }
        if !ooms.is_empty() {
            self.ooms = ooms;
        }
        self.kills = kills;
        more
    }

    /// What there was since the beginning.
    pub(crate) fn so_far(&self) -> Option<OomKills> {
        let kills = self.kills.saturating_sub(self.first);
        (kills > 0).then_some(OomKills { kills, level: self.level.into() })
    }
}

impl AsFd for OomWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

/// `oom` of the cgroup and of those above it, up to the last one that counts.
fn ooms(cgroup: BorrowedFd<'_>) -> Vec<u64> {
    let mut path = String::from("memory.events.local");
    let mut found = Vec::new();
    while found.len() < LEVELS_MAX {
        let Ok(file) = cgroup::open(cgroup, &path) else { break };
        let Some(count) = cgroup::read_key(file.as_fd(), b"oom") else { break };
        found.push(count);
        path.insert_str(0, "../");
    }
    found
}

fn level(before: &[u64], now: &[u64]) -> OomLevel {
    // Nothing could be read: the cgroup is gone.
    if now.is_empty() {
        return OomLevel::Unknown;
    }
    match before.iter().zip(now).position(|(before, now)| now > before) {
        Some(0) => OomLevel::Container,
        Some(1) => OomLevel::Pod,
        Some(_) => OomLevel::Ancestor,
        None => OomLevel::Host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_that_counted_is_the_cause() {
        let before = [0, 3, 7];
        for (now, expected) in [
            (&[1, 3, 7][..], OomLevel::Container),
            (&[1, 4, 7], OomLevel::Container),
            (&[0, 4, 8], OomLevel::Pod),
            (&[0, 3, 8], OomLevel::Ancestor),
            (&[0, 3, 7], OomLevel::Host),
            (&[], OomLevel::Unknown),
        ] {
            assert_eq!(level(&before, now), expected, "{now:?}");
        }
    }

    #[test]
    fn without_the_memory_controller_nothing_is_watched() {
        let dir = tempfile::tempdir().unwrap();
        let fd = std::fs::File::open(dir.path()).unwrap();
        assert!(OomWatch::begin(fd.as_fd()).is_none());
        // The files of a container in a pod, as plain ones.
        let container = dir.path().join("pod/container");
        std::fs::create_dir_all(&container).unwrap();
        let write = |path: &str, text: &str| std::fs::write(dir.path().join(path), text).unwrap();
        write("pod/container/memory.events", "oom 0\noom_kill 2\n");
        write("pod/container/memory.events.local", "oom 0\n");
        write("pod/memory.events.local", "oom 5\n");
        let fd = std::fs::File::open(&container).unwrap();
        let mut watch = OomWatch::begin(fd.as_fd()).unwrap();
        assert!(!watch.look(fd.as_fd()) && watch.so_far().is_none());
        // Another container of the pod was the victim; then this one, of its own limit.
        write("pod/memory.events.local", "oom 6\n");
        assert!(!watch.look(fd.as_fd()));
        write("pod/container/memory.events.local", "oom 1\n");
        write("pod/container/memory.events", "oom 1\noom_kill 3\n");
        assert!(watch.look(fd.as_fd()));
        assert_eq!(watch.so_far(), Some(OomKills { kills: 1, level: OomLevel::Container.into() }));
    }
}
