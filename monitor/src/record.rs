//! The exit record: how a container ended, on file before anybody is told.
//!
//! The daemon makes the file and reserves its space when a container is created ([`create`]), so that a full
//! disk cannot lose an exit; the monitor writes it once, in place ([`write`]). A daemon that finds the monitor
//! gone reads it back ([`read`]). A record is [`SIZE`] bytes, little-endian:
//!
//! | bytes  | field                                                    |
//! |--------|----------------------------------------------------------|
//! | 0..8   | magic `crispxit`                                         |
//! | 8..12  | format version                                           |
//! | 12..16 | exit code (status, or 128 + signal)                      |
//! | 16..24 | nanoseconds since the epoch at which it was reaped       |
//! | 24..32 | nanoseconds since the epoch at which it started, 0: never|
//! | 32..36 | flags: bit 0, the kernel's OOM killer was at work        |
//! | 36..40 | whose limit that was: `wire::OomLevel`, 0: not known     |
//! | 40..44 | zero                                                     |
//! | 44..48 | CRC-32 of the bytes before                               |
//!
//! Must not know: where records live, the protocol, container ids (the file's name says whose exit it is).

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Bytes of a record.
pub const SIZE: usize = 48;
/// The format this code writes.
pub const VERSION: u32 = 1;

const MAGIC: &[u8; 8] = b"crispxit";
const OOM_KILLED: u32 = 1;

/// How a container's first process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitRecord {
    /// Exit status, or 128 + signal number.
    pub code: i32,
    /// Nanoseconds since the epoch at which it was reaped.
    pub nanos: i64,
    /// Nanoseconds since the epoch at which its program started; 0: it never did.
    pub started_nanos: i64,
    /// `memory.events` of its cgroup counted OOM kills during its life.
    pub oom_killed: bool,
    /// Whose limit was the cause, as a number of `wire::OomLevel`; 0: not known.
    pub oom_level: i32,
}

/// Why a record could not be made, written or read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file could not be made, or its space not be reserved.
    #[error("exit record {}: create", path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file could not be read.
    #[error("exit record {}: read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The bytes are not a record, or not a whole one.
    #[error("exit record {}: {reason}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Written by a newer monitor.
    #[error("exit record {}: format version {version} is not known here", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
}

/// Makes an empty record at `path` (mode 0600) with its space reserved. The file must not exist.
///
/// # Errors
/// [`RecordError::Create`]; what was made is removed again when the space cannot be reserved.
pub fn create(path: &Path) -> Result<File, RecordError> {
    let failed = |source| RecordError::Create { path: path.to_owned(), source };
    let file =
        OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    if let Err(errno) = nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, SIZE as i64) {
        // The error that counts is the first one.
        let _ = std::fs::remove_file(path);
        return Err(failed(errno.into()));
    }
    Ok(file)
}

/// Writes `record` in place, in one `pwrite`.
///
/// # Errors
/// What `pwrite` said; on a file made by [`create`] it cannot be ENOSPC.
pub fn write(file: BorrowedFd<'_>, record: &ExitRecord) -> io::Result<()> {
    let bytes = encode(record);
    let mut done = 0;
    while done < SIZE {
        match nix::sys::uio::pwrite(file.as_fd(), &bytes[done..], done as i64) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => done += n,
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Reads the record at `path`. `None`: it was reserved, and the container has not ended (or its monitor was
/// killed before it could say).
///
/// # Errors
/// [`RecordError::Read`], [`RecordError::Corrupt`] or [`RecordError::Version`].
pub fn read(path: &Path) -> Result<Option<ExitRecord>, RecordError> {
    let failed = |source| RecordError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::with_capacity(SIZE + 1);
    let file = File::open(path).map_err(failed)?;
    file.take(SIZE as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    decode(&bytes).map_err(|fault| match fault {
        Fault::Corrupt(reason) => RecordError::Corrupt { path: path.to_owned(), reason },
        Fault::Version(version) => RecordError::Version { path: path.to_owned(), version },
    })
}

enum Fault {
    Corrupt(&'static str),
    Version(u32),
}

fn encode(record: &ExitRecord) -> [u8; SIZE] {
    let mut bytes = [0; SIZE];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[12..16].copy_from_slice(&record.code.to_le_bytes());
    bytes[16..24].copy_from_slice(&record.nanos.to_le_bytes());
    bytes[24..32].copy_from_slice(&record.started_nanos.to_le_bytes());
    let flags = if record.oom_killed { OOM_KILLED } else { 0 };
    bytes[32..36].copy_from_slice(&flags.to_le_bytes());
    bytes[36..40].copy_from_slice(&record.oom_level.to_le_bytes());
    let sum = crc32(&bytes[..44]);
    bytes[44..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Result<Option<ExitRecord>, Fault> {
    // Empty: the daemon died between making the file and reserving its space.
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    if bytes.len() < SIZE {
        return Err(Fault::Corrupt("shorter than a record"));
    }
    if &bytes[..8] != MAGIC {
        return Err(Fault::Corrupt("not an exit record"));
    }
    // Before the sum: a later version may be longer, and its sum elsewhere.
    let version = u32::from_le_bytes(field(bytes, 8));
    if version != VERSION {
        return Err(Fault::Version(version));
    }
    if bytes.len() > SIZE {
        return Err(Fault::Corrupt("longer than a record"));
    }
    if u32::from_le_bytes(field(bytes, 44)) != crc32(&bytes[..44]) {
        return Err(Fault::Corrupt("checksum does not match"));
    }
    Ok(Some(ExitRecord {
        code: i32::from_le_bytes(field(bytes, 12)),
        nanos: i64::from_le_bytes(field(bytes, 16)),
        started_nanos: i64::from_le_bytes(field(bytes, 24)),
        oom_killed: u32::from_le_bytes(field(bytes, 32)) & OOM_KILLED != 0,
        oom_level: i32::from_le_bytes(field(bytes, 36)),
    }))
}

/// `N` bytes of `bytes` from `at`; the callers have checked the length.
fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

/// CRC-32 (IEEE 802.3, reflected), bit by bit: 44 bytes once per exit need no table.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 };
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOME: ExitRecord = ExitRecord {
        code: 137,
        nanos: 1_800_000_000_123_456_789,
        started_nanos: 5,
        oom_killed: true,
        oom_level: 0,
    };

    #[test]
    fn a_reserved_record_reads_as_none_and_a_written_one_as_itself() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("exit");
        let file = create(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), SIZE as u64);
        assert_eq!(read(&path).unwrap(), None);
        write(file.as_fd(), &SOME).unwrap();
        assert_eq!(read(&path).unwrap(), Some(SOME));
        let other = ExitRecord { oom_level: 3, ..SOME };
        write(file.as_fd(), &other).unwrap();
        assert_eq!(read(&path).unwrap(), Some(other));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), SIZE as u64);
    }

    #[test]
    fn an_existing_record_is_not_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("exit");
        let file = create(&path).unwrap();
        write(file.as_fd(), &SOME).unwrap();
        assert!(matches!(create(&path), Err(RecordError::Create { .. })));
        assert_eq!(read(&path).unwrap(), Some(SOME));
    }

    #[test]
    fn bytes_of_version_1_stay_readable() {
        // Golden: written by version 1; must never change.
        let golden: [u8; SIZE] = [
            b'c', b'r', b'i', b's', b'p', b'x', b'i', b't', 1, 0, 0, 0, 0x89, 0, 0, 0, 0x15, 0xcd, 0x0f,
            0x9b, 0x76, 0xe2, 0xfa, 0x18, 5, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x7c,
            0xd6, 0x22, 0x52,
        ];
        assert_eq!(encode(&SOME), golden);
        assert!(matches!(decode(&golden), Ok(Some(SOME))));
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926, "the check value every CRC-32 catalogue lists");
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_noticed() {
        let whole = encode(&SOME);
        for bit in 0..SIZE * 8 {
            let mut broken = whole;
            broken[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&broken).is_err(), "bit {bit}");
        }
        for length in 1..SIZE {
            assert!(matches!(decode(&whole[..length]), Err(Fault::Corrupt(_))), "length {length}");
        }
        assert!(matches!(decode(&[]), Ok(None)));
    }

    #[test]
    fn a_newer_version_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("exit");
        let mut bytes = encode(&SOME).to_vec();
        bytes[8] = 2;
        bytes.extend([0; 16]);
        std::fs::write(&path, bytes).unwrap();
        assert!(matches!(read(&path), Err(RecordError::Version { version: 2, .. })));
    }
}
