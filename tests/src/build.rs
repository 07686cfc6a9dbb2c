//! Builds images for tests: a base image of hack/images, further layers entry by entry, and a configuration. What no
//! builder would put into an image can be put into one here.
//!
//! Must not know: who imports it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::registry::digest;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A layer: an uncompressed tar stream.
#[derive(Clone, Debug, Default)]
pub struct Tar(Vec<u8>);

impl Tar {
    /// A directory, mode 0755.
    #[must_use]
    pub fn dir(self, name: &str) -> Self {
        self.entry(b'5', name, "", b"", 0o755)
    }

    /// A regular file, mode 0644.
    #[must_use]
    pub fn file(self, name: &str, content: &[u8]) -> Self {
        self.entry(b'0', name, "", content, 0o644)
    }

    /// A symbolic link.
    #[must_use]
    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(b'2', name, target, b"", 0o777)
    }

    /// A device node, mode 0666: `3` a character device, `4` a block device.
    #[must_use]
    pub fn device(self, kind: u8, name: &str, (major, minor): (u32, u32)) -> Self {
        self.put((kind, 0o666), name, "", b"", (major, minor))
    }

    /// An entry of any kind (`0` file, `1` hard link, `2` symbolic link, `5` directory, `6` FIFO). Names of up to 100
    /// bytes.
    #[must_use]
    pub fn entry(self, kind: u8, name: &str, link: &str, content: &[u8], mode: u32) -> Self {
        self.put((kind, mode), name, link, content, (0, 0))
    }

    fn put(
        mut self,
        (kind, mode): (u8, u32),
        name: &str,
        link: &str,
        content: &[u8],
        (major, minor): (u32, u32),
    ) -> Self {
        let mut header = [0_u8; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, name.as_bytes());
        put(100, format!("{mode:07o}\0").as_bytes());
        put(108, b"0000000\0");
        put(116, b"0000000\0");
        put(124, format!("{:011o}\0", content.len()).as_bytes());
        put(136, b"07346545000\0");
        put(156, &[kind]);
        put(157, link.as_bytes());
        put(257, b"ustar\x0000");
        put(329, format!("{major:07o}\0").as_bytes());
        put(337, format!("{minor:07o}\0").as_bytes());
        seal(&mut header);
        self.0.extend_from_slice(&header);
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// A file of `size` bytes (below 8 GiB) of which the archive holds none: a sparse file as GNU tar writes it.
    #[must_use]
    pub fn sparse(mut self, name: &str, size: u64) -> Self {
        let start = self.0.len();
        self = self.put((b'S', 0o644), name, "", b"", (0, 0));
        let header = &mut self.0[start..start + 512];
        header[257..265].copy_from_slice(b"ustar  \0");
        header[329..345].fill(0);
        let end = format!("{size:011o}\0");
        // One piece, empty and at the end; then the size with all holes.
        header[386..398].copy_from_slice(end.as_bytes());
        header[398..410].copy_from_slice(b"00000000000\0");
        header[483..495].copy_from_slice(end.as_bytes());
        seal(header);
        self
    }

    /// The whole stream.
    #[must_use]
    pub fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// Puts the checksum into a header.
fn seal(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// An image to build.
#[derive(Clone, Debug, Default)]
pub struct Build {
    base: Option<String>,
    layers: Vec<Tar>,
    settings: serde_json::Map<String, Value>,
}

impl Build {
    /// An image with nothing in it.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// An image on top of one of hack/images.
    #[must_use]
    pub fn on(base: &str) -> Self {
        Self { base: Some(base.to_owned()), ..Self::default() }
    }

    /// Adds a layer.
    #[must_use]
    pub fn layer(mut self, tar: Tar) -> Self {
        self.layers.push(tar);
        self
    }

    /// Sets a field of the configuration's `config` object, such as `Volumes`.
    #[must_use]
    pub fn set(mut self, key: &str, value: Value) -> Self {
        self.settings.insert(key.to_owned(), value);
        self
    }

    /// Writes it as an OCI layout with the one image `name`.
    ///
    /// # Errors
    /// The base is not built, or a file cannot be written.
    pub fn write(self, name: &str, folder: &Path) -> Result<()> {
        let blobs = folder.join("blobs/sha256");
        fs::create_dir_all(&blobs)?;
        fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let put = |kind: &str, bytes: &[u8]| -> Result<Value> {
            let digest = digest(bytes);
            fs::write(blobs.join(digest.trim_start_matches("sha256:")), bytes)?;
            Ok(json!({"mediaType": kind, "digest": digest, "size": bytes.len()}))
        };
        let (mut config, mut layers) = match &self.base {
            Some(base) => copy_base(base, &blobs)?,
            None => (empty_config(), Vec::new()),
        };
        let diff_ids = config["rootfs"]["diff_ids"].as_array_mut().context("diff_ids of the base")?;
        for tar in self.layers {
            let bytes = tar.end();
            diff_ids.push(json!(digest(&bytes)));
            layers.push(put(LAYER, &bytes)?);
        }
        // It names as many layers as there were.
        config.as_object_mut().context("config of the base")?.remove("history");
        for (key, value) in self.settings {
            config["config"][key] = value;
        }
        let config = put(CONFIG, config.to_string().as_bytes())?;
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        let mut entry = put(MANIFEST, manifest.to_string().as_bytes())?;
        entry["annotations"] = json!({"io.containerd.image.name": name});
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]});
        Ok(fs::write(folder.join("index.json"), index.to_string())?)
    }
}

fn empty_config() -> Value {
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    json!({
        "architecture": architecture, "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": []},
    })
}

/// Copies the layers of a base image; its configuration, and the descriptors of its layers.
fn copy_base(name: &str, blobs: &Path) -> Result<(Value, Vec<Value>)> {
    let layout = crate::images::layout(name)?;
    let blob = |descriptor: &Value| -> Result<(Vec<u8>, String)> {
        let digest = descriptor["digest"].as_str().context("a descriptor without digest")?;
        let hex = digest.trim_start_matches("sha256:");
        let path = layout.join("blobs/sha256").join(hex);
        Ok((fs::read(&path).with_context(|| format!("read {}", path.display()))?, hex.to_owned()))
    };
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json"))?)?;
    let manifest: Value = serde_json::from_slice(&blob(&index["manifests"][0])?.0)?;
    let config: Value = serde_json::from_slice(&blob(&manifest["config"])?.0)?;
    let layers = manifest["layers"].as_array().context("layers of the base")?.clone();
    for layer in &layers {
        let (bytes, hex) = blob(layer)?;
        fs::write(blobs.join(hex), bytes)?;
    }
    Ok((config, layers))
}
