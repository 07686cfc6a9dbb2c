//! Reading and writing the files of a cgroup through its directory's descriptor.
//!
//! Must not know: what the values mean.

use crisp_sys::Errno;
use crisp_sys::raw::path;
use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Opens a file of the cgroup.
pub(super) fn open(dir: BorrowedFd<'_>, name: &str, flags: libc::c_int) -> Result<OwnedFd, Errno> {
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    path::openat2(dir, &name, flags, 0, libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS)
}

/// Reads a file whole.
pub(super) fn read(dir: BorrowedFd<'_>, name: &str) -> Result<String, Errno> {
    let mut text = String::new();
    let mut file = File::from(open(dir, name, libc::O_RDONLY)?);
    match file.read_to_string(&mut text) {
        Ok(_) => Ok(text),
        Err(error) => Err(error.raw_os_error().map_or(Errno::EILSEQ, Errno::from_raw)),
    }
}

/// Reads a file; `None` when it does not exist, or the kernel has nothing behind it (a controller that was disabled
/// meanwhile; pressure accounting that is switched off).
pub(super) fn read_optional(dir: BorrowedFd<'_>, name: &str) -> Result<Option<String>, Errno> {
    match read(dir, name) {
        Err(Errno::ENOENT | Errno::ENODEV | Errno::EOPNOTSUPP) => Ok(None),
        answer => answer.map(Some),
    }
}

/// Writes a value, in one call: the kernel takes each write as one.
pub(super) fn write(dir: BorrowedFd<'_>, name: &str, value: &str) -> Result<(), Errno> {
    let file = open(dir, name, libc::O_WRONLY)?;
    // An empty write does nothing; a newline is how an empty value is written.
    let value = if value.is_empty() { "\n" } else { value };
    path::write(file.as_fd(), value.as_bytes()).map(drop)
}

/// The words of a file.
pub(super) fn words(dir: BorrowedFd<'_>, name: &str) -> Result<BTreeSet<String>, Errno> {
    Ok(read(dir, name)?.split_ascii_whitespace().map(str::to_owned).collect())
}

/// The number behind a key in a "flat keyed" file.
pub(super) fn value(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}
