//! Header blocks: names and values in one zlib stream a direction, which begins with SPDY/3's dictionary.
//!
//! Writing uses stored blocks only: what crisp sends is a few words a stream, and a compressor would cost 260 KiB a
//! connection. Must not know: frames.

use std::sync::LazyLock;

use flate2::{Decompress, FlushDecompress, Status};

use super::FrameError;

/// Most bytes of one block, expanded; far above what any client sends.
const EXPANDED_MAX: usize = 64 << 10;
/// Adler-32 of the dictionary, by which zlib names it.
const DICTIONARY_ID: u32 = 0xe3c6_a7c2;
/// Most that one stored block holds (RFC 1951, section 3.2.4).
const STORED_MAX: usize = 0xffff;

/// The dictionary's entries; each stands there behind its length.
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
    accept-ranges age allow authorization cache-control connection content-base content-encoding content-language \
    content-length content-location content-md5 content-range content-type date etag expect expires from host if-match \
    if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma \
    proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
    user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie \
    keep-alive origin";

/// What follows them, without lengths.
const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 \
    Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 \
    Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept \
    Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,\
    application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,\
    sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = Vec::with_capacity(1423);
    for word in WORDS.split(' ') {
        let word = word.replace('_', " ");
        bytes.extend_from_slice(&(word.len() as u32).to_be_bytes());
        bytes.extend_from_slice(word.as_bytes());
    }
    bytes.extend_from_slice(TAIL.as_bytes());
    bytes
});

/// Names and values of one block.
pub type Headers = Vec<(String, String)>;

/// Expands the blocks of one direction, in their order.
#[derive(Debug)]
pub struct Reader {
    inflate: Decompress,
}

impl Default for Reader {
    fn default() -> Self {
        Self { inflate: Decompress::new(true) }
    }
}

impl Reader {
    /// The headers of the next block.
    ///
    /// # Errors
    /// It is no such block, or expands to more than anybody means.
    pub fn read(&mut self, block: &[u8]) -> Result<Headers, FrameError> {
        parse(&self.expand(block)?).ok_or(FrameError::Headers("lengths that do not fit"))
    }

    fn expand(&mut self, block: &[u8]) -> Result<Vec<u8>, FrameError> {
        let mut out = Vec::with_capacity(1024);
        let before = self.inflate.total_in();
        loop {
            let used = usize::try_from(self.inflate.total_in() - before).unwrap_or(usize::MAX);
            let rest = block.get(used..).unwrap_or_default();
            match self.inflate.decompress_vec(rest, &mut out, FlushDecompress::Sync) {
                Ok(Status::StreamEnd) => return Err(FrameError::Headers("the compressed stream ends")),
                Ok(_) => {}
                Err(error) if error.needs_dictionary() == Some(DICTIONARY_ID) => {
                    let set = self.inflate.set_dictionary(&DICTIONARY);
                    set.map_err(|_| FrameError::Headers("the dictionary is refused"))?;
                    continue;
                }
                Err(_) => return Err(FrameError::Headers("no zlib stream with SPDY/3's dictionary")),
            }
            // Room that is left over means that all of the block has come out.
            if out.len() < out.capacity() {
                return Ok(out);
            }
            if out.len() >= EXPANDED_MAX {
                return Err(FrameError::Headers("larger than 64 KiB"));
            }
            out.reserve(out.len());
        }
    }
}

fn parse(bytes: &[u8]) -> Option<Headers> {
    let mut rest = bytes;
    let count = number(&mut rest)?;
    // Each takes eight bytes at least: no count is believed that the block cannot hold.
    let mut headers = Vec::with_capacity((count as usize).min(rest.len() / 8));
    for _ in 0..count {
        headers.push((text(&mut rest)?, text(&mut rest)?));
    }
    rest.is_empty().then_some(headers)
}

fn number(rest: &mut &[u8]) -> Option<u32> {
    let (head, tail) = rest.split_first_chunk::<4>()?;
    *rest = tail;
    Some(u32::from_be_bytes(*head))
}

fn text(rest: &mut &[u8]) -> Option<String> {
    let length = number(rest)? as usize;
    let (head, tail) = rest.split_at_checked(length)?;
    *rest = tail;
    Some(String::from_utf8_lossy(head).into_owned())
}

/// Writes the blocks of one direction, in their order.
#[derive(Debug, Default)]
pub struct Writer {
    begun: bool,
}

impl Writer {
    /// The next block, with these names and values.
    pub fn write(&mut self, headers: &[(&str, &str)]) -> Vec<u8> {
        let mut plain = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend_from_slice(&(text.len() as u32).to_be_bytes());
            plain.extend_from_slice(text.as_bytes());
        }
        let mut block = Vec::with_capacity(plain.len() + 16);
        if !std::mem::replace(&mut self.begun, true) {
            // RFC 1950: deflate with a window of 32 KiB, a dictionary, the check bits of both bytes, its id.
            block.extend_from_slice(&[0x78, 0xbb]);
            block.extend_from_slice(&DICTIONARY_ID.to_be_bytes());
        }
        for piece in plain.chunks(STORED_MAX) {
            // One piece is not the last of the stream, is stored, and begins and ends with a byte.
            let length = piece.len() as u16;
            block.push(0);
            block.extend_from_slice(&length.to_le_bytes());
            block.extend_from_slice(&(!length).to_le_bytes());
            block.extend_from_slice(piece);
        }
        // An empty one, as a flush makes: Go's reader gives nothing of a block before it.
        block.extend_from_slice(&[0, 0, 0, 0xff, 0xff]);
        block
    }
}

#[cfg(test)]
mod tests {
    use flate2::{Compress, Compression, FlushCompress};
    use proptest::prelude::*;

    use super::*;

    /// What a client's library would send: one compressor, flushed after each block.
    fn compressed(blocks: &[&[(&str, &str)]]) -> Vec<Vec<u8>> {
        let mut deflate = Compress::new(Compression::best(), true);
        assert_eq!(deflate.set_dictionary(&DICTIONARY).unwrap(), DICTIONARY_ID);
        let plain = |headers: &[(&str, &str)]| {
            let mut plain = (headers.len() as u32).to_be_bytes().to_vec();
            for text in headers.iter().flat_map(|(name, value)| [name, value]) {
                plain.extend_from_slice(&(text.len() as u32).to_be_bytes());
                plain.extend_from_slice(text.as_bytes());
            }
            plain
        };
        blocks
            .iter()
            .map(|headers| {
                let mut out = Vec::with_capacity(1 << 20);
                deflate.compress_vec(&plain(headers), &mut out, FlushCompress::Sync).unwrap();
                out
            })
            .collect()
    }

    #[test]
    fn the_dictionary_is_the_one_of_spdy_3() {
        let digest = ring::digest::digest(&ring::digest::SHA256, &DICTIONARY);
        assert_eq!(DICTIONARY.len(), 1423);
        assert_eq!(
            crate::id::hex(digest.as_ref()),
            "51d27341373f923f3cd88e1eb7162aeaa3723d7585ff2399201dc06498407f02"
        );
    }

    #[test]
    fn compressed_blocks_of_one_connection_are_read_in_order() {
        let large = "v".repeat(5000);
        let sent: [&[(&str, &str)]; 4] = [
            &[("streamtype", "error"), ("port", "80"), ("requestid", "0")],
            &[],
            &[("streamtype", "data"), ("x", &large)],
            &[("streamtype", "error"), ("port", "80"), ("requestid", "1")],
        ];
        let mut reader = Reader::default();
        for (block, headers) in compressed(&sent).iter().zip(sent) {
            let got = reader.read(block).unwrap();
            assert!(got.iter().map(|(n, v)| (n.as_str(), v.as_str())).eq(headers.iter().copied()));
        }
    }

    #[test]
    fn blocks_without_compression_are_read_by_the_same_reader() {
        let (mut writer, mut reader) = (Writer::default(), Reader::default());
        let large = "x".repeat(30_000);
        for headers in [&[][..], &[("a", "b")], &[("large", &large), ("again", &large)], &[("", "")]] {
            let got = reader.read(&writer.write(headers)).unwrap();
            assert!(got.iter().map(|(n, v)| (n.as_str(), v.as_str())).eq(headers.iter().copied()));
        }
    }

    #[test]
    fn a_block_that_expands_without_measure_is_refused() {
        let large = "0".repeat(1 << 20);
        let block = &compressed(&[&[("bomb", large.as_str())]])[0];
        assert!(block.len() < 5000, "{}", block.len());
        assert!(matches!(Reader::default().read(block), Err(FrameError::Headers("larger than 64 KiB"))));
    }

    #[test]
    fn what_is_no_block_is_refused() {
        for block in [&b""[..], b"\x78\x9c", b"not zlib", b"\x78\xbb\x00\x00\x00\x00"] {
            assert!(Reader::default().read(block).is_err(), "{block:?}");
        }
        let mut short = Writer::default().write(&[("a", "b")]);
        short.truncate(short.len() - 6);
        assert!(Reader::default().read(&short).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..4)) {
            let mut reader = Reader::default();
            for block in blocks {
                let _ = reader.read(&block);
            }
        }

        #[test]
        fn bytes_behind_a_sound_beginning_do_neither(tail in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut block = Writer::default().write(&[("a", "b")]);
            block.extend_from_slice(&tail);
            let _ = Reader::default().read(&block);
        }
    }
}
