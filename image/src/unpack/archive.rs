//! Reading a tar stream. Purpose: headers, PAX records and GNU long names become entries in bounded
//! memory; whatever two tar readers could understand differently is refused (CVE-2025-62518,
//! CVE-2026-33055). Decides nothing about the file system.

mod pax;
mod sparse;

use std::io::{self, BufReader, Read, Seek};

use pax::Pax;
pub(crate) use sparse::Sparse;
use tar::{EntryType, Header};

use super::split::Recorder;

const BLOCK: usize = 512;
/// PAX data of one entry: extended attributes of 64 KiB fit, record floods do not.
const PAX_MAX: u64 = 1 << 20;
/// No path or link target the kernel takes is longer than 4096 bytes.
const NAME_MAX: u64 = 4096 + 1;
/// The largest size an octal ustar field holds.
const USTAR_SIZE_MAX: u64 = 0o777_7777_7777;

/// Why a tar stream cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The stream could not be read or ended early.
    #[error("tar stream at byte {position}")]
    Read {
        /// Bytes consumed so far.
        position: u64,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A header that is wrong or ambiguous.
    #[error("tar header at byte {position}: {reason}")]
    Header {
        /// Where the header starts.
        position: u64,
        /// What is wrong.
        reason: String,
    },
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    Hardlink,
    Fifo,
    Char,
    Block,
}

/// One member of the archive, its data still in the stream.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    pub(crate) path: Vec<u8>,
    /// Target of a symlink or hard link.
    pub(crate) link: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds and nanoseconds since the epoch.
    pub(crate) mtime: (i64, u32),
    /// Bytes of data in the archive.
    pub(crate) size: u64,
    /// Where they belong, when that is not the whole file.
    pub(crate) sparse: Option<Sparse>,
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A tar stream. Call [`Archive::next`], then read the entry's data through the archive, if wanted.
pub(crate) struct Archive<R> {
    input: R,
    skip: fn(&mut R, u64) -> io::Result<()>,
    position: u64,
    /// Data of the current entry that was not read yet.
    left: u64,
    padding: u64,
    recorder: Option<Recorder>,
}

/// What the special members in front of an entry say about it.
#[derive(Default)]
struct Pending {
    pax: Option<Pax>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<R: Read> Archive<R> {
    /// A stream that can only be read forwards.
    pub(crate) fn new(input: R) -> Self {
        Self { input, skip: discard, position: 0, left: 0, padding: 0, recorder: None }
    }

    /// Bytes consumed so far: right after `next`, where the entry's data starts.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// The next entry, or `None` at the end of the archive.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, ArchiveError> {
        let mut pending = Pending::default();
        loop {
            self.finish_data()?;
            let start = self.position;
            let Some(header) = self.header()? else {
                if pending.pax.is_some() || pending.long_name.is_some() || pending.long_link.is_some() {
                    return Err(bad(start, "the archive ends after an extension header"));
                }
                return Ok(None);
            };
            let size = unsigned(&header.as_old().size, start, "size")?;
            match header.entry_type() {
                EntryType::XHeader => {
                    let data = self.extension(size, PAX_MAX, start)?;
                    let records = Pax::parse(&data, start)?;
                    set_once(&mut pending.pax, records, start, "two PAX headers for one entry")?;
                }
                EntryType::XGlobalHeader => {
                    let data = self.extension(size, PAX_MAX, start)?;
                    let global = Pax::parse(&data, start)?;
                    // Some readers apply these to every later entry and some do not.
                    if global.path.is_some()
                        || global.link.is_some()
                        || global.size.is_some()
                        || global.sparse.any()
                    {
                        return Err(bad(
                            start,
                            "a global PAX header sets path, linkpath, size or a sparse map",
                        ));
                    }
                }
                EntryType::GNULongName => {
                    let name = self.long_text(size, start)?;
                    set_once(&mut pending.long_name, name, start, "two long names for one entry")?;
                }
                EntryType::GNULongLink => {
                    let name = self.long_text(size, start)?;
                    set_once(&mut pending.long_link, name, start, "two long link names for one entry")?;
                }
                kind => return self.entry(&header, kind, size, pending, start).map(Some),
            }
        }
    }

    /// Reads the end of archive and everything after it, so that checksums cover the whole stream.
    pub(crate) fn drain(mut self) -> Result<R, ArchiveError> {
        self.drain_rest()?;
        Ok(self.input)
    }

    /// The same, for one who has more to do with it.
    pub(super) fn drain_rest(&mut self) -> Result<(), ArchiveError> {
        let mut sink = [0; 8192];
        loop {
            match self.input.read(&mut sink) {
                Ok(0) => return Ok(()),
                Ok(n) => {
                    self.keep(&sink[..n]);
                    self.position += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(ArchiveError::Read { position: self.position, source }),
            }
        }
    }

    /// From here on, what is read and is not content of a file is put away.
    pub(super) fn record(&mut self, recorder: Option<Recorder>) {
        self.recorder = recorder;
    }

    /// The current entry's data is the content of this file of the layer.
    pub(super) fn content_of(&mut self, path: &[u8], pieces: &[(u64, u64)]) {
        if let Some(recorder) = &mut self.recorder {
            recorder.file(path, pieces);
        }
    }

    /// Whether everything was put away.
    pub(super) fn finish_record(&mut self) -> bool {
        self.recorder.take().is_some_and(Recorder::finish)
    }

    pub(super) fn into_input(self) -> R {
        self.input
    }

    fn keep(&mut self, bytes: &[u8]) {
        if let Some(recorder) = &mut self.recorder {
            recorder.raw(bytes);
        }
    }

    fn entry(
        &mut self,
        header: &Header,
        kind: EntryType,
        stated: u64,
        pending: Pending,
        start: u64,
    ) -> Result<Entry, ArchiveError> {
        let mut pax = pending.pax.unwrap_or_default();
        let size = agree_on_size(stated, pax.size, start)?;
        let is_old_sparse = kind == EntryType::GNUSparse;
        if is_old_sparse && header.as_gnu().is_none() {
            // Without its magic GNU tar itself does not look for the map, and takes the data for something else.
            return Err(bad(start, "a sparse file in a header that is not GNU's"));
        }
        if is_old_sparse && pax.sparse.any() {
            return Err(bad(start, "two sparse maps for one entry"));
        }
        let path = match pax.sparse.name.take() {
            // What else is called a name is a stand-in for readers that know no sparse files.
            Some(name) => one_name(Some(name), None, Vec::new, start)?,
            None => one_name(pax.path, pending.long_name, || header.path_bytes().into_owned(), start)?,
        };
        let link = one_name(
            pax.link,
            pending.long_link,
            || header.link_name_bytes().map(std::borrow::Cow::into_owned).unwrap_or_default(),
            start,
        )?;
        let kind = self.kind(kind, &path, size, start)?;
        if kind != Kind::File && size != 0 {
            return Err(bad(start, "an entry without content states a size"));
        }
        let device = if matches!(kind, Kind::Char | Kind::Block) { device(header, start)? } else { (0, 0) };
        let old = header.as_old();
        let id = |field: &[u8], what| -> Result<u32, ArchiveError> {
            let value = unsigned(field, start, what)?;
            u32::try_from(value)
                .ok()
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| bad(start, &format!("{what} {value} is out of range")))
        };
        let mut entry = Entry {
            kind,
            path,
            link,
            mode: u32::try_from(unsigned(&old.mode, start, "mode")? & 0o7777).unwrap_or(0),
            uid: pax.uid.map_or_else(|| id(&old.uid, "uid"), Ok)?,
            gid: pax.gid.map_or_else(|| id(&old.gid, "gid"), Ok)?,
            mtime: match pax.mtime {
                Some(time) => time,
                None => (number(&old.mtime).ok_or_else(|| bad(start, "mtime is no number"))?, 0),
            },
            size,
            sparse: None,
            device,
            xattrs: pax.xattrs,
        };
        if is_old_sparse {
            entry.sparse = Some(self.old_sparse(header.as_bytes(), size, start)?);
        }
        self.left = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        if pax.sparse.any() {
            if kind != Kind::File {
                return Err(bad(start, "a sparse map for something that is no file"));
            }
            entry.sparse = Some(self.pax_sparse(pax.sparse, start)?);
            entry.size = self.left;
        }
        Ok(entry)
    }

    fn kind(&self, kind: EntryType, path: &[u8], size: u64, start: u64) -> Result<Kind, ArchiveError> {
        let slash = path.ends_with(b"/");
        Ok(match kind {
            // Archives from before ustar mark a directory only by its slash.
            EntryType::Regular if slash && size == 0 => Kind::Directory,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse if slash => {
                return Err(bad(start, "a file's name ends in a slash"));
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::File,
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Symlink,
            EntryType::Link => Kind::Hardlink,
            EntryType::Fifo => Kind::Fifo,
            EntryType::Char => Kind::Char,
            EntryType::Block => Kind::Block,
            other => {
                let flag = char::from(other.as_byte()).escape_default().to_string();
                return Err(bad(start, &format!("entry type '{flag}' is not supported")));
            }
        })
    }

    /// The next header block, `None` at the end.
    fn header(&mut self) -> Result<Option<Header>, ArchiveError> {
        let start = self.position;
        let mut header = Header::new_old();
        if !self.block(header.as_mut_bytes())? {
            return Ok(None);
        }
        if header.as_bytes().iter().all(|b| *b == 0) {
            let mut second = [0; BLOCK];
            if self.block(&mut second)? && second.iter().any(|b| *b != 0) {
                return Err(bad(start, "one zero block is followed by data"));
            }
            return Ok(None);
        }
        let bytes = header.as_bytes();
        let stated = number(&bytes[148..156]).ok_or_else(|| bad(start, "checksum is no number"))?;
        let blank = 8 * i64::from(b' ');
        let others = || bytes[..148].iter().chain(&bytes[156..]);
        let plain: i64 = others().map(|b| i64::from(*b)).sum::<i64>() + blank;
        // Sun's tar summed signed characters; every reader takes both.
        let signed: i64 = others().map(|b| i64::from(b.cast_signed())).sum::<i64>() + blank;
        if stated != plain && stated != signed {
            return Err(bad(start, "checksum does not match"));
        }
        Ok(Some(header))
    }

    /// Fills `block`; `false` when the stream ends exactly here.
    fn block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool, ArchiveError> {
        let mut have = 0;
        while have < BLOCK {
            match self.input.read(&mut block[have..]) {
                Ok(0) if have == 0 => return Ok(false),
                Ok(0) => return Err(self.ended()),
                Ok(n) => {
                    have += n;
                    self.position += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(ArchiveError::Read { position: self.position, source }),
            }
        }
        self.keep(block);
        Ok(true)
    }

    fn extension(&mut self, size: u64, limit: u64, start: u64) -> Result<Vec<u8>, ArchiveError> {
        if size > limit {
            return Err(bad(start, &format!("an extension header of {size} bytes is too large")));
        }
        self.left = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        let mut data = Vec::new();
        let position = self.position;
        self.read_to_end(&mut data).map_err(|source| ArchiveError::Read { position, source })?;
        self.keep(&data);
        Ok(data)
    }

    fn long_text(&mut self, size: u64, start: u64) -> Result<Vec<u8>, ArchiveError> {
        let mut text = self.extension(size, NAME_MAX, start)?;
        if text.last() == Some(&0) {
            text.pop();
            return Ok(text);
        }
        // GNU tar reads a name up to its NUL, wherever that is, and others as many bytes as the header says.
        let (position, mut rest) = (self.position, Vec::new());
        (self.left, self.padding) = (self.padding, 0);
        self.read_to_end(&mut rest).map_err(|source| ArchiveError::Read { position, source })?;
        self.keep(&rest);
        match rest.first() {
            None | Some(0) => Ok(text),
            Some(_) => Err(bad(start, "a GNU long name is longer than its header says")),
        }
    }

    fn finish_data(&mut self) -> Result<(), ArchiveError> {
        let rest = self.left + self.padding;
        if rest > 0 {
            let skipped = match &mut self.recorder {
                None => (self.skip)(&mut self.input, rest),
                Some(recorder) => copy_raw(&mut self.input, rest, recorder),
            };
            skipped.map_err(|source| ArchiveError::Read { position: self.position, source })?;
            self.position += rest;
            (self.left, self.padding) = (0, 0);
        }
        Ok(())
    }

    fn ended(&self) -> ArchiveError {
        ArchiveError::Read { position: self.position, source: io::ErrorKind::UnexpectedEof.into() }
    }
}

impl Archive<BufReader<std::fs::File>> {
    /// A file, in which data that is not wanted is jumped over.
    pub(crate) fn seekable(file: std::fs::File) -> io::Result<Self> {
        let mut input = BufReader::new(file);
        input.rewind()?;
        let skip = |input: &mut BufReader<std::fs::File>, n: u64| {
            input.seek_relative(i64::try_from(n).map_err(|_| io::ErrorKind::InvalidData)?)
        };
        Ok(Self { input, skip, position: 0, left: 0, padding: 0, recorder: None })
    }
}

/// The data of the current entry.
impl<R: Read> Read for Archive<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 || buffer.is_empty() {
            return Ok(0);
        }
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let n = self.input.read(&mut buffer[..want])?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= n as u64;
        self.position += n as u64;
        Ok(n)
    }
}

fn discard<R: Read>(input: &mut R, n: u64) -> io::Result<()> {
    let copied = io::copy(&mut input.take(n), &mut io::sink())?;
    if copied == n { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn copy_raw<R: Read>(input: &mut R, mut n: u64, recorder: &mut Recorder) -> io::Result<()> {
    let mut buffer = [0; 8192];
    while n > 0 {
        let room = usize::try_from(n).unwrap_or(usize::MAX).min(buffer.len());
        input.read_exact(&mut buffer[..room])?;
        recorder.raw(&buffer[..room]);
        n -= room as u64;
    }
    Ok(())
}

fn bad(position: u64, reason: &str) -> ArchiveError {
    ArchiveError::Header { position, reason: reason.to_owned() }
}

fn set_once<T>(slot: &mut Option<T>, value: T, start: u64, reason: &str) -> Result<(), ArchiveError> {
    if slot.replace(value).is_some() { Err(bad(start, reason)) } else { Ok(()) }
}

/// A name can come from PAX, from a GNU long name, or from the header; two sources are a contradiction.
fn one_name(
    pax: Option<Vec<u8>>,
    long: Option<Vec<u8>>,
    header: impl FnOnce() -> Vec<u8>,
    start: u64,
) -> Result<Vec<u8>, ArchiveError> {
    let name = match (pax, long) {
        (Some(a), Some(b)) if a != b => return Err(bad(start, "PAX and GNU long name differ")),
        (Some(name), _) | (None, Some(name)) => name,
        (None, None) => header(),
    };
    if name.contains(&0) {
        return Err(bad(start, "a name contains a NUL byte"));
    }
    Ok(name)
}

/// The size in a PAX record replaces the header's only where the header cannot hold it.
fn agree_on_size(stated: u64, pax: Option<u64>, start: u64) -> Result<u64, ArchiveError> {
    match pax {
        None => Ok(stated),
        Some(size) if size == stated => Ok(size),
        Some(size) if size > USTAR_SIZE_MAX && (stated == 0 || stated == USTAR_SIZE_MAX) => Ok(size),
        Some(size) => Err(bad(start, &format!("PAX size {size} contradicts header size {stated}"))),
    }
}

fn device(header: &Header, start: u64) -> Result<(u32, u32), ArchiveError> {
    let part = |value: io::Result<Option<u32>>| {
        value.ok().flatten().ok_or_else(|| bad(start, "device numbers are missing"))
    };
    Ok((part(header.device_major())?, part(header.device_minor())?))
}

/// An octal or base-256 field; blank is zero.
fn number(field: &[u8]) -> Option<i64> {
    if field[0] & 0x80 != 0 {
        let first = i128::from((field[0] << 1).cast_signed() >> 1);
        let value = field[1..]
            .iter()
            .try_fold(first, |sum, b| sum.checked_mul(256).and_then(|sum| sum.checked_add(i128::from(*b))))?;
        return i64::try_from(value).ok();
    }
    // A leading NUL ends the number for some readers, and is skipped by others.
    if field[0] == 0 && field.iter().any(|b| !matches!(b, 0 | b' ')) {
        return None;
    }
    let text = field.split(|b| *b == 0).next().unwrap_or_default().trim_ascii();
    if text.is_empty() {
        return Some(0);
    }
    text.iter().try_fold(0_i64, |sum, b| match b {
        b'0'..=b'7' => sum.checked_mul(8)?.checked_add(i64::from(b - b'0')),
        _ => None,
    })
}

fn unsigned(field: &[u8], start: u64, what: &str) -> Result<u64, ArchiveError> {
    number(field)
        .and_then(|n| u64::try_from(n).ok())
        // Room for rounding up to a block.
        .filter(|n| *n < u64::MAX / 4)
        .ok_or_else(|| bad(start, &format!("{what} is no number")))
}
