//! Volumes that an image's configuration declares. Purpose: each becomes a directory beside the container's
//! writable layer, filled with what the image has at that place; it goes away with the container. Must not know
//! how it gets into the container.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crisp_sys::path::{OFlag, Root};
use crisp_sys::{Errno, SysError};
use rustix::fs::{AtFlags, CWD, Gid, Uid};

use super::{Snapshot, SnapshotError, copy};
use crate::rooted;

impl Snapshot {
    /// Makes the directory of the `number`th declared volume, a copy of what `root` (the container's merged tree, in
    /// which nothing runs yet) shows at `path`, an absolute path. The look-up stays inside `root` whatever links are
    /// on the way (CVE-2022-23648). Where the image has nothing, it is empty, mode 0755,
    /// and belongs to whom the tree's root does.
    ///
    /// # Errors
    /// [`SnapshotError::Declared`]: something else than a directory is there, or the copy went wrong.
    pub fn declared_volume(
        &self,
        root: BorrowedFd<'_>,
        number: usize,
        path: &Path,
    ) -> Result<PathBuf, SnapshotError> {
        let failed = |stage| {
            move |source: io::Error| SnapshotError::Declared {
                container: self.container.clone(),
                path: path.display().to_string(),
                stage,
                source,
            }
        };
        let all = self.directory().join("volumes");
        let made = all.join(number.to_string());
        let make = |path: &Path, mode| std::fs::DirBuilder::new().mode(mode).create(path);
        match make(&all, 0o700) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed("make")(error)),
            _ => make(&made, 0o755).map_err(failed("make"))?,
        }
        let inside = Root::duplicate(root).map_err(|error| failed("look up")(plain(&error)))?;
        match inside.open_at(path, OFlag::O_PATH | OFlag::O_DIRECTORY, 0) {
            Ok(source) => {
                let target = rooted::open_dir(&made).map_err(failed("open"))?;
                copy::tree(source.as_fd(), target.as_fd())
                    .map_err(failed("copy what the image has there"))?;
            }
            // The merged tree's root belongs to root as the container's processes know it.
            Err(error) if error.errno == Errno::ENOENT => {
                let owner = rustix::fs::statat(root, c"", AtFlags::EMPTY_PATH);
                owner
                    .and_then(|owner| {
                        let (uid, gid) = (Uid::from_raw(owner.st_uid), Gid::from_raw(owner.st_gid));
                        rustix::fs::chownat(CWD, &made, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                    })
                    .map_err(|error| failed("set the owner")(error.into()))?;
            }
            Err(error) => return Err(failed("look up")(plain(&error))),
        }
        Ok(made)
    }
}

fn plain(error: &SysError) -> io::Error {
    io::Error::from_raw_os_error(error.errno as i32)
}
