//! An image as a volume. Purpose: the tree of an image, or one directory of it, becomes a detached read-only
//! mount for a container that runs something else. Must not know where it is mounted.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use crisp_sys::mount::{self as sys, AttrChange, MountAttr, Propagation};
use crisp_sys::path::{OFlag, Root};
use crisp_sys::process::{self, CloneFlags};
use crisp_sys::{Errno, SysError};

use super::SnapshotError;
use crate::store::{Image, Store};

/// Nobody writes to an image, none of its device nodes is a device, and none of its set-user-id programs makes
/// anybody more than they are. Programs run: that is what such a volume may be for.
const ATTRIBUTES: MountAttr = MountAttr::RDONLY.union(MountAttr::NOSUID).union(MountAttr::NODEV);

impl Store {
    /// A detached mount of `image`, read-only, `nosuid` and `nodev`; with a `sub_path` that is not empty only of
    /// that directory. `sub_path` is resolved with the image as root: links and dots stay inside (CVE-2021-25741's
    /// class), and what is mounted is the very directory that was found. `container_id` must have been prepared with
    /// this image among its volumes, which keeps the layers. `namespace` as for [`super::Snapshot::mount`].
    ///
    /// # Errors
    /// [`SnapshotError::SubPath`] when there is no such directory in the image; [`SnapshotError::Mount`].
    pub fn image_volume(
        &self,
        container_id: &str,
        image: &Image,
        sub_path: &Path,
        namespace: Option<BorrowedFd<'_>>,
    ) -> Result<OwnedFd, SnapshotError> {
        let layers = image.layers.iter().map(|layer| layer.directory.clone());
        let snapshot = self.assemble(container_id, layers);
        let whole = snapshot.mount(true, namespace)?;
        let tree =
            if sub_path.as_os_str().is_empty() {
                whole
            } else {
                let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
                let root = Root::new(whole);
                let directory = root.open_at(sub_path, flags, 0).map_err(|source| {
                    SnapshotError::SubPath { image: image.id, path: sub_path.to_owned(), source }
                })?;
                match clone_of(directory.as_fd()) {
                    // Before Linux 6.15 only what is attached somewhere can be cloned.
                    Err(error) if error.errno == Errno::EINVAL => {
                        on_thread(root.into_fd(), &directory, self.root(), container_id)?
                    }
                    other => other.map_err(|e| snapshot.refused(e))?,
                }
            };
        let change = AttrChange { set: ATTRIBUTES, ..AttrChange::default() };
        sys::mount_setattr(&tree, false, &change).map_err(|e| snapshot.refused(e))?;
        Ok(tree)
    }
}

fn clone_of(directory: BorrowedFd<'_>) -> Result<OwnedFd, SysError> {
    sys::open_tree_clone(Some(directory), Path::new(""), false)
}

/// Attaches `whole` in a mount namespace that nobody else sees and that ends with the thread, and clones `directory`
/// of it there.
pub(super) fn on_thread(
    whole: OwnedFd,
    directory: &OwnedFd,
    root: &Path,
    container: &str,
) -> Result<OwnedFd, SnapshotError> {
    let dead = || SnapshotError::Thread { container: container.to_owned() };
    let attach_and_clone = || -> Result<OwnedFd, SysError> {
        process::unshare(CloneFlags::NEWNS)?;
        sys::set_propagation(Path::new("/"), Propagation::Private, true)?;
        sys::move_mount_to(whole, &root.join("empty"))?;
        clone_of(directory.as_fd())
    };
    let cloned = std::thread::scope(|scope| {
        let thread =
            std::thread::Builder::new().name("image-volume".to_owned()).spawn_scoped(scope, attach_and_clone);
        thread.map_err(|_| dead())?.join().map_err(|_| dead())
    })?;
    cloned.map_err(|source| SnapshotError::Mount { container: container.to_owned(), layers: 1, source })
}
