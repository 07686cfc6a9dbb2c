//! Damage of all kinds, found and healed.

use serde_json::json;

use super::*;
use crate::fixture::registry::FakeRegistry;
use crate::fixture::{Tar, fingerprint, gzip_layer, image, require_root};

struct Bench {
    tmp: tempfile::TempDir,
    store: Store,
    registry: FakeRegistry,
}

impl Bench {
    async fn new() -> Self {
        require_root();
        let tmp = tempfile::tempdir().unwrap();
        let store = Store::open(&tmp.path().join("root")).unwrap();
        Self { tmp, store, registry: FakeRegistry::start().await }
    }

    fn options(&self) -> PullOptions {
        PullOptions { hosts_dir: self.tmp.path().join("certs.d"), ..PullOptions::default() }
    }

    async fn pull(&self, name: &str) -> Arc<Image> {
        let reference = Reference::parse(&format!("{}/{name}", self.registry.host)).unwrap();
        self.store.pull(&reference, self.options()).await.unwrap()
    }

    async fn check(&self, heal: bool) -> Vec<Condition> {
        let (report, mut checked) = mpsc::unbounded_channel();
        let options = self.options();
        self.store.check(None, heal.then_some(&options), &report).await.unwrap();
        drop(report);
        let mut out = Vec::new();
        while let Some(layer) = checked.recv().await {
            out.push(layer.condition);
        }
        out
    }
}

fn layers() -> Vec<crate::fixture::LayerBlob> {
    let base = Tar::default()
        .with(b'5', "usr", b"", |h| h.set_mode(0o711))
        .dir("usr/lib")
        .symlink("lib", "usr/lib")
        .file("usr/lib/a", b"library")
        .hardlink("usr/lib/b", "usr/lib/a")
        .file("etc/passwd", b"root:x:0:0::/:/bin/sh\n")
        .with(b'6', "fifo", b"", |h| h.set_mode(0o600));
    // Through the link, and into a directory that only the layer below describes.
    let top = Tar::default().file("lib/c", b"moved").file("usr/lib/d", b"not").file(".wh.fifo", b"");
    vec![gzip_layer(&base.end()), gzip_layer(&top.end())]
}

#[tokio::test]
async fn i15_damage_is_found_and_healed_and_the_rest_stays() {
    let bench = Bench::new().await;
    bench.registry.serve("app", Some("1"), &image("a", layers()));
    let pulled = bench.pull("app:1").await;
    assert_eq!(bench.check(false).await, [Condition::Good, Condition::Good]);
    let (base, top) = (&pulled.layers[0].directory, &pulled.layers[1].directory);
    let whole = fingerprint(top);
    type Damage = fn(&std::path::Path);
    let cases: [(&str, Damage); 7] = [
        ("etc/passwd", |base| {
            let path = base.join("etc/passwd");
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[3] ^= 1;
            std::fs::write(path, bytes).unwrap();
        }),
        ("etc/passwd", |base| std::fs::remove_file(base.join("etc/passwd")).unwrap()),
        ("etc/passwd", |base| std::fs::write(base.join("etc/passwd"), "").unwrap()),
        ("etc/passwd", |base| {
            std::fs::remove_file(base.join("etc/passwd")).unwrap();
            std::os::unix::fs::symlink("/etc/shadow", base.join("etc/passwd")).unwrap();
        }),
        ("usr", |base| {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
            std::fs::set_permissions(base.join("usr"), mode).unwrap();
        }),
        ("lib", |base| std::fs::remove_file(base.join("lib")).unwrap()),
        ("usr/lib/a", |base| std::fs::remove_dir_all(base.join("usr/lib")).unwrap()),
    ];
    for (path, damage) in cases {
        damage(base);
        let found = bench.check(false).await;
        let Condition::Damaged(reason) = &found[0] else { panic!("{path}: {found:?}") };
        assert!(!reason.is_empty());
        let healed = bench.check(true).await;
        assert!(matches!(&healed[..], [Condition::Healed(_), Condition::Good]), "{path}: {healed:?}");
        assert_eq!(bench.check(false).await, [Condition::Good, Condition::Good], "{path}");
        assert_eq!(std::fs::read_to_string(base.join("usr/lib/b")).unwrap(), "library");
        assert_eq!(fingerprint(top), whole, "the other layer was touched");
    }
}

#[tokio::test]
async fn i15_a_content_that_is_wrong_names_the_layer_and_its_images() {
    let bench = Bench::new().await;
    bench.registry.serve("app", Some("1"), &image("a", layers()));
    bench.registry.serve("app", Some("2"), &image("b", layers()));
    let images = [bench.pull("app:1").await, bench.pull("app:2").await];
    std::fs::write(images[0].layers[1].directory.join("usr/lib/d"), "n0t").unwrap();
    let (report, mut checked) = mpsc::unbounded_channel();
    bench.store.check(Some(&images[0].id.to_string()), None, &report).await.unwrap();
    let (good, bad) = (checked.recv().await.unwrap(), checked.recv().await.unwrap());
    assert_eq!(good.condition, Condition::Good);
    let mut ids = images.map(|image| image.id);
    ids.sort();
    assert_eq!(bad.images, ids);
    let Condition::Damaged(reason) = bad.condition else { panic!("not found") };
    assert!(reason.contains("diff id"), "{reason}");
    assert!(bench.store.check(Some("nothing"), None, &report).await.is_err());
}

#[tokio::test]
async fn a_layer_that_cannot_be_fetched_stays_damaged_and_says_why() {
    let bench = Bench::new().await;
    bench.registry.serve("app", Some("1"), &image("a", layers()));
    let pulled = bench.pull("app:1").await;
    std::fs::remove_file(pulled.layers[0].directory.join("etc/passwd")).unwrap();
    let blob = format!("/v2/app/blobs/{}", Digest::of(&layers()[0].blob));
    bench.registry.change(&blob, |a| a.status = 404);
    let found = bench.check(true).await;
    let Condition::Damaged(reason) = &found[0] else { panic!("{found:?}") };
    assert!(reason.contains("not healed") && reason.contains(&bench.registry.host), "{reason}");
}

#[tokio::test]
async fn a_layer_whose_entries_replace_each_other_says_that_it_cannot_be_told() {
    let bench = Bench::new().await;
    let tar = Tar::default().file("f", b"1").file("f", b"2").end();
    bench.registry.serve("app", Some("1"), &image("a", vec![gzip_layer(&tar)]));
    let pulled = bench.pull("app:1").await;
    assert!(matches!(&bench.check(false).await[..], [Condition::Unknown(_)]));
    std::fs::write(pulled.layers[0].directory.join("f"), "3").unwrap();
    assert!(matches!(&bench.check(true).await[..], [Condition::Healed(_)]));
    assert_eq!(std::fs::read_to_string(pulled.layers[0].directory.join("f")).unwrap(), "2");
    assert_eq!(json!(bench.store.list().len()), json!(1));
}
