//! What a client sends in a session: input, its end, sizes of its window.
//!
//! Must not know: what becomes of it.

use std::{io, ops::Range};

use base64::{Engine, engine::general_purpose::STANDARD};

use super::{CHANNELS, Channel};
use crate::stream::{
    spdy::{Event, Reset, connection::Connection},
    websocket::connection::{Piece, WebSocket},
};

/// Number of the channel on which v5 tells the end of another one.
const CLOSE: u8 = 255;

/// What has arrived.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::stream) enum Incoming<'a> {
    /// Bytes for the process.
    Input(&'a [u8]),
    /// There are no more of them.
    InputEnd,
    /// A piece of what [`super::Sizes`] takes.
    Size(&'a [u8]),
}

/// The receiving end of a session.
pub(in crate::stream) struct Receiver {
    stream: Stream,
    /// The end of the input has come with what was given last.
    ended: bool,
}

pub(super) enum Stream {
    Spdy { connection: Connection, ids: [u32; 5] },
    WebSocket { socket: WebSocket, messages: Messages },
}

impl Stream {
    pub(super) fn web_socket(socket: WebSocket, base64: bool, closes: bool, stdin: bool, tty: bool) -> Self {
        let messages = Messages { base64, closes, stdin, tty, ..Messages::default() };
        Stream::WebSocket { socket, messages }
    }
}

impl Receiver {
    pub(super) fn new(stream: Stream, ended: bool) -> Self {
        Self { stream, ended }
    }

    /// The next thing; `None` when the client has gone.
    ///
    /// Cancel safety: nothing is lost.
    pub(in crate::stream) async fn next(&mut self) -> io::Result<Option<Incoming<'_>>> {
        if std::mem::take(&mut self.ended) {
            return Ok(Some(Incoming::InputEnd));
        }
        match &mut self.stream {
            Stream::Spdy { connection, ids } => spdy(connection, ids, &mut self.ended).await,
            Stream::WebSocket { socket, messages } => web_socket(socket, messages).await,
        }
    }

    /// Tells the client that the connection is over, where the transport has a word for it that is not said yet.
    pub(super) async fn go_away(&mut self) {
        if let Stream::Spdy { connection, .. } = &mut self.stream {
            connection.go_away().await;
        }
    }

    /// Reads and drops what still comes, until the client has gone.
    pub(super) async fn drain(&mut self) {
        match &mut self.stream {
            Stream::Spdy { connection, .. } => connection.drain().await,
            Stream::WebSocket { socket, .. } => socket.drain().await,
        }
    }
}

/// `ended`: the bytes that are given are the last, and the next look gives the end.
async fn spdy<'a>(
    connection: &'a mut Connection,
    ids: &[u32; 5],
    ended: &mut bool,
) -> io::Result<Option<Incoming<'a>>> {
    let (stdin, resize) = (ids[Channel::Stdin as usize], ids[Channel::Resize as usize]);
    loop {
        match connection.next().await? {
            None | Some(Event::GoAway) => return Ok(None),
            Some(Event::Data { stream, bytes, fin }) if stream == stdin => {
                if bytes.is_empty() && fin {
                    return Ok(Some(Incoming::InputEnd));
                }
                *ended = fin;
                return Ok(Some(Incoming::Input(connection.bytes(bytes))));
            }
            Some(Event::Data { stream, bytes, .. }) if stream == resize => {
                return Ok(Some(Incoming::Size(connection.bytes(bytes))));
            }
            Some(Event::Reset { stream }) if stream == stdin => return Ok(Some(Incoming::InputEnd)),
            // A client that does not want to hear any more.
            Some(Event::Reset { stream }) if ids.contains(&stream) => return Ok(None),
            Some(Event::Syn { stream, .. }) => connection.reset(stream, Reset::RefusedStream).await?,
            Some(Event::Data { .. } | Event::Reset { .. } | Event::Reply { .. } | Event::Ping(_)) => {}
        }
    }
}

/// What is known of the message that is arriving.
#[derive(Debug, Default)]
pub(super) struct Messages {
    base64: bool,
    /// The end of a channel can be told.
    closes: bool,
    stdin: bool,
    tty: bool,
    /// The message's channel, once its first byte is there.
    channel: Option<u8>,
    /// Base64 that makes no whole bytes yet.
    part: Vec<u8>,
    /// What base64 has given.
    plain: Vec<u8>,
}

/// What a piece of a message is.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Nothing,
    /// Bytes of a channel; where they are, in the piece or in [`Messages::plain`].
    Bytes(Channel, Range<usize>),
    End(Channel),
}

async fn web_socket<'a>(
    socket: &'a mut WebSocket,
    messages: &'a mut Messages,
) -> io::Result<Option<Incoming<'a>>> {
    loop {
        let Some(piece) = socket.next().await? else { return Ok(None) };
        let told = messages.take(&piece, socket.bytes(piece.bytes.clone()))?;
        match told {
            Told::End(Channel::Stdin) if messages.stdin => return Ok(Some(Incoming::InputEnd)),
            Told::Bytes(channel, range) => {
                let input = match channel {
                    Channel::Stdin if messages.stdin => true,
                    Channel::Resize if messages.tty => false,
                    // What a client has no business to send is passed over, as it is by others.
                    _ => continue,
                };
                let bytes = match messages.base64 {
                    true => &messages.plain[range],
                    false => socket.bytes(piece.bytes.start + range.start..piece.bytes.start + range.end),
                };
                return Ok(Some(if input { Incoming::Input(bytes) } else { Incoming::Size(bytes) }));
            }
            Told::Nothing | Told::End(_) => {}
        }
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl Messages {
    fn take(&mut self, piece: &Piece, bytes: &[u8]) -> io::Result<Told> {
        if piece.first {
            self.channel = None;
            self.part.clear();
        }
        let mut start = 0;
        if self.channel.is_none()
            && let Some(byte) = bytes.first()
        {
            start = 1;
            self.channel = Some(match self.base64 {
                true => byte.checked_sub(b'0').ok_or(invalid("a channel that is no digit"))?,
                false => *byte,
            });
        }
        let Some(number) = self.channel else { return Ok(Told::Nothing) };
        let known = CHANNELS.into_iter().find(|channel| *channel as u8 == number);
        let content = &bytes[start..];
        match known {
            None if number == CLOSE && self.closes && !content.is_empty() => {
                let closed = CHANNELS.into_iter().find(|channel| *channel as u8 == content[0]);
                Ok(closed.map_or(Told::Nothing, Told::End))
            }
            None => Ok(Told::Nothing),
            Some(channel) if self.base64 => {
                self.decode(content, piece.last)?;
                Ok(if self.plain.is_empty() {
                    Told::Nothing
                } else {
                    Told::Bytes(channel, 0..self.plain.len())
                })
            }
            Some(_) if content.is_empty() => Ok(Told::Nothing),
            Some(channel) => Ok(Told::Bytes(channel, start..bytes.len())),
        }
    }

    /// Decodes as much as makes whole bytes; the rest waits for the next piece.
    fn decode(&mut self, content: &[u8], last: bool) -> io::Result<()> {
        self.part.extend_from_slice(content);
        let whole = if last { self.part.len() } else { self.part.len() / 4 * 4 };
        self.plain.clear();
        STANDARD.decode_vec(&self.part[..whole], &mut self.plain).map_err(|_| invalid("no base64"))?;
        self.part.drain(..whole);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(messages: &mut Messages, pieces: &[&[u8]]) -> Vec<(Channel, Vec<u8>)> {
        let mut all = Vec::new();
        for (index, bytes) in pieces.iter().enumerate() {
            let piece = Piece {
                bytes: 0..bytes.len(),
                text: messages.base64,
                first: index == 0,
                last: index + 1 == pieces.len(),
            };
            match messages.take(&piece, bytes).unwrap() {
                Told::Bytes(channel, range) if messages.base64 => {
                    all.push((channel, messages.plain[range].to_vec()));
                }
                Told::Bytes(channel, range) => all.push((channel, bytes[range].to_vec())),
                Told::End(channel) => all.push((channel, b"END".to_vec())),
                Told::Nothing => {}
            }
        }
        all
    }

    #[test]
    fn the_first_byte_of_a_message_is_its_channel() {
        let mut messages = Messages { closes: true, ..Messages::default() };
        let stdin = |bytes: &[u8]| (Channel::Stdin, bytes.to_vec());
        assert_eq!(told(&mut messages, &[b"\0abc"]), [stdin(b"abc")]);
        assert_eq!(told(&mut messages, &[b"\0", b"a", b"bc"]), [stdin(b"a"), stdin(b"bc")]);
        assert_eq!(told(&mut messages, &[b"\x04{}"]), [(Channel::Resize, b"{}".to_vec())]);
        assert_eq!(told(&mut messages, &[b"\0"]), []);
        assert_eq!(told(&mut messages, &[b""]), []);
        assert_eq!(told(&mut messages, &[b"\x09abc"]), []);
        assert_eq!(told(&mut messages, &[b"\xff\0"]), [stdin(b"END")]);
        assert_eq!(told(&mut messages, &[b"\xff", b"\0"]), [stdin(b"END")]);
        messages.closes = false;
        assert_eq!(told(&mut messages, &[b"\xff\0"]), [], "before v5 a channel has no end");
    }

    #[test]
    fn base64_is_decoded_whatever_the_pieces() {
        let mut messages = Messages { base64: true, ..Messages::default() };
        for pieces in
            [&[&b"0aGVsbG8="[..]][..], &[b"0", b"aGV", b"sbG8="], &[b"0a", b"G", b"V", b"sbG8", b"="]]
        {
            let all = told(&mut messages, pieces);
            assert!(all.iter().all(|(channel, _)| *channel == Channel::Stdin));
            assert_eq!(all.into_iter().flat_map(|(_, bytes)| bytes).collect::<Vec<_>>(), b"hello");
        }
        let piece = Piece { bytes: 0..4, text: true, first: true, last: true };
        assert!(messages.take(&piece, b"0***").is_err());
        assert!(messages.take(&piece, b"\x20abc").is_err());
    }
}
