//! Signatures as cosign leaves them in a registry: an image under the tag `sha256-<digest>.sig`, each layer
//! a statement, its signature in an annotation. Purpose: fetch them in bounded number and size, and check a
//! statement with a key. Knows no policy.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{ECDSA_P256_SHA256_ASN1, ED25519, UnparsedPublicKey, VerificationAlgorithm};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;

use crate::digest::Digest;
use crate::registry::{Registry, RegistryError};

const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
const STATEMENT: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const TYPE: &str = "cosign container image signature";
/// More signatures of one image than anybody makes.
const SIGNATURES_MAX: usize = 32;
const STATEMENT_MAX: u64 = 64 << 10;

/// What stands in front of the key itself in a SubjectPublicKeyInfo (RFC 5480, RFC 8410).
const P256: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
const EDWARDS: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// A public key.
pub(super) struct Key {
    algorithm: &'static dyn VerificationAlgorithm,
    bytes: Vec<u8>,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

impl Key {
    pub(super) fn from_pem(text: &[u8]) -> Result<Self, String> {
        let der =
            SubjectPublicKeyInfoDer::from_pem_slice(text).map_err(|_| "no PEM public key".to_owned())?;
        let with = |prefix: &[u8], algorithm: &'static dyn VerificationAlgorithm, length: usize| {
            let bytes = der.strip_prefix(prefix).filter(|bytes| bytes.len() == length)?;
            Some(Self { algorithm, bytes: bytes.to_vec() })
        };
        with(&P256, &ECDSA_P256_SHA256_ASN1, 65)
            .or_else(|| with(&EDWARDS, &ED25519, 32))
            .ok_or_else(|| "a key of another kind than ECDSA P-256 and Ed25519 is not supported".to_owned())
    }

    pub(super) fn from_base64(text: &str) -> Result<Self, String> {
        Self::from_pem(&STANDARD.decode(text.trim()).map_err(|_| "not base64".to_owned())?)
    }

    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(self.algorithm, &self.bytes).verify(message, signature).is_ok()
    }
}

/// A statement that was fetched, and what is said to be its signature.
#[derive(Debug)]
pub(crate) struct Signed {
    /// Of the statement.
    pub(super) digest: Digest,
    statement: Vec<u8>,
    signature: String,
    /// The image under whose digest it was found.
    image: Digest,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    layers: Vec<Layer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Statement {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    identity: Identity,
    image: Image,
    r#type: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Identity {
    docker_reference: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Image {
    docker_manifest_digest: String,
}

/// All signatures that the registry has for these digests. None is no error.
pub(super) async fn fetch(registry: &Registry, digests: &[Digest]) -> Result<Vec<Signed>, RegistryError> {
    let mut out = Vec::new();
    for image in digests {
        let tag = format!("sha256-{}.sig", image.hex());
        let document = match registry.resolve(&tag).await {
            Err(e) if e.is_not_found() => continue,
            Ok(resolved) => match resolved.document {
                Some(document) => document,
                None => registry.manifest(resolved.digest, None).await?,
            },
            Err(e) => return Err(e),
        };
        // Whatever else lies under that tag is no signature.
        let Ok(manifest) = serde_json::from_slice::<Manifest>(&document.bytes) else { continue };
        for layer in manifest.layers.into_iter().take(SIGNATURES_MAX) {
            let (Ok(digest), Some(signature)) = (layer.digest.parse(), layer.annotations.get(SIGNATURE))
            else {
                continue;
            };
            if layer.media_type != STATEMENT || layer.size > STATEMENT_MAX {
                continue;
            }
            let statement = registry.config(digest, layer.size).await?;
            out.push(Signed { digest, statement, signature: signature.clone(), image: *image });
        }
    }
    Ok(out)
}

impl Signed {
    /// The name that the statement is about, if it is signed by one of the keys and about this image.
    pub(super) fn check<'a>(&self, keys: impl Iterator<Item = &'a Key>) -> Result<String, String> {
        let signature = STANDARD.decode(&self.signature).map_err(|_| "is not base64".to_owned())?;
        if !{ keys }.any(|key| key.verifies(&self.statement, &signature)) {
            return Err("is by another key".to_owned());
        }
        // Only now is it worth reading.
        let statement: Statement = serde_json::from_slice(&self.statement)
            .map_err(|_| "is of no statement that is known".to_owned())?;
        let critical = statement.critical;
        if critical.r#type != TYPE {
            return Err(format!("is a {:?}", critical.r#type));
        }
        if critical.image.docker_manifest_digest != self.image.to_string() {
            return Err(format!("is for {}", critical.image.docker_manifest_digest));
        }
        Ok(critical.identity.docker_reference)
    }
}
