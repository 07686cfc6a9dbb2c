//! What a layer leaves to the layers below it. Purpose: layers are unpacked in parallel and apart from
//! each other, but an archive may put a file into a directory which only a lower layer describes. Then
//! the directory made here must look like that one, or `/tmp` loses its sticky bit; and where the lower
//! layer has a symlink to a directory (`/lib` in most systems), the file belongs where that leads, or the
//! symlink would be hidden. Knows only diff directories and overlayfs' marks.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid};

use crate::rooted::{fd_path, file_type, join, list, open_beneath, remove_tree, stat_at};

/// As many as the kernel follows (MAXSYMLINKS).
const SYMLINKS_MAX: u32 = 40;

/// What the layers below show at a path.
enum Below {
    Directory(OwnedFd),
    /// Its target.
    Symlink(Vec<u8>),
    /// Nothing, or something a directory here hides.
    Nothing,
}

/// Gives each of the `implicit` directories (parents first) of `layer` the owner, mode and time it has in
/// `lowers` (top first), and moves its content along where `lowers` have a symlink to a directory. A
/// directory that none of them has keeps what it got.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] when something of that content is in the way of something of this layer.
pub(crate) fn inherit(
    layer: BorrowedFd<'_>,
    lowers: &[BorrowedFd<'_>],
    implicit: &[Vec<u8>],
) -> io::Result<()> {
    let mut todo: VecDeque<Vec<u8>> = implicit.iter().cloned().collect();
    while let Some(path) = todo.pop_front() {
        if hides(layer, &path)? {
            continue;
        }
        match look_up(lowers, &path)? {
            Below::Nothing => {}
            Below::Directory(from) => {
                let to = open_beneath(layer, &path, OFlags::RDONLY | OFlags::DIRECTORY)?;
                copy(from.as_fd(), to.as_fd())?;
            }
            Below::Symlink(_) => {
                let Some(real) = resolve(lowers, &path)? else { continue };
                redirect(layer, lowers, &path, &real)?;
                let inside = join(&path, b"");
                for later in todo.iter_mut().filter(|later| later.starts_with(&inside)) {
                    *later = join(&real, &later[inside.len()..]);
                }
            }
        }
    }
    Ok(())
}

/// Whether this layer itself hides what is below `path`.
fn hides(layer: BorrowedFd<'_>, path: &[u8]) -> io::Result<bool> {
    let mut at = open_beneath(layer, b"", OFlags::PATH | OFlags::DIRECTORY)?;
    for name in components(path) {
        if is_opaque(at.as_fd())? {
            return Ok(true);
        }
        at = open_beneath(at.as_fd(), name, OFlags::PATH | OFlags::DIRECTORY)?;
    }
    is_opaque(at.as_fd())
}

fn look_up(lowers: &[BorrowedFd<'_>], path: &[u8]) -> io::Result<Below> {
    'lowers: for lower in lowers {
        let mut at = open_beneath(*lower, b"", OFlags::PATH | OFlags::DIRECTORY)?;
        let mut hides = is_opaque(at.as_fd())?;
        let mut names = components(path).peekable();
        while let Some(name) = names.next() {
            let Some(stat) = stat_at(at.as_fd(), name)? else {
                if hides {
                    return Ok(Below::Nothing);
                }
                continue 'lowers;
            };
            match file_type(&stat) {
                FileType::Directory => at = open_beneath(at.as_fd(), name, OFlags::PATH | OFlags::DIRECTORY)?,
                FileType::Symlink if names.peek().is_none() => {
                    let target = rustix::fs::readlinkat(&at, name, Vec::new())?;
                    return Ok(Below::Symlink(target.into_bytes()));
                }
                // A whiteout, a file, or a symlink that a described directory of this layer replaces:
                // whatever is further down cannot be seen.
                _ => return Ok(Below::Nothing),
            }
            hides |= is_opaque(at.as_fd())?;
        }
        return Ok(Below::Directory(at));
    }
    Ok(Below::Nothing)
}

/// The directory of the merged lower layers that `path` leads to, without symlinks in it.
pub(super) fn resolve(lowers: &[BorrowedFd<'_>], path: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let mut todo: VecDeque<Vec<u8>> = components(path).map(<[u8]>::to_vec).collect();
    let mut at: Vec<Vec<u8>> = Vec::new();
    let mut links = 0;
    while let Some(name) = todo.pop_front() {
        if name.is_empty() || name == b"." {
            continue;
        }
        if name == b".." {
            at.pop();
            continue;
        }
        at.push(name);
        match look_up(lowers, &at.join(&b'/'))? {
            Below::Directory(_) => {}
            Below::Nothing => return Ok(None),
            Below::Symlink(target) => {
                links += 1;
                if links > SYMLINKS_MAX {
                    return Ok(None);
                }
                at.pop();
                if target.starts_with(b"/") {
                    at.clear();
                }
                for part in target.split(|b| *b == b'/').rev() {
                    todo.push_front(part.to_vec());
                }
            }
        }
    }
    Ok(Some(at.join(&b'/')))
}

/// Moves everything in the directory `from` of `layer` into `to`, and takes `from` away so that the
/// symlink below shows.
fn redirect(layer: BorrowedFd<'_>, lowers: &[BorrowedFd<'_>], from: &[u8], to: &[u8]) -> io::Result<()> {
    make_path(layer, lowers, to)?;
    let mut pairs = vec![(from.to_vec(), to.to_vec())];
    while let Some((from, to)) = pairs.pop() {
        let source = open_beneath(layer, &from, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let target = open_beneath(layer, &to, OFlags::RDONLY | OFlags::DIRECTORY)?;
        for name in list(source.as_fd(), usize::MAX)? {
            let name = name.as_bytes();
            let is_dir =
                |dir: &OwnedFd| Ok::<_, io::Error>(stat_at(dir.as_fd(), name)?.map(|s| file_type(&s)));
            match (is_dir(&source)?, is_dir(&target)?) {
                (_, None) => rustix::fs::renameat(&source, name, &target, name)?,
                (Some(FileType::Directory), Some(FileType::Directory)) => {
                    pairs.push((join(&from, name), join(&to, name)));
                }
                _ => return Err(in_the_way(&join(&to, name))),
            }
        }
    }
    // Only directories are left, and they are empty.
    remove_tree(layer, from)
}

/// Makes `path` in `layer`, each directory like the one below it.
fn make_path(layer: BorrowedFd<'_>, lowers: &[BorrowedFd<'_>], path: &[u8]) -> io::Result<()> {
    let mut at = Vec::new();
    for name in components(path) {
        let parent = open_beneath(layer, &at, OFlags::PATH | OFlags::DIRECTORY)?;
        at = join(&at, name);
        match stat_at(parent.as_fd(), name)?.map(|stat| file_type(&stat)) {
            Some(FileType::Directory) => {}
            Some(_) => return Err(in_the_way(&at)),
            None => {
                rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o700))?;
                if let Below::Directory(from) = look_up(lowers, &at)? {
                    let to = open_beneath(layer, &at, OFlags::RDONLY | OFlags::DIRECTORY)?;
                    copy(from.as_fd(), to.as_fd())?;
                }
            }
        }
    }
    Ok(())
}

fn in_the_way(path: &[u8]) -> io::Error {
    let path = String::from_utf8_lossy(path);
    let text = format!("{path:?} comes twice: by its name and through a symbolic link of a layer below");
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|b| *b == b'/').filter(|c| !c.is_empty())
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
    let stat = rustix::fs::statat(CWD, fd_path(from, b"."), AtFlags::empty())?;
    rustix::fs::fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    let nanos = i64::try_from(stat.st_mtime_nsec).unwrap_or(0);
    let time = Timespec { tv_sec: stat.st_mtime, tv_nsec: nanos };
    rustix::fs::futimens(to, &Timestamps { last_access: time, last_modification: time })?;
    Ok(())
}
