//! Descriptors: sealed memory files, pipes, flags.
//!
//! Must not know: what is written into them.

#![expect(unsafe_code, reason = "close_range and sync_file_range have no wrapper in nix")]

use crate::errno::{Context, Errno, SysError};
use nix::fcntl::{FcntlArg, OFlag, SealFlag};
use nix::sys::memfd::MFdFlags;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// The seals after which a memory file can never change again.
const SEALS: SealFlag = SealFlag::F_SEAL_SEAL
    .union(SealFlag::F_SEAL_SHRINK)
    .union(SealFlag::F_SEAL_GROW)
    .union(SealFlag::F_SEAL_WRITE);

/// A memory file (memfd_create(2)) that holds `bytes` for ever: nobody it is passed to can change it.
///
/// # Errors
/// The kernel's answer.
pub fn memfd_create_sealed(name: &str, bytes: &[u8]) -> Result<OwnedFd, SysError> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let fd = nix::sys::memfd::memfd_create(name, flags).on("memfd_create", || name)?;
    let mut file = File::from(fd);
    file.write_all(bytes).map_err(|error| SysError::io("write", name, &error))?;
    nix::fcntl::fcntl(&file, FcntlArg::F_ADD_SEALS(SEALS)).on("F_ADD_SEALS", || name)?;
    Ok(file.into())
}

/// Reads a memory file whole after checking that it can no longer change.
///
/// # Errors
/// `EPERM` when it is not sealed against writing, growing and shrinking; `EFBIG` above `limit` bytes; `EINVAL`
/// when the descriptor is no memory file.
pub fn read_sealed(fd: impl AsFd, limit: usize) -> Result<Vec<u8>, SysError> {
    let fd = fd.as_fd();
    let seals = nix::fcntl::fcntl(fd, FcntlArg::F_GET_SEALS).on("F_GET_SEALS", String::new)?;
    let needed = SEALS.difference(SealFlag::F_SEAL_SEAL);
    if !SealFlag::from_bits_truncate(seals).contains(needed) {
        return Err(SysError::new("F_GET_SEALS", "unsealed memfd", Errno::EPERM));
    }
    let file = File::from(fd.try_clone_to_owned().map_err(|error| SysError::io("dup", "memfd", &error))?);
    let length = file.metadata().map_err(|error| SysError::io("fstat", "memfd", &error))?.len();
    if length > limit as u64 {
        return Err(SysError::new("read", format!("memfd of {length} bytes"), Errno::EFBIG));
    }
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, 0).map_err(|error| SysError::io("pread", "memfd", &error))?;
    Ok(bytes)
}

/// `pipe2(2)` with `O_CLOEXEC`: the end to read from, the end to write to.
///
/// # Errors
/// `EMFILE`, `ENFILE`.
pub fn pipe2(nonblocking: bool) -> Result<(OwnedFd, OwnedFd), SysError> {
    let flags = if nonblocking { OFlag::O_CLOEXEC | OFlag::O_NONBLOCK } else { OFlag::O_CLOEXEC };
    nix::unistd::pipe2(flags).on("pipe2", String::new)
}

/// A second descriptor for the same open file.
///
/// # Errors
/// `EMFILE`.
pub fn duplicate(fd: impl AsFd) -> Result<OwnedFd, SysError> {
    fd.as_fd().try_clone_to_owned().map_err(|error| SysError::io("fcntl", "F_DUPFD_CLOEXEC", &error))
}

/// Switches `O_NONBLOCK` of the open file (shared by every duplicate of the descriptor).
///
/// # Errors
/// The kernel's answer.
pub fn set_nonblocking(fd: impl AsFd, on: bool) -> Result<(), SysError> {
    let fd = fd.as_fd();
    let now = nix::fcntl::fcntl(fd, FcntlArg::F_GETFL).on("F_GETFL", String::new)?;
    let mut flags = OFlag::from_bits_retain(now);
    flags.set(OFlag::O_NONBLOCK, on);
    nix::fcntl::fcntl(fd, FcntlArg::F_SETFL(flags)).on("F_SETFL", String::new).map(drop)
}

/// Marks every descriptor from `first` on as close-on-exec (`CLOSE_RANGE_CLOEXEC`): nothing inherited by accident
/// reaches a program that is executed later.
///
/// # Errors
/// `EINVAL` before Linux 5.11.
pub fn close_range_cloexec(first: u32) -> Result<(), SysError> {
    // SAFETY: no pointers; nothing is closed now, so no owned descriptor loses its file.
    let answer = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if answer < 0 { Err(Errno::last()) } else { Ok(()) }.on("close_range", String::new)
}

/// What [`sync_file_range`] does with a file's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncRange {
    /// Writing begins, nobody waits.
    Begin,
    /// All of it is written when the call returns.
    Finish,
}

/// Writes the data of a file to the disk (sync_file_range(2)), all of it, and no metadata: alone it makes nothing durable.
///
/// # Errors
/// `EIO` where the disk could not take it; the kernel's answer.
pub fn sync_file_range(file: impl AsFd, what: SyncRange) -> Result<(), SysError> {
    let flags = match what {
        SyncRange::Begin => libc::SYNC_FILE_RANGE_WRITE,
        // All three together are, since Linux 5.2, writing for data integrity.
        SyncRange::Finish => {
            libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER
        }
    };
    // SAFETY: no pointers; the descriptor is borrowed, so it stays open during the call.
    let answer = unsafe { libc::sync_file_range(file.as_fd().as_raw_fd(), 0, 0, flags) };
    if answer < 0 { Err(Errno::last()) } else { Ok(()) }.on("sync_file_range", String::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_file_reads_back_and_refuses_change() {
        let fd = memfd_create_sealed("crisp-test", b"plan").unwrap();
        assert_eq!(read_sealed(&fd, 4).unwrap(), b"plan");
        let file = File::from(fd.try_clone().unwrap());
        assert!(file.write_at(b"x", 0).is_err());
        assert_eq!(read_sealed(&fd, 3).unwrap_err().errno, Errno::EFBIG);
    }

    #[test]
    fn an_unsealed_file_is_refused() {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let fd = nix::sys::memfd::memfd_create("crisp-test", flags).unwrap();
        assert_eq!(read_sealed(&fd, 10).unwrap_err().errno, Errno::EPERM);
    }

    #[test]
    fn a_pipe_can_be_made_nonblocking() {
        let (reader, _writer) = pipe2(false).unwrap();
        set_nonblocking(&reader, true).unwrap();
        assert_eq!(crate::raw::path::read(reader.as_fd(), &mut [0; 1]), Err(Errno::EAGAIN));
    }
}
