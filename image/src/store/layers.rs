//! Directories of layers, containers and unfinished work. Purpose: what is visible is whole, what is not
//! needed goes away in one step. Knows nothing of what is in them.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Uid};

use super::index::Held;
use super::record::{LayerRecord, LeaseRecord, VERSION};
use super::{Image, Inner, Layer, StoreError};
use crate::digest::Digest;
use crate::rooted;
use crate::unpack::{Recorder, Unpacked};

/// The directory of a layer: 130 bits of its chain id in base 32. Short, because the options of a
/// mount(2) call with 128 layers must fit into one page, and still too long to find two chains for.
pub(crate) fn layer_name(chain_id: &Digest) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut bits = chain_id.as_bytes().iter().flat_map(|byte| (0..8).rev().map(move |i| byte >> i & 1));
    let mut digit = || (0..5).fold(0_usize, |sum, _| sum * 2 + usize::from(bits.next().unwrap_or(0)));
    (0..26).map(|_| char::from(ALPHABET[digit()])).collect()
}

/// A directory in `staging` that is deleted unless it was renamed away.
#[derive(Debug)]
pub(crate) struct Staging {
    path: PathBuf,
    /// Where deletion happens: the store outlives it.
    inner: Arc<Inner>,
}

impl Staging {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Beside the directory: what its archive has beside the content of files.
    pub(crate) fn split(&self) -> PathBuf {
        self.path.with_extension("split")
    }

    /// A recorder to that file; without one the layer is as good, but can be neither proven nor exported.
    pub(crate) fn recorder(&self) -> Option<Recorder> {
        let recorder = std::fs::File::create(self.split()).and_then(Recorder::new);
        recorder.inspect_err(|e| tracing::warn!(error = %e, "layer's archive is not put away")).ok()
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        self.inner.delete_later(vec![self.path.clone(), self.split()]);
    }
}

/// Keeps layers from being collected while a pull or an import needs them.
#[derive(Debug)]
pub(crate) struct Lease {
    inner: Arc<Inner>,
    chains: Vec<Digest>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.inner.write();
        for chain in &self.chains {
            if let Some(count) = state.leases.get_mut(chain) {
                *count -= 1;
                if *count == 0 {
                    state.leases.remove(chain);
                }
            }
        }
    }
}

impl Inner {
    /// A fresh directory in `staging`, with the mode of a root directory that nobody describes.
    pub(crate) fn stage(self: &Arc<Self>) -> Result<Staging, StoreError> {
        let path = self.staging_path();
        std::fs::create_dir(&path).map_err(StoreError::io("create", &path))?;
        let staging = Staging { path, inner: self.clone() };
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&staging.path, mode)
            .map_err(StoreError::io("set mode of", &staging.path))?;
        Ok(staging)
    }

    fn staging_path(&self) -> PathBuf {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        self.root.join("staging").join(serial.to_string())
    }

    pub(crate) fn lease(self: &Arc<Self>, chains: &[Digest]) -> Lease {
        let mut state = self.write();
        for chain in chains {
            *state.leases.entry(*chain).or_insert(0) += 1;
        }
        Lease { inner: self.clone(), chains: chains.to_vec() }
    }

    /// The lock under which one layer is unpacked. A waiter finds the layer there afterwards.
    pub(crate) fn layer_lock(&self, chain: Digest) -> Arc<tokio::sync::Mutex<()>> {
        self.layer_locks.of(chain)
    }

    /// Bytes and inodes of a layer that is there.
    pub(crate) fn layer(&self, chain: &Digest) -> Option<(u64, u64)> {
        self.read().layers.get(chain).copied()
    }

    pub(crate) fn layer_path(&self, chain: &Digest) -> PathBuf {
        self.root.join("layers").join(layer_name(chain))
    }

    /// Where the layer's [`Staging::split`] is, if it was complete.
    pub(crate) fn split_path(&self, chain: &Digest) -> PathBuf {
        self.root.join("splits").join(format!("{}.zst", layer_name(chain)))
    }

    /// Puts a complete split of the layer in place and returns its size.
    pub(crate) fn commit_split(&self, staging: &Staging, chain: &Digest) -> Result<u64, StoreError> {
        let path = self.split_path(chain);
        std::fs::rename(staging.split(), &path).map_err(StoreError::io("put in place", &path))?;
        Ok(path.metadata().map_or(0, |m| m.len()))
    }

    /// Makes an unpacked directory the layer `chain`, and returns its bytes and inodes.
    pub(crate) fn commit_layer(
        &self,
        staging: &Staging,
        chain: Digest,
        unpacked: &Unpacked,
    ) -> Result<(u64, u64), StoreError> {
        let path = self.layer_path(&chain);
        if let Some(usage) = self.layer(&chain) {
            return Ok(usage);
        }
        let mut usage = (unpacked.bytes, unpacked.inodes);
        if unpacked.recorded {
            let size = self.commit_split(staging, &chain)?;
            usage = (usage.0 + size.next_multiple_of(4096), usage.1 + 1);
        }
        self.note_fresh(chain, usage)?;
        let mut state = self.write();
        if let Some(usage) = state.layers.get(&chain) {
            return Ok(*usage);
        }
        std::fs::rename(&staging.path, &path).map_err(StoreError::io("commit layer", &path))?;
        state.layers.insert(chain, usage);
        state.fresh.insert(chain, Instant::now());
        Ok(usage)
    }

    /// Moves garbage layers aside in one step each, then deletes them in the background.
    pub(super) fn sweep(self: &Arc<Self>) {
        let (mut moved, mut gone) = (Vec::new(), Vec::new());
        {
            let mut state = self.write();
            for chain in state.garbage() {
                let (from, to) = (self.layer_path(&chain), self.staging_path());
                match std::fs::rename(&from, &to) {
                    Ok(()) => moved.push(to),
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    Err(e) => {
                        tracing::warn!(layer = %from.display(), error = %e, "unused layer could not be removed");
                        continue;
                    }
                }
                state.layers.remove(&chain);
                // One that stays is found as a stray at the next start.
                let _ = std::fs::remove_file(self.split_path(&chain));
                gone.push(chain);
            }
        }
        self.settle_fresh(gone.into_iter());
        self.delete_later(moved);
    }

    /// Deletes directories in `staging`, beside the caller where there is an async runtime.
    pub(super) fn delete_later(self: &Arc<Self>, paths: Vec<PathBuf>) {
        if paths.is_empty() {
            return;
        }
        let work = move || paths.iter().for_each(|path| delete(path));
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(work)),
            Err(_) => work(),
        }
    }

    /// Makes the directories of a container on top of `image`, and holds the layers of `volumes` for it.
    pub(crate) fn prepare(&self, image: &Image, volumes: &[Arc<Image>], id: &str) -> Result<(), StoreError> {
        check_container_id(id)?;
        {
            let mut state = self.write();
            if state.containers.contains_key(id) {
                return Err(StoreError::ContainerExists(id.to_owned()));
            }
            // Checked and leased in one step, so no removal of an image can come in between.
            let gone = |image: &&Image| !image.layers.iter().all(|l| state.layers.contains_key(&l.chain_id));
            if let Some(image) = std::iter::once(image).chain(volumes.iter().map(Arc::as_ref)).find(gone) {
                return Err(StoreError::Gone(image.id));
            }
            let held = Held { layers: image.layers.clone(), volumes: union(volumes) };
            state.containers.insert(id.to_owned(), held);
        }
        let made = self.make_container(image, volumes, id);
        if made.is_err() {
            let dir = self.container_dir(id);
            delete(&dir);
            self.write().containers.remove(id);
        } else if let Ok(nothing) = self.measure(id) {
            self.written.begin(id, nothing);
        }
        made
    }

    fn make_container(&self, image: &Image, volumes: &[Arc<Image>], id: &str) -> Result<(), StoreError> {
        let dir = self.container_dir(id);
        let make = |path: &Path| {
            std::fs::DirBuilder::new().mode(0o700).create(path).map_err(StoreError::io("create", path))
        };
        make(&dir)?;
        let layers = image.layers.iter().map(LayerRecord::from).collect();
        let volumes = union(volumes).iter().map(LayerRecord::from).collect();
        let lease = dir.join("lease.json");
        let record = LeaseRecord { version: VERSION, layers, volumes };
        let text = serde_json::to_vec(&record).map_err(io::Error::from);
        text.and_then(|text| std::fs::write(&lease, text)).map_err(StoreError::io("write", &lease))?;
        let upper = dir.join("upper");
        make(&upper)?;
        make(&dir.join("work"))?;
        // The root of the merged tree shows the upper directory's owner and mode.
        like_top_layer(image.layers.last(), &upper).map_err(StoreError::io("set owner and mode of", &upper))
    }

    pub(super) fn release(self: &Arc<Self>, id: &str) -> Result<(), StoreError> {
        check_container_id(id)?;
        let (from, to) = (self.container_dir(id), self.staging_path());
        match std::fs::rename(&from, &to) {
            Ok(()) => self.delete_later(vec![to]),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(StoreError::Io { stage: "release", path: from, source }),
        }
        if self.write().containers.remove(id).is_some() {
            self.written.forget(id);
            self.sweep();
        }
        Ok(())
    }
}

/// The layers of several images, each once.
fn union(images: &[Arc<Image>]) -> Vec<Layer> {
    let mut all: Vec<Layer> = Vec::new();
    for layer in images.iter().flat_map(|image| &image.layers) {
        if !all.contains(layer) {
            all.push(layer.clone());
        }
    }
    all
}

fn like_top_layer(top: Option<&Layer>, upper: &Path) -> io::Result<()> {
    let (mode, owner) = match top {
        None => (0o755, None),
        Some(layer) => {
            let stat = rustix::fs::statat(CWD, &layer.directory, AtFlags::SYMLINK_NOFOLLOW)?;
            debug_assert_eq!(rooted::file_type(&stat), FileType::Directory);
            (stat.st_mode & 0o7777, Some((stat.st_uid, stat.st_gid)))
        }
    };
    if let Some((uid, gid)) = owner {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        rustix::fs::chownat(CWD, upper, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(rustix::fs::chmodat(CWD, upper, Mode::from_raw_mode(mode), AtFlags::empty())?)
}

/// Ids become directory names, so their grammar is checked here whoever made them.
pub(crate) fn check_container_id(id: &str) -> Result<(), StoreError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    let fine = (1..=128).contains(&id.len()) && id.bytes().all(plain) && !id.starts_with('.');
    if fine { Ok(()) } else { Err(StoreError::ContainerId(id.chars().take(150).collect())) }
}

/// Deletes a tree of the store; what resists is reported and stays for the next open.
pub(super) fn delete(path: &Path) {
    use std::os::fd::AsFd;
    use std::os::unix::ffi::OsStrExt;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return };
    let result = rooted::open_dir(parent).and_then(|dir| rooted::remove_tree(dir.as_fd(), name.as_bytes()));
    if let Err(e) = result
        && e.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), error = %e, "left-over directory could not be deleted");
    }
}
