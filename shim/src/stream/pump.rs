//! What goes between a client and a process: its input, sizes of its window, and the output.
//!
//! Each direction waits for its receiver and holds at most one piece: who does not read stops who writes. Must not know:
//! what kind of process it is.

use std::{io, sync::Arc, time::Duration};

use tokio::time::interval;
use tokio_util::sync::CancellationToken;

use super::{
    command::{CHUNK, Channel, Incoming, Receiver, Sender, Sizes},
    descriptor::Descriptor,
    transport::Peer,
};
use crate::link::Link;
use crisp_monitor::wire::{Call, Resize};
use crisp_sys::terminal;

/// How often a client hears a sign of life while its input is not taken.
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);
/// Most that was written to a pipe or terminal before its writer ended: what the largest of both hold, in bytes.
const HELD_MAX: usize = 1 << 20;

/// The client of a session.
pub(super) struct Client {
    pub(super) receiver: Receiver,
    pub(super) sender: Sender,
    pub(super) peer: Peer,
}

/// Whose size follows the client's window.
pub(super) enum Window {
    Nobody,
    /// A terminal of which this is the first end.
    Terminal(Arc<Descriptor>),
    /// The terminal of a container's first process, which its monitor holds.
    Container(Link, String),
}

impl Window {
    async fn resize(&self, columns: u16, rows: u16) {
        // A terminal that is gone has no size.
        match self {
            Window::Nobody => {}
            Window::Terminal(terminal) => {
                let _ = terminal::resize(terminal, columns, rows);
            }
            Window::Container(link, container) => {
                let (columns, rows) = (columns.into(), rows.into());
                let call = Call::Resize(Resize { container: container.clone(), columns, rows });
                let _ = link.call(call, &[]).await;
            }
        }
    }
}

/// The process's input.
pub(super) enum Input {
    /// It has none.
    Nothing,
    /// A pipe; its end is the input's end.
    Pipe(Descriptor),
    /// A terminal, which has no end before the session.
    Terminal(Arc<Descriptor>),
}

/// Passes on what the client sends; completes when it has gone.
///
/// Cancel safety: what was taken from the client may not have been written.
pub(super) async fn input(
    receiver: &mut Receiver,
    sender: &Sender,
    peer: &Peer,
    mut input: Input,
    window: &Window,
) {
    let mut sizes = Sizes::default();
    // An error of the connection is its end.
    while let Ok(Some(incoming)) = receiver.next().await {
        match incoming {
            Incoming::Size(bytes) => {
                if let Some((columns, rows)) = sizes.push(bytes) {
                    window.resize(columns, rows).await;
                }
            }
            Incoming::InputEnd => {
                if matches!(input, Input::Pipe(_)) {
                    input = Input::Nothing;
                }
            }
            Incoming::Input(bytes) => {
                let to: &Descriptor = match &input {
                    Input::Nothing => continue,
                    Input::Pipe(pipe) => pipe,
                    Input::Terminal(terminal) => terminal,
                };
                match write_all(to, bytes, sender, peer).await {
                    Written::All => {}
                    // It has closed its input; the rest goes nowhere, as at a shell.
                    Written::Refused => input = Input::Nothing,
                    Written::Gone => return,
                }
            }
        }
    }
}

enum Written {
    All,
    Refused,
    Gone,
}

async fn write_all(to: &Descriptor, bytes: &[u8], sender: &Sender, peer: &Peer) -> Written {
    let mut rest = bytes;
    let mut signs = interval(SIGN_OF_LIFE);
    signs.reset();
    while !rest.is_empty() {
        tokio::select! {
            biased;
            written = to.write(rest) => match written {
                Ok(count) => rest = &rest[count..],
                Err(_) => return Written::Refused,
            },
            () = peer.gone() => return Written::Gone,
            // Nobody reads the client's pings meanwhile.
            _ = signs.tick() => tokio::select! {
                alive = sender.sign_of_life() => if alive.is_err() {
                    return Written::Gone;
                },
                () = peer.gone() => return Written::Gone,
            },
        }
    }
    Written::All
}

/// Sends what a process writes, to its end; `over`: nobody is left whose output is waited for, so what is there is the
/// rest.
///
/// # Errors
/// The client has gone.
pub(super) async fn output(
    from: &Descriptor,
    sender: &Sender,
    channel: Channel,
    over: &CancellationToken,
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = tokio::select! {
            read = from.read(&mut buffer) => read.unwrap_or(0),
            () = over.cancelled() => break,
        };
        if count == 0 {
            return sender.end(channel).await;
        }
        sender.data(channel, &buffer[..count]).await?;
    }
    let mut left = HELD_MAX;
    while left > 0 {
        match from.read_now(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(count) => {
                sender.data(channel, &buffer[..count]).await?;
                left = left.saturating_sub(count);
            }
        }
    }
    sender.end(channel).await
}
