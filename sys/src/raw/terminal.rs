//! Pseudo-terminals by descriptor: no path of a terminal is ever looked up twice.

#![expect(unsafe_code, reason = "system calls have no safe form")]

use super::{check, descriptor};
use crate::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// `TIOCSPTLCK` with 0: lets the other end of a master be opened.
pub fn unlock(master: BorrowedFd<'_>) -> Result<(), Errno> {
    let off: libc::c_int = 0;
    // SAFETY: the request reads one int, which lives through the call.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK as _, &raw const off) }.into()).map(drop)
}

/// `TIOCGPTPEER`: opens the other end of a master, whatever is mounted or linked at its path (CVE-2025-52565).
pub fn peer(master: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the request takes a number.
    descriptor(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER as _, flags) }.into())
}

/// `TIOCSCTTY`: the terminal at standard input becomes the controlling one of the session that this process leads.
pub fn control() -> Result<(), Errno> {
    // SAFETY: the request takes a number; 0 takes no terminal away from another session.
    check(unsafe { libc::ioctl(libc::STDIN_FILENO, libc::TIOCSCTTY as _, 0) }.into()).map(drop)
}

/// `TIOCSWINSZ`, in characters.
pub fn resize(terminal: BorrowedFd<'_>, columns: u16, rows: u16) -> Result<(), Errno> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the request reads one winsize, which lives through the call.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ as _, &raw const size) }.into())
        .map(drop)
}
