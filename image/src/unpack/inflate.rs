//! The compressed side of a layer stream. Purpose: count and hash what comes in, find out how it is
//! compressed from its first bytes and inflate it in bounded memory. Knows nothing of tar.

use std::io::{self, BufRead, BufReader, Read};

use crate::digest::{Digest, Hasher};

const BUFFER: usize = 256 << 10;
/// zstd frames may ask for windows of gigabytes; 2^27 is what the reference tool takes by default.
const ZSTD_WINDOW_LOG: u32 = 27;

const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// A reader that hashes what its user consumes and refuses to read past the declared size.
pub(super) struct Hashed<R> {
    inner: BufReader<R>,
    hasher: Hasher,
    count: u64,
    limit: u64,
    failed: Option<io::Error>,
}

impl<R: Read> Hashed<R> {
    pub(super) fn new(inner: R, limit: u64) -> Self {
        let inner = BufReader::with_capacity(BUFFER, inner);
        Self { inner, hasher: Hasher::default(), count: 0, limit, failed: None }
    }

    /// Reads what is left and returns digest and length. One byte more than declared ends the reading:
    /// an endless stream does not keep anybody busy.
    pub(super) fn finish(mut self) -> io::Result<(Digest, u64)> {
        if let Some(e) = self.failed.take() {
            return Err(e);
        }
        while self.count <= self.limit {
            let n = self.fill_buf()?.len();
            if n == 0 {
                break;
            }
            self.consume(n);
        }
        Ok((self.hasher.finish(), self.count))
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let n = available.len().min(buffer.len());
        buffer[..n].copy_from_slice(&available[..n]);
        self.consume(n);
        Ok(n)
    }
}

impl<R: Read> BufRead for Hashed<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.count > self.limit {
            return Ok(&[]);
        }
        match self.inner.fill_buf() {
            Ok(_) => {}
            Err(e) => {
                // The decoders may wrap or replace this; the caller wants to see it as it was.
                self.failed = Some(io::Error::new(e.kind(), e.to_string()));
                return Err(e);
            }
        }
        let available = self.inner.buffer();
        // One byte past the limit is enough to know that there is too much.
        let room = usize::try_from(self.limit - self.count).unwrap_or(usize::MAX).saturating_add(1);
        Ok(&available[..available.len().min(room)])
    }

    fn consume(&mut self, n: usize) {
        self.hasher.update(&self.inner.buffer()[..n]);
        self.count += n as u64;
        self.inner.consume(n);
    }
}

/// The plain stream inside `input`. The media type is not asked: registries and builders get it wrong,
/// and the diff id decides in the end.
pub(super) fn open<'a, R: Read>(input: &'a mut Hashed<R>) -> io::Result<Box<dyn Read + 'a>> {
    let mut head = [0; 4];
    let have = peek(input, &mut head)?;
    let head = &head[..have];
    if head.starts_with(&GZIP) {
        let input = io::Cursor::new(head.to_vec()).chain(input);
        return Ok(Box::new(flate2::bufread::MultiGzDecoder::new(input)));
    }
    if head.starts_with(&ZSTD) {
        let input = io::Cursor::new(head.to_vec()).chain(input);
        let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
        decoder.window_log_max(ZSTD_WINDOW_LOG)?;
        return Ok(Box::new(decoder));
    }
    Ok(Box::new(io::Cursor::new(head.to_vec()).chain(input)))
}

/// Takes up to four bytes, however small the pieces are in which they come.
fn peek(input: &mut impl Read, head: &mut [u8; 4]) -> io::Result<usize> {
    let mut have = 0;
    while have < head.len() {
        match input.read(&mut head[have..])? {
            0 => break,
            n => have += n,
        }
    }
    Ok(have)
}
