//! The tar that `docker save` writes: `manifest.json` lists configs, layers and names.

use serde::Deserialize;

use super::source::Source;
use super::{Candidate, Import, ImportError};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

pub(super) fn candidates(import: &Import, source: &Source) -> Result<Vec<Candidate>, ImportError> {
    let name = "manifest.json";
    let saved: Vec<Saved> = serde_json::from_slice(&source.read(name)?)
        .map_err(|source| ImportError::Json { path: import.path.clone(), name: name.to_owned(), source })?;
    let mut out = Vec::new();
    for image in saved {
        let config = source.read(&image.config)?;
        if !import.options.platform.runs(&import.parse(&image.config, &config)?.platform) {
            continue;
        }
        let tags = image.repo_tags.unwrap_or_default();
        let mut tags = tags.iter().map(|tag| import.reference(tag)).collect::<Result<Vec<_>, _>>()?;
        if tags.is_empty() {
            tags.extend(import.options.name.clone());
        }
        out.push(Candidate {
            config_name: image.config,
            config,
            manifest: None,
            layers: image.layers.unwrap_or_default().into_iter().map(|layer| (layer, None)).collect(),
            tags,
            repo_digests: Vec::new(),
        });
    }
    Ok(out)
}
