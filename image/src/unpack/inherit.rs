//! What a layer leaves to the layers below it. Purpose: layers are unpacked in parallel and apart from
//! each other, but an archive may put a file into a directory which only a lower layer describes. Then
//! the directory made here must look like that one, or `/tmp` loses its sticky bit. Knows only diff
//! directories and overlayfs' marks.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid};

use crate::rooted::{fd_path, file_type, open_beneath, stat_at};

/// Where a path leads in the layers below.
enum Below {
    Directory(OwnedFd),
    Nothing,
    Symlink,
}

/// Gives each of the `implicit` directories (parents first) of `layer` the owner, mode and time it has in
/// `lowers` (top first). A directory that none of them has keeps what it got.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] when a lower layer has a symlink there: merging through it would need
/// the lower layer's content, which layers that come apart do not see.
pub(crate) fn inherit(
    layer: BorrowedFd<'_>,
    lowers: &[BorrowedFd<'_>],
    implicit: &[Vec<u8>],
) -> io::Result<()> {
    for path in implicit {
        match find(lowers, path)? {
            Below::Nothing => {}
            Below::Symlink => {
                let path = String::from_utf8_lossy(path).into_owned();
                let text = format!("{path:?} is a symbolic link in a layer below and a directory here");
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            Below::Directory(from) => {
                let to = open_beneath(layer, path, OFlags::RDONLY | OFlags::DIRECTORY)?;
                copy(from.as_fd(), to.as_fd())?;
            }
        }
    }
    Ok(())
}

fn find(lowers: &[BorrowedFd<'_>], path: &[u8]) -> io::Result<Below> {
    for lower in lowers {
        let mut at = open_beneath(*lower, b"", OFlags::PATH | OFlags::DIRECTORY)?;
        let mut hides = is_opaque(at.as_fd())?;
        let mut missing = false;
        for name in path.split(|b| *b == b'/').filter(|c| !c.is_empty()) {
            let Some(stat) = stat_at(at.as_fd(), name)? else {
                missing = true;
                break;
            };
            match file_type(&stat) {
                FileType::Directory => at = open_beneath(at.as_fd(), name, OFlags::PATH | OFlags::DIRECTORY)?,
                FileType::Symlink => return Ok(Below::Symlink),
                // A whiteout or a file: whatever is further down cannot be seen.
                _ => return Ok(Below::Nothing),
            }
            hides |= is_opaque(at.as_fd())?;
        }
        match (missing, hides) {
            (false, _) => return Ok(Below::Directory(at)),
            (true, true) => return Ok(Below::Nothing),
            (true, false) => {}
        }
    }
    Ok(Below::Nothing)
}

fn is_opaque(dir: BorrowedFd<'_>) -> io::Result<bool> {
    let mut value = [0_u8; 2];
    match rustix::fs::getxattr(fd_path(dir, b"."), "trusted.overlay.opaque", &mut value[..]) {
        Ok(n) => Ok(n == 1 && value[0] == b'y'),
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::NOTSUP) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let stat = rustix::fs::statat(CWD, fd_path(from, b"."), rustix::fs::AtFlags::empty())?;
    rustix::fs::fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    let nanos = i64::try_from(stat.st_mtime_nsec).unwrap_or(0);
    let time = Timespec { tv_sec: stat.st_mtime, tv_nsec: nanos };
    rustix::fs::futimens(to, &Timestamps { last_access: time, last_modification: time })?;
    Ok(())
}
