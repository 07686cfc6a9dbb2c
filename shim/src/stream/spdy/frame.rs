//! Frames: a decoder that takes bytes as they come, and what crisp sends.
//!
//! Data is handed on in the pieces in which it arrives, so that a frame of 16 MiB needs no more memory than one of a
//! byte; a control frame is taken whole and may not be larger than [`CONTROL_MAX`]. Must not know: who reads and writes.

use std::ops::Range;

use super::headers::{Headers, Reader};

/// Largest control frame, with its head. A buffer that bytes are decoded from must hold as much.
pub const CONTROL_MAX: usize = 16 << 10;
/// Largest piece of data that crisp puts into one frame.
pub const DATA_MAX: usize = 32 << 10;

const HEAD: usize = 8;
const CONTROL: u16 = 0x8000;
const VERSION: u16 = 3;
const FIN: u8 = 1;
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GO_AWAY: u16 = 7;
const HEADERS: u16 = 8;

/// Bytes that are no SPDY/3.1: the connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A control frame of another version of the protocol.
    #[error("SPDY version {0}, not 3")]
    Version(u16),
    /// A control frame larger than [`CONTROL_MAX`].
    #[error("control frame of {0} bytes")]
    Size(usize),
    /// A control frame that is too short for what it says it is.
    #[error("control frame of type {0} is cut short")]
    Short(u16),
    /// A header block.
    #[error("header block: {0}")]
    Headers(&'static str),
}

/// Why a stream is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// The peer has broken the protocol.
    ProtocolError = 1,
    /// There is no such stream.
    InvalidStream = 2,
    /// It was not begun.
    RefusedStream = 3,
    /// It is not wanted any more.
    Cancel = 5,
}

/// What has arrived.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A new stream.
    Syn {
        /// Its id.
        stream: u32,
        /// The peer sends nothing on it.
        fin: bool,
        /// Its headers, names in lower case.
        headers: Headers,
    },
    /// The answer to a new stream.
    Reply {
        /// Its id.
        stream: u32,
        /// The peer sends nothing on it.
        fin: bool,
    },
    /// A piece of data.
    Data {
        /// Its stream.
        stream: u32,
        /// Where in the input it is.
        bytes: Range<usize>,
        /// It was the stream's last.
        fin: bool,
    },
    /// The stream is over at once.
    Reset {
        /// Its id.
        stream: u32,
    },
    /// To be sent back, if the peer has sent it.
    Ping(u32),
    /// The peer takes no more streams.
    GoAway,
}

/// How far a look at the input got.
#[derive(Debug, PartialEq, Eq)]
pub struct Step {
    /// Bytes of the input that are used up; 0 with no event: more is needed.
    pub used: usize,
    /// What they mean.
    pub event: Option<Event>,
}

/// Data of which the head has been read.
#[derive(Debug)]
struct Open {
    stream: u32,
    left: usize,
    fin: bool,
}

/// Takes frames apart.
#[derive(Debug, Default)]
pub struct Decoder {
    headers: Reader,
    data: Option<Open>,
}

impl Decoder {
    /// Looks at what has arrived.
    ///
    /// # Errors
    /// See [`FrameError`]; nothing that follows can be made sense of.
    pub fn step(&mut self, input: &[u8]) -> Result<Step, FrameError> {
        if self.data.is_some() {
            return Ok(self.data_piece(input, 0));
        }
        let Some(head) = input.first_chunk::<HEAD>() else { return Ok(Step { used: 0, event: None }) };
        let (first, second) = (word(head, 0), word(head, 4));
        let (flags, length) = ((second >> 24) as u8, (second & 0x00ff_ffff) as usize);
        if first >> 31 == 0 {
            self.data = Some(Open { stream: first, left: length, fin: flags & FIN != 0 });
            return Ok(self.data_piece(&input[HEAD..], HEAD));
        }
        let (version, kind) = ((first >> 16) as u16 & !CONTROL, first as u16);
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        if HEAD + length > CONTROL_MAX {
            return Err(FrameError::Size(HEAD + length));
        }
        let Some(body) = input.get(HEAD..HEAD + length) else { return Ok(Step { used: 0, event: None }) };
        Ok(Step { used: HEAD + length, event: self.control(kind, flags, body)? })
    }

    /// `offset`: where `input` begins in what the caller has given.
    fn data_piece(&mut self, input: &[u8], offset: usize) -> Step {
        let Some(open) = &mut self.data else { return Step { used: 0, event: None } };
        let count = open.left.min(input.len());
        open.left -= count;
        let (stream, over, fin) = (open.stream, open.left == 0, open.fin);
        if over {
            self.data = None;
        }
        let event = (count > 0 || over).then(|| Event::Data {
            stream,
            bytes: offset..offset + count,
            fin: over && fin,
        });
        Step { used: offset + count, event }
    }

    fn control(&mut self, kind: u16, flags: u8, body: &[u8]) -> Result<Option<Event>, FrameError> {
        let id = body.first_chunk::<4>().map(|id| u32::from_be_bytes(*id));
        let id = id.ok_or(FrameError::Short(kind));
        // The highest bit of a stream's id is reserved.
        let stream = id.map(|id| id & 0x7fff_ffff);
        let block = |from: usize| body.get(from..).ok_or(FrameError::Short(kind));
        let fin = flags & FIN != 0;
        Ok(match kind {
            // Behind the id: the associated stream, priority and slot.
            SYN_STREAM => {
                Some(Event::Syn { stream: stream?, fin, headers: lower_case(self.headers.read(block(10)?)?) })
            }
            // What the block says is not needed, but the ones behind it cannot be read without it.
            SYN_REPLY => {
                self.headers.read(block(4)?)?;
                Some(Event::Reply { stream: stream?, fin })
            }
            HEADERS => {
                self.headers.read(block(4)?)?;
                None
            }
            RST_STREAM => Some(Event::Reset { stream: stream? }),
            PING => Some(Event::Ping(id?)),
            GO_AWAY => Some(Event::GoAway),
            // Settings, windows, and what no client of ours sends.
            _ => None,
        })
    }
}

fn word(head: &[u8; HEAD], at: usize) -> u32 {
    u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]])
}

fn lower_case(mut headers: Headers) -> Headers {
    headers.iter_mut().for_each(|(name, _)| name.make_ascii_lowercase());
    headers
}

/// The head of a data frame; `length` bytes, at most [`DATA_MAX`], follow it.
#[must_use]
pub fn data_head(stream: u32, fin: bool, length: usize) -> [u8; HEAD] {
    head(stream & 0x7fff_ffff, u8::from(fin), length)
}

/// A new stream, with a header block of [`super::headers::Writer`].
#[must_use]
pub fn syn_stream(stream: u32, block: &[u8]) -> Vec<u8> {
    control(SYN_STREAM, &[&stream.to_be_bytes(), &[0; 6], block])
}

/// The answer to a new stream: data may follow.
#[must_use]
pub fn syn_reply(stream: u32, block: &[u8]) -> Vec<u8> {
    control(SYN_REPLY, &[&stream.to_be_bytes(), block])
}

/// The end of a stream, both ways.
#[must_use]
pub fn reset(stream: u32, why: Reset) -> Vec<u8> {
    control(RST_STREAM, &[&stream.to_be_bytes(), &(why as u32).to_be_bytes()])
}

/// A ping, or the answer to one.
#[must_use]
pub fn ping(id: u32) -> Vec<u8> {
    control(PING, &[&id.to_be_bytes()])
}

/// No more streams are taken; `last` is the last one that was.
#[must_use]
pub fn go_away(last: u32) -> Vec<u8> {
    control(GO_AWAY, &[&last.to_be_bytes(), &0u32.to_be_bytes()])
}

fn control(kind: u16, parts: &[&[u8]]) -> Vec<u8> {
    let length = parts.iter().map(|part| part.len()).sum();
    let first = u32::from(CONTROL | VERSION) << 16 | u32::from(kind);
    let mut frame = Vec::with_capacity(HEAD + length);
    frame.extend_from_slice(&head(first, 0, length));
    parts.iter().for_each(|part| frame.extend_from_slice(part));
    frame
}

fn head(first: u32, flags: u8, length: usize) -> [u8; HEAD] {
    let second = u32::from(flags) << 24 | (length as u32 & 0x00ff_ffff);
    let mut head = [0; HEAD];
    head[..4].copy_from_slice(&first.to_be_bytes());
    head[4..].copy_from_slice(&second.to_be_bytes());
    head
}

#[cfg(test)]
mod tests;
