//! The directory in which an entry is created. Purpose: resolve its path inside the layer as a process
//! whose root is the layer would, making what is missing. Nothing here follows a symlink in the kernel.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::{Applier, PAGE, Parent, SYMLINKS_MAX, io_error, make_dir, mark_opaque, name_error};
use crate::rooted::{file_type, join, open_beneath, remove_tree, stat_at};
use crate::unpack::UnpackError;
use crate::unpack::archive::Entry;

impl Applier<'_> {
    /// Makes `self.last` the directory named by `components`, creating what is missing.
    pub(super) fn take_parent(&mut self, entry: &Entry, components: &[&[u8]]) -> Result<(), UnpackError> {
        let wanted = components.join(&b'/');
        if self.last.as_ref().is_some_and(|(name, _)| *name == wanted) {
            return Ok(());
        }
        self.last = None;
        let parent = match open_beneath(self.root, &wanted, OFlags::PATH | OFlags::DIRECTORY) {
            Ok(fd) => Parent { fd, path: wanted.clone() },
            // Missing, or with a symlink on the way: resolved by hand, inside.
            Err(_) => {
                let path = self.walk(entry, components, true)?;
                let fd = open_beneath(self.root, &path, OFlags::PATH | OFlags::DIRECTORY)
                    .map_err(|e| io_error(entry, "open parent", e))?;
                Parent { fd, path }
            }
        };
        self.last = Some((wanted, parent));
        Ok(())
    }

    /// The parent that [`Self::take_parent`] found.
    pub(super) fn parent(&self) -> (BorrowedFd<'_>, &[u8]) {
        match &self.last {
            Some((_, parent)) => (parent.fd.as_fd(), &parent.path),
            None => (self.root, b""),
        }
    }

    /// Resolves `components` as a process whose root is the layer would, and returns the path without
    /// symlinks. With `create`, what is missing becomes a directory, and so does what is not one.
    pub(super) fn walk(
        &mut self,
        entry: &Entry,
        components: &[&[u8]],
        create: bool,
    ) -> Result<Vec<u8>, UnpackError> {
        let mut todo: VecDeque<Vec<u8>> = components.iter().map(|c| c.to_vec()).collect();
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
            let here = at.join(&b'/');
            let dir = open_beneath(self.root, &here, OFlags::PATH | OFlags::DIRECTORY)
                .map_err(|e| io_error(entry, "open parent", e))?;
            let found = stat_at(dir.as_fd(), &name).map_err(|e| io_error(entry, "look up parent", e))?;
            match found.as_ref().map(file_type) {
                Some(FileType::Directory) => at.push(name),
                Some(FileType::Symlink) => {
                    links += 1;
                    if links > SYMLINKS_MAX {
                        return Err(name_error(entry, "too many symbolic links in its path").into());
                    }
                    let target = rustix::fs::readlinkat(&dir, name.as_slice(), Vec::new())
                        .map_err(|e| io_error(entry, "read link", e.into()))?;
                    let target = target.as_bytes();
                    if target.starts_with(b"/") {
                        at.clear();
                    }
                    for part in target.split(|b| *b == b'/').rev() {
                        todo.push_front(part.to_vec());
                    }
                }
                _ if !create => return Err(io_error(entry, "find link target", Errno::NOENT.into()).into()),
                other => {
                    let path = join(&here, &name);
                    self.implicit_dir(entry, dir.as_fd(), &name, other.is_some())?;
                    self.implicit.insert(path);
                    at.push(name);
                }
            }
        }
        Ok(at.join(&b'/'))
    }

    fn implicit_dir(
        &mut self,
        entry: &Entry,
        dir: BorrowedFd<'_>,
        name: &[u8],
        replaces: bool,
    ) -> Result<(), UnpackError> {
        self.count(1, PAGE)?;
        self.done.replaced |= replaces;
        if replaces {
            remove_tree(dir, name).map_err(|e| io_error(entry, "replace", e))?;
        }
        let fd = make_dir(dir, name).map_err(|e| io_error(entry, "create parent", e))?;
        // A parent with the set-group-id bit gives its group to what is made in it, depending on the order of entries.
        rustix::fs::fchown(&fd, Some(Uid::ROOT), Some(Gid::ROOT))
            .map_err(|e| io_error(entry, "set owner of parent", e.into()))?;
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o755))
            .map_err(|e| io_error(entry, "set mode of parent", e.into()))?;
        if replaces {
            mark_opaque(fd.as_fd()).map_err(|e| io_error(entry, "mark opaque", e))?;
        }
        Ok(())
    }
}
