//! Talking to registries (OCI distribution-spec). Purpose: documents and blobs of a repository, from the
//! endpoints that the operator configured, tried in order. Knows HTTP, TLS, tokens and hosts.toml; must
//! not know layers, stores or what a document means.

mod auth;
mod auth_file;
mod client;
mod endpoint;
mod hosts;
mod tls;

use std::fmt;

pub use auth::{AuthFields, CredentialError, Credentials};
pub use auth_file::AuthFileError;
pub use client::RegistryError;
pub(crate) use client::{Access, Fetched, Registry};
pub use hosts::HostsError;

/// What an endpoint answered when it could not deliver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// 404.
    NotFound,
    /// 401 or 403, also after the token dance.
    Denied,
    /// No connection.
    Unreachable,
    /// A connection, and nothing on it that is HTTP.
    Broken,
    /// A body that breaks off, 429 or 5xx.
    Unavailable,
    /// Silence for longer than is waited for.
    Silent,
    /// 400: among others, what a TLS server says to plain HTTP.
    BadRequest,
    /// An answer that breaks the protocol.
    Invalid,
    /// Content that does not have the digest it was asked for by.
    WrongDigest,
}

/// One endpoint that was tried, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Base URL of the endpoint.
    pub endpoint: String,
    /// Its answer, or why there is none.
    pub answer: String,
    pub(crate) kind: Answer,
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.endpoint, self.answer)
    }
}
