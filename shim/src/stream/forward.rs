//! A port-forward session: connections of a client, each carried by a pair of SPDY streams, to ports inside a pod.
//!
//! Sockets are made inside the pod's network namespace and used from here. What a port does not take makes its stream
//! wait, and with it, once the stream's queue is full, the connection of the client. Must not know: which transport it is.

mod carry;
mod dial;
mod pairs;
mod port;

pub(super) use dial::Place;

use std::{collections::HashMap, io, sync::Arc};

use tokio::task::JoinSet;

use super::{
    spdy::{Event, Reset, connection::Connection, headers},
    transport::{Outbox, Peer},
};
use carry::{Input, Piece};
use pairs::{Pair, Pairs};

/// Connections at a time in one session.
const CONNECTIONS_MAX: usize = 4096;

/// Serves until the client has gone, and what had arrived of it is with the ports.
///
/// # Errors
/// The client does not keep to the protocol.
pub(super) async fn run(
    connection: &mut Connection,
    out: Outbox,
    peer: &Peer,
    place: Arc<Place>,
) -> io::Result<()> {
    let mut session = Session {
        writer: headers::Writer::default(),
        pairs: Pairs::default(),
        inputs: HashMap::new(),
        tasks: JoinSet::new(),
        leaving: false,
        out,
        place,
    };
    let served = session.serve(connection, peer).await;
    session.inputs.clear();
    while session.tasks.join_next().await.is_some() {}
    served
}

struct Session {
    writer: headers::Writer,
    pairs: Pairs,
    /// Where the data of a stream goes.
    inputs: HashMap<u32, Input>,
    /// One a connection; gives the id of its data stream. All end with the session.
    tasks: JoinSet<u32>,
    /// The client opens no more streams, and goes when those that it has are over.
    leaving: bool,
    out: Outbox,
    place: Arc<Place>,
}

impl Session {
    async fn serve(&mut self, connection: &mut Connection, peer: &Peer) -> io::Result<()> {
        while !(self.leaving && self.tasks.is_empty()) {
            let patience = self.pairs.first_overdue();
            let event = tokio::select! {
                event = connection.next() => event?,
                Some(done) = self.tasks.join_next() => {
                    // A task that panicked has no streams to forget; the session goes on without it.
                    if let Ok(stream) = done {
                        self.inputs.remove(&stream);
                    }
                    continue;
                }
                () = patience => {
                    for stream in self.pairs.take_overdue() {
                        connection.reset(stream, Reset::Cancel).await?;
                    }
                    continue;
                }
            };
            let Some(event) = event else { return Ok(()) };
            self.on_event(connection, event, peer).await?;
        }
        Ok(())
    }

    async fn on_event(&mut self, connection: &mut Connection, event: Event, peer: &Peer) -> io::Result<()> {
        match event {
            Event::Syn { stream, fin, headers } => {
                if self.leaving || self.tasks.len() + self.pairs.waiting() >= CONNECTIONS_MAX {
                    return connection.reset(stream, Reset::RefusedStream).await;
                }
                match self.pairs.add(stream, fin, &headers) {
                    Ok(pair) => {
                        connection.accept(&mut self.writer, stream).await?;
                        if let Some(pair) = pair {
                            self.begin(pair);
                        }
                    }
                    Err(reason) => {
                        tracing::debug!(reason, "port-forward: a stream is refused");
                        connection.reset(stream, Reset::ProtocolError).await?;
                    }
                }
            }
            Event::Data { stream, bytes, fin } => {
                if self.pairs.is_waiting(stream) {
                    if !bytes.is_empty() {
                        self.pairs.forget(stream);
                        return connection.reset(stream, Reset::ProtocolError).await;
                    }
                    if fin {
                        self.pairs.end(stream);
                    }
                    return Ok(());
                }
                let bytes = connection.bytes(bytes);
                let piece = (!bytes.is_empty()).then(|| Piece::Bytes(bytes.to_vec()));
                for piece in piece.into_iter().chain(fin.then_some(Piece::End)) {
                    self.pass(stream, piece, peer).await;
                }
            }
            Event::Reset { stream } => {
                self.pairs.forget(stream);
                self.inputs.remove(&stream);
            }
            // Its streams go on: what is on them may be on its way still.
            Event::GoAway => self.leaving = true,
            Event::Reply { .. } | Event::Ping(_) => {}
        }
        Ok(())
    }

    /// Waits for the stream's queue.
    async fn pass(&mut self, stream: u32, piece: Piece, peer: &Peer) {
        // Without one: data of a stream that is over, or of an error stream, on which a client says nothing.
        if let Some(input) = self.inputs.get(&stream)
            && !input.pass(piece, peer).await
        {
            self.inputs.remove(&stream);
        }
    }

    fn begin(&mut self, pair: Pair) {
        let (input, pieces) = carry::queue();
        if pair.ended {
            input.end();
        }
        self.inputs.insert(pair.data, input);
        let (out, place) = (self.out.clone(), self.place.clone());
        self.tasks.spawn(async move {
            carry::carry(out, &place, pair, pieces).await;
            pair.data
        });
    }
}
