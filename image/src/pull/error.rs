//! Why a pull failed, and what a client has to tell apart.

use std::io;

use crate::config::{ConfigError, ParsedConfig};
use crate::digest::Digest;
use crate::document::{Descriptor, DocumentError};
use crate::platform::Platform;
use crate::policy::PolicyError;
use crate::registry::{Answer, RegistryError};
use crate::store::StoreError;
use crate::unpack::UnpackError;

/// The class of a [`PullError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The registry knows no such image (404).
    NotFound,
    /// The registry wants other credentials (401, 403).
    Unauthorized,
    /// No endpoint could be reached or all were busy; CRI's `RegistryUnavailable`.
    RegistryUnavailable,
    /// Content does not have the digest it was asked for by, or not the declared size.
    DigestMismatch,
    /// A layer's uncompressed content is not what the image's config names.
    DiffIdMismatch,
    /// The image is for other platforms.
    NoPlatform,
    /// The image exceeds a limit.
    TooBig,
    /// The registry's configuration on this host is wrong.
    Configuration,
    /// The image or the registry's answer is malformed or not supported.
    Malformed,
    /// The operator's policy refuses the image, or cannot be read.
    Policy,
    /// This host's disk or store failed.
    Storage,
}

/// Why a pull failed. Every variant names the reference.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// No endpoint delivered something that is needed.
    #[error("pull {reference}")]
    Registry {
        /// What was pulled.
        reference: String,
        /// Which thing, and every endpoint's answer.
        #[source]
        source: RegistryError,
    },
    /// The operator's policy does not let it be used.
    #[error("pull {reference}: policy")]
    Policy {
        /// What was pulled.
        reference: String,
        /// Why.
        #[source]
        source: PolicyError,
    },
    /// A manifest or index cannot be used.
    #[error("pull {reference}: manifest {digest}")]
    Document {
        /// What was pulled.
        reference: String,
        /// Of the document.
        digest: Digest,
        /// Why.
        #[source]
        source: DocumentError,
    },
    /// Indexes that point to indexes.
    #[error("pull {reference}: index {digest} is nested too deep")]
    Nested {
        /// What was pulled.
        reference: String,
        /// Of the outermost index.
        digest: Digest,
    },
    /// The index has nothing for this machine.
    #[error("pull {reference}: no match for platform in manifest: it has {available}, wanted is {wanted}")]
    NoPlatform {
        /// What was pulled.
        reference: String,
        /// This machine's.
        wanted: Platform,
        /// What there is.
        available: String,
    },
    /// The config is for another platform than the index says, or than this machine.
    #[error(
        "pull {reference}: no match for platform in manifest: its config is for {found}, wanted is {wanted}"
    )]
    WrongPlatform {
        /// What was pulled.
        reference: String,
        /// This machine's.
        wanted: Box<Platform>,
        /// The config's.
        found: Box<Platform>,
    },
    /// The config cannot be used.
    #[error("pull {reference}: config {digest}")]
    Config {
        /// What was pulled.
        reference: String,
        /// Of the config.
        digest: Digest,
        /// Why.
        #[source]
        source: ConfigError,
    },
    /// Manifest and config disagree.
    #[error("pull {reference}: manifest has {manifest} layers, config has {config}")]
    LayerCount {
        /// What was pulled.
        reference: String,
        /// Layers in the manifest.
        manifest: usize,
        /// Diff ids in the config.
        config: usize,
    },
    /// A layer cannot be unpacked.
    #[error("pull {reference}: layer {layer}")]
    Layer {
        /// What was pulled.
        reference: String,
        /// Digest of the blob.
        layer: Digest,
        /// Why.
        #[source]
        source: Box<UnpackError>,
    },
    /// A layer does not fit on those below it.
    #[error("pull {reference}: layer {layer}: merge with the layers below")]
    Merge {
        /// What was pulled.
        reference: String,
        /// Digest of the blob.
        layer: Digest,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The store failed.
    #[error("pull {reference}")]
    Store {
        /// What was pulled.
        reference: String,
        /// Why.
        #[source]
        source: StoreError,
    },
}

impl PullError {
    /// What a client has to tell apart.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Registry { source, .. } => match (source, source.last_answer()) {
                (RegistryError::Hosts(_) | RegistryError::AuthFile(_), _) | (_, None) => {
                    ErrorKind::Configuration
                }
                (_, Some(Answer::NotFound)) => ErrorKind::NotFound,
                (_, Some(Answer::Denied)) => ErrorKind::Unauthorized,
                (_, Some(Answer::Unavailable | Answer::Unreachable | Answer::Broken | Answer::Silent)) => {
                    ErrorKind::RegistryUnavailable
                }
                (_, Some(Answer::WrongDigest)) => ErrorKind::DigestMismatch,
                (_, Some(Answer::Invalid | Answer::BadRequest)) => ErrorKind::Malformed,
            },
            Self::Policy { .. } => ErrorKind::Policy,
            Self::NoPlatform { .. } | Self::WrongPlatform { .. } => ErrorKind::NoPlatform,
            Self::Document { source: DocumentError::TooBig(_) | DocumentError::TooManyLayers(_), .. } => {
                ErrorKind::TooBig
            }
            Self::Document { .. } | Self::Nested { .. } | Self::Config { .. } | Self::LayerCount { .. } => {
                ErrorKind::Malformed
            }
            Self::Layer { source, .. } => match &**source {
                UnpackError::Digest { .. } | UnpackError::Size { .. } => ErrorKind::DigestMismatch,
                UnpackError::DiffId { .. } => ErrorKind::DiffIdMismatch,
                UnpackError::TooBig { .. } => ErrorKind::TooBig,
                UnpackError::Apply(crate::unpack::ApplyError::Io { .. }) => ErrorKind::Storage,
                _ => ErrorKind::Malformed,
            },
            Self::Merge { source, .. } if source.kind() == io::ErrorKind::InvalidData => ErrorKind::Malformed,
            Self::Merge { .. } | Self::Store { .. } => ErrorKind::Storage,
        }
    }

    /// Whether the same pull may succeed later, so that what it has is worth keeping.
    pub(super) fn may_pass(&self) -> bool {
        let is_full = |e: &io::Error| {
            use io::ErrorKind::{OutOfMemory, QuotaExceeded, StorageFull};
            matches!(e.kind(), StorageFull | QuotaExceeded | OutOfMemory)
        };
        match self {
            Self::Registry { .. } => self.kind() == ErrorKind::RegistryUnavailable,
            Self::Layer { source, .. } => match &**source {
                UnpackError::Input(_) => true,
                UnpackError::Apply(crate::unpack::ApplyError::Io { source, .. }) => is_full(source),
                _ => false,
            },
            Self::Merge { source, .. } => is_full(source),
            Self::Store { .. } => true,
            _ => false,
        }
    }

    /// The error with all its causes on one line.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut at = std::error::Error::source(self);
        while let Some(cause) = at {
            text = format!("{text}: {cause}");
            at = cause.source();
        }
        text
    }
}

/// The reference being pulled, for the errors.
pub(super) struct Place(pub(super) String);

impl Place {
    pub(super) fn registry(&self, source: RegistryError) -> PullError {
        PullError::Registry { reference: self.0.clone(), source }
    }

    pub(super) fn policy(&self, source: PolicyError) -> PullError {
        PullError::Policy { reference: self.0.clone(), source }
    }

    pub(super) fn store(&self, source: StoreError) -> PullError {
        PullError::Store { reference: self.0.clone(), source }
    }

    pub(super) fn document(&self, digest: Digest, source: DocumentError) -> PullError {
        PullError::Document { reference: self.0.clone(), digest, source }
    }

    pub(super) fn config(&self, digest: Digest, source: ConfigError) -> PullError {
        PullError::Config { reference: self.0.clone(), digest, source }
    }

    pub(super) fn nested(&self, digest: Digest) -> PullError {
        PullError::Nested { reference: self.0.clone(), digest }
    }

    pub(super) fn layer(&self, layer: Digest, source: UnpackError) -> PullError {
        PullError::Layer { reference: self.0.clone(), layer, source: Box::new(source) }
    }

    pub(super) fn merge(&self, layer: Digest, source: io::Error) -> PullError {
        PullError::Merge { reference: self.0.clone(), layer, source }
    }

    pub(super) fn no_platform(&self, wanted: &Platform, list: &[Descriptor]) -> PullError {
        let known = list.iter().filter_map(|d| d.platform.as_ref()).filter(|p| p.os != "unknown");
        let known: Vec<String> = known.take(20).map(ToString::to_string).collect();
        let available = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        PullError::NoPlatform { reference: self.0.clone(), wanted: wanted.clone(), available }
    }

    /// Whether config, manifest and machine agree.
    pub(super) fn check(
        &self,
        config: &ParsedConfig,
        layers: usize,
        wanted: &Platform,
    ) -> Result<(), PullError> {
        if !wanted.runs(&config.platform) {
            let (wanted, found) = (Box::new(wanted.clone()), Box::new(config.platform.clone()));
            return Err(PullError::WrongPlatform { reference: self.0.clone(), wanted, found });
        }
        if config.diff_ids.len() != layers {
            let config = config.diff_ids.len();
            return Err(PullError::LayerCount { reference: self.0.clone(), manifest: layers, config });
        }
        Ok(())
    }
}
