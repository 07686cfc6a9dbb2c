//! Whether an unpacked layer is what its archive says. Purpose: the archive is made again and read, its
//! digest compared with the diff id, and each entry with what lies there. Changes nothing.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};

use super::archive::{Archive, Entry, Kind};
use super::split::{Replay, moved};
use crate::digest::{Digest, Hasher};
use crate::rooted::{file_type, stat_at};

const WHITEOUT: &[u8] = b".wh.";

/// What is wrong with a layer, in words; `None` when nothing is.
///
/// # Errors
/// What was put away at unpacking cannot be used, or the disk fails.
pub(crate) fn compare(
    split: File,
    layer: &OwnedFd,
    lowers: Vec<OwnedFd>,
    diff_id: Digest,
) -> io::Result<Option<String>> {
    let own = lowers.iter().map(OwnedFd::try_clone).collect::<io::Result<Vec<_>>>()?;
    let replay = Replay::new(split, layer.try_clone()?, lowers)?;
    let mut archive = Archive::new(Hashing { inner: replay, hasher: Hasher::default() });
    let mut directories = BTreeMap::new();
    loop {
        match archive.next() {
            Ok(Some(entry)) if entry.kind == Kind::Directory => {
                directories.insert(entry.path.clone(), entry);
            }
            Ok(Some(entry)) => {
                if let Some(reason) = differs(layer.as_fd(), &own, &entry)? {
                    return Ok(Some(format!("{:?}: {reason}", String::from_utf8_lossy(&entry.path))));
                }
            }
            Ok(None) => break,
            // A file that is gone or too short breaks the archive.
            Err(e) => return Ok(Some(words(&e))),
        }
    }
    for entry in directories.values() {
        if let Some(reason) = differs(layer.as_fd(), &own, entry)? {
            return Ok(Some(format!("{:?}: {reason}", String::from_utf8_lossy(&entry.path))));
        }
    }
    let found = match archive.drain() {
        Ok(hashing) => hashing.hasher.finish(),
        Err(e) => return Ok(Some(words(&e))),
    };
    Ok((found != diff_id).then(|| format!("content has diff id {found}, not {diff_id}")))
}

fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut at = error.source();
    while let Some(e) = at {
        text = format!("{text}: {e}");
        at = e.source();
    }
    text
}

struct Hashing<R> {
    inner: R,
    hasher: Hasher,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        Ok(n)
    }
}

fn differs(layer: BorrowedFd<'_>, lowers: &[OwnedFd], entry: &Entry) -> io::Result<Option<String>> {
    let path: Vec<&[u8]> =
        entry.path.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    let Some((name, parents)) = path.split_last() else { return Ok(None) };
    if name.starts_with(WHITEOUT) {
        return Ok(None);
    }
    let Some(stat) = find(layer, lowers, &parents.join(&b'/'), name)? else {
        return Ok(Some("it is gone".to_owned()));
    };
    let kind = match entry.kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::Fifo,
        Kind::Char => FileType::CharacterDevice,
        Kind::Block => FileType::BlockDevice,
        // Its target has been compared.
        Kind::Hardlink => return Ok(None),
    };
    if file_type(&stat) != kind {
        return Ok(Some("it is of another kind".to_owned()));
    }
    if (stat.st_uid, stat.st_gid) != (entry.uid, entry.gid) {
        return Ok(Some("it has another owner".to_owned()));
    }
    if entry.kind != Kind::Symlink && stat.st_mode & 0o7777 != entry.mode {
        return Ok(Some("it has another mode".to_owned()));
    }
    let size = entry.sparse.as_ref().map_or(entry.size, |sparse| sparse.size);
    if entry.kind == Kind::File && u64::try_from(stat.st_size).ok() != Some(size) {
        return Ok(Some("it has another size".to_owned()));
    }
    Ok(None)
}

/// The entry `name` in `parent`, whose links lead as they did at unpacking.
fn find(
    layer: BorrowedFd<'_>,
    lowers: &[OwnedFd],
    parent: &[u8],
    name: &[u8],
) -> io::Result<Option<rustix::fs::Stat>> {
    let look = |parent: &[u8]| -> io::Result<Option<rustix::fs::Stat>> {
        let at = if parent.is_empty() { b"." } else { parent };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        match rustix::fs::openat2(layer, at, flags, Mode::empty(), resolve) {
            Ok(dir) => stat_at(dir.as_fd(), name),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(None),
            Err(e) => Err(e.into()),
        }
    };
    match look(parent)? {
        Some(stat) => Ok(Some(stat)),
        None => match moved(lowers, &crate::rooted::join(parent, name))? {
            Some(moved) => {
                let slash = moved.iter().rposition(|b| *b == b'/').unwrap_or(0);
                look(&moved[..slash])
            }
            None => Ok(None),
        },
    }
}
