//! Cgroups of a test.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A cgroup (controllers are not needed) that is killed and removed when dropped.
pub(crate) struct Cgroup {
    pub(crate) path: PathBuf,
}

impl Cgroup {
    pub(super) fn top() -> PathBuf {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
        let mount = line.expect("these tests need a cgroup2 mount").split(' ').nth(1).unwrap();
        PathBuf::from(mount)
    }

    pub(super) fn new(path: PathBuf) -> Self {
        std::fs::create_dir(&path).unwrap();
        Cgroup { path }
    }

    pub(crate) fn child(&self, name: &str) -> Cgroup {
        Cgroup::new(self.path.join(name))
    }

    pub(crate) fn open(&self) -> OwnedFd {
        File::open(&self.path).unwrap().into()
    }

    /// Waits until no process is left in it.
    fn wait_empty(&self) {
        let mut file = File::open(self.path.join("cgroup.events")).unwrap();
        loop {
            let mut text = String::new();
            std::io::Seek::rewind(&mut file).unwrap();
            file.read_to_string(&mut text).unwrap();
            if text.contains("populated 0") {
                return;
            }
            let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLPRI)];
            assert_ne!(
                poll(&mut fds, PollTimeout::from(60_000u16)).unwrap(),
                0,
                "{:?} stays populated",
                self.path
            );
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if std::fs::write(self.path.join("cgroup.kill"), "1").is_ok() {
            self.wait_empty();
        }
        remove_below(&self.path);
    }
}

fn remove_below(path: &Path) {
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_below(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(path);
}
