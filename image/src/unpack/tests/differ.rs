//! The unpacker against GNU tar: what both take, they must take for the same tree.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::process::Command;

use super::*;
use crate::fixture::{Dice, dice};

/// Archives in a run without CRISP_ROUNDS.
const ROUNDS: u64 = 120;

/// What can be seen of each path, and which paths are one file.
fn tree(root: &Path) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    let mut files: BTreeMap<u64, String> = BTreeMap::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(at) = todo.pop() {
        let path = root.join(&at);
        let meta = path.symlink_metadata().unwrap();
        let mut text = format!("{:o} {}:{}", meta.mode(), meta.uid(), meta.gid());
        if meta.is_dir() {
            let entries = std::fs::read_dir(&path).unwrap();
            todo.extend(entries.map(|e| at.join(e.unwrap().file_name())));
        } else {
            let first = files.entry(meta.ino()).or_insert_with(|| at.display().to_string()).clone();
            write!(text, " {}.{} links {} with {first}", meta.mtime(), meta.mtime_nsec(), meta.nlink())
                .unwrap();
        }
        if meta.is_symlink() {
            write!(text, " -> {:?}", std::fs::read_link(&path).unwrap()).unwrap();
        } else if meta.is_file() {
            write!(text, " {} {}", meta.len(), Digest::of(&std::fs::read(&path).unwrap())).unwrap();
        } else {
            write!(text, " device {}", meta.rdev()).unwrap();
        }
        if let Some(value) = xattr(&path, "user.x") {
            write!(text, " user.x {value:?}").unwrap();
        }
        // The root itself: an archive need not describe it.
        if !at.as_os_str().is_empty() {
            out.insert(at.display().to_string(), text);
        }
    }
    out
}

fn gnu_tar(arguments: &[&str], directory: &Path) -> bool {
    let mut command = Command::new("tar");
    command.current_dir(directory).args(["--numeric-owner", "--xattrs", "--xattrs-include=user.*"]);
    command.args(arguments).env("LC_ALL", "C").stderr(std::process::Stdio::null());
    command.status().expect("GNU tar").success()
}

/// Unpacks with both; what crisp took, GNU tar must have taken for the same. `what` is shown when it did not.
fn compare(bench: &Bench, archive: &[u8], must_take: bool, what: &str) {
    let file = bench.tmp.path().join("layer.tar");
    let theirs = bench.tmp.path().join("theirs");
    let expected = Expected { blob: None, diff_id: Digest::of(archive) };
    let ours = unpack(archive, expected, open_dir(&bench.layer()).unwrap().as_fd(), LIMITS);
    let unpacked = match ours {
        Ok(unpacked) => unpacked,
        Err(e) => return assert!(!must_take, "crisp refused: {e:?}"),
    };
    std::fs::write(&file, archive).unwrap();
    std::fs::create_dir(&theirs).unwrap();
    let took = gnu_tar(&["--same-permissions", "--same-owner", "-xf", file.to_str().unwrap()], &theirs);
    assert!(took || !must_take, "GNU tar refused what it wrote");
    if took {
        let (ours, theirs) = (tree(&bench.layer()), tree(&theirs));
        // Of a directory that only its entries tell of, the archive says neither owner nor mode. In GNU tar's they depend on
        // when the one above got its set-group-id bit.
        let implicit: Vec<_> =
            unpacked.implicit.iter().map(|path| String::from_utf8_lossy(path).into_owned()).collect();
        let shown = |path: &String, text: Option<&String>| match text {
            Some(text) if implicit.contains(path) && text.starts_with('4') => Some("a directory".to_owned()),
            // Nor does it take the bit away again from a directory that got it from there with the mode that it wants.
            Some(text) if !must_take && text.starts_with("42") => Some(text.replacen("42", "40", 1)),
            other => other.cloned(),
        };
        for path in ours.keys().chain(theirs.keys()) {
            let (ours, theirs) = (shown(path, ours.get(path)), shown(path, theirs.get(path)));
            assert_eq!(ours, theirs, "{path:?}: crisp and GNU tar differ{what}");
        }
    }
}

/// A random tree below `root`: every kind of entry, long and odd names, holes, links of both kinds.
fn grow(dice: &mut Dice, root: &Path) {
    let mut dirs = vec![PathBuf::new()];
    let mut files: Vec<PathBuf> = Vec::new();
    for number in 0..3 + dice.below(14) {
        let stem = match dice.below(6) {
            0 => "ü\u{1f980} ".to_owned(),
            1 => "line\nbreak".to_owned(),
            2 => "l".repeat(90 + dice.below(120)),
            _ => "n".to_owned(),
        };
        let at = dice.pick(&dirs).join(format!("{stem}{number}"));
        let path = root.join(&at);
        match dice.below(9) {
            0..=2 if at.as_os_str().len() < 2000 => {
                std::fs::create_dir(&path).unwrap();
                dirs.push(at.clone());
            }
            3 => {
                let target =
                    if dice.below(2) == 0 { "../x".repeat(dice.below(40)) + "y" } else { "n0".into() };
                std::os::unix::fs::symlink(target, &path).unwrap();
            }
            4 if !files.is_empty() => std::fs::hard_link(root.join(dice.pick(&files)), &path).unwrap(),
            5 => {
                let mode = rustix::fs::Mode::from_raw_mode(0o640);
                rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
            }
            6 => {
                let file = std::fs::File::create(&path).unwrap();
                for _ in 0..dice.below(40) {
                    use std::os::unix::fs::FileExt;
                    file.write_all_at(&[dice.byte() | 1; 700], dice.number() % (1 << 21)).unwrap();
                }
                file.set_len(file.metadata().unwrap().len() + dice.number() % (1 << 18)).unwrap();
                files.push(at.clone());
            }
            _ => {
                let length = *dice.pick(&[0, 1, 511, 512, 513, 5000, 70_000]);
                std::fs::write(&path, vec![dice.byte(); length]).unwrap();
                if dice.below(4) == 0 {
                    let _ = rustix::fs::setxattr(&path, "user.x", b"v\n\0=", rustix::fs::XattrFlags::empty());
                }
                files.push(at.clone());
            }
        }
        let ids = [0, 7, 65_534, 2_097_151];
        std::os::unix::fs::lchown(&path, Some(*dice.pick(&ids)), Some(*dice.pick(&ids))).unwrap();
        if !path.symlink_metadata().unwrap().is_symlink() {
            let mode = *dice.pick(&[0o644, 0o4755, 0o2750, 0o1777, 0o700]);
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        }
        set_time(&path, *dice.pick(&[0, 1, 1_700_000_000, 8_589_934_591]));
    }
    // Their entries have changed them; the clock would make each run's archive another.
    for dir in dirs {
        set_time(&root.join(dir), *dice.pick(&[0, 1, 1_700_000_000, 8_589_934_591]));
    }
}

fn set_time(path: &Path, seconds: i64) {
    let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: 0 };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, flags).unwrap();
}

/// An archive of a random tree in one of GNU tar's formats.
fn written_by_gnu_tar(dice: &mut Dice, bench: &Bench) -> Option<Vec<u8>> {
    let source = bench.tmp.path().join("source");
    std::fs::create_dir(&source).unwrap();
    grow(dice, &source);
    let file = bench.tmp.path().join("made.tar");
    let format = *dice.pick(&["gnu", "pax", "pax", "oldgnu", "ustar", "v7"]);
    let sparse = *dice.pick(&[
        &["--sparse"][..],
        &["--sparse", "--sparse-version=0.0"],
        &["--sparse", "--sparse-version=0.1"],
        &[],
    ]);
    // Sorted, or the order would be the file system's.
    let mut arguments = vec!["--sort", "name", "--format", format, "-cf", file.to_str().unwrap()];
    if format.contains("gnu") || format == "pax" {
        arguments.extend_from_slice(if format == "pax" { sparse } else { &sparse[..sparse.len().min(1)] });
    }
    // Attributes are written in the pax format only, and make every other one an error.
    if format != "pax" {
        arguments.push("--no-xattrs");
    }
    arguments.push(".");
    // The old formats cannot hold every tree; then there is nothing to compare.
    gnu_tar(&arguments, &source).then(|| std::fs::read(&file).unwrap())
}

fn outside(bench: Bench) -> Bench {
    assert_eq!(fingerprint(&bench.tmp.path().join("canary")), bench.before, "the canary was touched");
    bench
}

#[test]
fn t06_what_gnu_tar_writes_comes_out_as_gnu_tar_reads_it() {
    let (mut dice, rounds) = dice("t06 trees", ROUNDS);
    let mut compared = 0;
    for _ in 0..rounds {
        let bench = Bench::new();
        if let Some(archive) = written_by_gnu_tar(&mut dice, &bench) {
            compare(&bench, &archive, true, "");
            compared += 1;
        }
        outside(bench);
    }
    assert!(compared > rounds / 4, "only {compared} of {rounds} trees could be archived");
}

/// Fields of a header: first byte and length.
const FIELDS: [(usize, usize); 10] = [
    (0, 100),
    (100, 8),
    (108, 8),
    (116, 8),
    (124, 12),
    (136, 12),
    (156, 1),
    (157, 100),
    (257, 8),
    (345, 155),
];

/// Changes a header here and there and puts the checksum right again. Says what it has changed.
fn mutate(dice: &mut Dice, archive: &mut [u8]) -> String {
    let mut changes = String::new();
    let headers: Vec<usize> = (0..archive.len() / 512)
        .map(|b| b * 512)
        .filter(|at| archive[at + 257..].starts_with(b"ustar"))
        .collect();
    for _ in 0..1 + dice.below(3) {
        let at = *dice.pick(&headers);
        let header = &mut archive[at..at + 512];
        let (start, length) = *dice.pick(&FIELDS);
        let place = start + dice.below(length);
        let before = header[place];
        header[place] = match dice.below(6) {
            0 => 0,
            1 => *dice.pick(b"0123456789 /.gxLKS"),
            2 => 0x80 | dice.byte(),
            3 => header[place] ^ 1 << dice.below(8),
            4 => header[place].wrapping_add(1),
            _ => b'1',
        };
        let (kind, after) = (char::from(header[156]), header[place]);
        write!(changes, "; header at {at} (now {kind:?}), byte {place}: {before:#x} became {after:#x}")
            .unwrap();
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    changes
}

#[test]
fn t06_t08_a_changed_header_is_refused_or_means_the_same_to_gnu_tar() {
    let (mut dice, rounds) = dice("t06 headers", ROUNDS);
    for _ in 0..rounds {
        let bench = Bench::new();
        if let Some(mut archive) = written_by_gnu_tar(&mut dice, &bench)
            && archive[257..].starts_with(b"ustar")
        {
            let changes = mutate(&mut dice, &mut archive);
            compare(&bench, &archive, false, &changes);
        }
        outside(bench);
    }
}
