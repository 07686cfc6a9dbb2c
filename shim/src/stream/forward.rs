//! A port-forward session: connections of a client, each carried by a pair of SPDY streams, to ports inside a pod.
//!
//! Sockets are made inside the pod's network namespace and used from here. What a port does not take makes its stream
//! wait, and with it, once the stream's queue is full, the connection of the client. Must not know: which transport it is.

mod dial;
mod pairs;

pub(super) use dial::Place;

use std::{collections::HashMap, io, sync::Arc};

use tokio::{
    io::AsyncWriteExt,
    net::tcp::{OwnedReadHalf, OwnedWriteHalf},
    sync::mpsc,
    task::JoinSet,
};

use super::{
    command::CHUNK,
    spdy::{Event, Reset, connection::Connection, frame, headers},
    transport::{Outbox, Peer},
};
use pairs::{Pair, Pairs};

/// Pieces of data that wait for a port to take them, each at most as large as the connection's inbox.
const QUEUE: usize = 4;
/// Connections at a time in one session.
const CONNECTIONS_MAX: usize = 4096;

/// What a connection's task gets from the client.
enum Piece {
    Bytes(Vec<u8>),
    End,
}

/// Serves until the client has gone.
///
/// # Errors
/// The client does not keep to the protocol.
pub(super) async fn run(
    mut connection: Connection,
    out: Outbox,
    peer: &Peer,
    place: Arc<Place>,
) -> io::Result<()> {
    let mut session = Session {
        writer: headers::Writer::default(),
        pairs: Pairs::default(),
        inputs: HashMap::new(),
        tasks: JoinSet::new(),
        out,
        place,
    };
    loop {
        let patience = session.pairs.first_overdue();
        let event = tokio::select! {
            event = connection.next() => event?,
            Some(done) = session.tasks.join_next() => {
                // A task that panicked has no streams to forget; the session goes on without it.
                if let Ok(stream) = done {
                    session.inputs.remove(&stream);
                }
                continue;
            }
            () = patience => {
                for stream in session.pairs.take_overdue() {
                    connection.reset(stream, Reset::Cancel).await?;
                }
                continue;
            }
        };
        let Some(event) = event else { return Ok(()) };
        if !session.on_event(&mut connection, event, peer).await? {
            return Ok(());
        }
    }
}

struct Session {
    writer: headers::Writer,
    pairs: Pairs,
    /// Where the data of a stream goes.
    inputs: HashMap<u32, mpsc::Sender<Piece>>,
    /// One a connection; gives the id of its data stream. All end with the session.
    tasks: JoinSet<u32>,
    out: Outbox,
    place: Arc<Place>,
}

impl Session {
    /// `false`: the client has gone.
    async fn on_event(&mut self, connection: &mut Connection, event: Event, peer: &Peer) -> io::Result<bool> {
        match event {
            Event::Syn { stream, headers, .. } => {
                if self.tasks.len() + self.pairs.waiting() >= CONNECTIONS_MAX {
                    connection.reset(stream, Reset::RefusedStream).await?;
                    return Ok(true);
                }
                match self.pairs.add(stream, &headers) {
                    Ok(pair) => {
                        connection.accept(&mut self.writer, stream).await?;
                        if let Some(pair) = pair {
                            self.begin(&pair);
                        }
                    }
                    Err(reason) => {
                        tracing::debug!(reason, "port-forward: a stream is refused");
                        connection.reset(stream, Reset::ProtocolError).await?;
                    }
                }
            }
            Event::Data { stream, bytes, fin } => {
                if self.pairs.is_waiting(stream) && !bytes.is_empty() {
                    self.pairs.forget(stream);
                    connection.reset(stream, Reset::ProtocolError).await?;
                    return Ok(true);
                }
                let bytes = connection.bytes(bytes);
                let piece = (!bytes.is_empty()).then(|| Piece::Bytes(bytes.to_vec()));
                for piece in piece.into_iter().chain(fin.then_some(Piece::End)) {
                    if !self.pass(stream, piece, peer).await {
                        return Ok(false);
                    }
                }
            }
            Event::Reset { stream } => {
                self.pairs.forget(stream);
                // The task finds its queue ended without an end of the data: that is a reset.
                self.inputs.remove(&stream);
            }
            Event::GoAway => return Ok(false),
            Event::Reply { .. } | Event::Ping(_) => {}
        }
        Ok(true)
    }

    /// Waits for the stream's queue; `false`: the client has gone meanwhile.
    async fn pass(&mut self, stream: u32, piece: Piece, peer: &Peer) -> bool {
        // Data of a stream that is over, or of an error stream, on which a client says nothing.
        let Some(input) = self.inputs.get(&stream) else { return true };
        tokio::select! {
            biased;
            // Whoever does not listen any more has told the client, or is about to.
            _ = input.send(piece) => true,
            () = peer.gone() => false,
        }
    }

    fn begin(&mut self, pair: &Pair) {
        let (sender, pieces) = mpsc::channel(QUEUE);
        self.inputs.insert(pair.data, sender);
        let (out, place) = (self.out.clone(), self.place.clone());
        let Pair { data, error, port } = *pair;
        self.tasks.spawn(async move {
            let carried = carry(&out, &place, data, port, pieces).await;
            // The client may be gone; then nobody is to be told.
            let _ = tell(&out, data, error, carried).await;
            data
        });
    }
}

/// How a connection ended.
enum Carried {
    /// Both directions have ended.
    Whole,
    /// The client has reset its stream.
    Reset,
    /// The port could not be reached, or the connection broke.
    Failed(String),
}

async fn carry(out: &Outbox, place: &Place, data: u32, port: u16, pieces: mpsc::Receiver<Piece>) -> Carried {
    let socket = match place.dial(port).await {
        Ok(socket) => socket,
        Err(error) => return Carried::Failed(error),
    };
    let (read, write) = socket.into_split();
    let (inward, outward) = (to_port(write, pieces), to_client(out, data, read));
    let (mut inward, mut outward) = (std::pin::pin!(inward), std::pin::pin!(outward));
    let broken = |error: io::Error| Carried::Failed(format!("port {port}: {error}"));
    tokio::select! {
        (ended, mut pieces) = &mut inward => match ended {
            Inward::Reset => Carried::Reset,
            // What the port still says is worth hearing, also when it takes nothing more.
            Inward::End | Inward::Refused => tokio::select! {
                sent = &mut outward => sent.map_or_else(broken, |()| Carried::Whole),
                () = reset(&mut pieces) => Carried::Reset,
            },
        },
        sent = &mut outward => match sent {
            Err(error) => broken(error),
            Ok(()) => match inward.await.0 {
                Inward::Reset => Carried::Reset,
                Inward::End | Inward::Refused => Carried::Whole,
            },
        },
    }
}

/// Why nothing more goes to the port.
enum Inward {
    /// The client has sent its last.
    End,
    /// The client has reset its stream.
    Reset,
    /// The port takes nothing more.
    Refused,
}

async fn to_port(
    mut write: OwnedWriteHalf,
    mut pieces: mpsc::Receiver<Piece>,
) -> (Inward, mpsc::Receiver<Piece>) {
    while let Some(piece) = pieces.recv().await {
        let (written, last) = match piece {
            Piece::Bytes(bytes) => (write.write_all(&bytes).await, false),
            Piece::End => (write.shutdown().await, true),
        };
        match written {
            Err(_) => return (Inward::Refused, pieces),
            Ok(()) if last => return (Inward::End, pieces),
            Ok(()) => {}
        }
    }
    // Dropping it would tell the port of an end that the client has not sent.
    write.forget();
    (Inward::Reset, pieces)
}

/// Completes when the client resets the stream; what it sends before is dropped.
async fn reset(pieces: &mut mpsc::Receiver<Piece>) {
    while pieces.recv().await.is_some() {}
}

async fn to_client(out: &Outbox, data: u32, read: OwnedReadHalf) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        read.readable().await?;
        let count = match read.try_read(&mut buffer) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        let bytes = &buffer[..count];
        let head = frame::data_head(data, count == 0, count);
        out.send(|out| {
            out.extend(head);
            out.extend_from_slice(bytes);
        })
        .await?;
        if count == 0 {
            return Ok(());
        }
    }
}

/// Ends both streams: an error first, so that the client knows it when its connection ends.
async fn tell(out: &Outbox, data: u32, error: u32, carried: Carried) -> io::Result<()> {
    let text = match &carried {
        Carried::Failed(text) => text.as_str(),
        Carried::Whole | Carried::Reset => "",
    };
    out.send(|out| {
        if !text.is_empty() {
            out.extend(frame::data_head(error, false, text.len()));
            out.extend_from_slice(text.as_bytes());
        }
        out.extend(frame::data_head(error, true, 0));
        if matches!(carried, Carried::Failed(_)) {
            out.extend(frame::reset(data, Reset::Cancel));
        }
    })
    .await
}
