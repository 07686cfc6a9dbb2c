//! Opening a store. Purpose: what the disk holds becomes the memory's state, what is half-done goes away,
//! what cannot be understood is reported and left alone.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use super::index::{Held, State};
use super::layers::{delete, layer_name};
use super::record::{LayerRecord, LeaseRecord, Record, VERSION};
use super::{Image, Layer, StoreError, StoreOptions, downloads, fresh};
use crate::config::{ConfigError, ParsedConfig};
use crate::digest::{Digest, DigestError};

#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error("read")]
    Io(#[from] io::Error),
    #[error("record")]
    Json(#[from] serde_json::Error),
    #[error("record has version {0}, this program knows {VERSION}")]
    Version(u32),
    #[error("name")]
    Digest(#[from] DigestError),
    #[error("config blob has digest {0}")]
    Altered(Digest),
    #[error("config blob")]
    Config(#[from] ConfigError),
    #[error("layer directory {0} is gone")]
    LayerGone(String),
}

pub(super) fn make_directories(root: &Path) -> Result<(), StoreError> {
    let make = |path: &Path, mode| {
        let result = std::fs::DirBuilder::new().mode(mode).recursive(true).create(path);
        result.map_err(StoreError::io("create", path))
    };
    // Layers hold set-user-id programs: nobody but root gets in.
    make(root, 0o700)?;
    for name in ["images", "blobs", "layers", "staging", "containers", "downloads", "fresh", "splits"] {
        make(&root.join(name), 0o700)?;
    }
    make(&root.join("empty"), 0o755)
}

pub(super) fn load(root: &Path, options: &StoreOptions) -> Result<State, StoreError> {
    let mut state = State::default();
    for entry in names(&root.join("staging"))? {
        delete(&root.join("staging").join(entry));
    }
    let mut images = HashMap::new();
    for file in names(&root.join("images"))? {
        let path = root.join("images").join(&file);
        if file.starts_with('.') {
            // A record that a crash kept from being renamed.
            delete(&path);
            continue;
        }
        match read_image(root, &file, options) {
            Ok(image) => drop(images.insert(image.id, image)),
            Err(e) => {
                let error = &e as &dyn std::error::Error;
                tracing::error!(record = %path.display(), error, "image record is unusable");
            }
        }
    }
    settle_tags(&mut images);
    for image in images.into_values() {
        for layer in &image.layers {
            state.layers.insert(layer.chain_id, (layer.bytes, layer.inodes));
        }
        state.insert(Arc::new(image));
    }
    load_containers(root, &mut state)?;
    fresh::load(root, names(&root.join("fresh"))?, &mut state);
    downloads::expire(root, |_| true);
    sweep_strays(root, &mut state)?;
    Ok(state)
}

pub(super) fn to_layer(root: &Path, record: &LayerRecord) -> Layer {
    Layer {
        chain_id: record.chain_id,
        diff_id: record.diff_id,
        directory: root.join("layers").join(layer_name(&record.chain_id)),
        bytes: record.bytes,
        inodes: record.inodes,
    }
}

/// An image from its record and config.
pub(super) fn to_image(root: &Path, record: Record, config: ParsedConfig, options: &StoreOptions) -> Image {
    let mut tags: Vec<String> = record.tags.iter().map(|tag| tag.name.clone()).collect();
    tags.sort_unstable();
    let names = || tags.iter().chain(&record.repo_digests);
    let pinned = options.pinned.iter().any(|pin| names().any(|name| *name == pin.key()));
    Image {
        id: record.id,
        repo_digests: record.repo_digests.clone(),
        size: record.size,
        config: config.config,
        platform: config.platform,
        layers: record.layers.iter().map(|l| to_layer(root, l)).collect(),
        pinned,
        tags,
        record,
    }
}

fn read_image(root: &Path, file: &str, options: &StoreOptions) -> Result<Image, LoadError> {
    let id = Digest::from_hex(file.strip_suffix(".json").unwrap_or(file))?;
    let text = std::fs::read(root.join("images").join(file))?;
    let record: Record = serde_json::from_slice(&text)?;
    if record.version != VERSION {
        return Err(LoadError::Version(record.version));
    }
    let config = std::fs::read(root.join("blobs").join(id.hex()))?;
    if Digest::of(&config) != id || record.id != id {
        return Err(LoadError::Altered(Digest::of(&config)));
    }
    let image = to_image(root, record, ParsedConfig::parse(&config)?, options);
    match image.layers.iter().find(|layer| !layer.directory.is_dir()) {
        Some(gone) => Err(LoadError::LayerGone(gone.directory.display().to_string())),
        None => Ok(image),
    }
}

/// A tag that a power cut left on two images stays on the one that got it last.
fn settle_tags(images: &mut HashMap<Digest, Image>) {
    let mut latest: HashMap<String, (u64, Digest)> = HashMap::new();
    for image in images.values() {
        for tag in &image.record.tags {
            let claim = (tag.since, image.id);
            let best = latest.entry(tag.name.clone()).or_insert(claim);
            *best = claim.max(*best);
        }
    }
    for image in images.values_mut() {
        let id = image.id;
        image.record.tags.retain(|tag| latest.get(&tag.name).is_some_and(|(_, owner)| *owner == id));
        image.tags.retain(|tag| latest.get(tag).is_some_and(|(_, owner)| *owner == id));
    }
}

fn load_containers(root: &Path, state: &mut State) -> Result<(), StoreError> {
    for id in names(&root.join("containers"))? {
        let path = root.join("containers").join(&id).join("lease.json");
        let lease = std::fs::read(&path)
            .map_err(LoadError::from)
            .and_then(|text| Ok(serde_json::from_slice::<LeaseRecord>(&text)?));
        let layers = |records: &[LayerRecord]| records.iter().map(|l| to_layer(root, l)).collect();
        let held = match lease {
            Ok(lease) => Held { layers: layers(&lease.layers), volumes: layers(&lease.volumes) },
            Err(e) => {
                // A create that died half-way: listed, so that recovery releases it.
                let error = &e as &dyn std::error::Error;
                tracing::warn!(lease = %path.display(), error, "container has no readable lease");
                Held::default()
            }
        };
        let all = held.layers.iter().chain(&held.volumes);
        for layer in all.filter(|layer| layer.directory.is_dir()) {
            state.layers.entry(layer.chain_id).or_insert((layer.bytes, layer.inodes));
        }
        state.containers.insert(id, held);
    }
    Ok(())
}

/// Deletes layers and blobs that nothing names: they may be incomplete on disk after a power cut.
fn sweep_strays(root: &Path, state: &mut State) -> Result<(), StoreError> {
    let layers: HashSet<String> = state.layers.keys().map(layer_name).collect();
    for name in names(&root.join("layers"))? {
        if !layers.contains(&name) {
            delete(&root.join("layers").join(name));
        }
    }
    for name in names(&root.join("splits"))? {
        if !name.strip_suffix(".zst").is_some_and(|name| layers.contains(name)) {
            delete(&root.join("splits").join(name));
        }
    }
    // The blobs of records that cannot be read stay with them.
    let unreadable = names(&root.join("images"))?.len() != state.images.len();
    let blobs: HashSet<String> = state
        .images
        .values()
        .flat_map(|i| i.record.manifests.iter().chain([&i.id]))
        .map(Digest::hex)
        .collect();
    for name in names(&root.join("blobs"))? {
        let path = root.join("blobs").join(&name);
        if !blobs.contains(&name) && !unreadable {
            delete(&path);
        } else {
            let size = path.metadata().map_err(StoreError::io("read", &path))?.len();
            state.documents = (state.documents.0 + size, state.documents.1 + 1);
        }
    }
    Ok(())
}

fn names(dir: &Path) -> Result<Vec<String>, StoreError> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(StoreError::io("list", dir))? {
        let entry = entry.map_err(StoreError::io("list", dir))?;
        match entry.file_name().into_string() {
            Ok(name) => names.push(name),
            Err(odd) => tracing::warn!(dir = %dir.display(), name = ?odd, "foreign file in the image store"),
        }
    }
    names.sort_unstable();
    Ok(names)
}
