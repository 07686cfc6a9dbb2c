//! The image configuration. Purpose: the config blob (`oci-spec` types) becomes one plain struct, read
//! once. Image labels are data only: nothing here lets one choose a program, path or device.

use std::collections::BTreeMap;

use oci_spec::image::ImageConfiguration;

use crate::digest::{Digest, DigestError};
use crate::platform::Platform;

/// What an image says about how to run it (OCI image-spec, config.md).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// `NAME=value` entries.
    pub env: Vec<String>,
    /// First part of the command line.
    pub entrypoint: Vec<String>,
    /// Default arguments, or the whole command line without an entrypoint.
    pub cmd: Vec<String>,
    /// `user`, `uid`, `user:group`, `uid:gid`; empty for root.
    pub user: String,
    /// Empty for `/`.
    pub working_dir: String,
    /// Paths the image wants outside its writable layer, sorted.
    pub volumes: Vec<String>,
    /// Name or number of the signal that asks for a stop.
    pub stop_signal: Option<String>,
    /// Labels, as data.
    pub labels: BTreeMap<String, String>,
    /// `port/protocol`, sorted.
    pub exposed_ports: Vec<String>,
    /// When it was built, RFC 3339, as the image says.
    pub created: Option<String>,
}

/// Why a config blob cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not the JSON of an image configuration.
    #[error("image config is malformed")]
    Json(#[from] serde_json::Error),
    /// One of its diff ids is no digest.
    #[error("image config has a malformed diff id")]
    DiffId(#[from] DigestError),
}

/// A config blob, read.
#[derive(Debug, Clone)]
pub(crate) struct ParsedConfig {
    pub(crate) config: ImageConfig,
    pub(crate) platform: Platform,
    /// Digests of the uncompressed layers, bottom first.
    pub(crate) diff_ids: Vec<Digest>,
}

impl ParsedConfig {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        let mut value: serde_json::Value = serde_json::from_slice(bytes)?;
        // An image without layers is written by Go tools with the list missing or null.
        if let Some(rootfs) = value.get_mut("rootfs").and_then(|r| r.as_object_mut())
            && rootfs.get("diff_ids").is_none_or(serde_json::Value::is_null)
        {
            rootfs.insert("diff_ids".to_owned(), serde_json::Value::Array(Vec::new()));
        }
        let raw: ImageConfiguration = serde_json::from_value(value)?;
        let diff_ids =
            raw.rootfs().diff_ids().iter().map(|id| id.parse()).collect::<Result<Vec<Digest>, _>>()?;
        let platform = Platform {
            os: raw.os().to_string(),
            architecture: raw.architecture().to_string(),
            variant: raw.variant().clone().unwrap_or_default(),
        };
        let mut config = ImageConfig { created: raw.created().clone(), ..ImageConfig::default() };
        if let Some(inner) = raw.config() {
            config.env = inner.env().clone().unwrap_or_default();
            config.entrypoint = inner.entrypoint().clone().unwrap_or_default();
            config.cmd = inner.cmd().clone().unwrap_or_default();
            config.user = inner.user().clone().unwrap_or_default();
            config.working_dir = inner.working_dir().clone().unwrap_or_default();
            config.volumes = sorted(inner.volumes());
            config.stop_signal = inner.stop_signal().clone().filter(|s| !s.is_empty());
            config.labels = inner.labels().clone().unwrap_or_default().into_iter().collect();
            config.exposed_ports = sorted(inner.exposed_ports());
        }
        Ok(Self { config, platform, diff_ids })
    }
}

fn sorted(list: &Option<Vec<String>>) -> Vec<String> {
    let mut out = list.clone().unwrap_or_default();
    out.sort_unstable();
    out
}

/// The ids of the layer chain: each names a layer together with everything below it (image-spec,
/// config.md, "Layer ChainID").
pub(crate) fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut out: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff in diff_ids {
        let next = match out.last() {
            None => *diff,
            Some(below) => Digest::of(format!("{below} {diff}").as_bytes()),
        };
        out.push(next);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nulls_as_go_writes_them_are_absent_values() {
        let text = br#"{"architecture":"amd64","os":"linux","config":{"Env":null,"Entrypoint":null,
            "Cmd":["sh"],"User":"1000:7","Volumes":{"/b":{},"/a":{}},"Labels":null,"StopSignal":"SIGINT",
            "Healthcheck":{"Test":["NONE"]},"OnBuild":null},"rootfs":{"type":"layers","diff_ids":null}}"#;
        let parsed = ParsedConfig::parse(text).unwrap();
        assert_eq!(parsed.config.cmd, ["sh"]);
        assert_eq!(parsed.config.user, "1000:7");
        assert_eq!(parsed.config.volumes, ["/a", "/b"]);
        assert_eq!(parsed.config.stop_signal.as_deref(), Some("SIGINT"));
        assert!(parsed.diff_ids.is_empty() && parsed.config.env.is_empty());
        assert_eq!(parsed.platform.to_string(), "linux/amd64");
    }

    #[test]
    fn a_diff_id_that_is_no_digest_is_refused() {
        let text =
            br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:../x"]}}"#;
        assert!(matches!(ParsedConfig::parse(text), Err(ConfigError::DiffId(_))));
    }

    #[test]
    fn a_chain_id_depends_on_everything_below() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let chain = chain_ids(&[a, b]);
        assert_eq!(chain[0], a);
        assert_eq!(chain[1], Digest::of(format!("{a} {b}").as_bytes()));
        assert_ne!(chain_ids(&[b, a])[1], chain[1]);
    }
}
