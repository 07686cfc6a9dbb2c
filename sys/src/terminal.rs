//! Pseudo-terminals, from the end that is not the program's.
//!
//! Must not know: whose they are.

use crate::errno::{Context, SysError};
use crate::raw;
use std::os::fd::{AsFd, OwnedFd};

/// Opens the end that programs use (`TIOCGPTPEER`), without taking it as the controlling terminal.
///
/// # Errors
/// `EIO` when the terminal is gone, `ENOTTY` for anything but its first end.
pub fn peer(master: impl AsFd) -> Result<OwnedFd, SysError> {
    raw::terminal::peer(master.as_fd()).on("ioctl", || "TIOCGPTPEER")
}

/// Tells the size of the window in characters; programs get `SIGWINCH` when it changes (`TIOCSWINSZ`).
///
/// # Errors
/// `ENOTTY` for anything but a terminal.
pub fn resize(terminal: impl AsFd, columns: u16, rows: u16) -> Result<(), SysError> {
    raw::terminal::resize(terminal.as_fd(), columns, rows).on("ioctl", || "TIOCSWINSZ")
}
