//! Manifests and indexes. Purpose: bytes whose digest was checked become a typed document, or an error
//! that says what is wrong with them. Knows nothing of where they came from.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::digest::{Digest, DigestError};
use crate::platform::Platform;

/// No JSON document of an image may be larger (CVE-2023-25153).
pub(crate) const DOCUMENT_MAX: u64 = 8 << 20;
/// Overlayfs takes no more lower directories than this in one page of mount options.
pub(crate) const LAYERS_MAX: usize = 128;

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// What a client says it understands, in the order of preference.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json, */*;q=0.1";

const LAYER_TYPES: [&str; 9] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    // Non-distributable layers are asked for at the registry only; their urls are never followed.
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];

/// A checked OCI descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    /// Bytes.
    pub(crate) size: u64,
    pub(crate) platform: Option<Platform>,
    pub(crate) annotations: BTreeMap<String, String>,
}

/// A manifest or an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Document {
    /// A list of manifests, one a platform.
    Index(Vec<Descriptor>),
    /// One image.
    Manifest {
        /// The configuration.
        config: Descriptor,
        /// Bottom first.
        layers: Vec<Descriptor>,
    },
}

/// Why a manifest, an index or an image configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// Not JSON, or not the JSON that was expected.
    #[error("malformed document")]
    Json(#[from] serde_json::Error),
    /// The same bytes could be read as an index and as a manifest (CVE-2021-41190).
    #[error("ambiguous document: it has manifests as well as config or layers")]
    Ambiguous,
    /// The document says another type than the registry or its fields do.
    #[error("document of type {found:?} where {expected:?} was announced")]
    TypeMismatch {
        /// What the registry or the descriptor said.
        expected: String,
        /// What the document says or is.
        found: String,
    },
    /// Docker schema 1 and everything unknown.
    #[error("manifest type {0:?} is not supported")]
    Unsupported(String),
    /// A manifest whose config is not an image configuration.
    #[error("not a container image: its config has the type {0:?}")]
    Artifact(String),
    /// A layer in a format that cannot be unpacked.
    #[error("layer type {0:?} is not supported")]
    LayerType(String),
    /// More layers than an overlay can have.
    #[error("{0} layers are more than the 128 that are supported")]
    TooManyLayers(usize),
    /// A digest that is none.
    #[error("descriptor")]
    Digest(#[from] DigestError),
    /// A size that cannot be one.
    #[error("descriptor {digest} has the impossible size {size}")]
    Size {
        /// Which content.
        digest: Digest,
        /// What was declared.
        size: i64,
    },
    /// Larger than any JSON document of an image may be.
    #[error("document of {0} bytes is larger than 8 MiB")]
    TooBig(u64),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: i64,
    platform: Option<RawPlatform>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct RawPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: i64,
    media_type: Option<String>,
    manifests: Option<Vec<RawDescriptor>>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
}

impl RawDescriptor {
    fn check(self) -> Result<Descriptor, DocumentError> {
        let digest = self.digest.parse()?;
        let size = u64::try_from(self.size).map_err(|_| DocumentError::Size { digest, size: self.size })?;
        let platform =
            self.platform.map(|p| Platform { os: p.os, architecture: p.architecture, variant: p.variant });
        let annotations = self.annotations.unwrap_or_default();
        Ok(Descriptor { media_type: self.media_type, digest, size, platform, annotations })
    }
}

/// Whether `media_type` is one this module can read.
pub(crate) fn is_document_type(media_type: &str) -> bool {
    [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST].contains(&media_type)
}

impl Document {
    /// Reads a document. `announced` is the type from the descriptor or the Content-Type header, if any.
    pub(crate) fn parse(bytes: &[u8], announced: Option<&str>) -> Result<Self, DocumentError> {
        if bytes.len() as u64 > DOCUMENT_MAX {
            return Err(DocumentError::TooBig(bytes.len() as u64));
        }
        let raw: RawDocument = serde_json::from_slice(bytes)?;
        let announced = announced.map(essence).filter(|t| is_document_type(t) || t.contains("manifest.v1"));
        let own = raw.media_type.as_deref().filter(|t| !t.is_empty());
        if let (Some(expected), Some(found)) = (announced, own)
            && expected != found
        {
            return Err(DocumentError::TypeMismatch { expected: expected.into(), found: found.into() });
        }
        if raw.schema_version != 2 {
            return Err(DocumentError::Unsupported(format!("schema version {}", raw.schema_version)));
        }
        match (raw.manifests, raw.config, raw.layers) {
            (Some(_), Some(_), _) | (Some(_), _, Some(_)) => Err(DocumentError::Ambiguous),
            (Some(manifests), None, None) => {
                expect_type(own.or(announced), &[OCI_INDEX, DOCKER_LIST])?;
                Ok(Self::Index(manifests.into_iter().map(RawDescriptor::check).collect::<Result<_, _>>()?))
            }
            (None, Some(config), layers) => {
                expect_type(own.or(announced), &[OCI_MANIFEST, DOCKER_MANIFEST])?;
                manifest(config, layers.unwrap_or_default())
            }
            (None, None, _) => {
                Err(DocumentError::Unsupported(own.or(announced).unwrap_or("without config").to_owned()))
            }
        }
    }
}

fn expect_type(stated: Option<&str>, kinds: &[&str]) -> Result<(), DocumentError> {
    match stated {
        Some(stated) if !kinds.contains(&stated) => {
            Err(DocumentError::TypeMismatch { expected: stated.to_owned(), found: kinds[0].to_owned() })
        }
        _ => Ok(()),
    }
}

fn manifest(config: RawDescriptor, layers: Vec<RawDescriptor>) -> Result<Document, DocumentError> {
    let config = config.check()?;
    if config.media_type != OCI_CONFIG && config.media_type != DOCKER_CONFIG {
        return Err(DocumentError::Artifact(config.media_type));
    }
    if config.size > DOCUMENT_MAX {
        return Err(DocumentError::TooBig(config.size));
    }
    if layers.len() > LAYERS_MAX {
        return Err(DocumentError::TooManyLayers(layers.len()));
    }
    let layers = layers.into_iter().map(RawDescriptor::check).collect::<Result<Vec<_>, _>>()?;
    if let Some(odd) = layers.iter().find(|l| !LAYER_TYPES.contains(&l.media_type.as_str())) {
        return Err(DocumentError::LayerType(odd.media_type.clone()));
    }
    Ok(Document::Manifest { config, layers })
}

/// A media type without its parameters.
fn essence(media_type: &str) -> &str {
    media_type.split(';').next().unwrap_or_default().trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn descriptor(media_type: &str) -> String {
        format!(r#"{{"mediaType":"{media_type}","digest":"{D}","size":3}}"#)
    }

    #[test]
    fn i01_a_document_that_is_both_is_refused() {
        let both = format!(
            r#"{{"schemaVersion":2,"manifests":[{}],"layers":[],"config":{}}}"#,
            descriptor(OCI_MANIFEST),
            descriptor(OCI_CONFIG)
        );
        assert!(matches!(Document::parse(both.as_bytes(), None), Err(DocumentError::Ambiguous)));
    }

    #[test]
    fn i01_a_type_that_contradicts_the_header_is_refused() {
        let index = format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[]}}"#);
        assert!(matches!(
            Document::parse(index.as_bytes(), Some(OCI_MANIFEST)),
            Err(DocumentError::TypeMismatch { .. })
        ));
        let untyped = r#"{"schemaVersion":2,"manifests":[]}"#;
        assert!(matches!(
            Document::parse(untyped.as_bytes(), Some(DOCKER_MANIFEST)),
            Err(DocumentError::TypeMismatch { .. })
        ));
        assert!(Document::parse(index.as_bytes(), Some("text/plain; charset=utf-8")).is_ok());
    }

    #[test]
    fn schema_1_artifacts_and_odd_layers_are_named() {
        let v1 = r#"{"schemaVersion":1,"name":"x","fsLayers":[]}"#;
        assert!(matches!(Document::parse(v1.as_bytes(), None), Err(DocumentError::Unsupported(_))));
        let artifact = format!(r#"{{"schemaVersion":2,"config":{},"layers":[]}}"#, descriptor("text/x"));
        assert!(matches!(Document::parse(artifact.as_bytes(), None), Err(DocumentError::Artifact(_))));
        let layer = format!(
            r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#,
            descriptor(OCI_CONFIG),
            descriptor("application/x-sh")
        );
        assert!(matches!(Document::parse(layer.as_bytes(), None), Err(DocumentError::LayerType(_))));
    }

    #[test]
    fn i03_impossible_sizes_are_refused() {
        let text = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"{OCI_CONFIG}","digest":"{D}","size":-1}},"layers":[]}}"#
        );
        assert!(matches!(Document::parse(text.as_bytes(), None), Err(DocumentError::Size { size: -1, .. })));
    }

    #[test]
    fn i07_too_many_layers_and_deep_nesting_are_refused() {
        for count in [129, 2000, 40_000] {
            let layers = vec![descriptor(LAYER_TYPES[1]); count].join(",");
            let text =
                format!(r#"{{"schemaVersion":2,"config":{},"layers":[{layers}]}}"#, descriptor(OCI_CONFIG));
            let parsed = Document::parse(text.as_bytes(), None);
            assert!(matches!(parsed, Err(DocumentError::TooManyLayers(n)) if n == count), "{parsed:?}");
        }
        for (open, close) in [("[", "]"), (r#"{"x":"#, "}")] {
            let (open, close) = (open.repeat(1_000_000), close.repeat(1_000_000));
            let deep = format!(r#"{{"schemaVersion":2,"x":{open}1{close}}}"#);
            // What nobody asks for is passed over without recursion, and then nothing is left of this document.
            assert!(Document::parse(deep.as_bytes(), None).is_err());
            assert!(crate::config::ParsedConfig::parse(deep.as_bytes()).is_err());
            for field in ["annotations", "manifests", "config", "layers"] {
                let deep = deep.replacen("\"x\"", &format!("\"{field}\""), 1);
                let parsed = Document::parse(deep.as_bytes(), None);
                assert!(parsed.is_err(), "{field}: {parsed:?}");
            }
        }
    }

    #[test]
    fn i07_documents_are_refused_by_their_size_before_they_are_read() {
        let limit = usize::try_from(DOCUMENT_MAX).unwrap();
        // A hundred megabytes of annotations, as much as of manifests, and as much of nothing.
        let annotations =
            format!(r#"{{"schemaVersion":2,"annotations":{{"a":"{}"}}}}"#, "x".repeat(100 << 20));
        let manifests = format!("{},", descriptor(OCI_MANIFEST)).repeat(800_000);
        for text in [annotations, manifests, " ".repeat(100 << 20)] {
            let parsed = Document::parse(text.as_bytes(), None);
            assert!(matches!(parsed, Err(DocumentError::TooBig(n)) if n >= 100 << 20), "{parsed:?}");
            assert!(crate::config::ParsedConfig::parse(text.as_bytes()).is_err());
        }
        // What is as large as it may be is read.
        let most = vec![descriptor(OCI_MANIFEST); limit / (descriptor(OCI_MANIFEST).len() + 1) - 1].join(",");
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{most}]}}"#);
        assert!(
            matches!(Document::parse(index.as_bytes(), None), Ok(Document::Index(list)) if list.len() > 40_000)
        );
    }
}
