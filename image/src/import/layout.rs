//! OCI image layouts (image-spec, image-layout.md).

use super::source::{Source, blob_name};
use super::{Candidate, Import, ImportError};
use crate::digest::Digest;
use crate::document::{Descriptor, Document};
use crate::reference::Reference;

const CONTAINERD_NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const NESTING_MAX: usize = 4;

/// The images of `index.json`: each of its entries, or the one for this platform where the entries are
/// variants of one image.
pub(super) fn candidates(import: &Import, source: &Source) -> Result<Vec<Candidate>, ImportError> {
    let bytes = source.read("index.json")?;
    let Document::Index(entries) = parse(import, "index.json", &bytes, None)? else {
        return Err(ImportError::Format { path: import.path.clone() });
    };
    let wanted = &import.options.platform;
    let mut out = Vec::new();
    for entry in &entries {
        // An entry that states a platform is for nobody else.
        if entry.platform.as_ref().is_some_and(|platform| !wanted.runs(platform)) {
            continue;
        }
        let Some(mut candidate) = candidate(import, source, entry)? else { continue };
        candidate.tags = names(import, entry)?;
        let repositories = candidate.tags.iter().map(|name| name.pinned_to(entry.digest));
        candidate.repo_digests = repositories.collect();
        candidate.repo_digests.sort_unstable();
        candidate.repo_digests.dedup();
        out.push(candidate);
    }
    Ok(out)
}

/// What an entry leads to, `None` if it has nothing for this platform.
fn candidate(import: &Import, source: &Source, entry: &Descriptor) -> Result<Option<Candidate>, ImportError> {
    let (mut digest, mut announced) = (entry.digest, entry.media_type.clone());
    for _ in 0..NESTING_MAX {
        let manifest = source.read_blob(digest)?;
        match parse(import, &blob_name(digest), &manifest, Some(&announced))? {
            Document::Index(list) => {
                let Some(next) = import.options.platform.choose(&list) else { return Ok(None) };
                (digest, announced) = (next.digest, next.media_type.clone());
            }
            Document::Manifest { config, layers } => {
                let config_name = blob_name(config.digest);
                let bytes = source.read_blob(config.digest)?;
                if !import.options.platform.runs(&import.parse(&config_name, &bytes)?.platform) {
                    return Ok(None);
                }
                let layers = layers.iter().map(|l| (blob_name(l.digest), Some((l.digest, l.size)))).collect();
                return Ok(Some(Candidate {
                    config_name,
                    config: bytes,
                    manifest: Some(manifest),
                    layers,
                    tags: Vec::new(),
                    repo_digests: Vec::new(),
                }));
            }
        }
    }
    Err(too_deep(import, digest))
}

fn too_deep(import: &Import, digest: Digest) -> ImportError {
    let source = crate::document::DocumentError::Unsupported("index nested too deep".to_owned());
    ImportError::Document { path: import.path.clone(), name: blob_name(digest), source }
}

fn parse(
    import: &Import,
    name: &str,
    bytes: &[u8],
    announced: Option<&str>,
) -> Result<Document, ImportError> {
    Document::parse(bytes, announced.filter(|t| !t.is_empty())).map_err(|source| ImportError::Document {
        path: import.path.clone(),
        name: name.to_owned(),
        source,
    })
}

/// The names of an entry. A bare tag, as `ref.name` often is, needs a name from the options; without one
/// the image has no tag.
fn names(import: &Import, entry: &Descriptor) -> Result<Vec<Reference>, ImportError> {
    let annotation =
        |key| entry.annotations.get(key).map(String::as_str).filter(|name: &&str| !name.is_empty());
    if let Some(name) = annotation(CONTAINERD_NAME) {
        return Ok(vec![import.reference(name)?]);
    }
    let base = import.options.name.as_ref();
    match (annotation(REF_NAME), base) {
        (Some(name), _) if name.contains(['/', ':']) => Ok(vec![import.reference(name)?]),
        (Some(tag), Some(base)) => Ok(vec![import.reference(&format!("{}:{tag}", base.name()))?]),
        (None, Some(base)) => Ok(vec![base.clone()]),
        (Some(_) | None, None) => Ok(Vec::new()),
    }
}
