//! A container's root file system. Purpose: an image's layers and a container's writable directory become
//! a detached overlay mount, handed out as an fd. Must not know who mounts it where, nor what runs in it.

mod copy;
mod declared;
mod mapped;
mod overlay;
mod volume;

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crisp_sys::SysError;

use crate::digest::Digest;
use crate::store::{Image, Store, StoreError};

/// The directories of one container: an image's layers below, its own writable one on top.
///
/// Made by [`Store::prepare`], taken away by [`Store::release`]; dropping this value changes nothing.
#[derive(Debug, Clone)]
pub struct Snapshot {
    root: PathBuf,
    container: String,
    /// Top first.
    lowers: Vec<PathBuf>,
}

/// Why a snapshot could not be made or mounted.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The directories.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A directory that is not what it should be.
    #[error("root file system of container {container}: {stage}")]
    Io {
        /// Whose.
        container: String,
        /// Which operation.
        stage: &'static str,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The kernel refused the mount.
    #[error("overlay of {layers} layers for container {container}")]
    Mount {
        /// Whose.
        container: String,
        /// How many lower directories.
        layers: usize,
        /// Cause.
        #[source]
        source: SysError,
    },
    /// A volume that the image's configuration declares.
    #[error("volume {path:?} of the image of container {container}: {stage}")]
    Declared {
        /// Whose.
        container: String,
        /// The volume, as the image has it.
        path: String,
        /// Which operation.
        stage: &'static str,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The part of an image that is to be mounted is no directory in it.
    #[error("directory {path:?} of image {image}")]
    SubPath {
        /// Which image.
        image: Digest,
        /// The path in it.
        path: PathBuf,
        /// Cause.
        #[source]
        source: SysError,
    },
    /// The thread that mounts on kernels without `lowerdir+` could not be used.
    #[error("overlay for container {container}: mount thread")]
    Thread {
        /// Whose.
        container: String,
    },
}

impl Store {
    /// Makes the writable layer of `container_id` on top of `image`, and holds the layers of the image and of
    /// those in `volumes` (see [`Store::image_volume`]) until [`Store::release`], whatever happens to the
    /// images. A few system calls, no fsync.
    ///
    /// # Errors
    /// [`StoreError::ContainerExists`], [`StoreError::Gone`] when an image was removed meanwhile,
    /// [`StoreError::ContainerId`], or a directory that cannot be made. Nothing is left behind then.
    pub fn prepare(
        &self,
        image: &Image,
        volumes: &[Arc<Image>],
        container_id: &str,
    ) -> Result<Snapshot, SnapshotError> {
        self.inner.prepare(image, volumes, container_id)?;
        Ok(self.assemble(container_id, image.layers.iter().map(|layer| layer.directory.clone())))
    }

    /// The snapshot of a container that was prepared before, by this process or an earlier one.
    #[must_use]
    pub fn snapshot(&self, container_id: &str) -> Option<Snapshot> {
        let layers = self.inner.read().container_layers(container_id)?;
        Some(self.assemble(container_id, layers.into_iter().map(|layer| layer.directory)))
    }

    fn assemble(&self, container: &str, layers: impl DoubleEndedIterator<Item = PathBuf>) -> Snapshot {
        let mut lowers: Vec<PathBuf> = layers.rev().collect();
        if lowers.is_empty() {
            // Overlayfs wants at least one.
            lowers.push(self.root().join("empty"));
        }
        Snapshot { root: self.root().to_owned(), container: container.to_owned(), lowers }
    }
}

impl Store {
    /// Tries whether trees can be mounted for a user namespace: on this kernel, with the file system of this store.
    ///
    /// # Errors
    /// The kernel's words.
    pub fn try_mapped(&self, namespace: BorrowedFd<'_>) -> Result<(), SnapshotError> {
        // Two, because one directory alone would be no overlay.
        let lowers = vec![self.root().join("empty"), self.root().join("containers")];
        let snapshot = Snapshot { root: self.root().to_owned(), container: "probe".to_owned(), lowers };
        snapshot.mount(true, Some(namespace)).map(drop)
    }
}

impl Snapshot {
    /// The container's id.
    #[must_use]
    pub fn container(&self) -> &str {
        &self.container
    }

    /// The writable directory, overlayfs' `upperdir`.
    #[must_use]
    pub fn upper(&self) -> PathBuf {
        self.directory().join("upper")
    }

    /// The read-only directories, top first, overlayfs' `lowerdir`.
    #[must_use]
    pub fn lowers(&self) -> &[PathBuf] {
        &self.lowers
    }

    /// A detached mount of the merged tree; it exists as long as the fd or a place it was moved to.
    ///
    /// With `readonly`, the layers alone are mounted, read-only and without the writable directory; a
    /// single layer is bound, not overlaid. Otherwise the mount is writable and `volatile`: nothing is
    /// synced, which suits a container that does not outlive the kernel. Mounting a second time while the
    /// first mount lives is refused by overlayfs or leaves both undefined, so keep the fd.
    ///
    /// Set-user-id programs work: there is no `nosuid`.
    ///
    /// With a user namespace, the tree belongs to those that live in it: what is root's in a layer is shown as its
    /// root's (an id-mapped mount of each layer), and what is written goes to the writable directory with the ids
    /// of the host. No file of a layer is touched. Needs Linux 5.19 and a file system with id-mapped mounts.
    ///
    /// # Errors
    /// [`SnapshotError::Mount`] with the kernel's words.
    pub fn mount(&self, readonly: bool, namespace: Option<BorrowedFd<'_>>) -> Result<OwnedFd, SnapshotError> {
        if !readonly {
            self.renew_work()?;
        }
        match namespace {
            None => overlay::mount(self, readonly),
            Some(namespace) => mapped::mount(self, readonly, namespace),
        }
    }

    fn directory(&self) -> PathBuf {
        self.root.join("containers").join(&self.container)
    }

    /// An earlier volatile mount left a mark in its work directory that forbids the next one. The
    /// directory holds nothing else that counts.
    fn renew_work(&self) -> Result<(), SnapshotError> {
        use std::os::fd::AsFd;
        use std::os::unix::fs::DirBuilderExt;
        let dir = self.directory();
        let fresh = || -> io::Result<()> {
            if dir.join("work").join("work").exists() {
                crate::rooted::remove_tree(crate::rooted::open_dir(&dir)?.as_fd(), b"work")?;
                std::fs::DirBuilder::new().mode(0o700).create(dir.join("work"))?;
            }
            Ok(())
        };
        fresh().map_err(|source| SnapshotError::Io {
            container: self.container.clone(),
            stage: "renew the work directory",
            source,
        })
    }

    fn refused(&self, source: SysError) -> SnapshotError {
        SnapshotError::Mount { container: self.container.clone(), layers: self.lowers.len(), source }
    }

    fn root(&self) -> &Path {
        &self.root
    }
}

#[cfg(test)]
mod tests;
