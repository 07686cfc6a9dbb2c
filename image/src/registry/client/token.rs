//! The answer to a 401: a token from the server that the registry names, or user and password.

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;

use super::{Registry, TRIES, chain, hosts, wait};
use crate::registry::auth::{Challenge, Secret, basic_header, bearer_header};
use crate::registry::{Answer, Attempt};

/// Larger tokens than any server gives out.
const TOKEN_MAX: usize = 256 << 10;

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

impl Registry {
    /// The Authorization for another try, or `None` when there is nothing to show.
    pub(super) async fn answer(
        &self,
        index: usize,
        refusal: &Response,
    ) -> Result<Option<HeaderValue>, Attempt> {
        let endpoint = &self.endpoints[index];
        // The challenge may come from a host that was redirected to; that one gets nothing.
        let at_home = refusal.url().scheme() == endpoint.base.scheme()
            && super::authority(refusal.url()) == endpoint.authority();
        if !at_home {
            return Ok(None);
        }
        let secret = self.secret(index).await?;
        let secret = secret.as_ref();
        let challenge = Challenge::read(refusal.headers(), refusal.url(), &self.repository)
            .map_err(|text| self.attempt(index, Answer::Denied, text))?;
        let header = match (challenge, secret) {
            (_, Some(Secret::Bearer(token))) => bearer_header(token),
            (Challenge::Basic, Some(Secret::Basic { username, password })) => {
                basic_header(username, password)
            }
            (Challenge::Basic, _) => None,
            (Challenge::Bearer { realm, service, scope }, secret) => {
                let token = self.token(index, realm, service.as_deref(), &scope, secret).await?;
                bearer_header(&token)
            }
        };
        Ok(header)
    }

    /// What this endpoint may see: of what came with the pull, or else of the operator's file.
    async fn secret(&self, index: usize) -> Result<Option<Secret>, Attempt> {
        let authority = self.endpoints[index].authority();
        if let Some(credentials) = &self.credentials {
            let fitting = credentials.are_for(&authority, &self.domain);
            return Ok(fitting.then(|| credentials.secret.clone()));
        }
        // A mirror has credentials of its own, if any.
        let name = if hosts::api_host(&self.domain) == authority { &self.domain } else { &authority };
        let found = self.auth_file.secret(name, &self.repository).await;
        found.map_err(|e| self.attempt(index, Answer::Denied, chain(&e)))
    }

    /// Asks a token server, with user and password if there are any (distribution's token
    /// specification), or trades a refresh token (its OAuth2 form).
    async fn token(
        &self,
        index: usize,
        mut realm: Url,
        service: Option<&str>,
        scope: &str,
        secret: Option<&Secret>,
    ) -> Result<String, Attempt> {
        let endpoint = &self.endpoints[index];
        let failed = |kind, text: String| self.attempt(index, kind, format!("token server: {text}"));
        let client = self.client(endpoint, &realm, false).map_err(|e| failed(Answer::Invalid, e))?;
        let mut fields: Vec<(&str, &str)> = service.map(|s| ("service", s)).into_iter().collect();
        fields.extend(scope.split(' ').map(|scope| ("scope", scope)));
        let request = if let Some(Secret::Identity(refresh)) = secret {
            fields.extend([
                ("grant_type", "refresh_token"),
                ("refresh_token", refresh),
                ("client_id", "crisp"),
            ]);
            // A URL's query is encoded like a form.
            let mut form = realm.clone();
            form.query_pairs_mut().clear().extend_pairs(fields);
            let body = form.query().unwrap_or_default().to_owned();
            client.post(realm).header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(body)
        } else {
            realm.query_pairs_mut().extend_pairs(fields);
            let request = client.get(realm);
            match secret {
                Some(Secret::Basic { username, password }) => match basic_header(username, password) {
                    Some(header) => request.header(AUTHORIZATION, header),
                    None => request,
                },
                _ => request,
            }
        };
        let mut response = self.ask(request).await.map_err(|(kind, text)| failed(kind, text))?;
        if !response.status().is_success() {
            let attempt = self.failed(index, response).await;
            return Err(failed(attempt.kind, attempt.answer));
        }
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk(index, &mut response).await? {
            body.extend_from_slice(&chunk);
            if body.len() > TOKEN_MAX {
                return Err(failed(Answer::Invalid, format!("answer is larger than {TOKEN_MAX} bytes")));
            }
        }
        let answer: TokenAnswer = serde_json::from_slice(&body)
            .map_err(|_| failed(Answer::Invalid, "answer is not JSON".to_owned()))?;
        let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty());
        token.ok_or_else(|| failed(Answer::Invalid, "answer has no token".to_owned()))
    }

    /// A token server gets as many tries as a registry.
    async fn ask(&self, request: RequestBuilder) -> Result<Response, (Answer, String)> {
        let mut tries = 1;
        loop {
            // Its body is bytes, so there is always a copy.
            let Some(copy) = request.try_clone() else {
                return Err((Answer::Invalid, "request cannot be repeated".to_owned()));
            };
            let pause = match self.patiently(copy.send()).await {
                None => return Err((Answer::Silent, self.stalled())),
                Some(Err(e)) if e.is_connect() || tries == TRIES => {
                    return Err((Answer::Unavailable, chain(&e)));
                }
                Some(Err(_)) => wait(&HeaderMap::new(), tries),
                Some(Ok(response)) => {
                    let status = response.status();
                    let busy = status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error();
                    if !busy || tries == TRIES {
                        return Ok(response);
                    }
                    wait(response.headers(), tries)
                }
            };
            tokio::time::sleep(pause).await;
            tries += 1;
        }
    }
}
