//! What has arrived of layers that are not in place yet. Purpose: a pull that was cut off, also by the
//! end of the daemon, goes on where it was. Trusts nothing that it finds: a kept part is only the
//! beginning of a stream whose digest is checked at its end. Knows no network.
//!
//! Nothing here is ever synced. A power cut can leave a file of the right length with the wrong bytes;
//! then the digest does not match, and the layer is fetched anew from its first byte.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::Inner;
use crate::digest::Digest;

/// Smaller blobs are fetched again sooner than they are kept.
const KEEP_MIN: u64 = 1 << 20;
/// What nobody came back for in a day is not waited for any longer.
const AGE_MAX: Duration = Duration::from_secs(24 * 3600);

/// The kept beginning of one blob, and the place for what follows. Its user holds the blob's lock.
#[derive(Debug)]
pub(crate) struct Kept {
    file: Option<File>,
    have: u64,
}

impl Inner {
    /// The lock under which one blob is fetched. Whoever had to wait finds the blob kept.
    pub(crate) fn blob_lock(&self, digest: Digest) -> Arc<tokio::sync::Mutex<()>> {
        self.blob_locks.of(digest)
    }

    /// What is here of a blob of `size` bytes. A file that cannot be used or made only means that
    /// nothing is kept.
    pub(crate) fn kept(&self, digest: Digest, size: u64) -> Kept {
        if size < KEEP_MIN {
            return Kept { file: None, have: 0 };
        }
        let opened = File::options().read(true).append(true).create(true).open(self.kept_path(digest));
        let found = opened.and_then(|file| {
            let have = file.metadata()?.len();
            if have > size {
                file.set_len(0)?;
            }
            Ok(Kept { have: if have > size { 0 } else { have }, file: Some(file) })
        });
        found.unwrap_or_else(|e| {
            tracing::warn!(%digest, error = %e, "download cannot be kept");
            Kept { file: None, have: 0 }
        })
    }

    /// Takes away what is kept of a blob, unless somebody else is about to use it.
    pub(crate) fn forget_kept(&self, digest: Digest) {
        let lock = self.blob_lock(digest);
        let Ok(_alone) = lock.try_lock() else { return };
        self.remove_kept(digest);
    }

    /// The same for the one who holds the blob's lock.
    pub(crate) fn remove_kept(&self, digest: Digest) {
        remove(&self.kept_path(digest));
    }

    /// Takes away what was left behind long ago.
    pub(crate) fn expire_kept(&self) {
        expire(&self.root, |digest| {
            let lock = self.blob_lock(digest);
            lock.try_lock().is_ok()
        });
    }

    fn kept_path(&self, digest: Digest) -> PathBuf {
        self.root.join("downloads").join(digest.hex())
    }
}

/// Deletes files of `downloads` that are old, or none of the store's.
pub(super) fn expire(root: &Path, is_free: impl Fn(Digest) -> bool) {
    let Ok(entries) = std::fs::read_dir(root.join("downloads")) else { return };
    for entry in entries.flatten() {
        let digest = entry.file_name().to_str().and_then(|name| Digest::from_hex(name).ok());
        let age = entry.metadata().and_then(|m| m.modified()).map(|at| SystemTime::now().duration_since(at));
        // A time in the future is no age; the clock was set back.
        let old = age.is_ok_and(|age| age.is_ok_and(|age| age > AGE_MAX));
        if digest.is_none_or(|digest| old && is_free(digest)) {
            remove(&entry.path());
        }
    }
}

fn remove(path: &Path) {
    if let Err(e) = std::fs::remove_file(path)
        && e.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), error = %e, "kept download could not be deleted");
    }
}

impl Kept {
    /// Bytes that are here.
    pub(crate) fn have(&self) -> u64 {
        self.have
    }

    /// The whole blob: first what is kept, then what `rest` delivers, which is kept as it is read.
    pub(crate) fn reader(self, rest: impl Read) -> io::Result<impl Read> {
        let beginning = self.file.as_ref().map(File::try_clone).transpose()?;
        // One open file has one place to read from, and writing at the end does not move it back.
        Ok(Beginning { file: beginning, left: self.have }.chain(Keeping { rest, file: self.file }))
    }
}

struct Beginning {
    file: Option<File>,
    left: u64,
}

impl Read for Beginning {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.file {
            Some(file) if self.left > 0 => {
                let n = file.take(self.left).read(buffer)?;
                self.left -= n as u64;
                Ok(n)
            }
            _ => Ok(0),
        }
    }
}

struct Keeping<R> {
    rest: R,
    file: Option<File>,
}

impl<R: Read> Read for Keeping<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.rest.read(buffer)?;
        if let Some(file) = &mut self.file
            && let Err(e) = file.write_all(&buffer[..n])
        {
            // Most likely the disk is full. The layer may still fit without this copy.
            tracing::debug!(error = %e, "download is no longer kept");
            let _ = file.set_len(0);
            self.file = None;
        }
        Ok(n)
    }
}
