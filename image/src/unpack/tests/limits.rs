//! What costs more than it should, and what must not be opened.

use super::*;

/// A number as octal or, where it does not fit, base-256 field of twelve bytes.
fn field(n: u64) -> [u8; 12] {
    let mut out = [0; 12];
    if n < 1 << 33 {
        out[..11].copy_from_slice(format!("{n:011o}").as_bytes());
    } else {
        out[0] = 0x80;
        out[4..].copy_from_slice(&n.to_be_bytes());
    }
    out
}

/// A file of the old GNU form with these pieces; `more` blocks of pieces may follow.
fn old_sparse(size: u64, pieces: &[(u64, u64)], data: &[u8]) -> Tar {
    let mut tar = Tar::default();
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::GNUSparse);
    header.set_path("holes").unwrap();
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(data.len() as u64);
    let bytes = header.as_mut_bytes();
    let (own, rest) = pieces.split_at(pieces.len().min(4));
    for (at, (offset, length)) in own.iter().enumerate() {
        bytes[386 + at * 24..398 + at * 24].copy_from_slice(&field(*offset));
        bytes[398 + at * 24..410 + at * 24].copy_from_slice(&field(*length));
    }
    bytes[482] = u8::from(!rest.is_empty());
    bytes[483..495].copy_from_slice(&field(size));
    header.set_cksum();
    let mut blocks = Vec::new();
    let mut chunks = rest.chunks(21).peekable();
    while let Some(chunk) = chunks.next() {
        let mut block = [0_u8; 512];
        for (at, (offset, length)) in chunk.iter().enumerate() {
            block[at * 24..at * 24 + 12].copy_from_slice(&field(*offset));
            block[at * 24 + 12..at * 24 + 24].copy_from_slice(&field(*length));
        }
        block[504] = u8::from(chunks.peek().is_some());
        blocks.extend_from_slice(&block);
    }
    tar.raw(&header, &[&blocks[..], data].concat());
    tar
}

#[test]
fn t07_holes_stay_holes_in_all_forms() {
    let version = |n: &str| [("GNU.sparse.major", n.as_bytes().to_vec())];
    let size = 1_u64 << 24;
    let pieces: Vec<(u64, u64)> = (0..30).map(|i| (i * 100_000, 10)).chain([(size, 0)]).collect();
    let data: Vec<u8> = (0..30).flat_map(|i| vec![b'A' + i; 10]).collect();
    let list = pieces.iter().map(|(o, n)| format!("{o},{n}")).collect::<Vec<_>>().join(",");
    let text = |n: u64| n.to_string().into_bytes();
    let named = [("GNU.sparse.name", b"holes".to_vec()), ("GNU.sparse.realsize", text(size))];
    let borrow = |records: Vec<(&'static str, Vec<u8>)>| {
        let records: Vec<_> = records.iter().map(|(key, value)| (*key, &value[..])).collect();
        Tar::default().pax(b'x', &records)
    };
    let mut zero = vec![("GNU.sparse.size", text(size)), ("GNU.sparse.numblocks", text(31))];
    for (offset, length) in &pieces {
        zero.extend([("GNU.sparse.offset", text(*offset)), ("GNU.sparse.numbytes", text(*length))]);
    }
    let mut one = vec![("GNU.sparse.map", list.into_bytes()), ("GNU.sparse.numblocks", text(31))];
    one.extend(named.clone());
    let mut lines = "31\n".to_owned();
    pieces.iter().for_each(|(o, n)| lines.push_str(&format!("{o}\n{n}\n")));
    lines.extend(std::iter::repeat_n('\0', lines.len().next_multiple_of(512) - lines.len()));
    let mut last = version("1").to_vec();
    last.push(("GNU.sparse.minor", b"0".to_vec()));
    last.extend(named);
    for tar in [
        old_sparse(size, &pieces, &data),
        borrow(zero).file("holes", &data),
        borrow(one).file("GNUSparseFile.1/holes", &data),
        borrow(last).file("GNUSparseFile.1/holes", &[lines.as_bytes(), &data].concat()),
    ] {
        let bench = Bench::new();
        bench.unpack(tar.file("after", b"a")).unwrap();
        let found = std::fs::read(bench.layer().join("holes")).unwrap();
        assert_eq!(found.len() as u64, size);
        for (index, (offset, length)) in pieces.iter().enumerate().take(30) {
            let at = usize::try_from(*offset).unwrap();
            assert_eq!(found[at..at + 10], data[index * 10..index * 10 + usize::try_from(*length).unwrap()]);
        }
        assert_eq!(found.iter().filter(|b| **b != 0).count(), 300);
        assert!(bench.stat("holes").blocks() * 512 < size / 2, "holes take no space");
        assert_eq!(bench.read("after"), "a");
    }
}

#[test]
fn t07_impossible_maps_are_refused() {
    let pax = |records: &[(&str, &str)], data: &[u8]| {
        let records: Vec<_> = records.iter().map(|(k, v)| (*k, v.as_bytes())).collect();
        Tar::default().pax(b'x', &records).file("f", data)
    };
    let one = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "10")];
    let block = |text: &str| {
        let mut block = text.as_bytes().to_vec();
        block.resize(512, 0);
        block
    };
    let many: Vec<(u64, u64)> = (0..70_000).map(|i| (i * 2, 1)).collect();
    for tar in [
        old_sparse(100, &[(0, 10), (5, 10)], &[0; 20]),
        old_sparse(100, &[(50, 10), (0, 10)], &[0; 20]),
        old_sparse(100, &[(95, 10)], &[0; 10]),
        old_sparse(100, &[(0, 10)], &[0; 10]),
        old_sparse(100, &[], b""),
        old_sparse(100, &[(u64::MAX / 2, 10)], &[0; 10]),
        old_sparse(100, &[(0, 10)], &[0; 20]),
        old_sparse(1 << 20, &many, &vec![0; 70_000]),
        pax(&[("GNU.sparse.size", "10"), ("GNU.sparse.map", "0,5,3,5")], &[0; 10]),
        pax(&[("GNU.sparse.size", "10"), ("GNU.sparse.map", "0,-5")], b""),
        pax(&[("GNU.sparse.size", "10"), ("GNU.sparse.map", "0")], b""),
        pax(&[("GNU.sparse.map", "0,1")], b"x"),
        pax(&[("GNU.sparse.size", "10"), ("GNU.sparse.numbytes", "1")], b"x"),
        pax(&[("GNU.sparse.size", "10"), ("GNU.sparse.numblocks", "2"), ("GNU.sparse.map", "0,1")], b"x"),
        pax(&[("GNU.sparse.major", "2"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "1")], b"x"),
        pax(&[("GNU.sparse.other", "1")], b"x"),
        pax(&one, &block("99999999999\n")),
        pax(&one, &block("x\n")),
        pax(&one, &block("1\n0\n")),
        pax(&one, b"1\n0\n1\n"),
        pax(&one, &block("1\n0\n10\n")),
        Tar::default().pax(b'x', &[("GNU.sparse.size", b"10"), ("GNU.sparse.map", b"0,1")]).dir("f"),
        Tar::default().pax(b'g', &[("GNU.sparse.size", b"10"), ("GNU.sparse.map", b"0,1")]).file("f", b"x"),
    ] {
        let bench = Bench::new();
        refused(bench.unpack(tar));
    }
}

#[test]
fn t12_nodes_are_made_and_replaced_without_being_opened() {
    let bench = Bench::new();
    let device = |tar: Tar, name: &str, kind, (major, minor)| {
        tar.with(kind, name, b"", |h| {
            h.set_mode(0o666);
            h.set_device_major(major).unwrap();
            h.set_device_minor(minor).unwrap();
        })
    };
    // Opening any of these would block, fail, or do something: a FIFO, a tape that is not there, a disk.
    let mut tar = Tar::default().with(b'6', "etc/passwd", b"", |_| {}).with(b'6', "run/config", b"", |_| {});
    tar = device(tar, "dev/tape", b'3', (9, 0));
    tar = device(tar, "dev/disk", b'4', (8, 0));
    tar = tar.file("run/config", b"now a file").file("dev/tape", b"too").dir("dev/disk");
    // An odd owner and attributes go onto the node itself.
    tar = tar.pax(b'x', &[("SCHILY.xattr.user.x", b"1")]).with(b'6', "p", b"", |h| h.set_uid(77));
    bench.unpack(tar).unwrap();
    assert!(bench.stat("etc/passwd").file_type().is_fifo());
    assert_eq!((bench.read("run/config"), bench.read("dev/tape")), ("now a file".into(), "too".into()));
    assert!(bench.stat("dev/disk").is_dir());
    assert_eq!(bench.stat("p").uid(), 77);
}

#[test]
fn t13_owners_modes_and_times_at_the_edge_of_their_range() {
    let bench = Bench::new();
    let tar = Tar::default()
        .pax(b'x', &[("uid", b"4294967294"), ("gid", b"4294967294")])
        .with(b'0', "f", b"", |h| h.set_mode(0o4777))
        .with(b'5', "t", b"", |h| h.set_mode(0o1777))
        .pax(b'x', &[("mtime", b"9223372036854775807")])
        .file("late", b"")
        .pax(b'x', &[("mtime", b"-377705116800.5")])
        .file("early", b"")
        .with(b'0', "mode", b"", |h| h.as_old_mut().mode = *b"7777777\0");
    bench.unpack(tar).unwrap();
    assert_eq!((bench.stat("f").uid(), bench.stat("f").gid()), (u32::MAX - 1, u32::MAX - 1));
    assert_eq!((bench.stat("f").mode() & 0o7777, bench.stat("t").mode() & 0o7777), (0o4777, 0o1777));
    assert_eq!(bench.stat("mode").mode() & 0o7777, 0o7777);
    // What the file system cannot hold, it clamps; in the right direction.
    assert!(bench.stat("late").mtime() > 1 << 31 && bench.stat("early").mtime() < 0);
    for id in ["4294967295", "4294967296", "18446744073709551616", "-1", ""] {
        let bench = Bench::new();
        refused(bench.unpack(Tar::default().pax(b'x', &[("gid", id.as_bytes())]).file("f", b"")));
    }
    for time in ["9223372036854775808", "1.x", "1e9", ".5x"] {
        let bench = Bench::new();
        refused(bench.unpack(Tar::default().pax(b'x', &[("mtime", time.as_bytes())]).file("f", b"")));
    }
}

#[test]
fn t14_too_much_of_anything_is_an_error_with_the_limit() {
    let run = |tar: Tar, limits: Limits| {
        let bench = Bench::new();
        let plain = tar.end();
        let expected = Expected { blob: None, diff_id: Digest::of(&plain) };
        unpack(&plain[..], expected, open_dir(&bench.layer()).unwrap().as_fd(), limits)
    };
    let is_too_big = |result| matches!(result, Err(UnpackError::TooBig { .. }));
    let files = |n| (0..n).fold(Tar::default(), |tar, i| tar.file(&format!("f{i}"), b""));
    let few = Limits { entries: 50, ..LIMITS };
    assert!(run(files(49), few).is_ok() && is_too_big(run(files(60), few)));
    // Directories that nobody describes count as well, and a name cannot be longer than the kernel's.
    assert!(is_too_big(run(Tar::default().pax(b'x', &[("path", "d/".repeat(60).as_bytes())]).dir("x"), few)));
    let deep = "d/".repeat(2000);
    let bench = Bench::new();
    bench.unpack(Tar::default().pax(b'x', &[("path", deep.as_bytes())]).dir("x")).unwrap();
    // A large file that is almost all hole.
    let whole = 4_u64 << 40;
    assert!(is_too_big(run(old_sparse(whole, &[(0, 1), (whole, 0)], b"x"), LIMITS)));
    // Attributes without end.
    let value = vec![b'v'; 60_000];
    let names: Vec<String> = (0..1000).map(|i| format!("SCHILY.xattr.user.a{i}")).collect();
    let records: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &value[..])).collect();
    refused(run(Tar::default().pax(b'x', &records).file("f", b""), LIMITS));
    let records: Vec<(&str, &[u8])> = std::iter::repeat_n(("comment", &b"x"[..]), 1_000_000).collect();
    refused(run(Tar::default().pax(b'x', &records).file("f", b""), LIMITS));
}

#[test]
fn i06_bombs_end_at_their_limit() {
    let zeros = |out: &mut dyn io::Write, megabytes: usize| {
        for _ in 0..megabytes {
            out.write_all(&[0; 1 << 20]).unwrap();
        }
    };
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    zeros(&mut gz, 24);
    let mut zst = zstd::Encoder::new(Vec::new(), 1).unwrap();
    zeros(&mut zst, 24);
    let small = Limits { bytes: 8 << 20, ..LIMITS };
    let run = |stream: &[u8], limits| {
        let bench = Bench::new();
        let dir = open_dir(&bench.layer()).unwrap();
        let blob = Some((Digest::of(stream), stream.len() as u64));
        unpack(stream, Expected { blob, diff_id: Digest::of(b"") }, dir.as_fd(), limits)
    };
    for stream in [gz.finish().unwrap(), zst.finish().unwrap()] {
        assert!(stream.len() < 1 << 20);
        let result = run(&stream, small);
        assert!(matches!(result, Err(UnpackError::TooBig { limit, .. }) if limit == 8 << 20), "{result:?}");
    }
    // A zstd frame that wants a window of 8 GiB: magic, no checksum, window descriptor, an empty last block.
    let window = [0x28, 0xb5, 0x2f, 0xfd, 0x00, (33 - 10) << 3, 0x01, 0x00, 0x00];
    let result = run(&window, LIMITS);
    assert!(matches!(&result, Err(UnpackError::Archive(_) | UnpackError::Inflate(_))), "{result:?}");
    // Ever so many members that hold nothing.
    let members = gzip(b"").repeat(20_000);
    assert!(matches!(run(&members, LIMITS), Err(UnpackError::DiffId { .. }) | Ok(_)));
    let mut whole = members;
    let plain = Tar::default().file("f", b"x").end();
    whole.extend_from_slice(&gzip(&plain));
    let bench = Bench::new();
    bench.unpack_stream(&whole, &plain).unwrap();
    assert_eq!(bench.read("f"), "x");
    // A format that is not known is no tar.
    let xz = [0xfd, b'7', b'z', b'X', b'Z', 0, 0, 4].repeat(100);
    refused(run(&xz, LIMITS));
}

/// A piece of a compressed stream, again and again; counts what was taken.
struct Endless<'a> {
    piece: &'a [u8],
    taken: u64,
    length: u64,
}

impl Read for Endless<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let at = usize::try_from(self.taken % self.piece.len() as u64).unwrap();
        let left = usize::try_from(self.length - self.taken).unwrap();
        let n = (self.piece.len() - at).min(buffer.len()).min(left);
        buffer[..n].copy_from_slice(&self.piece[at..at + n]);
        self.taken += n as u64;
        Ok(n)
    }
}

#[test]
fn i06_a_bomb_of_a_hundred_gigabytes_is_left_alone_after_its_limit() {
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let mut zst = zstd::Encoder::new(Vec::new(), 1).unwrap();
    for _ in 0..4 {
        io::Write::write_all(&mut gz, &[0; 1 << 20]).unwrap();
        io::Write::write_all(&mut zst, &[0; 1 << 20]).unwrap();
    }
    let small = Limits { bytes: 8 << 20, ..LIMITS };
    // A file that says to be larger than the stream, so that the zeros are its content and not the archive's end.
    let mut start = tar::Header::new_gnu();
    start.set_path("zeros").unwrap();
    start.set_mode(0o644);
    start.set_uid(0);
    start.set_gid(0);
    start.set_mtime(0);
    start.set_size(200 << 30);
    start.set_cksum();
    let heads = [gzip(start.as_bytes()), zstd(start.as_bytes())];
    for (head, piece) in heads.iter().zip([gz.finish().unwrap(), zst.finish().unwrap()]) {
        let length = piece.len() as u64 * (100 << 30 >> 22);
        let mut rest = Endless { piece: &piece, taken: 0, length };
        let bench = Bench::new();
        let dir = open_dir(&bench.layer()).unwrap();
        let blob = Some((Digest::of(b""), head.len() as u64 + length));
        let input = Read::chain(&head[..], &mut rest);
        let result = unpack(input, Expected { blob, diff_id: Digest::of(b"") }, dir.as_fd(), small);
        assert!(matches!(result, Err(UnpackError::TooBig { limit, .. }) if limit == 8 << 20), "{result:?}");
        // Buffers read ahead, and no more.
        assert!(
            rest.taken < 4 * piece.len() as u64 + (1 << 20),
            "{} of {length} bytes were taken",
            rest.taken
        );
    }
}

#[test]
fn i06_sizes_that_nobody_has_are_an_error_in_bounded_memory() {
    // What a base-256 field can say, up to more than there is room to count.
    for size in [8 << 30, 1 << 40, i64::MAX as u64 / 4, i64::MAX as u64, u64::MAX / 2 + 1] {
        let mut header = tar::Header::new_gnu();
        header.set_path("f").unwrap();
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.as_old_mut().size = field(size);
        header.set_cksum();
        for kind in [b'0', b'L', b'x', b'S'] {
            let mut header = header.clone();
            header.set_entry_type(tar::EntryType::new(kind));
            header.set_cksum();
            let mut tar = Tar::default();
            tar.raw(&header, &[7; 5000]);
            let plain = tar.end();
            let bench = Bench::new();
            let result = bench.unpack_stream(&plain, &plain);
            assert!(matches!(result, Err(UnpackError::Archive(_))), "{size} {kind}: {result:?}");
        }
    }
}
