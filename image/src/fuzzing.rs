//! What the fuzz targets call (image/fuzz), each with any bytes. Purpose: one place that says what must hold
//! whatever comes; a test calls the same with the corpus and with what random changes make of it. Each
//! function panics when a rule is broken.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a broken rule has to end the program")]

use std::os::fd::AsFd;
use std::path::Path;

use crate::digest::Digest;
use crate::document::Document;
use crate::reference::Reference;
use crate::rooted::open_dir;
use crate::unpack::{Archive, Expected, Limits, unpack};

const LIMITS: Limits = Limits { bytes: 16 << 20, entries: 2000 };

/// A reference that is accepted has a normal form that means the same, and no part that could leave a path.
pub fn reference(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(reference) = Reference::parse(text) else { return };
    let again = Reference::parse(&reference.to_string()).expect("the normal form is a reference");
    assert_eq!(reference, again, "the normal form is a fixed point");
    assert!(reference.path().split('/').all(|part| !matches!(part, "" | "." | "..")));
    assert!(!reference.domain().is_empty() && !reference.domain().contains(['/', '@', '?', '#', '%']));
    assert!(reference.tag().is_some() || reference.digest().is_some());
}

/// A document that is accepted keeps to its limits, whatever type was announced.
pub fn manifest(data: &[u8]) {
    let (first, rest) = data.split_first().unwrap_or((&0, b""));
    let announced = [
        None,
        Some("application/vnd.oci.image.index.v1+json"),
        Some("application/vnd.oci.image.manifest.v1+json"),
        Some("application/vnd.docker.distribution.manifest.v2+json"),
    ];
    let announced = announced[usize::from(first % 4)];
    if let Ok(Document::Manifest { config, layers }) = Document::parse(rest, announced) {
        assert!(layers.len() <= 128);
        assert!(layers.iter().chain([&config]).all(|part| i64::try_from(part.size).is_ok()));
    }
    let _ = crate::config::ParsedConfig::parse(rest);
}

/// Any stream is unpacked inside its directory or refused, in bounded space; the reader always ends.
pub fn tar(data: &[u8]) {
    let mut archive = Archive::new(data);
    while let Ok(Some(entry)) = archive.next() {
        assert!(!entry.path.contains(&0) && entry.path.len() <= 1 << 20);
    }
    inside(data);
}

/// Entries made of the data: whiteouts, links, files and directories whose names meet each other.
pub fn whiteouts(data: &[u8]) {
    const NAMES: [&str; 16] = [
        "a",
        "b",
        "a/b",
        "b/a",
        "a/b/c",
        ".wh.a",
        ".wh.b",
        "a/.wh.b",
        "a/.wh..wh..opq",
        ".wh..wh..opq",
        "../a",
        "b/.wh.a",
        "a/.wh.",
        ".wh...",
        "/a",
        "b/../a",
    ];
    let mut stream = Vec::new();
    for pair in data.chunks_exact(2).take(64) {
        let kind = [b'0', b'1', b'2', b'5', b'6', b'3'][usize::from(pair[0] & 0x0f) % 6];
        let mut header = tar::Header::new_ustar();
        let name = NAMES[usize::from(pair[1] & 0x0f)];
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        let link = NAMES[usize::from(pair[1] >> 4)];
        if matches!(kind, b'1' | b'2') {
            header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        }
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(0);
        if kind == b'3' {
            header.set_device_major(u32::from(pair[0] >> 7)).unwrap();
            header.set_device_minor(u32::from(pair[0] >> 6 & 1)).unwrap();
        }
        header.set_cksum();
        stream.extend_from_slice(header.as_bytes());
    }
    stream.resize(stream.len() + 1024, 0);
    inside(&stream);
}

/// Unpacks beside a file that nothing may touch.
fn inside(stream: &[u8]) {
    let tmp = tempfile::tempdir().expect("a directory for the layer");
    let canary = tmp.path().join("a");
    std::fs::write(&canary, "canary").expect("a canary");
    let layer = tmp.path().join("layer");
    std::fs::create_dir(&layer).expect("a directory for the layer");
    let expected = Expected { blob: None, diff_id: Digest::of(stream) };
    let _ = unpack(stream, expected, open_dir(&layer).expect("the layer").as_fd(), LIMITS);
    assert_eq!(std::fs::read(&canary).expect("the canary is there"), b"canary");
    let links = std::os::unix::fs::MetadataExt::nlink(&canary.metadata().expect("the canary is there"));
    assert_eq!(links, 1, "nothing links to what is outside");
    let around = std::fs::read_dir(tmp.path()).expect("the directory around").count();
    assert_eq!(around, 2, "nothing lies outside of the layer");
    assert!(!marks(&layer), "a mark of overlayfs came from outside");
}

/// Whether a file in the tree has an attribute of overlayfs'; only directories may, and only the one for opaque.
fn marks(layer: &Path) -> bool {
    let mut todo = vec![layer.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = path.symlink_metadata().expect("an entry of the layer");
        let mut value = [0; 16];
        let mut has = |name: &str| rustix::fs::lgetxattr(&path, name, &mut value[..]).is_ok();
        if has("trusted.overlay.redirect") || (!meta.is_dir() && has("trusted.overlay.opaque")) {
            return true;
        }
        if meta.is_dir() {
            todo.extend(
                std::fs::read_dir(&path).expect("a directory of the layer").flatten().map(|e| e.path()),
            );
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs in which the corpus is changed, for each target.
    const ROUNDS: u64 = 300;

    fn run(name: &str, target: fn(&[u8])) {
        crate::fixture::require_root();
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
        let mut seeds: Vec<_> =
            std::fs::read_dir(&corpus).unwrap().map(|entry| entry.unwrap().path()).collect();
        seeds.sort();
        let seeds: Vec<Vec<u8>> = seeds.iter().map(|path| std::fs::read(path).unwrap()).collect();
        assert!(seeds.len() > 3, "the corpus of {name} is empty");
        seeds.iter().for_each(|seed| target(seed));
        let (mut dice, rounds) = crate::fixture::dice(name, ROUNDS);
        for _ in 0..rounds {
            let mut data = dice.pick(&seeds).clone();
            for _ in 0..=dice.below(4) {
                let at = dice.below(data.len().max(1));
                match dice.below(5) {
                    _ if data.is_empty() => data.push(dice.byte()),
                    0 => data[at] = dice.byte(),
                    1 => data[at] ^= 1 << dice.below(8),
                    2 => data.truncate(at),
                    3 => data.insert(at, dice.byte()),
                    _ => {
                        let other = dice.pick(&seeds).clone();
                        let from = dice.below(other.len().max(1));
                        data.splice(at.., other[from.min(other.len())..].iter().copied());
                    }
                }
            }
            target(&data);
        }
    }

    #[test]
    fn references_hold_whatever_comes() {
        run("reference", reference);
    }

    #[test]
    fn i01_manifests_hold_whatever_comes() {
        run("manifest", manifest);
    }

    #[test]
    fn t08_archives_hold_whatever_comes() {
        run("tar", tar);
    }

    #[test]
    fn t10_whiteouts_hold_whatever_comes() {
        run("whiteouts", whiteouts);
    }
}
