//! The beginning of a session: the client's channels are opened, and only those that the call has asked for.
//!
//! Must not know: what follows.

use std::{io, time::Duration};

use tokio::time::timeout;

use super::{CHANNELS, Channel, Receiver, Sender, Wire, receive::Stream};
use crate::stream::{
    spdy::{Event, Reset, connection::Connection, headers},
    transport::Outbox,
    websocket::connection::WebSocket,
};

/// How long a client may take to open all its streams.
const PATIENCE: Duration = Duration::from_secs(30);

/// Which channels a call has asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::stream) struct Wanted {
    pub(in crate::stream) stdin: bool,
    pub(in crate::stream) stdout: bool,
    pub(in crate::stream) stderr: bool,
    pub(in crate::stream) tty: bool,
}

impl Wanted {
    pub(super) fn has(self, channel: Channel) -> bool {
        match channel {
            Channel::Stdin => self.stdin,
            Channel::Stdout => self.stdout,
            Channel::Stderr => self.stderr && !self.tty,
            Channel::Error => true,
            Channel::Resize => self.tty,
        }
    }
}

/// A client's connection, upgraded.
pub(in crate::stream) enum Upgraded {
    Spdy(Box<Connection>),
    WebSocket(WebSocket),
}

/// Opens a session over a connection on which `protocol` was agreed.
///
/// # Errors
/// The client has gone, or does not keep to the protocol.
pub(in crate::stream) async fn open(
    upgraded: Upgraded,
    out: Outbox,
    protocol: &str,
    wanted: Wanted,
) -> io::Result<(Receiver, Sender)> {
    let version = protocol.split('.').next().unwrap_or_default();
    let json = matches!(version, "v4" | "v5");
    match upgraded {
        Upgraded::Spdy(mut connection) => {
            // Before v3 there are no sizes.
            let resize = wanted.tty && matches!(version, "v3" | "v4");
            let wait = timeout(PATIENCE, streams(&mut connection, wanted, resize));
            let (ids, ended) = wait.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
            let receiver = Receiver::new(Stream::Spdy { connection: *connection, ids }, ended);
            Ok((receiver, Sender::new(out, Wire::Spdy(ids), wanted, json)))
        }
        Upgraded::WebSocket(socket) => {
            let base64 = protocol.contains("base64");
            let wire = if base64 { Wire::Base64 } else { Wire::Binary };
            let sender = Sender::new(out, wire, wanted, json);
            // Clients take the first message as the sign that the session has begun.
            let outputs = [Channel::Stdout, Channel::Stderr, Channel::Error];
            let first = outputs.into_iter().find(|channel| wanted.has(*channel));
            sender.data(first.unwrap_or(Channel::Error), &[]).await?;
            Ok((
                Receiver::new(
                    Stream::web_socket(socket, base64, version == "v5", wanted.stdin, wanted.tty),
                    false,
                ),
                sender,
            ))
        }
    }
}

/// Waits for all streams; gives their ids, and whether the client has ended its input already.
async fn streams(connection: &mut Connection, wanted: Wanted, resize: bool) -> io::Result<([u32; 5], bool)> {
    let mut writer = headers::Writer::default();
    let (mut ids, mut ended) = ([0; 5], false);
    let needed = |channel: Channel| wanted.has(channel) && (channel != Channel::Resize || resize);
    while CHANNELS.into_iter().any(|channel| needed(channel) && ids[channel as usize] == 0) {
        let event = connection.next().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        match event {
            Event::Syn { stream, fin, headers } => {
                let kind =
                    headers.iter().find(|(name, _)| name == "streamtype").map(|(_, kind)| kind.as_str());
                let channel = CHANNELS.into_iter().find(|channel| Some(name(*channel)) == kind);
                match channel.filter(|channel| needed(*channel) && ids[*channel as usize] == 0) {
                    Some(channel) => {
                        connection.accept(&mut writer, stream).await?;
                        ids[channel as usize] = stream;
                        ended |= fin && channel == Channel::Stdin;
                    }
                    None => connection.reset(stream, Reset::RefusedStream).await?,
                }
            }
            Event::Data { stream, bytes, fin } if bytes.is_empty() => {
                ended |= fin && stream == ids[Channel::Stdin as usize];
            }
            Event::Data { .. } => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "data before all streams are open"));
            }
            Event::Reset { stream } if ids.contains(&stream) => {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            Event::GoAway => return Err(io::ErrorKind::UnexpectedEof.into()),
            Event::Reset { .. } | Event::Reply { .. } | Event::Ping(_) => {}
        }
    }
    Ok((ids, ended))
}

fn name(channel: Channel) -> &'static str {
    match channel {
        Channel::Stdin => "stdin",
        Channel::Stdout => "stdout",
        Channel::Stderr => "stderr",
        Channel::Error => "error",
        Channel::Resize => "resize",
    }
}
