//! The store's memory. Purpose: every read is answered from here. Does no I/O.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use super::fresh::KEPT_FOR;
use super::record::Image;
use super::{Layer, StoreError};
use crate::digest::Digest;
use crate::reference::{Reference, ReferenceError};

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(super) images: BTreeMap<Digest, Arc<Image>>,
    /// `name:tag` and `name@digest` of all images.
    names: HashMap<String, Digest>,
    /// Every layer in `layers/`, with its bytes and inodes.
    pub(super) layers: HashMap<Digest, (u64, u64)>,
    /// Layers that no image names yet, and since when they are in place.
    pub(super) fresh: HashMap<Digest, Instant>,
    /// Layers that running pulls need.
    pub(super) leases: HashMap<Digest, usize>,
    /// What containers need.
    pub(super) containers: BTreeMap<String, Held>,
    /// Bytes and inodes of configs, manifests and records.
    pub(super) documents: (u64, u64),
}

/// The layers that a container needs.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// Those it stands on, bottom first.
    pub(super) layers: Vec<Layer>,
    /// Those of images that are mounted in it.
    pub(super) volumes: Vec<Layer>,
}

impl State {
    pub(super) fn insert(&mut self, image: Arc<Image>) {
        if let Some(old) = self.images.insert(image.id, image.clone()) {
            self.forget_names(&old);
        }
        for name in image.tags.iter().chain(&image.repo_digests) {
            self.names.insert(name.clone(), image.id);
        }
    }

    pub(super) fn remove(&mut self, id: Digest) -> Option<Arc<Image>> {
        let image = self.images.remove(&id)?;
        self.forget_names(&image);
        Some(image)
    }

    fn forget_names(&mut self, image: &Image) {
        for name in image.tags.iter().chain(&image.repo_digests) {
            if self.names.get(name) == Some(&image.id) {
                self.names.remove(name);
            }
        }
    }

    /// The image that a tag or repo digest points to.
    pub(super) fn named(&self, name: &str) -> Option<Arc<Image>> {
        self.names.get(name).and_then(|id| self.images.get(id)).cloned()
    }

    pub(super) fn find(&self, text: &str) -> Result<Option<Arc<Image>>, StoreError> {
        if let Some(hex) = text.strip_prefix("sha256:") {
            if hex.len() >= 64 {
                return Ok(self.images.get(&text.parse::<Digest>()?).cloned());
            }
            return self.by_prefix(hex);
        }
        let reference = match Reference::parse(text) {
            Ok(reference) => reference,
            Err(ReferenceError::Id(hex)) => return Ok(self.images.get(&Digest::from_hex(&hex)?).cloned()),
            Err(e) => {
                let reason = match &e {
                    ReferenceError::Digest { source, .. } => source.to_string(),
                    other => other.to_string(),
                };
                return Err(StoreError::Name { text: text.chars().take(300).collect(), reason });
            }
        };
        if let Some(image) = self.named(&reference.key()) {
            return Ok(Some(image));
        }
        if is_hex(text) { self.by_prefix(text) } else { Ok(None) }
    }

    fn by_prefix(&self, prefix: &str) -> Result<Option<Arc<Image>>, StoreError> {
        if !is_hex(prefix) {
            let reason = "not hexadecimal digits".to_owned();
            return Err(StoreError::Name { text: prefix.to_owned(), reason });
        }
        let mut matches = self.images.values().filter(|image| image.id.hex().starts_with(prefix));
        match (matches.next(), matches.count()) {
            (found, 0) => Ok(found.cloned()),
            (_, more) => Err(StoreError::Ambiguous { prefix: prefix.to_owned(), count: more + 1 }),
        }
    }

    /// The layers a container stands on, bottom first.
    pub(crate) fn container_layers(&self, id: &str) -> Option<Vec<Layer>> {
        self.containers.get(id).map(|held| held.layers.clone())
    }

    pub(super) fn usage(&self) -> (u64, u64) {
        self.layers.values().fold(self.documents, |(bytes, inodes), (b, i)| (bytes + b, inodes + i))
    }

    /// Layers that no image, container or pull needs, and for which no pull is expected to come back.
    pub(super) fn garbage(&self) -> Vec<Digest> {
        let images = self.images.values().flat_map(|image| &image.layers);
        let containers = self.containers.values().flat_map(|held| held.layers.iter().chain(&held.volumes));
        let used: HashSet<Digest> =
            images.chain(containers).map(|l| l.chain_id).chain(self.leases.keys().copied()).collect();
        let awaited = |chain: &Digest| self.fresh.get(chain).is_some_and(|since| since.elapsed() < KEPT_FOR);
        self.layers.keys().filter(|chain| !used.contains(chain) && !awaited(chain)).copied().collect()
    }
}

fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}
