//! What a layer's archive has beside the content of its files. Purpose: headers and padding are put away
//! while a layer is unpacked, so that the very archive can be made again from them and the unpacked files.
//! That proves a layer against its diff id, and exports it. Knows no store.
//!
//! ```text
//!   raw  = 'R' length:u32 bytes          bytes of the archive
//!   file = 'F' length:u16 path count:u32 (offset:u64 length:u64)*    pieces of a file's content
//! ```
//!
//! All numbers are little-endian, and the whole is one zstd stream. An archive in which an entry replaces
//! another one cannot be made again: nothing is put away for it.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Take, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;

use super::inherit::resolve;
use crate::rooted::{join, open_beneath};

const LEVEL: i32 = 1;
/// Raw bytes are put away in pieces of this size.
const RAW_MAX: usize = 64 << 10;
const RAW: u8 = b'R';
const FILE: u8 = b'F';

/// Puts the archive away. A failure to write ends that, not the unpacking.
pub(crate) struct Recorder {
    out: Option<zstd::Encoder<'static, File>>,
    raw: Vec<u8>,
}

impl Recorder {
    pub(crate) fn new(file: File) -> io::Result<Self> {
        Ok(Self { out: Some(zstd::Encoder::new(file, LEVEL)?), raw: Vec::new() })
    }

    /// Bytes of the archive that are not content of a file.
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.raw.extend_from_slice(bytes);
        if self.raw.len() >= RAW_MAX {
            self.flush();
        }
    }

    /// The content of a file in the layer follows, or of these pieces of it.
    pub(super) fn file(&mut self, path: &[u8], pieces: &[(u64, u64)]) {
        self.flush();
        let mut record = vec![FILE];
        let (Ok(length), Ok(count)) = (u16::try_from(path.len()), u32::try_from(pieces.len())) else {
            self.out = None;
            return;
        };
        record.extend_from_slice(&length.to_le_bytes());
        record.extend_from_slice(path);
        record.extend_from_slice(&count.to_le_bytes());
        for (offset, length) in pieces {
            record.extend_from_slice(&offset.to_le_bytes());
            record.extend_from_slice(&length.to_le_bytes());
        }
        self.write(&record);
    }

    /// Whether everything was put away.
    pub(super) fn finish(mut self) -> bool {
        self.flush();
        self.out.is_some_and(|out| out.finish().is_ok())
    }

    fn flush(&mut self) {
        let raw = std::mem::take(&mut self.raw);
        for piece in raw.chunks(RAW_MAX) {
            let length = u32::try_from(piece.len()).unwrap_or(0);
            self.write(&[&[RAW][..], &length.to_le_bytes()].concat());
            self.write(piece);
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(out) = &mut self.out
            && let Err(e) = out.write_all(bytes)
        {
            tracing::debug!(error = %e, "layer's archive is not put away");
            self.out = None;
        }
    }
}

/// The archive of a layer, made again.
pub(crate) struct Replay {
    split: zstd::Decoder<'static, BufReader<File>>,
    layer: OwnedFd,
    /// Top first; some of the layer's files may lie where their links lead.
    lowers: Vec<OwnedFd>,
    raw: u64,
    file: Option<Content>,
}

struct Content {
    path: Vec<u8>,
    file: Take<File>,
    /// Last first.
    pieces: Vec<(u64, u64)>,
}

impl Replay {
    pub(crate) fn new(split: File, layer: OwnedFd, lowers: Vec<OwnedFd>) -> io::Result<Self> {
        Ok(Self { split: zstd::Decoder::new(split)?, layer, lowers, raw: 0, file: None })
    }

    /// Bytes of the archive that a split makes, without looking at any file.
    pub(crate) fn length(split: File) -> io::Result<u64> {
        let mut split = zstd::Decoder::new(split)?;
        let mut sum = 0_u64;
        let mut tag = [0; 1];
        while split.read(&mut tag)? > 0 {
            match tag[0] {
                RAW => {
                    let length = u64::from(u32::from_le_bytes(take(&mut split)?));
                    io::copy(&mut (&mut split).take(length), &mut io::sink())?;
                    sum += length;
                }
                FILE => {
                    let length = u64::from(u16::from_le_bytes(take(&mut split)?));
                    io::copy(&mut (&mut split).take(length), &mut io::sink())?;
                    for _ in 0..u32::from_le_bytes(take(&mut split)?) {
                        take::<8>(&mut split)?;
                        let length = u64::from_le_bytes(take(&mut split)?);
                        sum = sum.checked_add(length).ok_or(io::ErrorKind::InvalidData)?;
                    }
                }
                _ => return Err(unknown()),
            }
        }
        Ok(sum)
    }

    /// Takes the next record; false at the end.
    fn record(&mut self) -> io::Result<bool> {
        let mut tag = [0; 1];
        if self.split.read(&mut tag)? == 0 {
            return Ok(false);
        }
        match tag[0] {
            RAW => self.raw = u64::from(u32::from_le_bytes(self.take()?)),
            FILE => {
                let mut path = vec![0; usize::from(u16::from_le_bytes(self.take()?))];
                self.split.read_exact(&mut path)?;
                let count = u32::from_le_bytes(self.take()?);
                let mut pieces = Vec::new();
                for _ in 0..count {
                    pieces.push((u64::from_le_bytes(self.take()?), u64::from_le_bytes(self.take()?)));
                }
                pieces.reverse();
                let file = open(self.layer.as_fd(), &self.lowers, &path).map_err(|e| about(&path, &e))?;
                self.file = Some(Content { path, file: file.take(0), pieces });
            }
            _ => return Err(unknown()),
        }
        Ok(true)
    }

    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        take(&mut self.split)
    }
}

fn take<const N: usize>(split: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    split.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn unknown() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "record of no known kind")
}

impl Read for Replay {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.raw > 0 {
                let n = (&mut self.split).take(self.raw).read(buffer)?;
                self.raw -= n as u64;
                return if n > 0 { Ok(n) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
            if let Some(content) = &mut self.file {
                let n = content.read(buffer).map_err(|e| about(&content.path, &e))?;
                if n > 0 {
                    return Ok(n);
                }
                self.file = None;
            }
            if !self.record()? {
                return Ok(0);
            }
        }
    }
}

impl Content {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.file.limit() == 0 {
            let Some((offset, length)) = self.pieces.pop() else { return Ok(0) };
            self.file.get_mut().seek(SeekFrom::Start(offset))?;
            self.file.set_limit(length);
        }
        match self.file.read(buffer)? {
            0 if !buffer.is_empty() => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it is too short")),
            n => Ok(n),
        }
    }
}

fn about(path: &[u8], error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{:?}: {error}", String::from_utf8_lossy(path)))
}

/// A regular file of the layer; in a directory that it shares with a link below, where that leads.
fn open(layer: BorrowedFd<'_>, lowers: &[OwnedFd], path: &[u8]) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let fd = match open_beneath(layer, path, flags) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => match moved(lowers, path)? {
            Some(moved) => open_beneath(layer, &moved, flags)?,
            None => return Err(e),
        },
        other => other?,
    };
    let file = File::from(fd);
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "it is no file"))
    }
}

/// Where unpacking has put `path`, if the layers below have a link on the way.
pub(super) fn moved(lowers: &[OwnedFd], path: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let Some(slash) = path.iter().rposition(|b| *b == b'/') else { return Ok(None) };
    let lowers: Vec<_> = lowers.iter().map(AsFd::as_fd).collect();
    let real = resolve(&lowers, &path[..slash])?;
    Ok(real.filter(|real| *real != path[..slash]).map(|real| join(&real, &path[slash + 1..])))
}
