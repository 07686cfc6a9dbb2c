//! Files of procfs that a child writes about itself, and the AppArmor profile it asks for.
//!
//! All of it happens before the child has seen anything of the container, through the mount of procfs that the monitor
//! lives with. Each file is looked up from procfs's own root without leaving it, so that nothing mounted over or linked
//! into it can take the write (CVE-2019-16884, CVE-2019-19921, CVE-2025-52881).

use crisp_sys::Errno;
use crisp_sys::raw::{path, process};
use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

/// Longest profile name, bytes: what the kernel says about it has to fit into one buffer.
pub(crate) const MAX_NAME: usize = 1024;

/// Opens a file below `/proc`, for reading and writing.
pub(crate) fn open_own(name: &CStr) -> Result<OwnedFd, Errno> {
    let proc = process::open(c"/proc", libc::O_PATH | libc::O_DIRECTORY)?;
    if path::fs_magic(proc.as_fd())? != libc::PROC_SUPER_MAGIC as u64 {
        return Err(Errno::EXDEV);
    }
    // thread-self is a plain link to a directory below; magic links lead anywhere, and a mount would be another's.
    let within = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_XDEV | libc::RESOLVE_NO_MAGICLINKS;
    path::openat2(proc.as_fd(), name, libc::O_RDWR | libc::O_NOCTTY, 0, within)
}

/// Asks the kernel to change the profile with the next `execve`, and makes sure that it will. `request` is `exec NAME`
/// (apparmor's `aa_change_onexec`).
pub(crate) fn on_execute(request: &[u8]) -> Result<(), Errno> {
    if path::write(attribute()?.as_fd(), request)? != request.len() {
        return Err(Errno::EIO);
    }
    // Opened anew: the first descriptor's position is behind what was written.
    let file = attribute()?;
    let mut answer = [0u8; MAX_NAME + 64];
    let length = path::read(file.as_fd(), &mut answer)?;
    let name = request.get(b"exec ".len()..).unwrap_or_default();
    if names(answer.get(..length).unwrap_or_default(), name) { Ok(()) } else { Err(Errno::EPERM) }
}

/// Kernels without a folder a module have one set of files, which belongs to AppArmor if that is on.
fn attribute() -> Result<OwnedFd, Errno> {
    match open_own(c"thread-self/attr/apparmor/exec") {
        Err(Errno::ENOENT) => open_own(c"thread-self/attr/exec"),
        answer => answer,
    }
}

/// Whether `answer`, which is `NAME (MODE)` or `NAME`, is about this profile.
fn names(answer: &[u8], name: &[u8]) -> bool {
    match answer.strip_prefix(name) {
        Some(rest) => matches!(rest, [] | [b'\n', ..] | [b' ', b'(', ..] | [0, ..]),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_answer_must_name_the_profile() {
        for answer in [&b"web (enforce)\n"[..], b"web\n", b"web", b"web (complain)"] {
            assert!(names(answer, b"web"), "{answer:?}");
        }
        for answer in [&b"unconfined\n"[..], b"", b"web2 (enforce)\n", b"we"] {
            assert!(!names(answer, b"web"), "{answer:?}");
        }
    }

    #[test]
    fn files_of_procfs_are_found_and_nothing_else() {
        open_own(c"thread-self/oom_score_adj").unwrap();
        assert_eq!(open_own(c"thread-self/root/etc/passwd").unwrap_err(), Errno::ELOOP);
        assert_eq!(open_own(c"../etc/passwd").unwrap_err(), Errno::EXDEV);
    }
}
