//! A WebSocket's messages: frames are read, pings and the close answered.
//!
//! Must not know: what messages mean.

use std::{io, ops::Range};

use super::{Decoder, Event, Role, frame};
use crate::stream::{
    inbox::Inbox,
    transport::{Intake, Outbox},
};

/// What of a message is handed on at once.
const INBOX_BYTES: usize = 32 << 10;

/// A piece of a message.
pub(in crate::stream) struct Piece {
    /// Where it is; see [`WebSocket::bytes`].
    pub(in crate::stream) bytes: Range<usize>,
    /// The message is one of text.
    pub(in crate::stream) text: bool,
    /// It is the message's first.
    pub(in crate::stream) first: bool,
    /// It is the message's last.
    pub(in crate::stream) last: bool,
}

/// The reading end.
pub(in crate::stream) struct WebSocket {
    intake: Intake,
    inbox: Inbox,
    decoder: Decoder,
    /// Bytes of the inbox that the last piece was in.
    used: usize,
    /// What of the last piece has not been passed on by [`WebSocket::fill`].
    left: Range<usize>,
    out: Outbox,
}

impl WebSocket {
    /// Answers go to `out`.
    pub(in crate::stream) fn new(intake: Intake, out: Outbox) -> Self {
        let (inbox, decoder) = (Inbox::new(INBOX_BYTES), Decoder::new(Role::Server));
        Self { intake, inbox, decoder, used: 0, left: 0..0, out }
    }

    /// The next piece of a message; `None` when the peer has closed.
    ///
    /// Cancel safety: nothing is lost.
    pub(in crate::stream) async fn next(&mut self) -> io::Result<Option<Piece>> {
        loop {
            self.inbox.take(std::mem::take(&mut self.used));
            let step = match self.decoder.step(self.inbox.waiting()) {
                Ok(step) => step,
                Err(error) => {
                    let _ = self.out.send_control(|bytes| frame::close(frame::PROTOCOL_ERROR, bytes)).await;
                    return Err(io::Error::new(io::ErrorKind::InvalidData, error));
                }
            };
            match step.event {
                Some(Event::Piece { bytes, text, first, last }) => {
                    self.used = step.used;
                    return Ok(Some(Piece { bytes, text, first, last }));
                }
                Some(Event::Ping(content)) => {
                    self.inbox.take(step.used);
                    self.out.send_control(|bytes| frame::pong(&content, bytes)).await?;
                }
                Some(Event::Close(_)) => {
                    self.inbox.take(step.used);
                    let _ = self.out.send_control(|bytes| frame::close(frame::NORMAL, bytes)).await;
                    return Ok(None);
                }
                Some(Event::Pong) => self.inbox.take(step.used),
                None if step.used > 0 => self.inbox.take(step.used),
                None if self.intake.fill(&mut self.inbox).await? => {}
                None => return Ok(None),
            }
        }
    }

    /// The bytes of the piece that came last.
    pub(in crate::stream) fn bytes(&mut self, range: Range<usize>) -> &[u8] {
        self.inbox.waiting().get(range).unwrap_or_default()
    }

    /// Passes contents of binary messages on, as if they were one stream of bytes; `false` when the peer has closed.
    ///
    /// Cancel safety: nothing is lost.
    pub(in crate::stream) async fn fill(&mut self, into: &mut Inbox) -> io::Result<bool> {
        while self.left.is_empty() {
            match self.next().await? {
                Some(piece) if piece.text => {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "text in a tunnel"));
                }
                Some(piece) => self.left = piece.bytes,
                None => return Ok(false),
            }
        }
        let count = into.put(self.inbox.waiting().get(self.left.clone()).unwrap_or_default());
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame that does not fit"));
        }
        self.left.start += count;
        Ok(true)
    }

    /// Reads and drops what still comes.
    pub(in crate::stream) async fn drain(&mut self) {
        self.intake.drain().await;
    }
}
