//! The files of an archive, whether they lie in a directory or in a tar. Knows no format.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::OFlags;

use super::ImportError;
use crate::digest::Digest;
use crate::document::DOCUMENT_MAX;
use crate::rooted::{open_beneath, open_dir};
use crate::unpack::{Archive, Kind};

/// Members of an archive; one of images has a few dozen, one of anything else is not worth memory.
const MEMBERS_MAX: usize = 100_000;
const LINKS_MAX: usize = 8;
/// Documents of all images of an archive together, which are in memory at once: an index may name one large manifest
/// ever so often.
const DOCUMENTS_MAX: u64 = 8 * DOCUMENT_MAX;

pub(super) struct Source {
    path: PathBuf,
    files: Files,
    /// Bytes of documents that were read.
    documents: AtomicU64,
}

enum Files {
    Directory(OwnedFd),
    Tar(HashMap<String, Member>),
}

enum Member {
    /// First byte and length of its data.
    Data(u64, u64),
    /// Older `docker save` links equal layers to each other.
    Link(String),
}

impl Source {
    pub(super) fn open(path: &Path) -> Result<Self, ImportError> {
        let read = |source| ImportError::Read { path: path.to_owned(), name: "open".to_owned(), source };
        let files = if path.metadata().map_err(read)?.is_dir() {
            Files::Directory(open_dir(path).map_err(read)?)
        } else {
            Files::Tar(index(path)?)
        };
        Ok(Self { path: path.to_owned(), files, documents: AtomicU64::new(0) })
    }

    pub(super) fn has(&self, name: &str) -> bool {
        match &self.files {
            Files::Directory(_) => self.in_directory(name).is_ok(),
            Files::Tar(members) => find(members, name).is_some(),
        }
    }

    /// Bytes of a file, 0 if it is not there.
    pub(super) fn size(&self, name: &str) -> u64 {
        match &self.files {
            Files::Directory(_) => self.in_directory(name).and_then(|f| f.metadata()).map_or(0, |m| m.len()),
            Files::Tar(members) => find(members, name).map_or(0, |(_, size)| size),
        }
    }

    pub(super) fn open_file(&self, name: &str) -> Result<Box<dyn Read>, ImportError> {
        let opened: io::Result<Box<dyn Read>> = match &self.files {
            Files::Directory(_) => self.in_directory(name).map(|file| Box::new(file) as _),
            Files::Tar(members) => find(members, name)
                .ok_or_else(|| io::ErrorKind::NotFound.into())
                .and_then(|(offset, size)| {
                    let mut file = File::open(&self.path)?;
                    file.seek(SeekFrom::Start(offset))?;
                    Ok(Box::new(file.take(size)) as _)
                }),
        };
        opened.map_err(|source| self.failed(name, source))
    }

    /// A JSON file in full.
    pub(super) fn read(&self, name: &str) -> Result<Vec<u8>, ImportError> {
        let mut bytes = Vec::new();
        let mut input = self.open_file(name)?.take(DOCUMENT_MAX + 1);
        input.read_to_end(&mut bytes).map_err(|e| self.failed(name, e))?;
        let too_large = |what: &str, limit: u64| {
            let text = format!("{what} more than {} MiB", limit >> 20);
            self.failed(name, io::Error::new(io::ErrorKind::FileTooLarge, text))
        };
        let length = bytes.len() as u64;
        if length > DOCUMENT_MAX {
            return Err(too_large("a document of", DOCUMENT_MAX));
        }
        if self.documents.fetch_add(length, Ordering::Relaxed) + length > DOCUMENTS_MAX {
            return Err(too_large("all documents together have", DOCUMENTS_MAX));
        }
        Ok(bytes)
    }

    /// A JSON blob in full, checked against the digest it goes by.
    pub(super) fn read_blob(&self, digest: Digest) -> Result<Vec<u8>, ImportError> {
        let name = blob_name(digest);
        let bytes = self.read(&name)?;
        let found = Digest::of(&bytes);
        if found == digest {
            Ok(bytes)
        } else {
            Err(ImportError::Digest { path: self.path.clone(), name, found })
        }
    }

    /// Files are opened inside the directory only: a layout is as untrusted as a tar.
    fn in_directory(&self, name: &str) -> io::Result<File> {
        let Files::Directory(dir) = &self.files else { return Err(io::ErrorKind::NotFound.into()) };
        let file = File::from(open_beneath(dir.as_fd(), name.as_bytes(), OFlags::RDONLY | OFlags::NONBLOCK)?);
        if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }

    fn failed(&self, name: &str, source: io::Error) -> ImportError {
        ImportError::Read { path: self.path.clone(), name: name.to_owned(), source }
    }
}

pub(super) fn blob_name(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn index(path: &Path) -> Result<HashMap<String, Member>, ImportError> {
    let read = |source| ImportError::Read { path: path.to_owned(), name: "open".to_owned(), source };
    let mut archive = Archive::seekable(File::open(path).map_err(read)?).map_err(read)?;
    let mut members = HashMap::new();
    while let Some(entry) =
        archive.next().map_err(|source| ImportError::Archive { path: path.to_owned(), source })?
    {
        let name = clean(&String::from_utf8_lossy(&entry.path), "");
        let member = match entry.kind {
            Kind::File => Member::Data(archive.position(), entry.size),
            Kind::Symlink => {
                let dir = name.rsplit_once('/').map_or("", |(dir, _)| dir);
                Member::Link(clean(&String::from_utf8_lossy(&entry.link), dir))
            }
            Kind::Hardlink => Member::Link(clean(&String::from_utf8_lossy(&entry.link), "")),
            _ => continue,
        };
        members.insert(name, member);
        if members.len() > MEMBERS_MAX {
            return Err(read(io::ErrorKind::FileTooLarge.into()));
        }
    }
    Ok(members)
}

/// A name relative to `dir`, without `.` and `..`; it only selects among the archive's own members.
fn clean(name: &str, dir: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in dir.split('/').chain(name.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn find(members: &HashMap<String, Member>, name: &str) -> Option<(u64, u64)> {
    let mut name = clean(name, "");
    for _ in 0..LINKS_MAX {
        match members.get(&name)? {
            Member::Data(offset, size) => return Some((*offset, *size)),
            Member::Link(target) => name = target.clone(),
        }
    }
    None
}
