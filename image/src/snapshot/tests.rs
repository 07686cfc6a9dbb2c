//! Overlay mounts, detached only: nothing is attached to the host's tree.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use super::*;
use crate::fixture::{Tar, image, plain_layer, require_root, write_layout};
use crate::import::ImportOptions;

async fn store_with(tars: Vec<Tar>) -> (tempfile::TempDir, Store, Arc<Image>) {
    require_root();
    let tmp = tempfile::tempdir().unwrap();
    let store = Store::open(&tmp.path().join("root")).unwrap();
    let built = image("s", tars.into_iter().map(|tar| plain_layer(tar.end())).collect());
    write_layout(&tmp.path().join("layout"), &[("app:1", &built)]);
    let image = store.import(&tmp.path().join("layout"), ImportOptions::default()).await.unwrap().remove(0);
    (tmp, store, image)
}

/// A path into a detached mount.
fn inside(mount: &OwnedFd, path: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{path}", mount.as_raw_fd()))
}

fn three_layers() -> Vec<Tar> {
    vec![
        Tar::default()
            .with(b'5', "./", b"", |h| h.set_mode(0o711))
            .with(b'5', "tmp", b"", |h| h.set_mode(0o1777))
            .file("a", b"1")
            .file("gone", b"1")
            .file("dir/old", b"1"),
        Tar::default().file("a", b"2").file(".wh.gone", b"").file("tmp/f", b"2"),
        Tar::default()
            .file("dir/.wh..wh..opq", b"")
            .file("dir/new", b"3")
            .with(b'0', "su", b"", |h| h.set_mode(0o4755)),
    ]
}

#[derive(Clone, Copy)]
enum Way {
    Preferred,
    Old,
}

fn check(snapshot: &Snapshot, way: Way) {
    let mount = |readonly| match way {
        Way::Preferred => snapshot.mount(readonly).unwrap(),
        Way::Old => {
            snapshot.renew_work().unwrap();
            overlay::on_thread(snapshot, readonly).unwrap()
        }
    };
    let root = mount(false);
    assert_eq!(fs::read(inside(&root, "a")).unwrap(), b"2");
    assert!(!inside(&root, "gone").exists() && !inside(&root, "dir/old").exists());
    assert!(inside(&root, "dir/new").exists() && inside(&root, "tmp/f").exists());
    let mode = |p: &str| fs::metadata(inside(&root, p)).unwrap().mode() & 0o7777;
    assert_eq!((mode("."), mode("tmp"), mode("su")), (0o711, 0o1777, 0o4755));
    fs::write(inside(&root, "written"), "w").unwrap();
    fs::remove_file(inside(&root, "a")).unwrap();
    assert!(snapshot.upper().join("written").exists());
    assert!(snapshot.lowers().iter().any(|lower| lower.join("a").exists()), "layers do not change");
    drop(root);
    let layers = mount(true);
    assert!(fs::write(inside(&layers, "x"), "x").is_err());
    assert!(inside(&layers, "a").exists() && !inside(&layers, "written").exists());
    // A volatile mount leaves a mark that must not forbid the next one.
    let again = mount(false);
    assert!(inside(&again, "written").exists() && !inside(&again, "a").exists());
}

#[tokio::test]
async fn layers_merge_and_writes_go_to_the_upper_directory() {
    let (_tmp, store, image) = store_with(three_layers()).await;
    check(&store.prepare(&image, "c1").unwrap(), Way::Preferred);
    assert!(store.writable_usage("c1").await.unwrap().1 >= 2);
}

#[tokio::test]
async fn the_old_way_gives_the_same_tree() {
    let (_tmp, store, image) = store_with(three_layers()).await;
    check(&store.prepare(&image, "c1").unwrap(), Way::Old);
}

#[tokio::test]
async fn an_image_without_layers_is_an_empty_root() {
    let (_tmp, store, image) = store_with(Vec::new()).await;
    let snapshot = store.prepare(&image, "c1").unwrap();
    let root = snapshot.mount(false).unwrap();
    fs::write(inside(&root, "f"), "x").unwrap();
    assert_eq!(fs::metadata(inside(&root, ".")).unwrap().mode() & 0o7777, 0o755);
    let empty = snapshot.mount(true).unwrap();
    assert_eq!(fs::read_dir(inside(&empty, ".")).unwrap().count(), 0);
    assert!(fs::write(inside(&empty, "f"), "x").is_err());
}

#[tokio::test]
async fn a_hundred_and_twenty_eight_layers_mount_both_ways() {
    let tars = (0..128).map(|i| Tar::default().file(&format!("f{i}"), b"x")).collect();
    let (_tmp, store, image) = store_with(tars).await;
    let id = "c".repeat(64);
    let snapshot = store.prepare(&image, &id).unwrap();
    for root in [snapshot.mount(false), {
        snapshot.renew_work().unwrap();
        overlay::on_thread(&snapshot, true)
    }] {
        let root = root.unwrap();
        assert!(inside(&root, "f0").exists() && inside(&root, "f127").exists());
    }
    assert!(overlay::options(&snapshot, false).len() < 4096, "one page of options");
}

#[tokio::test]
async fn an_unmountable_snapshot_says_why() {
    let (_tmp, store, image) = store_with(three_layers()).await;
    let snapshot = store.prepare(&image, "c1").unwrap();
    fs::remove_dir(snapshot.upper()).unwrap();
    let error = snapshot.mount(false).unwrap_err();
    assert!(error.to_string().contains("container c1"), "{error}");
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("no such file"), "{source}");
}
