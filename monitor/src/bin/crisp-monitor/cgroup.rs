//! What the monitor asks of a container's cgroup: is it empty, kill it.
//! All through the directory's descriptor. A cgroup that was removed has no files: that reads as
//! "nothing", never as an error.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::sys::uio::pread;
use nix::unistd::write;

/// Kills every process of the cgroup and those below it (`cgroup.kill`, Linux 5.14).
///
/// # Errors
/// What open or write said; ENOENT or ENODEV when the cgroup is gone.
pub(crate) fn kill(cgroup: BorrowedFd<'_>) -> Result<(), Errno> {
    let file = openat(cgroup, "cgroup.kill", OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    write(file.as_fd(), b"1").map(|_| ())
}

/// Opens one of its files to read.
pub(crate) fn open(cgroup: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    openat(cgroup, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
}

/// `cgroup.events`: can be waited on (`EPOLLPRI`) and asked.
#[derive(Debug)]
pub(crate) struct CgroupEvents(OwnedFd);

impl CgroupEvents {
    /// `None` when the cgroup is gone.
    pub(crate) fn open(cgroup: BorrowedFd<'_>) -> Option<Self> {
        open(cgroup, "cgroup.events").ok().map(Self)
    }

    /// Whether a process lives in the cgroup or below. Reading arms the next notification.
    pub(crate) fn populated(&self) -> bool {
        read_key(self.0.as_fd(), b"populated") == Some(1)
    }
}

impl AsFd for CgroupEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The number behind `key` in a "flat keyed" file (kernel doc: cgroup-v2, "Interface files").
pub(crate) fn read_key(file: BorrowedFd<'_>, key: &[u8]) -> Option<u64> {
    let mut buffer = [0; 1024];
    let length = pread(file, &mut buffer, 0).ok()?;
    parse_key(&buffer[..length], key)
}

fn parse_key(text: &[u8], key: &[u8]) -> Option<u64> {
    text.split(|byte| *byte == b'\n').find_map(|line| {
        let value = line.strip_prefix(key)?.strip_prefix(b" ")?;
        std::str::from_utf8(value).ok()?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_matched_whole() {
        let text = b"low 0\noom 3\noom_kill 2\noom_group_kill 1\n";
        assert_eq!(parse_key(text, b"oom_kill"), Some(2));
        assert_eq!(parse_key(text, b"oom"), Some(3));
        assert_eq!(parse_key(text, b"o"), None);
        assert_eq!(parse_key(b"populated x\n", b"populated"), None);
        assert_eq!(parse_key(b"", b"populated"), None);
    }

    #[test]
    fn a_directory_without_the_files_reads_as_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let fd = std::fs::File::open(dir.path()).unwrap();
        assert!(CgroupEvents::open(fd.as_fd()).is_none());
        assert_eq!(kill(fd.as_fd()), Err(Errno::ENOENT));
    }
}
