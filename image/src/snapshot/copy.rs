//! Copies a directory tree with all that belongs to it. Purpose: owners, modes, times, extended attributes, links
//! between files and holes come along; a hostile tree costs memory for its directories and two descriptors, and
//! leads nowhere else. Knows nothing of images.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom as From};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use crate::rooted::{fd_path, file_type, join, open_beneath, open_deep, stat_at};

/// The kernel's limits (XATTR_LIST_MAX, XATTR_SIZE_MAX).
const XATTR_MAX: usize = 65_536;

/// A file with several names: the directory that holds the first of them, and the name.
type Known = HashMap<(u64, u64), (Vec<u8>, Vec<u8>)>;

/// Makes the empty directory `to` a copy of the directory `from`, whose tree nobody changes meanwhile. Symbolic links
/// are copied, never followed; other mounts are not entered.
pub(super) fn tree(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let mut known = Known::new();
    // Parents before children.
    let mut directories: Vec<Vec<u8>> = vec![Vec::new()];
    let mut next = 0;
    while let Some(path) = directories.get(next).cloned() {
        next += 1;
        let source = open_deep(from, &path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let target = open_deep(to, &path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        for entry in Dir::read_from(&source)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let Some(stat) = stat_at(source.as_fd(), name)? else { continue };
            if file_type(&stat) == FileType::Directory {
                rustix::fs::mkdirat(&target, name, Mode::from_raw_mode(0o700))?;
                directories.push(join(&path, name));
                continue;
            }
            if stat.st_nlink > 1 {
                if let Some((parent, first)) = known.get(&(stat.st_dev, stat.st_ino)) {
                    let parent = open_deep(to, parent, OFlags::PATH | OFlags::DIRECTORY)?;
                    rustix::fs::linkat(&parent, first.as_slice(), &target, name, AtFlags::empty())?;
                    continue;
                }
                known.insert((stat.st_dev, stat.st_ino), (path.clone(), name.to_vec()));
            }
            entry_of(&stat, source.as_fd(), target.as_fd(), name)?;
        }
    }
    // Children before parents: what is put into a directory changes its times, and its mode may forbid it.
    for path in directories.iter().rev() {
        let source = open_deep(from, path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let target = open_deep(to, path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let stat = rustix::fs::fstat(&source)?;
        describe(&stat, (source.as_fd(), b"."), (target.as_fd(), b"."))?;
    }
    Ok(())
}

/// Copies something that is no directory.
fn entry_of(stat: &Stat, from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    match file_type(stat) {
        FileType::RegularFile => {
            let source = File::from(open_beneath(from, name, OFlags::RDONLY | OFlags::NOFOLLOW)?);
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let target: OwnedFd = rustix::fs::openat(to, name, flags, Mode::from_raw_mode(0o600))?;
            content(source, File::from(target), u64::try_from(stat.st_size).unwrap_or(0))?;
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(from, name, Vec::new())?;
            rustix::fs::symlinkat(target, to, name)?;
        }
        kind => rustix::fs::mknodat(to, name, kind, Mode::from_raw_mode(0o600), stat.st_rdev)?,
    }
    describe(stat, (from, name), (to, name))
}

/// Copies what is between the holes.
fn content(mut from: File, mut to: File, size: u64) -> io::Result<()> {
    to.set_len(size)?;
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(&from, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => break,
            Err(e) => return Err(e.into()),
        };
        at = rustix::fs::seek(&from, SeekFrom::Hole(start))?;
        from.seek(From::Start(start))?;
        to.seek(From::Start(start))?;
        io::copy(&mut from.by_ref().take(at - start), &mut to)?;
    }
    Ok(())
}

/// Gives the entry `to` owner, mode, extended attributes and times of `from`: (directory, name).
fn describe(stat: &Stat, from: (BorrowedFd<'_>, &[u8]), to: (BorrowedFd<'_>, &[u8])) -> io::Result<()> {
    let (dir, name) = to;
    let (uid, gid) = (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
    rustix::fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
    if file_type(stat) != FileType::Symlink {
        // After the owner: a change of owner takes set-user-id bits away.
        rustix::fs::chmodat(dir, name, Mode::from_raw_mode(stat.st_mode & 0o7777), AtFlags::empty())?;
    }
    attributes(&fd_path(from.0, from.1), &fd_path(dir, name))?;
    let time = |seconds, nanos: u64| Timespec { tv_sec: seconds, tv_nsec: i64::try_from(nanos).unwrap_or(0) };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    Ok(rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Copies extended attributes, but none that an overlay or a security module takes for its own.
fn attributes(from: &[u8], to: &[u8]) -> io::Result<()> {
    let mut names = vec![0_u8; XATTR_MAX];
    let length = match rustix::fs::llistxattr(from, &mut names) {
        Ok(0) | Err(Errno::NOTSUP) => return Ok(()),
        Ok(length) => length,
        Err(e) => return Err(e.into()),
    };
    let mut value = vec![0_u8; XATTR_MAX];
    for name in names.get(..length).unwrap_or_default().split(|b| *b == 0).filter(|name| !name.is_empty()) {
        if name.starts_with(b"trusted.") || name == b"security.selinux" {
            continue;
        }
        let length = rustix::fs::lgetxattr(from, name, &mut value)?;
        let value = value.get(..length).unwrap_or_default();
        rustix::fs::lsetxattr(to, name, value, XattrFlags::empty())?;
    }
    Ok(())
}
