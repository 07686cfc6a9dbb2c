//! A layer's bytes as they arrive. Purpose: one stream out of any number of connections; a broken one is
//! resumed where it ended, and the next endpoint takes over when one cannot go on. Checks no digest: the
//! reader of the stream does.

use bytes::Bytes;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderMap};
use reqwest::{Method, Response, StatusCode};

use super::{Registry, RegistryError, Request};
use crate::digest::Digest;
use crate::registry::{Answer, Attempt};

/// Connections that broke after they had delivered something, before it is given up.
const RESUMES_MAX: u32 = 64;
/// How often all endpoints are gone through again without a byte in between.
const ROUNDS_MAX: u32 = 3;

/// A blob being read. Cancel safety: dropping it closes the connection.
#[derive(Debug)]
pub(crate) struct Blob<'a> {
    registry: &'a Registry,
    digest: Digest,
    size: u64,
    /// Bytes delivered.
    offset: u64,
    /// Endpoints from here on have not been given up.
    index: usize,
    response: Option<Response>,
    /// Bytes to drop: the server sent the whole again instead of the rest.
    skip: u64,
    resumes: u32,
    rounds: u32,
    /// Where the present connection began.
    began: u64,
    attempts: Vec<Attempt>,
}

impl Registry {
    /// The blob with this digest and size, from byte `from` on. Nothing is requested before the first
    /// [`Blob::chunk`], and nothing at all when `from` is its end.
    pub(crate) fn blob(&self, digest: Digest, size: u64, from: u64) -> Blob<'_> {
        Blob {
            registry: self,
            digest,
            size,
            offset: from,
            index: 0,
            response: None,
            skip: 0,
            resumes: 0,
            rounds: 0,
            began: from,
            attempts: Vec::new(),
        }
    }
}

impl Blob<'_> {
    /// The next bytes, `None` at the end. May deliver more than the declared size, for the reader to see.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, RegistryError> {
        loop {
            let Some(response) = self.response.as_mut() else {
                if self.offset >= self.size && self.offset > 0 {
                    return Ok(None);
                }
                self.connect().await?;
                continue;
            };
            match self.registry.chunk(self.index, response).await {
                Ok(Some(mut chunk)) => {
                    let drop = usize::try_from(self.skip).unwrap_or(usize::MAX).min(chunk.len());
                    let chunk = chunk.split_off(drop);
                    self.skip -= drop as u64;
                    if !chunk.is_empty() {
                        self.offset += chunk.len() as u64;
                        self.rounds = 0;
                        return Ok(Some(chunk));
                    }
                }
                Ok(None) if self.offset >= self.size => return Ok(None),
                Ok(None) => {
                    let text = format!("body ends after {} of {} bytes", self.offset, self.size);
                    let attempt = self.registry.attempt(self.index, Answer::Unavailable, text);
                    self.broke(attempt);
                }
                Err(attempt) => self.broke(attempt),
            }
        }
    }

    /// Decides who continues: the same endpoint if it had delivered something, else the next.
    fn broke(&mut self, attempt: Attempt) {
        self.response = None;
        // Whoever was waited for in vain once is not waited for again.
        let broken = attempt.kind != Answer::Silent;
        if broken && self.offset > self.began && self.resumes < RESUMES_MAX {
            self.resumes += 1;
            return;
        }
        self.attempts.push(attempt);
        self.index += 1;
    }

    /// Gets a response from the first endpoint that gives one. When none does and one of them may only be
    /// restarting, all are asked again after a while.
    async fn connect(&mut self) -> Result<(), RegistryError> {
        loop {
            if self.connect_to_next().await {
                return Ok(());
            }
            let attempts = std::mem::take(&mut self.attempts);
            let passing =
                |a: &Attempt| matches!(a.kind, Answer::Unavailable | Answer::Unreachable | Answer::Broken);
            if self.rounds == ROUNDS_MAX || !attempts.iter().any(passing) {
                return Err(self.registry.refused(&format!("layer {}", self.digest), attempts));
            }
            self.rounds += 1;
            tokio::time::sleep(super::wait(&HeaderMap::new(), self.rounds)).await;
            self.index = 0;
        }
    }

    /// Goes through the endpoints that have not been given up.
    async fn connect_to_next(&mut self) -> bool {
        while let Some(endpoint) = self.registry.endpoints.get(self.index) {
            if !endpoint.pull || self.registry.skips(self.index, &self.attempts) {
                self.index += 1;
                continue;
            }
            let url = endpoint.url(&self.registry.repository, "blobs", &self.digest.to_string());
            let request = Request { accept: None, from: self.offset, ..Request::new(Method::GET, url) };
            let answer = self.registry.send(self.index, request).await;
            match answer.and_then(|response| self.accept(response)) {
                Ok(()) => {
                    self.began = self.offset;
                    return true;
                }
                Err(attempt) => {
                    self.attempts.push(attempt);
                    self.index += 1;
                }
            }
        }
        false
    }

    /// Checks what the headers announce against what was declared and asked for.
    fn accept(&mut self, response: Response) -> Result<(), Attempt> {
        let header = |name| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let invalid = |text| Err(self.registry.attempt(self.index, Answer::Invalid, text));
        let start = if response.status() == StatusCode::PARTIAL_CONTENT { self.offset } else { 0 };
        if start > 0 {
            let range = header(CONTENT_RANGE).unwrap_or_default();
            if !range.starts_with(&format!("bytes {start}-")) {
                return invalid(format!("asked for bytes from {start} on, got {range:?}"));
            }
        }
        let expected = self.size - start.min(self.size);
        if let Some(length) = header(CONTENT_LENGTH).and_then(|v| v.parse::<u64>().ok())
            && length != expected
        {
            return invalid(format!("announces {length} bytes where {expected} were declared"));
        }
        self.skip = self.offset - start;
        self.response = Some(response);
        Ok(())
    }
}
