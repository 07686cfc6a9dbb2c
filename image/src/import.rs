//! Images from local archives. Purpose: an OCI layout (directory or tar) or the output of `docker save`
//! becomes images in the store, with the same checks as a pull. Knows no network.

mod docker;
mod layout;
mod source;

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::{ConfigError, ParsedConfig, chain_ids};
use crate::digest::Digest;
use crate::document::DocumentError;
use crate::platform::Platform;
use crate::policy::{Policy, PolicyError};
use crate::pull::{limits, settle};
use crate::reference::{Reference, ReferenceError};
use crate::rooted::open_dir;
use crate::store::{Image, Inner, Layer, NewImage, Store, StoreError, blocking};
use crate::unpack::{ArchiveError, Expected, UnpackError, unpack_recording};
use source::Source;

/// How to import.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// What the images have to run on.
    pub platform: Platform,
    /// Name for images whose archive gives only a tag, or no name at all: `docker.io/library/app`. Its
    /// tag, if it states one, is used for an image without any.
    pub name: Option<Reference>,
    /// What images may be used, as containers-policy.json; it need not exist.
    pub policy: PathBuf,
}

impl Default for ImportOptions {
    fn default() -> Self {
        Self { platform: Platform::host(), name: None, policy: PathBuf::new() }
    }
}

/// Why an archive cannot be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The operator's policy does not let it be used.
    #[error("import {}: policy", path.display())]
    Policy {
        /// The archive.
        path: PathBuf,
        /// Why.
        #[source]
        source: PolicyError,
    },
    /// The archive cannot be read.
    #[error("import {}: {name}", path.display())]
    Read {
        /// The archive.
        path: PathBuf,
        /// Which part of it.
        name: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The tar around the image is malformed.
    #[error("import {}", path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// Cause.
        #[source]
        source: ArchiveError,
    },
    /// Neither an OCI layout nor a docker archive.
    #[error("import {}: neither an OCI layout nor a docker archive", path.display())]
    Format {
        /// The archive.
        path: PathBuf,
    },
    /// One of the archive's JSON files is not what it should be.
    #[error("import {}: {name}", path.display())]
    Json {
        /// The archive.
        path: PathBuf,
        /// Which file.
        name: String,
        /// Cause.
        #[source]
        source: serde_json::Error,
    },
    /// A manifest or index cannot be used.
    #[error("import {}: {name}", path.display())]
    Document {
        /// The archive.
        path: PathBuf,
        /// Which file.
        name: String,
        /// Cause.
        #[source]
        source: DocumentError,
    },
    /// A blob is not what its name says.
    #[error("import {}: {name} has digest {found}", path.display())]
    Digest {
        /// The archive.
        path: PathBuf,
        /// Which file.
        name: String,
        /// What it has.
        found: Digest,
    },
    /// A config cannot be used.
    #[error("import {}: {name}", path.display())]
    Config {
        /// The archive.
        path: PathBuf,
        /// Which file.
        name: String,
        /// Cause.
        #[source]
        source: ConfigError,
    },
    /// Nothing in it runs here.
    #[error("import {}: no match for platform {wanted}", path.display())]
    NoPlatform {
        /// The archive.
        path: PathBuf,
        /// This machine's.
        wanted: Platform,
    },
    /// Manifest and config disagree.
    #[error("import {}: {name}: {manifest} layers, but {config} diff ids", path.display())]
    LayerCount {
        /// The archive.
        path: PathBuf,
        /// Which config.
        name: String,
        /// Layers in the manifest.
        manifest: usize,
        /// Diff ids in the config.
        config: usize,
    },
    /// A name in the archive is no reference.
    #[error("import {}: name {name:?}", path.display())]
    Name {
        /// The archive.
        path: PathBuf,
        /// As in the archive.
        name: String,
        /// Cause.
        #[source]
        source: ReferenceError,
    },
    /// A layer cannot be unpacked.
    #[error("import {}: layer {name}", path.display())]
    Layer {
        /// The archive.
        path: PathBuf,
        /// Which file.
        name: String,
        /// Cause.
        #[source]
        source: UnpackError,
    },
    /// A layer does not fit on those below it.
    #[error("import {}: layer {name}: merge with the layers below", path.display())]
    Merge {
        /// The archive.
        path: PathBuf,
        /// Which file.
        name: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The store failed.
    #[error("import {}", path.display())]
    Store {
        /// The archive.
        path: PathBuf,
        /// Cause.
        #[source]
        source: StoreError,
    },
}

/// An image found in an archive, not unpacked yet.
struct Candidate {
    config_name: String,
    config: Vec<u8>,
    manifest: Option<Vec<u8>>,
    /// File in the archive, and digest and size if a manifest states them.
    layers: Vec<(String, Option<(Digest, u64)>)>,
    tags: Vec<Reference>,
    repo_digests: Vec<String>,
}

impl Store {
    /// Imports every image of an archive that runs on the given platform: an OCI layout directory, an OCI
    /// layout as tar, or the tar of `docker save`. Names come from the archive's annotations
    /// `io.containerd.image.name` and `org.opencontainers.image.ref.name`, or from its `RepoTags`.
    ///
    /// Cancel safety: the import goes on in the background.
    ///
    /// # Errors
    /// [`ImportError`], naming archive and part. Images imported before the error stay.
    pub async fn import(&self, path: &Path, options: ImportOptions) -> Result<Vec<Arc<Image>>, ImportError> {
        let (inner, archive) = (self.inner.clone(), path.to_owned());
        let imported = blocking(move || Import { inner, path: archive, options }.run()).await;
        imported.map_err(|source| ImportError::Store { path: path.to_owned(), source })?
    }
}

struct Import {
    inner: Arc<Inner>,
    path: PathBuf,
    options: ImportOptions,
}

impl Import {
    fn run(&self) -> Result<Vec<Arc<Image>>, ImportError> {
        let source = Source::open(&self.path)?;
        let transport = match (source.has("index.json"), source.has("manifest.json")) {
            (true, _) => "oci",
            (false, true) => "docker-archive",
            (false, false) => return Err(ImportError::Format { path: self.path.clone() }),
        };
        Policy::for_archive(&self.options.policy, transport, &self.path)
            .map_err(|source| ImportError::Policy { path: self.path.clone(), source })?;
        let candidates = match transport {
            "oci" => layout::candidates(self, &source)?,
            _ => docker::candidates(self, &source)?,
        };
        if candidates.is_empty() {
            let wanted = self.options.platform.clone();
            return Err(ImportError::NoPlatform { path: self.path.clone(), wanted });
        }
        candidates.into_iter().map(|candidate| self.image(&source, candidate)).collect()
    }

    fn image(&self, source: &Source, candidate: Candidate) -> Result<Arc<Image>, ImportError> {
        let parsed = self.parse(&candidate.config_name, &candidate.config)?;
        let (manifest, config) = (candidate.layers.len(), parsed.diff_ids.len());
        if manifest != config {
            let name = candidate.config_name;
            return Err(ImportError::LayerCount { path: self.path.clone(), name, manifest, config });
        }
        let chains = chain_ids(&parsed.diff_ids);
        let lease = self.inner.lease(&chains);
        let mut layers = Vec::new();
        let mut size = candidate.config.len() as u64;
        for (index, (name, blob)) in candidate.layers.iter().enumerate() {
            let more = match blob {
                Some((_, size)) => *size,
                None => source.size(name),
            };
            size = size.saturating_add(more);
            let expected = Expected { blob: *blob, diff_id: parsed.diff_ids[index] };
            layers.push(self.layer(source, name, expected, &chains[..=index])?);
        }
        let mut new = NewImage {
            config: candidate.config,
            parsed,
            manifest: candidate.manifest,
            tag: None,
            repo_digest: None,
            layers,
            size,
        };
        let (mut tags, mut digests) =
            (candidate.tags.iter().filter_map(Reference::tagged), candidate.repo_digests);
        (new.tag, new.repo_digest) = (tags.next(), digests.pop());
        let mut image = self.inner.publish(new).map_err(|e| self.store(e))?;
        for tag in tags {
            image = self.inner.add_names(&image, Some(tag), None).map_err(|e| self.store(e))?;
        }
        for digest in digests {
            image = self.inner.add_names(&image, None, Some(digest)).map_err(|e| self.store(e))?;
        }
        drop(lease);
        Ok(image)
    }

    fn parse(&self, name: &str, config: &[u8]) -> Result<ParsedConfig, ImportError> {
        ParsedConfig::parse(config).map_err(|source| ImportError::Config {
            path: self.path.clone(),
            name: name.to_owned(),
            source,
        })
    }

    fn layer(
        &self,
        source: &Source,
        name: &str,
        expected: Expected,
        chains: &[Digest],
    ) -> Result<Layer, ImportError> {
        let chain = chains[chains.len() - 1];
        let lock = self.inner.layer_lock(chain);
        let _unpacking = lock.blocking_lock();
        let usage = match self.inner.layer(&chain) {
            Some(usage) => usage,
            None => {
                let (path, name) = (|| self.path.clone(), || name.to_owned());
                let staging = self.inner.stage().map_err(|e| self.store(e))?;
                let merge = |source| ImportError::Merge { path: path(), name: name(), source };
                let dir = open_dir(staging.path()).map_err(merge)?;
                let input = source.open_file(&name())?;
                let unpacked =
                    unpack_recording(input, expected, dir.as_fd(), limits(&self.inner), staging.recorder());
                let unpacked =
                    unpacked.map_err(|source| ImportError::Layer { path: path(), name: name(), source })?;
                settle(&self.inner, &staging, chains, &unpacked).map_err(merge)?;
                self.inner.commit_layer(&staging, chain, &unpacked).map_err(|e| self.store(e))?
            }
        };
        let (bytes, inodes) = usage;
        let directory = self.inner.layer_path(&chain);
        Ok(Layer { chain_id: chain, diff_id: expected.diff_id, directory, bytes, inodes })
    }

    fn store(&self, source: StoreError) -> ImportError {
        ImportError::Store { path: self.path.clone(), source }
    }

    fn reference(&self, name: &str) -> Result<Reference, ImportError> {
        Reference::parse(name).map_err(|source| ImportError::Name {
            path: self.path.clone(),
            name: name.chars().take(300).collect(),
            source,
        })
    }
}

#[cfg(test)]
mod tests;
