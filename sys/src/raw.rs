//! System calls that allocate nothing and take no lock: what the child of `clone3` may use between its birth
//! and `execve`. Names and argument order are the kernel's; errors are bare numbers, because naming an object
//! would allocate. Everybody else uses the wrappers in the other modules of this crate.
//!
//! Must not know: what the calls are for.

#![expect(unsafe_code, reason = "system calls have no safe form")]

pub mod message;
pub mod mount;
pub mod path;
pub mod process;
pub mod terminal;

use crate::errno::Errno;
use std::os::fd::{FromRawFd, OwnedFd};

/// A system call's return value as a `Result`.
fn check(value: libc::c_long) -> Result<libc::c_long, Errno> {
    if value < 0 { Err(Errno::last()) } else { Ok(value) }
}

/// A system call's return value, which is a new descriptor.
fn descriptor(value: libc::c_long) -> Result<OwnedFd, Errno> {
    let number = check(value)?;
    // SAFETY: every caller hands over the result of a call that made this descriptor just now, and nobody else
    // has seen its number.
    Ok(unsafe { OwnedFd::from_raw_fd(number as libc::c_int) })
}
