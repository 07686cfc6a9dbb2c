//! Whether an image may be used here at all (containers-policy.json(5)). Purpose: the operator's file says
//! for each registry, repository or name whether its images are refused, taken as they are, or need a
//! signature; the answer comes before anything is unpacked. Knows no layers.
//!
//! A file that says something which is not supported is an error, and so is the pull: a restriction that is
//! not understood is not left out.

mod signature;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

pub(crate) use signature::Signed;

use crate::digest::Digest;
use crate::reference::Reference;
use crate::registry::{Registry, RegistryError};

/// Larger than any such file that is not a mistake.
const FILE_MAX: u64 = 1 << 20;

/// Why an image may not be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The file cannot be read.
    #[error("{}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The file is not what it should be, or wants what is not supported.
    #[error("{}", path.display())]
    Syntax {
        /// Which.
        path: PathBuf,
        /// Cause.
        #[source]
        source: serde_json::Error,
    },
    /// A requirement that cannot be meant.
    #[error("{}: {scope}: {reason}", path.display())]
    Requirement {
        /// Which file.
        path: PathBuf,
        /// Where in it.
        scope: String,
        /// What is wrong.
        reason: String,
    },
    /// The policy refuses it.
    #[error("rejected by the policy for {0}")]
    Rejected(String),
    /// No signature fulfils the policy.
    #[error("the policy for {scope} needs a signature by {key}: {reason}")]
    Signature {
        /// Where in the file.
        scope: String,
        /// Which key.
        key: String,
        /// Why there is none: each signature, and what is wrong with it.
        reason: String,
    },
    /// The signatures cannot be fetched.
    #[error("signatures")]
    Registry(#[source] RegistryError),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    default: Vec<Requirement>,
    #[serde(default)]
    transports: BTreeMap<String, BTreeMap<String, Vec<Requirement>>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", deny_unknown_fields)]
enum Requirement {
    // With braces, so that fields which are not known are refused here as well.
    InsecureAcceptAnything {},
    Reject {},
    #[serde(rename_all = "camelCase")]
    SigstoreSigned {
        key_path: Option<PathBuf>,
        key_paths: Option<Vec<PathBuf>>,
        key_data: Option<String>,
        key_datas: Option<Vec<String>>,
        signed_identity: Option<Identity>,
    },
}

/// Which name in a signature counts for the name that is pulled.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", deny_unknown_fields)]
enum Identity {
    MatchExact {},
    MatchRepoDigestOrExact {},
    MatchRepository {},
    #[serde(rename_all = "camelCase")]
    ExactReference {
        docker_reference: String,
    },
    #[serde(rename_all = "camelCase")]
    ExactRepository {
        docker_repository: String,
    },
    #[serde(rename = "remapIdentity", rename_all = "camelCase")]
    Remap {
        prefix: String,
        signed_prefix: String,
    },
}

/// The requirements for one image, all of which must be fulfilled.
#[derive(Debug)]
pub(crate) struct Policy {
    path: PathBuf,
    /// Where in the file.
    scope: String,
    requirements: Vec<Requirement>,
}

impl Policy {
    /// What the file at `path` says about `reference`. `None` without a file: an empty path, or none there.
    ///
    /// An image that is refused whatever it is, is refused here.
    pub(crate) fn for_reference(path: &Path, reference: &Reference) -> Result<Option<Self>, PolicyError> {
        Self::find(path, "docker", &scopes(reference))
    }

    /// What it says about an archive at `archive`, of `transport` `oci` or `docker-archive`. Archives carry no
    /// signatures, so what asks for one is refused.
    pub(crate) fn for_archive(path: &Path, transport: &str, archive: &Path) -> Result<(), PolicyError> {
        let scopes = [archive.display().to_string(), String::new()];
        let Some(policy) = Self::find(path, transport, &scopes)? else { return Ok(()) };
        match policy.requirements.iter().any(|r| matches!(r, Requirement::SigstoreSigned { .. })) {
            true => Err(PolicyError::Rejected(format!("{}: archives carry no signatures", policy.scope))),
            false => Ok(()),
        }
    }

    fn find(path: &Path, transport: &str, scopes: &[String]) -> Result<Option<Self>, PolicyError> {
        let failed = |source| PolicyError::Read { path: path.to_owned(), source };
        if path.as_os_str().is_empty() {
            return Ok(None);
        }
        let bytes = match std::fs::metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Ok(meta) if meta.len() > FILE_MAX => return Err(failed(io::ErrorKind::FileTooLarge.into())),
            _ => std::fs::read(path).map_err(failed)?,
        };
        let file: File = serde_json::from_slice(&bytes)
            .map_err(|source| PolicyError::Syntax { path: path.to_owned(), source })?;
        let of_transport = file.transports.get(transport);
        let found = of_transport.and_then(|table| {
            scopes.iter().find_map(|scope| table.get(scope).map(|list| (scope.as_str(), list)))
        });
        let (scope, requirements) = match found {
            Some(("", list)) => (format!("{transport} images"), list),
            Some((scope, list)) => (scope.to_owned(), list),
            None => ("all images".to_owned(), &file.default),
        };
        let policy = Self { path: path.to_owned(), scope, requirements: requirements.clone() };
        if policy.requirements.is_empty() {
            return Err(policy.bad("no requirement is none that can be fulfilled"));
        }
        if policy.requirements.iter().any(|r| matches!(r, Requirement::Reject {})) {
            return Err(PolicyError::Rejected(policy.scope));
        }
        Ok(Some(policy))
    }

    /// Checks the signatures that the policy asks for. `digests` are those of the image that a signature may
    /// be for: of its index and of its manifest.
    pub(crate) async fn check(
        &self,
        registry: &Registry,
        reference: &Reference,
        digests: &[Digest],
    ) -> Result<(), PolicyError> {
        for requirement in &self.requirements {
            if let Requirement::SigstoreSigned { signed_identity, .. } = requirement {
                let identity = signed_identity.clone().unwrap_or(Identity::MatchRepoDigestOrExact {});
                let signatures = signature::fetch(registry, digests).await.map_err(PolicyError::Registry)?;
                self.signed(requirement, &identity, &signatures, reference)?;
            }
        }
        Ok(())
    }

    /// Whether one of the signatures is by one of the keys and for this name.
    fn signed(
        &self,
        requirement: &Requirement,
        identity: &Identity,
        signatures: &[Signed],
        reference: &Reference,
    ) -> Result<(), PolicyError> {
        let keys = self.keys(requirement)?;
        let mut reasons = Vec::new();
        for signed in signatures {
            let checked = signed.check(keys.iter().map(|(_, key)| key)).and_then(|name| {
                if identity.accepts(&name, reference) {
                    Ok(())
                } else {
                    Err(format!("is for {name:?}, which does not stand for {reference}"))
                }
            });
            match checked {
                Ok(()) => return Ok(()),
                Err(reason) => reasons.push(format!("signature {}: {reason}", signed.digest)),
            }
        }
        let reason = if reasons.is_empty() { "it has none".to_owned() } else { reasons.join("; ") };
        let key = keys.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(" or ");
        Err(PolicyError::Signature { scope: self.scope.clone(), key, reason })
    }

    /// Names and keys; exactly one of the fields has to be there.
    fn keys(&self, requirement: &Requirement) -> Result<Vec<(String, signature::Key)>, PolicyError> {
        let Requirement::SigstoreSigned { key_path, key_paths, key_data, key_datas, .. } = requirement else {
            return Ok(Vec::new());
        };
        let files = key_path.iter().chain(key_paths.iter().flatten());
        let texts = key_data.iter().chain(key_datas.iter().flatten());
        let fields = [key_path.is_some(), key_paths.is_some(), key_data.is_some(), key_datas.is_some()];
        if fields.iter().filter(|there| **there).count() != 1 {
            return Err(self.bad("sigstoreSigned needs one of keyPath, keyPaths, keyData and keyDatas"));
        }
        let mut keys = Vec::new();
        for file in files {
            let name = file.display().to_string();
            let text =
                std::fs::read(file).map_err(|source| PolicyError::Read { path: file.clone(), source })?;
            keys.push((
                name.clone(),
                signature::Key::from_pem(&text).map_err(|e| self.bad(&format!("{name}: {e}")))?,
            ));
        }
        for text in texts {
            let key = signature::Key::from_base64(text).map_err(|e| self.bad(&format!("keyData: {e}")))?;
            keys.push(("the policy's keyData".to_owned(), key));
        }
        if keys.is_empty() { Err(self.bad("sigstoreSigned without a key")) } else { Ok(keys) }
    }

    fn bad(&self, reason: &str) -> PolicyError {
        PolicyError::Requirement {
            path: self.path.clone(),
            scope: self.scope.clone(),
            reason: reason.to_owned(),
        }
    }
}

impl Identity {
    /// Whether a signature for `signed` counts for `pulled`.
    fn accepts(&self, signed: &str, pulled: &Reference) -> bool {
        let Ok(name) = Reference::parse(signed) else { return false };
        // A name without tag and digest stands for its repository, and for no tag that it does not name.
        let has_tag = signed.rsplit('/').next().is_some_and(|last| last.contains([':', '@']));
        let exact = |wanted: &Reference| has_tag && name == *wanted;
        match self {
            Self::MatchExact {} => exact(pulled),
            Self::MatchRepoDigestOrExact {} if pulled.digest().is_some() => name.name() == pulled.name(),
            Self::MatchRepoDigestOrExact {} => exact(pulled),
            Self::MatchRepository {} => name.name() == pulled.name(),
            Self::ExactReference { docker_reference } => {
                Reference::parse(docker_reference).is_ok_and(|wanted| exact(&wanted))
            }
            Self::ExactRepository { docker_repository } => {
                Reference::parse(docker_repository).is_ok_and(|wanted| name.name() == wanted.name())
            }
            Self::Remap { prefix, signed_prefix } => {
                let full = pulled.name();
                let rest = full.strip_prefix(prefix.as_str());
                let Some(rest) = rest.filter(|r| r.is_empty() || r.starts_with('/')) else {
                    return Self::MatchRepoDigestOrExact {}.accepts(signed, pulled);
                };
                let tag = pulled.tag().filter(|_| pulled.digest().is_none());
                let mapped = match tag {
                    Some(tag) => format!("{signed_prefix}{rest}:{tag}"),
                    None => format!("{signed_prefix}{rest}"),
                };
                let Ok(mapped) = Reference::parse(&mapped) else { return false };
                if tag.is_some() { exact(&mapped) } else { name.name() == mapped.name() }
            }
        }
    }
}

/// The scopes that a reference is in, the narrowest first.
fn scopes(reference: &Reference) -> Vec<String> {
    let name = reference.name();
    let mut out = vec![match reference.digest() {
        Some(digest) => format!("{name}@{digest}"),
        None => reference.to_string(),
    }];
    let mut at = name.as_str();
    loop {
        out.push(at.to_owned());
        match at.rsplit_once('/') {
            Some((above, _)) => at = above,
            None => break,
        }
    }
    // `*.example.com` stands for every host below it; a port is no part of that.
    let mut host = reference.domain().split(':').next().unwrap_or_default();
    while let Some((_, above)) = host.split_once('.') {
        out.push(format!("*.{above}"));
        host = above;
    }
    out.push(String::new());
    out
}

#[cfg(test)]
mod tests;
