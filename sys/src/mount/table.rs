//! What the mount table says about one mount.

use crate::errno::{Context, Errno, SysError};
use std::os::fd::{AsFd, AsRawFd};

/// Whom a mount shares mount events with (mount_namespaces(7)). Neither: it is private.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peers {
    /// It gives events to a peer group and gets them from there.
    pub shared: bool,
    /// It gets events from a group and gives none back.
    pub slave: bool,
}

/// The peers of the mount that a descriptor is on, in the caller's mount namespace. Reads the whole mount table.
///
/// # Errors
/// `ENOENT` for a detached mount; the kernel's answer.
pub fn peers(fd: impl AsFd) -> Result<Peers, SysError> {
    let read = |path: &str| std::fs::read_to_string(path).map_err(|error| SysError::io("read", path, &error));
    let information = read(&format!("/proc/thread-self/fdinfo/{}", fd.as_fd().as_raw_fd()))?;
    let id = information.lines().find_map(|line| line.strip_prefix("mnt_id:")).map_or("", str::trim);
    let table = read("/proc/thread-self/mountinfo")?;
    find(&table, id).ok_or(Errno::ENOENT).on("find mount", || id)
}

/// A line: `id parent major:minor root target options tag... - type source super-options` (proc_pid_mountinfo(5)).
fn find(table: &str, id: &str) -> Option<Peers> {
    let line = table.lines().find(|line| line.split(' ').next() == Some(id))?;
    let tags = || line.split(' ').skip(6).take_while(|word| *word != "-");
    let tagged = |name: &str| tags().any(|tag| tag.split(':').next() == Some(name));
    Some(Peers { shared: tagged("shared"), slave: tagged("master") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_of_the_right_mount_are_read() {
        let table = "21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
            22 21 0:5 / /slave ro master:1 propagate_from:7 - tmpfs tmpfs rw\n\
            23 21 0:5 / /both rw shared:3 master:1 - tmpfs shared:9 rw\n\
            24 21 0:5 / /private rw - tmpfs master:1 rw\n";
        let of = |id| find(table, id).map(|peers| (peers.shared, peers.slave));
        assert_eq!(of("21"), Some((true, false)));
        assert_eq!(of("22"), Some((false, true)));
        assert_eq!(of("23"), Some((true, true)));
        assert_eq!(of("24"), Some((false, false)));
        assert_eq!(of("2"), None);
        assert_eq!(of(""), None);
    }

    #[test]
    fn the_root_is_on_a_mount() {
        assert!(peers(std::fs::File::open("/").unwrap()).is_ok());
    }
}
