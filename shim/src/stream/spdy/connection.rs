//! A connection's events: frames are read, pings answered, ids of streams checked.
//!
//! Must not know: what streams are for.

use std::{io, ops::Range};

use super::{Decoder, Event, Reset, frame, headers};
use crate::stream::{
    inbox::Inbox,
    transport::{Intake, Outbox},
    websocket::{self, connection::WebSocket},
};

/// Holds the largest control frame, and what of a data frame is handed on at once.
const INBOX_BYTES: usize = 32 << 10;
const _: () = assert!(INBOX_BYTES >= frame::CONTROL_MAX);

/// Where the bytes come from.
pub(in crate::stream) enum Source {
    /// The connection itself.
    Plain(Intake),
    /// The messages of a WebSocket.
    Tunnel(WebSocket),
}

/// The reading end.
pub(in crate::stream) struct Connection {
    source: Source,
    inbox: Inbox,
    decoder: Decoder,
    /// Bytes of the inbox that the last event was about.
    used: usize,
    last: u32,
    out: Outbox,
}

fn broken(error: super::FrameError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl Connection {
    /// Answers go to `out`.
    pub(in crate::stream) fn new(source: Source, out: Outbox) -> Self {
        let inbox = Inbox::new(INBOX_BYTES);
        Self { source, inbox, decoder: Decoder::default(), used: 0, last: 0, out }
    }

    /// The next thing that the peer says; `None` at the end of the connection.
    ///
    /// Cancel safety: nothing is lost.
    pub(in crate::stream) async fn next(&mut self) -> io::Result<Option<Event>> {
        loop {
            self.inbox.take(std::mem::take(&mut self.used));
            let step = self.decoder.step(self.inbox.waiting()).map_err(broken)?;
            match step.event {
                // The peer's own pings have odd numbers; others answer one of ours.
                Some(Event::Ping(id)) => {
                    self.inbox.take(step.used);
                    if id % 2 == 1 {
                        self.out.send(|bytes| bytes.extend(frame::ping(id))).await?;
                    }
                }
                Some(Event::Syn { stream, .. }) if stream % 2 == 0 || stream <= self.last => {
                    self.inbox.take(step.used);
                    self.reset(stream, Reset::ProtocolError).await?;
                }
                Some(event) => {
                    if let Event::Syn { stream, .. } = event {
                        self.last = stream;
                    }
                    self.used = step.used;
                    return Ok(Some(event));
                }
                None if step.used > 0 => self.inbox.take(step.used),
                None => {
                    let more = match &mut self.source {
                        Source::Plain(intake) => intake.fill(&mut self.inbox).await?,
                        Source::Tunnel(socket) => socket.fill(&mut self.inbox).await?,
                    };
                    if !more {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// The bytes of the [`Event::Data`] that came last.
    pub(in crate::stream) fn bytes(&mut self, range: Range<usize>) -> &[u8] {
        self.inbox.waiting().get(range).unwrap_or_default()
    }

    /// Accepts a stream: what is sent on it before this is lost at the peer.
    ///
    /// The block is always an empty one, so the writer's state is but whether it is the first.
    pub(in crate::stream) async fn accept(
        &mut self,
        writer: &mut headers::Writer,
        stream: u32,
    ) -> io::Result<()> {
        let block = writer.write(&[]);
        self.out.send(|bytes| bytes.extend(frame::syn_reply(stream, &block))).await
    }

    /// Ends a stream, both ways.
    pub(in crate::stream) async fn reset(&mut self, stream: u32, why: Reset) -> io::Result<()> {
        self.out.send(|bytes| bytes.extend(frame::reset(stream, why))).await
    }

    /// Tells the peer that this end takes no more streams; of a WebSocket around it, that it is over.
    pub(in crate::stream) async fn go_away(&mut self) {
        let frame = frame::go_away(self.last);
        // The peer may have gone before.
        let _ = self.out.send(|bytes| bytes.extend(frame)).await;
        if matches!(self.source, Source::Tunnel(_)) {
            let close = |bytes: &mut Vec<u8>| websocket::frame::close(websocket::frame::NORMAL, bytes);
            let _ = self.out.send_control(close).await;
        }
    }

    /// Reads and drops what still comes.
    pub(in crate::stream) async fn drain(&mut self) {
        match &mut self.source {
            Source::Plain(intake) => intake.drain().await,
            Source::Tunnel(socket) => socket.drain().await,
        }
    }
}
