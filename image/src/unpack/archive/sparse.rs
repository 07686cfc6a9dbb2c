//! Sparse files as GNU tar writes them: in its old header, and as PAX records in the versions 0.0, 0.1 and
//! 1.0 (GNU tar manual, "Storing Sparse Files"). Purpose: where the data of an entry belongs, in bounded
//! memory, or a refusal. Writes nothing.

use std::io::{self, Read};

use super::{Archive, ArchiveError, BLOCK, bad, number, pax::decimal};

/// No file system has use for more pieces in one file of an image.
const PIECES_MAX: usize = 1 << 16;
/// Where the old header keeps its pieces, and whether more of them follow.
const OLD_PIECES: usize = 386;
const OLD_MORE: usize = 482;
const OLD_SIZE: usize = 483;
const EXTENSION_PIECES: usize = 21;
const PIECE: usize = 24;
/// Digits of one number in the map of version 1.0.
const DIGITS_MAX: usize = 20;

/// A file with holes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sparse {
    /// Bytes of the whole file.
    pub(crate) size: u64,
    /// First byte and length of each piece of data, in order and apart.
    pub(crate) pieces: Vec<(u64, u64)>,
}

/// What PAX records say.
#[derive(Default)]
pub(super) struct Records {
    /// The real name; `path` holds a stand-in.
    pub(super) name: Option<Vec<u8>>,
    major: Option<u64>,
    minor: Option<u64>,
    size: Option<u64>,
    count: Option<u64>,
    /// Offsets and lengths in turn.
    numbers: Vec<u64>,
    any: bool,
}

impl Records {
    /// Takes the record `GNU.sparse.<key>`.
    pub(super) fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let shown =
            || format!("PAX record GNU.sparse.{}", String::from_utf8_lossy(&key[..key.len().min(40)]));
        let number =
            || decimal(value).filter(|n| *n < u64::MAX / 4).ok_or(format!("{} is no number", shown()));
        let once = |slot: &mut Option<u64>| match slot.replace(number()?) {
            None => Ok(()),
            Some(_) => Err(format!("two {}", shown())),
        };
        self.any = true;
        match key {
            b"major" => once(&mut self.major),
            b"minor" => once(&mut self.minor),
            b"size" | b"realsize" => once(&mut self.size),
            b"numblocks" => once(&mut self.count),
            b"name" if self.name.is_none() && !value.is_empty() => {
                self.name = Some(value.to_vec());
                Ok(())
            }
            b"offset" | b"numbytes" => {
                // They come in pairs, the offset first.
                if (key == b"offset") != self.numbers.len().is_multiple_of(2) {
                    return Err(format!("{} out of place", shown()));
                }
                self.push(number()?)
            }
            b"map" if self.numbers.is_empty() => value.split(|b| *b == b',').try_for_each(|part| {
                let number = decimal(part).filter(|n| *n < u64::MAX / 4);
                self.push(number.ok_or_else(|| format!("{} is no list of numbers", shown()))?)
            }),
            _ => Err(format!("{} is not supported", shown())),
        }
    }

    fn push(&mut self, number: u64) -> Result<(), String> {
        self.numbers.push(number);
        if self.numbers.len() > 2 * PIECES_MAX { Err(too_many()) } else { Ok(()) }
    }

    pub(super) fn any(&self) -> bool {
        self.any
    }
}

fn too_many() -> String {
    format!("a sparse file of more than {PIECES_MAX} pieces")
}

impl<R: Read> Archive<R> {
    /// The map in an old GNU header, and in the blocks that follow it.
    pub(super) fn old_sparse(
        &mut self,
        header: &[u8],
        data: u64,
        start: u64,
    ) -> Result<Sparse, ArchiveError> {
        let mut pieces = Vec::new();
        take_pieces(&header[OLD_PIECES..OLD_MORE], &mut pieces).map_err(|e| bad(start, &e))?;
        let mut more = header[OLD_MORE] != 0;
        while more {
            let mut block = [0; BLOCK];
            if !self.block(&mut block)? {
                return Err(self.ended());
            }
            take_pieces(&block[..EXTENSION_PIECES * PIECE], &mut pieces).map_err(|e| bad(start, &e))?;
            more = block[EXTENSION_PIECES * PIECE] != 0;
        }
        let size = number(&header[OLD_SIZE..OLD_SIZE + 12]).and_then(|n| u64::try_from(n).ok());
        let size = size.ok_or_else(|| bad(start, "size of a sparse file is no number"))?;
        check(size, pieces, data).map_err(|e| bad(start, &e))
    }

    /// The map that PAX records give, or say to be at the beginning of the entry's data.
    pub(super) fn pax_sparse(&mut self, records: Records, start: u64) -> Result<Sparse, ArchiveError> {
        let size = records.size.ok_or_else(|| bad(start, "a sparse file without size"))?;
        let numbers = match (records.major, records.minor) {
            (Some(1), Some(0)) if records.numbers.is_empty() && records.count.is_none() => {
                self.leading_map(start)?
            }
            (None | Some(0), None | Some(0 | 1)) if records.major.is_some() == records.minor.is_some() => {
                if records
                    .count
                    .is_some_and(|count| count.checked_mul(2) != Some(records.numbers.len() as u64))
                {
                    return Err(bad(start, "a sparse file with another number of pieces than it says"));
                }
                records.numbers
            }
            _ => return Err(bad(start, "a sparse file of unknown version")),
        };
        if !numbers.len().is_multiple_of(2) {
            return Err(bad(start, "a piece of a sparse file without length"));
        }
        let pieces = numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
        check(size, pieces, self.left).map_err(|e| bad(start, &e))
    }

    /// Version 1.0: a count and as many pairs, one number a line, filled up to a block.
    fn leading_map(&mut self, start: u64) -> Result<Vec<u64>, ArchiveError> {
        let mut numbers: Vec<u64> = Vec::new();
        let (mut wanted, mut digits) = (None, Vec::new());
        loop {
            let mut block = [0; BLOCK];
            let position = self.position;
            self.read_exact(&mut block).map_err(|source| match source.kind() {
                io::ErrorKind::UnexpectedEof => {
                    bad(start, "the map of a sparse file is longer than its data")
                }
                _ => ArchiveError::Read { position, source },
            })?;
            self.keep(&block);
            for byte in block {
                if byte != b'\n' {
                    digits.push(byte);
                    if digits.len() > DIGITS_MAX {
                        return Err(bad(start, "the map of a sparse file is no list of numbers"));
                    }
                    continue;
                }
                let number = decimal(&digits).filter(|n| *n < u64::MAX / 4);
                let number =
                    number.ok_or_else(|| bad(start, "the map of a sparse file is no list of numbers"))?;
                digits.clear();
                match wanted {
                    None if number > PIECES_MAX as u64 => return Err(bad(start, &too_many())),
                    None => wanted = Some(number * 2),
                    Some(_) => numbers.push(number),
                }
                if wanted == Some(numbers.len() as u64) {
                    return Ok(numbers);
                }
            }
        }
    }
}

fn take_pieces(fields: &[u8], pieces: &mut Vec<(u64, u64)>) -> Result<(), String> {
    for piece in fields.chunks_exact(PIECE) {
        let (offset, length) = piece.split_at(PIECE / 2);
        // Unused ones are empty.
        if offset[0] == 0 {
            continue;
        }
        let part =
            |field| number(field).and_then(|n| u64::try_from(n).ok()).ok_or("a piece that is no number");
        pieces.push((part(offset)?, part(length)?));
        if pieces.len() > PIECES_MAX {
            return Err(too_many());
        }
    }
    Ok(())
}

/// Pieces in order, apart, up to the end of the file, and together as long as the data. A hole at the end has a piece of no
/// length behind it: without, GNU tar's file ends with the last piece and that of others where the size says.
fn check(size: u64, pieces: Vec<(u64, u64)>, data: u64) -> Result<Sparse, String> {
    let (mut end, mut sum) = (0_u64, 0_u64);
    for (offset, length) in &pieces {
        let next = offset.checked_add(*length).filter(|next| *offset >= end && *next <= size);
        end = next.ok_or("pieces of a sparse file overlap or lie outside of it")?;
        sum += length;
    }
    if end != size {
        return Err(format!("pieces of a sparse file end at {end}, its size is {size}"));
    }
    if sum != data {
        return Err(format!("pieces of a sparse file have {sum} bytes, its data has {data}"));
    }
    Ok(Sparse { size, pieces })
}
