//! Images as one archive. Purpose: an OCI layout as tar, with the file that `docker load` looks for, made
//! from what is in the store; the layers have their diff ids, so the images keep their ids. Layers are not
//! compressed: whoever wants that compresses the whole. Writes to what it is given.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::Arc;

use serde_json::{Value, json};

use crate::digest::{Digest, Hasher};
use crate::rooted::open_dir;
use crate::store::{Image, Inner, Store, StoreError, blocking};
use crate::unpack::Replay;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const BUFFER: usize = 128 << 10;

/// Why images could not be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// There is no such image, or its layers cannot be kept in place.
    #[error("export")]
    Store(#[from] StoreError),
    /// A layer's archive cannot be made again.
    #[error("export {image}: layer {layer}: {reason}")]
    Layer {
        /// Which image.
        image: Digest,
        /// Diff id of the layer.
        layer: Digest,
        /// Why not.
        reason: String,
    },
    /// A document of the store is gone or altered.
    #[error("export {image}: document {digest}")]
    Document {
        /// Which image.
        image: Digest,
        /// Of the document.
        digest: Digest,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The archive cannot be written.
    #[error("export: write")]
    Write(#[from] io::Error),
}

impl Store {
    /// Writes the images with these names or ids to `out`. An image that is named by a tag or digest gets
    /// that name alone in the archive, one that is named by its id all its tags.
    ///
    /// Cancel safety: the export ends when `out` refuses a write.
    ///
    /// # Errors
    /// [`ExportError`]; what was written by then is no whole archive.
    pub async fn export(
        &self,
        names: &[String],
        out: impl Write + Send + 'static,
    ) -> Result<(), ExportError> {
        let mut wanted = Vec::new();
        for name in names {
            let image = self.get(name)?.ok_or_else(|| StoreError::Missing(name.clone()))?;
            let named: Vec<String> = match crate::Reference::parse(name).ok().and_then(|r| r.tagged()) {
                Some(tag) if image.tags.contains(&tag) => vec![tag],
                _ => image.tags.clone(),
            };
            wanted.push((image, named));
        }
        let inner = self.inner.clone();
        let chains: Vec<Digest> =
            wanted.iter().flat_map(|(image, _)| &image.layers).map(|layer| layer.chain_id).collect();
        let lease = self.inner.lease(&chains);
        blocking(move || {
            let _lease = lease;
            Export { inner: &inner, out, blobs: BTreeSet::new() }.run(&wanted)
        })
        .await?
    }
}

struct Export<'a, W> {
    inner: &'a Inner,
    out: W,
    /// In the archive already.
    blobs: BTreeSet<Digest>,
}

impl<W: Write> Export<'_, W> {
    fn run(&mut self, images: &[(Arc<Image>, Vec<String>)]) -> Result<(), ExportError> {
        self.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let (mut entries, mut saved) = (Vec::new(), Vec::new());
        for (image, names) in images {
            let manifest = self.image(image)?;
            for name in names {
                let mut entry = manifest.clone();
                let tag = name.rsplit_once(':').map_or("", |(_, tag)| tag);
                entry["annotations"] = json!({
                    "io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag,
                });
                entries.push(entry);
            }
            if names.is_empty() {
                entries.push(manifest);
            }
            let path = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
            saved.push(json!({
                "Config": path(&image.id), "RepoTags": names,
                "Layers": image.layers.iter().map(|layer| path(&layer.diff_id)).collect::<Vec<_>>(),
            }));
        }
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries});
        self.file("index.json", index.to_string().as_bytes())?;
        self.file("manifest.json", Value::from(saved).to_string().as_bytes())?;
        self.out.write_all(&[0; 1024])?;
        Ok(self.out.flush()?)
    }

    /// Everything of one image; the descriptor of its manifest.
    fn image(&mut self, image: &Arc<Image>) -> Result<Value, ExportError> {
        let config = self.inner.document(image.id).map_err(|source| ExportError::Document {
            image: image.id,
            digest: image.id,
            source,
        })?;
        let config = self.blob(CONFIG, &config)?;
        let mut layers = Vec::new();
        for index in 0..image.layers.len() {
            layers.push(self.layer(image, index)?);
        }
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        self.blob(MANIFEST, manifest.to_string().as_bytes())
    }

    fn blob(&mut self, kind: &str, bytes: &[u8]) -> Result<Value, ExportError> {
        let digest = Digest::of(bytes);
        if self.blobs.insert(digest) {
            self.file(&format!("blobs/sha256/{}", digest.hex()), bytes)?;
        }
        Ok(json!({"mediaType": kind, "digest": digest.to_string(), "size": bytes.len()}))
    }

    fn layer(&mut self, image: &Arc<Image>, index: usize) -> Result<Value, ExportError> {
        let layer = &image.layers[index];
        let refused = |reason: String| ExportError::Layer { image: image.id, layer: layer.diff_id, reason };
        let open = || File::open(self.inner.split_path(&layer.chain_id));
        let missing = |e: io::Error| match e.kind() {
            io::ErrorKind::NotFound => {
                refused("its archive cannot be made again from what is in the store".into())
            }
            _ => refused(e.to_string()),
        };
        let size = Replay::length(open().map_err(missing)?).map_err(|e| refused(e.to_string()))?;
        let descriptor = json!({"mediaType": LAYER, "digest": layer.diff_id.to_string(), "size": size});
        if !self.blobs.insert(layer.diff_id) {
            return Ok(descriptor);
        }
        let lowers = image.layers[..index].iter().rev().map(|l| open_dir(&l.directory));
        let replay = lowers
            .collect::<io::Result<Vec<_>>>()
            .and_then(|lowers| Replay::new(open()?, open_dir(&layer.directory)?, lowers));
        let mut replay = replay.map_err(|e| refused(e.to_string()))?;
        self.header(&format!("blobs/sha256/{}", layer.diff_id.hex()), size)?;
        let (mut hasher, mut buffer, mut left) = (Hasher::default(), vec![0; BUFFER], size);
        loop {
            let n = replay.read(&mut buffer).map_err(|e| refused(e.to_string()))?;
            if n == 0 {
                break;
            }
            hasher.update(&buffer[..n]);
            left = left.checked_sub(n as u64).ok_or_else(|| refused("it has grown".to_owned()))?;
            self.out.write_all(&buffer[..n])?;
        }
        let found = hasher.finish();
        if left != 0 || found != layer.diff_id {
            return Err(refused(format!("it is damaged: its diff id is {found}")));
        }
        self.pad(size)?;
        Ok(descriptor)
    }

    fn file(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.header(name, bytes.len() as u64)?;
        self.out.write_all(bytes)?;
        self.pad(bytes.len() as u64)
    }

    fn header(&mut self, name: &str, size: u64) -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_path(name)?;
        header.set_size(size);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        self.out.write_all(header.as_bytes())
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let rest = usize::try_from(size.next_multiple_of(512) - size).unwrap_or(0);
        self.out.write_all(&[0; 512][..rest])
    }
}

#[cfg(test)]
mod tests;
