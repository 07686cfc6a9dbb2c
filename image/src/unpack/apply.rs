//! Applying tar entries to a directory. Purpose: create what an archive describes inside one directory
//! and nowhere else; turn whiteout names into overlayfs marks. Must not know where the stream comes from
//! or what lies below this layer.

mod metadata;
mod parent;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use metadata::{mode, owner, set_owner_and_mode, set_xattrs, timestamps};

use super::archive::{Archive, Entry, Kind};
use super::{Limits, UnpackError, Unpacked};
use crate::rooted::{fd_path, file_type, is_whiteout, join, open_beneath, remove_tree, stat_at};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const OPAQUE_XATTR: &str = "trusted.overlay.opaque";
/// As many as the kernel follows (MAXSYMLINKS).
const SYMLINKS_MAX: u32 = 40;
const COPY_BUFFER: usize = 128 << 10;
const PAGE: u64 = 4096;

/// Why an entry cannot be applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The name leaves the layer, is empty, or is a malformed whiteout.
    #[error("entry {path:?}: {reason}")]
    Name {
        /// As in the archive.
        path: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The kernel refused an operation.
    #[error("entry {path:?}: {stage}")]
    Io {
        /// As in the archive.
        path: String,
        /// Which operation.
        stage: &'static str,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

/// A directory inside the layer and its real path there.
struct Parent {
    fd: OwnedFd,
    path: Vec<u8>,
}

struct Applier<'a> {
    root: BorrowedFd<'a>,
    limits: Limits,
    done: Unpacked,
    /// Directories made without an entry of their own.
    implicit: BTreeSet<Vec<u8>>,
    /// Times of directories, set last because every entry inside changes them.
    times: BTreeMap<Vec<u8>, (i64, u32)>,
    /// The last parent, because entries come sorted: (name as in the archive, directory).
    last: Option<(Vec<u8>, Parent)>,
    buffer: Vec<u8>,
}

/// Applies all entries of `archive` inside `root`.
pub(super) fn apply<R: Read>(
    archive: &mut Archive<R>,
    root: BorrowedFd<'_>,
    limits: Limits,
) -> Result<Unpacked, UnpackError> {
    let mut applier = Applier {
        root,
        limits,
        done: Unpacked { inodes: 1, bytes: PAGE, ..Unpacked::default() },
        implicit: BTreeSet::from([Vec::new()]),
        times: BTreeMap::new(),
        last: None,
        buffer: vec![0; COPY_BUFFER],
    };
    while let Some(entry) = archive.next()? {
        applier.entry(&entry, archive)?;
    }
    applier.set_times()?;
    Ok(Unpacked { implicit: applier.implicit.into_iter().collect(), ..applier.done })
}

impl Applier<'_> {
    fn entry<R: Read>(&mut self, entry: &Entry, archive: &mut Archive<R>) -> Result<(), UnpackError> {
        let mut components = split(&entry.path).map_err(|reason| name_error(entry, reason))?;
        let Some(name) = components.pop() else {
            if entry.kind != Kind::Directory {
                return Err(name_error(entry, "the layer's root can only be a directory").into());
            }
            let root = open_beneath(self.root, b"", OFlags::RDONLY | OFlags::DIRECTORY)
                .map_err(|e| io_error(entry, "open root", e))?;
            self.describe_dir(entry, root.as_fd(), Vec::new())?;
            return Ok(());
        };
        self.take_parent(entry, &components)?;
        if name.starts_with(WHITEOUT) {
            return Ok(self.whiteout(entry, name)?);
        }
        match entry.kind {
            Kind::File => self.file(entry, name, archive)?,
            Kind::Directory => self.directory(entry, name)?,
            Kind::Symlink => self.symlink(entry, name)?,
            Kind::Hardlink => self.hardlink(entry, name)?,
            Kind::Fifo | Kind::Char | Kind::Block => self.node(entry, name)?,
        }
        Ok(())
    }

    fn directory(&mut self, entry: &Entry, name: &[u8]) -> Result<(), UnpackError> {
        let (parent, parent_path) = self.parent();
        let path = join(parent_path, name);
        let found = stat_at(parent, name).map_err(|e| io_error(entry, "look up", e))?;
        let exists = found.as_ref().is_some_and(|s| file_type(s) == FileType::Directory);
        let replaces = found.is_some() && !exists;
        if replaces {
            remove_tree(parent, name).map_err(|e| io_error(entry, "replace", e))?;
        }
        let fd = if exists {
            open_beneath(parent, name, OFlags::RDONLY | OFlags::DIRECTORY)
        } else {
            make_dir(parent, name)
        };
        let fd = fd.map_err(|e| io_error(entry, "create directory", e))?;
        if replaces {
            // What was here (a whiteout, or a file) hid a directory below; so must this one.
            mark_opaque(fd.as_fd()).map_err(|e| io_error(entry, "mark opaque", e))?;
        }
        self.done.replaced |= replaces;
        if !exists {
            self.count(1, PAGE)?;
        }
        self.describe_dir(entry, fd.as_fd(), path)
    }

    fn describe_dir(&mut self, entry: &Entry, fd: BorrowedFd<'_>, path: Vec<u8>) -> Result<(), UnpackError> {
        set_owner_and_mode(entry, fd)?;
        set_xattrs(entry, &fd_path(fd, b"."), true)?;
        self.implicit.remove(&path);
        self.times.insert(path, entry.mtime);
        Ok(())
    }

    fn file<R: Read>(
        &mut self,
        entry: &Entry,
        name: &[u8],
        archive: &mut Archive<R>,
    ) -> Result<(), UnpackError> {
        self.count(1, entry.size.next_multiple_of(PAGE))?;
        let parent = self.clear(entry, name)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o600))
            .map_err(|e| io_error(entry, "create file", e.into()))?;
        let mut file = std::fs::File::from(fd);
        let path = join(self.parent().1, name);
        match &entry.sparse {
            None => archive.content_of(&path, &[(0, entry.size)]),
            Some(sparse) => archive.content_of(&path, &sparse.pieces),
        }
        match &entry.sparse {
            None => self.write(entry, &mut file, entry.size, archive)?,
            Some(sparse) => {
                if sparse.size > self.limits.bytes {
                    return Err(UnpackError::TooBig { limit: self.limits.bytes, unit: "bytes" });
                }
                for (offset, length) in &sparse.pieces {
                    file.seek(SeekFrom::Start(*offset)).map_err(|e| io_error(entry, "seek", e))?;
                    self.write(entry, &mut file, *length, archive)?;
                }
                file.set_len(sparse.size).map_err(|e| io_error(entry, "set size", e))?;
            }
        }
        set_owner_and_mode(entry, file.as_fd())?;
        // After the owner: chown drops file capabilities.
        set_xattrs(entry, &fd_path(file.as_fd(), b""), true)?;
        rustix::fs::futimens(&file, &timestamps(entry.mtime))
            .map_err(|e| io_error(entry, "set time", e.into()))?;
        Ok(())
    }

    /// Moves the next `left` bytes of the entry's data into `file`.
    fn write<R: Read>(
        &mut self,
        entry: &Entry,
        file: &mut std::fs::File,
        mut left: u64,
        archive: &mut Archive<R>,
    ) -> Result<(), UnpackError> {
        while left > 0 {
            let position = archive.position();
            let room = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            let n = archive
                .read(&mut self.buffer[..room])
                .map_err(|source| super::archive::ArchiveError::Read { position, source })?;
            file.write_all(&self.buffer[..n]).map_err(|e| io_error(entry, "write", e))?;
            left -= n as u64;
        }
        Ok(())
    }

    fn symlink(&mut self, entry: &Entry, name: &[u8]) -> Result<(), UnpackError> {
        if entry.link.is_empty() {
            return Err(name_error(entry, "symbolic link without target").into());
        }
        self.count(1, 0)?;
        let parent = self.clear(entry, name)?;
        rustix::fs::symlinkat(entry.link.as_slice(), parent, name)
            .map_err(|e| io_error(entry, "create symbolic link", e.into()))?;
        self.set_on_name(entry, name)
    }

    fn node(&mut self, entry: &Entry, name: &[u8]) -> Result<(), UnpackError> {
        let (kind, device) = match entry.kind {
            Kind::Fifo => (FileType::Fifo, 0),
            Kind::Char if entry.device == (0, 0) => {
                return Err(name_error(entry, "a device 0:0 is overlayfs' mark for a removed file").into());
            }
            Kind::Char => (FileType::CharacterDevice, rustix::fs::makedev(entry.device.0, entry.device.1)),
            _ => (FileType::BlockDevice, rustix::fs::makedev(entry.device.0, entry.device.1)),
        };
        self.count(1, 0)?;
        let parent = self.clear(entry, name)?;
        rustix::fs::mknodat(parent, name, kind, Mode::from_raw_mode(0o600), device)
            .map_err(|e| io_error(entry, "create node", e.into()))?;
        self.set_on_name(entry, name)
    }

    /// Owner, mode, attributes and time of something that must not be opened.
    fn set_on_name(&self, entry: &Entry, name: &[u8]) -> Result<(), UnpackError> {
        let (parent, _) = self.parent();
        let (uid, gid) = owner(entry);
        rustix::fs::chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| io_error(entry, "set owner", e.into()))?;
        if entry.kind != Kind::Symlink {
            let handle = open_beneath(parent, name, OFlags::PATH | OFlags::NOFOLLOW)
                .map_err(|e| io_error(entry, "open node", e))?;
            rustix::fs::chmodat(CWD, fd_path(handle.as_fd(), b""), mode(entry), AtFlags::empty())
                .map_err(|e| io_error(entry, "set mode", e.into()))?;
        }
        set_xattrs(entry, &fd_path(parent, name), false)?;
        rustix::fs::utimensat(parent, name, &timestamps(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| io_error(entry, "set time", e.into()))?;
        Ok(())
    }

    /// Links to an entry of this layer. The target's last component is not followed: two links to one
    /// symlink stay two links to it.
    fn hardlink(&mut self, entry: &Entry, name: &[u8]) -> Result<(), UnpackError> {
        let mut components = split(&entry.link).map_err(|reason| name_error(entry, reason))?;
        let target = components.pop().ok_or_else(|| name_error(entry, "hard link to the layer's root"))?;
        let dir = self.walk(entry, &components, false)?;
        let dir = open_beneath(self.root, &dir, OFlags::PATH | OFlags::DIRECTORY)
            .map_err(|e| io_error(entry, "find link target", e))?;
        let stat = stat_at(dir.as_fd(), target)
            .and_then(|found| found.ok_or_else(|| Errno::NOENT.into()))
            .map_err(|e| io_error(entry, "find link target", e))?;
        if file_type(&stat) == FileType::Directory || is_whiteout(&stat) {
            return Err(name_error(entry, "hard link to something that is no file").into());
        }
        let (parent, _) = self.parent();
        let present = stat_at(parent, name).map_err(|e| io_error(entry, "look up", e))?;
        if present.is_some_and(|p| (p.st_dev, p.st_ino) == (stat.st_dev, stat.st_ino)) {
            return Ok(());
        }
        let parent = self.clear(entry, name)?;
        rustix::fs::linkat(&dir, target, parent, name, AtFlags::empty())
            .map_err(|e| io_error(entry, "create hard link", e.into()))?;
        Ok(())
    }

    /// `.wh.name` hides `name` of the layers below, `.wh..wh..opq` everything in its directory; neither
    /// touches what this layer itself brings (image-spec, layer.md, "Whiteouts").
    fn whiteout(&mut self, entry: &Entry, name: &[u8]) -> Result<(), ApplyError> {
        let (parent, _) = self.parent();
        if name == OPAQUE {
            let fd = open_beneath(parent, b"", OFlags::RDONLY | OFlags::DIRECTORY)
                .map_err(|e| io_error(entry, "open directory", e))?;
            return mark_opaque(fd.as_fd()).map_err(|e| io_error(entry, "mark opaque", e));
        }
        let hidden = &name[WHITEOUT.len()..];
        if hidden.starts_with(WHITEOUT) {
            // aufs kept its own housekeeping under such names; it means nothing here.
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(name_error(entry, "whiteout of nothing"));
        }
        match stat_at(parent, hidden).map_err(|e| io_error(entry, "look up", e))? {
            None => {
                let result = rustix::fs::mknodat(
                    parent,
                    hidden,
                    FileType::CharacterDevice,
                    Mode::from_raw_mode(0),
                    rustix::fs::makedev(0, 0),
                );
                result.map_err(|e| io_error(entry, "create whiteout", e.into()))?;
                self.done.inodes += 1;
                Ok(())
            }
            Some(stat) if file_type(&stat) == FileType::Directory => {
                let fd = open_beneath(parent, hidden, OFlags::RDONLY | OFlags::DIRECTORY)
                    .map_err(|e| io_error(entry, "open directory", e))?;
                mark_opaque(fd.as_fd()).map_err(|e| io_error(entry, "mark opaque", e))
            }
            // A file of this layer hides the one below by being there.
            Some(_) => Ok(()),
        }
    }

    /// Removes what an earlier entry left under `name`, and returns the directory to create it in.
    fn clear(&mut self, entry: &Entry, name: &[u8]) -> Result<BorrowedFd<'_>, ApplyError> {
        let (parent, path) = self.parent();
        let found = stat_at(parent, name).map_err(|e| io_error(entry, "look up", e))?;
        if let Some(found) = found {
            remove_tree(parent, name).map_err(|e| io_error(entry, "replace", e))?;
            // A whiteout is no entry's content.
            let replaced = !is_whiteout(&found);
            if file_type(&found) == FileType::Directory {
                let path = join(path, name);
                let inside = |p: &Vec<u8>| *p == path || p.starts_with(&[&path[..], b"/"].concat());
                self.implicit.retain(|p| !inside(p));
                self.times.retain(|p, _| !inside(p));
            }
            self.done.replaced |= replaced;
        }
        Ok(self.parent().0)
    }

    fn set_times(&self) -> Result<(), ApplyError> {
        for (path, mtime) in self.times.iter().rev() {
            let text = String::from_utf8_lossy(path).into_owned();
            let fd = open_beneath(self.root, path, OFlags::RDONLY | OFlags::DIRECTORY);
            let set = fd.and_then(|fd| Ok(rustix::fs::futimens(&fd, &timestamps(*mtime))?));
            set.map_err(|source| ApplyError::Io { path: text, stage: "set time", source })?;
        }
        Ok(())
    }

    fn count(&mut self, inodes: u64, bytes: u64) -> Result<(), UnpackError> {
        self.done.inodes += inodes;
        self.done.bytes = self.done.bytes.saturating_add(bytes);
        if self.done.inodes > self.limits.entries {
            return Err(UnpackError::TooBig { limit: self.limits.entries, unit: "entries" });
        }
        Ok(())
    }
}

/// Components without `.` and empty ones; an absolute name is relative to the layer.
fn split(path: &[u8]) -> Result<Vec<&[u8]>, &'static str> {
    if path.is_empty() {
        return Err("empty name");
    }
    let components: Vec<_> = path.split(|b| *b == b'/').filter(|c| !c.is_empty() && *c != b".").collect();
    if components.contains(&&b".."[..]) {
        return Err("name with `..`");
    }
    Ok(components)
}

fn make_dir(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700))?;
    open_beneath(parent, name, OFlags::RDONLY | OFlags::DIRECTORY)
}

fn mark_opaque(dir: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::fs::fsetxattr(dir, OPAQUE_XATTR, b"y", XattrFlags::empty())?)
}

fn shown(entry: &Entry) -> String {
    String::from_utf8_lossy(&entry.path[..entry.path.len().min(300)]).into_owned()
}

fn name_error(entry: &Entry, reason: &'static str) -> ApplyError {
    ApplyError::Name { path: shown(entry), reason }
}

fn io_error(entry: &Entry, stage: &'static str, source: io::Error) -> ApplyError {
    ApplyError::Io { path: shown(entry), stage, source }
}
