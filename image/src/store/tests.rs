//! The store without a registry: records, leases, names.

use std::path::Path;

use super::*;
use crate::fixture::{Tar, image, plain_layer, require_root};
use crate::import::ImportOptions;

/// A store with images imported from OCI layouts made on the spot.
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

    /// An image of one layer shared by all, and one of its own.
    async fn add(&self, name: &str) -> Arc<Image> {
        let own = Tar::default().file(name, name.as_bytes()).end();
        let shared = Tar::default().dir("bin").file("bin/run", b"#!").end();
        let built = image(name, vec![plain_layer(shared), plain_layer(own)]);
        let layout = self.tmp.path().join(format!("layout-{name}"));
        crate::fixture::write_layout(&layout, &[(&format!("docker.io/library/{name}:1"), &built)]);
        self.store.import(&layout, ImportOptions::default()).await.unwrap().remove(0)
    }

    fn layers(&self) -> usize {
        std::fs::read_dir(self.tmp.path().join("root/layers")).unwrap().count()
    }

    fn reopened(&self) -> Store {
        Store::open(&self.tmp.path().join("root")).unwrap()
    }
}

#[tokio::test]
async fn a_removed_image_takes_its_own_layers_and_no_others() {
    let bench = Bench::new();
    let (a, b) = (bench.add("a").await, bench.add("b").await);
    assert_eq!(bench.layers(), 3);
    let before = bench.store.usage();
    bench.store.remove("a:1").await.unwrap();
    assert!(bench.store.get(&a.id.to_string()).unwrap().is_none());
    assert_eq!(bench.layers(), 2);
    assert!(bench.store.usage().bytes < before.bytes && bench.store.usage().inodes < before.inodes);
    bench.store.remove("a:1").await.unwrap();
    bench.store.remove(&b.id.to_string()).await.unwrap();
    assert_eq!((bench.layers(), bench.store.usage().bytes), (0, 0));
    assert_eq!(std::fs::read_dir(bench.tmp.path().join("root/blobs")).unwrap().count(), 0);
    assert!(bench.reopened().list().is_empty());
}

#[tokio::test]
async fn five_parallel_removals_all_succeed() {
    let bench = Bench::new();
    let image = bench.add("a").await;
    let id = image.id.to_string();
    futures_util::future::try_join_all((0..5).map(|_| bench.store.remove(&id))).await.unwrap();
    assert!(bench.store.get(&id).unwrap().is_none());
}

#[tokio::test]
async fn i14_a_container_keeps_its_layers_until_it_is_released() {
    let bench = Bench::new();
    let image = bench.add("a").await;
    let snapshot = bench.store.prepare(&image, &[], "c1").unwrap();
    bench.store.remove("a:1").await.unwrap();
    assert!(snapshot.lowers().iter().all(|dir| dir.is_dir()));
    assert!(bench.store.prepare(&image, &[], "c2").is_ok(), "its layers are still there, so it is whole");
    bench.store.release("c2").await.unwrap();
    // A restart in between changes nothing.
    let store = bench.reopened();
    assert_eq!(store.containers(), ["c1"]);
    assert_eq!(store.snapshot("c1").unwrap().lowers(), snapshot.lowers());
    assert!(store.usage().bytes > 0);
    std::fs::write(snapshot.upper().join("f"), vec![1; 100_000]).unwrap();
    assert_eq!(store.written("c1"), None, "no call waits for it");
    let written = loop {
        match store.written("c1") {
            Some(written) => break written,
            None => tokio::task::yield_now().await,
        }
    };
    assert!(written.bytes >= 100_000 && written.inodes == 2, "{written:?}");
    std::fs::write(snapshot.upper().join("g"), vec![1; 100_000]).unwrap();
    assert_eq!(store.written("c1"), Some(written), "what is fresh is not measured again");
    store.release("c1").await.unwrap();
    store.release("c1").await.unwrap();
    assert_eq!((bench.layers(), store.containers().len()), (0, 0));
    assert_eq!(store.written("c1"), None);
    assert!(bench.store.inner.prepare(&image, &[], "../x").is_err());
    let gone = store.prepare(&image, &[], "c3").unwrap_err();
    assert!(gone.to_string().contains("not in the store"), "{gone}");
    assert!(!bench.tmp.path().join("root/containers/c3").exists());
}

#[tokio::test]
async fn a_container_id_is_used_once() {
    let bench = Bench::new();
    let image = bench.add("a").await;
    bench.store.prepare(&image, &[], "c").unwrap();
    let again = bench.store.prepare(&image, &[], "c").unwrap_err();
    assert!(again.to_string().contains("has a writable layer already"), "{again}");
    assert!(bench.tmp.path().join("root/containers/c/upper").is_dir(), "the first one is untouched");
}

#[tokio::test]
async fn i13_prefixes_find_one_image_or_say_how_many() {
    let bench = Bench::new();
    let mut images = Vec::new();
    // Until two ids share their first digit.
    let (shared, prefix) = loop {
        let image = bench.add(&format!("i{}", images.len())).await;
        let first = image.id.hex()[..1].to_owned();
        let same = images.iter().find(|other: &&Arc<Image>| other.id.hex().starts_with(&first)).cloned();
        images.push(image.clone());
        if let Some(same) = same {
            break ((same.id, image.id), first);
        }
    };
    let ambiguous = bench.store.get(&prefix).unwrap_err();
    assert!(matches!(ambiguous, StoreError::Ambiguous { count: 2, .. }), "{ambiguous}");
    assert!(bench.store.get(&format!("sha256:{prefix}")).is_err());
    for id in [shared.0, shared.1] {
        assert_eq!(bench.store.get(&id.hex()[..30]).unwrap().unwrap().id, id);
        assert_eq!(bench.store.get(&format!("sha256:{}", &id.hex()[..30])).unwrap().unwrap().id, id);
    }
    // A name that looks like an id's prefix is the name's.
    let named = bench.add(&prefix).await;
    assert_eq!(bench.store.get(&format!("{prefix}:1")).unwrap().unwrap().id, named.id);
    assert!(bench.store.get("sha256:../../x").is_err() && bench.store.get("UPPER").is_err());
}

#[tokio::test]
async fn t15_i15_a_damaged_store_shows_only_what_is_whole() {
    let bench = Bench::new();
    let (a, b, c) = (bench.add("a").await, bench.add("b").await, bench.add("c").await);
    let root = bench.tmp.path().join("root");
    std::fs::write(root.join("images").join(format!("{}.json", a.id.hex())), "{ half").unwrap();
    std::fs::write(root.join("blobs").join(b.id.hex()), "altered").unwrap();
    let store = bench.reopened();
    assert_eq!(store.list().iter().map(|i| i.id).collect::<Vec<_>>(), [c.id]);
    std::fs::remove_dir_all(&c.layers[1].directory).unwrap();
    let store = bench.reopened();
    assert!(store.list().is_empty());
    // Importing again heals.
    drop(store);
    let store = bench.reopened();
    for name in ["a", "b", "c"] {
        let layout = bench.tmp.path().join(format!("layout-{name}"));
        store.import(&layout, ImportOptions::default()).await.unwrap();
    }
    assert_eq!(bench.reopened().list().len(), 3);
}

#[tokio::test]
async fn pinned_images_say_so() {
    let bench = Bench::new();
    bench.add("a").await;
    bench.add("b").await;
    let pinned = vec![Reference::parse("a:1").unwrap()];
    let options = StoreOptions { pinned, ..StoreOptions::default() };
    let store = Store::open_with(&bench.tmp.path().join("root"), options).unwrap();
    let pins: Vec<_> = ["a:1", "b:1"].iter().map(|n| store.get(n).unwrap().unwrap().pinned).collect();
    assert_eq!(pins, [true, false]);
}

#[test]
fn layer_names_are_short_and_differ() {
    let names: Vec<String> = (0_u8..100).map(|i| layers::layer_name(&Digest::of(&[i]))).collect();
    assert!(names.iter().all(|n| n.len() == 26 && n.bytes().all(|b| b.is_ascii_alphanumeric())));
    assert_eq!(names.iter().collect::<std::collections::HashSet<_>>().len(), 100);
    assert!(Path::new(&names[0]).is_relative());
}
