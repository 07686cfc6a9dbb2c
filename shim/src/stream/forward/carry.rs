//! One connection: both directions, their ends, and what either side is told of the other's.
//!
//! What a port has ended with, a client hears, however late. A port hears an end only from a client that has sent one;
//! whatever else becomes of the client is a reset, behind all that had arrived of it. Must not know: other connections.

use std::{io, time::Duration};

use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    dial::Place,
    pairs::Pair,
    port::{Port, STALL},
};
use crate::stream::{
    command::CHUNK,
    spdy::{Reset, frame},
    transport::{Outbox, Peer},
};

/// Pieces of data that wait for a port to take them, each at most as large as the connection's inbox.
const QUEUE: usize = 4;
/// How long a client may say nothing once it has been told that the port has ended. Kubernetes' own waits for the end
/// of the error stream before it closes what it forwards, so somebody has to be the first.
const LATE: Duration = Duration::from_secs(1);

/// What comes from the client.
pub(super) enum Piece {
    Bytes(Vec<u8>),
    End,
}

/// Where the data of a stream goes. Dropping it without a [`Piece::End`] is a reset.
pub(super) struct Input {
    pieces: mpsc::Sender<Piece>,
    _over: DropGuard,
}

/// Where it comes from.
pub(super) struct Pieces {
    receiver: mpsc::Receiver<Piece>,
    /// Nothing is added any more.
    over: CancellationToken,
}

/// Both ends of a stream's queue.
pub(super) fn queue() -> (Input, Pieces) {
    let ((pieces, receiver), over) = (mpsc::channel(QUEUE), CancellationToken::new());
    (Input { pieces, _over: over.clone().drop_guard() }, Pieces { receiver, over })
}

impl Input {
    /// Waits for room, with a client that is there; for one that has gone as long as the port takes anything. `false`:
    /// nobody takes it.
    pub(super) async fn pass(&self, piece: Piece, peer: &Peer) -> bool {
        let room = tokio::select! {
            biased;
            room = self.pieces.reserve() => room,
            () = peer.gone() => match timeout(STALL, self.pieces.reserve()).await {
                Ok(room) => room,
                Err(_) => return false,
            },
        };
        room.map(|room| room.send(piece)).is_ok()
    }

    /// The end of a client that says it before all else.
    pub(super) fn end(&self) {
        // A new queue has room.
        let _ = self.pieces.try_send(Piece::End);
    }
}

/// How a connection ended.
enum Carried {
    /// Both directions have ended.
    Whole,
    /// The port has ended, and the client has said nothing since, not even its end.
    Late,
    /// The client has reset its stream, or gone.
    Reset,
    /// The port could not be reached, or the connection broke.
    Failed(String),
}

/// Carries a connection to its end, and tells the client.
pub(super) async fn carry(out: Outbox, place: &Place, pair: Pair, pieces: Pieces) {
    let over = pieces.over.clone();
    let carried = tokio::select! {
        carried = connection(&out, place, pair, pieces) => carried,
        () = place.ended() => Carried::Failed(super::dial::STOPPED.to_owned()),
    };
    // The client may be gone, or take nothing; then nobody is to be told.
    tokio::select! {
        _ = tell(&out, pair, carried) => {}
        () = long(&over) => {}
    }
}

/// Completes a while after the client's last word.
async fn long(over: &CancellationToken) {
    over.cancelled().await;
    sleep(STALL).await;
}

async fn connection(out: &Outbox, place: &Place, pair: Pair, pieces: Pieces) -> Carried {
    let over = pieces.over.clone();
    let dialled = tokio::select! {
        dialled = place.dial(pair.port) => dialled,
        () = long(&over) => return Carried::Reset,
    };
    let port = match dialled {
        Ok(port) => port,
        Err(error) => return Carried::Failed(error),
    };
    let abandoned = async {
        over.cancelled().await;
        port.still(STALL).await;
    };
    tokio::select! {
        carried = both(out, pair, &port, pieces.receiver) => carried,
        () = abandoned => Carried::Reset,
    }
}

async fn both(out: &Outbox, pair: Pair, port: &Port, pieces: mpsc::Receiver<Piece>) -> Carried {
    let (inward, outward) = (to_port(port, pieces), to_client(out, pair.data, port));
    let (mut inward, mut outward) = (std::pin::pin!(inward), std::pin::pin!(outward));
    let broken = |error: io::Error| Carried::Failed(format!("port {}: {error}", pair.port));
    tokio::select! {
        (ended, mut pieces) = &mut inward => match ended {
            Inward::Reset => Carried::Reset,
            // What the port still says is worth hearing, also when it takes nothing more.
            Inward::End | Inward::Refused => tokio::select! {
                sent = &mut outward => sent.map_or_else(broken, |()| Carried::Whole),
                () = over(&mut pieces, port) => Carried::Reset,
            },
        },
        sent = &mut outward => match sent {
            Err(error) => broken(error),
            Ok(()) => tokio::select! {
                (ended, _) = &mut inward => match ended {
                    Inward::Reset => Carried::Reset,
                    Inward::End | Inward::Refused => Carried::Whole,
                },
                () = port.still(LATE) => Carried::Late,
            },
        },
    }
}

/// Why nothing more goes to the port.
enum Inward {
    /// The client has sent its last.
    End,
    /// The client has reset its stream, or gone.
    Reset,
    /// The port takes nothing more.
    Refused,
}

async fn to_port(port: &Port, mut pieces: mpsc::Receiver<Piece>) -> (Inward, mpsc::Receiver<Piece>) {
    while let Some(piece) = pieces.recv().await {
        let (passed, last) = match piece {
            Piece::Bytes(bytes) => (port.write(&bytes).await, false),
            Piece::End => (port.end(), true),
        };
        match passed {
            Err(_) => return (Inward::Refused, pieces),
            Ok(()) if last => return (Inward::End, pieces),
            Ok(()) => {}
        }
    }
    // A reset overtakes what the port's kernel has not taken.
    port.taken().await;
    (Inward::Reset, pieces)
}

/// Completes when the client resets its stream or goes, and the port has what had arrived; what it sends before is
/// dropped.
async fn over(pieces: &mut mpsc::Receiver<Piece>, port: &Port) {
    while pieces.recv().await.is_some() {}
    port.taken().await;
}

async fn to_client(out: &Outbox, data: u32, port: &Port) -> io::Result<()> {
    let (mut buffer, mut heard) = (vec![0; CHUNK], true);
    loop {
        let count = port.read(&mut buffer).await?;
        let bytes = &buffer[..count];
        let head = frame::data_head(data, count == 0, count);
        let send = |out: &mut Vec<u8>| {
            out.extend(head);
            out.extend_from_slice(bytes);
        };
        // The answer to a client that has gone goes nowhere, so that the port goes on to take what that had sent.
        heard = heard && out.send(send).await.is_ok();
        if count == 0 {
            return Ok(());
        }
    }
}

/// Ends both streams: an error first, so that the client knows it when its connection ends.
async fn tell(out: &Outbox, pair: Pair, carried: Carried) -> io::Result<()> {
    let text = match &carried {
        Carried::Failed(text) => text.as_str(),
        Carried::Whole | Carried::Late | Carried::Reset => "",
    };
    out.send(|out| {
        if !text.is_empty() {
            out.extend(frame::data_head(pair.error, false, text.len()));
            out.extend_from_slice(text.as_bytes());
        }
        out.extend(frame::data_head(pair.error, true, 0));
        if matches!(carried, Carried::Failed(_) | Carried::Late) {
            out.extend(frame::reset(pair.data, Reset::Cancel));
        }
    })
    .await
}
