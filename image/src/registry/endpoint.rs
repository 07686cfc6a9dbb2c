//! One place that serves a registry's images. Data only.

use std::time::Duration;

use reqwest::Url;
use reqwest::header::HeaderMap;

use super::tls::TlsSettings;

/// An endpoint as configured.
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    /// API root, with a slash at the end: `https://mirror:5000/v2/`.
    pub(super) base: Url,
    /// Serves content by digest.
    pub(super) pull: bool,
    /// May say what a tag points to.
    pub(super) resolve: bool,
    pub(super) tls: TlsSettings,
    pub(super) headers: HeaderMap,
    /// Time to a connection.
    pub(super) dial_timeout: Duration,
    /// Tried only if the one before it gave no HTTP answer: another scheme for the same host.
    pub(super) fallback: bool,
    /// Sent as `ns`, when the endpoint's host is not the registry's own.
    pub(super) namespace: Option<String>,
}

impl Endpoint {
    pub(super) fn plain(base: Url) -> Self {
        Self {
            base,
            pull: true,
            resolve: true,
            tls: TlsSettings::default(),
            headers: HeaderMap::new(),
            dial_timeout: Duration::from_secs(30),
            fallback: false,
            namespace: None,
        }
    }

    /// Host, and port if it is not the scheme's own.
    pub(super) fn authority(&self) -> String {
        authority(&self.base)
    }

    /// The URL of `repository/kind/what`.
    pub(super) fn url(&self, repository: &str, kind: &str, what: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("{}{repository}/{kind}/{what}", self.base.path()));
        if let Some(namespace) = &self.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        url
    }
}

pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}
