//! Credentials in a file. Purpose: docker's `config.json` (`auths`, `credHelpers`, `credsStore`) and
//! containers' `auth.json`, which is the same with repositories as keys, become the secret for one host
//! and repository; helpers are run only when a registry asks. Sends nothing to a registry.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::auth::{CredentialError, Secret, basic, server_host};

/// Larger than any such file that is not a mistake.
const FILE_MAX: u64 = 4 << 20;
/// What a helper may print.
const ANSWER_MAX: u64 = 256 << 10;
/// A helper may ask a service over the network, but not for ever.
const HELPER_TIME: Duration = Duration::from_secs(30);
/// The name under which docker keeps what it knows for its hub.
const HUB_KEY: &str = "index.docker.io";
/// A user name that says that the secret is a refresh token.
const TOKEN_USER: &str = "<token>";

/// Why credentials from a file cannot be used. Says nothing of their content.
#[derive(Debug, thiserror::Error)]
pub enum AuthFileError {
    /// The file cannot be read.
    #[error("{}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The file is not the JSON that it should be.
    #[error("{}: line {line}: not docker's config.json", path.display())]
    Syntax {
        /// Which.
        path: PathBuf,
        /// Where; the parser's own words would quote the content.
        line: usize,
    },
    /// An entry of the file cannot be used.
    #[error("{}: entry {key:?}", path.display())]
    Entry {
        /// Which file.
        path: PathBuf,
        /// Which entry.
        key: String,
        /// Cause.
        #[source]
        source: CredentialError,
    },
    /// A name that cannot be one of a helper.
    #[error("{}: {name:?} is not the name of a credential helper", path.display())]
    HelperName {
        /// Which file.
        path: PathBuf,
        /// As it says.
        name: String,
    },
    /// A helper could not be run or did not end well.
    #[error("credential helper {program} for {server}: {reason}")]
    Helper {
        /// The program.
        program: String,
        /// What it was asked for.
        server: String,
        /// What happened.
        reason: String,
    },
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "lowercase")]
struct Entry {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    identitytoken: String,
    #[serde(default)]
    registrytoken: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// One file, read. One that is not there knows nothing.
#[derive(Default)]
pub(super) struct AuthFile {
    path: PathBuf,
    raw: Raw,
}

impl std::fmt::Debug for AuthFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthFile").field("path", &self.path).finish_non_exhaustive()
    }
}

impl AuthFile {
    /// Reads `path`; an empty one stands for no file.
    pub(super) fn read(path: &Path) -> Result<Self, AuthFileError> {
        let failed = |source| AuthFileError::Read { path: path.to_owned(), source };
        if path.as_os_str().is_empty() {
            return Ok(Self::default());
        }
        let bytes = match std::fs::metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Ok(meta) if meta.len() > FILE_MAX => return Err(failed(io::ErrorKind::FileTooLarge.into())),
            _ => std::fs::read(path).map_err(failed)?,
        };
        let raw = serde_json::from_slice(&bytes)
            .map_err(|e| AuthFileError::Syntax { path: path.to_owned(), line: e.line() })?;
        Ok(Self { path: path.to_owned(), raw })
    }

    /// The secret for `host`, of the entry that fits `repository` best.
    pub(super) async fn secret(&self, host: &str, repository: &str) -> Result<Option<Secret>, AuthFileError> {
        // A helper for this host goes before the store of all, and either before what stands in the file.
        let helper = self.raw.cred_helpers.iter().find(|(key, _)| same_host(&server_host(key), host));
        if let Some((key, name)) = helper {
            return self.ask(name, key).await;
        }
        if let Some(name) = self.raw.creds_store.as_deref().filter(|name| !name.is_empty()) {
            let key = if host == "docker.io" { "https://index.docker.io/v1/" } else { host };
            if let Some(secret) = self.ask(name, key).await? {
                return Ok(Some(secret));
            }
        }
        let full = format!("{host}/{repository}");
        let fits = |key: &str| {
            let place = key.split_once("://").map_or(key, |(_, rest)| rest).trim_end_matches('/');
            // An address, as docker writes them: only its host counts.
            if key.contains("://") || place.ends_with("/v1") || place.ends_with("/v2") || !place.contains('/')
            {
                return same_host(&server_host(key), host).then_some(0);
            }
            let inside = full == place || full.strip_prefix(place).is_some_and(|rest| rest.starts_with('/'));
            inside.then_some(place.len())
        };
        let best = self.raw.auths.iter().filter_map(|(key, entry)| Some((fits(key)?, key, entry)));
        // Several addresses of one host: the first that says something.
        let best = best.filter(|(_, _, entry)| entry.says_something());
        let Some((_, key, entry)) = best.reduce(|best, next| if next.0 > best.0 { next } else { best })
        else {
            return Ok(None);
        };
        let failed = |source| AuthFileError::Entry { path: self.path.clone(), key: key.clone(), source };
        entry.secret().map_err(failed)
    }

    /// Runs `docker-credential-<name> get`.
    async fn ask(&self, name: &str, server: &str) -> Result<Option<Secret>, AuthFileError> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        if name.is_empty() || !name.bytes().all(plain) {
            return Err(AuthFileError::HelperName { path: self.path.clone(), name: name.to_owned() });
        }
        ask_program(&format!("docker-credential-{name}"), server).await
    }
}

async fn ask_program(program: &str, server: &str) -> Result<Option<Secret>, AuthFileError> {
    let failed = |reason: String| AuthFileError::Helper {
        program: program.to_owned(),
        server: server.to_owned(),
        reason,
    };
    match tokio::time::timeout(HELPER_TIME, run(program, server)).await {
        Err(_) => Err(failed(format!("no answer for {} s", HELPER_TIME.as_secs()))),
        Ok(Err(e)) => Err(failed(e.to_string())),
        // Its words may be anything; only the ones for "I have none" are needed.
        Ok(Ok((false, said))) if said.contains("credentials not found") => Ok(None),
        Ok(Ok((false, _))) => Err(failed("it failed".to_owned())),
        Ok(Ok((true, said))) => {
            let answer: Answer = serde_json::from_str(&said)
                .map_err(|_| failed("its answer is not Username and Secret".to_owned()))?;
            Ok(Some(if answer.username == TOKEN_USER {
                Secret::Identity(answer.secret)
            } else {
                Secret::Basic { username: answer.username, password: answer.secret }
            }))
        }
    }
}

impl Entry {
    fn says_something(&self) -> bool {
        [&self.auth, &self.username, &self.identitytoken, &self.registrytoken].iter().any(|f| !f.is_empty())
    }

    fn secret(&self) -> Result<Option<Secret>, CredentialError> {
        Ok(if !self.identitytoken.is_empty() {
            Some(Secret::Identity(self.identitytoken.clone()))
        } else if !self.auth.is_empty() {
            Some(basic(&self.auth)?)
        } else if !self.username.is_empty() {
            Some(Secret::Basic { username: self.username.clone(), password: self.password.clone() })
        } else if !self.registrytoken.is_empty() {
            Some(Secret::Bearer(self.registrytoken.clone()))
        } else {
            None
        })
    }
}

fn same_host(key: &str, host: &str) -> bool {
    let hub = |name: &str| matches!(name, "docker.io" | HUB_KEY | "registry-1.docker.io");
    key == host || (hub(key) && hub(host))
}

/// Whether it ended well, and what it printed: the answer, or what is wrong.
async fn run(program: &str, server: &str) -> io::Result<(bool, String)> {
    let mut child = tokio::process::Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut input) = child.stdin.take() {
        // One that does not read has its reasons; its answer counts.
        let _ = input.write_all(server.as_bytes()).await;
    }
    let mut said = Vec::new();
    if let Some(output) = child.stdout.take() {
        output.take(ANSWER_MAX).read_to_end(&mut said).await?;
    }
    let status = child.wait().await?;
    Ok((status.success(), String::from_utf8_lossy(&said).into_owned()))
}

#[cfg(test)]
mod tests;
