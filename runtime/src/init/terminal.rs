//! The terminal of a process: from the container's own devpts, handled by descriptor.
//!
//! What lies at a path in /dev may have been put there by the image or by another container that shares a volume
//! (CVE-2025-52565): symbolic links are refused, the file system is checked, the other end of the pair is asked for
//! by its first end and not by name.

use super::{Step, encode};
use crisp_sys::Errno;
use crisp_sys::raw::{message, mount, path, process, terminal};
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Magic number of devpts (statfs(2)).
const DEVPTS: u64 = 0x1cd1;
/// Major numbers of the ends that programs use (devices.txt: Unix98 PTY slaves).
const SLAVES: std::ops::RangeInclusive<u32> = 136..=143;
const STRICT: u64 = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_SYMLINKS;

/// Both ends.
pub(crate) struct Terminal {
    /// The monitor's or daemon's.
    master: OwnedFd,
    /// The process's.
    slave: OwnedFd,
}

/// Opens a terminal of the devpts at `/dev/pts`.
pub(crate) fn open(root: BorrowedFd<'_>) -> Result<Terminal, Errno> {
    let directory = path::openat2(root, c"/dev/pts", libc::O_PATH | libc::O_DIRECTORY, 0, STRICT)?;
    if path::fs_magic(directory.as_fd())? != DEVPTS {
        return Err(Errno::ENODEV);
    }
    // Nothing but terminals and this file can be in a devpts.
    let inside = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS | libc::RESOLVE_NO_XDEV;
    let flags = libc::O_RDWR | libc::O_NOCTTY;
    let master = path::openat2(directory.as_fd(), c"ptmx", flags, 0, inside)?;
    terminal::unlock(master.as_fd())?;
    let slave = terminal::peer(master.as_fd())?;
    let found = path::stat(slave.as_fd(), c"")?;
    let right = found.kind() == libc::S_IFCHR && SLAVES.contains(&found.major);
    if !right || path::fs_magic(slave.as_fd())? != DEVPTS {
        return Err(Errno::ENODEV);
    }
    Ok(Terminal { master, slave })
}

/// Mounts the process's end at `at`, which is made as an empty file if it is missing.
pub(crate) fn mount_console(root: BorrowedFd<'_>, at: &CStr, terminal: &Terminal) -> Result<(), Errno> {
    let find = || path::openat2(root, at, libc::O_PATH, 0, STRICT);
    let target = match find() {
        Err(Errno::ENOENT) => {
            let flags = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY | libc::O_NOCTTY;
            drop(path::openat2(root, at, flags, 0o600, STRICT)?);
            find()?
        }
        answer => answer?,
    };
    let source = mount::open_tree(Some(terminal.slave.as_fd()), c"", libc::OPEN_TREE_CLONE)?;
    mount::move_mount(source.as_fd(), target.as_fd())
}

/// Makes a terminal this process's standard input, output and error, and hands the other end to the parent. It belongs
/// to the process's user, as a login gives it.
pub(crate) fn take(terminal: &Terminal, uid: u32, control: BorrowedFd<'_>) -> Result<(), Errno> {
    let slave = terminal.slave.as_fd();
    path::fchownat(slave, c"", uid, u32::MAX)?;
    for number in 0..=2 {
        process::dup_onto_standard(slave, number)?;
    }
    message::send_descriptor(control, &encode(Step::Terminal, 0, 0), terminal.master.as_fd())
}
