//! Pod manifests: YAML becomes types, strictly. Every problem is told with the path of its field: a typo with the name
//! that was probably meant, a field that exists in Kubernetes and not here as not supported.
//!
//! Must not know how a pod is run.

mod check;
pub(crate) mod expand;
pub(crate) mod model;
pub(crate) mod quantity;
mod read;

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};
use serde_json::Value;

pub(crate) use model::Pod;

/// Reads all pods of a file; `-` is standard input.
///
/// # Errors
/// The file cannot be read, is no YAML, or has anything in it that cannot be done; all of that is told.
pub(crate) fn load(path: &Path) -> Result<Vec<Pod>> {
    let shown = path.display();
    let text = if path == Path::new("-") {
        std::io::read_to_string(std::io::stdin()).context("read standard input")?
    } else {
        fs::read_to_string(path).with_context(|| format!("read {shown}"))?
    };
    match parse(&text) {
        Ok(pods) => Ok(pods),
        Err(problems) => bail!("{shown}: {}", problems.join("\n  ")),
    }
}

/// Reads all pods of a text.
///
/// # Errors
/// Everything that is wrong, one entry each.
pub(crate) fn parse(text: &str) -> Result<Vec<Pod>, Vec<String>> {
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(text).map_err(|error| vec![error.without_snippet().to_string()])?;
    let several = documents.len() > 1;
    let mut pods: Vec<Pod> = Vec::new();
    let mut problems = Vec::new();
    for (index, document) in documents.iter().enumerate().filter(|(_, document)| !document.is_null()) {
        let mut found = Vec::new();
        if let Some(pod) = pod(document, &mut found) {
            let (name, namespace) = (&pod.metadata.name, pod.namespace());
            if pods.iter().any(|other| other.metadata.name == *name && other.namespace() == namespace) {
                found.push(format!("metadata.name: the pod {namespace}/{name} is there twice"));
            }
            pods.push(pod);
        }
        let place = if several { format!("document {}: ", index + 1) } else { String::new() };
        problems.extend(found.into_iter().map(|problem| format!("{place}{problem}")));
    }
    if pods.is_empty() && problems.is_empty() {
        problems.push("there is no pod in it".to_owned());
    }
    if problems.is_empty() { Ok(pods) } else { Err(problems) }
}

fn pod(document: &Value, problems: &mut Vec<String>) -> Option<Pod> {
    // The fields of another kind would all be reported as unknown.
    let word = |key: &str| document[key].as_str().unwrap_or_default();
    match (word("apiVersion"), word("kind")) {
        ("v1", "Pod") => {}
        (version, kind) => {
            problems.push(format!(
                "kind: {kind:?} of apiVersion {version:?} is not supported; only Pod of v1 is"
            ));
            return None;
        }
    }
    let before = problems.len();
    let pod = read::root::<Pod>(document, problems);
    if problems.len() == before {
        check::pod(&pod, problems);
    }
    (problems.len() == before).then_some(pod)
}

#[cfg(test)]
mod tests;
