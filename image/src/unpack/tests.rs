//! Hostile layers. Each test unpacks a layer beside a canary directory and asserts that nothing but the
//! layer changed.

use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;
use crate::fixture::{Tar, fingerprint, gzip, require_root, zstd};
use crate::rooted::open_dir;

mod differ;
mod limits;

const LIMITS: Limits = Limits { bytes: 64 << 20, entries: 10_000 };

struct Bench {
    tmp: tempfile::TempDir,
    before: Vec<String>,
}

impl Bench {
    fn new() -> Self {
        require_root();
        let tmp = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(tmp.path().join("canary/d")).unwrap();
        std::fs::write(tmp.path().join("canary/f"), "canary").unwrap();
        std::fs::create_dir(tmp.path().join("layer")).unwrap();
        let before = fingerprint(&tmp.path().join("canary"));
        Self { tmp, before }
    }

    fn canary(&self) -> String {
        self.tmp.path().join("canary").display().to_string()
    }

    fn layer(&self) -> PathBuf {
        self.tmp.path().join("layer")
    }

    fn unpack_stream(&self, stream: &[u8], plain: &[u8]) -> Result<Unpacked, UnpackError> {
        let blob = Some((Digest::of(stream), stream.len() as u64));
        let expected = Expected { blob, diff_id: Digest::of(plain) };
        let dir = open_dir(&self.layer()).unwrap();
        let result = unpack(stream, expected, dir.as_fd(), LIMITS);
        assert_eq!(fingerprint(&self.tmp.path().join("canary")), self.before, "the canary was touched");
        let mut around: Vec<_> =
            std::fs::read_dir(self.tmp.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        around.sort();
        assert_eq!(around, ["canary", "layer"]);
        result
    }

    fn unpack(&self, tar: Tar) -> Result<Unpacked, UnpackError> {
        let plain = tar.end();
        self.unpack_stream(&plain, &plain)
    }

    fn stat(&self, path: &str) -> std::fs::Metadata {
        self.layer().join(path).symlink_metadata().unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.layer().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    fn has(&self, path: &str) -> bool {
        self.layer().join(path).symlink_metadata().is_ok()
    }

    fn is_whiteout(&self, path: &str) -> bool {
        let meta = self.stat(path);
        meta.file_type().is_char_device() && meta.rdev() == 0
    }

    fn is_opaque(&self, path: &str) -> bool {
        xattr(&self.layer().join(path), "trusted.overlay.opaque").as_deref() == Some(b"y")
    }
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 70_000];
    let n = rustix::fs::lgetxattr(path, name, value.as_mut_slice()).ok()?;
    value.truncate(n);
    Some(value)
}

/// Every refusal must be about the content, not an accident of the test machine.
fn refused(result: Result<Unpacked, UnpackError>) {
    match result {
        Err(UnpackError::Archive(ArchiveError::Header { .. }) | UnpackError::Apply(_)) => {}
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[test]
fn a_plain_layer_keeps_content_mode_owner_and_time() {
    let bench = Bench::new();
    let tar = Tar::default()
        .dir("a/")
        .with(b'0', "a/f", b"hello", |h| {
            h.set_mode(0o4755);
            h.set_uid(1000);
            h.set_gid(2000);
            h.set_mtime(42);
        })
        .symlink("a/s", "/etc/passwd")
        .hardlink("a/h", "a/f")
        .with(b'6', "a/p", b"", |h| h.set_mode(0o620))
        .with(b'3', "a/null", b"", |h| {
            h.set_mode(0o666);
            h.set_device_major(1).unwrap();
            h.set_device_minor(3).unwrap();
        })
        .with(b'5', "t", b"", |h| h.set_mode(0o1777));
    bench.unpack(tar).unwrap();
    let file = bench.stat("a/f");
    assert_eq!((file.mode() & 0o7777, file.uid(), file.gid(), file.mtime()), (0o4755, 1000, 2000, 42));
    assert_eq!((bench.read("a/f").as_str(), file.nlink()), ("hello", 2));
    assert_eq!(bench.stat("a/h").ino(), file.ino());
    assert_eq!(std::fs::read_link(bench.layer().join("a/s")).unwrap(), Path::new("/etc/passwd"));
    assert!(bench.stat("a/p").file_type().is_fifo());
    assert_eq!(bench.stat("a/p").mode() & 0o777, 0o620);
    assert_eq!(bench.stat("a/null").rdev(), rustix::fs::makedev(1, 3));
    assert_eq!(bench.stat("t").permissions().mode() & 0o7777, 0o1777);
    assert_eq!(bench.stat("a").mtime(), 1_000_000_000);
}

#[test]
fn t01_names_that_lead_out_are_confined_or_refused() {
    for name in ["../../canary/x", "../canary/x", "a/../../canary/x", "..", "a/.."] {
        let bench = Bench::new();
        refused(bench.unpack(Tar::default().file(name, b"x")));
    }
    let bench = Bench::new();
    let absolute = format!("{}/x", bench.canary());
    bench.unpack(Tar::default().file(&absolute, b"x")).unwrap();
    assert_eq!(bench.read(absolute.trim_start_matches('/')), "x");
    for (name, fine) in [("./", true), ("/", true), ("", false)] {
        let bench = Bench::new();
        let result = bench.unpack(Tar::default().dir(name));
        assert_eq!(result.is_ok(), fine, "{name:?}: {result:?}");
    }
    let bench = Bench::new();
    refused(bench.unpack(Tar::default().file("./", b"x")));
}

#[test]
fn t01_long_and_odd_names_are_confined_or_refused() {
    let bench = Bench::new();
    refused(bench.unpack(Tar::default().pax(b'x', &[("path", b"a\0b")]).file("p", b"x")));
    let bench = Bench::new();
    refused(bench.unpack(Tar::default().pax(b'x', &[("path", "c".repeat(256).as_bytes())]).file("p", b"x")));
    let bench = Bench::new();
    refused(bench.unpack(Tar::default().pax(b'x', &[("path", "d/".repeat(2500).as_bytes())]).dir("p")));
    let bench = Bench::new();
    bench.unpack(Tar::default().file("line\nbreak", b"x")).unwrap();
    assert_eq!(bench.read("line\nbreak"), "x");
    let bench = Bench::new();
    let long = format!("{}/f", "d".repeat(200));
    bench
        .unpack(Tar::default().entry(b'L', "././@LongLink", "", long.as_bytes()).file("short", b"x"))
        .unwrap();
    assert_eq!(bench.read(&long), "x");
}

#[test]
fn t02_a_symlink_never_carries_a_write_out() {
    let bench = Bench::new();
    let canary = bench.canary();
    bench.unpack(Tar::default().symlink("d", &canary).file("d/x", b"x")).unwrap();
    assert_eq!(bench.read(&format!("{}/x", &canary[1..])), "x", "resolved as inside the layer");
    let bench = Bench::new();
    let chain = Tar::default()
        .symlink("a", "b")
        .symlink("b", "c")
        .symlink("c", "../../../../../canary")
        .file("a/x", b"x")
        .dir("a/d/e");
    bench.unpack(chain).unwrap();
    assert_eq!(bench.read("canary/x"), "x");
    let bench = Bench::new();
    refused(bench.unpack(Tar::default().symlink("a", "b").symlink("b", "a").file("a/x", b"x")));
}

#[test]
fn t02_a_file_is_not_written_through_a_symlink_of_its_name() {
    let bench = Bench::new();
    let target = format!("{}/f", bench.canary());
    bench.unpack(Tar::default().symlink("x", &target).file("x", b"new")).unwrap();
    assert!(bench.stat("x").is_file());
    assert_eq!(bench.read("x"), "new");
}

#[test]
fn t03_a_hard_link_reaches_nothing_outside() {
    let bench = Bench::new();
    let target = format!("{}/f", bench.canary());
    for link in ["../../canary/f", "../canary/f", "/etc/shadow", &target, "nothing", "/", "."] {
        let bench = Bench::new();
        refused(bench.unpack(Tar::default().hardlink("h", link)));
    }
    for tar in [
        Tar::default().symlink("d", &bench.canary()).hardlink("h", "d/f"),
        Tar::default().dir("d").hardlink("h", "d"),
        Tar::default().file(".wh.w", b"").hardlink("h", "w"),
    ] {
        let bench = Bench::new();
        refused(bench.unpack(tar));
    }
    // To the symlink itself, as archives of hard-linked symlinks have it; nothing is followed.
    let bench = Bench::new();
    bench.unpack(Tar::default().symlink("s", &target).hardlink("h", "s").hardlink("s", "h")).unwrap();
    assert_eq!(bench.stat("h").ino(), bench.stat("s").ino());
    assert!(bench.stat("h").is_symlink());
}

#[test]
fn t04_attributes_are_not_set_through_a_symlink() {
    for kind in [b'0', b'5'] {
        let bench = Bench::new();
        let canary = bench.canary();
        let tar = Tar::default().symlink("foo", &canary).with(kind, "foo", b"", |h| {
            h.set_mode(0o777);
            h.set_uid(7);
            h.set_mtime(7);
        });
        bench.unpack(tar).unwrap();
        assert!(!bench.stat("foo").is_symlink());
        assert_eq!(bench.stat("foo").uid(), 7);
    }
    let bench = Bench::new();
    let canary = bench.canary();
    let tar = Tar::default()
        .symlink("out", &canary)
        .with(b'5', "out/d", b"", |h| h.set_mode(0o777))
        .pax(b'x', &[("SCHILY.xattr.user.x", b"1"), ("SCHILY.xattr.security.capability", b"\x01")])
        .symlink("out2", &format!("{canary}/f"));
    // The capability is malformed, so the kernel refuses it, on the link and nowhere else.
    refused(bench.unpack(tar));
}

#[test]
fn t06_sizes_that_readers_could_take_two_ways_are_refused() {
    let nested = Tar::default().file("hidden", b"x").end();
    let size = nested.len().to_string();
    for tar in [
        Tar::default().pax(b'x', &[("size", size.as_bytes())]).with(b'0', "f", &nested, |h| h.set_size(0)),
        Tar::default().pax(b'x', &[("size", b"0")]).file("f", &nested),
        Tar::default().pax(b'x', &[("size", b"0"), ("size", size.as_bytes())]).file("f", &nested),
        Tar::default().pax(b'g', &[("size", b"0")]).file("f", &nested),
        Tar::default().pax(b'x', &[("size", b"-1")]).file("f", &nested),
        Tar::default().pax(b'x', &[("size", b"1")]).pax(b'x', &[("size", b"0")]).file("f", b""),
        Tar::default().with(b'2', "l", &nested, |_| {}),
        Tar::default().with(b'5', "d", &nested, |_| {}),
    ] {
        let bench = Bench::new();
        refused(bench.unpack(tar));
        assert!(!bench.has("hidden"));
    }
    let bench = Bench::new();
    bench.unpack(Tar::default().pax(b'x', &[("size", size.as_bytes())]).file("f", &nested)).unwrap();
    assert!(!bench.has("hidden") && bench.has("f"));
}

#[test]
fn t08_malformed_headers_are_refused_in_bounded_memory() {
    let huge = |kind: u8| {
        let mut tar = Tar::default();
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_size(2 << 30);
        header.set_cksum();
        tar.raw(&header, b"");
        tar
    };
    for tar in [
        huge(b'L'),
        huge(b'x'),
        Tar::default().with(b'0', "f", b"", |h| h.as_old_mut().uid = *b"99999999"),
        Tar::default().with(b'0', "f", b"", |h| h.as_old_mut().size = [0xff; 12]),
        Tar::default().with(b'0', "f", b"", |h| h.as_old_mut().uid = [0xff; 8]),
        Tar::default().pax(b'x', &[("uid", b"4294967295")]).file("f", b""),
        Tar::default().entry(b'x', "p", "", b"999 path=x\n").file("f", b""),
        Tar::default().entry(b'x', "p", "", b"9 path=xy").file("f", b""),
        Tar::default().entry(b'Z', "f", "", b""),
        Tar::default().pax(b'x', &[("GNU.sparse.major", b"1")]).file("f", b""),
        Tar::default().pax(b'x', &[("path", b"a")]).entry(b'L', "l", "", b"b").file("f", b""),
    ] {
        let bench = Bench::new();
        refused(bench.unpack(tar));
    }
    // The name goes on behind the size, where GNU tar reads it and others do not. Without more, both read the same.
    let cut = |kind: u8, text: &[u8]| {
        let mut tar = Tar::default();
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_size(2);
        header.set_cksum();
        tar.raw(&header, text);
        tar.symlink("s", "target")
    };
    for kind in [b'L', b'K'] {
        let error = Bench::new().unpack(cut(kind, b"abc")).unwrap_err();
        assert!(format!("{error:?}").contains("a GNU long name is longer than its header says"), "{error:?}");
        for text in [&b"ab"[..], b"a\0", b"ab\0c"] {
            Bench::new().unpack(cut(kind, text)).unwrap();
        }
    }
    let bench = Bench::new();
    let mut bytes = Tar::default().file("f", b"x").end();
    bytes[0] = b'g';
    refused(bench.unpack_stream(&bytes, &bytes));
    let bench = Bench::new();
    let cut = &Tar::default().file("f", &[7; 2000]).end()[..1024];
    assert!(matches!(bench.unpack_stream(cut, cut), Err(UnpackError::Archive(ArchiveError::Read { .. }))));
}

#[test]
fn t09_the_last_of_several_entries_wins() {
    let bench = Bench::new();
    let canary = bench.canary();
    let tar = Tar::default()
        .file("n", b"1")
        .dir("n")
        .file("n/inside", b"2")
        .symlink("n", &canary)
        .file("n", b"last")
        .file("f", b"x")
        .file("f/below", b"y")
        .symlink("s", &format!("{canary}/f"))
        .with(b'6', "s", b"", |_| {})
        .dir("keep")
        .file("keep/a", b"a")
        .dir("keep");
    bench.unpack(tar).unwrap();
    assert_eq!(bench.read("n"), "last");
    assert_eq!(bench.read("f/below"), "y");
    assert!(bench.is_opaque("f"), "a file had hidden what is below");
    assert!(bench.stat("s").file_type().is_fifo());
    assert_eq!(bench.read("keep/a"), "a");
    assert!(!bench.is_opaque("keep"));
}

#[test]
fn t10_malformed_whiteouts_and_literal_marks_are_refused() {
    for tar in [
        Tar::default().file(".wh.", b""),
        Tar::default().file(".wh..", b""),
        Tar::default().file(".wh...", b""),
        Tar::default().file(".wh../x/../../x", b""),
        Tar::default().file("../.wh.canary", b""),
        Tar::default().with(b'3', "gone", b"", |h| {
            h.set_device_major(0).unwrap();
            h.set_device_minor(0).unwrap();
        }),
    ] {
        let bench = Bench::new();
        refused(bench.unpack(tar));
    }
}

#[test]
fn t10_whiteouts_hide_lower_entries_only() {
    let bench = Bench::new();
    let tar = Tar::default()
        .file(".wh.gone", b"")
        .dir("d")
        .file("d/.wh.x", b"")
        .file(".wh..wh.plnk", b"")
        .file("both", b"kept")
        .file(".wh.both", b"")
        .file(".wh.later", b"")
        .file("later", b"came")
        .file(".wh.dir", b"")
        .file("dir/new", b"n")
        .dir("own")
        .file("own/f", b"f")
        .file(".wh.own", b"")
        .dir("o")
        .file("o/f", b"f")
        .file("o/.wh..wh..opq", b"")
        .file("o/.wh.z", b"")
        .symlink("link", &bench.canary())
        .file("link/.wh.f", b"");
    bench.unpack(tar).unwrap();
    assert!(bench.is_whiteout("gone") && bench.is_whiteout("d/x") && bench.is_whiteout("o/z"));
    assert_eq!((bench.read("both"), bench.read("later")), ("kept".into(), "came".into()));
    assert!(bench.is_opaque("dir") && bench.has("dir/new"));
    assert!(bench.is_opaque("own") && bench.has("own/f"));
    assert!(bench.is_opaque("o") && bench.has("o/f"));
    assert!(!bench.is_opaque("d") && !bench.is_opaque(""));
    let bench = Bench::new();
    bench.unpack(Tar::default().file(".wh..wh..opq", b"").file("f", b"")).unwrap();
    assert!(bench.is_opaque("") && bench.has("f"));
}

#[test]
fn t11_attributes_that_steer_the_host_are_dropped() {
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let bench = Bench::new();
    let tar = Tar::default()
        .pax(
            b'x',
            &[
                ("SCHILY.xattr.trusted.overlay.redirect", b"/../../etc"),
                ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
                ("SCHILY.xattr.user.overlay.opaque", b"y"),
                ("SCHILY.xattr.security.selinux", b"x"),
                ("SCHILY.xattr.security.ima", b"x"),
                ("SCHILY.xattr.security.capability", &capability),
                ("SCHILY.xattr.user.kept", b"yes"),
            ],
        )
        .with(b'0', "f", b"", |h| h.set_uid(5))
        .pax(b'x', &[("SCHILY.xattr.trusted.overlay.opaque", b"y")])
        .dir("d");
    bench.unpack(tar).unwrap();
    let file = bench.layer().join("f");
    for dropped in [
        "trusted.overlay.redirect",
        "trusted.overlay.opaque",
        "user.overlay.opaque",
        "security.selinux",
        "security.ima",
    ] {
        assert_eq!(xattr(&file, dropped), None, "{dropped}");
    }
    assert_eq!(xattr(&file, "user.kept").as_deref(), Some(&b"yes"[..]));
    assert_eq!(xattr(&file, "security.capability").as_deref(), Some(&capability[..]));
    assert!(!bench.is_opaque("d"));
    let bench = Bench::new();
    let large = vec![b'x'; 70 << 10];
    refused(bench.unpack(Tar::default().pax(b'x', &[("SCHILY.xattr.user.large", &large)]).file("f", b"")));
}

#[test]
fn i04_i06_wrong_digests_and_bombs_are_told_apart() {
    let plain = Tar::default().file("f", b"x").end();
    let (good, zst) = (gzip(&plain), zstd(&plain));
    for stream in [&plain, &good, &zst] {
        assert!(Bench::new().unpack_stream(stream, &plain).is_ok());
    }
    assert!(matches!(Bench::new().unpack_stream(&good, b"other"), Err(UnpackError::DiffId { .. })));
    let run = |stream: &[u8], blob, limits| {
        let bench = Bench::new();
        let dir = open_dir(&bench.layer()).unwrap();
        unpack(stream, Expected { blob, diff_id: Digest::of(&plain) }, dir.as_fd(), limits)
    };
    let (digest, size) = (Digest::of(&good), good.len() as u64);
    let mut altered = good.clone();
    *altered.last_mut().unwrap() ^= 1;
    assert!(matches!(run(&altered, Some((digest, size)), LIMITS), Err(UnpackError::Digest { .. })));
    assert!(matches!(
        run(&good[..good.len() - 1], Some((digest, size)), LIMITS),
        Err(UnpackError::Size { .. })
    ));
    let longer = [&good[..], b"x"].concat();
    assert!(matches!(run(&longer, Some((digest, size)), LIMITS), Err(UnpackError::Size { .. })));
    let garbage = run(&longer, Some((Digest::of(&longer), size + 1)), LIMITS);
    assert!(matches!(garbage, Err(UnpackError::Archive(_) | UnpackError::Inflate(_))), "{garbage:?}");
    let small = Limits { bytes: 1024, ..LIMITS };
    assert!(matches!(run(&good, None, small), Err(UnpackError::TooBig { limit: 1024, .. })));
    let few = Limits { entries: 1, ..LIMITS };
    assert!(matches!(run(&good, None, few), Err(UnpackError::TooBig { limit: 1, .. })));
}

#[test]
fn directories_that_a_layer_does_not_describe_look_like_those_below() {
    require_root();
    let tmp = tempfile::tempdir().unwrap();
    let layer = |name: &str, tar: Tar| {
        let path = tmp.path().join(name);
        std::fs::create_dir(&path).unwrap();
        let plain = tar.end();
        let dir = open_dir(&path).unwrap();
        let expected = Expected { blob: None, diff_id: Digest::of(&plain) };
        (unpack(&plain[..], expected, dir.as_fd(), LIMITS).unwrap(), path)
    };
    let base = Tar::default()
        .with(b'5', "./", b"", |h| h.set_mode(0o711))
        .with(b'5', "tmp", b"", |h| h.set_mode(0o1777))
        .with(b'5', "home/u", b"", |h| h.set_uid(7))
        .symlink("lib", "usr/lib")
        .with(b'5', "hidden", b"", |h| h.set_mode(0o700));
    let (_, base) = layer("base", base);
    let (between, middle) = layer("middle", Tar::default().file(".wh.hidden", b"").file("other", b""));
    let (top, path) =
        layer("top", Tar::default().file("tmp/f", b"").file("home/u/x/y", b"").file("hidden/f", b""));
    let (base, middle) = (open_dir(&base).unwrap(), open_dir(&middle).unwrap());
    inherit(middle.as_fd(), &[base.as_fd()], &between.implicit).unwrap();
    let lowers = [middle.as_fd(), base.as_fd()];
    inherit(open_dir(&path).unwrap().as_fd(), &lowers, &top.implicit).unwrap();
    let mode = |p: &str| path.join(p).symlink_metadata().unwrap().mode() & 0o7777;
    assert_eq!((mode(""), mode("tmp"), mode("hidden"), mode("home/u/x")), (0o711, 0o1777, 0o755, 0o755));
    assert_eq!(path.join("home/u").symlink_metadata().unwrap().uid(), 7);
    let (described, path) = layer("described", Tar::default().dir("lib").file("lib/x/f", b""));
    inherit(open_dir(&path).unwrap().as_fd(), &lowers, &described.implicit).unwrap();
    assert!(path.join("lib/x/f").exists(), "a described directory replaces the symlink");
}

#[test]
fn t13_directories_that_nobody_describes_belong_to_root_whoever_owns_what_is_above() {
    let bench = Bench::new();
    let tar = Tar::default().with(b'5', "d", b"", |h| {
        h.set_mode(0o2777);
        h.set_uid(7);
        h.set_gid(7);
    });
    bench.unpack(tar.file("d/implicit/f", b"")).unwrap();
    let made = bench.stat("d/implicit");
    assert_eq!((made.mode() & 0o7777, made.uid(), made.gid()), (0o755, 0, 0));
}

#[test]
fn t02_a_file_put_through_a_symlink_of_a_lower_layer_lands_where_it_leads() {
    require_root();
    let bench = Bench::new();
    let base = Tar::default()
        .with(b'5', "usr/lib", b"", |h| h.set_uid(9))
        .symlink("lib", "usr/lib")
        .symlink("lib64", "/lib")
        .symlink("out", &bench.canary())
        .symlink("loop", "loop");
    bench.unpack(base).unwrap();
    let upper = |tar: Tar| {
        let bench = Bench::new();
        let unpacked = bench.unpack(tar).unwrap();
        (bench, unpacked.implicit)
    };
    let below = open_dir(&bench.layer()).unwrap();
    let settle = |top: &(Bench, Vec<Vec<u8>>)| {
        inherit(open_dir(&top.0.layer()).unwrap().as_fd(), &[below.as_fd()], &top.1)
    };
    let top = upper(Tar::default().file("lib64/a/f", b"1").file("lib/g", b"2").file("usr/lib/h", b"3"));
    settle(&top).unwrap();
    for (path, text) in [("usr/lib/a/f", "1"), ("usr/lib/g", "2"), ("usr/lib/h", "3")] {
        assert_eq!(top.0.read(path), text);
    }
    assert!(!top.0.has("lib") && !top.0.has("lib64"), "the symlinks show");
    assert_eq!(top.0.stat("usr/lib").uid(), 9);
    // A symlink that leads nowhere inside is replaced, never followed.
    let top = upper(Tar::default().file("out/f", b"new").file("loop/f", b"new"));
    settle(&top).unwrap();
    assert!(top.0.has("out/f") && top.0.has("loop/f"));
    assert_eq!(fingerprint(&bench.tmp.path().join("canary")), bench.before);
    let top = upper(Tar::default().file("lib/same", b"1").file("usr/lib/same", b"2"));
    let error = settle(&top).unwrap_err();
    assert!(error.to_string().contains("\"usr/lib/same\" comes twice"), "{error}");
}

/// Names that meet each other, and the kinds of entries that could be turned against each other.
fn hostile_entry() -> impl Strategy<Value = (u8, String, String)> {
    let part = prop::sample::select(vec!["a", "b", "..", ".", ".wh.a", ".wh..wh..opq", "", "canary", "f"]);
    let path = prop::collection::vec(part, 1..4).prop_map(|parts| parts.join("/"));
    let kind = prop::sample::select(vec![b'0', b'1', b'2', b'5', b'6']);
    let prefix = prop::sample::select(vec!["", "/", "../", "../../"]);
    (kind, path.clone(), (prefix, path).prop_map(|(p, t)| format!("{p}{t}")))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn t02_t09_no_sequence_of_entries_touches_anything_outside(
        entries in prop::collection::vec(hostile_entry(), 1..12)
    ) {
        let bench = Bench::new();
        let mut tar = Tar::default();
        for (kind, name, link) in &entries {
            tar = match kind {
                b'1' | b'2' => tar.entry(*kind, name, link, b""),
                b'0' => tar.entry(*kind, name, "", b"data"),
                _ => tar.entry(*kind, name, "", b""),
            };
        }
        // Whatever comes out, the canary is as it was: the bench asserts it.
        let _ = bench.unpack(tar);
    }

    #[test]
    fn t08_no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        let mut archive = Archive::new(&bytes[..]);
        while let Ok(Some(_)) = archive.next() {}
    }
}
