//! Which endpoints serve a registry name. Purpose: reads containerd's `certs.d` layout, a directory a
//! host with `hosts.toml` or docker's certificate files, anew for every pull. Opens no connection.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;

use super::endpoint::Endpoint;
use super::tls::TlsSettings;

const DIAL_TIMEOUT: Duration = Duration::from_secs(30);

/// Why the endpoints of a registry cannot be known.
#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    /// The file cannot be read.
    #[error("{}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The file is not TOML, or has a key or value that is not supported.
    #[error("{}", path.display())]
    Syntax {
        /// Which.
        path: PathBuf,
        /// Cause.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A value that means nothing.
    #[error("{}: {key} = {value:?}: {reason}", path.display())]
    Value {
        /// Which file.
        path: PathBuf,
        /// Which key.
        key: &'static str,
        /// What it says.
        value: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The registry name cannot be part of a URL.
    #[error("registry name {0:?} cannot be part of a URL")]
    Name(String),
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct HostsFile {
    server: Option<String>,
    host: Option<toml::Table>,
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMany>,
    client: Option<Client>,
    skip_verify: Option<bool>,
    header: Option<toml::Table>,
    override_path: Option<bool>,
    dial_timeout: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct HostTable {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMany>,
    client: Option<Client>,
    skip_verify: Option<bool>,
    header: Option<toml::Table>,
    override_path: Option<bool>,
    dial_timeout: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// `"file"`, `["file", …]` or `[["cert", "key"], …]`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Client {
    One(String),
    Many(Vec<String>),
    Pairs(Vec<Vec<String>>),
}

/// The endpoints for `domain` in the order in which they are tried.
pub(super) fn endpoints(config_dir: &Path, domain: &str) -> Result<Vec<Endpoint>, HostsError> {
    let Some(dir) = directory(config_dir, domain) else { return default_endpoints(domain, None) };
    let path = dir.join("hosts.toml");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return default_endpoints(domain, docker_certificates(&dir)?);
        }
        Err(source) => return Err(HostsError::Read { path, source }),
    };
    let file = toml::from_str(&text)
        .map_err(|source| HostsError::Syntax { path: path.clone(), source: Box::new(source) })?;
    Reader { dir: &dir, path: &path, domain }.read(file)
}

/// The first directory that exists: `host_port_`, `host:port`, `_default`.
fn directory(config_dir: &Path, domain: &str) -> Option<PathBuf> {
    let mut names = Vec::new();
    if let Some((host, port)) = domain.rsplit_once(':').filter(|(_, port)| !port.contains(']')) {
        names.push(format!("{host}_{port}_"));
    }
    names.push(domain.to_owned());
    names.push("_default".to_owned());
    names.into_iter().map(|name| config_dir.join(name)).find(|dir| dir.is_dir())
}

/// Docker Hub's API has another name than its images.
pub(super) fn api_host(domain: &str) -> &str {
    if domain == "docker.io" { "registry-1.docker.io" } else { domain }
}

fn default_endpoints(domain: &str, tls: Option<TlsSettings>) -> Result<Vec<Endpoint>, HostsError> {
    let host = api_host(domain);
    let schemes: &[&str] = match &tls {
        // A registry on this machine is plain in most cases; with certificates it surely is not.
        None if is_loopback(host) => &["http", "https"],
        _ => &["https"],
    };
    let make = |scheme: &&str| {
        let base = format!("{scheme}://{host}/v2/");
        let base = Url::parse(&base).map_err(|_| HostsError::Name(domain.to_owned()))?;
        let fallback = *scheme != schemes[0];
        Ok(Endpoint { tls: tls.clone().unwrap_or_default(), fallback, ..Endpoint::plain(base) })
    };
    schemes.iter().map(make).collect()
}

pub(super) fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_matches(['[', ']']);
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// `*.crt` are roots, `name.cert` with `name.key` is the client's pair.
fn docker_certificates(dir: &Path) -> Result<Option<TlsSettings>, HostsError> {
    let read = |source| HostsError::Read { path: dir.to_owned(), source };
    let mut files = std::fs::read_dir(dir)
        .and_then(|entries| entries.map(|e| e.map(|e| e.path())).collect::<io::Result<Vec<_>>>())
        .map_err(read)?;
    files.sort_unstable();
    let with = |extension: &str| {
        files.iter().filter(|f| f.extension().is_some_and(|e| e == extension)).cloned().collect::<Vec<_>>()
    };
    let client =
        with("cert").into_iter().map(|cert| (cert.with_extension("key"), cert)).find(|(key, _)| key.exists());
    let tls =
        TlsSettings { ca: with("crt"), client: client.map(|(key, cert)| (cert, key)), skip_verify: false };
    Ok((tls != TlsSettings::default()).then_some(tls))
}

struct Reader<'a> {
    dir: &'a Path,
    path: &'a Path,
    domain: &'a str,
}

impl Reader<'_> {
    fn read(&self, file: HostsFile) -> Result<Vec<Endpoint>, HostsError> {
        let mut out = Vec::new();
        for (url, value) in file.host.unwrap_or_default() {
            let table: HostTable = value
                .try_into()
                .map_err(|e| HostsError::Syntax { path: self.path.to_owned(), source: Box::new(e) })?;
            out.push(self.endpoint("host", &url, table)?);
        }
        let root = HostTable {
            capabilities: file.capabilities,
            ca: file.ca,
            client: file.client,
            skip_verify: file.skip_verify,
            header: file.header,
            override_path: file.override_path,
            dial_timeout: file.dial_timeout,
        };
        match file.server.filter(|server| !server.is_empty()) {
            Some(server) => out.push(self.endpoint("server", &server, root)?),
            None => {
                let upstream = default_endpoints(self.domain, None)?;
                let settings = self.endpoint("server", "https://x.invalid", root)?;
                out.extend(upstream.into_iter().map(|up| Endpoint {
                    base: up.base,
                    fallback: up.fallback,
                    ..settings.clone()
                }));
            }
        }
        for endpoint in &mut out {
            // A proxy for many registries needs to know which one is meant.
            let differs = endpoint.authority() != api_host(self.domain);
            endpoint.namespace = differs.then(|| self.domain.to_owned());
        }
        Ok(out)
    }

    fn value(&self, key: &'static str, value: &str, reason: &'static str) -> HostsError {
        HostsError::Value { path: self.path.to_owned(), key, value: value.to_owned(), reason }
    }

    fn endpoint(&self, key: &'static str, url: &str, table: HostTable) -> Result<Endpoint, HostsError> {
        let text = match url.contains("://") {
            true => url.to_owned(),
            false if is_loopback(url) => format!("http://{url}"),
            false => format!("https://{url}"),
        };
        let mut base = Url::parse(&text).map_err(|_| self.value(key, url, "not a URL"))?;
        if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
            return Err(self.value(key, url, "not an http or https URL"));
        }
        let path = base.path().trim_end_matches('/').to_owned();
        // The path belongs behind the API root, unless it is said to contain it.
        let path = match table.override_path.unwrap_or(false) {
            true => format!("{path}/"),
            false if path.starts_with("/v2/") || path == "/v2" => format!("{path}/"),
            false => format!("/v2{path}/"),
        };
        base.set_path(&path);
        base.set_query(None);
        let mut endpoint = Endpoint::plain(base);
        if let Some(capabilities) = table.capabilities {
            self.capabilities(&mut endpoint, &capabilities)?;
        }
        endpoint.tls = TlsSettings {
            ca: match table.ca {
                None => Vec::new(),
                Some(OneOrMany::One(file)) => vec![self.dir.join(file)],
                Some(OneOrMany::Many(files)) => files.iter().map(|file| self.dir.join(file)).collect(),
            },
            client: self.client(table.client)?,
            skip_verify: table.skip_verify.unwrap_or(false),
        };
        endpoint.headers = self.headers(table.header.unwrap_or_default())?;
        endpoint.dial_timeout = match table.dial_timeout {
            None => DIAL_TIMEOUT,
            Some(text) => {
                duration(&text).ok_or_else(|| self.value("dial_timeout", &text, "not a duration"))?
            }
        };
        Ok(endpoint)
    }

    fn capabilities(&self, endpoint: &mut Endpoint, list: &[String]) -> Result<(), HostsError> {
        (endpoint.pull, endpoint.resolve) = (false, false);
        for capability in list {
            match capability.as_str() {
                "pull" => endpoint.pull = true,
                "resolve" => endpoint.resolve = true,
                // Images are never pushed from here.
                "push" => {}
                other => {
                    return Err(self.value("capabilities", other, "neither pull, resolve nor push"));
                }
            }
        }
        Ok(())
    }

    fn client(&self, client: Option<Client>) -> Result<Option<(PathBuf, PathBuf)>, HostsError> {
        let pair = |cert: &str, key: &str| Some((self.dir.join(cert), self.dir.join(key)));
        let pairs: Vec<_> = match client {
            None => return Ok(None),
            Some(Client::One(file)) => vec![pair(&file, &file)],
            Some(Client::Many(files)) => files.iter().map(|file| pair(file, file)).collect(),
            Some(Client::Pairs(list)) => list
                .iter()
                .map(|entry| match entry.as_slice() {
                    [both] => Ok(pair(both, both)),
                    [cert, key] if key.is_empty() => Ok(pair(cert, cert)),
                    [cert, key] => Ok(pair(cert, key)),
                    _ => Err(self.value("client", &entry.join(", "), "not a certificate and a key")),
                })
                .collect::<Result<_, _>>()?,
        };
        match pairs.as_slice() {
            [] => Ok(None),
            [one] => Ok(one.clone()),
            _ => Err(self.value("client", "…", "more than one client certificate is not supported")),
        }
    }

    fn headers(&self, table: toml::Table) -> Result<HeaderMap, HostsError> {
        let mut out = HeaderMap::new();
        for (name, value) in table {
            let bad = |value: &str| self.value("header", value, "not a header");
            let key = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad(&name))?;
            let values = match value {
                toml::Value::Array(list) => list,
                other => vec![other],
            };
            for value in values {
                let text = value.as_str().ok_or_else(|| bad(&name))?;
                let text = HeaderValue::from_str(text).map_err(|_| bad(&name))?;
                out.append(key.clone(), text);
            }
        }
        Ok(out)
    }
}

/// A duration as Go writes it: `300ms`, `5s`, `1m30s`.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        let unit = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |n| digits + n);
        let seconds = match &rest[digits..unit] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total += Duration::try_from_secs_f64(number * seconds).ok()?;
        rest = &rest[unit..];
    }
    (!total.is_zero()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(domain: &str, files: &[(&str, &str)]) -> Result<Vec<Endpoint>, HostsError> {
        let tmp = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = tmp.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        endpoints(tmp.path(), domain)
    }

    fn bases(endpoints: &[Endpoint]) -> Vec<&str> {
        endpoints.iter().map(|e| e.base.as_str()).collect()
    }

    #[test]
    fn without_configuration_the_name_is_the_endpoint() {
        assert_eq!(bases(&read("docker.io", &[]).unwrap()), ["https://registry-1.docker.io/v2/"]);
        assert_eq!(bases(&read("quay.io", &[]).unwrap()), ["https://quay.io/v2/"]);
        let local = read("localhost:5000", &[]).unwrap();
        assert_eq!(bases(&local), ["http://localhost:5000/v2/", "https://localhost:5000/v2/"]);
        assert!(is_loopback("127.0.0.1:1") && is_loopback("[::1]:1") && !is_loopback("127.0.0.1.evil.com"));
    }

    #[test]
    fn hosts_keep_their_order_and_the_server_comes_last() {
        let text = r#"
            server = "https://up.example"
            ca = "up.pem"
            [host."http://z.example:5000"]
            capabilities = ["pull"]
            [host."https://a.example/proxy"]
            skip_verify = true
            dial_timeout = "1m30s"
            client = [["c.pem", "k.pem"]]
            [host."https://a.example/proxy".header]
            x-one = "1"
            x-two = ["a", "b"]
            [host."https://m.example/api/v9"]
            override_path = true
        "#;
        let found = read("docker.io", &[("docker.io/hosts.toml", text)]).unwrap();
        assert_eq!(
            bases(&found),
            [
                "http://z.example:5000/v2/",
                "https://a.example/v2/proxy/",
                "https://m.example/api/v9/",
                "https://up.example/v2/"
            ]
        );
        assert!(found[0].pull && !found[0].resolve && found[1].resolve);
        assert_eq!(found[0].namespace.as_deref(), Some("docker.io"));
        assert!(found[1].tls.skip_verify && found[1].tls.client.is_some());
        assert_eq!(found[1].dial_timeout, Duration::from_secs(90));
        assert_eq!(found[1].headers.get_all("x-two").iter().count(), 2);
        assert!(found[3].tls.ca[0].ends_with("docker.io/up.pem"));
    }

    #[test]
    fn directories_are_looked_up_in_containerds_order() {
        let server = |n: u8| format!("server = \"https://s{n}.example\"");
        let (a, b, c) = (server(1), server(2), server(3));
        let all = [("h_5_/hosts.toml", &*a), ("h:5/hosts.toml", &*b), ("_default/hosts.toml", &*c)];
        for (from, expected) in
            [(0, "https://s1.example/v2/"), (1, "https://s2.example/v2/"), (2, "https://s3.example/v2/")]
        {
            assert_eq!(bases(&read("h:5", &all[from..]).unwrap()), [expected]);
        }
    }

    #[test]
    fn without_a_server_the_registry_itself_comes_last() {
        let found = read("quay.io", &[("quay.io/hosts.toml", "[host.\"http://m:1\"]")]).unwrap();
        assert_eq!(bases(&found), ["http://m:1/v2/", "https://quay.io/v2/"]);
        assert_eq!(found[1].namespace, None);
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for (text, word) in [
            ("rewrite = 1", "rewrite"),
            ("[host.\"https://x\"]\nskipverify = true", "skipverify"),
            ("capabilities = [\"fly\"]", "fly"),
            ("server = \"ftp://x\"", "ftp://x"),
            ("dial_timeout = \"soon\"", "soon"),
        ] {
            let error = read("q.io", &[("q.io/hosts.toml", text)]).unwrap_err();
            let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            assert!(format!("{error} {source}").contains(word), "{error} {source}");
        }
    }

    #[test]
    fn docker_certificates_are_found_beside() {
        let found = read("q.io", &[("q.io/ca.crt", ""), ("q.io/c.cert", ""), ("q.io/c.key", "")]).unwrap();
        assert_eq!(found[0].tls.ca.len(), 1);
        assert!(found[0].tls.client.is_some());
    }
}
