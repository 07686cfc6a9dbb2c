//! TLS settings of an endpoint. Purpose: files named in hosts.toml become a rustls configuration with the
//! ring provider. Knows nothing of HTTP.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

/// What hosts.toml says about TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct TlsSettings {
    /// Extra roots beside the system's.
    pub(super) ca: Vec<PathBuf>,
    /// Client certificate and key; the key may be in the same file.
    pub(super) client: Option<(PathBuf, PathBuf)>,
    /// Accept any certificate.
    pub(super) skip_verify: bool,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum TlsError {
    #[error("{}", path.display())]
    Pem {
        path: PathBuf,
        #[source]
        source: pem::Error,
    },
    #[error("{} has no certificate", .0.display())]
    Empty(PathBuf),
    #[error("certificate")]
    Rustls(#[from] rustls::Error),
}

impl TlsSettings {
    /// For another host than the one configured: it does not get the client's certificate.
    pub(super) fn for_strangers(&self) -> Self {
        Self { client: None, ..self.clone() }
    }

    pub(super) fn config(&self) -> Result<ClientConfig, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
        let builder = if self.skip_verify {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        } else {
            let mut roots = system_roots().clone();
            for path in &self.ca {
                for certificate in certificates(path)? {
                    roots.add(certificate)?;
                }
            }
            builder.with_root_certificates(roots)
        };
        Ok(match &self.client {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let key = PrivateKeyDer::from_pem_file(key)
                    .map_err(|source| TlsError::Pem { path: key.clone(), source })?;
                builder.with_client_auth_cert(certificates(cert)?, key)?
            }
        })
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = |source| TlsError::Pem { path: path.to_owned(), source };
    let all = CertificateDer::pem_file_iter(path).map_err(pem)?;
    let all = all
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| TlsError::Pem { path: path.to_owned(), source })?;
    if all.is_empty() { Err(TlsError::Empty(path.to_owned())) } else { Ok(all) }
}

/// The system's roots, read once. A host without any can still use plain HTTP and its own CA files.
fn system_roots() -> &'static RootCertStore {
    static ROOTS: OnceLock<RootCertStore> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let found = rustls_native_certs::load_native_certs();
        let errors: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
        let mut roots = RootCertStore::empty();
        let (usable, odd) = roots.add_parsable_certificates(found.certs);
        tracing::debug!(usable, odd, errors = ?errors, "system certificates were read");
        roots
    })
}

/// `skip_verify = true`: the operator wants any certificate to do. Signatures are still checked.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

impl From<TlsError> for io::Error {
    fn from(e: TlsError) -> Self {
        Self::new(io::ErrorKind::InvalidData, e)
    }
}
