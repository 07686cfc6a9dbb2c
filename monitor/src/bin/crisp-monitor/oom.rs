//! OOM kills in a container's cgroup, seen as they happen, and whose limit was the cause.
//!
//! `memory.events` of the container's cgroup counts its victims (`oom_kill`). The cgroup whose limit was reached counts
//! the event itself (`oom`) in its own `memory.events.local`, and only there: the nearest one upwards that has counted
//! since the last kill is the cause; when none has, the machine was out of memory (kernel doc: cgroup-v2, "Memory
//! Interface Files"). The limit is counted some time before its victim, so a look may come between the two.
//!
//! systemd removes a scope as soon as it is empty, which can be before anybody has read that file. The pod's cgroup
//! stays, and counts the victims of all below it: what no container of the pod accounts for was in one that is gone.

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
    /// Its cgroup has been removed.
    gone: bool,
    /// `oom_kill` at the beginning, and at the last look.
    first: u64,
    kills: u64,
    /// `oom` of the container's cgroup alone, at the last kill in the pod.
    own: u64,
    /// The cgroups above. `None`: they count nothing.
    above: Option<Above>,
    level: OomLevel,
}

/// The cgroups above a container's, its pod's being the first.
#[derive(Debug)]
struct Above {
    parent: OwnedFd,
    /// The parent's `memory.events`: of all that is below it.
    events: OwnedFd,
    /// At the last look at the whole pod.
    seen: Counts,
    /// At this look.
    now: Counts,
    /// `oom` of each one alone, the parent first, at the last kill in the pod.
    ooms: Vec<u64>,
}

/// A cgroup's `memory.events`.
#[derive(Clone, Copy, Debug)]
struct Counts {
    ooms: u64,
    kills: u64,
}

impl OomWatch {
    /// Begins to count. `None` without the memory controller.
    pub(crate) fn begin(cgroup: BorrowedFd<'_>) -> Option<Self> {
        let events = cgroup::open(cgroup, "memory.events").ok()?;
        let kills = cgroup::read_key(events.as_fd(), b"oom_kill")?;
        let (own, above) = (own(cgroup).unwrap_or_default(), Above::begin(cgroup));
        Some(Self { events, gone: false, first: kills, kills, own, above, level: OomLevel::Unknown })
    }

    /// Looks again: how many more kills there are than at the last look. A cgroup that is gone tells of none.
    pub(crate) fn look(&mut self, cgroup: BorrowedFd<'_>) -> u64 {
        // The pod's first: a kill between the two must not look like one that nobody accounts for.
        if let Some(above) = &mut self.above {
            above.look();
        }
        let Some(kills) = cgroup::read_key(self.events.as_fd(), b"oom_kill") else {
            self.gone = true;
            return 0;
        };
        let more = kills.saturating_sub(self.kills);
        if more > 0 {
            self.kills = kills;
            self.level = match own(cgroup) {
                Some(own) if own > self.own => OomLevel::Container,
                _ => self.above.as_ref().and_then(Above::cause).unwrap_or(OomLevel::Host),
            };
        }
        more
    }

    /// The container was killed. Counts that as an OOM kill if its cgroup was removed before it could be asked, and the
    /// pod's has counted more kills than the `accounted` ones that others were found to be.
    pub(crate) fn inherit(&mut self, accounted: u64) -> u64 {
        let Some(above) = &self.above else { return 0 };
        let more = above.now.kills.saturating_sub(above.seen.kills);
        if !self.gone || more <= accounted {
            return 0;
        }
        self.kills += 1;
        self.level = match above.cause() {
            Some(level) => level,
            None if above.now.ooms > above.seen.ooms => OomLevel::Container,
            None => OomLevel::Host,
        };
        1
    }

    /// The whole pod has been looked at, and `accounted` kills have been found. What led to them leads to no others.
    pub(crate) fn settle(&mut self, cgroup: BorrowedFd<'_>, accounted: u64) {
        if accounted > 0 {
            self.own = own(cgroup).unwrap_or(self.own);
        }
        let Some(above) = &mut self.above else { return };
        if accounted > 0 {
            above.ooms = above.alone();
        }
        if self.gone {
            // The rest may be its own, which is known when its first process is reaped.
            above.seen.kills += accounted;
        } else {
            above.seen = above.now;
        }
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

impl Above {
    fn begin(cgroup: BorrowedFd<'_>) -> Option<Self> {
        let parent = cgroup::open(cgroup, "..").ok()?;
        let events = cgroup::open(parent.as_fd(), "memory.events").ok()?;
        let seen = Counts::read(events.as_fd())?;
        let mut above = Self { parent, events, seen, now: seen, ooms: Vec::new() };
        above.ooms = above.alone();
        Some(above)
    }

    fn look(&mut self) {
        self.now = Counts::read(self.events.as_fd()).unwrap_or(self.now);
    }

    /// `oom` of the parent and of those above it, each alone, up to the last one that counts.
    fn alone(&self) -> Vec<u64> {
        let mut path = String::from("memory.events.local");
        let mut found = Vec::new();
        while found.len() < LEVELS_MAX {
            let Ok(file) = cgroup::open(self.parent.as_fd(), &path) else { break };
            let Some(count) = cgroup::read_key(file.as_fd(), b"oom") else { break };
            found.push(count);
            path.insert_str(0, "../");
        }
        found
    }

    /// The nearest one that has reached its limit since the last kill in the pod.
    fn cause(&self) -> Option<OomLevel> {
        match self.ooms.iter().zip(self.alone()).position(|(before, now)| now > *before)? {
            0 => Some(OomLevel::Pod),
            _ => Some(OomLevel::Ancestor),
        }
    }
}

impl Counts {
    fn read(events: BorrowedFd<'_>) -> Option<Self> {
        Some(Self { ooms: cgroup::read_key(events, b"oom")?, kills: cgroup::read_key(events, b"oom_kill")? })
    }
}

/// How often the cgroup's own limit was reached.
fn own(cgroup: BorrowedFd<'_>) -> Option<u64> {
    let file = cgroup::open(cgroup, "memory.events.local").ok()?;
    cgroup::read_key(file.as_fd(), b"oom")
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use tempfile::TempDir;

    use super::*;

    /// Two containers in a pod in a node, as plain files.
    struct Tree {
        dir: TempDir,
    }

    impl Tree {
        fn new() -> Self {
            let tree = Self { dir: tempfile::tempdir().unwrap() };
            for cgroup in ["node", "node/pod", "node/pod/a", "node/pod/b"] {
                fs::create_dir(tree.path(cgroup)).unwrap();
                tree.set(cgroup, (0, 0), 0);
            }
            tree
        }

        fn path(&self, cgroup: &str) -> PathBuf {
            self.dir.path().join(cgroup)
        }

        /// `oom` and `oom_kill` of the cgroup and all below it; `oom` of itself.
        fn set(&self, cgroup: &str, (ooms, kills): (u64, u64), own: u64) {
            let dir = self.path(cgroup);
            fs::write(dir.join("memory.events"), format!("oom {ooms}\noom_kill {kills}\n")).unwrap();
            fs::write(dir.join("memory.events.local"), format!("oom {own}\noom_kill 0\n")).unwrap();
        }

        /// Takes away what it holds, as a removed cgroup's files read as nothing.
        fn remove(&self, cgroup: &str) {
            for file in ["memory.events", "memory.events.local"] {
                fs::write(self.path(cgroup).join(file), "").unwrap();
            }
        }

        fn open(&self, cgroup: &str) -> (fs::File, OomWatch) {
            let dir = fs::File::open(self.path(cgroup)).unwrap();
            let watch = OomWatch::begin(dir.as_fd()).unwrap();
            (dir, watch)
        }
    }

    fn once(level: OomLevel) -> Option<OomKills> {
        Some(OomKills { kills: 1, level: level.into() })
    }

    #[test]
    fn the_nearest_that_counted_is_the_cause() {
        // Whose limit: the container's, the pod's, the node's.
        for (limits, expected) in [
            ([1, 0, 0], OomLevel::Container),
            ([1, 1, 0], OomLevel::Container),
            ([0, 1, 1], OomLevel::Pod),
            ([0, 0, 1], OomLevel::Ancestor),
            ([0, 0, 0], OomLevel::Host),
        ] {
            let tree = Tree::new();
            let (dir, mut watch) = tree.open("node/pod/a");
            tree.set("node", (3, 1), limits[2]);
            tree.set("node/pod", (3, 1), limits[1]);
            tree.set("node/pod/a", (limits[0], 0), limits[0]);
            // A look between the limit and its victim.
            assert_eq!(watch.look(dir.as_fd()), 0);
            watch.settle(dir.as_fd(), 0);
            tree.set("node/pod/a", (limits[0], 1), limits[0]);
            assert_eq!(watch.look(dir.as_fd()), 1);
            assert_eq!(watch.so_far(), once(expected), "{limits:?}");
        }
    }

    #[test]
    fn what_hit_another_container_is_not_the_cause_of_the_next_kill() {
        let tree = Tree::new();
        let ((dir, mut a), (other, mut b)) = (tree.open("node/pod/a"), tree.open("node/pod/b"));
        tree.set("node/pod", (1, 1), 1);
        tree.set("node/pod/b", (0, 1), 0);
        let accounted = a.look(dir.as_fd()) + b.look(other.as_fd());
        assert_eq!((accounted, b.so_far()), (1, once(OomLevel::Pod)));
        a.settle(dir.as_fd(), accounted);
        tree.set("node/pod/a", (0, 1), 0);
        assert_eq!((a.look(dir.as_fd()), a.so_far()), (1, once(OomLevel::Host)));
    }

    #[test]
    fn a_cgroup_that_is_gone_is_told_of_by_its_pod() {
        for (limits, expected) in [
            ((1, 0, 0), OomLevel::Container),
            ((1, 1, 0), OomLevel::Pod),
            ((0, 0, 1), OomLevel::Ancestor),
            ((0, 0, 0), OomLevel::Host),
        ] {
            let tree = Tree::new();
            let (dir, mut watch) = tree.open("node/pod/a");
            tree.set("node", (1, 1), limits.2);
            tree.set("node/pod", (limits.0, 1), limits.1);
            tree.remove("node/pod/a");
            assert_eq!((watch.look(dir.as_fd()), watch.inherit(0)), (0, 1));
            assert_eq!(watch.so_far(), once(expected), "{limits:?}");
        }
    }

    #[test]
    fn of_two_that_are_gone_each_has_its_own() {
        let tree = Tree::new();
        let ((dir, mut a), (other, mut b)) = (tree.open("node/pod/a"), tree.open("node/pod/b"));
        tree.set("node/pod", (2, 2), 0);
        tree.remove("node/pod/a");
        tree.remove("node/pod/b");
        let mut accounted = a.look(dir.as_fd()) + b.look(other.as_fd());
        accounted += a.inherit(accounted);
        assert_eq!(accounted, 1);
        a.settle(dir.as_fd(), accounted);
        b.settle(other.as_fd(), accounted);
        assert_eq!((b.look(other.as_fd()), b.inherit(0), b.inherit(1)), (0, 1, 0));
    }

    #[test]
    fn kills_of_others_are_nobodys() {
        let tree = Tree::new();
        let ((dir, mut a), (other, mut b)) = (tree.open("node/pod/a"), tree.open("node/pod/b"));
        // One is accounted for by b, and then a is killed by somebody, and removed.
        tree.set("node/pod", (1, 1), 0);
        tree.set("node/pod/b", (1, 1), 1);
        tree.remove("node/pod/a");
        let accounted = a.look(dir.as_fd()) + b.look(other.as_fd());
        assert_eq!((accounted, a.inherit(accounted), a.so_far()), (1, 0, None));
        // With its cgroup there, a container knows for itself.
        tree.set("node/pod", (2, 3), 0);
        assert_eq!((b.look(other.as_fd()), b.inherit(0), b.so_far()), (0, 0, once(OomLevel::Container)));
    }

    #[test]
    fn without_the_memory_controller_nothing_is_watched() {
        let dir = tempfile::tempdir().unwrap();
        let fd = fs::File::open(dir.path()).unwrap();
        assert!(OomWatch::begin(fd.as_fd()).is_none());
    }
}
