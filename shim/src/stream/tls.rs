//! TLS of the streaming server: a certificate chain and its key, from files.
//!
//! Must not know: connections.

use std::{path::Path, sync::Arc};

use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use crate::error::{RequestError, Stage};

/// Reads the files; both are looked at once, when the daemon starts.
///
/// # Errors
/// A file cannot be read or holds something else; certificate and key do not belong together.
pub(super) fn settings(certificates: &Path, key: &Path) -> Result<Arc<ServerConfig>, RequestError> {
    let at = |what: &str, path: &Path| format!("stream.{what} {}", path.display());
    let chain = CertificateDer::pem_file_iter(certificates)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .stage(at("tls_certificate", certificates))?;
    let key = PrivateKeyDer::from_pem_file(key).stage(at("tls_key", key))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .stage("TLS")?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .stage(at("tls_certificate", certificates))?;
    Ok(Arc::new(config))
}
