//! Overlay mounts, detached only: nothing is attached to the host's tree.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
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
        Way::Preferred => snapshot.mount(readonly, None).unwrap(),
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
    check(&store.prepare(&image, &[], "c1").unwrap(), Way::Preferred);
    assert!(store.inner.measure("c1").unwrap().1 >= 2);
}

#[tokio::test]
async fn the_old_way_gives_the_same_tree() {
    let (_tmp, store, image) = store_with(three_layers()).await;
    check(&store.prepare(&image, &[], "c1").unwrap(), Way::Old);
}

#[tokio::test]
async fn an_image_without_layers_is_an_empty_root() {
    let (_tmp, store, image) = store_with(Vec::new()).await;
    let snapshot = store.prepare(&image, &[], "c1").unwrap();
    let root = snapshot.mount(false, None).unwrap();
    fs::write(inside(&root, "f"), "x").unwrap();
    assert_eq!(fs::metadata(inside(&root, ".")).unwrap().mode() & 0o7777, 0o755);
    let empty = snapshot.mount(true, None).unwrap();
    assert_eq!(fs::read_dir(inside(&empty, ".")).unwrap().count(), 0);
    assert!(fs::write(inside(&empty, "f"), "x").is_err());
}

#[tokio::test]
async fn a_hundred_and_twenty_eight_layers_mount_both_ways() {
    let tars = (0..128).map(|i| Tar::default().file(&format!("f{i}"), b"x")).collect();
    let (_tmp, store, image) = store_with(tars).await;
    let id = "c".repeat(64);
    let snapshot = store.prepare(&image, &[], &id).unwrap();
    for root in [snapshot.mount(false, None), {
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
    let snapshot = store.prepare(&image, &[], "c1").unwrap();
    fs::remove_dir(snapshot.upper()).unwrap();
    let error = snapshot.mount(false, None).unwrap_err();
    assert!(error.to_string().contains("container c1"), "{error}");
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("no such file"), "{source}");
}

/// A store with two images: `app`, and `data` with the given layers. `app` is prepared for container `c` with `data` as
/// its volume.
async fn with_volume(tars: Vec<Tar>) -> (tempfile::TempDir, Store, Arc<Image>) {
    require_root();
    let tmp = tempfile::tempdir().unwrap();
    let store = Store::open(&tmp.path().join("root")).unwrap();
    let layers = |tars: Vec<Tar>| tars.into_iter().map(|tar| plain_layer(tar.end())).collect();
    let (app, data) =
        (image("app", layers(vec![Tar::default().file("a", b"1")])), image("data", layers(tars)));
    write_layout(&tmp.path().join("layout"), &[("app:1", &app), ("data:1", &data)]);
    store.import(&tmp.path().join("layout"), ImportOptions::default()).await.unwrap();
    let (app, data) = (store.get("app:1").unwrap().unwrap(), store.get("data:1").unwrap().unwrap());
    store.prepare(&app, std::slice::from_ref(&data), "c").unwrap();
    (tmp, store, data)
}

fn volume_layers() -> Vec<Tar> {
    vec![
        Tar::default()
            .dir("sub")
            .file("sub/f", b"1")
            .file("sub/gone", b"1")
            .dir("sub/deep")
            .file("file", b"x"),
        Tar::default()
            .file("sub/.wh.gone", b"")
            .file("sub/deep/g", b"2")
            .symlink("link", "/sub/deep")
            .symlink("out", "../../../../../../sub")
            .symlink("host", "/proc/self/root/etc"),
    ]
}

#[tokio::test]
async fn r23_an_image_is_mounted_whole_or_in_part_and_never_more() {
    for layers in [volume_layers(), volume_layers().into_iter().take(1).collect(), Vec::new()] {
        let count = layers.len();
        let (_tmp, store, data) = with_volume(layers).await;
        let volume = |path: &str| store.image_volume("c", &data, Path::new(path), None);
        let whole = volume("").unwrap();
        assert_eq!(inside(&whole, "sub/f").exists(), count > 0);
        assert!(fs::write(inside(&whole, "new"), "x").is_err(), "read-only");
        if count > 0 {
            assert_eq!(fs::read(inside(&volume("sub").unwrap(), "f")).unwrap(), b"1");
            assert_eq!(fs::read(inside(&volume("./sub//deep/../").unwrap(), "f")).unwrap(), b"1");
        }
        if count == 2 {
            assert!(!inside(&volume("sub").unwrap(), "gone").exists(), "layers are merged");
            for path in ["link", "out/deep", "../../../sub/deep"] {
                assert_eq!(fs::read(inside(&volume(path).unwrap(), "g")).unwrap(), b"2", "{path}");
            }
            assert!(matches!(volume("host"), Err(SnapshotError::SubPath { .. })), "a way out of the image");
        }
        for path in ["nowhere", "file", "sub/f/x", "etc", "/root"] {
            let error = volume(path).unwrap_err();
            assert!(matches!(error, SnapshotError::SubPath { .. }), "{path}: {error}");
            assert!(error.to_string().contains(path), "{error}");
        }
    }
}

#[tokio::test]
async fn a_part_of_an_image_is_mounted_on_kernels_that_clone_no_detached_tree() {
    let (_tmp, store, data) = with_volume(volume_layers()).await;
    let layers = data.layers.iter().map(|layer| layer.directory.clone());
    let whole = store.assemble("c", layers).mount(true, None).unwrap();
    let flags = crisp_sys::path::OFlag::O_PATH;
    let directory =
        crisp_sys::path::Root::duplicate(&whole).unwrap().open_at(Path::new("sub"), flags, 0).unwrap();
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let part = volume::on_thread(whole, &directory, store.root(), "c").unwrap();
    assert_eq!(fs::read(inside(&part, "deep/g")).unwrap(), b"2");
    assert!(!inside(&part, "gone").exists() && !inside(&part, "sub").exists());
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before, "nothing shows on the host");
}

#[tokio::test]
async fn the_layers_of_a_volume_live_as_long_as_the_container() {
    let (tmp, store, data) = with_volume(volume_layers()).await;
    store.remove("data:1").await.unwrap();
    assert!(store.get("data:1").unwrap().is_none());
    assert!(data.layers.iter().all(|layer| layer.directory.is_dir()), "a container needs them");
    let gone = store.prepare(&store.get("app:1").unwrap().unwrap(), std::slice::from_ref(&data), "d");
    assert!(gone.is_ok(), "its layers are still there, so it is whole");
    store.release("d").await.unwrap();
    drop(store);
    let store = Store::open(&tmp.path().join("root")).unwrap();
    assert!(data.layers.iter().all(|layer| layer.directory.is_dir()), "after a restart, too");
    store.release("c").await.unwrap();
    assert!(data.layers.iter().all(|layer| !layer.directory.exists()));
    let gone = store.prepare(&store.get("app:1").unwrap().unwrap(), &[data], "d").unwrap_err();
    assert!(matches!(gone, SnapshotError::Store(StoreError::Gone(_))), "{gone}");
    assert!(store.containers().is_empty(), "nothing is left of the failed one");
}

#[tokio::test]
async fn r25_a_declared_volume_is_a_copy_of_what_the_image_has_there() {
    let tar = Tar::default()
        .with(b'5', "v", b"", |h| {
            h.set_mode(0o1770);
            h.set_uid(7);
            h.set_gid(8);
        })
        .with(b'0', "v/su", b"program", |h| {
            h.set_mode(0o4755);
            h.set_uid(1000);
            h.set_mtime(1_234_567);
        })
        .hardlink("v/twin", "v/su")
        .symlink("v/link", "/etc/passwd")
        .entry(b'6', "v/pipe", "", b"")
        .dir("v/d")
        .file("v/d/f", b"deep")
        .symlink("to-etc", "/etc")
        .symlink("out", "../../../../../../../../../etc")
        .symlink("host", "/proc/self/root/etc")
        .dir("etc")
        .file("etc/of-the-image", b"1")
        .file("file", b"1");
    let (_tmp, store, image) = store_with(vec![tar]).await;
    let snapshot = store.prepare(&image, &[], "c1").unwrap();
    let root = snapshot.mount(false, None).unwrap();
    let volume = |number, path: &str| snapshot.declared_volume(root.as_fd(), number, Path::new(path));
    let v = volume(0, "/v").unwrap();
    let meta = |path: PathBuf| fs::symlink_metadata(path).unwrap();
    let top = meta(v.clone());
    assert_eq!((top.mode() & 0o7777, top.uid(), top.gid()), (0o1770, 7, 8));
    let su = meta(v.join("su"));
    assert_eq!((su.mode() & 0o7777, su.uid(), su.mtime(), su.nlink()), (0o4755, 1000, 1_234_567, 2));
    assert_eq!(su.ino(), meta(v.join("twin")).ino());
    assert_eq!(fs::read(v.join("su")).unwrap(), b"program");
    assert_eq!(fs::read_link(v.join("link")).unwrap(), Path::new("/etc/passwd"));
    assert_eq!(meta(v.join("pipe")).mode() & 0o170_000, 0o010_000);
    assert_eq!(fs::read(v.join("d/f")).unwrap(), b"deep");
    // Through links: to the image's own directory, whatever the host has under that name.
    for (number, path) in [(1, "/to-etc"), (2, "/out"), (3, "/../../../../etc")] {
        let names: Vec<_> = fs::read_dir(volume(number, path).unwrap()).unwrap().flatten().collect();
        assert_eq!(names.len(), 1, "{path}: {names:?}");
        assert_eq!(names[0].file_name(), "of-the-image");
    }
    let nothing = volume(4, "/nothing/there").unwrap();
    assert_eq!((fs::read_dir(&nothing).unwrap().count(), meta(nothing).mode() & 0o7777), (0, 0o755));
    // There is no proc in an image.
    assert_eq!(fs::read_dir(volume(6, "/host").unwrap()).unwrap().count(), 0);
    for path in ["/file", "/file/x"] {
        let error = volume(5, path).unwrap_err();
        assert!(error.to_string().contains(path), "{error}");
        fs::remove_dir_all(snapshot.directory().join("volumes/5")).unwrap();
    }
    assert!(store.inner.measure("c1").unwrap().1 > 8, "volumes count as written");
    store.release("c1").await.unwrap();
    assert!(!v.exists());
}

#[tokio::test]
async fn holes_of_a_file_stay_holes_in_a_copy() {
    use std::os::unix::fs::FileExt;
    let tmp = tempfile::tempdir().unwrap();
    let (from, to) = (tmp.path().join("from"), tmp.path().join("to"));
    fs::create_dir(&from).unwrap();
    fs::create_dir(&to).unwrap();
    let file = fs::File::create(from.join("sparse")).unwrap();
    file.set_len(1 << 40).unwrap();
    file.write_all_at(b"middle", 1 << 30).unwrap();
    drop(file);
    let dir = |path: &Path| crate::rooted::open_dir(path).unwrap();
    copy::tree(dir(&from).as_fd(), dir(&to).as_fd()).unwrap();
    let copied = fs::File::open(to.join("sparse")).unwrap();
    let meta = copied.metadata().unwrap();
    assert!(meta.len() == 1 << 40 && meta.blocks() < 100, "{meta:?}");
    let mut middle = [0; 6];
    copied.read_exact_at(&mut middle, 1 << 30).unwrap();
    assert_eq!(&middle, b"middle");
}
