//! What tests of this crate build their input from: tar streams with every field under control, images,
//! and a registry on loopback.

pub(crate) mod dice;
pub(crate) mod registry;

use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};

pub(crate) use dice::{Dice, dice};

use crate::digest::Digest;

/// Stops a test that would prove nothing without privilege.
pub(crate) fn require_root() {
    assert!(rustix::process::geteuid().is_root(), "this test needs root: mknod, trusted.* and overlayfs");
}

/// A tar stream, entry by entry.
#[derive(Default)]
pub(crate) struct Tar(Vec<u8>);

impl Tar {
    /// An entry with nothing special about it.
    pub(crate) fn entry(mut self, kind: u8, name: &str, link: &str, data: &[u8]) -> Self {
        self.raw(&header(kind, name.as_bytes(), link.as_bytes(), data.len() as u64), data);
        self
    }

    pub(crate) fn file(self, name: &str, data: &[u8]) -> Self {
        self.entry(b'0', name, "", data)
    }

    pub(crate) fn dir(self, name: &str) -> Self {
        self.entry(b'5', name, "", b"")
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(b'2', name, target, b"")
    }

    pub(crate) fn hardlink(self, name: &str, target: &str) -> Self {
        self.entry(b'1', name, target, b"")
    }

    /// A header that `change` had its way with; the checksum is right.
    pub(crate) fn with(
        mut self,
        kind: u8,
        name: &str,
        data: &[u8],
        change: impl FnOnce(&mut tar::Header),
    ) -> Self {
        let mut header = header(kind, name.as_bytes(), b"", data.len() as u64);
        change(&mut header);
        header.set_cksum();
        self.raw(&header, data);
        self
    }

    /// A PAX header for the next entry (`x`) or for all (`g`).
    pub(crate) fn pax(mut self, kind: u8, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let body = key.len() + value.len() + 3;
            let mut length = body + 1;
            while length != body + length.to_string().len() {
                length = body + length.to_string().len();
            }
            data.extend_from_slice(format!("{length} {key}=").as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.raw(&header(kind, b"pax", b"", data.len() as u64), &data);
        self
    }

    pub(crate) fn raw(&mut self, header: &tar::Header, data: &[u8]) {
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

fn header(kind: u8, name: &[u8], link: &[u8], size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::new(kind));
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
    header.set_mode(if kind == b'5' { 0o755 } else { 0o644 });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_000_000_000);
    header.set_size(size);
    header.set_cksum();
    header
}

pub(crate) fn gzip(data: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(data).unwrap();
    out.finish().unwrap()
}

pub(crate) fn zstd(data: &[u8]) -> Vec<u8> {
    zstd::encode_all(data, 1).unwrap()
}

/// One layer of an image to build.
pub(crate) struct LayerBlob {
    pub(crate) blob: Vec<u8>,
    pub(crate) diff_id: Digest,
    pub(crate) media_type: &'static str,
}

pub(crate) fn plain_layer(tar: Vec<u8>) -> LayerBlob {
    let diff_id = Digest::of(&tar);
    LayerBlob { blob: tar, diff_id, media_type: "application/vnd.oci.image.layer.v1.tar" }
}

pub(crate) fn gzip_layer(tar: &[u8]) -> LayerBlob {
    let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
    LayerBlob { blob: gzip(tar), diff_id: Digest::of(tar), media_type }
}

pub(crate) fn zstd_layer(tar: &[u8]) -> LayerBlob {
    let media_type = "application/vnd.oci.image.layer.v1.tar+zstd";
    LayerBlob { blob: zstd(tar), diff_id: Digest::of(tar), media_type }
}

/// Config, manifest and blobs of an image for this machine.
pub(crate) struct Built {
    pub(crate) config: Vec<u8>,
    pub(crate) manifest: Vec<u8>,
    pub(crate) layers: Vec<LayerBlob>,
}

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// `salt` makes the config, and so the id, differ.
pub(crate) fn image(salt: &str, layers: Vec<LayerBlob>) -> Built {
    image_for(&crate::Platform::host().architecture, salt, layers)
}

pub(crate) fn image_for(architecture: &str, salt: &str, layers: Vec<LayerBlob>) -> Built {
    let diff_ids: Vec<String> = layers.iter().map(|l| l.diff_id.to_string()).collect();
    let config = json!({
        "architecture": architecture, "os": "linux",
        "config": {"Cmd": ["/bin/run", salt], "Env": ["A=b"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = serde_json::to_vec(&config).unwrap();
    let list: Vec<Value> = layers.iter().map(|l| descriptor(l.media_type, &l.blob)).collect();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": list,
    });
    Built { config, manifest: serde_json::to_vec(&manifest).unwrap(), layers }
}

pub(crate) fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(bytes).to_string(), "size": bytes.len()})
}

/// Everything below a directory, with type, mode, owner, links, size and content: to compare before and
/// after.
pub(crate) fn fingerprint(dir: &Path) -> Vec<String> {
    use std::os::unix::fs::MetadataExt;
    let mut out = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = path.symlink_metadata().unwrap();
        let content =
            if meta.is_file() { Digest::of(&std::fs::read(&path).unwrap()).hex() } else { String::new() };
        let times = (meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec());
        let who = (meta.mode(), meta.uid(), meta.gid(), meta.nlink(), meta.size(), meta.ino());
        out.push(format!("{} {who:?} {times:?} {content}", path.display()));
        if meta.is_dir() {
            todo.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
    }
    out.sort();
    out
}

fn layout_files(images: &[(&str, &Built)]) -> Vec<(String, Vec<u8>)> {
    let mut files = vec![("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())];
    let mut entries = Vec::new();
    for (name, image) in images {
        let mut entry = descriptor(MANIFEST, &image.manifest);
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        entries.push(entry);
        let blobs = image.layers.iter().map(|l| &l.blob).chain([&image.config, &image.manifest]);
        files.extend(blobs.map(|b| (format!("blobs/sha256/{}", Digest::of(b).hex()), b.clone())));
    }
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries});
    files.push(("index.json".to_owned(), serde_json::to_vec(&index).unwrap()));
    files
}

/// An OCI layout in `dir`, each image with its name as annotation.
pub(crate) fn write_layout(dir: &Path, images: &[(&str, &Built)]) {
    std::fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
    for (name, bytes) in layout_files(images) {
        std::fs::write(dir.join(name), bytes).unwrap();
    }
}

/// The same as a tar.
pub(crate) fn layout_tar(images: &[(&str, &Built)]) -> Vec<u8> {
    layout_files(images).iter().fold(Tar::default(), |tar, (name, bytes)| tar.file(name, bytes)).end()
}
