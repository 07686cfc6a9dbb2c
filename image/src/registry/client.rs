//! Requests to the endpoints of one repository. Purpose: try endpoints in order, authenticate, follow
//! redirects without carrying secrets along, resume broken bodies, and keep every answer for the error.

mod blob;
mod token;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RANGE, RETRY_AFTER,
};
use reqwest::{Client, Method, Response, StatusCode, Url};

use super::auth::Credentials;
use super::auth_file::{AuthFile, AuthFileError};
use super::endpoint::{Endpoint, authority};
use super::hosts::{self, HostsError};
use super::tls::TlsSettings;
use super::{Answer, Attempt};
use crate::digest::Digest;
use crate::document::{self, DOCUMENT_MAX, is_document_type};
use crate::reference::Reference;

const REDIRECTS_MAX: usize = 5;
/// How often a busy or failing server is asked again before the next endpoint gets its turn.
const TRIES: u32 = 3;
const BACKOFF: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// Read of an error answer's body.
const MESSAGE_MAX: u64 = 4096;

/// Why no endpoint delivered.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The endpoints are not known.
    #[error("registry hosts")]
    Hosts(#[from] HostsError),
    /// The file of credentials cannot be used.
    #[error("registry credentials")]
    AuthFile(#[from] AuthFileError),
    /// Every endpoint was asked.
    #[error("{what}: {}", list(attempts))]
    Endpoints {
        /// What was asked for: a tag, a manifest, a config or a layer.
        what: String,
        /// Who was asked, in order, and what came.
        attempts: Vec<Attempt>,
    },
}

impl RegistryError {
    /// Whether everybody who was asked has no such thing.
    pub(crate) fn is_not_found(&self) -> bool {
        match self {
            Self::Endpoints { attempts, .. } => {
                !attempts.is_empty() && attempts.iter().all(|attempt| attempt.kind == Answer::NotFound)
            }
            _ => false,
        }
    }

    /// The last answer: the registry itself comes after its mirrors. `None` if nobody could be asked.
    pub(crate) fn last_answer(&self) -> Option<Answer> {
        match self {
            Self::Hosts(_) | Self::AuthFile(_) => None,
            Self::Endpoints { attempts, .. } => attempts.last().map(|attempt| attempt.kind),
        }
    }
}

fn list(attempts: &[Attempt]) -> String {
    if attempts.is_empty() {
        return "no configured endpoint may be asked for it".to_owned();
    }
    attempts.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// What a tag points to.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub(crate) digest: Digest,
    /// The document, if it came with the answer.
    pub(crate) document: Option<Fetched>,
}

/// A document whose digest is known to be right.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) bytes: Vec<u8>,
    pub(crate) content_type: Option<String>,
}

/// The endpoints of one repository, with the state of one pull: connections and tokens.
#[derive(Debug)]
pub(crate) struct Registry {
    endpoints: Vec<Endpoint>,
    domain: String,
    repository: String,
    credentials: Option<Credentials>,
    /// Asked when there are none.
    auth_file: AuthFile,
    /// No byte for so long ends a request; zero for no limit.
    stall: Duration,
    clients: Mutex<HashMap<(TlsSettings, Duration, bool), Client>>,
    /// The Authorization that an endpoint wanted, by its place in the list.
    answers: Mutex<HashMap<usize, HeaderValue>>,
}

/// Where the operator's settings are. Neither need exist.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Access<'a> {
    pub(crate) hosts_dir: &'a Path,
    pub(crate) auth_file: &'a Path,
}

struct Request<'a> {
    method: Method,
    url: Url,
    accept: Option<&'a str>,
    /// First byte wanted.
    from: u64,
}

impl Registry {
    /// Reads the configuration for `reference`'s registry; connects to nothing.
    pub(crate) fn open(
        reference: &Reference,
        access: Access<'_>,
        credentials: Option<Credentials>,
        stall: Duration,
    ) -> Result<Self, RegistryError> {
        Ok(Self {
            endpoints: hosts::endpoints(access.hosts_dir, reference.domain())?,
            domain: reference.domain().to_owned(),
            repository: reference.path().to_owned(),
            credentials,
            auth_file: AuthFile::read(access.auth_file)?,
            stall,
            clients: Mutex::default(),
            answers: Mutex::default(),
        })
    }

    /// What `tag` points to now. Every endpoint with the `resolve` capability is asked in turn.
    pub(crate) async fn resolve(&self, tag: &str) -> Result<Resolved, RegistryError> {
        let mut attempts = Vec::new();
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            if !endpoint.resolve || self.skips(index, &attempts) {
                continue;
            }
            match self.resolve_at(index, endpoint, tag).await {
                Ok(resolved) => return Ok(resolved),
                Err(attempt) => attempts.push(attempt),
            }
        }
        Err(self.refused(&format!("tag {tag:?}"), attempts))
    }

    async fn resolve_at(&self, index: usize, endpoint: &Endpoint, tag: &str) -> Result<Resolved, Attempt> {
        let url = endpoint.url(&self.repository, "manifests", tag);
        let head = self.send(index, Request::new(Method::HEAD, url.clone())).await;
        match head {
            Ok(response) => {
                let stated = response.headers().get("docker-content-digest").and_then(|v| v.to_str().ok());
                let typed = content_type(response.headers()).is_some_and(|t| is_document_type(&t));
                if let Some(digest) = stated.and_then(|d| d.parse().ok()).filter(|_| typed) {
                    return Ok(Resolved { digest, document: None });
                }
            }
            // Some proxies know no HEAD; whatever else it was, GET gets the same answer with a reason.
            Err(attempt) if matches!(attempt.kind, Answer::Invalid | Answer::BadRequest) => {}
            Err(attempt) => return Err(attempt),
        }
        let response = self.send(index, Request::new(Method::GET, url)).await?;
        let fetched = self.document(index, response, None).await?;
        Ok(Resolved { digest: Digest::of(&fetched.bytes), document: Some(fetched) })
    }

    /// Whether the registry still lets these credentials have the manifest `digest`. No content comes.
    pub(crate) async fn check(&self, digest: Digest) -> Result<(), RegistryError> {
        let mut attempts = Vec::new();
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            if !endpoint.pull || self.skips(index, &attempts) {
                continue;
            }
            let url = endpoint.url(&self.repository, "manifests", &digest.to_string());
            match self.send(index, Request::new(Method::HEAD, url)).await {
                Ok(_) => return Ok(()),
                Err(attempt) => attempts.push(attempt),
            }
        }
        Err(self.refused(&format!("manifest {digest}"), attempts))
    }

    /// The manifest or index with this digest and, if it is known, this size.
    pub(crate) async fn manifest(&self, digest: Digest, size: Option<u64>) -> Result<Fetched, RegistryError> {
        self.small("manifests", digest, size).await
    }

    /// A config blob.
    pub(crate) async fn config(&self, digest: Digest, size: u64) -> Result<Vec<u8>, RegistryError> {
        Ok(self.small("blobs", digest, Some(size)).await?.bytes)
    }

    async fn small(&self, kind: &str, digest: Digest, size: Option<u64>) -> Result<Fetched, RegistryError> {
        let mut attempts = Vec::new();
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            if !endpoint.pull || self.skips(index, &attempts) {
                continue;
            }
            let url = endpoint.url(&self.repository, kind, &digest.to_string());
            let fetched = match self.send(index, Request::new(Method::GET, url)).await {
                Ok(response) => self.document(index, response, size).await,
                Err(attempt) => Err(attempt),
            };
            match fetched {
                Ok(fetched) if Digest::of(&fetched.bytes) == digest => return Ok(fetched),
                Ok(fetched) => attempts.push(self.attempt(
                    index,
                    Answer::WrongDigest,
                    format!("content has digest {}, not {digest}", Digest::of(&fetched.bytes)),
                )),
                Err(attempt) => attempts.push(attempt),
            }
        }
        let what = if kind == "blobs" { "config" } else { "manifest" };
        Err(self.refused(&format!("{what} {digest}"), attempts))
    }

    /// Reads a small body in full.
    async fn document(
        &self,
        index: usize,
        mut response: Response,
        size: Option<u64>,
    ) -> Result<Fetched, Attempt> {
        let limit = size.unwrap_or(DOCUMENT_MAX).min(DOCUMENT_MAX);
        let content_type = content_type(response.headers());
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk(index, &mut response).await? {
            if (bytes.len() + chunk.len()) as u64 > limit {
                let text = format!("document is larger than {limit} bytes");
                return Err(self.attempt(index, Answer::Invalid, text));
            }
            bytes.extend_from_slice(&chunk);
        }
        if size.is_some_and(|size| size != bytes.len() as u64) {
            let text = format!("document has {} bytes, not {limit}", bytes.len());
            return Err(self.attempt(index, Answer::Invalid, text));
        }
        Ok(Fetched { bytes, content_type })
    }

    async fn chunk(&self, index: usize, response: &mut Response) -> Result<Option<bytes::Bytes>, Attempt> {
        match self.patiently(response.chunk()).await {
            None => Err(self.attempt(index, Answer::Silent, self.stalled())),
            Some(Err(e)) => Err(self.attempt(index, Answer::Unavailable, chain(&e))),
            Some(Ok(chunk)) => Ok(chunk),
        }
    }

    /// Sends a request, again after 429, 5xx and a connection that broke, and returns a success or what to
    /// write down.
    async fn send(&self, index: usize, request: Request<'_>) -> Result<Response, Attempt> {
        let mut tries = 1;
        loop {
            let response = match self.authorized(index, &request).await {
                Err(attempt) if attempt.kind == Answer::Broken && tries < TRIES => {
                    tokio::time::sleep(wait(&HeaderMap::new(), tries)).await;
                    tries += 1;
                    continue;
                }
                other => other?,
            };
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            let busy = status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error();
            if !busy || tries == TRIES {
                return Err(self.failed(index, response).await);
            }
            tokio::time::sleep(wait(response.headers(), tries)).await;
            tries += 1;
        }
    }

    /// Sends a request and answers one 401.
    async fn authorized(&self, index: usize, request: &Request<'_>) -> Result<Response, Attempt> {
        let known = self.answers.lock().unwrap_or_else(PoisonError::into_inner).get(&index).cloned();
        let response = self.follow(index, request, known).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let Some(answer) = self.answer(index, &response).await? else { return Ok(response) };
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).insert(index, answer.clone());
        self.follow(index, request, Some(answer)).await
    }

    /// Sends a request and follows redirects. Another host gets no Authorization, none of the configured
    /// headers and no client certificate; plain HTTP is never reached from HTTPS.
    async fn follow(
        &self,
        index: usize,
        request: &Request<'_>,
        authorization: Option<HeaderValue>,
    ) -> Result<Response, Attempt> {
        let endpoint = &self.endpoints[index];
        let mut url = request.url.clone();
        for _ in 0..=REDIRECTS_MAX {
            let home = url.scheme() == endpoint.base.scheme() && authority(&url) == endpoint.authority();
            let client =
                self.client(endpoint, &url, home).map_err(|e| self.attempt(index, Answer::Invalid, e))?;
            let mut builder = client.request(request.method.clone(), url.clone());
            if let Some(accept) = request.accept {
                builder = builder.header(ACCEPT, accept);
            }
            if request.from > 0 {
                builder = builder.header(RANGE, format!("bytes={}-", request.from));
            }
            if home {
                builder = builder.headers(endpoint.headers.clone());
                if let Some(value) = &authorization {
                    builder = builder.header(AUTHORIZATION, value.clone());
                }
            }
            let response = match self.patiently(builder.send()).await {
                None => return Err(self.attempt(index, Answer::Silent, self.stalled())),
                Some(Err(e)) => {
                    let kind = if e.is_connect() { Answer::Unreachable } else { Answer::Broken };
                    return Err(self.attempt(index, kind, chain(&e)));
                }
                Some(Ok(response)) => response,
            };
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let next = response.headers().get(LOCATION).and_then(|l| l.to_str().ok());
            let next = next.and_then(|l| url.join(l).ok()).filter(|l| matches!(l.scheme(), "http" | "https"));
            let Some(next) = next else {
                return Err(self.attempt(
                    index,
                    Answer::Invalid,
                    "redirect without a usable location".into(),
                ));
            };
            if url.scheme() == "https" && next.scheme() == "http" {
                return Err(self.attempt(index, Answer::Invalid, "redirect from https to http".into()));
            }
            url = next;
        }
        Err(self.attempt(index, Answer::Invalid, format!("more than {REDIRECTS_MAX} redirects")))
    }

    /// The client for an endpoint, or for a stranger it redirects to. Loopback is never proxied.
    fn client(&self, endpoint: &Endpoint, url: &Url, home: bool) -> Result<Client, String> {
        let direct = url.host_str().is_some_and(hosts::is_loopback);
        let tls = if home { endpoint.tls.clone() } else { endpoint.tls.for_strangers() };
        let key = (tls, endpoint.dial_timeout, direct);
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        let config = key.0.config().map_err(|e| format!("TLS: {}", chain(&e)))?;
        let mut builder = Client::builder()
            .user_agent(concat!("crisp/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .connect_timeout(endpoint.dial_timeout)
            .tls_backend_preconfigured(config);
        if direct {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|e| chain(&e))?;
        clients.insert(key, client.clone());
        Ok(client)
    }

    /// Waits for the network, but not for ever.
    async fn patiently<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        if self.stall.is_zero() {
            return Some(future.await);
        }
        tokio::time::timeout(self.stall, future).await.ok()
    }

    fn stalled(&self) -> String {
        format!("no byte for {} s", self.stall.as_secs_f32())
    }

    /// An unsuccessful answer with the registry's own words.
    async fn failed(&self, index: usize, mut response: Response) -> Attempt {
        let status = response.status();
        let kind = match status {
            StatusCode::NOT_FOUND => Answer::NotFound,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Answer::Denied,
            StatusCode::TOO_MANY_REQUESTS => Answer::Unavailable,
            StatusCode::BAD_REQUEST => Answer::BadRequest,
            status if status.is_server_error() => Answer::Unavailable,
            _ => Answer::Invalid,
        };
        let mut body = Vec::new();
        while (body.len() as u64) < MESSAGE_MAX
            && let Ok(Some(chunk)) = self.chunk(index, &mut response).await
        {
            body.extend_from_slice(&chunk);
        }
        let text = match message(&body) {
            Some(message) => format!("{status}: {message}"),
            None => status.to_string(),
        };
        self.attempt(index, kind, text)
    }

    /// Whether an endpoint that is only another scheme for the host before it has no turn.
    fn skips(&self, index: usize, attempts: &[Attempt]) -> bool {
        let spoken =
            |a: &Attempt| !matches!(a.kind, Answer::Unreachable | Answer::Broken | Answer::BadRequest);
        self.endpoints[index].fallback && attempts.last().is_some_and(spoken)
    }

    fn attempt(&self, index: usize, kind: Answer, answer: String) -> Attempt {
        Attempt { endpoint: self.endpoints[index].base.to_string(), answer, kind }
    }

    fn refused(&self, what: &str, attempts: Vec<Attempt>) -> RegistryError {
        RegistryError::Endpoints { what: what.to_owned(), attempts }
    }
}

impl Request<'_> {
    fn new(method: Method, url: Url) -> Self {
        Self { method, url, accept: Some(document::ACCEPT), from: 0 }
    }
}

fn content_type(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    Some(text.split(';').next().unwrap_or_default().trim().to_owned())
}

/// How long a busy server wants to be left alone, within reason.
fn wait(headers: &HeaderMap, tries: u32) -> Duration {
    let asked = headers.get(RETRY_AFTER).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
    asked.map_or(BACKOFF * (1 << tries), Duration::from_secs).min(BACKOFF_MAX)
}

/// `{"errors":[{"code","message"}]}` of the distribution-spec, on one line.
fn message(body: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(body).ok()?;
    let error = value.get("errors")?.get(0)?;
    let part = |key| error.get(key).and_then(|v| v.as_str()).unwrap_or_default();
    let text = format!("{} {}", part("code"), part("message"));
    Some(text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(300).collect())
}

/// An error with its causes: reqwest's own text hides "connection refused".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut at = error.source();
    while let Some(cause) = at {
        let next = cause.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        at = cause.source();
    }
    text
}
