//! What is on disk. Purpose: images, their layers and the writable directories of containers below one
//! root directory, consistent after any crash or power cut, and served from memory. Knows neither
//! registries nor archives nor mounts.
//!
//! ```text
//! root/images/<config hex>.json    one record an image; written last, so it names only what is whole
//! root/blobs/<hex>                 configs and manifests as they came
//! root/layers/<name>/              one overlayfs diff directory a layer, named after its chain id
//! root/splits/<name>.zst           what a layer's archive has beside the content of its files (unpack/split.rs)
//! root/containers/<id>/            upper, work, volumes, and the lease on the layers below
//! root/staging/                    anything unfinished or being deleted; emptied at open
//! root/downloads/<hex>             what has arrived of a layer that is not in place yet
//! root/fresh/<name>.json           notes on layers in place that no record names yet
//! root/empty/                      the lower directory of an image without layers
//! ```
//!
//! Order of events that makes it safe: a layer is renamed into `layers` when it is whole; one sync of
//! all layers comes before the record that names them; a layer that no record, no container and no running pull names
//! is garbage and is moved to `staging` in one step before it is deleted. A layer of a pull that did not
//! come to its end is kept for an hour, and across a restart of the daemon, but not of the kernel.

mod downloads;
mod durable;
mod fresh;
mod index;
mod layers;
mod load;
mod locks;
mod mend;
mod publish;
mod record;
mod written;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

pub(crate) use downloads::Kept;
use index::State;
pub(crate) use layers::{Lease, Staging};
use locks::Locks;
pub(crate) use mend::mend;
pub(crate) use publish::NewImage;
pub use record::{Image, Layer};
use written::Figures;
pub use written::Written;

use crate::digest::{Digest, DigestError};
use crate::pull::Flights;
use crate::reference::Reference;

/// Bytes that wait between the network and unpacking, of all pulls together. The network waits beyond.
pub(crate) const BUDGET: usize = 8 << 20;

/// The images of one root directory. Cheap to clone; all clones are the same store.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    root: PathBuf,
    options: StoreOptions,
    /// Held for memory operations and renames only, never across a sync.
    state: RwLock<State>,
    /// Serialises changes of image records on disk.
    records: Mutex<()>,
    /// One lock a chain id, so that two pulls do not unpack the same layer.
    layer_locks: Locks,
    /// One lock a blob, so that two pulls do not fetch the same one.
    blob_locks: Locks,
    /// Bytes between the network and unpacking, of all pulls together.
    pub(crate) budget: Arc<tokio::sync::Semaphore>,
    pub(crate) flights: Flights,
    written: Figures,
    serial: AtomicU64,
}

/// What can be set about a store.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Images that the client's garbage collection must leave alone.
    pub pinned: Vec<Reference>,
    /// A layer that unpacks to more bytes is refused.
    pub layer_bytes_max: u64,
    /// A layer with more files, directories and links is refused.
    pub layer_entries_max: u64,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self { pinned: Vec::new(), layer_bytes_max: 128 << 30, layer_entries_max: 8_000_000 }
    }
}

/// Space used by images (CRI `FilesystemUsage`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsUsage {
    /// Bytes of layers, configs and manifests.
    pub bytes: u64,
    /// Inodes of the same.
    pub inodes: u64,
    /// The directory whose file system holds them.
    pub mountpoint: PathBuf,
}

/// Why the store could not do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file operation failed.
    #[error("image store: {stage} {}", path.display())]
    Io {
        /// Which operation.
        stage: &'static str,
        /// On what.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A prefix of an image id that several images share.
    #[error("image id prefix {prefix:?} matches {count} images")]
    Ambiguous {
        /// What was asked for.
        prefix: String,
        /// How many images have it.
        count: usize,
    },
    /// Neither a reference nor an image id.
    #[error("{text:?} is neither an image id nor a reference: {reason}")]
    Name {
        /// What was asked for.
        text: String,
        /// Why not.
        reason: String,
    },
    /// `sha256:` and something that is no digest.
    #[error("image id")]
    Digest(#[from] DigestError),
    /// There is no such image.
    #[error("no image {0:?} in the store")]
    Missing(String),
    /// The image was removed meanwhile.
    #[error("image {0} is not in the store")]
    Gone(Digest),
    /// A container id that cannot be a directory name.
    #[error("container id {0:?} is not 1 to 128 letters, digits, dots, dashes and underscores")]
    ContainerId(String),
    /// A container with this id has its directories already.
    #[error("container {0} has a writable layer already")]
    ContainerExists(String),
    /// A background task of the store died.
    #[error("image store task stopped")]
    Stopped,
}

impl StoreError {
    pub(crate) fn io(stage: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { stage, path, source }
    }
}

impl Store {
    /// Opens the store below `root` with default options, see [`Self::open_with`].
    ///
    /// # Errors
    /// A directory that cannot be made or read.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        Self::open_with(root, StoreOptions::default())
    }

    /// Opens the store below `root`, making it if needed; deletes what an earlier process left half-done.
    /// Blocks. The caller sees to it that there is only one store a root.
    ///
    /// A record that cannot be read, or whose content is gone or altered, is reported in the log and its
    /// image counts as absent.
    ///
    /// # Errors
    /// A directory that cannot be made or read.
    pub fn open_with(root: &Path, options: StoreOptions) -> Result<Self, StoreError> {
        let root = std::path::absolute(root).map_err(StoreError::io("find", root))?;
        load::make_directories(&root)?;
        let state = load::load(&root, &options)?;
        Ok(Self {
            inner: Arc::new(Inner {
                root,
                options,
                state: RwLock::new(state),
                records: Mutex::new(()),
                layer_locks: Locks::default(),
                blob_locks: Locks::default(),
                budget: Arc::new(tokio::sync::Semaphore::new(BUDGET)),
                flights: Flights::default(),
                written: Figures::default(),
                serial: AtomicU64::new(0),
            }),
        })
    }

    /// All images, each once, ordered by id.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.inner.read().images.values().cloned().collect()
    }

    /// Finds an image by tag, digest, bare name, id (with or without `sha256:`) or unique prefix of an id.
    /// A name wins over a prefix of an id; 64 hexadecimal digits are always an id.
    ///
    /// # Errors
    /// [`StoreError::Ambiguous`] for a prefix of several ids; [`StoreError::Name`] and
    /// [`StoreError::Digest`] for what can be neither name nor id.
    pub fn get(&self, reference_or_id: &str) -> Result<Option<Arc<Image>>, StoreError> {
        self.inner.read().find(reference_or_id)
    }

    /// Removes a whole image with all its tags and digests. Layers that nothing else uses are deleted in
    /// the background; containers keep theirs until they are released. An unknown image is fine.
    ///
    /// Cancel safety: the removal goes on when the future is dropped.
    ///
    /// # Errors
    /// As [`Self::get`], and the record that cannot be deleted.
    pub async fn remove(&self, reference_or_id: &str) -> Result<(), StoreError> {
        let (inner, text) = (self.inner.clone(), reference_or_id.to_owned());
        blocking(move || inner.remove(&text)).await?
    }

    /// Space used by images. Cheap: it is counted when layers come and go.
    #[must_use]
    pub fn usage(&self) -> FsUsage {
        let (bytes, inodes) = self.inner.read().usage();
        FsUsage { bytes, inodes, mountpoint: self.inner.root.clone() }
    }

    /// The root directory, absolute.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// Ids of the containers that have a writable layer here, for recovery after a restart.
    #[must_use]
    pub fn containers(&self) -> Vec<String> {
        self.inner.read().containers.keys().cloned().collect()
    }

    /// Takes a container's writable layer and its hold on the image's layers away. An unknown container
    /// is fine. What it wrote is deleted in the background, after the directory was moved aside.
    ///
    /// Cancel safety: the release goes on when the future is dropped.
    ///
    /// # Errors
    /// A directory that cannot be moved.
    pub async fn release(&self, container_id: &str) -> Result<(), StoreError> {
        let (inner, id) = (self.inner.clone(), container_id.to_owned());
        blocking(move || inner.release(&id)).await?
    }
}

impl Inner {
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The image that a normalised tag or repo digest points to.
    pub(crate) fn named(&self, name: &str) -> Option<Arc<Image>> {
        self.read().named(name)
    }

    /// A config or manifest, whose digest is right.
    pub(crate) fn document(&self, digest: Digest) -> io::Result<Vec<u8>> {
        let bytes = std::fs::read(self.root.join("blobs").join(digest.hex()))?;
        let found = Digest::of(&bytes);
        if found == digest {
            return Ok(bytes);
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, format!("it has digest {found}")))
    }

    pub(crate) fn options(&self) -> &StoreOptions {
        &self.options
    }

    pub(crate) fn container_dir(&self, id: &str) -> PathBuf {
        self.root.join("containers").join(id)
    }
}

/// Runs blocking work beside the async runtime; it runs to its end even if nobody waits.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| StoreError::Stopped)
}

#[cfg(test)]
mod tests;
