//! From a compressed layer stream to an overlayfs diff directory, in one pass. Purpose: bytes are
//! hashed, inflated, hashed again and applied as they arrive; nothing is kept but the tree. Knows no
//! registry and no store.
//!
//! ```text
//!   input ─► sha256, size ─► gzip | zstd | none ─► sha256 (diff id) ─► tar ─► rooted *at calls
//! ```
//!
//! Rules of the tar reader, which is a security boundary:
//! - a name is split into components; an absolute one is taken as relative, `..` is refused;
//! - parents are found by openat2 inside the layer's directory; a symlink in them is resolved by hand
//!   inside that directory, so it cannot lead out;
//! - the last component is never followed: what is there is replaced, or the entry fails;
//! - modes, owners, times and extended attributes are set through the fd of the new object or without
//!   following;
//! - overlayfs' own marks (device 0:0, `trusted.overlay.*`, `user.overlay.*`) are made here from `.wh.`
//!   names and never taken from an archive.

mod apply;
mod archive;
mod compare;
mod inflate;
mod inherit;
mod split;

use std::io::{self, Read};
use std::os::fd::BorrowedFd;

pub use apply::ApplyError;
pub use archive::ArchiveError;
pub(crate) use archive::{Archive, Kind};
pub(crate) use compare::compare;
pub(crate) use inherit::inherit;
pub(crate) use split::{Recorder, Replay};

use crate::digest::{Digest, Hasher};

/// How much one layer may unpack to; a decompression bomb ends here.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Bytes of the uncompressed stream.
    pub(crate) bytes: u64,
    /// Files, directories and links.
    pub(crate) entries: u64,
}

/// What a layer has to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected {
    /// Digest and size of the stream as it comes in; archives of `docker save` state none.
    pub(crate) blob: Option<(Digest, u64)>,
    /// Digest of the uncompressed stream.
    pub(crate) diff_id: Digest,
}

/// What came out.
#[derive(Debug, Default)]
pub(crate) struct Unpacked {
    /// Disk space of the tree, files rounded up to 4 KiB.
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
    /// Directories the archive used without describing them, parents first.
    pub(crate) implicit: Vec<Vec<u8>>,
    /// Whether an entry took the place of another one.
    pub(crate) replaced: bool,
    /// Whether the archive was put away in full.
    pub(crate) recorded: bool,
}

/// Why a layer could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The stream does not have the digest it was asked for by.
    #[error("content has digest {found}, not {expected}")]
    Digest {
        /// What was asked for.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// The stream is shorter or longer than declared.
    #[error("content has {found} bytes, not {expected}")]
    Size {
        /// Declared bytes.
        expected: u64,
        /// Received bytes, or one more than declared when reading stopped there.
        found: u64,
    },
    /// The uncompressed stream is not the one the image's config names.
    #[error("uncompressed content has diff id {found}, not {expected}")]
    DiffId {
        /// What the config says.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// More than a layer may unpack to.
    #[error("layer unpacks to more than {limit} {unit}")]
    TooBig {
        /// The limit.
        limit: u64,
        /// Of what.
        unit: &'static str,
    },
    /// The compressed stream cannot be inflated.
    #[error("compressed stream")]
    Inflate(#[source] io::Error),
    /// The tar stream is malformed.
    #[error("layer archive")]
    Archive(#[from] ArchiveError),
    /// An entry cannot be applied.
    #[error("layer")]
    Apply(#[from] ApplyError),
    /// The source ended or failed before the layer was whole.
    #[error("layer stream")]
    Input(#[source] io::Error),
}

/// [`unpack_recording`] without a recorder.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn unpack(
    input: impl Read,
    expected: Expected,
    target: BorrowedFd<'_>,
    limits: Limits,
) -> Result<Unpacked, UnpackError> {
    unpack_recording(input, expected, target, limits, None)
}

/// Unpacks the layer that `input` delivers into the empty directory
/// `target`. What the archive has beside the content of files goes to `recorder`. Blocks.
///
/// The whole input is read, and every check has passed when this returns `Ok`.
pub(crate) fn unpack_recording(
    input: impl Read,
    expected: Expected,
    target: BorrowedFd<'_>,
    limits: Limits,
    recorder: Option<Recorder>,
) -> Result<Unpacked, UnpackError> {
    let mut blob = inflate::Hashed::new(input, expected.blob.map_or(u64::MAX, |(_, size)| size));
    let applied = match apply_stream(&mut blob, target, limits, recorder) {
        // The content is not to blame, or there is too much of it: no reason to read on.
        Err(e @ (UnpackError::TooBig { .. } | UnpackError::Apply(ApplyError::Io { .. }))) => return Err(e),
        other => other,
    };
    // A wrong digest explains every error further down, so the rest is read and checked first.
    let rest = blob.finish();
    if let (Some((digest, size)), Ok((found, length))) = (expected.blob, &rest) {
        if *length != size {
            return Err(UnpackError::Size { expected: size, found: *length });
        }
        if *found != digest {
            return Err(UnpackError::Digest { expected: digest, found: *found });
        }
    }
    rest.map_err(UnpackError::Input)?;
    let (diff_id, mut unpacked) = applied?;
    if diff_id != expected.diff_id {
        return Err(UnpackError::DiffId { expected: expected.diff_id, found: diff_id });
    }
    unpacked.implicit.sort();
    Ok(unpacked)
}

fn apply_stream<R: Read>(
    blob: &mut inflate::Hashed<R>,
    target: BorrowedFd<'_>,
    limits: Limits,
    recorder: Option<Recorder>,
) -> Result<(Digest, Unpacked), UnpackError> {
    let plain = inflate::open(blob).map_err(UnpackError::Inflate)?;
    let mut archive = Archive::new(Metered { inner: plain, hasher: Hasher::default(), left: limits.bytes });
    archive.record(recorder);
    let applied = apply::apply(&mut archive, target, limits).and_then(|mut unpacked| {
        archive.drain_rest()?;
        // An entry that is not there any more cannot be read again.
        unpacked.recorded = archive.finish_record() && !unpacked.replaced;
        Ok((archive.into_input(), unpacked))
    });
    match applied {
        Ok((metered, unpacked)) => Ok((metered.hasher.finish(), unpacked)),
        Err(e) if is_bomb(&e) => Err(UnpackError::TooBig { limit: limits.bytes, unit: "bytes" }),
        Err(e) => Err(e),
    }
}

/// Hashes what is read and stops at the limit.
struct Metered<R> {
    inner: R,
    hasher: Hasher,
    left: u64,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.left =
            self.left.checked_sub(n as u64).ok_or_else(|| io::Error::from(io::ErrorKind::QuotaExceeded))?;
        self.hasher.update(&buffer[..n]);
        Ok(n)
    }
}

/// Whether the limit of [`Metered`] is at the bottom of this error.
fn is_bomb(error: &UnpackError) -> bool {
    let mut at: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(e) = at {
        if let Some(io) = e.downcast_ref::<io::Error>()
            && io.kind() == io::ErrorKind::QuotaExceeded
            // The disk's own quota is an answer of the kernel and has a number.
            && io.raw_os_error().is_none()
        {
            return true;
        }
        at = e.source();
    }
    false
}

#[cfg(test)]
mod tests;
