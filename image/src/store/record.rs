//! One image, as it is kept in a file and as it is shown. Knows the file's format and nothing of where it
//! lies.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::platform::Platform;

/// The only version of the record so far.
pub(super) const VERSION: u32 = 1;

/// An image, whole and verified.
#[derive(Debug, Clone)]
pub struct Image {
    /// Digest of the config blob: the image id.
    pub id: Digest,
    /// `name:tag` of every tag that points here, sorted.
    pub tags: Vec<String>,
    /// `name@digest` of every manifest or index that led here, sorted.
    pub repo_digests: Vec<String>,
    /// Compressed bytes of config and layers.
    pub size: u64,
    /// How to run it.
    pub config: ImageConfig,
    /// What it was built for.
    pub platform: Platform,
    /// Bottom first.
    pub layers: Vec<Layer>,
    /// Whether the client's garbage collection must leave it alone.
    pub pinned: bool,
    pub(super) record: Record,
}

impl Image {
    /// Digests of the manifests under which it came.
    pub(crate) fn manifests(&self) -> &[Digest] {
        &self.record.manifests
    }
}

/// One unpacked layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Names this layer together with all below it.
    pub chain_id: Digest,
    /// Digest of its uncompressed tar stream.
    pub diff_id: Digest,
    /// Its overlayfs diff directory.
    pub directory: PathBuf,
    /// Disk space in bytes.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) version: u32,
    pub(super) id: Digest,
    pub(super) tags: Vec<TagRecord>,
    pub(super) repo_digests: Vec<String>,
    pub(super) size: u64,
    /// Manifests under which the image came; their blobs go with it.
    pub(super) manifests: Vec<Digest>,
    pub(super) layers: Vec<LayerRecord>,
    /// Fields of a later version survive an older daemon.
    #[serde(flatten)]
    pub(super) rest: serde_json::Map<String, serde_json::Value>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct TagRecord {
    pub(super) name: String,
    /// When it was given, nanoseconds since the epoch. A power cut between the two records of a moved tag
    /// leaves it on both images: the later one has it.
    pub(super) since: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct LayerRecord {
    pub(super) chain_id: Digest,
    pub(super) diff_id: Digest,
    pub(super) bytes: u64,
    pub(super) inodes: u64,
}

/// What a container's directory says about the layers below it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct LeaseRecord {
    pub(super) version: u32,
    pub(super) layers: Vec<LayerRecord>,
    /// Layers of images that are mounted in the container, each once.
    #[serde(default)]
    pub(super) volumes: Vec<LayerRecord>,
}

impl From<&Layer> for LayerRecord {
    fn from(layer: &Layer) -> Self {
        Self { chain_id: layer.chain_id, diff_id: layer.diff_id, bytes: layer.bytes, inodes: layer.inodes }
    }
}
