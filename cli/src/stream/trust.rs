//! TLS to the streaming server: which certificates are believed.
//!
//! The URL has come over the runtime's own socket, so whoever answers there knows whom it leads to. crisp names the file of
//! its certificate in its verbose status: a server that shows that very certificate is the right one, whoever has signed
//! it and whatever names stand in it. Any other has to be vouched for, for the URL's host, by the system's roots. Must not
//! know: what goes over the connection.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use crisp_proto::runtime::v1::StatusRequest;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use serde_json::Value;
use tokio_rustls::TlsConnector;

use crate::endpoint::{Asked, Clients};

/// Whom to believe when the streaming server speaks TLS.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Of a streaming server with TLS, believe what is signed by a certificate in FILE, and nothing else [default: the
    /// certificate that the runtime says it has, and what the system's roots have signed]
    #[arg(long, value_name = "FILE", env = "CRISP_TLS_CA")]
    tls_ca: Option<PathBuf>,
}

/// What it takes to open `url`; `None`: it is plain HTTP.
///
/// # Errors
/// The file that the user has named holds no certificates; the runtime does not answer.
pub(crate) async fn of(url: &str, clients: &Clients, options: &Options) -> Result<Option<TlsConnector>> {
    if !url.starts_with("https://") {
        return Ok(None);
    }
    let provider = Arc::new(ring::default_provider());
    let mut judge = Judge { own: Vec::new(), roots: None, provider: provider.clone() };
    match &options.tls_ca {
        Some(path) => judge.roots = Some(roots(path)?),
        None => judge.own = own(clients).await?,
    }
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(judge))
        .with_no_client_auth();
    Ok(Some(TlsConnector::from(Arc::new(config))))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let all = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let all = all.with_context(|| format!("read certificates from {}", path.display()))?;
    ensure!(!all.is_empty(), "{} has no certificate", path.display());
    Ok(all)
}

fn roots(path: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).with_context(|| format!("certificate in {}", path.display()))?;
    }
    Ok(roots)
}

/// The certificate that the runtime says it has. Another runtime than crisp says nothing, and a file that is not to be
/// read is no reason to end: the system's roots are left.
async fn own(clients: &Clients) -> Result<Vec<CertificateDer<'static>>> {
    let status = clients.runtime.clone().status(StatusRequest { verbose: true }).await;
    let info = status.asked("ask the runtime for its configuration")?.info;
    let config: Value =
        info.get("config").and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let path = config["stream"]["tls_certificate"].as_str().unwrap_or_default();
    // The first one is the server's, those behind it are whoever has signed it.
    let mut chain = certificates(Path::new(path)).unwrap_or_default();
    chain.truncate(1);
    Ok(chain)
}

/// Decides over the certificate that a server shows.
#[derive(Debug)]
struct Judge {
    own: Vec<CertificateDer<'static>>,
    /// `None`: the system's, which are read when they are needed.
    roots: Option<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl Judge {
    fn roots(&self) -> RootCertStore {
        self.roots.clone().unwrap_or_else(|| {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            roots
        })
    }
}

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        host: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.own.iter().any(|own| own == shown) {
            return Ok(ServerCertVerified::assertion());
        }
        WebPkiServerVerifier::builder_with_provider(Arc::new(self.roots()), self.provider.clone())
            .build()
            // There are no roots at all.
            .map_err(|_| CertificateError::UnknownIssuer)?
            .verify_server_cert(shown, chain, host, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
