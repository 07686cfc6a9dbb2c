//! Owner, mode, times and extended attributes of what was created. Works on fds and on paths through one,
//! never on a name that could be a symlink.

use std::os::fd::BorrowedFd;

use rustix::fs::{Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::{ApplyError, io_error};
use crate::unpack::archive::Entry;

pub(super) fn owner(entry: &Entry) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
}

pub(super) fn mode(entry: &Entry) -> Mode {
    Mode::from_raw_mode(entry.mode)
}

pub(super) fn set_owner_and_mode(entry: &Entry, fd: BorrowedFd<'_>) -> Result<(), ApplyError> {
    let (uid, gid) = owner(entry);
    rustix::fs::fchown(fd, uid, gid).map_err(|e| io_error(entry, "set owner", e.into()))?;
    // After the owner: chown drops set-user-id bits.
    rustix::fs::fchmod(fd, mode(entry)).map_err(|e| io_error(entry, "set mode", e.into()))
}

pub(super) fn set_xattrs(entry: &Entry, path: &[u8], follow: bool) -> Result<(), ApplyError> {
    for (name, value) in entry.xattrs.iter().filter(|(name, _)| may_keep(name)) {
        let result = if follow {
            rustix::fs::setxattr(path, name.as_slice(), value, XattrFlags::empty())
        } else {
            rustix::fs::lsetxattr(path, name.as_slice(), value, XattrFlags::empty())
        };
        match result {
            Ok(()) => {}
            // user.* does not exist on links and nodes, ACLs not on every file system. Capabilities are
            // what a program needs to work, so those must not get lost.
            Err(Errno::NOTSUP | Errno::PERM) if name != b"security.capability" => {}
            Err(e) => return Err(io_error(entry, "set extended attribute", e.into())),
        }
    }
    Ok(())
}

/// Attributes that steer overlayfs or belong to this host's security modules never come from an image.
fn may_keep(name: &[u8]) -> bool {
    if name.starts_with(b"security.") {
        return name == b"security.capability";
    }
    !name.starts_with(b"trusted.") && !name.starts_with(b"user.overlay.")
}

pub(super) fn timestamps((seconds, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: i64::from(nanos) };
    Timestamps { last_access: time, last_modification: time }
}
