//! Archives, good and bad.

use std::path::Path;

use serde_json::json;

use super::*;
use crate::fixture::{
    Built, Tar, gzip_layer, image, image_for, layout_tar, plain_layer, require_root, write_layout, zstd_layer,
};

struct Bench {
    tmp: tempfile::TempDir,
    store: Store,
}

impl Bench {
    fn new() -> Self {
        require_root();
        let tmp = tempfile::tempdir().unwrap();
        let store = Store::open(&tmp.path().join("root")).unwrap();
        Self { tmp, store }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.tmp.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        std::fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    async fn import(&self, path: &Path) -> Result<Vec<Arc<Image>>, ImportError> {
        self.store.import(path, ImportOptions::default()).await
    }
}

fn built(salt: &str) -> Built {
    let base = Tar::default().dir("bin").file("bin/run", b"#!").end();
    let top = Tar::default().file("top", salt.as_bytes()).end();
    image(salt, vec![gzip_layer(&base), zstd_layer(&top)])
}

fn docker_archive(images: &[(&str, Built)]) -> Vec<u8> {
    let mut tar = Tar::default();
    let mut list = Vec::new();
    for (n, (tag, image)) in images.iter().enumerate() {
        let config = format!("{n}.json");
        tar = tar.file(&config, &image.config);
        let mut layers = Vec::new();
        for (i, layer) in image.layers.iter().enumerate() {
            let name = format!("l{n}-{i}/layer.tar");
            // Equal layers are links in older versions.
            tar = match (n, i) {
                (1, 0) => tar.symlink(&name, "../l0-0/layer.tar"),
                _ => tar.file(&name, &layer.blob),
            };
            layers.push(name);
        }
        list.push(json!({"Config": config, "RepoTags": [tag], "Layers": layers}));
    }
    tar.file("manifest.json", &serde_json::to_vec(&list).unwrap()).end()
}

#[tokio::test]
async fn a_layout_is_imported_from_a_directory_and_from_a_tar() {
    let bench = Bench::new();
    let (a, b) = (built("a"), built("b"));
    write_layout(&bench.path("dir"), &[("app:a", &a), ("docker.io/library/app:b", &b)]);
    let images = bench.import(&bench.path("dir")).await.unwrap();
    assert_eq!(images.len(), 2);
    assert_eq!(images[0].id, Digest::of(&a.config));
    assert_eq!(images[0].tags, ["docker.io/library/app:a"]);
    assert_eq!(images[0].repo_digests, [format!("docker.io/library/app@{}", Digest::of(&a.manifest))]);
    let tar = bench.write("layout.tar", &layout_tar(&[("other:1", &a)]));
    let again = bench.import(&tar).await.unwrap();
    assert_eq!(again[0].tags, ["docker.io/library/app:a", "docker.io/library/other:1"]);
    assert_eq!(std::fs::read(again[0].layers[1].directory.join("top")).unwrap(), b"a");
    assert_eq!(bench.store.list().len(), 2);
}

#[tokio::test]
async fn a_bare_tag_takes_its_name_from_the_options() {
    let bench = Bench::new();
    write_layout(&bench.path("dir"), &[("v7", &built("a"))]);
    let unnamed = bench.import(&bench.path("dir")).await.unwrap();
    assert!(unnamed[0].tags.is_empty());
    let name = Some(Reference::parse("quay.io/team/app").unwrap());
    let options = ImportOptions { name, ..ImportOptions::default() };
    let named = bench.store.import(&bench.path("dir"), options).await.unwrap();
    assert_eq!(named[0].tags, ["quay.io/team/app:v7"]);
}

#[tokio::test]
async fn a_docker_archive_is_imported_with_its_links() {
    let bench = Bench::new();
    let shared = || plain_layer(Tar::default().file("shared", b"s").end());
    let own = |n: &str| plain_layer(Tar::default().file(n, b"o").end());
    let images =
        [("app:1", image("1", vec![shared(), own("x")])), ("app:2", image("2", vec![shared(), own("y")]))];
    let path = bench.write("save.tar", &docker_archive(&images));
    let imported = bench.import(&path).await.unwrap();
    assert_eq!(imported.len(), 2);
    assert_eq!(imported[1].tags, ["docker.io/library/app:2"]);
    assert_eq!(imported[0].layers[0], imported[1].layers[0]);
    assert_eq!(std::fs::read(imported[1].layers[1].directory.join("y")).unwrap(), b"o");
    assert!(imported[1].size > 1000);
}

#[tokio::test]
async fn archives_for_other_machines_and_of_other_kinds_are_named() {
    let bench = Bench::new();
    let layer = plain_layer(Tar::default().file("f", b"").end());
    write_layout(&bench.path("dir"), &[("app:1", &image_for("s390x", "", vec![layer]))]);
    assert!(matches!(bench.import(&bench.path("dir")).await, Err(ImportError::NoPlatform { .. })));
    let odd = bench.write("odd.tar", &Tar::default().file("hello", b"").end());
    assert!(matches!(bench.import(&odd).await, Err(ImportError::Format { .. })));
    let text = bench.write("text", &[b'x'; 2000]);
    assert!(matches!(bench.import(&text).await, Err(ImportError::Archive { .. })));
    let missing = bench.import(&bench.path("missing")).await.unwrap_err();
    assert!(missing.to_string().contains("missing"), "{missing}");
    let broken = Tar::default().file("manifest.json", b"[{").end();
    assert!(matches!(bench.import(&bench.write("b.tar", &broken)).await, Err(ImportError::Json { .. })));
    assert!(bench.store.list().is_empty());
}

#[tokio::test]
async fn i04_an_altered_archive_leaves_nothing() {
    let bench = Bench::new();
    let image = built("a");
    write_layout(&bench.path("dir"), &[("app:1", &image)]);
    let blob = |digest: Digest| bench.path("dir/blobs/sha256").join(digest.hex());
    let layer = blob(Digest::of(&image.layers[1].blob));
    let mut bytes = std::fs::read(&layer).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&layer, &bytes).unwrap();
    let error = bench.import(&bench.path("dir")).await.unwrap_err();
    assert!(matches!(error, ImportError::Layer { source: UnpackError::Digest { .. }, .. }), "{error:?}");
    std::fs::write(blob(Digest::of(&image.config)), b"{}").unwrap();
    assert!(matches!(bench.import(&bench.path("dir")).await, Err(ImportError::Digest { .. })));
    assert!(bench.store.list().is_empty());
    while std::fs::read_dir(bench.path("root/staging")).unwrap().count() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn i02_a_layout_does_not_reach_files_outside() {
    let bench = Bench::new();
    let image = built("a");
    write_layout(&bench.path("dir"), &[("app:1", &image)]);
    let config = bench.path("dir/blobs/sha256").join(Digest::of(&image.config).hex());
    bench.write("outside", &image.config);
    std::fs::remove_file(&config).unwrap();
    std::os::unix::fs::symlink(bench.path("outside"), &config).unwrap();
    assert!(matches!(bench.import(&bench.path("dir")).await, Err(ImportError::Read { .. })));
    let escape = json!([{"Config": "../outside", "RepoTags": null, "Layers": []}]);
    let tar = Tar::default().file("manifest.json", &serde_json::to_vec(&escape).unwrap()).end();
    assert!(matches!(bench.import(&bench.write("e.tar", &tar)).await, Err(ImportError::Read { .. })));
}

/// A tar of one member that says to have `size` bytes, all of them a hole in the file.
fn sparse_tar(path: &Path, name: &str, size: u64) {
    use std::os::unix::fs::FileExt;
    let mut header = tar::Header::new_gnu();
    header.set_path(name).unwrap();
    header.set_mode(0o644);
    header.set_size(size);
    header.set_cksum();
    let file = std::fs::File::create(path).unwrap();
    file.write_all_at(header.as_bytes(), 0).unwrap();
    file.set_len(512 + size + 1024).unwrap();
}

#[tokio::test]
async fn i07_documents_of_gigabytes_are_not_read() {
    let (bench, size) = (Bench::new(), 5_u64 << 30);
    let too_large = |error: ImportError, name: &str| match error {
        ImportError::Read { name: found, source, .. } => {
            assert_eq!((found.as_str(), source.kind()), (name, io::ErrorKind::FileTooLarge));
        }
        other => panic!("{other:?}"),
    };
    let image = built("a");
    write_layout(&bench.path("dir"), &[("app:1", &image)]);
    let manifest = format!("blobs/sha256/{}", Digest::of(&image.manifest).hex());
    let config = format!("blobs/sha256/{}", Digest::of(&image.config).hex());
    // From the innermost out, each hides those below it.
    for name in [config.as_str(), &manifest, "index.json"] {
        std::fs::OpenOptions::new()
            .write(true)
            .open(bench.path("dir").join(name))
            .unwrap()
            .set_len(size)
            .unwrap();
        too_large(bench.import(&bench.path("dir")).await.unwrap_err(), name);
    }
    sparse_tar(&bench.path("docker.tar"), "manifest.json", size);
    too_large(bench.import(&bench.path("docker.tar")).await.unwrap_err(), "manifest.json");
    assert!(bench.store.list().is_empty());
}

#[tokio::test]
async fn i07_one_large_manifest_named_ever_so_often_is_not_kept_that_often() {
    let bench = Bench::new();
    let mut image = built("a");
    image.manifest.resize(7 << 20, b' ');
    write_layout(&bench.path("dir"), &[("app:1", &image)]);
    assert_eq!(bench.import(&bench.path("dir")).await.unwrap().len(), 1);
    let entry = crate::fixture::descriptor(crate::fixture::MANIFEST, &image.manifest);
    // As many as fit into the largest index there may be.
    let count = (8 << 20) / (entry.to_string().len() + 1) - 1;
    assert!(count > 40_000);
    let index = json!({"schemaVersion": 2, "manifests": vec![entry; count]});
    bench.write("dir/index.json", &serde_json::to_vec(&index).unwrap());
    match bench.import(&bench.path("dir")).await.unwrap_err() {
        ImportError::Read { source, .. } => {
            assert_eq!(source.to_string(), "all documents together have more than 64 MiB")
        }
        other => panic!("{other:?}"),
    }
}
