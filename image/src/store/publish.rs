//! Making an image visible and taking it away. Purpose: one place for the order of writes that a power
//! cut cannot break, and for the rule that a tag belongs to one image.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use super::load::to_image;
use super::record::{LayerRecord, Record, TagRecord, VERSION};
use super::{Image, Inner, Layer, StoreError};
use crate::config::ParsedConfig;
use crate::digest::Digest;
use crate::rooted;

/// An image whose layers are all committed.
#[derive(Debug)]
pub(crate) struct NewImage {
    pub(crate) config: Vec<u8>,
    pub(crate) parsed: ParsedConfig,
    /// As it came; archives of `docker save` have none.
    pub(crate) manifest: Option<Vec<u8>>,
    pub(crate) tag: Option<String>,
    pub(crate) repo_digest: Option<String>,
    pub(crate) layers: Vec<Layer>,
    pub(crate) size: u64,
}

impl Inner {
    /// Makes the image visible, durably. Blocks.
    pub(crate) fn publish(self: &Arc<Self>, new: NewImage) -> Result<Arc<Image>, StoreError> {
        let id = Digest::of(&new.config);
        // A record must never survive a power cut that its layers did not. If the image was there before,
        // they have been synced with it.
        if !self.read().images.contains_key(&id) {
            self.make_durable(&new.layers)?;
        }
        let serialised = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let present = {
            let state = self.read();
            if !new.layers.iter().all(|layer| state.layers.contains_key(&layer.chain_id)) {
                return Err(StoreError::Gone(id));
            }
            state.images.get(&id).cloned()
        };
        let mut record = match &present {
            Some(image) => image.record.clone(),
            None => Record {
                version: VERSION,
                id,
                tags: Vec::new(),
                repo_digests: Vec::new(),
                size: new.size,
                manifests: Vec::new(),
                layers: new.layers.iter().map(LayerRecord::from).collect(),
                rest: serde_json::Map::new(),
            },
        };
        self.store_blob(&new.config)?;
        if let Some(manifest) = &new.manifest {
            let digest = self.store_blob(manifest)?;
            add(&mut record.manifests, digest);
        }
        if let Some(repo_digest) = new.repo_digest {
            add(&mut record.repo_digests, repo_digest);
        }
        if let Some(name) = &new.tag
            && !record.tags.iter().any(|tag| tag.name == *name)
        {
            record.tags.push(TagRecord { name: name.clone(), since: now() });
        }
        let image = Arc::new(to_image(&self.root, record, new.parsed, &self.options));
        self.write_record(&image)?;
        let bereft = new.tag.and_then(|tag| self.without_tag(&tag, id));
        if let Some(old) = &bereft {
            self.write_record(old)?;
        }
        let mut state = self.write();
        if let Some(old) = bereft {
            state.insert(Arc::new(old));
        }
        state.insert(image.clone());
        drop(state);
        drop(serialised);
        self.settle_fresh(image.layers.iter().map(|layer| layer.chain_id));
        self.expire_kept();
        Ok(image)
    }

    /// Syncs the layers that no image names yet, and no other image's.
    fn make_durable(&self, layers: &[Layer]) -> Result<(), StoreError> {
        let (trees, splits): (Vec<_>, Vec<_>) = {
            let state = self.read();
            let named: HashSet<Digest> =
                state.images.values().flat_map(|image| &image.layers).map(|layer| layer.chain_id).collect();
            let new = layers.iter().map(|layer| layer.chain_id).filter(|chain| !named.contains(chain));
            new.map(|chain| (self.layer_path(&chain), self.split_path(&chain))).unzip()
        };
        super::durable::sync(&self.root, &self.root.join("staging"), &trees, &splits)
            .map_err(StoreError::io("sync layers in", &self.root))
    }

    /// Adds a tag or digest to an image that is there. The caller holds a lease on its layers.
    pub(crate) fn add_names(
        self: &Arc<Self>,
        image: &Image,
        tag: Option<String>,
        repo_digest: Option<String>,
    ) -> Result<Arc<Image>, StoreError> {
        let known = |list: &[String], name: &Option<String>| name.as_ref().is_none_or(|n| list.contains(n));
        if known(&image.tags, &tag)
            && known(&image.repo_digests, &repo_digest)
            && let Some(image) = self.read().images.get(&image.id)
        {
            return Ok(image.clone());
        }
        let path = self.root.join("blobs").join(image.id.hex());
        let config = std::fs::read(&path).map_err(StoreError::io("read", &path))?;
        let parsed = ParsedConfig::parse(&config).map_err(|e| {
            StoreError::io("read", &path)(std::io::Error::new(std::io::ErrorKind::InvalidData, e))
        })?;
        let (layers, size) = (image.layers.clone(), image.size);
        self.publish(NewImage { config, parsed, manifest: None, tag, repo_digest, layers, size })
    }

    /// The image other than `id` that has `tag`, without it.
    fn without_tag(&self, tag: &str, id: Digest) -> Option<Image> {
        let old = self.read().named(tag).filter(|old| old.id != id)?;
        let mut image = Image::clone(&old);
        image.tags.retain(|name| name != tag);
        image.record.tags.retain(|record| record.name != tag);
        Some(image)
    }

    pub(super) fn remove(self: &Arc<Self>, text: &str) -> Result<(), StoreError> {
        let serialised = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(image) = self.read().find(text)? else { return Ok(()) };
        let images = self.root.join("images");
        unlink(&images.join(format!("{}.json", image.id.hex())))?;
        rooted::sync_dir(&images).map_err(StoreError::io("sync", &images))?;
        self.write().remove(image.id);
        for blob in image.record.manifests.iter().chain([&image.id]) {
            let path = self.root.join("blobs").join(blob.hex());
            let size = path.metadata().map_or(0, |m| m.len());
            unlink(&path)?;
            let mut state = self.write();
            let (bytes, files) = state.documents;
            state.documents = (bytes.saturating_sub(size), files.saturating_sub(1));
        }
        drop(serialised);
        self.sweep();
        Ok(())
    }

    fn write_record(&self, image: &Image) -> Result<(), StoreError> {
        let dir = self.root.join("images");
        let name = format!("{}.json", image.id.hex());
        let text = serde_json::to_vec_pretty(&image.record).map_err(std::io::Error::from);
        text.and_then(|text| rooted::replace_durably(&dir, OsStr::new(&name), &text))
            .map_err(StoreError::io("write", &dir.join(&name)))
    }

    fn store_blob(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let digest = Digest::of(bytes);
        let dir = self.root.join("blobs");
        let path = dir.join(digest.hex());
        // What an unreadable record left here may be altered; equal content is not written again.
        if std::fs::read(&path).is_ok_and(|present| present == bytes) {
            return Ok(digest);
        }
        rooted::replace_durably(&dir, OsStr::new(&digest.hex()), bytes)
            .map_err(StoreError::io("write", &path))?;
        let mut state = self.write();
        state.documents = (state.documents.0 + bytes.len() as u64, state.documents.1 + 1);
        Ok(digest)
    }
}

fn add<T: Ord>(list: &mut Vec<T>, item: T) {
    if !list.contains(&item) {
        list.push(item);
        list.sort_unstable();
    }
}

fn unlink(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(StoreError::io("delete", path)(e)),
        _ => Ok(()),
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
