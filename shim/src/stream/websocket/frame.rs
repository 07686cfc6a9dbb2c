//! Frames: a decoder that takes bytes as they come, and what crisp sends.
//!
//! A message is handed on in the pieces in which it arrives, whatever its frames; only control frames, which are small,
//! are taken whole. Must not know: who reads and writes.

use std::ops::Range;

const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
const MASKED: u8 = 0x80;
const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
/// Most bytes of a control frame's content (RFC 6455, section 5.5).
const CONTROL_MAX: u64 = 125;

/// The end of a conversation in which nothing went wrong.
pub const NORMAL: u16 = 1000;
/// The peer has broken the protocol.
pub const PROTOCOL_ERROR: u16 = 1002;

/// Bytes that are no WebSocket: the connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// No extension was agreed upon.
    #[error("reserved bits are set")]
    Reserved,
    /// An opcode that RFC 6455 does not give a meaning.
    #[error("opcode {0}")]
    Opcode(u8),
    /// A client masks, a server does not.
    #[error("{0}")]
    Mask(&'static str),
    /// A control frame that is large or in pieces.
    #[error("control frame that is large or in pieces")]
    Control,
    /// A message in the middle of another, or the rest of one without a beginning.
    #[error("frames of messages are mixed up")]
    Order,
    /// More than 2^63 bytes.
    #[error("length of a frame")]
    Length,
}

/// Which end this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Gets masked frames and sends unmasked ones.
    Server,
    /// The other way round.
    Client,
}

/// What has arrived.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A piece of a message.
    Piece {
        /// Where in the input it is, unmasked there.
        bytes: Range<usize>,
        /// The message is one of text.
        text: bool,
        /// It is the message's first.
        first: bool,
        /// It is the message's last.
        last: bool,
    },
    /// To be answered with the same content.
    Ping(Vec<u8>),
    /// The answer to a ping, or just a sign of life.
    Pong,
    /// The peer sends nothing more; the code that it gave.
    Close(Option<u16>),
}

/// How far a look at the input got.
#[derive(Debug, PartialEq, Eq)]
pub struct Step {
    /// Bytes of the input that are used up; 0 with no event: more is needed.
    pub used: usize,
    /// What they mean.
    pub event: Option<Event>,
}

/// A frame of which the head has been read.
#[derive(Clone, Copy, Debug)]
struct Open {
    left: u64,
    mask: [u8; 4],
    /// How many bytes have been unmasked.
    done: usize,
    fin: bool,
}

/// A message of which not everything has arrived.
#[derive(Clone, Copy, Debug)]
struct Message {
    text: bool,
    begun: bool,
}

/// Takes frames apart.
#[derive(Debug)]
pub struct Decoder {
    role: Role,
    frame: Option<Open>,
    message: Option<Message>,
}

struct Head {
    fin: bool,
    opcode: u8,
    length: u64,
    mask: [u8; 4],
    size: usize,
}

impl Decoder {
    /// A decoder for this end.
    #[must_use]
    pub fn new(role: Role) -> Self {
        Self { role, frame: None, message: None }
    }

    /// Looks at what has arrived, and unmasks it.
    ///
    /// # Errors
    /// See [`FrameError`]; nothing that follows can be made sense of.
    pub fn step(&mut self, input: &mut [u8]) -> Result<Step, FrameError> {
        if self.frame.is_some() {
            return Ok(self.piece(input, 0));
        }
        let Some(head) = self.head(input)? else { return Ok(Step { used: 0, event: None }) };
        if head.opcode >= CLOSE {
            return Ok(control(&head, input));
        }
        match (head.opcode, self.message) {
            (CONTINUATION, Some(_)) => {}
            (TEXT | BINARY, None) => {
                self.message = Some(Message { text: head.opcode == TEXT, begun: false });
            }
            _ => return Err(FrameError::Order),
        }
        self.frame = Some(Open { left: head.length, mask: head.mask, done: 0, fin: head.fin });
        Ok(self.piece(&mut input[head.size..], head.size))
    }

    fn head(&self, input: &[u8]) -> Result<Option<Head>, FrameError> {
        let Some(&[first, second]) = input.first_chunk::<2>() else { return Ok(None) };
        let (fin, opcode, masked) = (first & FIN != 0, first & 0x0f, second & MASKED != 0);
        if first & RESERVED != 0 {
            return Err(FrameError::Reserved);
        }
        match opcode {
            CONTINUATION | TEXT | BINARY => {}
            CLOSE | PING | PONG if fin && u64::from(second & !MASKED) <= CONTROL_MAX => {}
            CLOSE | PING | PONG => return Err(FrameError::Control),
            other => return Err(FrameError::Opcode(other)),
        }
        match (self.role, masked) {
            (Role::Server, false) => return Err(FrameError::Mask("a client's frame is not masked")),
            (Role::Client, true) => return Err(FrameError::Mask("a server's frame is masked")),
            _ => {}
        }
        let (length, at) = match second & !MASKED {
            126 => match input.get(2..4).and_then(<[u8]>::first_chunk::<2>) {
                Some(bytes) => (u16::from_be_bytes(*bytes).into(), 4),
                None => return Ok(None),
            },
            127 => match input.get(2..10).and_then(<[u8]>::first_chunk::<8>) {
                Some(bytes) => (u64::from_be_bytes(*bytes), 10),
                None => return Ok(None),
            },
            length => (length.into(), 2),
        };
        if length >> 63 != 0 {
            return Err(FrameError::Length);
        }
        let (mask, size) = match (masked, input.get(at..).and_then(<[u8]>::first_chunk::<4>)) {
            (false, _) => ([0; 4], at),
            (true, Some(mask)) => (*mask, at + 4),
            (true, None) => return Ok(None),
        };
        // A control frame is taken whole.
        if opcode >= CLOSE && ((input.len() - size) as u64) < length {
            return Ok(None);
        }
        Ok(Some(Head { fin, opcode, length, mask, size }))
    }

    /// `offset`: where `input` begins in what the caller has given.
    fn piece(&mut self, input: &mut [u8], offset: usize) -> Step {
        let (Some(open), Some(message)) = (&mut self.frame, &mut self.message) else {
            return Step { used: 0, event: None };
        };
        let count = usize::try_from(open.left).unwrap_or(usize::MAX).min(input.len());
        apply_mask(&mut input[..count], open.mask, open.done);
        open.left -= count as u64;
        open.done = (open.done + count) % 4;
        let over = open.left == 0;
        let last = over && open.fin;
        let (text, first) = (message.text, !message.begun);
        let told = count > 0 || last;
        message.begun |= told;
        if over {
            self.frame = None;
        }
        if last {
            self.message = None;
        }
        let event = told.then(|| Event::Piece { bytes: offset..offset + count, text, first, last });
        Step { used: offset + count, event }
    }
}

fn control(head: &Head, input: &[u8]) -> Step {
    let end = head.size + head.length as usize;
    let mut content = input[head.size..end].to_vec();
    apply_mask(&mut content, head.mask, 0);
    let event = match head.opcode {
        PING => Event::Ping(content),
        PONG => Event::Pong,
        _ => Event::Close(content.first_chunk::<2>().map(|code| u16::from_be_bytes(*code))),
    };
    Step { used: end, event: Some(event) }
}

/// XORs `bytes` with the mask; `done` bytes of the frame came before them.
fn apply_mask(bytes: &mut [u8], mask: [u8; 4], done: usize) {
    if mask == [0; 4] {
        return;
    }
    let turned = [0, 1, 2, 3].map(|index| mask[(done + index) % 4]);
    let wide = u64::from_ne_bytes(std::array::from_fn(|index| turned[index % 4]));
    let (chunks, rest) = bytes.as_chunks_mut::<8>();
    for chunk in chunks {
        *chunk = (u64::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
    }
    for (index, byte) in rest.iter_mut().enumerate() {
        *byte ^= turned[index % 4];
    }
}

/// The head of an unmasked frame that is a whole message; `length` bytes follow it.
pub fn message_head(text: bool, length: usize, into: &mut Vec<u8>) {
    head(if text { TEXT } else { BINARY }, length, None, into);
}

/// A client's message: masked, and whole.
pub fn masked_message(mask: [u8; 4], bytes: &[u8], into: &mut Vec<u8>) {
    masked(BINARY, mask, bytes, into);
}

/// A client's answer to a ping.
pub fn masked_pong(mask: [u8; 4], content: &[u8], into: &mut Vec<u8>) {
    masked(PONG, mask, &content[..content.len().min(125)], into);
}

/// A client's end of the conversation.
pub fn masked_close(mask: [u8; 4], code: u16, into: &mut Vec<u8>) {
    masked(CLOSE, mask, &code.to_be_bytes(), into);
}

fn masked(opcode: u8, mask: [u8; 4], bytes: &[u8], into: &mut Vec<u8>) {
    head(opcode, bytes.len(), Some(mask), into);
    let start = into.len();
    into.extend_from_slice(bytes);
    apply_mask(&mut into[start..], mask, 0);
}

/// The answer to a ping, or a sign of life.
pub fn pong(content: &[u8], into: &mut Vec<u8>) {
    let content = &content[..content.len().min(125)];
    head(PONG, content.len(), None, into);
    into.extend_from_slice(content);
}

/// The end of the conversation.
pub fn close(code: u16, into: &mut Vec<u8>) {
    head(CLOSE, 2, None, into);
    into.extend_from_slice(&code.to_be_bytes());
}

fn head(opcode: u8, length: usize, mask: Option<[u8; 4]>, into: &mut Vec<u8>) {
    let flag = if mask.is_some() { MASKED } else { 0 };
    into.push(FIN | opcode);
    match length {
        0..=125 => into.push(flag | length as u8),
        126..=0xffff => {
            into.push(flag | 126);
            into.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            into.push(flag | 127);
            into.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    into.extend_from_slice(&mask.unwrap_or_default()[..if mask.is_some() { 4 } else { 0 }]);
}

#[cfg(test)]
mod tests;
