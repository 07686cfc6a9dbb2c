//! Kubernetes' remotecommand protocol, all its versions over both transports: five channels and a result.
//!
//! Must not know: whose streams the channels are.

mod open;
mod outcome;
mod receive;
mod resize;

pub(super) use open::{Upgraded, Wanted, open};
pub(super) use outcome::Outcome;
pub(super) use receive::{Incoming, Receiver};
pub(super) use resize::Sizes;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use super::{spdy, transport::Outbox, websocket};

/// Most bytes of one frame.
pub(super) const CHUNK: usize = spdy::frame::DATA_MAX;
/// How long a client that has been told everything may leave its connection open.
const LINGER: Duration = Duration::from_secs(10);

/// What bytes are for. The numbers are those of the WebSocket protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Channel {
    Stdin = 0,
    Stdout = 1,
    Stderr = 2,
    Error = 3,
    Resize = 4,
}

pub(super) const CHANNELS: [Channel; 5] =
    [Channel::Stdin, Channel::Stdout, Channel::Stderr, Channel::Error, Channel::Resize];

/// How a channel is written on the wire.
#[derive(Clone, Copy, Debug)]
enum Wire {
    /// Ids of the channels' streams; 0: the client has none.
    Spdy([u32; 5]),
    /// A byte with the channel's number in front of each message.
    Binary,
    /// As text: a digit, and the rest in base64.
    Base64,
}

/// The sending end of a session; clones take turns.
#[derive(Clone)]
pub(super) struct Sender {
    out: Outbox,
    wire: Wire,
    wanted: Wanted,
    /// The result is a Status in JSON, and not a text that is empty when all is well.
    json: bool,
    /// Channels that have ended, a bit each.
    ended: Arc<AtomicU8>,
}

impl Sender {
    fn new(out: Outbox, wire: Wire, wanted: Wanted, json: bool) -> Self {
        Self { out, wire, wanted, json, ended: Arc::default() }
    }

    /// Sends bytes, at most [`CHUNK`]; what the call has not asked for goes nowhere.
    ///
    /// Cancel safety: the bytes are sent whole or not at all, as long as anything is sent after them.
    pub(super) async fn data(&self, channel: Channel, bytes: &[u8]) -> io::Result<()> {
        if !self.wanted.has(channel) {
            return Ok(());
        }
        let number = channel as u8;
        self.out
            .send(|out| match self.wire {
                Wire::Spdy(streams) => {
                    out.extend(spdy::frame::data_head(streams[number as usize], false, bytes.len()));
                    out.extend_from_slice(bytes);
                }
                Wire::Binary => {
                    websocket::frame::message_head(false, bytes.len() + 1, out);
                    out.push(number);
                    out.extend_from_slice(bytes);
                }
                Wire::Base64 => {
                    let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes);
                    websocket::frame::message_head(true, text.len() + 1, out);
                    out.push(b'0' + number);
                    out.extend_from_slice(text.as_bytes());
                }
            })
            .await
    }

    /// Nothing more comes on a channel; one that has ended already stays so.
    ///
    /// Cancel safety: the channel has not ended, or its end is sent as [`Sender::data`] is.
    pub(super) async fn end(&self, channel: Channel) -> io::Result<()> {
        match self.wire {
            Wire::Spdy(streams) if streams[channel as usize] != 0 => {
                let frame = spdy::frame::data_head(streams[channel as usize], true, 0);
                let bit = 1 << channel as u8;
                self.out
                    .send(|out| {
                        if self.ended.fetch_or(bit, Ordering::Relaxed) & bit == 0 {
                            out.extend(frame);
                        }
                    })
                    .await
            }
            // A WebSocket has no end of a channel but its own.
            _ => Ok(()),
        }
    }

    /// A sign of life, for a client that waits for the answer to a ping which nobody reads now.
    pub(super) async fn sign_of_life(&self) -> io::Result<()> {
        match self.wire {
            Wire::Spdy(_) => Ok(()),
            Wire::Binary | Wire::Base64 => {
                self.out.send_control(|out| websocket::frame::pong(b"", out)).await
            }
        }
    }

    /// Tells the result and ends the session: waits until the client has closed the connection, so that nothing that
    /// is on its way to it is lost, and gives up a client that does not.
    pub(super) async fn finish(&self, mut receiver: Receiver, outcome: &Outcome) {
        let told = async {
            // Clients hear the output to its end before they look at the result. Where nothing was started, or what
            // was did not end, nobody else has ended it.
            self.end(Channel::Stdout).await?;
            self.end(Channel::Stderr).await?;
            let text = outcome.told(self.json);
            if !text.is_empty() {
                self.data(Channel::Error, &text).await?;
            }
            self.end(Channel::Error).await?;
            if !matches!(self.wire, Wire::Spdy(_)) {
                let close = |out: &mut Vec<u8>| websocket::frame::close(websocket::frame::NORMAL, out);
                self.out.send_control(close).await?;
            }
            receiver.drain().await;
            io::Result::Ok(())
        };
        // Whoever does not take even this has gone in all but name.
        let _ = tokio::time::timeout(LINGER, told).await;
        let farewell = async {
            receiver.go_away().await;
            self.out.shut_down().await;
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), farewell).await;
    }
}
