//! Making one tree like another. Purpose: a damaged layer becomes whole under whoever uses it: what is
//! right stays the same file, what is not is replaced in one step. Knows no layer.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags};

use crate::rooted::{fd_path, file_type, join, list, open_deep, remove_tree, stat_at};

const BUFFER: usize = 64 << 10;

/// Makes the directory `old` like `new`, which is taken apart for that.
pub(crate) fn mend(old: BorrowedFd<'_>, new: BorrowedFd<'_>) -> io::Result<()> {
    let (mut todo, mut seen) = (vec![Vec::new()], Vec::new());
    while let Some(path) = todo.pop() {
        let (into, from) = (open(old, &path)?, open(new, &path)?);
        let right = rustix::fs::fstat(&from)?;
        let wanted: Vec<_> = list(from.as_fd(), usize::MAX)?;
        for name in list(into.as_fd(), usize::MAX)? {
            if stat_at(from.as_fd(), name.as_bytes())?.is_none() {
                remove_tree(into.as_fd(), name.as_bytes())?;
            }
        }
        for name in &wanted {
            let name = name.as_bytes();
            let Some(right) = stat_at(from.as_fd(), name)? else { continue };
            let found = stat_at(into.as_fd(), name)?;
            let is_dir = |stat: &Stat| file_type(stat) == FileType::Directory;
            if is_dir(&right) && found.as_ref().is_some_and(is_dir) {
                todo.push(join(&path, name));
                continue;
            }
            if let Some(found) = &found
                && equal(&from, &right, &into, found, name)?
            {
                continue;
            }
            // A directory and something else do not replace each other in one step.
            if found.as_ref().is_some_and(is_dir) || (found.is_some() && is_dir(&right)) {
                remove_tree(into.as_fd(), name)?;
            }
            rustix::fs::renameat(&from, name, &into, name)?;
        }
        seen.push((path, right));
    }
    // Last, because every change inside sets a directory's time.
    for (path, right) in seen.iter().rev() {
        like(open(old, path)?.as_fd(), open(new, path)?.as_fd(), right)?;
    }
    Ok(())
}

fn open(root: BorrowedFd<'_>, path: &[u8]) -> io::Result<OwnedFd> {
    open_deep(root, path, OFlags::RDONLY | OFlags::DIRECTORY)
}

/// Whether both have an entry of this name that looks the same in every way.
fn equal(from: &OwnedFd, right: &Stat, into: &OwnedFd, found: &Stat, name: &[u8]) -> io::Result<bool> {
    let facts =
        |s: &Stat| (s.st_mode, s.st_uid, s.st_gid, s.st_rdev, s.st_mtime, s.st_mtime_nsec, s.st_nlink);
    if facts(right) != facts(found) || xattrs(from.as_fd(), name)? != xattrs(into.as_fd(), name)? {
        return Ok(false);
    }
    match file_type(right) {
        FileType::Symlink => {
            let target = |dir: &OwnedFd| rustix::fs::readlinkat(dir, name, Vec::new());
            Ok(target(from)? == target(into)?)
        }
        FileType::RegularFile if right.st_size != found.st_size => Ok(false),
        FileType::RegularFile => {
            let file = |dir: &OwnedFd| {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                Ok::<_, io::Error>(File::from(rustix::fs::openat(dir, name, flags, Mode::empty())?))
            };
            // What the disk cannot read any more is not equal.
            Ok(same_content(file(from)?, file(into)?).unwrap_or(false))
        }
        _ => Ok(true),
    }
}

fn same_content(mut a: File, mut b: File) -> io::Result<bool> {
    let (mut left, mut right) = (vec![0; BUFFER], vec![0; BUFFER]);
    loop {
        let n = a.read(&mut left)?;
        if n == 0 {
            return Ok(b.read(&mut right)? == 0);
        }
        match b.read_exact(&mut right[..n]) {
            Ok(()) if left[..n] == right[..n] => {}
            Ok(()) => return Ok(false),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(e) => return Err(e),
        }
    }
}

/// Gives a directory another one's attributes, and the owner, mode and time that it had.
fn like(to: BorrowedFd<'_>, from: BorrowedFd<'_>, stat: &Stat) -> io::Result<()> {
    rustix::fs::fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    let (have, want) = (xattrs(to, b".")?, xattrs(from, b".")?);
    let path = fd_path(to, b".");
    for name in have.keys().filter(|name| !want.contains_key(*name)) {
        rustix::fs::removexattr(path.as_slice(), name.as_slice())?;
    }
    for (name, value) in want.iter().filter(|(name, value)| have.get(*name) != Some(*value)) {
        rustix::fs::setxattr(path.as_slice(), name.as_slice(), value, XattrFlags::empty())?;
    }
    let nanos = i64::try_from(stat.st_mtime_nsec).unwrap_or(0);
    let time = Timespec { tv_sec: stat.st_mtime, tv_nsec: nanos };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(rustix::fs::utimensat(CWD, path.as_slice(), &times, AtFlags::empty())?)
}

/// Extended attributes of an entry itself, without those that this host's security modules keep.
fn xattrs(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let path = fd_path(dir, name);
    let mut names = vec![0_u8; 64 << 10];
    let n = match rustix::fs::llistxattr(path.as_slice(), &mut names[..]) {
        Ok(n) => n,
        Err(rustix::io::Errno::NOTSUP) => return Ok(BTreeMap::new()),
        Err(e) => return Err(e.into()),
    };
    let mut out = BTreeMap::new();
    for name in names[..n].split(|b| *b == 0).filter(|name| !name.is_empty()) {
        if name.starts_with(b"security.") && name != b"security.capability" {
            continue;
        }
        let mut value = vec![0_u8; 64 << 10];
        let n = rustix::fs::lgetxattr(path.as_slice(), name, &mut value[..])?;
        value.truncate(n);
        out.insert(name.to_vec(), value);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{fingerprint, require_root};
    use crate::rooted::open_dir;

    #[test]
    fn what_is_right_stays_and_what_is_wrong_is_replaced() {
        require_root();
        let tmp = tempfile::tempdir().unwrap();
        let tree = |name: &str| {
            let root = tmp.path().join(name);
            std::fs::create_dir_all(root.join("d/e")).unwrap();
            for file in ["d/right", "d/wrong", "d/e/mode", "gone", "kind"] {
                std::fs::write(root.join(file), "content").unwrap();
            }
            std::os::unix::fs::symlink("right", root.join("d/link")).unwrap();
            for path in ["d/right", "d/wrong", "d/e/mode", "gone", "kind", "d/link", "d/e", "d", "."] {
                let time = Timespec { tv_sec: 7, tv_nsec: 0 };
                let times = Timestamps { last_access: time, last_modification: time };
                rustix::fs::utimensat(CWD, root.join(path), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
            }
            root
        };
        let (old, new) = (tree("old"), tree("new"));
        let right = std::os::unix::fs::MetadataExt::ino(&old.join("d/right").metadata().unwrap());
        std::fs::write(old.join("d/wrong"), "c0ntent").unwrap();
        std::fs::set_permissions(old.join("d/e/mode"), std::os::unix::fs::PermissionsExt::from_mode(0o777))
            .unwrap();
        std::fs::remove_file(old.join("gone")).unwrap();
        std::fs::remove_file(old.join("kind")).unwrap();
        std::fs::create_dir_all(old.join("kind/deep")).unwrap();
        std::fs::write(old.join("d/extra"), "").unwrap();
        rustix::fs::setxattr(old.join("d"), "trusted.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
        mend(open_dir(&old).unwrap().as_fd(), open_dir(&new).unwrap().as_fd()).unwrap();
        let same = std::os::unix::fs::MetadataExt::ino(&old.join("d/right").metadata().unwrap());
        assert_eq!(right, same, "a file that was right is the same one");
        let shape = |root: &std::path::Path| {
            let strip = |line: &String| {
                let mut parts = line.split(' ');
                let path = parts.next().unwrap().trim_start_matches(root.to_str().unwrap()).to_owned();
                (path, line.rsplit(' ').next().unwrap().to_owned())
            };
            fingerprint(root).iter().map(strip).collect::<Vec<_>>()
        };
        assert_eq!(shape(&old), shape(&tree("third")));
        let mode = std::os::unix::fs::MetadataExt::mode(&old.join("d/e/mode").metadata().unwrap());
        assert_eq!(mode & 0o7777, 0o644);
        assert_eq!(std::os::unix::fs::MetadataExt::mtime(&old.join("d").metadata().unwrap()), 7);
        assert!(xattrs(open_dir(&old).unwrap().as_fd(), b"d").unwrap().is_empty());
    }
}
