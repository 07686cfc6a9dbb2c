//! Credentials, challenges and tokens. Purpose: answer a registry's 401 without ever giving a secret to a
//! host it was not meant for. Sends nothing itself.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};

use crate::digest::Digest;

/// What to show a registry. `Debug` and `Display` never print secrets.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub(super) secret: Secret,
    /// Host the secret is for; without one it goes to every configured endpoint.
    server: Option<String>,
}

#[derive(Clone, PartialEq, Eq)]
pub(super) enum Secret {
    Basic {
        username: String,
        password: String,
    },
    /// OAuth2 refresh token, exchanged at the token server.
    Identity(String),
    /// A bearer token that is sent as it is.
    Bearer(String),
}

/// The fields of CRI's `AuthConfig`; an empty one is not set.
#[derive(Clone, Default)]
pub struct AuthFields {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
    /// Base64 of `user:password`.
    pub auth: String,
    /// Registry the rest is for, as host or URL.
    pub server_address: String,
    /// OAuth2 refresh token.
    pub identity_token: String,
    /// Ready-made bearer token.
    pub registry_token: String,
}

/// Why credentials cannot be used. Says nothing of their content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// Not base64.
    #[error("auth is not base64")]
    Base64,
    /// No colon in it, or not text.
    #[error("auth is not user:password")]
    NoColon,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.secret {
            Secret::Basic { .. } => "basic",
            Secret::Identity(_) => "identity token",
            Secret::Bearer(_) => "bearer token",
        };
        f.debug_struct("Credentials").field("kind", &kind).field("server", &self.server).finish()
    }
}

impl fmt::Debug for AuthFields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthFields").field("server_address", &self.server_address).finish_non_exhaustive()
    }
}

impl Credentials {
    /// Chooses among the fields: user and password, then identity token, then `auth`, then the ready-made
    /// token. `None` when none is set.
    ///
    /// # Errors
    /// [`CredentialError`] for an `auth` that is not base64 of `user:password`.
    pub fn from_fields(fields: &AuthFields) -> Result<Option<Self>, CredentialError> {
        let secret = if !fields.username.is_empty() {
            Secret::Basic { username: fields.username.clone(), password: fields.password.clone() }
        } else if !fields.identity_token.is_empty() {
            Secret::Identity(fields.identity_token.clone())
        } else if !fields.auth.is_empty() {
            basic(&fields.auth)?
        } else if !fields.registry_token.is_empty() {
            Secret::Bearer(fields.registry_token.clone())
        } else {
            return Ok(None);
        };
        let server = Some(server_host(&fields.server_address)).filter(|host| !host.is_empty());
        Ok(Some(Self { secret, server }))
    }

    /// User name and password for every configured endpoint.
    #[must_use]
    pub fn basic(username: &str, password: &str) -> Self {
        let secret = Secret::Basic { username: username.to_owned(), password: password.to_owned() };
        Self { secret, server: None }
    }

    /// Whether an endpoint at `authority` for images of `domain` may see the secret.
    pub(super) fn are_for(&self, authority: &str, domain: &str) -> bool {
        let Some(server) = &self.server else { return true };
        let hub = |host: &str| matches!(host, "docker.io" | "index.docker.io" | "registry-1.docker.io");
        server == authority || (hub(server) && hub(authority) && domain == "docker.io")
    }

    /// Tells credentials apart without keeping them.
    pub(crate) fn fingerprint(&self) -> Digest {
        let server = self.server.as_deref().unwrap_or_default();
        let text = match &self.secret {
            Secret::Basic { username, password } => format!("basic\0{server}\0{username}\0{password}"),
            Secret::Identity(token) => format!("identity\0{server}\0{token}"),
            Secret::Bearer(token) => format!("bearer\0{server}\0{token}"),
        };
        Digest::of(text.as_bytes())
    }
}

pub(super) fn basic(auth: &str) -> Result<Secret, CredentialError> {
    let bytes = STANDARD.decode(auth.trim()).map_err(|_| CredentialError::Base64)?;
    let text = String::from_utf8(bytes).map_err(|_| CredentialError::NoColon)?;
    let (username, password) = text.split_once(':').ok_or(CredentialError::NoColon)?;
    let password = password.trim_end_matches('\0');
    Ok(Secret::Basic { username: username.to_owned(), password: password.to_owned() })
}

/// The host of `https://host/v1/` or of plain `host`.
pub(super) fn server_host(address: &str) -> String {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    rest.split('/').next().unwrap_or_default().to_owned()
}

/// How a registry wants to be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: Url, service: Option<String>, scope: String },
}

impl Challenge {
    /// The challenge to follow in a 401: a token if possible. `asked` is where the request went.
    ///
    /// The scope is taken from the registry only if it asks for nothing but pulling: whoever answers for
    /// one repository must not be handed a token for another one's pushes.
    pub(super) fn read(headers: &HeaderMap, asked: &Url, repository: &str) -> Result<Self, String> {
        let mut basic = false;
        for value in headers.get_all(WWW_AUTHENTICATE) {
            let text = value.to_str().map_err(|_| "challenge is not text".to_owned())?;
            let (scheme, parameters) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
            if scheme.eq_ignore_ascii_case("basic") {
                basic = true;
            }
            if !scheme.eq_ignore_ascii_case("bearer") {
                continue;
            }
            let find = |key: &str| {
                parameters_of(parameters)
                    .into_iter()
                    .find(|(name, _)| name.eq_ignore_ascii_case(key))
                    .map(|(_, v)| v)
            };
            let realm = find("realm").ok_or("bearer challenge without realm")?;
            let realm = Url::parse(&realm).map_err(|_| "bearer challenge with a realm that is no URL")?;
            match (asked.scheme(), realm.scheme()) {
                (_, "https") | ("http", "http") => {}
                _ => return Err(format!("token server {realm} is not reached by https")),
            }
            let scope = find("scope")
                .filter(|scope| only_pulls(scope))
                .unwrap_or_else(|| format!("repository:{repository}:pull"));
            return Ok(Self::Bearer { realm, service: find("service"), scope });
        }
        if basic { Ok(Self::Basic) } else { Err("401 without a challenge that is known".to_owned()) }
    }
}

fn only_pulls(scope: &str) -> bool {
    scope.split(' ').all(|part| part.starts_with("repository:") && part.ends_with(":pull"))
}

/// `key="value", key=value` pairs.
fn parameters_of(text: &str) -> Vec<(String, String)> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some((key, after)) = rest.split_once('=') {
        let key = key.trim_matches([' ', ',']).to_owned();
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_once(',').unwrap_or((after, "")),
        };
        out.push((key, value.trim().to_owned()));
        rest = next;
    }
    out
}

/// `Basic …`, marked so that no log prints it.
pub(super) fn basic_header(username: &str, password: &str) -> Option<HeaderValue> {
    secret_header(&format!("Basic {}", STANDARD.encode(format!("{username}:{password}"))))
}

pub(super) fn bearer_header(token: &str) -> Option<HeaderValue> {
    secret_header(&format!("Bearer {token}"))
}

fn secret_header(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields() -> AuthFields {
        AuthFields { registry_token: "r".into(), ..AuthFields::default() }
    }

    #[test]
    fn fields_are_preferred_in_the_contracts_order() {
        let mut all = fields();
        assert!(Credentials::from_fields(&AuthFields::default()).unwrap().is_none());
        let secret = |f: &AuthFields| Credentials::from_fields(f).unwrap().unwrap().secret;
        assert!(secret(&all) == Secret::Bearer("r".into()));
        all.auth = STANDARD.encode("u:p:q\0\0");
        assert!(secret(&all) == Secret::Basic { username: "u".into(), password: "p:q".into() });
        all.identity_token = "i".into();
        assert!(secret(&all) == Secret::Identity("i".into()));
        all.username = "n".into();
        assert!(secret(&all) == Secret::Basic { username: "n".into(), password: String::new() });
        let bad = AuthFields { auth: STANDARD.encode("nocolon"), ..AuthFields::default() };
        assert_eq!(Credentials::from_fields(&bad).unwrap_err(), CredentialError::NoColon);
        let bad = AuthFields { auth: "%".into(), ..AuthFields::default() };
        assert_eq!(Credentials::from_fields(&bad).unwrap_err(), CredentialError::Base64);
    }

    #[test]
    fn i10_a_secret_for_one_server_is_not_for_another() {
        let with = |server: &str| {
            let fields = AuthFields { server_address: server.into(), ..fields() };
            Credentials::from_fields(&fields).unwrap().unwrap()
        };
        assert!(with("https://index.docker.io/v1/").are_for("registry-1.docker.io", "docker.io"));
        assert!(with("quay.io").are_for("quay.io", "quay.io"));
        assert!(!with("quay.io").are_for("mirror.example", "quay.io"));
        assert!(!with("docker.io").are_for("evil.example", "docker.io"));
        assert!(with("").are_for("mirror.example", "quay.io"));
    }

    #[test]
    fn secrets_are_not_printed() {
        let text = format!("{:?}", Credentials::basic("user", "hunter2"));
        assert!(!text.contains("hunter2") && !text.contains("user"), "{text}");
    }

    #[test]
    fn challenges_are_read_and_their_scope_is_bounded() {
        let asked = Url::parse("https://r.example/v2/").unwrap();
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_str(text).unwrap());
            Challenge::read(&headers, &asked, "a/b")
        };
        let realm = Url::parse("https://auth.example/token").unwrap();
        let scope = "repository:p/a/b:pull".to_owned();
        let text =
            r#"Bearer realm="https://auth.example/token",service="x, y",scope="repository:p/a/b:pull""#;
        let expected = Challenge::Bearer { realm: realm.clone(), service: Some("x, y".into()), scope };
        assert_eq!(read(text).unwrap(), expected);
        let greedy = r#"Bearer realm="https://auth.example/token",scope="repository:other:push,pull""#;
        let expected = Challenge::Bearer { realm, service: None, scope: "repository:a/b:pull".into() };
        assert_eq!(read(greedy).unwrap(), expected);
        assert_eq!(read("Basic realm=x").unwrap(), Challenge::Basic);
        assert!(read(r#"Bearer realm="http://auth.example/token""#).unwrap_err().contains("https"));
        assert!(read("Negotiate").is_err());
    }
}
