//! File operations below a directory fd. Purpose: no path that an image or a container can influence is
//! ever resolved from the host's root, and deleting or measuring a hostile tree takes bounded memory and
//! two file descriptors. Knows nothing of tar, overlayfs or images.

use std::collections::HashSet;
use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Stat};

/// Nothing here needs longer paths in one system call (PATH_MAX without room for a base).
const CHUNK: usize = 3072;
/// Names read from a directory before they are acted on, so that a directory of millions stays cheap.
const BATCH: usize = 1024;

/// Beneath the given fd, no symlink, no mount point crossed.
pub(crate) fn strict() -> ResolveFlags {
    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV
}

/// Opens a directory of the store itself by path; these paths are the operator's.
pub(crate) fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Opens `path` relative to `dir` without following any symlink.
pub(crate) fn open_beneath(dir: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
    let path = if path.is_empty() { b"." } else { path };
    loop {
        match rustix::fs::openat2(dir, path, flags | OFlags::CLOEXEC, Mode::empty(), strict()) {
            // openat2 gives up when a rename anywhere in the system races with it; the manual says retry.
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

/// Like [`open_beneath`] for paths of any length.
pub(crate) fn open_deep(dir: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
    let mut base: Option<OwnedFd> = None;
    let mut rest = path;
    while rest.len() > CHUNK {
        let cut = rest[..CHUNK].iter().rposition(|b| *b == b'/').ok_or(io::ErrorKind::InvalidFilename)?;
        let from = base.as_ref().map_or(dir, AsFd::as_fd);
        base = Some(open_beneath(from, &rest[..cut], OFlags::PATH | OFlags::DIRECTORY)?);
        rest = &rest[cut + 1..];
    }
    open_beneath(base.as_ref().map_or(dir, AsFd::as_fd), rest, flags)
}

/// The entry itself, never what a symlink points to.
pub(crate) fn stat_at(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<Option<Stat>> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

pub(crate) fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// A character device 0:0, which overlayfs reads as "not here, and not below either".
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    file_type(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// A path that reaches `name` in exactly this directory, for the few calls that have no *at form
/// (lsetxattr). The magic link leads to the open directory, whatever its path is by now.
pub(crate) fn fd_path(dir: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
    use std::os::fd::AsRawFd;
    let mut path = format!("/proc/self/fd/{}", dir.as_raw_fd()).into_bytes();
    if !name.is_empty() {
        path.push(b'/');
        path.extend_from_slice(name);
    }
    path
}

/// Removes `name` in `dir`, whatever it is. Absent is fine.
///
/// Iterative: a directory found inside is moved up next to the top one's entries instead of being
/// descended into, so depth costs neither stack nor fds.
pub(crate) fn remove_tree(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    match stat_at(dir, name)? {
        None => return Ok(()),
        Some(stat) if file_type(&stat) != FileType::Directory => {
            return gone_is_fine(rustix::fs::unlinkat(dir, name, AtFlags::empty()));
        }
        Some(_) => {}
    }
    let top = open_beneath(dir, name, OFlags::RDONLY | OFlags::DIRECTORY)?;
    let mut serial = 0_u64;
    loop {
        let batch = list(top.as_fd(), BATCH)?;
        if batch.is_empty() {
            break;
        }
        for child in batch {
            empty_and_remove(top.as_fd(), child.as_bytes(), &mut serial)?;
        }
    }
    gone_is_fine(rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR))
}

/// Removes one entry of `top`; directories inside it are moved into `top` to be met later.
fn empty_and_remove(top: BorrowedFd<'_>, name: &[u8], serial: &mut u64) -> io::Result<()> {
    if remove_flat(top, name)? {
        return Ok(());
    }
    let inner = open_beneath(top, name, OFlags::RDONLY | OFlags::DIRECTORY)?;
    loop {
        let batch = list(inner.as_fd(), BATCH)?;
        if batch.is_empty() {
            break;
        }
        for child in batch {
            if !remove_flat(inner.as_fd(), child.as_bytes())? {
                move_up(inner.as_fd(), child.as_bytes(), top, serial)?;
            }
        }
    }
    gone_is_fine(rustix::fs::unlinkat(top, name, AtFlags::REMOVEDIR))
}

/// Whether `name` could be removed without looking inside: it is no directory, or an empty one.
fn remove_flat(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<bool> {
    use rustix::io::Errno;
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(true),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(e) => return Err(e.into()),
    }
    match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

fn move_up(from: BorrowedFd<'_>, name: &[u8], top: BorrowedFd<'_>, serial: &mut u64) -> io::Result<()> {
    loop {
        *serial += 1;
        let fresh = format!(".crisp-rm-{serial}");
        match rustix::fs::renameat_with(from, name, top, fresh.as_str(), RenameFlags::NOREPLACE) {
            // The tree may hold a file of that very name: take the next number.
            Err(rustix::io::Errno::EXIST) => {}
            other => return Ok(other?),
        }
    }
}

fn gone_is_fine(result: rustix::io::Result<()>) -> io::Result<()> {
    match result {
        Err(rustix::io::Errno::NOENT) => Ok(()),
        other => Ok(other?),
    }
}

/// Up to `limit` names in `dir`, without `.` and `..`.
pub(crate) fn list(dir: BorrowedFd<'_>, limit: usize) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_bytes() != b"." && name.to_bytes() != b".." {
            names.push(name.to_owned());
            if names.len() >= limit {
                break;
            }
        }
    }
    Ok(names)
}

/// Allocated bytes and inodes below `path`, itself included. Symlinks are counted, not followed; other
/// file systems are left out; entries that vanish meanwhile are skipped.
pub(crate) fn usage(path: &Path) -> io::Result<(u64, u64)> {
    let root = open_dir(path)?;
    let own = rustix::fs::fstat(&root)?;
    let (mut bytes, mut inodes) = (blocks(&own), 1_u64);
    let mut linked = HashSet::new();
    let mut todo: Vec<Vec<u8>> = vec![Vec::new()];
    while let Some(at) = todo.pop() {
        let Ok(dir) = open_deep(root.as_fd(), &at, OFlags::RDONLY | OFlags::DIRECTORY) else { continue };
        for entry in Dir::read_from(&dir)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let Some(stat) = stat_at(dir.as_fd(), name)? else { continue };
            if stat.st_dev != own.st_dev {
                continue;
            }
            let is_dir = file_type(&stat) == FileType::Directory;
            if !is_dir && stat.st_nlink > 1 && !linked.insert(stat.st_ino) {
                continue;
            }
            bytes += blocks(&stat);
            inodes += 1;
            if is_dir {
                todo.push(join(&at, name));
            }
        }
    }
    Ok((bytes, inodes))
}

fn blocks(stat: &Stat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or(0) * 512
}

pub(crate) fn join(base: &[u8], name: &[u8]) -> Vec<u8> {
    if base.is_empty() { name.to_vec() } else { [base, b"/", name].concat() }
}

/// Replaces `name` in the directory `dir` by a file with `bytes`: temporary file, fsync, rename, fsync of
/// the directory, so that a power cut leaves the old or the new content and never half of it.
pub(crate) fn replace_durably(dir: &Path, name: &OsStr, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write;
    let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(dir)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(dir.join(name)).map_err(|e| e.error)?;
    sync_dir(dir)
}

/// Makes renames and unlinks in `dir` survive a power cut.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    Ok(rustix::fs::fsync(open_dir(dir)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t14_a_tree_deeper_than_any_path_is_measured_and_removed() {
        let tmp = tempfile::tempdir().unwrap();
        let top = open_dir(tmp.path()).unwrap();
        rustix::fs::mkdirat(&top, "t", Mode::from_raw_mode(0o700)).unwrap();
        let mut at = open_beneath(top.as_fd(), b"t", OFlags::RDONLY).unwrap();
        let name = "d".repeat(200);
        for _ in 0..60 {
            rustix::fs::mkdirat(&at, &name, Mode::from_raw_mode(0o700)).unwrap();
            rustix::fs::mkdirat(&at, ".crisp-rm-1", Mode::from_raw_mode(0o700)).unwrap();
            rustix::fs::symlinkat("/etc", &at, "link").unwrap();
            at = open_beneath(at.as_fd(), name.as_bytes(), OFlags::RDONLY).unwrap();
        }
        let (_, inodes) = usage(&tmp.path().join("t")).unwrap();
        assert_eq!(inodes, 1 + 60 * 3);
        remove_tree(top.as_fd(), b"t").unwrap();
        assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 0);
        assert!(Path::new("/etc/passwd").exists());
        remove_tree(top.as_fd(), b"t").unwrap();
    }

    #[test]
    fn a_replaced_file_is_whole_and_leaves_no_other() {
        let tmp = tempfile::tempdir().unwrap();
        for text in ["one", "two"] {
            replace_durably(tmp.path(), OsStr::new("f"), text.as_bytes()).unwrap();
            assert_eq!(std::fs::read_to_string(tmp.path().join("f")).unwrap(), text);
        }
        assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 1);
    }
}
